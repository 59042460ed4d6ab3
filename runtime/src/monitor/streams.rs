//! Which streams a workload has, and what is at their host ends.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use cloister_protocol::agent::descriptor::Kind as DescriptorKind;
use cloister_protocol::agent::{Descriptor, Stdio};
use cloister_protocol::{STDIO_PORT, TOKEN_LEN};
use rustix::fs::{FileType, fstat, major, minor};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::termios::isatty;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::failure::Failure;
use super::stdio::{Ended, drain, drain_socket, feed};
use super::terminal::Pty;
use crate::descriptors::{self, Kind};
use crate::launch::Terminal;
use crate::vsock;

/// How long typing may go on into a terminal whose process has ended.
const INPUT_LIMIT: Duration = Duration::from_millis(500);

/// `/dev/null`: Documentation/admin-guide/devices.txt.
const NULL: (u32, u32) = (1, 3);

/// The standard streams that this process was started with.
#[derive(Debug)]
pub(crate) struct Inherited {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// What the workload is to have from number 3 on.
    pub(crate) preserved: Vec<OwnedFd>,
}

impl Inherited {
    /// Further descriptors of them, for a process that goes on using its own.
    pub(crate) fn share() -> std::io::Result<Self> {
        let dup = |fd| rustix::io::fcntl_dupfd_cloexec(fd, 10);
        Ok(Self {
            stdin: dup(rustix::stdio::stdin())?,
            stdout: dup(rustix::stdio::stdout())?,
            stderr: dup(rustix::stdio::stderr())?,
            preserved: Vec::new(),
        })
    }

    /// Takes them over and leaves `/dev/null` in their places: who reads from a workload must see
    /// the end when the workload closes its stream, not when the monitor ends.
    pub(crate) fn take() -> std::io::Result<Self> {
        // Above the numbers that have a meaning in children.
        let this = Self::share()?;
        let null = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        Ok(this)
    }
}

/// Which streams a process with such a terminal has, and the pseudoterminal if that is a new one.
pub(crate) fn plan(
    terminal: Terminal,
    console_socket: Option<OwnedFd>,
    mut inherited: Inherited,
) -> Result<(Option<Pty>, Plan), Failure> {
    let further = (descriptors::FIRST..)
        .zip(std::mem::take(&mut inherited.preserved))
        .map(|(number, fd)| Further::new(number, fd))
        .collect::<Result<_, _>>()?;
    let (pty, mut plan) = standard(terminal, console_socket, inherited)?;
    plan.further = further;
    Ok((pty, plan))
}

fn standard(
    terminal: Terminal,
    console_socket: Option<OwnedFd>,
    inherited: Inherited,
) -> Result<(Option<Pty>, Plan), Failure> {
    match (terminal, console_socket) {
        (Terminal::Socket, Some(socket)) => {
            // Of the caller's streams nothing is kept: it may wait for their end.
            drop(inherited);
            let pty = Pty::open(socket).map_err(Failure::Terminal)?;
            let plan = Plan::pty(&pty)?;
            Ok((Some(pty), plan))
        }
        (Terminal::Inherited { .. }, _) => Ok((None, Plan::caller_terminal(inherited)?)),
        _ => Ok((None, Plan::separate(inherited)?)),
    }
}

/// One vsock connection.
#[derive(Debug)]
struct Stream {
    token: [u8; TOKEN_LEN],
    /// What the workload reads.
    source: Option<OwnedFd>,
    /// Where what it writes goes.
    sink: Option<OwnedFd>,
}

/// What names a connection.
pub(crate) fn token() -> std::io::Result<[u8; TOKEN_LEN]> {
    // Bytes of the kernel's generator; a short read does not happen below 256 bytes.
    let mut token = [0; TOKEN_LEN];
    getrandom(&mut token, GetRandomFlags::empty())?;
    Ok(token)
}

impl Stream {
    fn new(source: Option<OwnedFd>, sink: Option<OwnedFd>) -> Result<Self, Failure> {
        Ok(Self {
            token: token().map_err(Failure::Relay)?,
            source,
            sink,
        })
    }
}

