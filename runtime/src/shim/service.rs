//! The task service of containerd: its messages, and what they ask of [`Tasks`].
//!
//! Versions 2 and 3 have the same messages under another name, and are served alike.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::{Task, create_task};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use ttrpc::asynchronous::{Service, TtrpcContext};

use super::failure::Failure;
use super::streams::Names;
use super::tasks::{Creation, Tasks, bundle_exists};
use super::timestamp;

/// Answers containerd.
#[derive(Clone)]
pub(crate) struct TaskService(pub(crate) Arc<Tasks>);

impl TaskService {
    /// The service under both of its names.
    pub(crate) fn services(&self) -> HashMap<String, Service> {
        let new = || create_task(Arc::new(self.clone()) as Arc<dyn Task + Send + Sync>);
        let mut all = new();
        for (name, service) in new() {
            all.insert(name.replace(".v3.", ".v2."), service);
        }
        all
    }
}

/// Does to the end what was begun, whoever waits for it.
pub(crate) async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> ttrpc::Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(result?),
        Err(e) => Err(ttrpc::Error::Others(e.to_string())),
    }
}

fn empty() -> api::Empty {
    api::Empty::default()
}

/// A task cannot begin where another one was; a parent, which runc would look at beside a checkpoint alone, is no
/// less a wish for that.
fn refuse_restoring(request: &api::CreateTaskRequest) -> Result<(), Failure> {
    let wishes = [
        ("checkpoint", &request.checkpoint),
        ("parent_checkpoint", &request.parent_checkpoint),
    ];
    match wishes.iter().find(|(_, path)| !path.is_empty()) {
        None => Ok(()),
        Some((field, path)) => Err(Failure::unimplemented(format!(
            "{field} {path:?}: restore is not supported: a container's processes are in a virtual machine"
        ))),
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(
        &self,
        _: &TtrpcContext,
        request: api::StateRequest,
    ) -> ttrpc::Result<api::StateResponse> {
        Ok(self.0.state(&request.id, &request.exec_id)?)
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        refuse_restoring(&request)?;
        let creation = Creation {
            id: request.id,
            bundle: request.bundle.into(),
            rootfs: request.rootfs,
            names: Names {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            options: request.options.into_option(),
            is_sandbox: false,
        };
        bundle_exists(&creation.bundle)?;
        let tasks = Arc::clone(&self.0);
        let pid = whole(async move { tasks.create(creation).await }).await?;
        Ok(api::CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        let tasks = Arc::clone(&self.0);
        let pid = whole(async move { tasks.start(&request.id, &request.exec_id).await }).await?;
        Ok(api::StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let tasks = Arc::clone(&self.0);
        let deleted =
            whole(async move { tasks.delete(&request.id, &request.exec_id).await }).await?;
        Ok(api::DeleteResponse {
            pid: deleted.pid,
            exit_status: deleted.ended.code,
            exited_at: MessageField::some(timestamp(deleted.ended.at)),
            ..Default::default()
        })
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: api::PidsRequest,
    ) -> ttrpc::Result<api::PidsResponse> {
        let processes = self.0.pids(&request.id)?;
        let processes = processes
            .into_iter()
            .map(|(pid, exec_id)| api::ProcessInfo {
                pid,
                info: details(exec_id).into(),
                ..Default::default()
            });
        Ok(api::PidsResponse {
            processes: processes.collect(),
            ..Default::default()
        })
    }

    async fn pause(
        &self,
        _: &TtrpcContext,
        request: api::PauseRequest,
    ) -> ttrpc::Result<api::Empty> {
        let tasks = Arc::clone(&self.0);
        whole(async move { tasks.pause(&request.id).await }).await?;
        Ok(empty())
    }

    async fn resume(
        &self,
        _: &TtrpcContext,
        request: api::ResumeRequest,
    ) -> ttrpc::Result<api::Empty> {
        let tasks = Arc::clone(&self.0);
        whole(async move { tasks.resume(&request.id).await }).await?;
        Ok(empty())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: api::CheckpointTaskRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.0.container(&request.id)?;
        Err(Failure::unimplemented(
            "checkpoint is not supported: a container's processes are in a virtual machine",
        )
        .into())
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<api::Empty> {
        let tasks = Arc::clone(&self.0);
        whole(async move {
            let api::KillRequest {
                id,
                exec_id,
                signal,
                all,
                ..
            } = request;
            tasks.kill(&id, &exec_id, signal, all).await
        })
        .await?;
        Ok(empty())
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<api::Empty> {
        let names = Names {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let document = request.spec.into_option().unwrap_or_default().value;
        self.0
            .exec(&request.id, &request.exec_id, names, document)?;
        Ok(empty())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<api::Empty> {
        let (id, exec_id) = (&request.id, &request.exec_id);
        self.0.resize(id, exec_id, request.width, request.height)?;
        Ok(empty())
    }

    async fn close_io(
        &self,
        _: &TtrpcContext,
        request: api::CloseIORequest,
    ) -> ttrpc::Result<api::Empty> {
        if request.stdin {
            self.0.close_io(&request.id, &request.exec_id)?;
        }
        Ok(empty())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> ttrpc::Result<api::Empty> {
        let tasks = Arc::clone(&self.0);
        whole(async move {
            let resources = request.resources.into_option().unwrap_or_default().value;
            let annotations = &request.annotations;
            tasks.update(&request.id, &resources, annotations).await
        })
        .await?;
        Ok(empty())
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: api::WaitRequest,
    ) -> ttrpc::Result<api::WaitResponse> {
        let ended = self.0.wait(&request.id, &request.exec_id).await?;
        Ok(api::WaitResponse {
            exit_status: ended.code,
            exited_at: MessageField::some(timestamp(ended.at)),
            ..Default::default()
        })
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        let stats = self.0.stats(&request.id).await?;
        Ok(api::StatsResponse {
            stats: MessageField::some(stats),
            ..Default::default()
        })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        // containerd asks for the shim alone before it has a container.
        let task_pid = self.0.container(&request.id);
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: task_pid.map_or(0, |container| container.init.pid()),
            ..Default::default()
        })
    }

    async fn shutdown(
        &self,
        _: &TtrpcContext,
        _: api::ShutdownRequest,
    ) -> ttrpc::Result<api::Empty> {
        // As runc's shim: whether it is urgent makes no difference.
        self.0.shutdown();
        Ok(empty())
    }
}

/// What is told of a process beside its pid: what it was executed as.
fn details(exec_id: String) -> Option<Any> {
    if exec_id.is_empty() {
        return None;
    }
    let details = ProcessDetails {
        exec_id,
        ..ProcessDetails::default()
    };
    Some(Any {
        type_url: "containerd.runc.v1.ProcessDetails".into(),
        // Encoding fails for messages beyond 2 GiB alone.
        value: details.write_to_bytes().unwrap_or_default(),
        ..Any::default()
    })
}
