//! The life of a container, and what can cut it short.
//!
//! ```text
//!   booting ──Created──▶ live ──workload has ended──▶ ending ──▶ over
//!      │                  │                             │
//!      └──────────────────┴── VM, file server, caller ──┘
//! ```
//!
//! One thread: [`Life::live`] goes from phase to phase while [`Life::watch`] (in `watch`), polled
//! beside it, ends only when something is wrong.

mod watch;

use std::cell::{Cell, RefCell};
use std::fs::Permissions;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use cloister_protocol::agent::SharedPath;
use cloister_vmm_api::Request;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

use super::channel::AsyncChannel;
use super::failure::Failure;
use super::growth::Growth;
use super::holder::Holder;
use super::hooks::HookRunner;
use super::machine::{Machine, ROOTFS_NAME, SHARE_TAG, bind_name};
use super::network::Network;
use super::stdio::{Ended, QUIET};
use super::streams::{Plan, Relays};
use super::terminal::Pty;
use super::timeline::Timeline;
use super::vmm::Vmm;
use crate::agent::{Agent, AgentError, CreatePlan, Exit, ProcessName};
use crate::cgroup::LiftedQuota;
use crate::launch::{Launch, Report, Terminal};
use crate::logger;
use crate::namespaces;
use crate::paths::ContainerPaths;
use crate::state::{self, Phase, State};
use crate::sys::{SignalFd, Watched};

/// How long the cause of a failure may take to show.
const CAUSE_LIMIT: Duration = Duration::from_millis(500);
/// How long a process may take to be gone after its socket has closed.
const GONE_LIMIT: Duration = Duration::from_secs(2);
/// How long the sandbox's monitor may take to tell how its container has ended.
const SANDBOX_LIMIT: Duration = Duration::from_secs(5);

/// Where a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Booting,
    Live,
    Ending,
}

/// One container, from the start of its machine to its end.
pub(crate) struct Life<'a> {
    pub(crate) launch: &'a Launch,
    pub(crate) paths: &'a ContainerPaths,
    /// The state directory of the container whose virtual machine it is in.
    pub(crate) dir: &'a OwnedFd,
    /// What the names of what it shares begin with.
    pub(crate) names: &'a str,
    pub(crate) control: AsyncChannel,
    pub(crate) signals: AsyncFd<Watched<SignalFd>>,
    /// Those of its own virtual machine.
    pub(crate) vmm: Option<Vmm>,
    pub(crate) fs: Option<AsyncChannel>,
    pub(crate) machine: RefCell<Option<&'a mut Machine>>,
    pub(crate) hooks: Option<&'a HookRunner>,
    pub(crate) network: Option<Network<'a>>,
    /// Where others ask something of it, and what becomes of its size, if it is its own.
    pub(crate) orders: Option<AsyncFd<Watched<OwnedFd>>>,
    pub(crate) growth: Option<Growth>,
    pub(crate) holder: &'a Holder,
    /// Whether the log has to leave the caller's standard error when the caller goes.
    pub(crate) leaves_log: bool,
    /// What the machine is to be held to once the container stands.
    pub(crate) quota: Cell<Option<LiftedQuota>>,
    pub(crate) pty: Option<&'a Pty>,
    pub(crate) timeline: &'a RefCell<Timeline>,
    pub(crate) state: RefCell<&'a mut State>,
    pub(crate) progress: Progress,
}

/// How far a life is.
pub(crate) struct Progress {
    stage: Cell<Stage>,
    agent: RefCell<Option<Agent>>,
    /// Columns and rows of the terminal.
    size: Cell<(u16, u16)>,
    exit: Cell<Option<Exit>>,
    give_up: Notify,
    /// Whether the VMM was asked to end, and that it has.
    stopping: Cell<bool>,
    stopped: Notify,
}

impl Progress {
    pub(crate) fn new(terminal: Terminal) -> Self {
        let size = match terminal {
            Terminal::Inherited { columns, rows } => (columns, rows),
            Terminal::None | Terminal::Socket => (0, 0),
        };
        Self {
            stage: Cell::new(Stage::Booting),
            agent: RefCell::new(None),
            size: Cell::new(size),
            exit: Cell::new(None),
            give_up: Notify::new(),
            stopping: Cell::new(false),
            stopped: Notify::new(),
        }
    }
}

/// What the phases need and the watchers do not.
struct Parts {
    ready: oneshot::Receiver<UnixStream>,
    spec: Vec<u8>,
    plan: Plan,
}

/// How a container's life went.
pub(crate) struct End {
    /// How it ended.
    pub(crate) result: Result<Exit, Failure>,
    /// Whether it stood before that.
    pub(crate) was_created: bool,
}

