//! How containers and what is executed in them come, end, and go; and what containerd is told of it.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::Status;
use containerd_shim_protos::topics;
use protobuf::MessageField;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::super::command::Cloister;
use super::super::container::{Container, Exec, Outside};
use super::super::failure::Failure;
use super::super::group::Brief;
use super::super::options::Options;
use super::super::process::Process;
use super::super::reaper::Ended;
use super::super::streams::Names;
use super::super::{guest, mounts, paths, pod, timestamp};
use super::{Creation, Deleted, Tasks};
/// How long the processes that were executed in a container may take to end with it.
const EXECS_LIMIT: Duration = Duration::from_secs(5);
/// How long after its agent's connection a container may be known to have ended.
const END_LIMIT: Duration = Duration::from_secs(10);
/// The file in a container's bundle that says that the OOM killer has struck.
const OOM_FILE: &str = "oom";
/// What a container ends with whose virtual machine this machine's OOM killer has ended: what a shell
/// says of a process that was killed.
const OOM_KILLED: u32 = 137;

impl Tasks {
    fn outside(&self) -> Outside<'_> {
        Outside {
            reaper: &self.reaper,
            namespace: &self.namespace,
            streaming: &self.streaming,
        }
    }

    /// Creates a container; gives the pid of the process that stands for it.
    pub(crate) async fn create(self: &Arc<Self>, creation: Creation) -> Result<u32, Failure> {
        let Creation {
            id,
            bundle,
            rootfs,
            names,
            options,
            is_sandbox,
        } = creation;
        // Until it is among the containers: its mounts must not be made, or taken away, twice.
        let _reservation = self.reserve(&id)?;
        if !is_sandbox {
            pod::check_sandbox(&bundle).map_err(|e| Failure::invalid(cloister::text::chain(&e)))?;
        }
        let mut options = match options.filter(|any| !any.type_url.is_empty()) {
            Some(given) => Options::parse(Some(&given), &bundle)
                .map_err(|e| Failure::invalid(cloister::text::chain(&e)))?,
            None => Options::kept(&bundle),
        };
        if let Some(sandbox) = self.sandbox_bundle() {
            // containerd gives the runtime's own to the sandbox, and runc's form to its containers.
            options = Options::kept(&sandbox);
            pod::complete_member(&bundle, &sandbox)
                .map_err(|e| Failure::invalid(cloister::text::chain(&e)))?;
        }
        options.keep(&bundle).map_err(|e| Failure::of(&e))?;
        let brief = Brief::of(&bundle).map_err(|e| Failure::of(&e))?;
        let cloister = Cloister {
            root: paths::root(&options, &self.namespace),
            config: options.config,
            systemd_cgroup: options.systemd_cgroup || brief.has_systemd_cgroup(),
            debug: self.debug,
        };
        let container = Container::new(id, bundle, cloister, names, is_sandbox);
        let container = Arc::new(container);
        mounts::mount_all(&rootfs, &container.rootfs()).map_err(|e| Failure::of(&e))?;
        let ended = match container.create(&self.outside()).await {
            Ok(ended) => ended,
            Err(failure) => {
                if let Err(e) = mounts::unmount_all(&container.rootfs()) {
                    log::warn!("{}", cloister::text::chain(&e));
                }
                return Err(failure);
            }
        };
        let pid = container.init.pid();
        self.containers()
            .insert(container.id.clone(), Arc::clone(&container));
        let names = &container.init.names;
        let event = containerd_shim_protos::events::task::TaskCreate {
            container_id: container.id.clone(),
            bundle: container.bundle.display().to_string(),
            rootfs,
            io: MessageField::some(containerd_shim_protos::events::task::TaskIO {
                stdin: names.stdin.clone(),
                stdout: names.stdout.clone(),
                stderr: names.stderr.clone(),
                terminal: names.terminal,
                ..Default::default()
            }),
            pid,
            ..Default::default()
        };
        self.publish(
            &container,
            topics::TASK_CREATE_EVENT_TOPIC,
            "TaskCreate",
            &event,
        );
        tokio::spawn(Arc::clone(self).follow_init(container, ended));
        Ok(pid)
    }

    /// Waits for the end of a container and tells it, after those of what was executed in it.
    async fn follow_init(
        self: Arc<Self>,
        container: Arc<Container>,
        ended: oneshot::Receiver<Ended>,
    ) {
        let mut ended = self.end_of(&container.init, ended).await;
        let end = guest::end(&container.cloister.root, &container.id);
        if let Some(reason) = end.loss {
            log::error!("container {}: {reason}", container.id);
            if end.is_oom {
                ended.code = OOM_KILLED;
            }
        }
        {
            // Whoever starts it tells that first.
            let _start = container.init.start.lock().await;
            self.tell_last_oom(&container, end.is_oom);
        }
        let execs = async {
            for (_, exec) in container.execs() {
                if exec.process.pid() != 0 {
                    exec.process.wait().await;
                }
            }
        };
        if timeout(EXECS_LIMIT, execs).await.is_err() {
            log::warn!(
                "container {} has ended before what it executes",
                container.id
            );
        }
        self.tell_end(&container, &container.id, &container.init, ended)
            .await;
    }

    /// Waits for the end of what was executed in a container and tells it.
    async fn follow_exec(
        self: Arc<Self>,
        container: Arc<Container>,
        exec_id: String,
        exec: Arc<Exec>,
        ended: oneshot::Receiver<Ended>,
    ) {
        let ended = self.end_of(&exec.process, ended).await;
        self.tell_end(&container, &exec_id, &exec.process, ended)
            .await;
    }

    async fn end_of(&self, process: &Process, ended: oneshot::Receiver<Ended>) -> Ended {
        // Every child is collected: only a shim that ends drops its waiters.
        let ended = ended.await.unwrap_or_else(|_| Ended {
            code: 255,
            at: SystemTime::now(),
        });
        process.finish().await;
        ended
    }

    async fn tell_end(&self, container: &Container, id: &str, process: &Process, ended: Ended) {
        // Whoever starts it tells that first.
        let start = process.start.lock().await;
        let event = containerd_shim_protos::events::task::TaskExit {
            container_id: container.id.clone(),
            id: id.to_owned(),
            pid: process.pid(),
            exit_status: ended.code,
            exited_at: MessageField::some(timestamp(ended.at)),
            ..Default::default()
        };
        self.publish(container, topics::TASK_EXIT_EVENT_TOPIC, "TaskExit", &event);
        process.tell(ended);
        drop(start);
    }

    /// Starts the program of a container, or what is to be executed in it; gives the pid of the
    /// process that stands for it.
    pub(crate) async fn start(self: &Arc<Self>, id: &str, exec_id: &str) -> Result<u32, Failure> {
        let container = self.container(id)?;
        if exec_id.is_empty() {
            self.start_init(&container).await
        } else {
            self.start_exec(container, exec_id).await
        }
    }

    async fn start_init(self: &Arc<Self>, container: &Arc<Container>) -> Result<u32, Failure> {
        let init = &container.init;
        let guard = init.start.lock().await;
        if init.status() != Status::CREATED {
            let text = format!("container {} has been started", container.id);
            return Err(Failure::precondition(text));
        }
        container
            .run(&self.reaper, &["start", &container.id])
            .await?;
        init.mark_started();
        let pid = init.pid();
        let event = containerd_shim_protos::events::task::TaskStart {
            container_id: container.id.clone(),
            pid,
            ..Default::default()
        };
        self.publish(
            container,
            topics::TASK_START_EVENT_TOPIC,
            "TaskStart",
            &event,
        );
        drop(guard);
        tokio::spawn(Arc::clone(self).follow_oom(Arc::clone(container)));
        Ok(pid)
    }

    async fn start_exec(
        self: &Arc<Self>,
        container: Arc<Container>,
        exec_id: &str,
    ) -> Result<u32, Failure> {
        let exec = container.exec(exec_id)?;
        let guard = exec.process.start.lock().await;
        if exec.process.status() != Status::CREATED {
            return Err(Failure::precondition(format!(
                "process {exec_id} has been started"
            )));
        }
        let ended = container.start_exec(&exec, &self.outside()).await?;
        exec.process.mark_started();
        let pid = exec.process.pid();
        let event = containerd_shim_protos::events::task::TaskExecStarted {
            container_id: container.id.clone(),
            exec_id: exec_id.to_owned(),
            pid,
            ..Default::default()
        };
        self.events.publish(
            topics::TASK_EXEC_STARTED_EVENT_TOPIC,
            "TaskExecStarted",
            &event,
        );
        drop(guard);
        let follow = Arc::clone(self).follow_exec(container, exec_id.to_owned(), exec, ended);
        tokio::spawn(follow);
        Ok(pid)
    }

    /// What the OOM killer has done in a container that has ended, unless it was told before. Its end comes after that.
    fn tell_last_oom(&self, container: &Container, is_oom: bool) {
        let mut ooms = container.ooms();
        if is_oom && !ooms.is_told {
            self.publish_oom(container);
        }
        ooms.is_over = true;
    }

    fn tell_oom(&self, container: &Container) {
        let mut ooms = container.ooms();
        if !ooms.is_over {
            ooms.is_told = true;
            self.publish_oom(container);
        }
    }

    fn publish_oom(&self, container: &Container) {
        let event = containerd_shim_protos::events::task::TaskOOM {
            container_id: container.id.clone(),
            ..Default::default()
        };
        self.publish(container, topics::TASK_OOM_EVENT_TOPIC, "TaskOOM", &event);
        // CRI-O, which takes no events, looks for a file when the container has ended (internal/oci/runtime_vm.go).
        let file = container.bundle.join(OOM_FILE);
        if !self.events.are_taken()
            && let Err(e) = File::create(&file)
        {
            log::warn!("cannot make {}: {e}", file.display());
        }
    }

    /// Tells each time the OOM killer has struck in a container, until it has ended.
    async fn follow_oom(self: Arc<Self>, container: Arc<Container>) {
        let tell = || self.tell_oom(&container);
        tokio::select! {
            _ = container.init.wait() => {}
            result = guest::follow_oom(&container.cloister.root, &container.id, tell) => {
                // The end of the container is the end of the connection, and is noticed a little later.
                if let Err(e) = result && timeout(END_LIMIT, container.init.wait()).await.is_err() {
                    let error = cloister::text::chain(&e);
                    log::warn!("container {}: OOM kills are not noticed: {error}", container.id);
                }
            }
        }
    }

    /// Adds a process that is to be executed in a container.
    pub(crate) fn exec(
        &self,
        id: &str,
        exec_id: &str,
        names: Names,
        document: Vec<u8>,
    ) -> Result<(), Failure> {
        let container = self.container(id)?;
        if exec_id.is_empty() || exec_id.contains('/') {
            return Err(Failure::invalid(format!("exec_id {exec_id:?} is no name")));
        }
        if container.init.ended().is_some() {
            let text = format!("container {id} has ended");
            return Err(Failure::precondition(text));
        }
        let exec = Exec {
            process: Process::new(names),
            document,
        };
        container.add_exec(exec_id, exec)?;
        let event = containerd_shim_protos::events::task::TaskExecAdded {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        self.events
            .publish(topics::TASK_EXEC_ADDED_EVENT_TOPIC, "TaskExecAdded", &event);
        Ok(())
    }

    /// Forgets a process that has ended; a container goes with all it had.
    pub(crate) async fn delete(&self, id: &str, exec_id: &str) -> Result<Deleted, Failure> {
        let container = self.container(id)?;
        if !exec_id.is_empty() {
            let exec = container.exec(exec_id)?;
            let deleted = deletable(&exec.process)?;
            exec.process.dispose().await;
            container.forget_exec(exec_id);
            return Ok(deleted);
        }
        let deleted = deletable(&container.init)?;
        // A container that was never started is there until now.
        container
            .run(&self.reaper, &["delete", "--force", id])
            .await?;
        let ended = self.forget(&container).await?;
        let deleted = Deleted { ended, ..deleted };
        let event = containerd_shim_protos::events::task::TaskDelete {
            container_id: id.to_owned(),
            pid: deleted.pid,
            exit_status: ended.code,
            exited_at: MessageField::some(timestamp(ended.at)),
            ..Default::default()
        };
        self.events
            .publish(topics::TASK_DELETE_EVENT_TOPIC, "TaskDelete", &event);
        Ok(deleted)
    }

    /// Forgets a container that was deleted; tells how it has ended.
    async fn forget(&self, container: &Container) -> Result<Ended, Failure> {
        let ended = container.init.wait().await;
        for (_, exec) in container.execs() {
            exec.process.dispose().await;
        }
        container.init.dispose().await;
        mounts::unmount_all(&container.rootfs()).map_err(|e| Failure::of(&e))?;
        if container.is_sandbox {
            let memory = pod::shared_memory(&container.bundle);
            mounts::unmount_all(&memory).map_err(|e| Failure::of(&e))?;
        }
        self.containers().remove(&container.id);
        Ok(ended)
    }

    /// Ends a sandbox and all that is in it, and forgets it; there may be none.
    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<(), Failure> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        container
            .run(&self.reaper, &["delete", "--force", id])
            .await?;
        self.forget(&container).await?;
        Ok(())
    }
}

/// Whether a process can be forgotten: it has ended, or was never started.
fn deletable(process: &Process) -> Result<Deleted, Failure> {
    let never = Ended {
        code: 0,
        at: SystemTime::now(),
    };
    match process.status() {
        Status::STOPPED | Status::CREATED => Ok(Deleted {
            pid: process.pid(),
            ended: process.ended().unwrap_or(never),
        }),
        _ => Err(Failure::precondition(
            "task must be stopped before deletion: running",
        )),
    }
}
