//! One end of a network, for tests: it runs in a container and outside, and checks every byte that comes back.
//!
//! ```text
//! peer echo ADDRESS                   gives back what comes, by TCP and by UDP, until it is killed
//! peer connections ADDRESS COUNT      opens COUNT connections and closes them
//! peer stream ADDRESS MIB             sends MIB on one connection while it takes as much back
//! peer datagrams ADDRESS SIZE…        sends a datagram of each SIZE and takes it back
//! peer listen ADDRESS                 listens for TCP, and is done
//! peer ping IP                        pings without a privilege: with a datagram socket (icmp(7))
//! ```
//!
//! ADDRESS is an address and a port; IP is one of IPv4. The server need not be there yet: for a while others wait for it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};
use cloister_tests::noise;
use rustix::net::{AddressFamily, SocketType};

/// How long a server may take to come, and anybody to say something.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks for a server.
const PAUSE: Duration = Duration::from_millis(50);
/// How many connections are under way at once: so many that one interrupt is for several.
const AT_ONCE: u32 = 64;
/// What is read at once: no datagram is longer.
const CHUNK: usize = 1 << 16;
/// A prime, so that what is lost or comes twice shows, whatever its size.
const PERIOD: usize = 1_048_573;
/// How long a datagram may take; they may get lost, on the best of networks.
const DATAGRAM: Duration = Duration::from_secs(5);
/// How often one is sent before it counts as one that does not pass.
const DATAGRAM_TRIES: u32 = 5;

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    Echo {
        address: SocketAddr,
    },
    Connections {
        address: SocketAddr,
        count: u32,
    },
    Stream {
        address: SocketAddr,
        mib: u64,
    },
    Datagrams {
        address: SocketAddr,
        sizes: Vec<usize>,
    },
    Listen {
        address: SocketAddr,
    },
    Ping {
        ip: Ipv4Addr,
    },
}

fn main() -> anyhow::Result<()> {
    match Options::parse().part {
        Part::Echo { address } => echo(address),
        Part::Connections { address, count } => connections(address, count),
        Part::Stream { address, mib } => stream(address, mib),
        Part::Datagrams { address, sizes } => datagrams(address, &sizes),
        Part::Listen { address } => {
            TcpListener::bind(address).with_context(|| format!("TCP {address}"))?;
            Ok(())
        }
        Part::Ping { ip } => ping(ip),
    }
}

/// Serves for ever.
fn echo(address: SocketAddr) -> anyhow::Result<()> {
    let socket = UdpSocket::bind(address).with_context(|| format!("UDP {address}"))?;
    let listener = TcpListener::bind(address).with_context(|| format!("TCP {address}"))?;
    thread::spawn(move || {
        let mut bytes = vec![0; CHUNK];
        loop {
            let answered = socket.recv_from(&mut bytes).and_then(|(length, from)| {
                let datagram = bytes.get(..length).unwrap_or_default();
                socket.send_to(datagram, from)
            });
            if let Err(e) = answered {
                eprintln!("peer: a datagram: {e}");
            }
        }
    });
    // Each has its buffer for good: under emulation, new threads and memory cost more than a connection.
    thread::scope(|scope| {
        let serve = || {
            let mut bytes = vec![0; CHUNK];
            loop {
                let (mut stream, from) = listener.accept().context("accept")?;
                if let Err(e) = give_back(&mut stream, &mut bytes) {
                    eprintln!("peer: a connection from {from}: {e}");
                }
            }
        };
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(serve)).collect();
        threads.into_iter().try_for_each(join)
    })
}

fn give_back(stream: &mut TcpStream, bytes: &mut [u8]) -> std::io::Result<()> {
    loop {
        let length = stream.read(bytes)?;
        if length == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(bytes.get(..length).unwrap_or_default())?;
    }
}

fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn await_server(address: SocketAddr) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        match connect(address) {
            Ok(_) => return Ok(()),
            Err(_) if start.elapsed() < PATIENCE => thread::sleep(PAUSE),
            Err(e) => return Err(e.context(format!("nobody serves at {address}"))),
        }
    }
}

fn connections(address: SocketAddr, count: u32) -> anyhow::Result<()> {
    await_server(address)?;
    let next = AtomicU32::new(0);
    thread::scope(|scope| {
        let open_all = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                one_connection(address, number).with_context(|| format!("connection {number}"))?;
            }
        };
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(open_all)).collect();
        threads.into_iter().try_for_each(join)
    })
}

