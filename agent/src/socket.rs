//! Stream sockets in the event loop: vsock in a guest, AF_UNIX in tests. Nothing here depends on
//! the address family but the two functions that name a vsock address.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt,
};
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::sys::{self, VsockAddr};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 128;

/// A connected stream socket.
#[derive(Debug)]
pub struct Socket(AsyncFd<OwnedFd>);

impl Socket {
    /// Takes over a connected stream socket.
    ///
    /// # Errors
    /// If the event loop cannot watch it.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::register(fd, Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    /// Begins to connect to a port of the host. [`connected`](Self::connected) ends it.
    pub(crate) fn connect_host(port: u32) -> io::Result<Self> {
        let fd = vsock_socket()?;
        sys::be_patient(&fd)?;
        let host = VsockAddr {
            cid: cloister_protocol::HOST_CID,
            port,
        };
        match rustix::net::connect(&fd, &host) {
            Ok(()) | Err(Errno::INPROGRESS) => Self::new(fd),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until the peer has taken or refused the connection.
    pub(crate) async fn connected(&self) -> io::Result<()> {
        let _guard = self.0.writable().await?;
        sockopt::socket_error(&self.0)??;
        Ok(())
    }

    /// Waits until there may be something to read.
    pub(crate) async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.readable().await
    }

    /// Waits until there may be room to write.
    pub(crate) async fn writable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.writable().await
    }

    /// Waits until the peer does not take data any more. Takes the events that tell of room to
    /// write: who waits for those has to try to write first.
    ///
    /// A half close by the peer, or data from it, is not that. A vsock socket does not report a
    /// full close as a hang-up before its own side is shut down, but any change of its state counts
    /// as an event, and an empty send tells.
    pub(crate) async fn refuses_data(&self) -> io::Result<()> {
        loop {
            let mut guard = self.0.writable().await?;
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let taken = rustix::net::send(&self.0, &[], flags);
            // A closed state is never cleared.
            if taken.is_err() || guard.ready().is_write_closed() {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    /// Sends some of the bytes.
    pub(crate) async fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(result) = self.try_send(bytes) {
            return result;
        }
        poll_fn(|cx| self.poll_send(cx, bytes)).await
    }

    /// Receives some bytes, or none at the end of the stream.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_receive(cx, buffer)).await
    }

    /// Receives what is there already; none if nothing is.
    pub(crate) fn try_receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::net::recv(&self.0, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, received)) => return Ok(received),
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Tells the peer that no more data comes.
    pub(crate) fn end(&self) -> io::Result<()> {
        match rustix::net::shutdown(&self.0, Shutdown::Write) {
            // The peer is gone already.
            Err(Errno::NOTCONN) => Ok(()),
            other => other.map_err(Into::into),
        }
    }

    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            match rustix::net::recv(&self.0, &mut *buffer, RecvFlags::empty()) {
                Ok((_, received)) => return Poll::Ready(Ok(received)),
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }

    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Some(result) = self.try_send(bytes) {
                return Poll::Ready(result);
            }
            guard.clear_ready();
        }
    }

    /// `None` if there is no room.
    fn try_send(&self, bytes: &[u8]) -> Option<io::Result<usize>> {
        loop {
            match rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => {}
                other => return Some(other.map_err(Into::into)),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let received = ready!(self.poll_receive(cx, buffer.initialize_unfilled()))?;
        buffer.advance(received);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, buffer)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.end())
    }
}

/// A listening stream socket.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Takes over a listening stream socket.
    ///
    /// # Errors
    /// If the event loop cannot watch it.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::register(fd, Interest::READABLE).map(Self)
    }

    /// Listens on a vsock port of this guest.
    pub(crate) fn vsock(port: u32) -> io::Result<Self> {
        let fd = vsock_socket()?;
        let any = VsockAddr {
            cid: libc::VMADDR_CID_ANY,
            port,
        };
        rustix::net::bind(&fd, &any)?;
        rustix::net::listen(&fd, BACKLOG)?;
        Self::new(fd)
    }

    /// Takes the next connection. After an error the listener waits for a new one to arrive, so
    /// that a guest that is out of descriptors does not spin.
    pub(crate) fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<Socket>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            match rustix::net::accept_with(&self.0, SocketFlags::CLOEXEC) {
                Ok(fd) => return Poll::Ready(Socket::new(fd)),
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    guard.clear_ready();
                    return Poll::Ready(Err(errno.into()));
                }
            }
        }
    }

    /// See [`poll_accept`](Self::poll_accept).
    pub(crate) async fn accept(&self) -> io::Result<Socket> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }
}

fn vsock_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        flags,
        None,
    )?)
}
