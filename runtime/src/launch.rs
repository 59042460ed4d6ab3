//! What the command line and the monitor that it starts say to each other.
//!
//! The monitor finds one end of a `SOCK_SEQPACKET` socket among its inherited descriptors. The
//! first packet carries what to do; what follows are small messages either way. The command line
//! closing its end before the container stands calls the whole thing off; afterwards it only
//! means that nobody waits for reports any more.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use cloister_vmm_api::{Channel, ChannelError};
use oci_spec::runtime::{Hooks, LinuxResources};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::cgroup::Driver;
use crate::config::Config;
use crate::logger::LogFormat;
use crate::process::ProcessId;

/// The longest message of a report, in bytes; a packet holds twice as much even if every byte
/// needs an escape.
pub const MESSAGE_MAX: usize = 24 * 1024;

/// Everything a monitor needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// The directory of all containers, absolute.
    pub root: PathBuf,
    /// The container.
    pub id: String,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// What of the specification concerns the host.
    pub container: Container,
    /// Who makes its cgroup on this machine; `None` if there is to be none.
    pub cgroup_driver: Option<Driver>,
    /// How its terminal is wired, if it has one.
    pub terminal: Terminal,
    /// Whether the command line goes away when the container stands, or its program runs.
    pub detached: bool,
    /// Whether the user's program is started at once.
    pub start: bool,
    /// Whether the state directory is removed when the container has ended.
    pub remove: bool,
    /// A file that receives the monitor's pid, absolute.
    pub pid_file: Option<PathBuf>,
    /// The settings.
    pub config: Config,
    /// The form of the log.
    pub log_format: LogFormat,
    /// A file that receives when what happened, absolute.
    pub timeline: Option<PathBuf>,
    /// When the command line's `main` was entered, `CLOCK_MONOTONIC` nanoseconds.
    pub exec_ns: u64,
}

/// Everything the monitor of a further process of a container needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecLaunch {
    /// The directory of all containers, absolute.
    pub root: PathBuf,
    /// The state directory of the container whose virtual machine it is, absolute.
    pub machine: PathBuf,
    /// The container.
    pub id: String,
    /// The process.
    pub exec_id: String,
    /// Its terminal, if it has one.
    pub terminal: Terminal,
    /// Its cgroup, relative to the container's.
    pub cgroup: String,
    /// Whether it waits while the container is paused.
    pub ignore_paused: bool,
    /// A file that receives the pid of the process that stands for it, absolute.
    pub pid_file: Option<PathBuf>,
    /// The monitor of the container.
    pub monitor: ProcessId,
    /// The settings.
    pub config: Config,
    /// The form of the log.
    pub log_format: LogFormat,
}

/// What a monitor is to stand for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// A container.
    Container(Box<Launch>),
    /// A further process of one.
    Exec(Box<ExecLaunch>),
}

impl Job {
    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        match self {
            Self::Container(launch) => &launch.config,
            Self::Exec(launch) => &launch.config,
        }
    }

    /// The form of the log.
    #[must_use]
    pub fn log_format(&self) -> LogFormat {
        match self {
            Self::Container(launch) => launch.log_format,
            Self::Exec(launch) => launch.log_format,
        }
    }
}

/// What of a container's specification concerns the host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// `ociVersion`.
    pub oci_version: String,
    /// The root file system, absolute.
    pub rootfs: PathBuf,
    /// The annotations.
    pub annotations: HashMap<String, String>,
    /// The mounts that bind something of the host.
    pub binds: Vec<Bind>,
    /// Namespaces (CLONE_NEW*) of this machine that its monitor makes to hold them.
    pub new_namespaces: i32,
    /// The network namespace of this machine that its monitor enters.
    pub network: Option<PathBuf>,
    /// Types of further namespaces of this machine that its monitor enters, since they were made for it, and where they are.
    pub made_namespaces: Vec<(String, PathBuf)>,
    /// The network devices that are moved into it, and their names there.
    pub net_devices: BTreeMap<String, String>,
    /// The container whose virtual machine it goes into; `None` for one of its own.
    pub sandbox: Option<String>,
    /// Types of namespaces, and the containers with which each is shared.
    pub shared_namespaces: Vec<(String, String)>,
    /// The hooks.
    pub hooks: Option<Hooks>,
    /// Where its cgroup on this machine is to be, in the form of the driver.
    pub cgroups_path: String,
    /// What of its limits concerns this machine.
    pub resources: Option<LinuxResources>,
    /// Whether its process has a terminal.
    pub terminal: bool,
}

