//! The ttrpc face of the agent: checks and translates, and maps errors to statuses.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use cloister_container::ErrorKind;
use cloister_protocol::agent::{
    AddMemoryRequest, AddMemoryResponse, AddProcessorsRequest, AddProcessorsResponse,
    CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest,
    DeleteContainerResponse, ExecRequest, ExecResponse, ForwardRequest, ForwardResponse,
    HelloRequest, HelloResponse, PauseRequest, PauseResponse, ProcessesRequest, ProcessesResponse,
    ResizeTerminalRequest, ResizeTerminalResponse, ResolveRequest, ResolveResponse, ResumeRequest,
    ResumeResponse, SetNetworkRequest, SetNetworkResponse, ShutdownRequest, ShutdownResponse,
    SignalRequest, SignalResponse, StartContainerRequest, StartContainerResponse, StatsRequest,
    StatsResponse, UpdateRequest, UpdateResponse, WaitOomRequest, WaitOomResponse, WaitRequest,
    WaitResponse,
};
use cloister_protocol::agent_ttrpc::Agent;
use cloister_protocol::{MESSAGE_MAX, SPEC_MAX, VERSION};
use tokio::sync::Notify;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;

use crate::containers::{ContainerError, Containers};
use crate::forward::ForwardError;
use crate::network::NetworkError;
use crate::processors::{self, PROCESSORS};
use crate::resolve::ResolveError;
use crate::shares::ShareError;
use crate::slot;
use crate::stdio::StdioError;
use crate::sys;

/// When the agent came to life, for the host's timeline, in nanoseconds of CLOCK_BOOTTIME.
#[derive(Debug, Clone, Copy)]
pub struct Timeline {
    /// `main` was entered.
    pub init: u64,
    /// The host took the connection.
    pub ready: u64,
}

/// What answers the host's calls.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) containers: Arc<Containers>,
    pub(crate) timeline: Timeline,
    /// Told when the guest is to end.
    pub(crate) shutdown: Arc<Notify>,
}

type Reply<T> = ttrpc::Result<T>;

