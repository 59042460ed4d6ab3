//! One session after the other on one port.
//!
//! ```text
//!            somebody connects             preamble + Start
//!  (nobody) ───────────────────▶ (opening) ───────────────▶ (running) ── the command ends: Exited ─▶ (opening)
//!      ▲                             │                          │
//!      └────── hang-up ──────────────┴─ hang-up: kill ──────────┘
//! ```
//! Everything is non-blocking and bounded: output waits in `Session::out` up to [`BACKLOG`] and is then left in the
//! pipes; input waits in `Session::input` and is then left in the port.

use super::install::Installer;
use super::port::Port;
use super::process::Process;
use super::threads;
use crate::protocol::{self, CHUNK, Decoder, Exited, Failed, Kind, PREAMBLE, Start};
use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd as _;

/// How much output or input may wait in memory.
const BACKLOG: usize = 256 << 10;

/// How much is read of what an ended command left in a pipe: the most a pipe holds. Children that it left behind may go
/// on writing.
const REMAINDER: usize = 1 << 20;

/// What the port had to say.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Something,
    Nothing,
    HangUp,
}

/// Serves the port for ever.
pub(super) fn serve(port: Port) {
    let mut decoder = Decoder::new(PREAMBLE.to_vec());
    loop {
        if let Err(error) = serve_one(&port, &mut decoder) {
            eprintln!("bed-server: {error:#}");
        }
    }
}

/// From waiting for a connection to the end of one session.
fn serve_one(port: &Port, decoder: &mut Decoder) -> Result<()> {
    port.wait_connected().context("wait for a connection")?;
    let start = loop {
        match decoder.next_frame() {
            Ok(Some(frame)) if frame.kind == Kind::Start => {
                break serde_json::from_slice::<Start>(&frame.payload)
                    .context("parse a Start frame")?;
            }
            // The rest of a session whose front has gone.
            Ok(Some(_)) | Err(_) => decoder.close(),
            Ok(None) => {
                port.wait_readable().context("wait for a session")?;
                if hear(port, decoder)? == Heard::HangUp {
                    decoder.clear();
                    return Ok(());
                }
            }
        }
    };

    let mut session = Session::new(port);
    session.out.extend(PREAMBLE);
    session.out.extend(start.nonce);
    let result = match prepare(start) {
        Ok(process) => session.run(decoder, process),
        Err(failed) => {
            session.send_json(Kind::Failed, &failed)?;
            session.flush()
        }
    };
    decoder.close();
    if let Ok(Ended::HungUp) = result {
        decoder.clear();
    }
    result.map(|_| ())
}

fn prepare(start: Start) -> Result<Process, Failed> {
    Installer::get().install(&start).map_err(|error| Failed {
        code: 125,
        message: format!("{error:#}"),
    })?;
    Process::start(start)
}

/// Reads what the port has.
fn hear(mut port: &Port, decoder: &mut Decoder) -> io::Result<Heard> {
    let mut buffer = [0; CHUNK];
    match port.read(&mut buffer) {
        Ok(0) => Ok(Heard::HangUp),
        Ok(count) => {
            decoder.push(buffer.get(..count).unwrap_or_default());
            Ok(Heard::Something)
        }
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(Heard::Nothing)
        }
        Err(error) => Err(error),
    }
}

/// Why a session is over.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Reported,
    HungUp,
}

#[derive(Debug)]
struct Session<'port> {
    port: &'port Port,
    /// Frames on their way to the front.
    out: VecDeque<u8>,
    /// Input on its way to the command.
    input: VecDeque<u8>,
    input_ended: bool,
}

impl<'port> Session<'port> {
    fn new(port: &'port Port) -> Self {
        Self {
            port,
            out: VecDeque::new(),
            input: VecDeque::new(),
            input_ended: false,
        }
    }

    fn run(&mut self, decoder: &mut Decoder, mut process: Process) -> Result<Ended> {
        self.send(Kind::Ready, &[]);
        let exited = match self.relay(decoder, &mut process) {
            Ok(Some(exited)) => exited,
            Ok(None) => {
                process
                    .kill()
                    .context("kill a command whose front has gone")?;
                return Ok(Ended::HungUp);
            }
            Err(error) => {
                process
                    .kill()
                    .context("kill a command whose session broke")?;
                return Err(error);
            }
        };
        self.send_json(Kind::Exited, &exited)?;
        self.flush()
    }

    /// Relays until the command has ended and what it wrote is in `out`, or until the front has gone (none).
    fn relay(&mut self, decoder: &mut Decoder, process: &mut Process) -> Result<Option<Exited>> {
        loop {
            if !self.obey(decoder, process)? {
                return Ok(None);
            }
            self.feed(process)?;
            let events = self.wait(process)?;
            if events.port.contains(PollFlags::HUP) {
                return Ok(None);
            }
            if events.port.contains(PollFlags::OUT) {
                self.write_some()?;
            }
            if events.port.contains(PollFlags::IN) && hear(self.port, decoder)? == Heard::HangUp {
                return Ok(None);
            }
            // Asked before the last read: whatever the command wrote, it wrote before it ended.
            let exited = if events.ended {
                process.exited().context("wait for the command")?
            } else {
                None
            };
            let room = if exited.is_some() {
                REMAINDER
            } else {
                BACKLOG.saturating_sub(self.out.len())
            };
            self.collect(&mut process.output, Kind::Stdout, room)?;
            self.collect(&mut process.error, Kind::Stderr, room)?;
            if exited.is_some() {
                return Ok(exited);
            }
        }
    }

