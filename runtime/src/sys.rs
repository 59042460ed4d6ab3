//! The system calls that no safe interface offers.
#![allow(
    unsafe_code,
    reason = "inherited and watched descriptors, signal masks, namespaces: there is no safe wrapper"
)]

pub mod bpf;
pub mod loop_device;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::path::Arg;
use tokio::io::unix::AsyncFd;

use crate::signal::Signal;

/// Takes over a descriptor that this process was started with, and closes every other one above
/// the standard streams.
///
/// # Errors
/// If `fd` is no open descriptor, or one of the standard streams.
///
/// # Safety
/// Nothing else in the process may own `fd` or any other descriptor above 2: to be called first
/// thing in `main`.
pub unsafe fn take_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    let number = libc::c_uint::try_from(fd).map_err(|_| Errno::BADF)?;
    if number < 3 {
        return Err(Errno::BADF.into());
    }
    if number > 3 {
        // SAFETY: closing descriptors touches no memory, and the caller says that none is owned.
        check(unsafe { libc::close_range(3, number - 1, 0) })?;
    }
    // SAFETY: as above.
    check(unsafe { libc::close_range(number + 1, libc::c_uint::MAX, 0) })?;
    // SAFETY: as the caller says.
    unsafe { take_open(fd) }
}

/// Takes over a descriptor that this process was started with; no child inherits it.
///
/// # Errors
/// If `fd` is no open descriptor.
///
/// # Safety
/// Nothing else in the process may own `fd`.
pub unsafe fn take_open(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes an integer and fails if the descriptor is not open.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the descriptor is open, as the call above has shown, and nobody owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor that reports the signals this process gets.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Blocks every signal that can be blocked, but `SIGPIPE`, in the calling thread and in those
    /// it starts, and reports them through the descriptor instead.
    ///
    /// # Errors
    /// If the process is out of descriptors.
    pub fn block_all() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the set is writable.
        check(unsafe { libc::sigfillset(set.as_mut_ptr()) })?;
        // Not reported: writing to a closed pipe must stay a mere error of that write.
        // SAFETY: the set was initialised by sigfillset.
        check(unsafe { libc::sigdelset(set.as_mut_ptr(), libc::SIGPIPE) })?;
        // SAFETY: the set is initialised; the old mask is not asked for.
        let errno =
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) };
        if errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd =
            unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        check(fd)?;
        // SAFETY: the descriptor is new.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Takes the next signal, if there is one.
    ///
    /// # Errors
    /// If the descriptor cannot be read.
    pub fn next(&self) -> io::Result<Option<Signal>> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.0, &mut info) {
            Ok(_) => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        // signalfd(2): the first field, `ssi_signo`, is 32 bits.
        let number = info
            .first_chunk()
            .map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        Ok(Signal::from_number(number))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor that a runtime watches.
#[derive(Debug)]
pub struct Watched<T>(T);

impl<T> Watched<T> {
    /// What is watched.
    pub fn inner(&self) -> &T {
        &self.0
    }
}

impl<T: AsFd> AsRawFd for Watched<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

mod private {
    /// Types that own one descriptor, which stays the same and open until they are dropped.
    pub trait Owner: std::os::fd::AsFd {}
    impl Owner for super::SignalFd {}
    impl Owner for cloister_vmm_api::Channel {}
    impl Owner for cloister_netlink::Events {}
    impl Owner for std::os::fd::OwnedFd {}
}

/// Has the current runtime watch a descriptor.
///
/// # Errors
/// If it cannot be watched.
pub fn watch<T: private::Owner>(inner: T) -> io::Result<AsyncFd<Watched<T>>> {
    // SAFETY: an owner's descriptor stays the same and open for as long as the owner is there,
    // and the owner moves into the result.
    let watched = unsafe { AsyncFd::register(Watched(inner)) };
    watched.map_err(|e| e.into_parts().1)
}

/// Ends this process by a signal, without a core file. Returns if the signal's default action
/// does not end a process.
pub fn die_by(signal: Signal) {
    let Ok(number) = libc::c_int::try_from(signal.number()) else {
        return;
    };
    // What dumps core here would dump the monitor's memory, not the workload's. A failure leaves
    // a core file too many.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // SAFETY: the default action is no function of ours.
    unsafe { libc::signal(number, libc::SIG_DFL) };
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is writable.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: raise takes an integer.
    unsafe { libc::raise(number) };
    // SAFETY: the set was initialised by sigemptyset; the signal is delivered here.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) };
}

/// Sends a signal to an open process. Any signal: rustix has no name for the real-time ones.
///
/// # Errors
/// `ESRCH` if the process has ended.
pub fn signal_process(process: BorrowedFd<'_>, signal: Signal) -> Result<(), Errno> {
    // SAFETY: no siginfo is given, and the kernel takes any descriptor and any number.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_raw_fd(),
            signal.number(),
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result < 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    }
    Ok(())
}

