//! User namespaces that nobody lives in: they hold the mappings of mounts.
#![allow(
    unsafe_code,
    reason = "raw system calls; everything exported here is safe to call"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_long};

use super::{block_signals, check, pidfd_send_signal, restore_signals};

/// A process that does nothing but keep a new user namespace open. It raises no signal when it ends,
/// and no `waitpid` of the caller's sees it.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// Its pid.
    pub(crate) pid: i32,
    pidfd: OwnedFd,
}

impl Keeper {
    /// Starts it.
    pub(crate) fn start() -> io::Result<Self> {
        let mut pidfd: c_int = -1;
        // SAFETY: clone_args is plain data for which zero is valid.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = (libc::CLONE_PIDFD | libc::CLONE_NEWUSER) as u64;
        args.pidfd = &raw mut pidfd as u64;
        // The child's only end is SIGKILL; handlers of the parent must not run in it.
        let mask = block_signals()?;
        // SAFETY: `args` is a valid clone_args of the given size, without CLONE_VM: the child gets a
        // copy of this address space, as after fork, and makes nothing but system calls.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
        if pid == 0 {
            loop {
                // SAFETY: no memory is passed.
                unsafe { libc::syscall(libc::SYS_pause) };
            }
        }
        let error = io::Error::last_os_error();
        restore_signals(&mask)?;
        if pid < 0 {
            return Err(error);
        }
        // SAFETY: clone3 succeeded with CLONE_PIDFD, so `pidfd` is an open descriptor nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        Ok(Keeper { pid, pidfd })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // It is there: only this ends it, and only this reaps it.
        let _ = pidfd_send_signal(&self.pidfd, libc::SIGKILL);
        let info: *const libc::siginfo_t = std::ptr::null();
        let usage: *const libc::rusage = std::ptr::null();
        loop {
            // SAFETY: null pointers are allowed for what is not asked for.
            let waited = check(unsafe {
                libc::syscall(
                    libc::SYS_waitid,
                    c_long::from(libc::P_PIDFD),
                    self.pidfd.as_raw_fd(),
                    info,
                    libc::WEXITED | libc::__WALL,
                    usage,
                )
            });
            if !waited.is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {
                return;
            }
        }
    }
}