    /// Does what the front has asked for; false when it has gone.
    fn obey(&mut self, decoder: &mut Decoder, process: &Process) -> Result<bool> {
        while self.input.len() < BACKLOG {
            let frame = match decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                // Somebody else's preamble: the connection changed hands.
                Err(_) => return Ok(false),
            };
            match frame.kind {
                Kind::Stdin => self.input.extend(frame.payload),
                Kind::StdinEof => self.input_ended = true,
                Kind::Resize => {
                    let size =
                        serde_json::from_slice(&frame.payload).context("parse a Resize frame")?;
                    process.resize(size).context("resize the terminal")?;
                }
                Kind::Examine => {
                    for piece in threads::describe().as_bytes().chunks(CHUNK) {
                        self.send(Kind::Stderr, piece);
                    }
                }
                other => bail!("unexpected frame {other:?}"),
            }
        }
        Ok(true)
    }

    /// Gives the command its input.
    fn feed(&mut self, process: &mut Process) -> Result<()> {
        let Some(pipe) = &mut process.input else {
            self.input.clear();
            return Ok(());
        };
        let mut closed = false;
        while !self.input.is_empty() && !closed {
            let (first, _) = self.input.as_slices();
            match pipe.write(first) {
                Ok(count) => drop(self.input.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The command has closed its input, or its terminal has gone.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe || is_eio(&error) => {
                    closed = true
                }
                Err(error) => return Err(error).context("write to the command"),
            }
        }
        if closed || self.input_ended {
            process.input = None;
        }
        Ok(())
    }

    fn wait(&self, process: &Process) -> Result<Events> {
        let room = self.out.len() < BACKLOG;
        let mut port_flags = PollFlags::empty();
        if self.input.len() < BACKLOG {
            port_flags |= PollFlags::IN;
        }
        if !self.out.is_empty() {
            port_flags |= PollFlags::OUT;
        }
        let pidfd = process.pidfd();
        let mut fds = vec![
            PollFd::new(self.port, port_flags),
            PollFd::new(&pidfd, PollFlags::IN),
        ];
        for pipe in [&process.output, &process.error]
            .into_iter()
            .flatten()
            .filter(|_| room)
        {
            fds.push(PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN));
        }
        if let Some(input) = process.input.as_ref().filter(|_| !self.input.is_empty()) {
            fds.push(PollFd::from_borrowed_fd(input.as_fd(), PollFlags::OUT));
        }
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {
                return Ok(Events {
                    port: PollFlags::empty(),
                    ended: false,
                });
            }
            Err(error) => return Err(error).context("poll"),
        }
        let mut seen = fds.iter().map(PollFd::revents);
        let port = seen.next().unwrap_or(PollFlags::empty());
        let ended = seen.next().is_some_and(|flags| !flags.is_empty());
        Ok(Events { port, ended })
    }

    /// Takes what the command has written, until there is no `room`.
    fn collect(&mut self, pipe: &mut Option<File>, kind: Kind, room: usize) -> Result<()> {
        let mut buffer = [0; CHUNK];
        let mut taken = 0;
        while taken < room {
            let Some(open) = pipe else {
                break;
            };
            match open.read(&mut buffer) {
                Ok(0) => *pipe = None,
                Ok(count) => {
                    taken += count;
                    self.send(kind, buffer.get(..count).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // How a terminal says that its other side is closed.
                Err(error) if is_eio(&error) => *pipe = None,
                Err(error) => return Err(error).context("read from the command"),
            }
        }
        Ok(())
    }

    fn send(&mut self, kind: Kind, payload: &[u8]) {
        let mut frame = Vec::with_capacity(payload.len() + 8);
        protocol::encode(kind, payload, &mut frame);
        self.out.extend(frame);
    }

    fn send_json<T: serde::Serialize>(&mut self, kind: Kind, message: &T) -> Result<()> {
        let mut frame = Vec::new();
        protocol::encode_json(kind, message, &mut frame)?;
        self.out.extend(frame);
        Ok(())
    }

    fn write_some(&mut self) -> Result<()> {
        let (first, _) = self.out.as_slices();
        let mut port = self.port;
        match port.write(first) {
            Ok(count) => drop(self.out.drain(..count)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error).context("write to the port"),
        }
        Ok(())
    }

    /// Writes everything out, unless the front goes first.
    fn flush(&mut self) -> Result<Ended> {
        while !self.out.is_empty() {
            let mut fds = [PollFd::new(self.port, PollFlags::OUT)];
            poll(&mut fds, None).or_else(|error| match error {
                rustix::io::Errno::INTR => Ok(0),
                error => Err(error),
            })?;
            if fds.iter().any(|fd| fd.revents().contains(PollFlags::HUP)) {
                return Ok(Ended::HungUp);
            }
            self.write_some()?;
        }
        Ok(Ended::Reported)
    }
}

struct Events {
    port: PollFlags,
    ended: bool,
}

fn is_eio(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}