/// Sends a descriptor as runc does: beside a name that says what it is.
///
/// # Errors
/// If the peer is gone.
pub fn send_fd(socket: impl AsFd, fd: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let name = [io::IoSlice::new(name)];
    sendmsg(socket, &name, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The namespaces that a process on the host holds for its container.
const HELD: libc::c_int = libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// Moves the calling thread, and the threads it starts later, into namespaces (CLONE_NEW*) of its
/// own.
///
/// # Errors
/// If the process may not.
pub fn new_namespaces(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: namespaces are no memory; descriptor tables are not among them.
    check(unsafe { libc::unshare(flags & HELD) })
}

/// Moves the calling thread, and the threads it starts later, into the namespaces that another
/// process holds for its container.
///
/// # Errors
/// If the process may not.
pub fn join_namespaces(pidfd: &impl AsFd) -> io::Result<()> {
    join(pidfd, HELD)
}

/// Moves the calling thread, and the threads it starts later, into the namespace that a descriptor
/// stands for, or into namespaces (CLONE_NEW*) of the process that a pidfd stands for.
///
/// # Errors
/// If the process may not.
pub fn join(fd: &impl AsFd, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::setns(fd.as_fd().as_raw_fd(), flags) })
}

/// Makes an open `/dev/net/tun` a queue of the tap `name`: frames without a header of the driver's,
/// behind a virtio-net header. The first one makes the tap.
///
/// # Errors
/// If the kernel refuses, or if there is an interface of that name and this is its first queue.
pub fn make_tap(tun: &impl AsFd, name: &str, has_queues: bool, is_first: bool) -> io::Result<()> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if is_first {
        flags |= libc::IFF_TUN_EXCL;
    }
    if has_queues {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    // SAFETY: an all-zero ifreq is a valid value: names and numbers.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    // The last byte stays the end of the string.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // The driver takes the flags from a short.
    let [low, high, ..] = flags.to_ne_bytes();
    request.ifr_ifru.ifru_flags = i16::from_ne_bytes([low, high]);
    // SAFETY: TUNSETIFF reads and writes one ifreq, which is live and initialised.
    check(unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Gives the calling thread a working directory and a root of its own, which another mount
/// namespace takes.
///
/// # Errors
/// If the system refuses.
pub fn own_directories() -> io::Result<()> {
    // SAFETY: of all that can be unshared, this is what the thread's paths start from.
    check(unsafe { libc::unshare(libc::CLONE_FS) })
}

/// Gives the calling thread a mount namespace of its own, and directories in it.
///
/// # Errors
/// If the system refuses.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: of all that can be unshared, this is what the thread's paths lead through.
    check(unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) })
}

