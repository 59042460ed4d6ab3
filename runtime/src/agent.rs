//! Calls to the agent in a guest.
//!
//! Whatever comes back was said by a guest that may be hostile: every call has a time limit, every
//! answer a largest size, and texts are cleaned and cut before anybody sees them.

mod bounded;
mod machine;

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::Duration;

use cloister_protocol::agent::{
    BindSource, CreateContainerRequest, DeleteContainerRequest, ExecRequest, HelloRequest,
    HelloResponse, PauseRequest, Process, ProcessesRequest, ResizeTerminalRequest, ResumeRequest,
    SharedNamespace, SharedPath, ShutdownRequest, SignalRequest, StartContainerRequest,
    StatsRequest, Stdio, UpdateRequest, WaitOomRequest, WaitRequest,
};
use cloister_protocol::agent_ttrpc::AgentClient;
use cloister_protocol::{AGENT_PORT, ANSWER_MAX, LISTING_MAX, PROCESSES_MAX, VERSION};
use oci_spec::runtime::Hooks;
use protobuf::MessageField;
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use self::bounded::Bounded;
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

/// Which process of which container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessName<'a> {
    /// The container.
    pub container: &'a str,
    /// An executed process; empty for the container's first.
    pub exec: &'a str,
}

impl<'a> ProcessName<'a> {
    /// The first process of a container.
    #[must_use]
    pub fn init(container: &'a str) -> Self {
        Self {
            container,
            exec: "",
        }
    }
}

/// What a container is built from.
#[derive(Debug, Clone)]
pub struct CreatePlan {
    /// The bytes of `config.json`.
    pub spec: Vec<u8>,
    /// Where the root file system is shared.
    pub rootfs: SharedPath,
    /// The bind mounts by index, and where their sources are shared.
    pub bind_sources: Vec<(u32, SharedPath)>,
    /// The standard streams.
    pub stdio: Stdio,
    /// The bundle's directory on this machine, for hooks to be told.
    pub bundle: String,
    /// Types of namespaces, and the containers with which each is shared.
    pub namespaces: Vec<(String, String)>,
}

/// How a workload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, if it exited.
    pub code: u32,
    /// The signal that ended it, or 0.
    pub signal: u32,
    /// Whether the guest's OOM killer has ended it, or another process of its container.
    pub oom_killed: bool,
}