/// What a workload has beside its standard streams, at one number.
#[derive(Debug)]
enum Further {
    /// A device of the guest.
    Device(&'static str),
    /// A stream, and what the workload is given for it.
    Stream(DescriptorKind, Stream),
}

impl Further {
    fn new(number: i32, fd: OwnedFd) -> Result<Self, Failure> {
        let stream = |kind, source, sink| Ok(Self::Stream(kind, Stream::new(source, sink)?));
        match descriptors::kind(number, &fd)? {
            Kind::Device(name) => Ok(Self::Device(name)),
            Kind::Read => stream(DescriptorKind::READ, Some(fd), None),
            Kind::Write => stream(DescriptorKind::WRITE, None, Some(fd)),
            Kind::Socket => {
                let other = fd.try_clone().map_err(Failure::Relay)?;
                stream(DescriptorKind::SOCKET, Some(fd), Some(other))
            }
        }
    }

    /// What the agent is told.
    fn descriptor(&self) -> Descriptor {
        let mut told = Descriptor::default();
        match self {
            Self::Device(name) => {
                told.kind = DescriptorKind::DEVICE.into();
                told.device = (*name).into();
            }
            Self::Stream(kind, stream) => {
                told.kind = (*kind).into();
                told.token = stream.token.to_vec();
            }
        }
        told
    }
}

/// The streams of one workload, not yet connected.
#[derive(Debug)]
pub(crate) struct Plan {
    terminal: bool,
    plain_line_feeds: bool,
    /// Standard input or the terminal; standard output; standard error. `None` is `/dev/null`.
    streams: [Option<Stream>; 3],
    further: Vec<Further>,
}

impl Plan {
    /// Three streams between the workload and `inherited`.
    fn separate(inherited: Inherited) -> Result<Self, Failure> {
        let Inherited {
            stdin,
            stdout,
            stderr,
            preserved: _,
        } = inherited;
        let input = |fd| match is_null(&fd) {
            true => Ok(None),
            false => Stream::new(Some(fd), None).map(Some),
        };
        let output = |fd| match is_null(&fd) {
            true => Ok(None),
            false => Stream::new(None, Some(fd)).map(Some),
        };
        Ok(Self {
            terminal: false,
            plain_line_feeds: false,
            streams: [input(stdin)?, output(stdout)?, output(stderr)?],
            further: Vec::new(),
        })
    }

    /// A terminal that is read from and written to through `inherited`.
    ///
    /// The caller's terminal is raw, so that the carriage returns on it have to be the container's.
    /// What is no terminal gets lines as programs write them, as with runc (which turns `ONLCR` off
    /// inside in either case, and leaves `OPOST` on outside).
    fn caller_terminal(inherited: Inherited) -> Result<Self, Failure> {
        let plain_line_feeds = !isatty(&inherited.stdout);
        let stream = Stream::new(Some(inherited.stdin), Some(inherited.stdout))?;
        Ok(Self {
            terminal: true,
            plain_line_feeds,
            streams: [Some(stream), None, None],
            further: Vec::new(),
        })
    }

    /// A terminal that is the slave side of `pty`.
    fn pty(pty: &Pty) -> Result<Self, Failure> {
        let clone = || pty.try_clone().map_err(Failure::Terminal);
        let stream = Stream::new(Some(clone()?), Some(clone()?))?;
        Ok(Self {
            terminal: true,
            plain_line_feeds: false,
            streams: [Some(stream), None, None],
            further: Vec::new(),
        })
    }

    /// What the agent is told.
    pub(crate) fn stdio(&self, (columns, rows): (u16, u16)) -> Stdio {
        let [stdin, stdout, stderr] = &self.streams;
        let token =
            |stream: &Option<Stream>| stream.as_ref().map_or_else(Vec::new, |s| s.token.to_vec());
        Stdio {
            terminal: self.terminal,
            stdin: token(stdin),
            stdout: token(stdout),
            stderr: token(stderr),
            columns: columns.into(),
            rows: rows.into(),
            descriptors: self.further.iter().map(Further::descriptor).collect(),
            plain_line_feeds: self.plain_line_feeds,
            ..Stdio::default()
        }
    }