/// Clones the mounts at a path, or those that `dir` leads to if the path is empty: detached, private,
/// and with further attributes.
///
/// # Errors
/// If there is nothing, or the kernel refuses.
pub fn clone_mounts(dir: impl AsFd, path: impl Arg, attributes: u64) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let clone = open_tree(dir, path, flags)?;
    set_mount_attributes(&clone, attributes, 0, libc::MS_PRIVATE, true)?;
    Ok(clone)
}

/// mount_setattr(2) on a mount, or on the whole tree of mounts.
///
/// # Errors
/// If the kernel refuses.
pub fn set_mount_attributes(
    mount: &impl AsFd,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation,
        userns_fd: 0,
    };
    cloister_idmap::set_attributes(mount, &attributes, recursive)
}

/// A moment by the clock on the wall here, as ps(1) writes it: the time if it is within a day
/// before `now`, else the date.
#[must_use]
pub fn wall_clock(seconds: i64, now: i64) -> String {
    // SAFETY: a tm is plain data for which zero is valid.
    let mut tm: libc::tm = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: both point to live values. A failure leaves zeroes.
    unsafe { libc::localtime_r(&raw const seconds, &raw mut tm) };
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    if now.saturating_sub(seconds) < 86_400 {
        format!("{:02}:{:02}", tm.tm_hour, tm.tm_min)
    } else {
        let month = usize::try_from(tm.tm_mon).ok().and_then(|m| MONTHS.get(m));
        format!("{}{:02}", month.unwrap_or(&"?"), tm.tm_mday)
    }
}

/// Has a command start as from a shell: no signal blocked or ignored, whatever this process has
/// made of its own, and no descriptor but the standard streams; and in the given network
/// namespace, if there is one.
pub fn start_afresh(command: &mut Command, network: Option<OwnedFd>) {
    start_with_usual_signals(command);
    let prepare = move || {
        if let Some(network) = &network {
            // SAFETY: setns takes integers and fails if the descriptor is no such namespace.
            check(unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) })?;
        }
        // It must not outlive whoever waits for it.
        // SAFETY: PR_SET_PDEATHSIG takes a number.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        let flag = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
        // SAFETY: this changes no descriptor but in what becomes of it in another program.
        check(unsafe { libc::close_range(3, libc::c_uint::MAX, flag) })
    };
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// Has a command start with no signal blocked or ignored, whatever this process has made of its own.
pub fn start_with_usual_signals(command: &mut Command) {
    let prepare = || {
        for number in 1..=libc::SIGRTMAX() {
            default_action(number);
        }
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the set is writable.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        let old = std::ptr::null_mut();
        // SAFETY: the set was initialised by sigemptyset; the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), old) } {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    };
    // SAFETY: between fork and exec it makes system calls only, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// Restores a signal's default action. The C library refuses that for the signals it has taken for
/// itself, which may well be ignored: from the parent's parent. `KILL` and `STOP` cannot be.
fn default_action(number: libc::c_int) {
    // The kernel's `struct sigaction`: SIG_DFL, no flags, no restorer, an empty mask.
    let action = [0_u64; 4];
    // SAFETY: the kernel reads the action, whose mask is of the size given, and writes nothing.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            number,
            action.as_ptr(),
            std::ptr::null_mut::<u64>(),
            size_of::<u64>(),
        )
    };
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_reported_in_place_of_being_delivered() {
        let signals = SignalFd::block_all().unwrap();
        assert_eq!(signals.next().unwrap(), None);
        // To this thread: the others do not block it.
        // SAFETY: raise takes an integer.
        assert_eq!(unsafe { libc::raise(libc::SIGTERM) }, 0);
        assert_eq!(signals.next().unwrap(), Some(Signal::TERM));
        assert_eq!(signals.next().unwrap(), None);
    }

    #[test]
    fn standard_streams_are_not_taken_over() {
        // SAFETY: the call fails before anything is closed.
        assert!(unsafe { take_inherited(2) }.is_err());
        // SAFETY: as above.
        assert!(unsafe { take_inherited(-1) }.is_err());
    }
}