impl Life<'_> {
    /// Lives it.
    pub(crate) async fn run(
        &self,
        spec: Vec<u8>,
        plan: Plan,
        log: mpsc::Sender<UnixStream>,
    ) -> End {
        let (ready_sender, ready) = oneshot::channel();
        let mut live = std::pin::pin!(self.live(Parts { ready, spec, plan }));
        let mut watch = std::pin::pin!(self.watch(ready_sender, log));
        let result = tokio::select! {
            biased;
            failure = &mut watch => match self.progress.exit.get() {
                None => Err(failure),
                Some(exit) => {
                    // What becomes of the machine now does not change how the workload ended; its
                    // last bytes may still be on their way.
                    log::warn!("after the end of container {}: {failure}", self.launch.id);
                    let _ = timeout(QUIET, &mut live).await;
                    Ok(exit)
                }
            },
            result = &mut live => match result {
                Err(failure) if failure.is_symptom() => {
                    let cause = timeout(CAUSE_LIMIT, &mut watch).await;
                    Err(cause.unwrap_or(failure))
                }
                result => result,
            },
        };
        if result.is_err() && self.launch.container.sandbox.is_some() {
            self.leave_sandbox().await;
        }
        End {
            result,
            was_created: self.progress.stage.get() != Stage::Booting,
        }
    }

    /// Takes a container that has come to nothing out of the machine of another, which lives on.
    async fn leave_sandbox(&self) {
        let Some(agent) = self.agent_now() else {
            return;
        };
        match agent.delete(&self.launch.id).await {
            Ok(()) | Err(AgentError::Refused { gone: true, .. } | AgentError::Lost { .. }) => {}
            Err(e) => log::warn!("cannot take container {} apart: {e}", self.launch.id),
        }
    }

    async fn live(&self, parts: Parts) -> Result<Exit, Failure> {
        let id = &self.launch.id;
        let config = &self.launch.config;
        let Parts { ready, spec, plan } = parts;
        let hooks = async {
            match self.hooks {
                Some(hooks) => hooks.create().await,
                None => Ok(()),
            }
        };
        let ((), agent) = tokio::try_join!(hooks, self.agent(ready))?;
        self.reached("agent_ready");

        if let Some(pty) = self.pty {
            self.progress
                .size
                .set(pty.size().map_err(Failure::Terminal)?);
        }
        let size = self.progress.size.get();
        let stdio = plan.stdio(size);
        let create = async {
            let container = &self.launch.container;
            let shared = |name: &str| shared(format!("{}{name}", self.names));
            let rootfs = shared(ROOTFS_NAME);
            let binds = container.binds.iter();
            let binds = binds.map(|b| (b.index, shared(&bind_name(b))));
            let plan = CreatePlan {
                spec,
                rootfs,
                bind_sources: binds.collect(),
                stdio,
                namespaces: container.shared_namespaces.clone(),
                bundle: self.launch.bundle.display().to_string(),
            };
            agent.create(id, plan).await?;
            // From here on there is something to take apart, and something to take signals.
            *self.progress.agent.borrow_mut() = Some(agent.clone());
            Ok(())
        };
        // The agent waits for the streams that it was told of, so both go on together.
        let connect = plan.connect(self.dir, config.request_timeout);
        let ((), connected) = tokio::try_join!(create, connect)?;
        let ended = Ended::new().map_err(Failure::Relay)?;
        let relays = connected.relay(&ended)?;
        self.reached("container_created");
        if self.progress.size.get() != size {
            self.resize().await;
        }

        if let Err(e) = self.holder.enter_root(&self.launch.container) {
            log::warn!("the container's files cannot be seen at /proc/PID/root: {e}");
        }
        if let Some(quota) = self.quota.take() {
            quota.restore()?;
        }
        self.created()?;
        if self.launch.start {
            if let (Some(network), Some(vmm)) = (&self.network, &self.vmm)
                && let Err(e) = network.connect(vmm, &agent).await
            {
                self.progress.stage.set(Stage::Booting);
                return Err(e.into());
            }
            self.reached("network_connected");
            if let Err(e) = agent.start(id, self.launch.container.hooks.as_ref()).await {
                // It never ran: to the caller it is as if it had not been created.
                self.progress.stage.set(Stage::Booting);
                return Err(e.into());
            }
            self.reached("process_started");
            state::mark_started(self.paths)?;
            if let Some(hooks) = self.hooks
                && let Err(e) = hooks.started().await
            {
                self.progress.stage.set(Stage::Booting);
                return Err(e);
            }
            self.report(&Report::Started);
        }
        if self.leaves_log {
            logger::move_to(logger::open(&self.paths.monitor_log()));
        }
        let owner = self.launch.container.sandbox.is_some();
        let exit = match agent.wait(ProcessName::init(id), owner).await {
            // With the sandbox everything in it was killed, and nobody was left to say so.
            Err(AgentError::Lost { .. }) if self.sandbox_has_ended() => Exit::killed(),
            result => result?,
        };
        self.reached("exit_seen");
        self.progress.exit.set(Some(exit));
        self.progress.stage.set(Stage::Ending);
        self.end(&agent, relays, &ended).await?;
        Ok(exit)
    }

    /// The agent of the machine: it calls when its machine is the container's own.
    async fn agent(&self, ready: oneshot::Receiver<UnixStream>) -> Result<Agent, Failure> {
        let config = &self.launch.config;
        if self.launch.container.sandbox.is_some() {
            return Ok(Agent::connect(self.dir, config.request_timeout).await?);
        }
        let stream = match timeout(config.boot_timeout, ready).await {
            Ok(Ok(stream)) => stream,
            // The machine has ended, and the watcher is about to say how.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return Err(Failure::NoAgent(config.boot_timeout)),
        };
        self.reached("agent_connected");
        Ok(Agent::greet(stream, config.request_timeout).await?.0)
    }

    /// Whether the container that the sandbox was made with has ended by its own doing.
    fn sandbox_has_ended(&self) -> bool {
        let Some(sandbox) = &self.launch.container.sandbox else {
            return false;
        };
        namespaces::has_ended(&self.launch.root, sandbox, SANDBOX_LIMIT)
    }

    /// Tells the world that the container stands.
    fn created(&self) -> Result<(), Failure> {
        let mut state = self.state.borrow_mut();
        state.phase = Phase::Created;
        state::write(self.paths, &state)?;
        if let Some(path) = &self.launch.pid_file {
            let error = |e| Failure::PidFile(path.clone(), e);
            write_pid_file(path, state.monitor.pid).map_err(error)?;
        }
        self.progress.stage.set(Stage::Live);
        self.report(&Report::Created);
        Ok(())
    }

    /// Delivers the last bytes, then has the guest write back its file systems.
    async fn end(&self, agent: &Agent, relays: Relays, ended: &Ended) -> Result<(), Failure> {
        let (give_up, terminal) = (&self.progress.give_up, self.launch.terminal);
        relays.deliver(ended, give_up, terminal).await?;
        self.reached("output_delivered");
        if let Err(e) = agent.delete(&self.launch.id).await {
            log::warn!("cannot take container {} apart: {e}", self.launch.id);
        }
        self.reached("container_deleted");
        if self.paths.members().exists() && self.launch.container.sandbox.is_none() {
            // Those who share the machine hear how theirs have ended before it goes away.
            if let Err(e) = agent.shutdown().await {
                log::warn!("cannot end what else is in the sandbox: {e}");
            }
        }
        if self.launch.timeline.is_some() {
            self.stop_in_order().await;
        }
        Ok(())
    }

    /// Has the VMM say its last word, which holds its part of the timeline.
    async fn stop_in_order(&self) {
        self.progress.stopping.set(true);
        let Some(vmm) = &self.vmm else {
            return;
        };
        if let Err(e) = vmm.send(&Request::Stop) {
            log::warn!("the VMM's timeline is lost: {e}");
            return;
        }
        // The watcher hears the answer.
        let answer = self.progress.stopped.notified();
        if timeout(GONE_LIMIT, answer).await.is_err() {
            log::warn!("the VMM's timeline is lost: no answer");
        }
    }

    /// Serves others, and the network.
    async fn serve(&self) -> Failure {
        let network = async {
            if let (Some(network), Some(vmm)) = (&self.network, &self.vmm) {
                network.serve(vmm, &self.progress.agent).await;
            }
        };
        let orders = async {
            if let Some(orders) = &self.orders {
                self.follow_orders(orders).await;
            }
        };
        tokio::join!(network, orders);
        std::future::pending().await
    }

    /// The agent, from when the container has been made.
    pub(super) fn agent_now(&self) -> Option<Agent> {
        self.progress.agent.borrow().clone()
    }

    /// Passes the size of the terminal on, if there is somebody to pass it to.
    async fn resize(&self) {
        let (columns, rows) = self.progress.size.get();
        let init = ProcessName::init(&self.launch.id);
        if let Some(agent) = self.agent_now()
            && let Err(e) = agent.resize(init, columns, rows).await
        {
            log::debug!("cannot resize the terminal: {e}");
        }
    }

    fn reached(&self, phase: &'static str) {
        self.timeline.borrow_mut().reached(phase);
    }

    /// Tells the command line, if it is still there.
    pub(crate) fn report(&self, report: &Report) {
        let _ = self.control.send(report);
    }
}

/// A reader of the file sees a whole number or none.
pub(crate) fn write_pid_file(path: &Path, pid: i32) -> std::io::Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".cloister-pid-")
        // As runc's: for anybody to read.
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(dir)?;
    write!(file, "{pid}")?;
    file.persist(path)?;
    Ok(())
}

fn shared(path: String) -> SharedPath {
    SharedPath {
        tag: SHARE_TAG.into(),
        path,
        ..SharedPath::default()
    }
}
