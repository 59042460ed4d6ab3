//! The containers of a shim, and what containerd has done with them.
//!
//! What changes a container is done by the command line, `cloister`, as it is by runc's shim; what
//! is only looked at, or waited for, is asked of its agent.

mod life;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cloister::annotations;
use cloister::process::ProcessId;
use cloister::signal::Signal;
use containerd_shim_protos::api::{self, Mount, Status};
use containerd_shim_protos::topics;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::command::Streams;
use super::container::Container;
use super::events::Events;
use super::failure::Failure;
use super::metrics::{Metrics, Overhead};
use super::reaper::{Ended, Reaper};
use super::streaming::Streaming;
use super::streams::Names;
use super::{guest, paths, timestamp};

/// How long the figures of a container's network may keep the others waiting.
const NETWORK_LIMIT: Duration = Duration::from_secs(2);

/// What the shim serves.
pub(crate) struct Tasks {
    namespace: String,
    debug: bool,
    reaper: Reaper,
    streaming: Streaming,
    events: Events,
    containers: Mutex<HashMap<String, Arc<Container>>>,
    /// The ids of those that are on their way; `None` once there are to be no more.
    creating: Mutex<Option<HashSet<String>>>,
    /// Where it is found by whoever starts a shim.
    socket: Option<PathBuf>,
    /// Told when containerd needs the shim no more.
    pub(crate) done: Notify,
}

/// Nobody else creates a container of this id until it is dropped.
struct Reservation {
    tasks: Arc<Tasks>,
    id: String,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(creating) = &mut *self.tasks.creating() {
            creating.remove(&self.id);
        }
    }
}

/// How a process has ended, and what stood for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deleted {
    pub(crate) pid: u32,
    pub(crate) ended: Ended,
}

/// What a container is created from.
#[derive(Debug)]
pub(crate) struct Creation {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<Mount>,
    pub(crate) names: Names,
    /// The runtime's options; without them, those that the shim was started with.
    pub(crate) options: Option<Any>,
    /// Whether it is the sandbox itself.
    pub(crate) is_sandbox: bool,
}

impl Tasks {
    /// None yet.
    pub(crate) fn new(
        namespace: &str,
        debug: bool,
        reaper: Reaper,
        streaming: Streaming,
        events: Events,
        socket: Option<PathBuf>,
    ) -> Self {
        Self {
            namespace: namespace.to_owned(),
            debug,
            reaper,
            streaming,
            events,
            containers: Mutex::default(),
            creating: Mutex::new(Some(HashSet::new())),
            socket,
            done: Notify::new(),
        }
    }

