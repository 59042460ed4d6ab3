//! The containers of this guest and what becomes of them.
//!
//! ```text
//!            create              start               program ends
//!  (absent) ───────▶ created ───────────▶ running ───────────────▶ stopped
//!                       │                    │                        │
//!                       ╰────────────────────┴── delete ──────────────╯──▶ (absent)
//! ```
//!
//! Everything runs on one thread. Building and taking apart a container blocks it for about a
//! millisecond, which buys that no child can be reaped before its container is known here: the
//! reaper and [`Containers::create`] never run at the same time. What a workload can hold up is done
//! on threads that end with it ([`on_thread`]): hooks, the way of an executed process to its program,
//! a look at the memory of processes.

mod error;
mod execution;
mod exit;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloister_container::{Container, CreateOptions, ExecOptions};
use cloister_protocol::agent::{
    CreateContainerRequest, ExecRequest, ForwardRequest, ResolveRequest, SetNetworkRequest,
};
use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::io::Interest;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

pub(crate) use self::error::ContainerError;
use self::execution::{Execution, on_thread};
pub(crate) use self::exit::Exit;
use crate::execs::{Execs, Running};
use crate::forward::{self, Attempts, ForwardError};
use crate::network::Network;
use crate::resolve;
use crate::session::Session;
use crate::shares::Shares;
use crate::socket::Socket;
use crate::stdio;
use crate::sys;
use crate::tokens::{Token, Tokens};
use crate::usage::{self, Listing};

/// The most containers of one guest.
const MAX_CONTAINERS: usize = 1024;

/// The longest container id, in bytes.
const MAX_ID: usize = 1024;

/// How long a deletion waits for the host to take the last output, and for the killed init process
/// to be reaped.
const DELETE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the processes of a container may take to be described.
const LISTING_TIMEOUT: Duration = Duration::from_secs(10);

/// Where this machine's containers are made.
#[derive(Debug, Clone)]
pub struct Places {
    /// The cgroup below which each container gets its own.
    pub cgroup_parent: PathBuf,
    /// The executable of a container's init stage.
    pub init_exe: PathBuf,
    /// Where the host's shares are mounted.
    pub shares: PathBuf,
}

/// All containers of this guest.
#[derive(Debug)]
pub(crate) struct Containers {
    places: Places,
    shares: Shares,
    tokens: Arc<Tokens>,
    slots: Mutex<HashMap<String, Arc<Slot>>>,
}

/// One container, from the moment its id is taken.
#[derive(Debug)]
struct Slot {
    phase: Mutex<Phase>,
    exit: watch::Sender<Option<Exit>>,
    execs: Execs,
    resumed: Notify,
    network: Mutex<Network>,
}

#[derive(Debug)]
enum Phase {
    /// Being built: the id is taken, and nothing else is known.
    Creating,
    Live(Box<Live>),
    /// Being taken apart.
    Deleting {
        pid: u32,
        oom_killed: bool,
    },
}

#[derive(Debug)]
struct Live {
    container: Container,
    session: Session,
}

impl Containers {
    pub(crate) fn new(places: Places, tokens: Arc<Tokens>) -> Self {
        Self {
            shares: Shares::new(places.shares.clone()),
            places,
            tokens,
            slots: Mutex::default(),
        }
    }

    /// Builds a container and returns the pid of its init process.
    pub(crate) async fn create(
        &self,
        request: CreateContainerRequest,
    ) -> Result<u32, ContainerError> {
        let id = request.container_id.clone();
        let slot = self.reserve(&id)?;
        match self.build(request, &slot).await {
            Ok(live) => {
                let pid = live.container.pid();
                *lock(&slot.phase) = Phase::Live(Box::new(live));
                Ok(pid)
            }
            Err(e) => {
                lock(&self.slots).remove(&id);
                Err(e)
            }
        }
    }

