//! Name servers at a loopback address of the namespace on the host.
//!
//! Docker answers the containers of its own networks at 127.0.0.11, an address of the namespace's
//! loopback interface, which in the guest is another one. What the guest asks there comes here over
//! a stream, and is asked in the namespace.

use std::io;
use std::net::{Ipv4Addr, UdpSocket as StdSocket};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cloister_protocol::{DATAGRAM_CHANNELS, DNS_PORT, TCP_CHANNELS};
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::network::Namespace;

/// How long an answer is waited for. Resolvers ask again after 5 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How many questions are open at once; what comes above that is dropped, as datagrams may be.
const MAX_OPEN: usize = 64;
/// The largest message.
const MESSAGE_MAX: usize = 65535;
/// The channels whose questions are asked over TCP.
const OVER_TCP: Range<u16> = DATAGRAM_CHANNELS..DATAGRAM_CHANNELS + TCP_CHANNELS;
/// More than any `resolv.conf` has that a resolver would read.
const CONFIGURATION_MAX: u64 = 64 * 1024;

/// The name servers of a `resolv.conf` that are at a loopback address. 127.0.0.1 is left out: a
/// container that asks itself has a name server of its own.
pub(crate) fn loopback_servers(path: &Path) -> io::Result<Vec<Ipv4Addr>> {
    use std::io::Read;
    let mut text = String::new();
    // A container that the file is in could have put something there that keeps whoever opens it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("no regular file"));
    }
    file.take(CONFIGURATION_MAX).read_to_string(&mut text)?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Vec<Ipv4Addr> {
    // resolv.conf(5): a keyword and its value; a resolver reads three name servers.
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        words.next()?.parse().ok()
    });
    servers
        .take(3)
        .filter(|server: &Ipv4Addr| server.is_loopback() && *server != Ipv4Addr::LOCALHOST)
        .collect()
}

/// Asks `server` what comes over `guest`, until the guest ends that.
pub(crate) async fn carry(
    namespace: Arc<Namespace>,
    server: Ipv4Addr,
    guest: UnixStream,
) -> io::Result<()> {
    let (mut reader, mut writer) = guest.into_split();
    let (sender, mut answers) = mpsc::channel::<(u16, Vec<u8>)>(MAX_OPEN);
    let questions = async {
        let mut open = JoinSet::new();
        loop {
            let channel = reader.read_u16().await?;
            let question = read_message(&mut reader).await?;
            while open.try_join_next().is_some() {}
            if channel >= OVER_TCP.end || open.len() >= MAX_OPEN {
                continue;
            }
            let sender = sender.clone();
            let namespace = Arc::clone(&namespace);
            open.spawn(async move {
                let answer = async {
                    if OVER_TCP.contains(&channel) {
                        ask_over_tcp(&namespace, server, &question).await
                    } else {
                        ask(&namespace, server, &question).await
                    }
                };
                let answer = match timeout(ANSWER_LIMIT, answer).await {
                    Ok(Ok(answer)) => answer,
                    Ok(Err(e)) => {
                        log::debug!("the name server {server} does not answer: {e}");
                        Vec::new()
                    }
                    Err(_) => Vec::new(),
                };
                // Nothing is an answer where a connection waits to be closed.
                if answer.is_empty() && !OVER_TCP.contains(&channel) {
                    return;
                }
                // The other side has gone if nobody takes it.
                let _ = sender.send((channel, answer)).await;
            });
        }
    };
    let answers = async {
        while let Some((channel, answer)) = answers.recv().await {
            writer.write_u16(channel).await?;
            write_message(&mut writer, &answer).await?;
        }
        Ok(())
    };
    tokio::select! {
        result = questions => result,
        result = answers => result,
    }
}

/// Makes a socket in the namespace.
fn within<T>(namespace: &Namespace, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    namespace.within(make).map_err(io::Error::other)?
}

