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
//! reaper and [`Containers::create`] never run at the same time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use cloister_container::{Container, CreateOptions};
use cloister_protocol::agent::CreateContainerRequest;
use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, timeout_at};

use crate::relay::{self, Terminal};
use crate::shares::{ShareError, Shares};
use crate::stdio::{self, Relayed, StdioError};
use crate::tokens::Tokens;

/// The most containers of one guest.
const MAX_CONTAINERS: usize = 1024;

/// The longest container id, in bytes.
const MAX_ID: usize = 1024;

/// How long a deletion waits for the host to take the last output, and for the killed init process
/// to be reaped.
const DELETE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a request about a container fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContainerError {
    /// The request is at fault.
    #[error("container_id: {id:?}: 1 to {MAX_ID} letters, digits and + - . _ make an id")]
    Id {
        /// What was given.
        id: String,
    },
    /// The request is at fault.
    #[error("{field}: missing")]
    Missing {
        /// The field of the request.
        field: String,
    },
    /// There is no such container.
    #[error("container {id:?} does not exist")]
    NotFound {
        /// What was given.
        id: String,
    },
    /// The id is taken.
    #[error("container {id:?} exists already")]
    Exists {
        /// What was given.
        id: String,
    },
    /// Too many containers.
    #[error("{MAX_CONTAINERS} containers exist, no more are possible")]
    TooMany,
    /// The container does not allow it now.
    #[error("container {id:?} {state}")]
    State {
        /// The container.
        id: String,
        /// What it is instead.
        state: &'static str,
    },
    /// The standard streams cannot be had.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// A path of the host cannot be used.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The container cannot be built or driven.
    #[error(transparent)]
    Container(#[from] cloister_container::Error),
    /// The terminal cannot be resized.
    #[error("cannot resize the terminal of container {id:?}")]
    Resize {
        /// The container.
        id: String,
        /// Why.
        source: std::io::Error,
    },
    /// The killed init process was not seen to end.
    #[error("the init process of container {id:?} does not end")]
    Undead {
        /// The container.
        id: String,
    },
}

/// How a container's init process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit code, if it exited.
    pub(crate) code: u32,
    /// The signal that ended it, or 0.
    pub(crate) signal: u32,
    /// Whether the OOM killer has ended a process of the container.
    pub(crate) oom_killed: bool,
}

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
    /// Only its relay keeps a terminal open, so that the session is hung up when the host closes
    /// the stream.
    terminal: Option<Weak<Terminal>>,
    /// What still has to reach the host when the container has ended.
    outputs: Vec<JoinHandle<()>>,
    input: Option<AbortHandle>,
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
        match self.build(request).await {
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
            })))),
        }
    }

    async fn build(&self, request: CreateContainerRequest) -> Result<Live, ContainerError> {
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
        let container = Container::create(CreateOptions {
            id: request.container_id,
            spec: request.spec,
            rootfs,
            bind_sources,
            stdio: streams.container,
            cgroup_parent: self.places.cgroup_parent.clone(),
            init_exe: self.places.init_exe.clone(),
        })?;
        for warning in container.warnings() {
            log::warn!("container {:?}: {warning}", container.id());
        }
        let mut live = Live {
            terminal: None,
            outputs: Vec::new(),
            input: None,
            container,
        };
        match live.relay(streams.relayed) {
            Ok(()) => Ok(live),
            Err(e) => {
                live.container.delete()?;
                Err(e)
            }
        }
    }

    /// Executes a container's program.
    pub(crate) fn start(&self, id: &str) -> Result<(), ContainerError> {
        let slot = self.slot(id)?;
        let mut phase = lock(&slot.phase);
        Ok(phase.live(id)?.container.start()?)
    }

    /// Sends a signal to a container's init process, or to all its processes.
    pub(crate) fn signal(&self, id: &str, signal: u32, all: bool) -> Result<(), ContainerError> {
        let slot = self.slot(id)?;
        let mut phase = lock(&slot.phase);
        Ok(phase.live(id)?.container.signal(signal, all)?)
    }

    /// Sets the window size of a container's terminal.
    pub(crate) fn resize(&self, id: &str, columns: u16, rows: u16) -> Result<(), ContainerError> {
        let slot = self.slot(id)?;
        let mut phase = lock(&slot.phase);
        let state = |state| ContainerError::State {
            id: id.into(),
            state,
        };
        let terminal = phase.live(id)?.terminal.as_ref();
        let terminal = terminal.ok_or_else(|| state("has no terminal"))?;
        let terminal = terminal.upgrade();
        let terminal = terminal.ok_or_else(|| state("has closed its terminal"))?;
        terminal
            .resize(columns, rows)
            .map_err(|source| ContainerError::Resize {
                id: id.into(),
                source,
            })
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
        let (outputs, input) = {
            let mut phase = lock(&slot.phase);
            let live = phase.live(id)?;
            let pid = live.container.pid();
            let oom_killed = live.container.oom_killed();
            // Its file systems need no further writing back: FUSE writes a file's dirty pages when
            // it is closed or unmapped (fuse_flush, fuse_vma_close), and the last process is gone.
            live.container.delete()?;
            let outputs = std::mem::take(&mut live.outputs);
            let input = live.input.take();
            *phase = Phase::Deleting { pid, oom_killed };
            (outputs, input)
        };
        self.reap();
        let deadline = Instant::now() + DELETE_TIMEOUT;
        let ended = timeout_at(deadline, slot.wait()).await;
        for mut output in outputs {
            // No process holds the other end of the pipe any more: the relay ends by itself as
            // soon as the host has taken everything.
            if timeout_at(deadline, &mut output).await.is_err() {
                log::warn!("container {id:?}: the host does not read its output: the rest is lost");
                output.abort();
            }
        }
        if let Some(input) = input {
            input.abort();
        }
        lock(&self.slots).remove(id);
        match ended {
            Ok(_) => Ok(()),
            Err(_) => Err(ContainerError::Undead { id: id.into() }),
        }
    }

    /// Deletes every container.
    pub(crate) async fn delete_all(&self) {
        let ids: Vec<String> = lock(&self.slots).keys().cloned().collect();
        for id in ids {
            if let Err(e) = self.delete(&id).await {
                log::error!("{}", crate::chain(&e));
            }
        }
    }

    /// Takes the exit status of every child that has ended, containers' init processes and orphans
    /// alike.
    pub(crate) fn reap(&self) {
        // ECHILD: there are no children at all.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get().unsigned_abs();
            let slots = lock(&self.slots);
            if slots.values().any(|slot| slot.ended(pid, status)) {
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
        let number = |number: Option<i32>| number.map_or(0, i32::unsigned_abs);
        self.exit.send_replace(Some(Exit {
            code: number(status.exit_status()),
            signal: number(status.terminating_signal()),
            oom_killed,
        }));
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

impl Live {
    fn relay(&mut self, relayed: Relayed) -> Result<(), ContainerError> {
        let id: Arc<str> = self.container.id().into();
        match relayed {
            Relayed::Pipes { stdin, outputs } => {
                if let Some((socket, pipe)) = stdin {
                    let task = spawn(Arc::clone(&id), relay::input(socket, pipe));
                    self.input = Some(task.abort_handle());
                }
                for (pipe, socket) in outputs {
                    let task = spawn(Arc::clone(&id), relay::output(pipe, socket));
                    self.outputs.push(task);
                }
            }
            Relayed::Terminal(socket) => {
                let Some(master) = self.container.take_terminal() else {
                    return Err(ContainerError::State {
                        id: (*id).into(),
                        state: "was made without a terminal",
                    });
                };
                let master = Terminal::new(master).map_err(|source| ContainerError::Resize {
                    id: (*id).into(),
                    source,
                })?;
                let master = Arc::new(master);
                self.terminal = Some(Arc::downgrade(&master));
                self.outputs
                    .push(spawn(id, relay::terminal(master, socket)));
            }
        }
        Ok(())
    }
}

fn spawn(
    id: Arc<str>,
    relay: impl Future<Output = std::io::Result<()>> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(e) = relay.await {
            log::error!("container {id:?}: a standard stream broke: {e}");
        }
    })
}

fn is_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
    (1..=MAX_ID).contains(&id.len()) && id.bytes().all(allowed) && id != "." && id != ".."
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