    fn reserve(&self, id: &str) -> Result<Arc<Slot>, ContainerError> {
        if !is_id(id) {
            return Err(ContainerError::Id { id: id.into() });
        }
        let mut slots = lock(&self.slots);
        if slots.len() >= MAX_CONTAINERS {
            return Err(ContainerError::TooMany);
        }
        match slots.entry(id.into()) {
            Entry::Occupied(_) => Err(ContainerError::Exists { id: id.into() }),
            Entry::Vacant(entry) => Ok(Arc::clone(entry.insert(Arc::new(Slot {
                phase: Mutex::new(Phase::Creating),
                exit: watch::Sender::new(None),
                execs: Execs::default(),
                resumed: Notify::new(),
                network: Mutex::default(),
            })))),
        }
    }

    async fn build(
        &self,
        request: CreateContainerRequest,
        slot: &Slot,
    ) -> Result<Live, ContainerError> {
        let missing = |field: String| ContainerError::Missing { field };
        let rootfs = request.rootfs.as_ref();
        let rootfs = rootfs.ok_or_else(|| missing("rootfs".into()))?;
        let rootfs = self.shares.resolve("rootfs", rootfs)?;
        let mut bind_sources = std::collections::BTreeMap::new();
        for (number, bind) in request.bind_sources.iter().enumerate() {
            let field = format!("bind_sources[{number}].source");
            let source = bind.source.as_ref();
            let source = source.ok_or_else(|| missing(field.clone()))?;
            let path = self.shares.resolve(&field, source)?;
            // A 32-bit index fits.
            let index = usize::try_from(bind.index).unwrap_or(usize::MAX);
            bind_sources.insert(index, path);
        }
        let streams = stdio::prepare(&self.tokens, &request.stdio).await?;

        // From here to the return nothing awaits, so no exit can be missed.
        let joins = self.joins(&request)?;
        let mut container = Container::create(CreateOptions {
            id: request.container_id,
            spec: request.spec,
            rootfs,
            bind_sources,
            joins,
            bundle: request.bundle.into(),
            stdio: streams.container,
            descriptors: streams.descriptors,
            cgroup_parent: self.places.cgroup_parent.clone(),
            init_exe: self.places.init_exe.clone(),
        })?;
        for warning in container.warnings() {
            log::warn!("container {:?}: {warning}", container.id());
        }
        let terminal = container.take_terminal();
        match Session::start(container.id(), streams.relayed, terminal, &slot.exit) {
            Ok(session) => Ok(Live { container, session }),
            Err(e) => {
                container.delete()?;
                Err(e)
            }
        }
    }

    /// The processes whose namespaces a new container shares.
    fn joins(
        &self,
        request: &CreateContainerRequest,
    ) -> Result<Vec<(String, OwnedFd)>, ContainerError> {
        let mut joins = Vec::new();
        for (number, namespace) in request.namespaces.iter().enumerate() {
            let other = &namespace.container_id;
            let join = |problem: String| ContainerError::Join {
                field: format!("namespaces[{number}]"),
                problem,
            };
            let slot = self.slot(other).map_err(|e| join(e.to_string()))?;
            let mut phase = lock(&slot.phase);
            let live = phase.live(other)?;
            let pidfd = live.container.pidfd().try_clone_to_owned();
            joins.push((
                namespace.kind.clone(),
                pidfd.map_err(|e| join(e.to_string()))?,
            ));
        }
        Ok(joins)
    }