fn join(thread: thread::ScopedJoinHandle<'_, anyhow::Result<()>>) -> anyhow::Result<()> {
    thread.join().unwrap_or_else(|_| bail!("a thread panicked"))
}

fn one_connection(address: SocketAddr, number: u32) -> anyhow::Result<()> {
    let mut stream = connect(address)?;
    stream.write_all(&number.to_le_bytes()).context("send")?;
    stream.shutdown(Shutdown::Write).context("shut down")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("receive")?;
    ensure!(answer == number.to_le_bytes(), "{answer:?} came back");
    Ok(())
}

fn stream(address: SocketAddr, mib: u64) -> anyhow::Result<()> {
    await_server(address)?;
    let length = mib << 20;
    let bytes = noise(PERIOD);
    let mut reader = connect(address)?;
    let mut writer = reader.try_clone()?;
    let start = Instant::now();
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut left = length;
            while left > 0 {
                let part = part(&bytes, 0, left);
                writer.write_all(part).context("send")?;
                left -= part.len() as u64;
            }
            writer.shutdown(Shutdown::Write).context("shut down")
        });
        let mut got = vec![0; CHUNK];
        let (mut at, mut left) = (0, length);
        loop {
            let count = reader.read(&mut got).context("receive")?;
            let got = got.get(..count).unwrap_or_default();
            if count == 0 {
                break;
            }
            ensure!(count as u64 <= left, "more came back than was sent");
            let first = part(&bytes, at, count as u64);
            let (head, tail) = got.split_at(first.len());
            let same = head == first && tail == part(&bytes, 0, tail.len() as u64);
            ensure!(same, "other bytes came back at {}", length - left);
            at = (at + count) % PERIOD;
            left -= count as u64;
        }
        ensure!(left == 0, "{left} bytes did not come back");
        join(sender)
    })?;
    println!(
        "{mib} MiB each way in {:.1} s",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// What there is from byte `at` on, `length` bytes at most.
fn part(bytes: &[u8], at: usize, length: u64) -> &[u8] {
    let rest = bytes.get(at..).unwrap_or_default();
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    rest.get(..length).unwrap_or(rest)
}

fn datagrams(address: SocketAddr, sizes: &[usize]) -> anyhow::Result<()> {
    await_server(address)?;
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).context("bind")?;
    socket.connect(address).context("connect")?;
    for size in sizes {
        one_datagram(&socket, *size).with_context(|| format!("a datagram of {size} bytes"))?;
    }
    Ok(())
}

fn one_datagram(socket: &UdpSocket, size: usize) -> anyhow::Result<()> {
    let sent = noise(size);
    let got = exchange(socket, &sent)?;
    let length = got.len();
    ensure!(got == sent, "another one of {length} bytes came back");
    Ok(())
}

/// Sends something and takes what comes for it.
fn exchange(socket: &UdpSocket, sent: &[u8]) -> anyhow::Result<Vec<u8>> {
    socket.set_read_timeout(Some(DATAGRAM))?;
    let mut got = vec![0; CHUNK];
    for _ in 0..DATAGRAM_TRIES {
        socket.send(sent).context("send")?;
        match socket.recv(&mut got) {
            Ok(length) => {
                got.truncate(length);
                return Ok(got);
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => return Err(e).context("receive"),
        }
    }
    bail!("nothing came back, {DATAGRAM_TRIES} times")
}

fn ping(ip: Ipv4Addr) -> anyhow::Result<()> {
    let protocol = Some(rustix::net::ipproto::ICMP);
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, protocol);
    // The operations of a UDP socket are those of any datagram socket.
    let socket = UdpSocket::from(socket.context("no socket for pings")?);
    socket.connect((ip, 0)).context("connect")?;
    // RFC 792: an echo request; the kernel fills in checksum and identifier, and a reply is of type 0.
    let got = exchange(&socket, &[8, 0, 0, 0, 0, 0, 0, 1, b'c'])?;
    ensure!(
        got.len() == 9 && got.first() == Some(&0) && got.last() == Some(&b'c'),
        "{got:?} came back"
    );
    Ok(())
}