impl Exit {
    /// What becomes of whoever is in a machine that goes.
    #[must_use]
    pub fn killed() -> Self {
        Self {
            code: 0,
            signal: Signal::KILL.number(),
            oom_killed: false,
        }
    }
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
        Self::greet_bounded(stream, limit, ANSWER_MAX).await
    }

    /// The same for calls whose answers list what there is: with a higher bound of what an answer
    /// takes.
    ///
    /// # Errors
    /// As [`Agent::greet`].
    pub async fn greet_for_listings(
        stream: UnixStream,
        limit: Duration,
    ) -> Result<(Self, HelloResponse), AgentError> {
        Self::greet_bounded(stream, limit, LISTING_MAX).await
    }

    async fn greet_bounded(
        stream: UnixStream,
        limit: Duration,
        max: u32,
    ) -> Result<(Self, HelloResponse), AgentError> {
        let stream = Bounded::new(stream, max);
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

    /// The same for [`Agent::processes`] and [`Agent::stats`].
    ///
    /// # Errors
    /// As [`Agent::connect`].
    pub async fn connect_for_listings(dir: impl AsFd, limit: Duration) -> Result<Self, AgentError> {
        let stream = vsock::connect(dir, AGENT_PORT, limit).await?;
        Ok(Self::greet_for_listings(stream, limit).await?.0)
    }

    /// Builds a container.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn create(&self, id: &str, plan: CreatePlan) -> Result<(), AgentError> {
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            spec: plan.spec,
            rootfs: MessageField::some(plan.rootfs),
            bind_sources: plan
                .bind_sources
                .into_iter()
                .map(|(index, source)| BindSource {
                    index,
                    source: MessageField::some(source),
                    ..BindSource::default()
                })
                .collect(),
            stdio: MessageField::some(plan.stdio),
            bundle: plan.bundle,
            namespaces: plan
                .namespaces
                .into_iter()
                .map(|(kind, container_id)| SharedNamespace {
                    kind,
                    container_id,
                    ..SharedNamespace::default()
                })
                .collect(),
            ..CreateContainerRequest::default()
        };
        let call = self.client.create_container(context(), &request);
        self.bounded("CreateContainer", call).await?;
        Ok(())
    }

    /// Starts the user's program. `hooks` run before it and take the time that they are given.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn start(&self, id: &str, hooks: Option<&Hooks>) -> Result<(), AgentError> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
            ..StartContainerRequest::default()
        };
        let call = self.client.start_container(context(), &request);
        let hooks = hooks.and_then(|hooks| hooks.start_container().as_deref());
        let limit = hooks
            .unwrap_or_default()
            .iter()
            .try_fold(self.limit, |limit, hook| {
                let seconds = u64::try_from(hook.timeout()?).ok()?;
                limit.checked_add(Duration::from_secs(seconds))
            });
        match limit {
            Some(limit) => bounded("StartContainer", limit, call).await?,
            // One of them may take any time.
            None => call.await.map_err(|e| error("StartContainer", e))?,
        };
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

    /// Executes a further program in a container. Waits for as long as it takes if the container
    /// may be paused.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn exec(
        &self,
        process: ProcessName<'_>,
        document: Vec<u8>,
        stdio: Stdio,
        cgroup: String,
        ignore_paused: bool,
    ) -> Result<(), AgentError> {
        let request = ExecRequest {
            container_id: process.container.to_owned(),
            exec_id: process.exec.to_owned(),
            process: document,
            stdio: MessageField::some(stdio),
            ignore_paused,
            cgroup,
            ..ExecRequest::default()
        };
        let call = self.client.exec(context(), &request);
        if ignore_paused {
            call.await.map_err(|e| error("Exec", e))?;
        } else {
            self.bounded("Exec", call).await?;
        }
        Ok(())
    }

    /// Sends a signal to a process, or to all processes of its container.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn signal(
        &self,
        process: ProcessName<'_>,
        signal: Signal,
        all: bool,
    ) -> Result<(), AgentError> {
        let request = SignalRequest {
            container_id: process.container.to_owned(),
            exec_id: process.exec.to_owned(),
            signal: signal.number(),
            all,
            ..SignalRequest::default()
        };
        let call = self.client.signal(context(), &request);
        self.bounded("Signal", call).await?;
        Ok(())
    }

    /// Sets the size of a process's terminal.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn resize(
        &self,
        process: ProcessName<'_>,
        columns: u16,
        rows: u16,
    ) -> Result<(), AgentError> {
        let request = ResizeTerminalRequest {
            container_id: process.container.to_owned(),
            exec_id: process.exec.to_owned(),
            columns: columns.into(),
            rows: rows.into(),
            ..ResizeTerminalRequest::default()
        };
        let call = self.client.resize_terminal(context(), &request);
        self.bounded("ResizeTerminal", call).await?;
        Ok(())
    }

    /// Waits, for as long as it takes, until a process has ended. What is waited for as its `owner`
    /// ends when the caller does.
    ///
    /// # Errors
    /// The agent's reason, or that the connection broke.
    pub async fn wait(&self, process: ProcessName<'_>, owner: bool) -> Result<Exit, AgentError> {
        let request = WaitRequest {
            container_id: process.container.to_owned(),
            exec_id: process.exec.to_owned(),
            owner,
            ..WaitRequest::default()
        };
        let answer = self.client.wait(context(), &request).await;
        let answer = answer.map_err(|e| error("Wait", e))?;
        Ok(Exit {
            // What a process cannot have done is cut to what it can.
            code: answer.exit_code & 0xff,
            signal: Signal::from_number(answer.signal).map_or(0, Signal::number),
            oom_killed: answer.oom_killed,
        })
    }

    /// Ends every container of the guest, and then the guest.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn shutdown(&self) -> Result<(), AgentError> {
        let request = ShutdownRequest::default();
        let call = self.client.shutdown(context(), &request);
        self.bounded("Shutdown", call).await?;
        Ok(())
    }

    /// Stops every process of a container where it is.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn pause(&self, id: &str) -> Result<(), AgentError> {
        let request = PauseRequest {
            container_id: id.to_owned(),
            ..PauseRequest::default()
        };
        let call = self.client.pause(context(), &request);
        self.bounded("Pause", call).await?;
        Ok(())
    }

    /// Lets the processes of a container go on.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn resume(&self, id: &str) -> Result<(), AgentError> {
        let request = ResumeRequest {
            container_id: id.to_owned(),
            ..ResumeRequest::default()
        };
        let call = self.client.resume(context(), &request);
        self.bounded("Resume", call).await?;
        Ok(())
    }

    /// Lists the processes of a container, [`PROCESSES_MAX`] at most. What is told of them is the
    /// guest's word: texts are cleaned, numbers are not.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn processes(&self, id: &str) -> Result<Vec<Process>, AgentError> {
        let request = ProcessesRequest {
            container_id: id.to_owned(),
            ..ProcessesRequest::default()
        };
        let call = self.client.processes(context(), &request);
        let answer = self.bounded("Processes", call).await?;
        let mut processes = answer.processes;
        let more = processes.len().saturating_sub(PROCESSES_MAX);
        processes.truncate(PROCESSES_MAX);
        let omitted = u64::from(answer.omitted).saturating_add(more as u64);
        if omitted > 0 {
            log::warn!("{omitted} more processes are not listed");
        }
        for process in &mut processes {
            process.command = printable(&process.command, TEXT_MAX);
            process.state = printable(&process.state, 1);
        }
        Ok(processes)
    }

    /// Changes the limits of a container: a `linux.resources` object as JSON.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn update(&self, id: &str, resources: Vec<u8>) -> Result<(), AgentError> {
        let request = UpdateRequest {
            container_id: id.to_owned(),
            resources,
            ..UpdateRequest::default()
        };
        let call = self.client.update(context(), &request);
        self.bounded("Update", call).await?;
        Ok(())
    }

    /// The files of a container's cgroup, as the guest has them.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn stats(&self, id: &str) -> Result<HashMap<String, String>, AgentError> {
        let request = StatsRequest {
            container_id: id.to_owned(),
            ..StatsRequest::default()
        };
        let call = self.client.stats(context(), &request);
        Ok(self.bounded("Stats", call).await?.files)
    }

    /// Waits, for as long as it takes, until the OOM killer has ended another number of a
    /// container's processes than `known`; gives the number.
    ///
    /// # Errors
    /// The agent's reason, or that the connection broke.
    pub async fn wait_oom(&self, id: &str, known: u64) -> Result<u64, AgentError> {
        let request = WaitOomRequest {
            container_id: id.to_owned(),
            known,
            ..WaitOomRequest::default()
        };
        let answer = self.client.wait_oom(context(), &request).await;
        Ok(answer.map_err(|e| error("WaitOom", e))?.count)
    }

    async fn bounded<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, AgentError> {
        bounded(call, self.limit, answer).await
    }
}

async fn bounded<T>(
    call: &'static str,
    limit: Duration,
    answer: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    match timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => Err(error(call, e)),
        Err(_) => Err(AgentError::Timeout { call, limit }),
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
