//! Streams from the host to ports of a container's loopback interface.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::{TcpSocket, TcpStream};

use crate::network::{NetworkError, within};
use crate::socket::Socket;
use crate::tokens::Token;

/// Why a port cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// The request is at fault.
    #[error("port: {0} is not 1 to 65535")]
    Port(u32),
    /// The request is at fault.
    #[error("token: it has to have {} bytes", cloister_protocol::TOKEN_LEN)]
    Token,
    /// The host did not connect.
    #[error("the stream to forward did not come")]
    Missing,
    /// The container's network cannot be used.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// No socket.
    #[error("cannot make a socket")]
    Socket(#[source] io::Error),
    /// Nobody listens, or refuses.
    #[error("cannot connect to port {port} of the loopback interface")]
    Connect {
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
}

/// The token of a request.
pub(crate) fn token(bytes: &[u8]) -> Result<Token, ForwardError> {
    bytes.try_into().map_err(|_| ForwardError::Token)
}

/// Sockets for the two loopback addresses, made in the namespace that `process` is in.
pub(crate) struct Attempts(Vec<(TcpSocket, SocketAddr)>);

impl Attempts {
    pub(crate) fn new(
        process: BorrowedFd<'_>,
        port: u32,
        ipv6: bool,
    ) -> Result<Self, ForwardError> {
        let port = u16::try_from(port).ok().filter(|&port| port != 0);
        let port = port.ok_or(ForwardError::Port(port.map_or(0, u32::from)))?;
        let mut addresses = [
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
        ];
        if ipv6 {
            addresses.reverse();
        }
        let sockets = within(process, || {
            let socket = |address: SocketAddr| Ok((socket(address)?, address));
            addresses.into_iter().map(socket).collect::<io::Result<_>>()
        })?;
        sockets.map(Self).map_err(ForwardError::Socket)
    }

    /// Connects with the first one that can be.
    pub(crate) async fn connect(self) -> Result<TcpStream, ForwardError> {
        let mut first = None;
        for (socket, address) in self.0 {
            match socket.connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(source) => {
                    let port = address.port();
                    first.get_or_insert(ForwardError::Connect { port, source });
                }
            }
        }
        Err(first.unwrap_or(ForwardError::Missing))
    }
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    Ok(TcpSocket::from_std_stream(fd.into()))
}

/// Carries bytes both ways until both directions have ended.
pub(crate) async fn carry(mut host: Socket, mut port: TcpStream) {
    if let Err(e) = tokio::io::copy_bidirectional(&mut host, &mut port).await {
        log::debug!("a forwarded connection broke: {e}");
    }
}