#[async_trait]
impl Agent for Service {
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> Reply<HelloResponse> {
        if request.version != VERSION {
            log::warn!("the host speaks version {}, not {VERSION}", request.version);
        }
        let uname = rustix::system::uname();
        Ok(HelloResponse {
            version: VERSION,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            kernel_release: uname.release().to_string_lossy().into_owned(),
            init_boottime_ns: self.timeline.init,
            ready_boottime_ns: self.timeline.ready,
            ..HelloResponse::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> Reply<CreateContainerResponse> {
        if request.spec.len() > SPEC_MAX {
            let message = format!("spec: more than {SPEC_MAX} bytes");
            return Err(status(Code::INVALID_ARGUMENT, message));
        }
        let containers = Arc::clone(&self.containers);
        let pid = finish(async move { containers.create(request).await }).await?;
        Ok(CreateContainerResponse {
            pid,
            ..CreateContainerResponse::default()
        })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> Reply<StartContainerResponse> {
        self.containers.start(&request.container_id).await?;
        Ok(StartContainerResponse::default())
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: DeleteContainerRequest,
    ) -> Reply<DeleteContainerResponse> {
        let containers = Arc::clone(&self.containers);
        finish(async move { containers.delete(&request.container_id).await }).await?;
        Ok(DeleteContainerResponse::default())
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> Reply<SignalResponse> {
        if !(1..=64).contains(&request.signal) {
            let message = format!("signal: {} is not 1 to 64", request.signal);
            return Err(status(Code::INVALID_ARGUMENT, message));
        }
        let id = &request.container_id;
        if request.exec_id.is_empty() {
            self.containers.signal(id, request.signal, request.all)?;
        } else {
            let running = self.containers.running(id, &request.exec_id)?;
            running.signal(request.signal)?;
        }
        Ok(SignalResponse::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> Reply<ExecResponse> {
        if request.process.len() > SPEC_MAX {
            let message = format!("process: more than {SPEC_MAX} bytes");
            return Err(status(Code::INVALID_ARGUMENT, message));
        }
        // Broken off with the connection, if it has to wait.
        let pid = self.containers.exec(request).await?;
        Ok(ExecResponse {
            pid,
            ..ExecResponse::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Reply<PauseResponse> {
        self.containers.pause(&request.container_id, true)?;
        Ok(PauseResponse::default())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Reply<ResumeResponse> {
        self.containers.pause(&request.container_id, false)?;
        Ok(ResumeResponse::default())
    }

    async fn processes(
        &self,
        _: &TtrpcContext,
        request: ProcessesRequest,
    ) -> Reply<ProcessesResponse> {
        let listing = self.containers.processes(&request.container_id).await?;
        Ok(ProcessesResponse {
            processes: listing.processes,
            omitted: listing.omitted,
            ..ProcessesResponse::default()
        })
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> Reply<UpdateResponse> {
        self.containers
            .update(&request.container_id, &request.resources)?;
        Ok(UpdateResponse::default())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Reply<StatsResponse> {
        Ok(StatsResponse {
            files: self.containers.stats(&request.container_id)?,
            ..StatsResponse::default()
        })
    }

    async fn set_network(
        &self,
        _: &TtrpcContext,
        request: SetNetworkRequest,
    ) -> Reply<SetNetworkResponse> {
        self.containers.set_network(request)?;
        Ok(SetNetworkResponse::default())
    }

    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> Reply<ForwardResponse> {
        self.containers.forward(request).await?;
        Ok(ForwardResponse::default())
    }

    async fn resolve(&self, _: &TtrpcContext, request: ResolveRequest) -> Reply<ResolveResponse> {
        self.containers.resolve(request).await?;
        Ok(ResolveResponse::default())
    }

    async fn wait_oom(&self, _: &TtrpcContext, request: WaitOomRequest) -> Reply<WaitOomResponse> {
        let count = self
            .containers
            .wait_oom(&request.container_id, request.known);
        Ok(WaitOomResponse {
            count: count.await?,
            ..WaitOomResponse::default()
        })
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Reply<WaitResponse> {
        let id = &request.container_id;
        let exit = if request.exec_id.is_empty() {
            let mut owner = Owner {
                containers: &self.containers,
                id: request.owner.then_some(id),
            };
            let exit = self.containers.wait(id).await;
            owner.id = None;
            exit?
        } else {
            self.containers.wait_exec(id, &request.exec_id).await?
        };
        Ok(WaitResponse {
            exit_code: exit.code,
            signal: exit.signal,
            oom_killed: exit.oom_killed,
            ..WaitResponse::default()
        })
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> Reply<ResizeTerminalResponse> {
        let side = |field: &str, length: u32| {
            let message = format!("{field}: {length} is more than {}", u16::MAX);
            u16::try_from(length).map_err(|_| status(Code::INVALID_ARGUMENT, message))
        };
        let columns = side("columns", request.columns)?;
        let rows = side("rows", request.rows)?;
        let id = &request.container_id;
        if request.exec_id.is_empty() {
            self.containers.resize(id, columns, rows)?;
        } else {
            let running = self.containers.running(id, &request.exec_id)?;
            running.resize(id, columns, rows)?;
        }
        Ok(ResizeTerminalResponse::default())
    }

    async fn add_processors(
        &self,
        _: &TtrpcContext,
        request: AddProcessorsRequest,
    ) -> Reply<AddProcessorsResponse> {
        // A processor that does not start is waited for, for seconds.
        let started = sys::on_thread("processors", move || {
            processors::bring_online(Path::new(PROCESSORS), request.count)
        });
        let count = started.await.and_then(|count| count).map_err(|e| {
            status(
                Code::INTERNAL,
                format!("cannot start the machine's processors: {e}"),
            )
        })?;
        Ok(AddProcessorsResponse {
            count,
            ..AddProcessorsResponse::default()
        })
    }

    async fn add_memory(
        &self,
        _: &TtrpcContext,
        request: AddMemoryRequest,
    ) -> Reply<AddMemoryResponse> {
        let device = slot::name(request.device);
        if !slot::is_bound(&device) {
            slot::bind(&device).map_err(|e| {
                let problem = format!("memory device {device}: its driver does not take it: {e}");
                status(Code::INTERNAL, problem)
            })?;
        }
        Ok(AddMemoryResponse::default())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Reply<ShutdownResponse> {
        let containers = Arc::clone(&self.containers);
        finish(async move {
            containers.delete_all().await;
            Ok(())
        })
        .await?;
        self.shutdown.notify_one();
        Ok(ShutdownResponse::default())
    }
}

/// Whoever waits for a container of its own. If it goes away, so does the container.
struct Owner<'a> {
    containers: &'a Arc<Containers>,
    id: Option<&'a String>,
}

impl Drop for Owner<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id.cloned() else {
            return;
        };
        let containers = Arc::clone(self.containers);
        tokio::spawn(async move {
            log::warn!("container {id:?}: the host has let go of it");
            if let Err(e) = containers.delete(&id).await {
                log::error!("{}", crate::chain(&e));
            }
        });
    }
}

/// Does `work` to its end, also when the caller's connection breaks meanwhile: ttrpc drops the
/// handlers of a connection with it.
async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, ContainerError>> + Send + 'static,
) -> Reply<T> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(result?),
        Err(e) => Err(status(Code::INTERNAL, e.to_string())),
    }
}

impl From<ContainerError> for ttrpc::Error {
    fn from(error: ContainerError) -> Self {
        let code = match &error {
            ContainerError::Id { .. }
            | ContainerError::ExecId { .. }
            | ContainerError::Join { .. }
            | ContainerError::Missing { .. }
            | ContainerError::Network(NetworkError::Name { .. })
            | ContainerError::Forward(ForwardError::Port(_) | ForwardError::Token)
            | ContainerError::Resolve(ResolveError::Address(_))
            | ContainerError::Stdio(StdioError::Token { .. } | StdioError::Shape { .. })
            | ContainerError::Share(
                ShareError::Tag { .. } | ShareError::Path { .. } | ShareError::Open { .. },
            ) => Code::INVALID_ARGUMENT,
            ContainerError::NotFound { .. } | ContainerError::NoExec { .. } => Code::NOT_FOUND,
            ContainerError::Exists { .. } | ContainerError::ExecExists { .. } => {
                Code::ALREADY_EXISTS
            }
            ContainerError::TooMany | ContainerError::TooManyExecs => Code::RESOURCE_EXHAUSTED,
            ContainerError::State { .. }
            | ContainerError::Stdio(StdioError::Missing { .. })
            | ContainerError::Forward(ForwardError::Missing | ForwardError::Connect { .. }) => {
                Code::FAILED_PRECONDITION
            }
            ContainerError::Container(e) => match e.kind() {
                ErrorKind::InvalidArgument => Code::INVALID_ARGUMENT,
                ErrorKind::AlreadyExists => Code::ALREADY_EXISTS,
                ErrorKind::FailedPrecondition => Code::FAILED_PRECONDITION,
                ErrorKind::Internal => Code::INTERNAL,
            },
            ContainerError::Stdio(StdioError::Pipe { .. })
            | ContainerError::Share(ShareError::Mount { .. })
            | ContainerError::Resize { .. }
            | ContainerError::Network(_)
            | ContainerError::Forward(_)
            | ContainerError::Resolve(_)
            | ContainerError::Thread { .. }
            | ContainerError::Usage { .. }
            | ContainerError::Undead { .. } => Code::INTERNAL,
        };
        status(code, crate::chain(&error))
    }
}

fn status(code: Code, mut message: String) -> ttrpc::Error {
    message.truncate(message.floor_char_boundary(MESSAGE_MAX));
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}