    fn containers(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Container>>> {
        // Maps are whole between any two of their calls.
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn creating(&self) -> std::sync::MutexGuard<'_, Option<HashSet<String>>> {
        self.creating.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an id for whoever creates a container.
    fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation, Failure> {
        let mut creating = self.creating();
        let Some(creating) = &mut *creating else {
            return Err(Failure::precondition("the shim is about to end"));
        };
        if self.containers().contains_key(id) || !creating.insert(id.to_owned()) {
            return Err(Failure::exists(format!("container {id}: already exists")));
        }
        Ok(Reservation {
            tasks: Arc::clone(self),
            id: id.to_owned(),
        })
    }

    /// A container.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Failure> {
        let found = self.containers().get(id).cloned();
        found.ok_or_else(|| Failure::not_found(format!("container {id}: not found")))
    }

    /// What containerd wants to know of a process.
    pub(crate) fn state(&self, id: &str, exec_id: &str) -> Result<api::StateResponse, Failure> {
        let container = self.container(id)?;
        let exec = match exec_id {
            "" => None,
            exec_id => Some(container.exec(exec_id)?),
        };
        let process = exec.as_ref().map_or(&container.init, |exec| &exec.process);
        let status = match process.status() {
            Status::RUNNING if container.is_paused.load(Ordering::Relaxed) => Status::PAUSED,
            status => status,
        };
        let ended = process.ended();
        let names = &process.names;
        Ok(api::StateResponse {
            id: container.id.clone(),
            bundle: container.bundle.display().to_string(),
            pid: process.pid(),
            status: status.into(),
            stdin: names.stdin.clone(),
            stdout: names.stdout.clone(),
            stderr: names.stderr.clone(),
            terminal: names.terminal,
            exit_status: ended.map_or(0, |ended| ended.code),
            exited_at: ended.map(|ended| timestamp(ended.at)).into(),
            exec_id: exec_id.to_owned(),
            ..api::StateResponse::default()
        })
    }

    /// Waits for the end of a process.
    pub(crate) async fn wait(&self, id: &str, exec_id: &str) -> Result<Ended, Failure> {
        let container = self.container(id)?;
        if exec_id.is_empty() {
            return Ok(container.init.wait().await);
        }
        let exec = container.exec(exec_id)?;
        Ok(exec.process.wait().await)
    }

    /// Sends a signal.
    pub(crate) async fn kill(
        &self,
        id: &str,
        exec_id: &str,
        number: u32,
        all: bool,
    ) -> Result<(), Failure> {
        let container = self.container(id)?;
        let finished = || Failure::not_found("process already finished");
        if number == 0 {
            // kill(2): it looks only whether there is a process. CRI-O asks so before it opens a log anew.
            let ended = match exec_id {
                "" => container.init.ended(),
                exec_id => container.exec(exec_id)?.process.ended(),
            };
            return ended.map_or(Ok(()), |_| Err(finished()));
        }
        let signal = Signal::from_number(number)
            .ok_or_else(|| Failure::invalid(format!("{number} is no signal")))?;
        if !exec_id.is_empty() {
            let exec = container.exec(exec_id)?;
            if exec.process.ended().is_some() {
                return Err(finished());
            }
            let pid = exec.process.pid();
            if pid == 0 {
                let text = format!("process {exec_id} has not been started");
                return Err(Failure::precondition(text));
            }
            // The process that stands for it passes signals on.
            let sent = ProcessId::of(pid.cast_signed()).and_then(|process| process.signal(signal));
            return match sent {
                Ok(true) => Ok(()),
                Ok(false) | Err(_) => Err(finished()),
            };
        }
        // Its namespace may have outlived it, for others are in it.
        if container.init.ended().is_some() && !all {
            return Err(finished());
        }
        let number = number.to_string();
        let mut words = vec!["kill"];
        if all {
            words.push("--all");
        }
        words.extend([id, &*number]);
        Ok(container.run(&self.reaper, &words).await?)
    }

    /// Stops every process of a container where it is.
    pub(crate) async fn pause(&self, id: &str) -> Result<(), Failure> {
        let container = self.container(id)?;
        container.run(&self.reaper, &["pause", id]).await?;
        container.is_paused.store(true, Ordering::Relaxed);
        let event = containerd_shim_protos::events::task::TaskPaused {
            container_id: id.to_owned(),
            ..Default::default()
        };
        self.events
            .publish(topics::TASK_PAUSED_EVENT_TOPIC, "TaskPaused", &event);
        Ok(())
    }

    /// Lets the processes of a container go on.
    pub(crate) async fn resume(&self, id: &str) -> Result<(), Failure> {
        let container = self.container(id)?;
        container.run(&self.reaper, &["resume", id]).await?;
        container.is_paused.store(false, Ordering::Relaxed);
        let event = containerd_shim_protos::events::task::TaskResumed {
            container_id: id.to_owned(),
            ..Default::default()
        };
        self.events
            .publish(topics::TASK_RESUMED_EVENT_TOPIC, "TaskResumed", &event);
        Ok(())
    }

    /// Changes the limits of a container: a `linux.resources` object as JSON. Annotations are not for that; those that
    /// would change a virtual machine are refused, since it was made by the ones of its creation.
    pub(crate) async fn update(
        &self,
        id: &str,
        resources: &[u8],
        annotations: &HashMap<String, String>,
    ) -> Result<(), Failure> {
        let container = self.container(id)?;
        if let Some(name) = annotations.keys().find(|name| annotations::chooses(name)) {
            return Err(Failure::invalid(format!(
                "annotations[{name:?}]: the settings of a virtual machine are chosen when it is created"
            )));
        }
        for name in annotations.keys() {
            log::warn!("container {id}: annotation {name:?} of an update is passed over");
        }
        let stdin = || {
            let mut file = File::from(rustix::fs::memfd_create(
                "resources",
                rustix::fs::MemfdFlags::CLOEXEC,
            )?);
            file.write_all(resources)?;
            file.rewind()?;
            std::io::Result::Ok(file)
        };
        let streams = Streams {
            stdin: Some(stdin().map_err(|e| Failure::of(&e))?.into()),
            ..Streams::default()
        };
        let words = ["update", "--resources", "-", id];
        Ok(container.run_with(&self.reaper, &words, streams).await?)
    }

    /// The processes of this machine that stand for those of a container, by what they execute. The
    /// first is told until it is deleted: a containerd that comes back takes a task that has no
    /// processes for one that was never created, and removes it with its exit code
    /// (core/runtime/v2/shim_load.go of containerd).
    pub(crate) fn pids(&self, id: &str) -> Result<Vec<(u32, String)>, Failure> {
        let container = self.container(id)?;
        let execs = container.execs();
        let execs = execs
            .iter()
            .filter(|(_, exec)| exec.process.pid() != 0 && exec.process.ended().is_none())
            .map(|(name, exec)| (exec.process.pid(), name.clone()));
        let init = std::iter::once((container.init.pid(), String::new()));
        Ok(init.chain(execs).collect())
    }

    /// What a container uses.
    pub(crate) async fn stats(&self, id: &str) -> Result<Any, Failure> {
        let container = self.container(id)?;
        if container.init.ended().is_some() {
            return Err(Failure::not_found(format!("container {id} has ended")));
        }
        let root = &container.cloister.root;
        let files = guest::stats(root, id).await.map_err(|e| Failure::of(&e))?;
        let overhead = match guest::machine(root, id).map_err(|e| Failure::of(&e))? {
            Some(machine) => {
                let others = self.uses_of_others(id).await;
                Overhead::of(&machine, others.iter().chain([&files]))
            }
            None => Overhead::default(),
        };
        // It may be at its end, or busy. The rest is worth telling.
        let network = match timeout(NETWORK_LIMIT, guest::network(root, id)).await {
            Ok(Ok(network)) => network,
            failed => {
                log::debug!("container {id}: no figures of its network: {failed:?}");
                Vec::new()
            }
        };
        let metrics = Metrics {
            files: &files,
            overhead,
            network: &network,
        };
        Ok(metrics.message(paths::has_cgroup_v2()))
    }

    /// What the other containers of the virtual machine use.
    async fn uses_of_others(&self, id: &str) -> Vec<HashMap<String, String>> {
        let others: Vec<_> = self.containers().values().map(Arc::clone).collect();
        let mut uses = Vec::new();
        for other in others {
            if other.id == id || other.init.ended().is_some() {
                continue;
            }
            match guest::stats(&other.cloister.root, &other.id).await {
                Ok(files) => uses.push(files),
                // It may be at its end.
                Err(e) => log::debug!("container {}: {}", other.id, cloister::text::chain(&e)),
            }
        }
        uses
    }

    /// containerd writes nothing more to the standard input of a process.
    pub(crate) fn close_io(&self, id: &str, exec_id: &str) -> Result<(), Failure> {
        let container = self.container(id)?;
        match exec_id {
            "" => container.init.close_stdin(),
            exec_id => container.exec(exec_id)?.process.close_stdin(),
        }
        Ok(())
    }

    /// Sets the size of the terminal of a process.
    pub(crate) fn resize(
        &self,
        id: &str,
        exec_id: &str,
        columns: u32,
        rows: u32,
    ) -> Result<(), Failure> {
        let container = self.container(id)?;
        let size = |number| u16::try_from(number).unwrap_or(u16::MAX);
        let (columns, rows) = (size(columns), size(rows));
        let result = match exec_id {
            "" => container.init.resize(columns, rows),
            exec_id => container.exec(exec_id)?.process.resize(columns, rows),
        };
        // As runc's shim: what has no terminal, or not yet, has no size.
        result.unwrap_or(Ok(())).map_err(|e| Failure::of(&e))
    }

    /// The bundle of the sandbox that was described to this shim, if one was.
    fn sandbox_bundle(&self) -> Option<PathBuf> {
        let containers = self.containers();
        let mut all = containers.values();
        let sandbox = all.find(|container| container.is_sandbox)?;
        Some(sandbox.bundle.clone())
    }

    /// Tells of a task; a sandbox is none.
    fn publish(&self, container: &Container, topic: &str, name: &str, event: &impl Message) {
        if !container.is_sandbox {
            self.events.publish(topic, name, event);
        }
    }

    /// containerd needs the shim no more, if there is no container left.
    pub(crate) fn shutdown(&self) {
        if self.close() {
            self.done.notify_one();
        }
    }

    /// Takes no further containers, if there is none; then the shim may end. Its socket is gone before containerd has
    /// its answer: whoever starts a container of the same name at once must get a shim that stays.
    pub(crate) fn close(&self) -> bool {
        let mut creating = self.creating();
        let is_idle = creating.as_ref().is_none_or(HashSet::is_empty);
        let may_end = is_idle && self.containers().is_empty();
        if may_end
            && creating.take().is_some()
            && let Some(socket) = &self.socket
            && let Err(e) = std::fs::remove_file(socket)
        {
            log::warn!("{}: {e}", socket.display());
        }
        may_end
    }
}

/// The bundle is gone, or was never there.
pub(crate) fn bundle_exists(bundle: &Path) -> Result<(), Failure> {
    match bundle.metadata() {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(Failure::invalid(format!(
            "bundle {} is no directory",
            bundle.display()
        ))),
        Err(e) => Err(Failure::not_found(format!(
            "bundle {}: {e}",
            bundle.display()
        ))),
    }
}
