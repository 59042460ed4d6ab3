//! A user namespace that nobody lives in: it holds the mappings of a mount.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{check, set_attributes};

/// A process that does nothing but keep a new user namespace open. It raises no signal when it ends,
/// and no `waitpid` of this process sees it.
#[derive(Debug)]
pub struct Keeper {
    pid: libc::pid_t,
    pidfd: OwnedFd,
}

impl Keeper {
    /// Starts it. It ends with the calling thread.
    ///
    /// # Errors
    /// If the system refuses, or is out of processes.
    pub fn start() -> io::Result<Self> {
        let mut pidfd: libc::c_int = -1;
        // SAFETY: clone_args is plain data for which zero is valid.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = (libc::CLONE_PIDFD | libc::CLONE_NEWUSER) as u64;
        args.pidfd = &raw mut pidfd as u64;
        // SAFETY: `args` is a valid clone_args of the given size, without CLONE_VM: the child gets a
        // copy of this address space, as after fork, and makes nothing but system calls.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
        if pid == 0 {
            // SAFETY: PR_SET_PDEATHSIG takes a number.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            loop {
                // SAFETY: no memory is passed.
                unsafe { libc::syscall(libc::SYS_pause) };
            }
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: clone3 succeeded with CLONE_PIDFD, so `pidfd` is an open descriptor nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        Ok(Self { pid, pidfd })
    }

    /// Writes one of the mapping files of procfs, `uid_map` or `gid_map` (user_namespaces(7)).
    ///
    /// # Errors
    /// If the mappings make none.
    pub fn map(&self, file: &str, lines: &str) -> io::Result<()> {
        fs::write(format!("/proc/{}/{file}", self.pid), lines)
    }

    /// The namespace.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn namespace(&self) -> io::Result<OwnedFd> {
        Ok(File::open(format!("/proc/{}/ns/user", self.pid))?.into())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It is there: only this ends it, and only this reaps it.
        let _ = super::signal_process(
            std::os::fd::AsFd::as_fd(&self.pidfd),
            crate::signal::Signal::KILL,
        );
        loop {
            // SAFETY: null pointers are allowed for what is not asked for.
            let waited = check(unsafe {
                libc::waitid(
                    libc::P_PIDFD,
                    self.pidfd.as_raw_fd().cast_unsigned(),
                    std::ptr::null_mut(),
                    libc::WEXITED | libc::__WALL,
                )
            });
            if !waited.is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {
                return;
            }
        }
    }
}

/// Maps the ids of a detached mount, or of the whole tree of mounts, by those of a user namespace.
///
/// # Errors
/// `EINVAL` if a file system there does not have that.
pub fn map_ids(mount: &OwnedFd, namespace: &OwnedFd, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(namespace.as_raw_fd().cast_unsigned()),
    };
    set_attributes(mount, &attributes, recursive)
}
