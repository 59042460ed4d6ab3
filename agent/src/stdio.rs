//! Prepares the streams of a process: claims the host's connections, makes the pipes,
//! and says what is to be relayed once the container exists.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use cloister_container::WindowSize;
use cloister_protocol::agent::Stdio;
use cloister_protocol::agent::descriptor::Kind;
use cloister_protocol::{DESCRIPTORS_MAX, DEVICES, TOKEN_LEN};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::relay::{InputPipe, OutputPipe};
use crate::socket::Socket;
use crate::tokens::{Token, Tokens};

/// Why the streams cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    /// The request is at fault.
    #[error("stdio.{stream}: a token has {TOKEN_LEN} bytes, {length} given")]
    Token {
        /// The field of the request.
        stream: &'static str,
        /// The length that was given.
        length: usize,
    },
    /// The request is at fault.
    #[error("stdio.{stream}: {problem}")]
    Shape {
        /// The field of the request.
        stream: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The host has not made the connection.
    #[error("stdio.{stream}: no connection with this token has come")]
    Missing {
        /// The field of the request.
        stream: &'static str,
    },
    /// The guest could not do it.
    #[error("stdio.{stream}: cannot make what the process finds there")]
    Pipe {
        /// The field of the request.
        stream: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The streams of a process that is about to be made.
pub(crate) struct Streams {
    /// What the process gets as its standard streams.
    pub(crate) container: cloister_container::Stdio,
    /// What it gets from number 3 on.
    pub(crate) descriptors: Vec<OwnedFd>,
    /// What is to be relayed.
    pub(crate) relayed: Relayed,
}

/// The host's connections, with the agent's end of what they are relayed to.
#[derive(Default)]
pub(crate) struct Relayed {
    pub(crate) inputs: Vec<(Socket, InputPipe)>,
    pub(crate) outputs: Vec<(OutputPipe, Socket)>,
    /// The agent's end of a socket pair, and the host's connection.
    pub(crate) sockets: Vec<(Socket, Socket)>,
    /// A terminal, whose master the container will give.
    pub(crate) terminal: Option<Socket>,
}

/// Waits for the connections that `stdio` names and makes the pipes.
pub(crate) async fn prepare(tokens: &Tokens, stdio: &Stdio) -> Result<Streams, StdioError> {
    let mut relayed = Relayed::default();
    let descriptors = descriptors(tokens, stdio, &mut relayed).await?;
    let stdin = token("stdin", &stdio.stdin)?;
    let stdout = token("stdout", &stdio.stdout)?;
    let stderr = token("stderr", &stdio.stderr)?;
    if stdio.terminal {
        for (stream, token) in [("stdout", stdout), ("stderr", stderr)] {
            if token.is_some() {
                return Err(StdioError::Shape {
                    stream,
                    problem: "a terminal has one stream, stdin",
                });
            }
        }
        let size = window_size(stdio.columns, stdio.rows)?;
        let socket = claim(tokens, "stdin", stdin)
            .await?
            .ok_or(StdioError::Shape {
                stream: "stdin",
                problem: "a terminal needs a stream",
            })?;
        relayed.terminal = Some(socket);
        return Ok(Streams {
            container: cloister_container::Stdio::Terminal {
                size,
                plain_line_feeds: stdio.plain_line_feeds,
            },
            descriptors,
            relayed,
        });
    }
    if stdin.is_some() && (stdin == stdout || stdin == stderr)
        || stdout.is_some() && stdout == stderr
    {
        return Err(StdioError::Shape {
            stream: "stdout",
            problem: "two streams have the same token",
        });
    }

    let stdin = match claim(tokens, "stdin", stdin).await? {
        Some(socket) => Some(relayed.input("stdin", socket)?),
        None => None,
    };
    let mut output = async |stream, token| match claim(tokens, stream, token).await? {
        Some(socket) => relayed.output(stream, socket).map(Some),
        None => Ok(None),
    };
    let stdout = output("stdout", stdout).await?;
    let stderr = output("stderr", stderr).await?;
    Ok(Streams {
        container: cloister_container::Stdio::Streams {
            stdin,
            stdout,
            stderr,
        },
        descriptors,
        relayed,
    })
}

impl Relayed {
    /// Gives the end of a pipe that a process reads what the host sends from.
    fn input(&mut self, stream: &'static str, socket: Socket) -> Result<OwnedFd, StdioError> {
        let (read, write) = pipe(stream)?;
        let write = InputPipe::new(write).map_err(pipe_error(stream))?;
        self.inputs.push((socket, write));
        Ok(read)
    }

    /// Gives the end of a pipe that a process writes what the host receives to.
    fn output(&mut self, stream: &'static str, socket: Socket) -> Result<OwnedFd, StdioError> {
        let (read, write) = pipe(stream)?;
        let read = OutputPipe::new(read).map_err(pipe_error(stream))?;
        self.outputs.push((read, socket));
        Ok(write)
    }

    /// Gives a socket that stands for the host's.
    fn socket(&mut self, stream: &'static str, socket: Socket) -> Result<OwnedFd, StdioError> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|errno| pipe_error(stream)(errno.into()))?;
        let ours = Socket::new(ours).map_err(pipe_error(stream))?;
        self.sockets.push((ours, socket));
        Ok(theirs)
    }
}

/// What a process finds from number 3 on.
async fn descriptors(
    tokens: &Tokens,
    stdio: &Stdio,
    relayed: &mut Relayed,
) -> Result<Vec<OwnedFd>, StdioError> {
    const STREAM: &str = "descriptors";
    let shape = |problem| StdioError::Shape {
        stream: STREAM,
        problem,
    };
    if stdio.descriptors.len() > DESCRIPTORS_MAX {
        return Err(shape("too many"));
    }
    let mut fds = Vec::new();
    for descriptor in &stdio.descriptors {
        let kind = descriptor.kind.enum_value();
        let kind = kind.map_err(|_| shape("of an unknown kind"))?;
        if kind == Kind::DEVICE {
            let device = DEVICES.iter().find(|&&name| name == descriptor.device);
            let device = device.ok_or_else(|| shape("no device that can be given"))?;
            let file = File::options()
                .read(true)
                .write(true)
                .open(format!("/dev/{device}"));
            fds.push(file.map_err(pipe_error(STREAM))?.into());
            continue;
        }
        let token = token(STREAM, &descriptor.token)?;
        let socket = claim(tokens, STREAM, token).await?;
        let socket = socket.ok_or_else(|| shape("a stream needs a token"))?;
        fds.push(match kind {
            Kind::READ => relayed.input(STREAM, socket)?,
            Kind::WRITE => relayed.output(STREAM, socket)?,
            Kind::DEVICE | Kind::SOCKET => relayed.socket(STREAM, socket)?,
        });
    }
    Ok(fds)
}

/// A window size that the specification's `consoleSize` may not override; `None` if not given.
fn window_size(columns: u32, rows: u32) -> Result<Option<WindowSize>, StdioError> {
    if columns == 0 && rows == 0 {
        return Ok(None);
    }
    let side = |stream, length: u32| {
        u16::try_from(length).map_err(|_| StdioError::Shape {
            stream,
            problem: "a terminal has at most 65535 columns and rows",
        })
    };
    Ok(Some(WindowSize {
        columns: side("columns", columns)?,
        rows: side("rows", rows)?,
    }))
}

fn token(stream: &'static str, bytes: &[u8]) -> Result<Option<Token>, StdioError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    bytes.try_into().map(Some).map_err(|_| StdioError::Token {
        stream,
        length: bytes.len(),
    })
}

async fn claim(
    tokens: &Tokens,
    stream: &'static str,
    token: Option<Token>,
) -> Result<Option<Socket>, StdioError> {
    let Some(token) = token else {
        return Ok(None);
    };
    match tokens.claim(token).await {
        Some(socket) => Ok(Some(socket)),
        None => Err(StdioError::Missing { stream }),
    }
}

fn pipe(stream: &'static str) -> Result<(OwnedFd, OwnedFd), StdioError> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|errno| pipe_error(stream)(errno.into()))
}

fn pipe_error(stream: &'static str) -> impl Fn(io::Error) -> StdioError {
    move |source| StdioError::Pipe { stream, source }
}