/// A mount of something on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// Which of the specification's mounts.
    pub index: u32,
    /// What is mounted, absolute.
    pub source: PathBuf,
    /// Where it is mounted in the container.
    pub destination: PathBuf,
    /// Whether it must not be written to.
    pub readonly: bool,
    /// How its ids are mapped, if they are.
    pub id_map: Option<IdMap>,
}

/// Mappings of ids: each from an id in the source to one that is seen, and how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdMap {
    /// Those of users.
    pub uids: Vec<(u32, u32, u32)>,
    /// Those of groups.
    pub gids: Vec<(u32, u32, u32)>,
    /// Whether the mounts below get them too.
    pub recursive: bool,
}

/// How the terminal of a container is wired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Terminal {
    /// It has none: three streams.
    None,
    /// The monitor's standard input and output are the caller's terminal, of this size; the
    /// command line has made it raw.
    Inherited {
        /// Its width.
        columns: u16,
        /// Its height.
        rows: u16,
    },
    /// A new one, whose master side goes to [`LaunchFd::ConsoleSocket`].
    Socket,
}

/// What a descriptor beside the first packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaunchFd {
    /// A [`Job`] as JSON: it may be larger than a packet.
    Job,
    /// `config.json` or a process object, as it was read and checked.
    Spec,
    /// A connected socket that receives the master side of the terminal.
    ConsoleSocket,
    /// The log.
    Log,
    /// What the process is to have from number 3 on, in order.
    Preserved,
}

/// The first packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    fds: Vec<LaunchFd>,
}

/// From the command line, after the first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// The caller's terminal has another size.
    Resize {
        /// Its width.
        columns: u16,
        /// Its height.
        rows: u16,
    },
}

/// From the monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case", deny_unknown_fields)]
pub enum Report {
    /// The container stands; its pid file is written.
    Created,
    /// The user's program was started.
    Started,
    /// It came to nothing, and nothing is left of it.
    Failed {
        /// What failed, with its causes.
        message: String,
    },
    /// The user's program has ended, and so has everything of the container that the caller could
    /// notice.
    Exited {
        /// Its exit code, if it exited.
        code: u32,
        /// The signal that ended it, or 0.
        signal: u32,
    },
    /// The container ended by no doing of the user's program.
    Lost {
        /// How.
        message: String,
    },
}

/// What a monitor was given, unpacked.
#[derive(Debug)]
pub struct Received {
    /// What to do.
    pub job: Job,
    /// See [`LaunchFd::Spec`].
    pub spec: Vec<u8>,
    /// See [`LaunchFd::ConsoleSocket`].
    pub console_socket: Option<OwnedFd>,
    /// See [`LaunchFd::Log`].
    pub log: Option<File>,
    /// See [`LaunchFd::Preserved`].
    pub preserved: Vec<OwnedFd>,
}

