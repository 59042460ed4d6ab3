//! The system calls that no safe wrapper offers, each behind a safe function.
#![allow(
    unsafe_code,
    reason = "port I/O, signalfd, the loopback ioctl, vsock addresses and epoll registration have no safe wrapper"
)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use cloister_protocol::VM_CONTROL_PORT;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// netdevice(7): the flags of an interface request are a short.
#[expect(clippy::cast_possible_truncation, reason = "the constant is 1")]
const IFF_UP: libc::c_short = libc::IFF_UP as libc::c_short;

#[expect(clippy::cast_possible_truncation, reason = "the constant is 40")]
const AF_VSOCK: libc::sa_family_t = libc::AF_VSOCK as libc::sa_family_t;

#[expect(clippy::cast_possible_truncation, reason = "the size is 16")]
const VSOCK_ADDR_LEN: SocketAddrLen = size_of::<libc::sockaddr_vm>() as SocketAddrLen;

/// Writes one byte to the port through which a guest's first process speaks to its machine.
///
/// The right to the port is given up again at once: it would be inherited across fork and exec
/// (ioperm(2)), and it slows every context switch.
pub(crate) fn vm_control(byte: u8) -> io::Result<()> {
    set_port_access(true)?;
    // SAFETY: the access right was just given to this thread, and the port belongs to the virtual
    // machine's control device: a write has no effect on this process's memory.
    unsafe {
        std::arch::asm!(
            "out dx, al",
            in("dx") VM_CONTROL_PORT,
            in("al") byte,
            options(nomem, nostack, preserves_flags)
        );
    }
    set_port_access(false)
}

fn set_port_access(allowed: bool) -> io::Result<()> {
    // SAFETY: the call takes plain numbers.
    let result = unsafe { libc::ioperm(VM_CONTROL_PORT.into(), 1, allowed.into()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Blocks SIGCHLD for this process and makes a descriptor that is readable while one is pending.
pub(crate) fn child_signal_fd() -> io::Result<OwnedFd> {
    // SAFETY: an all-zero sigset_t is a valid value; sigemptyset makes it a defined one.
    let mut mask: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live, writable sigset_t.
    unsafe { libc::sigemptyset(&raw mut mask) };
    // SAFETY: the pointer is to a live, initialised sigset_t and the signal number is valid.
    unsafe { libc::sigaddset(&raw mut mask, libc::SIGCHLD) };
    // SAFETY: the set is live and initialised; the old mask is not asked for.
    let result =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const mask, ptr::null_mut()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    // SAFETY: -1 asks for a new descriptor; the set is live and initialised.
    let fd = unsafe { libc::signalfd(-1, &raw const mask, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Brings the loopback interface of this network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero ifreq is a valid value: names and numbers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = from.cast_signed();
    }
    // Of the interface's flags only IFF_UP can be changed this way (netdevice(7)); IFF_LOOPBACK
    // and IFF_RUNNING stay as they are.
    request.ifr_ifru.ifru_flags = IFF_UP;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which is live and initialised.
    let result = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SIOCSIFFLAGS,
            &raw const request,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes a descriptor into the event loop, in non-blocking mode.
pub(crate) fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    // SAFETY: an OwnedFd is open and names the same file for as long as it lives, and the AsyncFd
    // owns it.
    let fd = unsafe { AsyncFd::register_with_interest(fd, interest) }?;
    Ok(fd)
}

/// The address of a vsock port.
pub(crate) struct VsockAddr {
    pub(crate) cid: u32,
    pub(crate) port: u32,
}

// SAFETY: `with_sockaddr` passes a pointer to a live, initialised sockaddr_vm and its size.
unsafe impl SocketAddrArg for VsockAddr {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        // SAFETY: an all-zero sockaddr_vm is a valid value: numbers only.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = AF_VSOCK;
        address.svm_cid = self.cid;
        address.svm_port = self.port;
        f((&raw const address).cast(), VSOCK_ADDR_LEN)
    }
}
