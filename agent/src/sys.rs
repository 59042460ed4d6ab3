//! The system calls that no safe wrapper offers, each behind a safe function.
#![allow(
    unsafe_code,
    reason = "port I/O, the handler of SIGCHLD, the loopback ioctl, vsock addresses and epoll registration have no safe wrapper"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use cloister_protocol::VM_CONTROL_PORT;
use rustix::event::EventfdFlags;
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

/// The eventfd that the handler of SIGCHLD adds to.
static CHILD_EVENT: AtomicI32 = AtomicI32::new(-1);

/// Makes a descriptor that is readable after a SIGCHLD. It stays open for the process's life.
///
/// A handler, and not a signalfd, because a signalfd needs the signal blocked in every thread, and
/// a blocked signal is inherited by what is executed.
pub(crate) fn child_events() -> io::Result<OwnedFd> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let handlers = event.try_clone()?;
    CHILD_EVENT.store(handlers.into_raw_fd(), Ordering::Relaxed);
    // SAFETY: an all-zero sigaction is a valid value: an empty mask, no flags.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = note_child as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART | libc::SA_NOCLDSTOP;
    // SAFETY: the action is live and initialised, and its handler only does what signal-safety(7)
    // allows.
    let result = unsafe { libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut()) };
    if result == 0 {
        Ok(event)
    } else {
        Err(io::Error::last_os_error())
    }
}

extern "C" fn note_child(_signal: libc::c_int) {
    // SAFETY: a plain call, which cannot fail.
    let location = unsafe { libc::__errno_location() };
    // SAFETY: errno's location is this thread's own and valid as long as the thread.
    let errno = unsafe { *location };
    let one = 1_u64;
    let event = CHILD_EVENT.load(Ordering::Relaxed);
    // The counter is non-blocking; it cannot be full, and if it were, it would be readable.
    // SAFETY: the eight bytes of `one` are readable; write(2) is async-signal-safe.
    unsafe { libc::write(event, (&raw const one).cast(), size_of::<u64>()) };
    // SAFETY: as above. What the handler interrupted must not see another error.
    unsafe { *location = errno };
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

/// How long the host may take to take a connection, in seconds: it has a limit of its own for a guest
/// that boots, and the kernel's 2 s are not enough where many machines start at once.
const CONNECT_LIMIT_S: libc::time_t = 600;
/// linux/vm_sockets.h: `SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD`, a `timeval`.
const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;

#[expect(clippy::cast_possible_truncation, reason = "the size is 16")]
const TIMEVAL_LEN: libc::socklen_t = size_of::<libc::timeval>() as libc::socklen_t;

/// Gives the host time to take the connection of a vsock socket.
pub(crate) fn be_patient(socket: impl AsFd) -> io::Result<()> {
    let limit = libc::timeval {
        tv_sec: CONNECT_LIMIT_S,
        tv_usec: 0,
    };
    // SAFETY: the pointer and the length are those of a live timeval, which the kernel reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::AF_VSOCK,
            SO_VM_SOCKETS_CONNECT_TIMEOUT,
            (&raw const limit).cast(),
            TIMEVAL_LEN,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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

/// Does what may take long on a thread of its own, which ends with it.
pub(crate) async fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || drop(done.send(work())))?;
    result.await.map_err(io::Error::other)
}
