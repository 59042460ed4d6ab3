//! Name servers at a loopback address of the host's namespace, such as Docker's at 127.0.0.11.
//!
//! Who asks one in the guest asks the guest's loopback interface, where it is not. The messages are
//! carried to the host, which asks in its namespace, and so are the answers.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener, UdpSocket as StdSocket};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cloister_protocol::{DATAGRAM_CHANNELS, DNS_PORT, TCP_CHANNELS};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::network::{NetworkError, within};
use crate::socket::Socket;

/// The largest message.
const MESSAGE_MAX: usize = 65535;
/// How long a connection may say nothing, and how long it waits for an answer.
const IDLE_LIMIT: Duration = Duration::from_secs(15);
/// How many messages wait to be written to the host.
const WAITING: usize = 16;
/// How long to rest when a connection cannot be taken.
const REST: Duration = Duration::from_millis(100);

/// Why questions cannot be taken.
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

/// The DNS port of an address, for datagrams and connections.
pub(crate) struct Port {
    datagrams: UdpSocket,
    connections: TcpListener,
}

/// Takes the DNS port of `address` in the namespace that `process` is in.
pub(crate) fn bind(process: BorrowedFd<'_>, address: u32) -> Result<Port, ResolveError> {
    let address = Ipv4Addr::from(address);
    if !address.is_loopback() {
        return Err(ResolveError::Address(address));
    }
    let bind = || {
        let datagrams = StdSocket::bind((address, DNS_PORT))?;
        datagrams.set_nonblocking(true)?;
        let connections = StdListener::bind((address, DNS_PORT))?;
        connections.set_nonblocking(true)?;
        Ok(Port {
            datagrams: UdpSocket::from_std(datagrams)?,
            connections: TcpListener::from_std(connections)?,
        })
    };
    within(process, bind)?.map_err(|source| ResolveError::Bind { address, source })
}

/// Who waits for an answer.
enum Asker {
    Datagram(SocketAddr),
    Connection(oneshot::Sender<Vec<u8>>),
}

/// Who waits for an answer, by channel: those of datagrams first.
struct Askers(Mutex<Vec<Option<Asker>>>);

impl Askers {
    fn new() -> Self {
        let channels = usize::from(DATAGRAM_CHANNELS + TCP_CHANNELS);
        Self(Mutex::new((0..channels).map(|_| None).collect()))
    }

    fn note(&self, channel: u16, asker: Option<Asker>) -> Option<Asker> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(all.get_mut(usize::from(channel))?, asker)
    }
}

/// A question, and the channel for its answer.
type Question = (u16, Vec<u8>);

impl Port {
    /// Carries messages both ways until the host has ended the stream.
    pub(crate) async fn carry(self, host: Socket) {
        let askers = Arc::new(Askers::new());
        let (reader, writer) = tokio::io::split(host);
        let (sender, questions) = mpsc::channel(WAITING);
        let result = tokio::select! {
            result = write(writer, questions) => result,
            result = take_datagrams(&self.datagrams, sender.clone(), &askers) => result,
            () = take_connections(&self.connections, sender, &askers) => Ok(()),
            result = answers(&self.datagrams, reader, &askers) => result,
        };
        if let Err(e) = result {
            log::debug!("no name server is asked any more: {e}");
        }
    }
}

/// A message after its length, which is of 16 bits, the more significant first (RFC 1035, section 4.2.2).
async fn read_message(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(reader.read_u16().await?)];
    reader.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(writer: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    writer
        .write_all(&[&length.to_be_bytes(), message].concat())
        .await
}

async fn write(
    mut host: WriteHalf<Socket>,
    mut questions: mpsc::Receiver<Question>,
) -> io::Result<()> {
    while let Some((channel, question)) = questions.recv().await {
        host.write_u16(channel).await?;
        write_message(&mut host, &question).await?;
    }
    Ok(())
}

async fn take_datagrams(
    socket: &UdpSocket,
    host: mpsc::Sender<Question>,
    askers: &Askers,
) -> io::Result<()> {
    let mut datagram = vec![0; MESSAGE_MAX];
    for channel in (0..DATAGRAM_CHANNELS).cycle() {
        let (length, asker) = socket.recv_from(&mut datagram).await?;
        askers.note(channel, Some(Asker::Datagram(asker)));
        let question = datagram.get(..length).unwrap_or_default().to_vec();
        host.send((channel, question))
            .await
            .map_err(io::Error::other)?;
    }
    Ok(())
}

async fn take_connections(
    listener: &TcpListener,
    host: mpsc::Sender<Question>,
    askers: &Arc<Askers>,
) {
    let mut free: Vec<u16> = (DATAGRAM_CHANNELS..DATAGRAM_CHANNELS + TCP_CHANNELS).collect();
    let mut connections = JoinSet::new();
    loop {
        let Some(channel) = free.pop() else {
            // One that ends makes room; one that panicked has lost its channel.
            match connections.join_next().await {
                Some(ended) => free.extend(ended.ok()),
                None => return,
            }
            continue;
        };
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(e) => {
                log::debug!("a question is not taken: {e}");
                free.push(channel);
                sleep(REST).await;
                continue;
            }
        };
        let (host, askers) = (host.clone(), Arc::clone(askers));
        connections.spawn(async move {
            if let Err(e) = answer_over_tcp(connection, channel, &host, &askers).await {
                log::debug!("a connection to a name server ends: {e}");
            }
            askers.note(channel, None);
            channel
        });
        while let Some(ended) = connections.try_join_next() {
            free.extend(ended.ok());
        }
    }
}

/// One question after the other.
async fn answer_over_tcp(
    mut connection: TcpStream,
    channel: u16,
    host: &mpsc::Sender<Question>,
    askers: &Askers,
) -> io::Result<()> {
    loop {
        let question = timeout(IDLE_LIMIT, read_message(&mut connection)).await??;
        let (sender, answer) = oneshot::channel();
        askers.note(channel, Some(Asker::Connection(sender)));
        host.send((channel, question))
            .await
            .map_err(io::Error::other)?;
        let answer = timeout(IDLE_LIMIT, answer)
            .await?
            .map_err(io::Error::other)?;
        if answer.is_empty() {
            return Ok(());
        }
        write_message(&mut connection, &answer).await?;
    }
}

async fn answers(
    socket: &UdpSocket,
    mut host: ReadHalf<Socket>,
    askers: &Askers,
) -> io::Result<()> {
    loop {
        let channel = host.read_u16().await?;
        let answer = read_message(&mut host).await?;
        match askers.note(channel, None) {
            Some(Asker::Datagram(asker)) => {
                if let Err(e) = socket.send_to(&answer, asker).await {
                    log::debug!("an answer does not reach {asker}: {e}");
                }
            }
            Some(Asker::Connection(asker)) => {
                // Who asked may have gone.
                let _ = asker.send(answer);
            }
            None => {}
        }
    }
}
