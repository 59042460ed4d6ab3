//! Traffic: this program's other face, inside the container that is measured.
//!
//! The server decides what is measured and keeps the time; the client does what the first byte of
//! each connection says until the server ends it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// What the client is asked for: send, receive, answer each byte, end.
const SEND: u8 = b's';
const RECEIVE: u8 = b'r';
const ANSWER: u8 = b'a';
const END: u8 = b'e';

const CHUNK: usize = 128 * 1024;
/// What goes through before the clock starts: windows have opened by then, and buffers been touched.
const WARM: u64 = 64 << 20;
/// What is measured.
const BYTES: u64 = 48 << 20;
const ROUND_TRIPS: u32 = 500;
/// How long a client may take to come, and a connection to say something.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a network does, by the clock of the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// MiB a second that the container sends.
    pub(crate) send: f64,
    /// MiB a second that it receives.
    pub(crate) receive: f64,
    /// Requests of one byte that it answers a second.
    pub(crate) round_trips: f64,
}

/// Serves one client: all three measurements, then the end.
pub(crate) fn serve(listener: &TcpListener) -> anyhow::Result<Figures> {
    let figures = Figures {
        send: rate(BYTES, sink(accept(listener, SEND)?)?),
        receive: rate(BYTES, source(accept(listener, RECEIVE)?)?),
        round_trips: f64::from(ROUND_TRIPS) / ask(accept(listener, ANSWER)?)?.as_secs_f64(),
    };
    accept(listener, END)?;
    Ok(figures)
}

fn rate(bytes: u64, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let mib = bytes as f64 / f64::from(1 << 20);
    mib / took.as_secs_f64()
}

fn accept(listener: &TcpListener, what: u8) -> anyhow::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(e) if e.kind() == ErrorKind::WouldBlock && start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(e).context("no client has come"),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[what])?;
    Ok(stream)
}

fn sink(mut stream: TcpStream) -> anyhow::Result<Duration> {
    let mut buffer = vec![0; CHUNK];
    let mut take = |mut left: u64| {
        while left > 0 {
            match stream.read(&mut buffer)? {
                0 => bail!("the client has stopped sending"),
                length => left = left.saturating_sub(length as u64),
            }
        }
        Ok(())
    };
    take(WARM)?;
    let start = Instant::now();
    take(BYTES)?;
    Ok(start.elapsed())
}

fn source(mut stream: TcpStream) -> anyhow::Result<Duration> {
    let buffer = vec![0; CHUNK];
    let mut answer = [0];
    let mut give = |left: u64| {
        for _ in 0..left / CHUNK as u64 {
            stream.write_all(&buffer)?;
        }
        // The client says when it has all of that.
        stream.read_exact(&mut answer)
    };
    give(WARM)?;
    let start = Instant::now();
    give(BYTES)?;
    Ok(start.elapsed())
}

fn ask(mut stream: TcpStream) -> anyhow::Result<Duration> {
    let mut byte = [0];
    let mut ask = |times| {
        for _ in 0..times {
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
        }
        std::io::Result::Ok(())
    };
    ask(20)?;
    let start = Instant::now();
    ask(ROUND_TRIPS)?;
    Ok(start.elapsed())
}

/// The client: connects to `server` again and again.
pub(crate) fn client(server: &str) -> anyhow::Result<()> {
    let server: SocketAddr = server.parse().context("the server's address")?;
    loop {
        let mut stream = TcpStream::connect(server).context("connect")?;
        stream.set_nodelay(true)?;
        let mut what = [0];
        stream.read_exact(&mut what)?;
        match what {
            [SEND] => {
                let buffer = vec![0; CHUNK];
                // Until the server has enough and closes.
                while stream.write_all(&buffer).is_ok() {}
            }
            [RECEIVE] => {
                let mut buffer = vec![0; CHUNK];
                for length in [WARM, BYTES] {
                    let mut left = length;
                    while left > 0 {
                        let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                        let part = buffer.get_mut(..most).unwrap_or_default();
                        match stream.read(part)? {
                            0 => bail!("the server has stopped sending"),
                            length => left -= length as u64,
                        }
                    }
                    stream.write_all(&[0])?;
                }
            }
            [ANSWER] => {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() {
                    stream.write_all(&byte)?;
                }
            }
            _ => return Ok(()),
        }
    }
}