    /// Executes a further program in a container and returns its pid.
    pub(crate) async fn exec(&self, request: ExecRequest) -> Result<u32, ContainerError> {
        let id = &request.container_id;
        if !is_id(&request.exec_id) {
            return Err(ContainerError::ExecId {
                id: request.exec_id,
            });
        }
        let slot = self.slot(id)?;
        slot.execs.check(&request.exec_id)?;
        let streams = stdio::prepare(&self.tokens, &request.stdio).await?;
        loop {
            let resumed = slot.resumed.notified();
            let is_paused = lock(&slot.phase).live(id)?.container.is_paused();
            if !is_paused {
                break;
            }
            if !request.ignore_paused {
                return Err(ContainerError::State {
                    id: id.clone(),
                    state: "is paused",
                });
            }
            tokio::select! {
                () = resumed => {}
                _ = slot.wait() => return Err(ContainerError::State {
                    id: id.clone(),
                    state: "is not running",
                }),
            }
        }

        // Nothing awaits between the birth of the process and the note of it, so no exit can be missed.
        slot.execs.check(&request.exec_id)?;
        let executing = lock(&slot.phase)
            .live(id)?
            .container
            .begin_exec(ExecOptions {
                process: request.process,
                stdio: streams.container,
                descriptors: streams.descriptors,
                cgroup: request.cgroup.into(),
                init_exe: self.places.init_exe.clone(),
            })?;
        let execution = Execution {
            container: id.clone(),
            id: request.exec_id.clone(),
            running: slot.execs.insert(request.exec_id, executing.pid()),
            slot: Arc::clone(&slot),
        };
        // To its end, also when the caller's connection breaks meanwhile.
        let work = tokio::spawn(execution.finish(executing, streams.relayed));
        let lost = |e| ContainerError::Thread {
            id: id.clone(),
            source: std::io::Error::other(e),
        };
        work.await.map_err(lost)?
    }

    /// Executes a container's program, after its hooks.
    pub(crate) async fn start(&self, id: &str) -> Result<(), ContainerError> {
        let slot = self.slot(id)?;
        let starting = lock(&slot.phase).live(id)?.container.begin_start()?;
        if !starting.runs_hooks() {
            return Ok(starting.finish()?);
        }
        // If nobody waits any more, the container's end says it all.
        Ok(on_thread(id, "hooks", move || starting.finish()).await??)
    }

    /// Sends a signal to a container's init process, or to all its processes.
    pub(crate) fn signal(&self, id: &str, signal: u32, all: bool) -> Result<(), ContainerError> {
        let slot = self.slot(id)?;
        let mut phase = lock(&slot.phase);
        Ok(phase.live(id)?.container.signal(signal, all)?)
    }

    /// Finds an executed process.
    pub(crate) fn running(&self, id: &str, exec: &str) -> Result<Arc<Running>, ContainerError> {
        self.slot(id)?.execs.get(exec)
    }

    /// Waits for the end of an executed process.
    pub(crate) async fn wait_exec(&self, id: &str, exec: &str) -> Result<Exit, ContainerError> {
        let slot = self.slot(id)?;
        slot.execs.wait(exec).await
    }

    /// Sets the window size of a container's terminal.
    pub(crate) fn resize(&self, id: &str, columns: u16, rows: u16) -> Result<(), ContainerError> {
        let slot = self.slot(id)?;
        let mut phase = lock(&slot.phase);
        phase.live(id)?.session.resize(id, columns, rows)
    }

    /// Stops the processes of a container, or lets them go on.
    pub(crate) fn pause(&self, id: &str, paused: bool) -> Result<(), ContainerError> {
        let slot = self.slot(id)?;
        let mut phase = lock(&slot.phase);
        let container = &phase.live(id)?.container;
        if paused {
            container.pause()?;
        } else {
            container.resume()?;
            slot.resumed.notify_waiters();
        }
        Ok(())
    }

    /// Changes the limits of a container.
    pub(crate) fn update(&self, id: &str, resources: &[u8]) -> Result<(), ContainerError> {
        let slot = self.slot(id)?;
        let mut phase = lock(&slot.phase);
        Ok(phase.live(id)?.container.update(resources)?)
    }

    /// Makes the network of a container's namespace what the request says.
    pub(crate) fn set_network(&self, request: SetNetworkRequest) -> Result<(), ContainerError> {
        let id = request.container_id.clone();
        let slot = self.slot(&id)?;
        let mut phase = lock(&slot.phase);
        let process = phase.live(&id)?.container.pidfd();
        Ok(lock(&slot.network).set(process, request)?)
    }

