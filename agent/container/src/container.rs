//! The caller's side: create, start, signal, delete.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use crate::Result;

/// What [`Container::create`] needs.
#[derive(Debug)]
pub struct CreateOptions {
    /// Names the container's cgroup; letters, digits and `+ - . _`.
    pub id: String,
    /// The bytes of `config.json`.
    pub spec: Vec<u8>,
    /// The root file system: a directory in the caller's mount namespace.
    pub rootfs: PathBuf,
    /// The sources of bind mounts by index into `mounts`. A bind mount that is not listed has the
    /// specification's own `source`, seen from the caller's mount namespace.
    pub bind_sources: BTreeMap<usize, PathBuf>,
    /// The standard streams.
    pub stdio: Stdio,
    /// The directory of a cgroup v2 hierarchy below which the container's cgroup is made. It is
    /// created if missing, and no process may be in it.
    pub cgroup_parent: PathBuf,
    /// The executable of the init stage: `/proc/self/exe`.
    pub init_exe: PathBuf,
}

/// The standard streams of a container. What is given is closed in the caller by `create`.
#[derive(Debug)]
pub enum Stdio {
    /// Three separate files; `None` is `/dev/null`. For `process.terminal: false`.
    Streams {
        /// Standard input.
        stdin: Option<OwnedFd>,
        /// Standard output.
        stdout: Option<OwnedFd>,
        /// Standard error.
        stderr: Option<OwnedFd>,
    },
    /// A terminal from the container's own devpts; its other end is [`Container::take_terminal`].
    /// For `process.terminal: true`.
    Terminal {
        /// The first window size; without it, `process.consoleSize`.
        size: Option<WindowSize>,
    },
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// The width.
    pub columns: u16,
    /// The height.
    pub rows: u16,
}

/// A container that has been created. Dropping it leaves the container running.
#[derive(Debug)]
pub struct Container {
    _private: (),
}

impl Container {
    /// Builds the container up to, and not including, the execution of its program.
    ///
    /// # Errors
    /// The specification is refused or a step failed; nothing is left behind.
    pub fn create(options: CreateOptions) -> Result<Self> {
        let _ = options;
        unimplemented!()
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        unimplemented!()
    }

    /// The process id of the container's init process in the caller's pid namespace.
    pub fn pid(&self) -> u32 {
        unimplemented!()
    }

    /// The pidfd of the init process.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }

    /// What was passed over with a warning: properties the specification does not know, capabilities
    /// that do not exist.
    pub fn warnings(&self) -> &[String] {
        unimplemented!()
    }

    /// The controlling end of the container's terminal, once.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        unimplemented!()
    }

    /// Executes the container's program.
    ///
    /// # Errors
    /// The container was started before, has died, or the program cannot be executed; after the
    /// latter its process has ended.
    pub fn start(&mut self) -> Result<()> {
        unimplemented!()
    }

    /// Sends a signal to the init process, or to every process of the container.
    ///
    /// # Errors
    /// The signal is not 1 to 64, or there is no such process any more.
    pub fn signal(&self, signal: u32, all: bool) -> Result<()> {
        let _ = (signal, all);
        unimplemented!()
    }

    /// Whether the kernel's OOM killer has ended a process of the container.
    pub fn oom_killed(&self) -> bool {
        unimplemented!()
    }

    /// Kills what is left of the container and removes its cgroup.
    ///
    /// # Errors
    /// The cgroup does not empty or cannot be removed.
    pub fn delete(&mut self) -> Result<()> {
        unimplemented!()
    }
}

/// Sets the window size of a terminal.
///
/// # Errors
/// `terminal` is not a terminal.
pub fn resize(terminal: BorrowedFd<'_>, size: WindowSize) -> Result<()> {
    let _ = (terminal, size);
    unimplemented!()
}

/// Puts a mount with a parent under `/`, so that `pivot_root` is possible in an initramfs. Changes
/// nothing where it is possible already. To be called by PID 1 before it mounts anything.
///
/// # Errors
/// The root directory cannot be mounted again.
pub fn make_root_pivotable() -> Result<()> {
    unimplemented!()
}
