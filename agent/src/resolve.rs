//! Name servers at a loopback address of the host's namespace, such as Docker's at 127.0.0.11.
//!
//! Who asks one in the guest asks the guest's loopback interface, where it is not. The datagrams are
//! carried to the host, which asks in its namespace, and so are the answers.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket as StdSocket};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use cloister_protocol::{DATAGRAM_CHANNELS, DNS_PORT};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::UdpSocket;

use crate::network::{NetworkError, within};
use crate::socket::Socket;

/// The largest datagram.
const DATAGRAM_MAX: usize = 65535;

/// Why datagrams cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// The request is at fault.
    #[error("address: {0} is no loopback address")]
    Address(Ipv4Addr),
    /// The container's network cannot be used.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The port is taken.
    #[error("cannot take the DNS port of {address}")]
    Bind {
        /// The address.
        address: Ipv4Addr,
        /// Why.
        source: io::Error,
    },
}

/// Takes the DNS port of `address` in the namespace that `process` is in.
pub(crate) fn bind(process: BorrowedFd<'_>, address: u32) -> Result<UdpSocket, ResolveError> {
    let address = Ipv4Addr::from(address);
    if !address.is_loopback() {
        return Err(ResolveError::Address(address));
    }
    let bind = || {
        let socket = StdSocket::bind((address, DNS_PORT))?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    };
    within(process, bind)?.map_err(|source| ResolveError::Bind { address, source })
}

/// Who waits for an answer, by channel.
struct Askers(Mutex<Vec<Option<SocketAddr>>>);

impl Askers {
    fn note(&self, channel: u16, asker: SocketAddr) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = all.get_mut(usize::from(channel)) {
            *place = Some(asker);
        }
    }

    fn take(&self, channel: u16) -> Option<SocketAddr> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get_mut(usize::from(channel))?.take()
    }
}

/// Carries datagrams both ways until the host has ended the stream.
pub(crate) async fn carry(socket: UdpSocket, host: Socket) {
    let askers = Askers(Mutex::new(vec![None; usize::from(DATAGRAM_CHANNELS)]));
    let (reader, writer) = tokio::io::split(host);
    let result = tokio::select! {
        result = questions(&socket, writer, &askers) => result,
        result = answers(&socket, reader, &askers) => result,
    };
    if let Err(e) = result {
        log::debug!("datagrams are not carried any more: {e}");
    }
}

async fn questions(
    socket: &UdpSocket,
    mut host: WriteHalf<Socket>,
    askers: &Askers,
) -> io::Result<()> {
    let mut datagram = vec![0; DATAGRAM_MAX];
    for channel in (0..DATAGRAM_CHANNELS).cycle() {
        let (length, asker) = socket.recv_from(&mut datagram).await?;
        askers.note(channel, asker);
        // At most DATAGRAM_MAX.
        let size = u16::try_from(length).unwrap_or(u16::MAX);
        host.write_u16(channel).await?;
        host.write_u16(size).await?;
        host.write_all(datagram.get(..length).unwrap_or_default())
            .await?;
    }
    Ok(())
}

async fn answers(
    socket: &UdpSocket,
    mut host: ReadHalf<Socket>,
    askers: &Askers,
) -> io::Result<()> {
    loop {
        let channel = host.read_u16().await?;
        let mut datagram = vec![0; usize::from(host.read_u16().await?)];
        host.read_exact(&mut datagram).await?;
        if let Some(asker) = askers.take(channel)
            && let Err(e) = socket.send_to(&datagram, asker).await
        {
            log::debug!("an answer does not reach {asker}: {e}");
        }
    }
}
