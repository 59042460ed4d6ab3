//! Calls to the agent in a guest.
//!
//! Whatever comes back was said by a guest that may be hostile: every call has a time limit, and
//! texts are cleaned and cut before anybody sees them.

use std::os::fd::AsFd;
use std::time::Duration;

use cloister_protocol::agent::{
    BindSource, CreateContainerRequest, DeleteContainerRequest, HelloRequest, HelloResponse,
    ResizeTerminalRequest, SharedPath, SignalRequest, StartContainerRequest, Stdio, WaitRequest,
};
use cloister_protocol::agent_ttrpc::AgentClient;
use cloister_protocol::{AGENT_PORT, VERSION};
use protobuf::MessageField;
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use crate::signal::Signal;
use crate::text::printable;
use crate::vsock::{self, ConnectError};

/// The longest text of a guest's error that is shown, in bytes.
const TEXT_MAX: usize = 4096;

/// A connection to an agent whose version is right.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
    limit: Duration,
}

/// How a workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, if it exited.
    pub code: u32,
    /// The signal that ended it, or 0.
    pub signal: u32,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The guest cannot be reached.
    #[error("cannot reach the agent")]
    Connect(#[from] ConnectError),
    /// The guest is of another build.
    #[error(
        "the agent speaks protocol version {got}, this cloister speaks {VERSION}: the guest image does not belong to this installation"
    )]
    Version {
        /// The agent's version.
        got: u32,
    },
    /// The agent said no; the text is its own.
    #[error("{message}")]
    Refused {
        /// Whether it said that there is no such thing, or that it is not in the right state.
        gone: bool,
        /// Its reason.
        message: String,
    },
    /// No answer came in time.
    #[error("the agent did not answer {call} within {} s", limit.as_secs())]
    Timeout {
        /// What was asked.
        call: &'static str,
        /// What was waited for.
        limit: Duration,
    },
    /// The connection broke.
    #[error("the connection to the agent broke during {call}: {message}")]
    Lost {
        /// What was asked.
        call: &'static str,
        /// What the transport says.
        message: String,
    },
}

impl Agent {
    /// Greets the agent at the other end of `stream`.
    ///
    /// # Errors
    /// [`AgentError::Version`] if it is of another build, or if it does not answer within `limit`,
    /// which then also holds for every call.
    pub async fn greet(
        stream: UnixStream,
        limit: Duration,
    ) -> Result<(Self, HelloResponse), AgentError> {
        let client = AgentClient::new(Client::new(Socket::new(stream)));
        let this = Self { client, limit };
        let request = HelloRequest {
            version: VERSION,
            ..HelloRequest::default()
        };
        let call = this.client.hello(context(), &request);
        let hello = this.bounded("Hello", call).await?;
        if hello.version != VERSION {
            return Err(AgentError::Version { got: hello.version });
        }
        Ok((this, hello))
    }

    /// Connects to the agent of the guest whose state directory is `dir`, and greets it.
    ///
    /// # Errors
    /// As [`Agent::greet`], or if the guest cannot be reached.
    pub async fn connect(dir: impl AsFd, limit: Duration) -> Result<Self, AgentError> {
        let stream = vsock::connect(dir, AGENT_PORT, limit).await?;
        Ok(Self::greet(stream, limit).await?.0)
    }

    /// Builds a container. `bind_sources` are the mounts by index and where they are shared.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn create(
        &self,
        id: &str,
        spec: Vec<u8>,
        rootfs: SharedPath,
        bind_sources: Vec<(u32, SharedPath)>,
        stdio: Stdio,
    ) -> Result<(), AgentError> {
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            spec,
            rootfs: MessageField::some(rootfs),
            bind_sources: bind_sources
                .into_iter()
                .map(|(index, source)| BindSource {
                    index,
                    source: MessageField::some(source),
                    ..BindSource::default()
                })
                .collect(),
            stdio: MessageField::some(stdio),
            ..CreateContainerRequest::default()
        };
        let call = self.client.create_container(context(), &request);
        self.bounded("CreateContainer", call).await?;
        Ok(())
    }

    /// Starts the user's program.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn start(&self, id: &str) -> Result<(), AgentError> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
            ..StartContainerRequest::default()
        };
        let call = self.client.start_container(context(), &request);
        self.bounded("StartContainer", call).await?;
        Ok(())
    }

    /// Takes a container apart and writes its file systems back.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn delete(&self, id: &str) -> Result<(), AgentError> {
        let request = DeleteContainerRequest {
            container_id: id.to_owned(),
            ..DeleteContainerRequest::default()
        };
        let call = self.client.delete_container(context(), &request);
        self.bounded("DeleteContainer", call).await?;
        Ok(())
    }

    /// Sends a signal to a container's init process, or to all its processes.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn signal(&self, id: &str, signal: Signal, all: bool) -> Result<(), AgentError> {
        let request = SignalRequest {
            container_id: id.to_owned(),
            signal: signal.number(),
            all,
            ..SignalRequest::default()
        };
        let call = self.client.signal(context(), &request);
        self.bounded("Signal", call).await?;
        Ok(())
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn resize(&self, id: &str, columns: u16, rows: u16) -> Result<(), AgentError> {
        let request = ResizeTerminalRequest {
            container_id: id.to_owned(),
            columns: columns.into(),
            rows: rows.into(),
            ..ResizeTerminalRequest::default()
        };
        let call = self.client.resize_terminal(context(), &request);
        self.bounded("ResizeTerminal", call).await?;
        Ok(())
    }

    /// Waits, for as long as it takes, until the user's program has ended.
    ///
    /// # Errors
    /// The agent's reason, or that the connection broke.
    pub async fn wait(&self, id: &str) -> Result<Exit, AgentError> {
        let request = WaitRequest {
            container_id: id.to_owned(),
            ..WaitRequest::default()
        };
        let answer = self.client.wait(context(), &request).await;
        let answer = answer.map_err(|e| error("Wait", e))?;
        Ok(Exit {
            // What a process cannot have done is cut to what it can.
            code: answer.exit_code & 0xff,
            signal: Signal::from_number(answer.signal).map_or(0, Signal::number),
        })
    }

    async fn bounded<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        match timeout(self.limit, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(e)) => Err(error(call, e)),
            Err(_) => Err(AgentError::Timeout {
                call,
                limit: self.limit,
            }),
        }
    }
}

fn context() -> ttrpc::context::Context {
    ttrpc::context::Context::default()
}

fn error(call: &'static str, error: ttrpc::Error) -> AgentError {
    match error {
        ttrpc::Error::RpcStatus(status) => AgentError::Refused {
            gone: matches!(
                status.code.enum_value(),
                Ok(ttrpc::Code::NOT_FOUND | ttrpc::Code::FAILED_PRECONDITION)
            ),
            message: printable(&status.message, TEXT_MAX),
        },
        other => AgentError::Lost {
            call,
            message: printable(&other.to_string(), TEXT_MAX),
        },
    }
}