    /// Connects every stream to the guest whose state directory is `dir`.
    pub(crate) async fn connect(
        self,
        dir: impl AsFd,
        limit: Duration,
    ) -> Result<Connected, Failure> {
        let [stdin, stdout, stderr] = self.streams;
        let dir = dir.as_fd();
        let streams = tokio::try_join!(
            connect(dir, stdin, limit),
            connect(dir, stdout, limit),
            connect(dir, stderr, limit)
        )?;
        let mut further = Vec::new();
        for stream in self.further {
            if let Further::Stream(kind, stream) = stream
                && let Some((stream, connection)) = connect(dir, Some(stream), limit).await?
            {
                further.push((kind, stream, connection));
            }
        }
        Ok(Connected {
            streams: streams.into(),
            further,
        })
    }
}

/// Streams that are connected and not yet relayed.
#[derive(Debug)]
pub(crate) struct Connected {
    streams: [Option<(Stream, UnixStream)>; 3],
    further: Vec<(DescriptorKind, Stream, UnixStream)>,
}

/// Relays that work. Each ends at the end of its stream.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    pub(crate) inputs: Vec<oneshot::Receiver<()>>,
    pub(crate) outputs: Vec<oneshot::Receiver<()>>,
}

impl Relays {
    /// Has the last bytes of a process that has ended delivered, unless that is given up.
    pub(crate) async fn deliver(
        self,
        ended: &Ended,
        give_up: &Notify,
        terminal: Terminal,
    ) -> Result<(), Failure> {
        ended.raise().map_err(Failure::Relay)?;
        let drained = async {
            for output in self.outputs {
                // The other side is dropped only when the relay has ended.
                let _ = output.await;
            }
        };
        tokio::select! {
            () = drained => {}
            () = give_up.notified() => log::warn!("output of a process was given up"),
        }
        if matches!(terminal, Terminal::Inherited { .. }) {
            // What is typed from now on is for whoever has the terminal next.
            for input in self.inputs {
                let _ = timeout(INPUT_LIMIT, input).await;
            }
        }
        Ok(())
    }
}

impl Connected {
    /// Starts the relays.
    pub(crate) fn relay(self, ended: &Ended) -> Result<Relays, Failure> {
        let mut relays = Relays::default();
        let standard = self.streams.into_iter().flatten();
        let standard = standard.map(|(stream, connection)| (None, stream, connection));
        let further = self.further.into_iter();
        let further = further.map(|(kind, stream, connection)| (Some(kind), stream, connection));
        for (kind, stream, connection) in standard.chain(further) {
            let other = connection.try_clone().map_err(Failure::Relay)?;
            if let Some(source) = stream.source {
                let input = feed(source, other, ended.clone()).map_err(Failure::Relay)?;
                relays.inputs.push(input);
            }
            if let Some(sink) = stream.sink {
                let drain = match kind {
                    Some(DescriptorKind::SOCKET) => drain_socket,
                    _ => drain,
                };
                let output = drain(connection, sink, ended.clone()).map_err(Failure::Relay)?;
                relays.outputs.push(output);
            }
        }
        Ok(relays)
    }
}

async fn connect(
    dir: impl AsFd,
    stream: Option<Stream>,
    limit: Duration,
) -> Result<Option<(Stream, UnixStream)>, Failure> {
    let Some(stream) = stream else {
        return Ok(None);
    };
    let mut connection = vsock::connect(dir, STDIO_PORT, limit)
        .await
        .map_err(Failure::Stream)?;
    // The socket has room for it: nothing was written before but the request.
    connection
        .write_all(&stream.token)
        .await
        .map_err(Failure::Relay)?;
    let connection = connection.into_std().map_err(Failure::Relay)?;
    connection.set_nonblocking(false).map_err(Failure::Relay)?;
    Ok(Some((stream, connection)))
}

/// Whether a descriptor is `/dev/null`, which the guest has too.
fn is_null(fd: impl AsFd) -> bool {
    fstat(fd).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
            && (major(stat.st_rdev), minor(stat.st_rdev)) == NULL
    })
}