    /// Connects a stream to a port of a container's loopback interface.
    pub(crate) async fn forward(&self, request: ForwardRequest) -> Result<(), ContainerError> {
        let token = forward::token(&request.token)?;
        let attempts = self.in_network_of(&request.container_id, |process| {
            Attempts::new(process, request.port, request.ipv6)
        })??;
        let port = attempts.connect().await?;
        let host = self.claim(token).await?;
        tokio::spawn(forward::carry(host, port));
        Ok(())
    }

    /// Carries what is asked of a name server at a loopback address to the host.
    pub(crate) async fn resolve(&self, request: ResolveRequest) -> Result<(), ContainerError> {
        let token = forward::token(&request.token)?;
        let port = self.in_network_of(&request.container_id, |process| {
            resolve::bind(process, request.address)
        })??;
        let host = self.claim(token).await?;
        tokio::spawn(port.carry(host));
        Ok(())
    }

    /// Hands the process whose network namespace a container's is to `work`.
    fn in_network_of<T>(
        &self,
        id: &str,
        work: impl FnOnce(BorrowedFd<'_>) -> T,
    ) -> Result<T, ContainerError> {
        let slot = self.slot(id)?;
        let mut phase = lock(&slot.phase);
        Ok(work(phase.live(id)?.container.pidfd()))
    }

    /// The host's stream that begins with a token.
    async fn claim(&self, token: Token) -> Result<Socket, ForwardError> {
        let host = self.tokens.claim(token).await;
        host.ok_or(ForwardError::Missing)
    }

    /// Lists the processes of a container.
    pub(crate) async fn processes(&self, id: &str) -> Result<Listing, ContainerError> {
        let slot = self.slot(id)?;
        let pids = lock(&slot.phase).live(id)?.container.processes()?;
        // Reading from the memory of a process takes as long as that process likes.
        let listing = on_thread(id, "ps", move || usage::processes(pids));
        let listed = tokio::time::timeout(LISTING_TIMEOUT, listing).await;
        listed.map_err(|e| ContainerError::Usage {
            id: id.into(),
            source: e.into(),
        })?
    }

    /// What a container uses.
    pub(crate) fn stats(&self, id: &str) -> Result<HashMap<String, String>, ContainerError> {
        let slot = self.slot(id)?;
        let mut phase = lock(&slot.phase);
        let cgroup = phase.live(id)?.container.cgroup();
        usage::files(cgroup).map_err(|source| ContainerError::Usage {
            id: id.into(),
            source,
        })
    }

    /// Waits until the OOM killer has ended another number of processes than `known`.
    pub(crate) async fn wait_oom(&self, id: &str, known: u64) -> Result<u64, ContainerError> {
        let slot = self.slot(id)?;
        let cgroup = lock(&slot.phase).live(id)?.container.cgroup().to_owned();
        let error = |source| ContainerError::Usage {
            id: id.into(),
            source,
        };
        let events = std::fs::File::open(cgroup.join("memory.events")).map_err(error)?;
        let interest = Interest::PRIORITY | Interest::ERROR;
        let events = sys::register(events.into(), interest).map_err(error)?;
        loop {
            // Reading what has changed is what makes the descriptor unready.
            let mut text = [0; 512];
            rustix::io::pread(&events, &mut text, 0).map_err(|e| error(e.into()))?;
            let count = usage::oom_kills(&cgroup).map_err(error)?;
            if count != known {
                return Ok(count);
            }
            tokio::select! {
                guard = events.ready(interest) => guard.map_err(error)?.clear_ready(),
                _ = slot.wait() => return Err(ContainerError::State {
                    id: id.into(),
                    state: "is not running",
                }),
            }
        }
    }

    /// Waits for the end of a container's init process.
    pub(crate) async fn wait(&self, id: &str) -> Result<Exit, ContainerError> {
        let slot = self.slot(id)?;
        let exit = slot.wait().await;
        exit.ok_or_else(|| ContainerError::NotFound { id: id.into() })
    }

    /// Kills what is left of a container, lets the host have its last output, and takes it apart.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), ContainerError> {
        let slot = self.slot(id)?;
        let mut session = {
            let mut phase = lock(&slot.phase);
            let live = phase.live(id)?;
            let pid = live.container.pid();
            let oom_killed = live.container.oom_killed();
            // Its file systems need no further writing back: FUSE writes a file's dirty pages when
            // it is closed or unmapped (fuse_flush, fuse_vma_close), and the last process is gone.
            live.container.delete()?;
            let session = std::mem::take(&mut live.session);
            *phase = Phase::Deleting { pid, oom_killed };
            session
        };
        self.reap();
        let deadline = Instant::now() + DELETE_TIMEOUT;
        let ended = timeout_at(deadline, slot.wait()).await;
        if timeout_at(deadline, slot.execs.wait_all()).await.is_err() {
            log::warn!("container {id:?}: an executed process does not end");
        }
        for mut output in session.take_outputs() {
            // No process holds the other end of the pipe any more: the relay ends by itself as
            // soon as the host has taken everything.
            if timeout_at(deadline, &mut output).await.is_err() {
                log::warn!("container {id:?}: the host does not read its output: the rest is lost");
                output.abort();
            }
        }
        session.end_input();
        lock(&self.slots).remove(id);
        match ended {
            Ok(_) => Ok(()),
            Err(_) => Err(ContainerError::Undead { id: id.into() }),
        }
    }

