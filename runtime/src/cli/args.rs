//! What can be said on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use cloister::logger::LogFormat;
use cloister::paths::DEFAULT_ROOT;

const ABOUT: &str = "Runs OCI containers, each in a virtual machine of its own";

const LONG_ABOUT: &str = "\
Runs OCI containers, each in a virtual machine of its own.

cloister takes the commands and options of runc. A container is described by a bundle: a directory \
with a specification, config.json, and usually a root file system. The container's processes run \
under a kernel of their own behind KVM; a process of this machine, the monitor, stands for them: it \
has the container's pid, takes its signals and ends as it ends.";

const AFTER_HELP: &str = "\
Walk-through:
    mkdir -p bundle/rootfs         and put a root file system into it
    cloister spec --bundle bundle  and edit bundle/config.json to taste
    cloister run --bundle bundle mycontainer

Files:
    /etc/cloister/config.toml      settings; the environment's CLOISTER_<KEY> goes before them
    /run/cloister/<id>/            what is known of a container, and its logs

Refused by name: checkpoint, restore. docs/limits.md tells what else cannot be in a virtual machine.";

#[derive(Debug, Parser)]
#[command(
    name = "cloister",
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = AFTER_HELP,
    args_override_self = true,
    subcommand_value_name = "COMMAND",
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// Directory that holds the state of containers, one directory each
    #[arg(long, value_name = "DIR", default_value = DEFAULT_ROOT)]
    pub(crate) root: PathBuf,

    /// File that the log is appended to, in place of standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,

    /// Form of the log
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,

    /// Log what helps to find a fault
    #[arg(long)]
    pub(crate) debug: bool,

    /// Configuration file, in place of /etc/cloister/config.toml (environment: CLOISTER_CONFIG)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// File that receives, as JSON, when each phase of the container's life was reached, in
    /// nanoseconds of CLOCK_MONOTONIC; with run and create
    #[arg(long, value_name = "FILE")]
    pub(crate) timeline: Option<PathBuf>,

    /// Have systemd make the cgroup of a sandbox's processes: cgroupsPath is SLICE:PREFIX:NAME
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,

    /// Who makes the cgroup of a sandbox's processes, as crun's callers say it
    #[arg(long, value_name = "WHO", value_enum, default_value_t)]
    pub(crate) cgroup_manager: CgroupManager,

    /// Whether to run without root's rights: only `false`, or `auto`, which means the same
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub(crate) rootless: Rootless,

    /// Print the version
    #[arg(long, short = 'v')]
    pub(crate) version: bool,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum CgroupManager {
    #[default]
    Cgroupfs,
    Systemd,
    /// Nobody: the processes stay in the caller's.
    Disabled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Rootless {
    #[default]
    Auto,
    True,
    False,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a container and start its program
    ///
    /// In the foreground, which is the default, the command's standard streams are the program's,
    /// signals to the command are signals to the program, and the command exits with the
    /// program's exit code, or with 128 and the number of the signal that ended it. When the
    /// container's machine ends under the program, the exit code is 255; a container that cannot
    /// be created is 1, and nothing is left of it.
    Run(RunOptions),

    /// Create a container without starting its program
    ///
    /// The virtual machine is started and the container built in it. The command returns when
    /// everything is ready for `cloister start`.
    Create(CreateOptions),

    /// Start the program of a container that was created
    Start {
        /// The container
        #[arg(value_name = "CONTAINER")]
        id: String,
    },

    /// Print the state of a container as JSON
    State {
        /// The container
        #[arg(value_name = "CONTAINER")]
        id: String,
    },

    /// Send a signal to the program of a container
    Kill(KillOptions),

    /// Remove a container that has ended
    Delete(DeleteOptions),

    /// List the containers
    List(ListOptions),

    /// Write a specification to start from
    ///
    /// Writes config.json into the bundle; one that is there is left alone.
    Spec(SpecOptions),

    /// Find out whether this machine can run containers
    ///
    /// Looks at the hypervisor, by running a tiny guest, and at the parts of the installation.
    /// Exits with 0 if everything is there and usable, with 1 if not.
    Check(CheckOptions),

    /// Print which features of the OCI runtime specification there are, as JSON
    Features,

    /// Execute a further program in a container
    ///
    /// What the program is comes from --process, or from the command line on top of the process of
    /// the container's specification. In the foreground, which is the default, the command's
    /// standard streams are the program's, signals to the command are signals to the program, and
    /// the command exits with the program's exit code, or with 128 and the number of the signal
    /// that ended it. A program that cannot be executed is 255.
    Exec(Box<ExecOptions>),

    /// List the processes of a container
    ///
    /// The table shows the processes as the container's kernel has them, with their pids there. The
    /// JSON form is for programs that look pids up on this machine: it has the pids of the
    /// processes that stand for the container and for what was executed in it.
    Ps(PsOptions),

    /// Stop the processes of a container where they are
    Pause {
        /// The container
        #[arg(value_name = "CONTAINER")]
        id: String,
    },

    /// Let the processes of a paused container go on
    Resume {
        /// The container
        #[arg(value_name = "CONTAINER")]
        id: String,
    },

    /// Change the limits of a container
    ///
    /// Its virtual machine grows by what the limits allow beyond what it has, up to max_memory_mib and
    /// max_vcpus of the configuration. A limit beyond these holds, and a warning says what there is.
    Update(Box<UpdateOptions>),

    /// Print what a container uses, and when it is out of memory, as JSON
    Events(EventsOptions),

    /// Not supported: refused
    #[command(hide = true)]
    Checkpoint(RefusedOptions),

    /// Not supported: refused
    #[command(hide = true)]
    Restore(RefusedOptions),

    /// Anything else.
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

#[derive(Debug, Args)]
pub(crate) struct CreateOptions {
    /// The directory with config.json
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,

    /// File with the specification, in place of config.json in the bundle
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Socket that receives the master side of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,

    /// Socket that receives a pidfd of the container's process on this machine
    #[arg(long, value_name = "SOCKET")]
    pub(crate) pidfd_socket: Option<PathBuf>,

    /// File that receives the pid of the container's process
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Accepted: the root of a virtual machine's container is pivoted in its own kernel
    #[arg(long)]
    pub(crate) no_pivot: bool,

    /// Accepted: the kernel of a virtual machine has no keyring of the caller's
    #[arg(long)]
    pub(crate) no_new_keyring: bool,

    /// Descriptors to pass beyond the standard streams, at most 32: pipes, connected stream sockets,
    /// and devices like /dev/null
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,

    /// The name of the new container: letters, digits, and `_`, `+`, `-`, `.`
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    #[command(flatten)]
    pub(crate) create: CreateOptions,

    /// Return when the program was started
    #[arg(long, short)]
    pub(crate) detach: bool,

    /// Keep the container's state after its end, for `cloister state` and `cloister delete`
    #[arg(long)]
    pub(crate) keep: bool,

    /// Do not adopt the container's processes should its monitor be killed
    #[arg(long)]
    pub(crate) no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KillOptions {
    /// Signal every process of the container
    #[arg(long, short)]
    pub(crate) all: bool,

    /// Take CONTAINER for a regular expression, and signal every container whose name it matches
    #[arg(long, short)]
    pub(crate) regex: bool,

    /// The container
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,

    /// A name, with or without SIG, or a number
    #[arg(value_name = "SIGNAL", default_value = "TERM")]
    pub(crate) signal: String,
}

/// What is refused whatever is said.
#[derive(Debug, Args)]
pub(crate) struct RefusedOptions {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub(crate) words: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct ExecOptions {
    /// Socket that receives the master side of the process's terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,

    /// Socket that receives a pidfd of the process that stands for the program on this machine
    #[arg(long, value_name = "SOCKET")]
    pub(crate) pidfd_socket: Option<PathBuf>,

    /// Working directory in the container
    #[arg(long, value_name = "DIR", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) cwd: Option<String>,

    /// Set an environment variable; may be given several times
    #[arg(long, short, value_name = "NAME=VALUE", action = clap::ArgAction::Append, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) env: Vec<String>,

    /// Give the program a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,

    /// User and, after a colon, group, as numbers
    #[arg(long, short, value_name = "UID[:GID]", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) user: Option<String>,

    /// A further group, as a number; may be given several times
    #[arg(long, short = 'g', value_name = "GID", action = clap::ArgAction::Append)]
    pub(crate) additional_gids: Vec<u32>,

    /// File with a process object of the specification, in place of all that tells of the program
    #[arg(long, short, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,

    /// Return when the program was started
    #[arg(long, short)]
    pub(crate) detach: bool,

    /// File that receives the pid of the process that stands for the program on this machine
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,

    /// SELinux label of the process: refused, the guest kernel has no SELinux
    #[arg(long, value_name = "LABEL")]
    pub(crate) process_label: Option<String>,

    /// AppArmor profile of the process: refused but for callers' defaults, the guest kernel has no AppArmor
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,

    /// Keep the program from gaining privileges, or not
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_name = "YES")]
    pub(crate) no_new_privs: Option<bool>,

    /// Add a capability; may be given several times
    #[arg(long, short, value_name = "CAP", action = clap::ArgAction::Append, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) cap: Vec<String>,

    /// Descriptors to pass beyond the standard streams, at most 32: pipes, connected stream sockets,
    /// and devices like /dev/null
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u32,

    /// Cgroup to start in, relative to the container's
    #[arg(long, value_name = "PATH", action = clap::ArgAction::Append, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) cgroup: Vec<String>,

    /// Wait for a paused container to go on
    #[arg(long)]
    pub(crate) ignore_paused: bool,

    /// The container, then the program and its arguments
    #[arg(
        value_name = "CONTAINER [COMMAND [ARG]...]",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true
    )]
    pub(crate) words: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PsOptions {
    /// Form of the list
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) format: ListFormat,

    /// The container, then options of ps(1): -e, -f and -x in any combination
    #[arg(
        value_name = "CONTAINER [OPTION]...",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true
    )]
    pub(crate) words: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct EventsOptions {
    /// Time between two reports: a number with ns, us, ms, s, m or h
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) interval: std::time::Duration,

    /// Print what is used once, and return
    #[arg(long)]
    pub(crate) stats: bool,

    /// The container
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateOptions {
    /// File with a resources object of the specification, or - for standard input
    #[arg(long, short, value_name = "FILE")]
    pub(crate) resources: Option<PathBuf>,

    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub(crate) blkio_weight: Option<u16>,

    /// Period of the CPU quota, in microseconds
    #[arg(long, value_name = "US")]
    pub(crate) cpu_period: Option<u64>,

    /// CPU time in each period, in microseconds; -1 for no limit
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,

    /// CPU time beyond the quota that can be saved up, in microseconds
    #[arg(long, value_name = "US")]
    pub(crate) cpu_burst: Option<u64>,

    /// CPU shares, relative to others
    #[arg(long, visible_alias = "cpu-shares", value_name = "SHARES")]
    pub(crate) cpu_share: Option<u64>,

    /// Refused: the guest has no real-time groups
    #[arg(long, value_name = "US")]
    pub(crate) cpu_rt_period: Option<u64>,

    /// Refused: the guest has no real-time groups
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub(crate) cpu_rt_runtime: Option<i64>,

    /// CPUs that may be used, as 0-2,7
    #[arg(long, value_name = "LIST", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) cpuset_cpus: Option<String>,

    /// Memory nodes that may be used, as 0-2,7
    #[arg(long, value_name = "LIST", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) cpuset_mems: Option<String>,

    /// 1 to run only when nothing else does, 0 for an ordinary weight
    #[arg(long, value_name = "0|1")]
    pub(crate) cpu_idle: Option<i64>,

    /// Refused: cgroup v2 has no such limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) kernel_memory: Option<String>,

    /// Refused: cgroup v2 has no such limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) kernel_memory_tcp: Option<String>,

    /// Memory, in bytes or with k, m or g; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) memory: Option<String>,

    /// Memory that is kept when memory is short, in bytes or with k, m or g
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) memory_reservation: Option<String>,

    /// Memory and swap together, in bytes or with k, m or g; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) memory_swap: Option<String>,

    /// Number of processes; -1 for no limit
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,

    /// Refused: the virtual machine has no resource director
    #[arg(long, value_name = "SCHEMA", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) l3_cache_schema: Option<String>,

    /// Refused: the virtual machine has no resource director
    #[arg(long, value_name = "SCHEMA", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) mem_bw_schema: Option<String>,

    /// The container
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
}

/// A time as Go writes it: numbers with units, one after the other.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || format!("{text:?} is not a time like 500ms, 5s or 1m30s");
    let mut total = 0_f64;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, after) = rest.split_at(end.ok_or_else(wrong)?);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = after.split_at(end.unwrap_or(after.len()));
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        total += number.parse::<f64>().map_err(|_| wrong())? * scale;
        rest = after;
    }
    match std::time::Duration::try_from_secs_f64(total) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err(format!("{text:?}: the time must be longer than nothing")),
    }
}

#[derive(Debug, Args)]
pub(crate) struct DeleteOptions {
    /// Kill the container first if it has not ended; one that does not exist is no error
    #[arg(long, short)]
    pub(crate) force: bool,

    /// Take CONTAINER for a regular expression, and delete every container whose name it matches
    #[arg(long, short)]
    pub(crate) regex: bool,

    /// The container
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct ListOptions {
    /// Form of the list
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) format: ListFormat,

    /// Only the names
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ListFormat {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct SpecOptions {
    /// The directory that receives config.json
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,

    /// Not supported: refused
    #[arg(long)]
    pub(crate) rootless: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// Form of the report
    #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) format: CheckFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum CheckFormat {
    #[default]
    Text,
    Json,
}
