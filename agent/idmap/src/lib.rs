//! Attributes of mounts (mount_setattr(2)), id mappings above all: the ids of a mount are mapped by those of a user namespace.
//!
//! ```text
//!   Keeper::start ──map "uid_map", "gid_map"──▶ Keeper::namespace ──map_ids──▶ the mount
//!        │                                          │
//!        ╰── a process that does nothing; ends when the Keeper is dropped. The namespace stays open.
//! ```
//!
//! Mounts of the host are mapped by the runtime, new file systems of a container by its init stage.
#![allow(
    unsafe_code,
    reason = "raw system calls; everything exported here is safe to call"
)]

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A process that does nothing but keep a new user namespace open. It raises no signal when it ends,
/// and no `waitpid` of the caller's sees it.
#[derive(Debug)]
pub struct Keeper {
    pid: libc::pid_t,
    pidfd: OwnedFd,
}

impl Keeper {
    /// Starts it. It ends with the calling thread, if not before.
    ///
    /// # Errors
    /// If the system refuses, or is out of processes.
    pub fn start() -> io::Result<Self> {
        let mut pidfd: libc::c_int = -1;
        // SAFETY: clone_args is plain data for which zero is valid.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = (libc::CLONE_PIDFD | libc::CLONE_NEWUSER) as u64;
        args.pidfd = &raw mut pidfd as u64;
        // The child's only end is SIGKILL; handlers of the parent must not run in it.
        let mask = SignalMask::block_all()?;
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
        let error = io::Error::last_os_error();
        let restored = mask.restore();
        if pid < 0 {
            return Err(error);
        }
        // SAFETY: clone3 succeeded with CLONE_PIDFD, so `pidfd` is an open descriptor nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
        // From here on dropping it ends the process.
        let keeper = Self { pid, pidfd };
        restored?;
        Ok(keeper)
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
        let fd = self.pidfd.as_raw_fd();
        // It is there: only this ends it, and only this reaps it.
        // SAFETY: a null pointer is allowed for what is not asked for.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                fd,
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        loop {
            // SAFETY: null pointers are allowed for what is not asked for.
            let waited = unsafe {
                libc::waitid(
                    libc::P_PIDFD,
                    fd.cast_unsigned(),
                    std::ptr::null_mut(),
                    libc::WEXITED | libc::__WALL,
                )
            };
            if waited == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                return;
            }
        }
    }
}

/// The signals that the calling thread blocks.
struct SignalMask(libc::sigset_t);

impl SignalMask {
    /// Blocks all signals that can be, and gives those that were blocked before.
    fn block_all() -> io::Result<Self> {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the set is writable.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the first set was initialised by sigfillset, the second is writable.
        let errno =
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        // SAFETY: pthread_sigmask succeeded and has written it.
        Ok(Self(unsafe { before.assume_init() }))
    }

    fn restore(self) -> io::Result<()> {
        // SAFETY: the set is initialised; the old mask is not asked for.
        let errno = unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut())
        };
        match errno {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Maps the ids of a detached mount, or of the whole tree of mounts, by those of a user namespace.
///
/// # Errors
/// `EINVAL` if a file system there does not have that.
pub fn map_ids(mount: impl AsFd, namespace: impl AsFd, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(namespace.as_fd().as_raw_fd().cast_unsigned()),
    };
    set_attributes(mount, &attributes, recursive)
}

/// mount_setattr(2) on a mount, or on the whole tree of mounts.
///
/// # Errors
/// If the kernel refuses.
pub fn set_attributes(
    mount: impl AsFd,
    attributes: &libc::mount_attr,
    recursive: bool,
) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is NUL-terminated, the attributes are of the size given, and both outlive
    // the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of_val(attributes),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says what it expects")]
mod tests {
    use super::*;

    /// As procfs shows what a thread blocks.
    fn blocked() -> String {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("SigBlk:"));
        line.unwrap().to_owned()
    }

    #[test]
    fn a_namespace_outlives_its_keeper_which_leaves_nothing() {
        let before = blocked();
        let keeper = Keeper::start().unwrap();
        assert_eq!(blocked(), before);
        let status = fs::read_to_string(format!("/proc/{}/status", keeper.pid)).unwrap();
        assert!(status.contains("SigBlk:\tffff"), "{status}");
        keeper.map("uid_map", "0 1000 5\n").unwrap();
        let error = keeper.map("uid_map", "0 1000 5\n").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "once only");
        let (pid, namespace) = (keeper.pid, keeper.namespace().unwrap());
        drop(keeper);
        assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
        // It is no mount that could be mapped, but the namespace is one still.
        let file = File::open("/").unwrap();
        assert!(map_ids(&file, &namespace, false).is_err());
        let name = fs::read_link(format!("/proc/self/fd/{}", namespace.as_raw_fd())).unwrap();
        assert!(name.to_string_lossy().starts_with("user:["), "{name:?}");
    }
}
