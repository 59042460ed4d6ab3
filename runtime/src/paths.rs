//! Where things are: the one module that knows a path.

use std::io;
use std::path::{Path, PathBuf};

/// The directory that holds one directory per container, unless `--root` names another.
pub const DEFAULT_ROOT: &str = "/run/cloister";

/// The configuration file that is read if it exists.
pub const DEFAULT_CONFIG: &str = "/etc/cloister/config.toml";

/// The device behind which the machine's hypervisor is.
pub const KVM: &str = "/dev/kvm";

/// The specification file of a bundle.
pub const SPEC_FILE: &str = "config.json";

/// Cloister's own executable, as the process that wants to run it again finds it.
pub const SELF_EXE: &str = "/proc/self/exe";

/// Files beside the executable that was installed, found relative to it so that an installation
/// can be moved as a whole.
#[derive(Debug, Clone)]
pub struct Install {
    prefix: PathBuf,
}

impl Install {
    /// Finds the installation that the running executable belongs to.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn locate() -> io::Result<Self> {
        let exe = std::env::current_exe()?;
        // <prefix>/bin/cloister
        let prefix = exe
            .parent()
            .and_then(Path::parent)
            .unwrap_or(Path::new("/"));
        Ok(Self {
            prefix: prefix.to_owned(),
        })
    }

    /// The program that runs one virtual machine.
    #[must_use]
    pub fn vmm(&self) -> PathBuf {
        self.prefix.join("libexec/cloister/cloister-vmm")
    }

    /// The program that serves shared directories.
    #[must_use]
    pub fn fs(&self) -> PathBuf {
        self.prefix.join("libexec/cloister/cloister-fs")
    }

    /// The program that a sandbox without a container of its caller runs.
    #[must_use]
    pub fn pause(&self) -> PathBuf {
        self.prefix.join("libexec/cloister/cloister-pause")
    }

    /// The guest's kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.prefix.join("share/cloister/vmlinux")
    }

    /// The guest's initial file system, which holds the agent.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.prefix.join("share/cloister/initramfs.cpio")
    }
}

/// The files in the state directory of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPaths {
    dir: PathBuf,
}

impl ContainerPaths {
    /// The files of container `id` below `root`.
    #[must_use]
    pub fn new(root: &Path, id: &str) -> Self {
        Self { dir: root.join(id) }
    }

    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the monitor says about the container.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// Exists once the user's program was started.
    #[must_use]
    pub fn started(&self) -> PathBuf {
        self.dir.join("started")
    }

    /// Exists until the user's program was started.
    #[must_use]
    pub fn not_started(&self) -> PathBuf {
        self.dir.join("not-started")
    }

    /// Exists while the container is not paused.
    #[must_use]
    pub fn not_paused(&self) -> PathBuf {
        self.dir.join("not-paused")
    }

    /// Exists while the container is paused.
    #[must_use]
    pub fn paused(&self) -> PathBuf {
        self.dir.join("paused")
    }

    /// The specification that the container was made from.
    #[must_use]
    pub fn spec(&self) -> PathBuf {
        self.dir.join(SPEC_FILE)
    }

    /// Holds an empty file for each container in the virtual machine of this one.
    #[must_use]
    pub fn members(&self) -> PathBuf {
        self.dir.join("members")
    }

    /// Holds an empty file for each command in the foreground that stands for a process executed in
    /// the container.
    #[must_use]
    pub fn commands(&self) -> PathBuf {
        self.dir.join("commands")
    }

    /// Holds an empty file for each monitor of a process executed in the container.
    #[must_use]
    pub fn execs(&self) -> PathBuf {
        self.dir.join("execs")
    }

    /// The guest's console.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// What monitors have to say when their caller is gone and has named no log.
    #[must_use]
    pub fn monitor_log(&self) -> PathBuf {
        self.dir.join("monitor.log")
    }

    /// The agent's log.
    #[must_use]
    pub fn agent_log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// The socket on which the monitor takes orders.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.dir.join(CONTROL_SOCKET)
    }

    /// The socket that leads to the guest's vsock ports.
    #[must_use]
    pub fn vsock(&self) -> PathBuf {
        self.dir.join(VSOCK_SOCKET)
    }
}

/// The name of the monitor's socket in a state directory.
pub const CONTROL_SOCKET: &str = "control.sock";

/// The name of the vsock socket in a state directory.
pub const VSOCK_SOCKET: &str = "vsock.sock";

/// A short name for `name` in the open directory `dir`: a socket address holds 108 bytes, and a
/// container id alone may be longer.
#[must_use]
pub fn through_fd(dir: std::os::fd::BorrowedFd<'_>, name: &str) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}
