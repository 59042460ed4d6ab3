//! What PID 1 does for its guest before, and after, it serves: file systems, interfaces, limits;
//! and the end.

use std::convert::Infallible;
use std::ffi::CStr;
use std::io;

use cloister_protocol::{VM_CONTROL_INIT, VM_CONTROL_SHUTDOWN};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::{RebootCommand, reboot, sethostname};

use crate::sys;

/// Below it each container gets its cgroup.
pub(crate) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Where the host's shares are mounted.
pub(crate) const SHARES_ROOT: &str = "/run/cloister/share";

/// The name of a guest whose containers share its UTS namespace.
const HOSTNAME: &[u8] = b"cloister";

/// Limits on open files that a container without `rlimits` of its own starts with: what systemd
/// gives to services, in place of the kernel's 1024 and 4096.
const OPEN_FILES: Rlimit = Rlimit {
    current: Some(1024),
    maximum: Some(524_288),
};

/// Parameters of the kernel that are not namespaced, so that no container can set them, and whose
/// defaults on an ordinary host, set by systemd or the distribution, are larger than the kernel's
/// for a machine this small.
const SYSCTLS: [(&str, &str); 3] = [
    // The bound of RLIMIT_NOFILE.
    ("/proc/sys/fs/nr_open", "1073741816"),
    ("/proc/sys/kernel/pid_max", "4194304"),
    ("/proc/sys/vm/max_map_count", "1048576"),
];

/// A step of the boot that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// The machine does not have its control port.
    #[error("cannot speak to the virtual machine's control port")]
    ControlPort(#[source] io::Error),
    /// Containers could not leave the initial root.
    #[error("cannot make the root directory pivotable")]
    Root(#[source] cloister_container::Error),
    /// A file system of the kernel cannot be mounted.
    #[error("cannot mount {target}")]
    Mount {
        /// The mount point.
        target: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The loopback interface stays down.
    #[error("cannot bring up the loopback interface")]
    Loopback(#[source] io::Error),
    /// The host name cannot be set.
    #[error("cannot set the host name")]
    Hostname(#[source] io::Error),
    /// The limits cannot be set.
    #[error("cannot set the limit of open files")]
    OpenFiles(#[source] io::Error),
    /// A parameter of the kernel cannot be set.
    #[error("cannot write {value} to {path}")]
    Sysctl {
        /// The file.
        path: &'static str,
        /// What should be in it.
        value: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Tells the machine that its first process runs.
pub(crate) fn announce() -> Result<(), BootError> {
    sys::vm_control(VM_CONTROL_INIT).map_err(BootError::ControlPort)
}

/// Prepares the guest for containers.
pub(crate) fn prepare() -> Result<(), BootError> {
    cloister_container::make_root_pivotable().map_err(BootError::Root)?;
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // A container in a user namespace cannot make nodes: it gets these.
    mount_at(c"devtmpfs", c"/dev", plain - MountFlags::NODEV)?;
    for (kind, target) in [
        (c"proc", c"/proc"),
        (c"sysfs", c"/sys"),
        (c"cgroup2", c"/sys/fs/cgroup"),
    ] {
        mount_at(kind, target, plain)?;
    }
    sys::loopback_up().map_err(BootError::Loopback)?;
    sethostname(HOSTNAME).map_err(|e| BootError::Hostname(e.into()))?;
    setrlimit(Resource::Nofile, OPEN_FILES).map_err(|e| BootError::OpenFiles(e.into()))?;
    for (path, value) in SYSCTLS {
        std::fs::write(path, value).map_err(|source| BootError::Sysctl {
            path,
            value,
            source,
        })?;
    }
    Ok(())
}

fn mount_at(
    kind: &'static CStr,
    target: &'static CStr,
    flags: MountFlags,
) -> Result<(), BootError> {
    mount(kind, target, kind, flags, None).map_err(|errno| BootError::Mount {
        target: target.to_str().unwrap_or_default(),
        source: errno.into(),
    })
}

/// Writes everything back and ends the machine.
pub(crate) fn power_off() -> io::Result<Infallible> {
    rustix::fs::sync();
    if let Err(e) = unmount_shares() {
        // The sync has written everything back; the host's server sees the end of its device.
        eprintln!("cloister-agent: cannot unmount the shares: {e}");
    }
    if let Err(e) = sys::vm_control(VM_CONTROL_SHUTDOWN) {
        eprintln!("cloister-agent: the control port does not answer, resetting the machine: {e}");
    }
    // A machine that has not ended by now has no such port.
    reboot(RebootCommand::Restart)?;
    Err(io::Error::other("the machine goes on after its end"))
}

fn unmount_shares() -> io::Result<()> {
    let shares = match std::fs::read_dir(SHARES_ROOT) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for share in shares {
        unmount(share?.path(), UnmountFlags::empty())?;
    }
    Ok(())
}
