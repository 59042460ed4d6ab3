//! What can go wrong with a sandbox's cgroup.

use std::io;
use std::path::PathBuf;

use super::systemd::SystemdError;

/// Why a cgroup cannot be made, changed or examined.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of `/proc` or `/sys` that says what there is cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file holds something else than it should.
    #[error("{}: {text:?} is not understood", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// There are no cgroups.
    #[error("no cgroup hierarchy is mounted")]
    NoHierarchy,
    /// `cgroupsPath` is of another form than its driver wants; the wording is runc's.
    #[error(
        "linux.cgroupsPath: expected cgroupsPath to be of format \"slice:prefix:name\" \
         for systemd cgroups, got {0:?} instead"
    )]
    PathForm(String),
    /// `cgroupsPath` names no slice or unit.
    #[error("linux.cgroupsPath: invalid {what} name: {name:?}")]
    Name {
        /// What it should name.
        what: &'static str,
        /// What it is.
        name: String,
    },
    /// An annotation asks for a property that is none.
    #[error("annotations[{0:?}]: is not understood as a property of a systemd unit")]
    Annotation(String),
    /// The systemd driver was asked for where there is no systemd; the wording is runc's.
    #[error("systemd not running on this host, cannot use systemd cgroups manager")]
    NoSystemd,
    /// systemd was to make a scope without a process.
    #[error("systemd makes no scope without a process")]
    NoProcess,
    /// systemd refused.
    #[error("systemd unit {unit}")]
    Systemd {
        /// Which unit it was about.
        unit: String,
        /// What systemd said.
        #[source]
        error: SystemdError,
    },
    /// A directory cannot be made.
    #[error("cannot create cgroup {}", .0.display())]
    Create(PathBuf, #[source] io::Error),
    /// Limits that only whole processes can have are asked for among threads.
    #[error("cannot set limits on cgroup {}: it is in mode {mode:?}", path.display())]
    Mode {
        /// The cgroup.
        path: PathBuf,
        /// The text of its `cgroup.type`.
        mode: String,
    },
    /// The cgroup exists and is frozen; the wording is runc's.
    #[error("container's cgroup unexpectedly frozen: {}", .0.display())]
    Frozen(PathBuf),
    /// The cgroup exists and has processes; the wording is runc's.
    #[error("container's cgroup is not empty: {count} process(es) found in {}", path.display())]
    NotEmpty {
        /// The cgroup.
        path: PathBuf,
        /// How many processes there are.
        count: usize,
    },
    /// A value of the specification is none that can be had.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file that a value of the specification belongs to is not there.
    #[error("{field}: no {} (cgroup controller {controller:?} is not available)", path.display())]
    Missing {
        /// The field.
        field: String,
        /// The file.
        path: PathBuf,
        /// Whose file it is.
        controller: String,
    },
    /// A value of the specification is not accepted by the system.
    #[error("{field}: cannot write {value:?} to {}", path.display())]
    Set {
        /// The field.
        field: String,
        /// The value.
        value: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A process cannot be put into the cgroup.
    #[error("cannot move process {pid} to cgroup {}", path.display())]
    Join {
        /// The process.
        pid: u32,
        /// The cgroup.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The cgroup cannot be frozen or thawed.
    #[error("cannot {verb} cgroup {}", path.display())]
    Freeze {
        /// `freeze` or `thaw`.
        verb: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// There is no freezer.
    #[error("cannot {0}: the freezer controller is not mounted")]
    NoFreezer(&'static str),
    /// Processes were killed and do not end.
    #[error("{count} process(es) of cgroup {} were killed and do not end", path.display())]
    Alive {
        /// The cgroup.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// The cgroup cannot be removed.
    #[error("cannot remove cgroup {}", .0.display())]
    Remove(PathBuf, #[source] io::Error),
}

impl CgroupError {
    /// The field of the specification that it is about.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        match self {
            Self::Invalid { field, .. } | Self::Missing { field, .. } | Self::Set { field, .. } => {
                Some(field)
            }
            _ => None,
        }
    }
}
