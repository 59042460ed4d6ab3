//! Prepares the standard streams of a container: claims the host's connections, makes the pipes,
//! and says what is to be relayed once the container exists.

use std::io;
use std::os::fd::OwnedFd;

use cloister_container::WindowSize;
use cloister_protocol::TOKEN_LEN;
use cloister_protocol::agent::Stdio;
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
    #[error("stdio.{stream}: cannot make a pipe")]
    Pipe {
        /// The field of the request.
        stream: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// The standard streams of a container that is about to be made.
pub(crate) struct Streams {
    /// What the container gets.
    pub(crate) container: cloister_container::Stdio,
    /// What is to be relayed.
    pub(crate) relayed: Relayed,
}

/// The host's connections, with the agent's end of what they are relayed to.
pub(crate) enum Relayed {
    /// Separate streams.
    Pipes {
        stdin: Option<(Socket, InputPipe)>,
        outputs: Vec<(OutputPipe, Socket)>,
    },
    /// A terminal, whose master the container will give.
    Terminal(Socket),
}

/// Waits for the connections that `stdio` names and makes the pipes.
pub(crate) async fn prepare(tokens: &Tokens, stdio: &Stdio) -> Result<Streams, StdioError> {
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
        return Ok(Streams {
            container: cloister_container::Stdio::Terminal { size },
            relayed: Relayed::Terminal(socket),
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

    let (stdin, stdin_relay) = match claim(tokens, "stdin", stdin).await? {
        Some(socket) => {
            let (read, write) = pipe("stdin")?;
            let write = InputPipe::new(write).map_err(pipe_error("stdin"))?;
            (Some(read), Some((socket, write)))
        }
        None => (None, None),
    };
    let mut outputs = Vec::new();
    let mut output = async |stream, token| {
        let Some(socket) = claim(tokens, stream, token).await? else {
            return Ok(None);
        };
        let (read, write) = pipe(stream)?;
        let read = OutputPipe::new(read).map_err(pipe_error(stream))?;
        outputs.push((read, socket));
        Ok(Some(write))
    };
    let stdout = output("stdout", stdout).await?;
    let stderr = output("stderr", stderr).await?;
    Ok(Streams {
        container: cloister_container::Stdio::Streams {
            stdin,
            stdout,
            stderr,
        },
        relayed: Relayed::Pipes {
            stdin: stdin_relay,
            outputs,
        },
    })
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
