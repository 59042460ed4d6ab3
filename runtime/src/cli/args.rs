//! What can be said on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

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

Not implemented, and refused by name: checkpoint, events, exec, pause, ps, restore, resume, update.";

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

    /// Accepted as callers of runc give it: a container's cgroups are those of its own kernel
    #[arg(long)]
    pub(crate) systemd_cgroup: bool,

    /// Whether to run without root's rights: only `false`, or `auto`, which means the same
    #[arg(long, value_name = "WHEN", value_enum, default_value_t, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) rootless: Rootless,

    /// Print the version
    #[arg(long, short = 'v')]
    pub(crate) version: bool,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
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

    /// Anything else.
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

#[derive(Debug, Args)]
pub(crate) struct CreateOptions {
    /// The directory with config.json
    #[arg(long, short, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,

    /// Socket that receives the master side of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,

    /// Not supported: refused
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

    /// Descriptors to pass beyond the standard streams: only 0, since none can enter a virtual
    /// machine
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

    /// The container
    #[arg(value_name = "CONTAINER")]
    pub(crate) id: String,

    /// A name, with or without SIG, or a number
    #[arg(value_name = "SIGNAL", default_value = "TERM")]
    pub(crate) signal: String,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteOptions {
    /// Kill the container first if it has not ended; one that does not exist is no error
    #[arg(long, short)]
    pub(crate) force: bool,

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