    /// Deletes every container: all at once, since each may have a host that does not take its last
    /// output.
    pub(crate) async fn delete_all(self: &Arc<Self>) {
        let ids: Vec<String> = lock(&self.slots).keys().cloned().collect();
        let mut deletions = tokio::task::JoinSet::new();
        for id in ids {
            let containers = Arc::clone(self);
            deletions.spawn(async move {
                if let Err(e) = containers.delete(&id).await {
                    log::error!("{}", crate::chain(&e));
                }
            });
        }
        while deletions.join_next().await.is_some() {}
    }

    /// Takes the exit status of every child that has ended, containers' init processes and orphans
    /// alike.
    pub(crate) fn reap(&self) {
        // ECHILD: there are no children at all.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            let slots = lock(&self.slots);
            let mut all = slots.values();
            if all.any(|slot| slot.ended(pid, status) || slot.execs.ended(pid, status)) {
                continue;
            }
            log::debug!("reaped orphan {pid}");
        }
    }

    fn slot(&self, id: &str) -> Result<Arc<Slot>, ContainerError> {
        let slots = lock(&self.slots);
        let slot = slots.get(id).cloned();
        slot.ok_or_else(|| ContainerError::NotFound { id: id.into() })
    }
}

impl Slot {
    /// Notes the end of this container's init process; false if that is another process.
    fn ended(&self, pid: u32, status: WaitStatus) -> bool {
        let phase = lock(&self.phase);
        let (own, oom_killed) = match &*phase {
            Phase::Creating => return false,
            Phase::Live(live) if live.container.pid() == pid => (pid, live.container.oom_killed()),
            Phase::Live(_) => return false,
            Phase::Deleting { pid, oom_killed } => (*pid, *oom_killed),
        };
        // A pid may be used again once it has been reaped.
        if own != pid || self.exit.borrow().is_some() {
            return false;
        }
        self.exit.send_replace(Some(Exit::of(status, oom_killed)));
        true
    }

    /// Waits for the exit; `None` if the container was never built.
    async fn wait(&self) -> Option<Exit> {
        let mut exit = self.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await;
        exit.ok().and_then(|exit| *exit)
    }
}

impl Phase {
    fn live(&mut self, id: &str) -> Result<&mut Live, ContainerError> {
        let state = match self {
            Self::Live(live) => return Ok(live),
            Self::Creating => "is being created",
            Self::Deleting { .. } => "is being deleted",
        };
        Err(ContainerError::State {
            id: id.into(),
            state,
        })
    }
}

fn is_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
    (1..=MAX_ID).contains(&id.len()) && id.bytes().all(allowed) && id != "." && id != ".."
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