/// Why a launch did not get through.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The socket failed.
    #[error("cannot speak to the monitor")]
    Channel(#[from] ChannelError),
    /// A memory file could not be made, written or read.
    #[error("cannot hand over the specification")]
    Memory(#[from] io::Error),
    /// The document was not understood.
    #[error("malformed launch")]
    Malformed(#[from] serde_json::Error),
    /// The peer is of another build, or gone.
    #[error("incomplete launch")]
    Incomplete,
}

/// Sends the first packet.
///
/// # Errors
/// If the monitor is gone, or the machine out of memory or descriptors.
pub fn send(
    channel: &Channel,
    job: &Job,
    spec: &[u8],
    console_socket: Option<&OwnedFd>,
    log: Option<&File>,
    preserved: &[OwnedFd],
) -> Result<(), LaunchError> {
    let job = memory_file("job", &serde_json::to_vec(job)?)?;
    let spec = memory_file("spec", spec)?;
    let mut roles = vec![LaunchFd::Job, LaunchFd::Spec];
    let mut fds = vec![job.as_fd(), spec.as_fd()];
    if let Some(socket) = console_socket {
        roles.push(LaunchFd::ConsoleSocket);
        fds.push(socket.as_fd());
    }
    if let Some(log) = log {
        roles.push(LaunchFd::Log);
        fds.push(log.as_fd());
    }
    for fd in preserved {
        roles.push(LaunchFd::Preserved);
        fds.push(fd.as_fd());
    }
    channel.send(&First { fds: roles }, &fds)?;
    Ok(())
}

/// Receives the first packet.
///
/// # Errors
/// If the command line is gone or of another build.
pub fn receive(channel: &Channel) -> Result<Received, LaunchError> {
    let (First { fds: roles }, fds) = channel.recv()?.ok_or(LaunchError::Incomplete)?;
    let mut job = None;
    let mut spec = None;
    let mut console_socket = None;
    let mut log = None;
    let mut preserved = Vec::new();
    for (role, fd) in roles.into_iter().zip(fds) {
        match role {
            LaunchFd::Job => job = Some(serde_json::from_slice(&contents(fd)?)?),
            LaunchFd::Spec => spec = Some(contents(fd)?),
            LaunchFd::ConsoleSocket => console_socket = Some(fd),
            LaunchFd::Log => log = Some(File::from(fd)),
            LaunchFd::Preserved => preserved.push(fd),
        }
    }
    Ok(Received {
        job: job.ok_or(LaunchError::Incomplete)?,
        spec: spec.ok_or(LaunchError::Incomplete)?,
        console_socket,
        log,
        preserved,
    })
}

fn memory_file(name: &str, bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file)
}

fn contents(fd: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(fd);
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_launch_larger_than_a_packet_arrives_whole() {
        let (ours, theirs) = Channel::pair().unwrap();
        let config = Config::load(None, Path::new("/nonexistent"), |_| None).unwrap();
        let launch = Launch {
            root: "/run/cloister".into(),
            id: "a".into(),
            bundle: "/b".into(),
            container: Container {
                oci_version: "1.0.2".into(),
                rootfs: "/b/rootfs".into(),
                annotations: HashMap::from([("k".into(), "v".repeat(200_000))]),
                binds: Vec::new(),
                new_namespaces: 0,
                net_devices: BTreeMap::new(),
                network: None,
                made_namespaces: Vec::new(),
                sandbox: None,
                shared_namespaces: Vec::new(),
                hooks: None,
                cgroups_path: String::new(),
                resources: None,
                terminal: true,
            },
            cgroup_driver: Some(Driver::Cgroupfs),
            terminal: Terminal::Socket,
            detached: true,
            start: false,
            remove: false,
            pid_file: None,
            config,
            log_format: LogFormat::Json,
            timeline: None,
            exec_ns: 7,
        };
        let spec = vec![b' '; 300_000];
        let (console, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let console = OwnedFd::from(console);
        let job = Job::Container(Box::new(launch));
        let preserved = [OwnedFd::from(memory_file("x", b"x").unwrap())];
        send(&ours, &job, &spec, Some(&console), None, &preserved).unwrap();
        let received = receive(&theirs).unwrap();
        assert_eq!(received.job, job);
        assert_eq!(received.spec, spec);
        assert!(received.console_socket.is_some());
        assert!(received.log.is_none());
        assert_eq!(received.preserved.len(), 1);
    }

    #[test]
    fn a_command_line_that_is_gone_is_noticed() {
        let (ours, theirs) = Channel::pair().unwrap();
        drop(ours);
        assert!(matches!(receive(&theirs), Err(LaunchError::Incomplete)));
    }
}
