//! The few calls that only libc has.
#![allow(
    unsafe_code,
    reason = "signal sets and pre-exec hooks, each a line long"
)]

use rustix::io::FdFlags;
use rustix::process::{Pid, Signal};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Signals that this process takes by waiting for them.
#[derive(Clone, Copy)]
pub(super) struct AwaitedSignals {
    set: libc::sigset_t,
}

impl AwaitedSignals {
    /// Blocks the signals in this thread and in those it will start; a child's mask is empty again.
    pub(super) fn block(signals: &[libc::c_int]) -> io::Result<Self> {
        // SAFETY: `sigset_t` is plain data; `sigemptyset` gives it its meaning just below.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is a valid, writable signal set.
        unsafe { libc::sigemptyset(&raw mut set) };
        for &signal in signals {
            // SAFETY: as above.
            if unsafe { libc::sigaddset(&raw mut set, signal) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: `set` is initialised; the old mask is not asked for.
        let result =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if result == 0 {
            Ok(Self { set })
        } else {
            Err(io::Error::from_raw_os_error(result))
        }
    }

    /// Waits for one of them.
    pub(super) fn wait(&self) -> io::Result<libc::c_int> {
        let mut signal = 0;
        // SAFETY: the set is initialised and `signal` is writable.
        let result = unsafe { libc::sigwait(&raw const self.set, &raw mut signal) };
        if result == 0 {
            Ok(signal)
        } else {
            Err(io::Error::from_raw_os_error(result))
        }
    }
}

/// Has the kernel kill the command when this process ends, whatever ends it.
pub(super) fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    let arrange = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have gone before that was arranged.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from(rustix::io::Errno::SRCH));
        }
        Ok(())
    };
    // SAFETY: between fork and exec `arrange` makes plain system calls only; it neither allocates nor locks.
    unsafe { command.pre_exec(arrange) };
}

/// Has the command keep `fds` open, under the numbers they have.
pub(super) fn inherit(command: &mut Command, fds: Vec<OwnedFd>) {
    let keep = move || {
        for fd in &fds {
            rustix::io::fcntl_setfd(fd.as_fd(), FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec `keep` makes plain system calls only; it neither allocates nor locks.
    unsafe { command.pre_exec(keep) };
}

/// Makes the command the leader of a session of its own.
pub(super) fn lead_session(command: &mut Command) {
    let enter = || {
        let _session: Pid = rustix::process::setsid()?;
        Ok(())
    };
    // SAFETY: between fork and exec `enter` makes one system call; it neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
}
