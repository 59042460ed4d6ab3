//! The few calls that only libc has.
#![allow(
    unsafe_code,
    reason = "raw ioctl, signal and pre-exec calls, each a line long"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Sets IFF_UP on `lo`.
pub(super) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: `ifreq` is plain data, valid when zeroed.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "IFF_UP and IFF_RUNNING are low bits"
    )]
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: SIOCSIFFLAGS reads a `struct ifreq`, which `request` is, and keeps no pointer to it.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Creates a VM with an interrupt controller and one virtual CPU, which never runs.
pub(super) fn idle_virtual_machine(kvm: &File) -> io::Result<Vec<OwnedFd>> {
    // Linux, include/uapi/linux/kvm.h
    const KVM_CREATE_VM: libc::c_ulong = 0xae01;
    const KVM_CREATE_IRQCHIP: libc::c_ulong = 0xae60;
    const KVM_CREATE_VCPU: libc::c_ulong = 0xae41;

    let request = |fd: BorrowedFd<'_>, request| {
        // SAFETY: the three requests take a number by value, here 0.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, 0) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(result)
        }
    };
    let machine = request(kvm.as_fd(), KVM_CREATE_VM)?;
    // SAFETY: KVM_CREATE_VM returned a descriptor that is nobody else's.
    let machine = unsafe { OwnedFd::from_raw_fd(machine) };
    request(machine.as_fd(), KVM_CREATE_IRQCHIP)?;
    let cpu = request(machine.as_fd(), KVM_CREATE_VCPU)?;
    // SAFETY: KVM_CREATE_VCPU returned a descriptor that is nobody else's.
    let cpu = unsafe { OwnedFd::from_raw_fd(cpu) };
    Ok(vec![cpu, machine])
}

/// Makes the command the leader of a new session; with `terminal`, its standard input becomes the controlling terminal.
pub(super) fn lead_session(command: &mut Command, terminal: bool) {
    let enter = move || {
        rustix::process::setsid()?;
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec `enter` makes plain system calls only; it neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
}

/// A set of signals that this process takes by waiting for them.
pub(super) struct AwaitedSignal {
    set: libc::sigset_t,
}

impl AwaitedSignal {
    /// Blocks `signal` in this thread and in those it will start.
    pub(super) fn block(signal: libc::c_int) -> io::Result<Self> {
        // SAFETY: `sigset_t` is plain data; `sigemptyset` gives it its meaning just below.
        let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is a valid, writable signal set.
        unsafe { libc::sigemptyset(&raw mut set) };
        // SAFETY: as above.
        if unsafe { libc::sigaddset(&raw mut set, signal) } != 0 {
            return Err(io::Error::last_os_error());
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

    /// Waits until the signal comes.
    pub(super) fn wait(&self) -> io::Result<()> {
        let mut taken = 0;
        // SAFETY: the set is initialised and `taken` is writable.
        let result = unsafe { libc::sigwait(&raw const self.set, &raw mut taken) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(result))
        }
    }
}

/// Asks for SIGIO to this process when `port` changes state, or stops asking.
pub(super) fn notify_by_sigio(port: &File, on: bool) -> io::Result<()> {
    #[expect(
        clippy::cast_possible_wrap,
        reason = "a pid is positive and below 2^22"
    )]
    let pid = std::process::id() as libc::pid_t;
    // SAFETY: F_SETOWN takes a pid by value.
    if unsafe { libc::fcntl(port.as_raw_fd(), libc::F_SETOWN, pid) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let flags = libc::O_NONBLOCK | if on { libc::O_ASYNC } else { 0 };
    // SAFETY: F_SETFL takes flags by value.
    if unsafe { libc::fcntl(port.as_raw_fd(), libc::F_SETFL, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
