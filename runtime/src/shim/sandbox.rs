//! The sandbox service of containerd: a pod whose virtual machine is there without a pause
//! container of its caller.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::api::Status;
use containerd_shim_protos::sandbox_api as api;
use containerd_shim_protos::sandbox_async::{Sandbox, create_sandbox};
use containerd_shim_protos::types::platform::Platform;
use protobuf::{Message, MessageField};
use tokio::time::timeout;
use ttrpc::asynchronous::{Service, TtrpcContext};

use super::callers::PodSandboxConfig;
use super::failure::Failure;
use super::pod::{self, Pod};
use super::service::whole;
use super::streams::Names;
use super::tasks::{Creation, Tasks, bundle_exists};
use super::{guest, mounts, timestamp};

/// The type of Kubernetes' description of a pod.
const POD_CONFIG: &str = "runtime.v1.PodSandboxConfig";
/// How long the sandbox's own process may take to end when it is asked to, if nobody says.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Linux' numbers of the signals.
const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;

/// A sandbox that was described.
#[derive(Debug, Clone)]
struct Described {
    id: String,
    bundle: PathBuf,
    rootfs: Vec<containerd_shim_protos::api::Mount>,
    created: SystemTime,
}

/// Answers containerd about the one sandbox of the shim.
#[derive(Clone)]
pub(crate) struct SandboxService {
    tasks: Arc<Tasks>,
    sandbox: Arc<Mutex<Option<Described>>>,
}

impl SandboxService {
    /// One without a sandbox.
    pub(crate) fn new(tasks: Arc<Tasks>) -> Self {
        Self {
            tasks,
            sandbox: Arc::default(),
        }
    }

    /// The service under its name.
    pub(crate) fn services(&self) -> HashMap<String, Service> {
        create_sandbox(Arc::new(self.clone()) as Arc<dyn Sandbox + Send + Sync>)
    }

    fn described(&self, id: &str) -> Result<Described, Failure> {
        let sandbox = self.sandbox.lock().unwrap_or_else(PoisonError::into_inner);
        let found = sandbox.as_ref().filter(|sandbox| sandbox.id == id).cloned();
        found.ok_or_else(|| Failure::not_found(format!("sandbox {id}: not found")))
    }

    /// Describes it; nothing is started.
    fn create(&self, request: api::CreateSandboxRequest) -> Result<(), Failure> {
        let bundle = PathBuf::from(&request.bundle_path);
        bundle_exists(&bundle)?;
        let mut sandbox = self.sandbox.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = &*sandbox {
            let text = format!("this shim has sandbox {}: already exists", other.id);
            return Err(Failure::exists(text));
        }
        let pod = Pod {
            id: &request.sandbox_id,
            bundle: &bundle,
            network: &request.netns_path,
            has_rootfs: !request.rootfs.is_empty(),
            config: pod_config(request.options.as_ref())?,
            annotations: request.annotations,
        };
        pod.prepare()
            .map_err(|e| Failure::invalid(cloister::text::chain(&e)))?;
        *sandbox = Some(Described {
            id: request.sandbox_id,
            rootfs: request.rootfs,
            bundle,
            created: SystemTime::now(),
        });
        Ok(())
    }

    async fn start(&self, id: &str) -> Result<u32, Failure> {
        let described = self.described(id)?;
        let creation = Creation {
            id: described.id,
            bundle: described.bundle.clone(),
            rootfs: described.rootfs,
            names: Names::default(),
            options: None,
            is_sandbox: true,
        };
        pod::mount_shared_memory(&described.bundle).map_err(|e| Failure::of(&e))?;
        if let Err(failure) = self.tasks.create(creation).await {
            if let Err(e) = mounts::unmount_all(&pod::shared_memory(&described.bundle)) {
                log::warn!("sandbox {id}: {}", cloister::text::chain(&e));
            }
            return Err(failure);
        }
        match self.tasks.start(id, "").await {
            Ok(pid) => Ok(pid),
            Err(failure) => {
                if let Err(e) = self.tasks.remove_sandbox(id).await {
                    log::warn!("sandbox {id} is left: {e}");
                }
                Err(failure)
            }
        }
    }

    async fn stop(&self, id: &str, limit: Duration) -> Result<(), Failure> {
        self.described(id)?;
        let Ok(container) = self.tasks.container(id) else {
            // It was never started, or is gone.
            return Ok(());
        };
        for signal in [SIGTERM, SIGKILL] {
            if container.init.ended().is_some() {
                return Ok(());
            }
            match self.tasks.kill(id, "", signal, false).await {
                Err(e) if container.init.ended().is_none() => return Err(e),
                _ => {}
            }
            let limit = if signal == SIGTERM { limit } else { STOP_LIMIT };
            if timeout(limit, container.init.wait()).await.is_ok() {
                return Ok(());
            }
        }
        Err(Failure::precondition(format!("sandbox {id} does not end")))
    }

    async fn shutdown(&self, id: &str) -> Result<(), Failure> {
        self.tasks.remove_sandbox(id).await?;
        self.sandbox
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.tasks.shutdown();
        Ok(())
    }