async fn ask(namespace: &Namespace, server: Ipv4Addr, question: &[u8]) -> io::Result<Vec<u8>> {
    let socket = within(namespace, || StdSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    socket.connect((server, DNS_PORT))?;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    socket.send(question).await?;
    let mut answer = vec![0; MESSAGE_MAX];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
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

async fn ask_over_tcp(
    namespace: &Namespace,
    server: Ipv4Addr,
    question: &[u8],
) -> io::Result<Vec<u8>> {
    let socket = within(namespace, TcpSocket::new_v4)?;
    let mut stream: TcpStream = socket.connect((server, DNS_PORT).into()).await?;
    write_message(&mut stream, question).await?;
    read_message(&mut stream).await
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn servers_at_loopback_addresses_are_found() {
        let text = "# nameserver 127.0.0.9\nsearch a b\nnameserver 127.0.0.11\nnameserver 8.8.8.8\n\
                    nameserver 127.0.0.1\nnameserver 127.0.0.12\noptions ndots:0\n";
        assert_eq!(parse(text), [Ipv4Addr::new(127, 0, 0, 11)]);
        assert_eq!(
            parse("nameserver ::1\nnameserver\nnameserver x\n"),
            [Ipv4Addr::LOCALHOST; 0]
        );
    }

    #[test]
    fn only_a_regular_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let (sender, read) = std::sync::mpsc::channel();
        let fifo = path.clone();
        std::thread::spawn(move || sender.send(loopback_servers(&fifo)));
        let read = read.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(read.unwrap_err().to_string(), "no regular file");

        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "nameserver 127.0.0.11\n").unwrap();
        let servers = loopback_servers(&path).unwrap();
        assert_eq!(servers, [Ipv4Addr::new(127, 0, 0, 11)]);
    }

    #[tokio::test]
    async fn a_question_is_asked_and_its_answer_comes_back() {
        let Ok(server) = StdSocket::bind(("127.0.0.77", DNS_PORT)) else {
            // Not for everybody: the port is below 1024.
            return;
        };
        let namespace = Arc::new(Namespace::of_first_thread().unwrap());
        let connections = std::net::TcpListener::bind(("127.0.0.77", DNS_PORT)).unwrap();
        let server = std::thread::spawn(move || {
            let mut question = [0; 100];
            let (length, from) = server.recv_from(&mut question).unwrap();
            question[..length].reverse();
            server.send_to(&question[..length], from).unwrap();

            let (mut connection, _) = connections.accept().unwrap();
            let mut question = [0; 4];
            connection.read_exact(&mut question).unwrap();
            assert_eq!(question, [0, 2, b'd', b'e']);
            connection.write_all(&[0, 2, b'e', b'd']).unwrap();
            // The next one is not answered.
            connections.accept().unwrap();
        });
        let (mut guest, host) = UnixStream::pair().unwrap();
        let carried = carry(namespace, Ipv4Addr::new(127, 0, 0, 77), host);
        let asked = async {
            // One of a channel that there is not is passed over.
            guest.write_all(&[0xff, 0, 0, 1, b'x']).await.unwrap();
            guest
                .write_all(&[0, 7, 0, 3, b'a', b'b', b'c'])
                .await
                .unwrap();
            let mut answer = [0; 7];
            guest.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, [0, 7, 0, 3, b'c', b'b', b'a']);

            let [high, low] = DATAGRAM_CHANNELS.to_be_bytes();
            let question = [high, low, 0, 2, b'd', b'e'];
            guest.write_all(&question).await.unwrap();
            let mut answer = [0; 6];
            guest.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, [high, low, 0, 2, b'e', b'd']);

            guest.write_all(&question).await.unwrap();
            let mut answer = [0; 4];
            guest.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, [high, low, 0, 0]);
        };
        tokio::select! {
            result = carried => panic!("{result:?}"),
            () = asked => {}
        }
        server.join().unwrap();
    }
}