    fn status(&self, id: &str, verbose: bool) -> Result<api::SandboxStatusResponse, Failure> {
        let described = self.described(id)?;
        let container = self.tasks.container(id).ok();
        let init = container.as_ref().map(|container| &container.init);
        let is_ready = init.is_some_and(|init| init.status() == Status::RUNNING);
        let ended = init.and_then(|init| init.ended());
        let mut info = HashMap::new();
        if verbose {
            let text = serde_json::json!({
                "runtime": super::info::NAME,
                "bundle": described.bundle,
                "lost": container.as_ref().filter(|_| ended.is_some())
                    .and_then(|container| guest::end(&container.cloister.root, id).loss),
            });
            info.insert("info".to_owned(), text.to_string());
        }
        Ok(api::SandboxStatusResponse {
            sandbox_id: id.to_owned(),
            pid: init.map_or(0, |init| init.pid()),
            // Kubernetes' words.
            state: match is_ready {
                true => "SANDBOX_READY".to_owned(),
                false => "SANDBOX_NOTREADY".to_owned(),
            },
            info,
            created_at: MessageField::some(timestamp(described.created)),
            exited_at: ended.map(|ended| timestamp(ended.at)).into(),
            ..api::SandboxStatusResponse::default()
        })
    }
}

/// Kubernetes' description of a pod, if that is what the options are.
fn pod_config(
    options: Option<&protobuf::well_known_types::any::Any>,
) -> Result<Option<PodSandboxConfig>, Failure> {
    let Some(options) = options.filter(|any| !any.type_url.is_empty()) else {
        return Ok(None);
    };
    if !options.type_url.ends_with(POD_CONFIG) {
        let text = format!(
            "sandbox options of type {:?} are not supported: {POD_CONFIG} is",
            options.type_url
        );
        return Err(Failure::invalid(text));
    }
    let config = PodSandboxConfig::parse_from_bytes(&options.value);
    config
        .map(Some)
        .map_err(|e| Failure::invalid(format!("malformed {POD_CONFIG}: {e}")))
}

/// The machine's architecture by Go's name.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::CreateSandboxRequest,
    ) -> ttrpc::Result<api::CreateSandboxResponse> {
        self.create(request)?;
        Ok(api::CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StartSandboxRequest,
    ) -> ttrpc::Result<api::StartSandboxResponse> {
        let this = self.clone();
        let id = request.sandbox_id.clone();
        let pid = whole(async move { this.start(&id).await }).await?;
        let created = self.described(&request.sandbox_id)?.created;
        Ok(api::StartSandboxResponse {
            pid,
            created_at: MessageField::some(timestamp(created)),
            ..api::StartSandboxResponse::default()
        })
    }

    async fn platform(
        &self,
        _: &TtrpcContext,
        request: api::PlatformRequest,
    ) -> ttrpc::Result<api::PlatformResponse> {
        self.described(&request.sandbox_id)?;
        Ok(api::PlatformResponse {
            platform: MessageField::some(Platform {
                os: "linux".into(),
                architecture: architecture().into(),
                ..Platform::default()
            }),
            ..api::PlatformResponse::default()
        })
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::StopSandboxRequest,
    ) -> ttrpc::Result<api::StopSandboxResponse> {
        let this = self.clone();
        whole(async move {
            let limit = match request.timeout_secs {
                0 => STOP_LIMIT,
                seconds => Duration::from_secs(seconds.into()),
            };
            this.stop(&request.sandbox_id, limit).await
        })
        .await?;
        Ok(api::StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::WaitSandboxRequest,
    ) -> ttrpc::Result<api::WaitSandboxResponse> {
        let ended = self.tasks.wait(&request.sandbox_id, "").await?;
        Ok(api::WaitSandboxResponse {
            exit_status: ended.code,
            exited_at: MessageField::some(timestamp(ended.at)),
            ..api::WaitSandboxResponse::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: api::SandboxStatusRequest,
    ) -> ttrpc::Result<api::SandboxStatusResponse> {
        Ok(self.status(&request.sandbox_id, request.verbose)?)
    }

    async fn ping_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::PingRequest,
    ) -> ttrpc::Result<api::PingResponse> {
        let container = self.tasks.container(&request.sandbox_id)?;
        let root = &container.cloister.root;
        guest::ping(root, &container.id)
            .await
            .map_err(|e| Failure::of(&e))?;
        Ok(api::PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownSandboxRequest,
    ) -> ttrpc::Result<api::ShutdownSandboxResponse> {
        let this = self.clone();
        whole(async move { this.shutdown(&request.sandbox_id).await }).await?;
        Ok(api::ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: api::SandboxMetricsRequest,
    ) -> ttrpc::Result<api::SandboxMetricsResponse> {
        let stats = self.tasks.stats(&request.sandbox_id).await?;
        let mut response = api::SandboxMetricsResponse::default();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.timestamp = MessageField::some(timestamp(SystemTime::now()));
        metrics.id = request.sandbox_id;
        metrics.data = MessageField::some(stats);
        Ok(response)
    }
}
