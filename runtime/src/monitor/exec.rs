//! A further process of a container: what stands for it on the host.
//!
//! It is the command line itself in the foreground, and a monitor of its own otherwise. It relays
//! the process's streams and signals and ends as it does; if it is killed, the agent sees the
//! connection break and kills the process.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use cloister_vmm_api::Channel;
use tokio::sync::Notify;

use super::channel::AsyncChannel;
use super::ending::report_of;
use super::failure::Failure;
use super::life::write_pid_file;
use super::signals::{self, Meaning};
use super::stdio::Ended;
use super::streams::{self, Inherited, Plan};
use crate::agent::{Agent, AgentError, Exit, ProcessName};
use crate::id::ContainerId;
use crate::launch::{ExecLaunch, Order, Report};
use crate::logger;
use crate::namespaces;
use crate::paths::ContainerPaths;
use crate::process::ProcessId;
use crate::signal::Signal;
use crate::state::{self, Note, StateDir};
use crate::sys::{self, SignalFd};
use crate::text::chain;

/// How long the container's monitor may take to end when its virtual machine has.
const END_LIMIT: Duration = Duration::from_secs(5);

/// What a process that is to stand for another brings along.
#[derive(Debug)]
pub(super) struct ExecParts {
    pub(super) process: Vec<u8>,
    pub(super) signals: SignalFd,
    pub(super) inherited: Inherited,
    pub(super) console_socket: Option<OwnedFd>,
    /// Who hears that the program runs.
    pub(super) control: Option<Channel>,
    /// Whether the log has to leave the caller's standard error when the caller goes.
    pub(super) leaves_log: bool,
}

/// Executes a process and accompanies it from this process, whose streams it gets.
///
/// The process finds `preserved` from number 3 on. `size` tells the size of the caller's terminal. Every signal that can be blocked has to be.
///
/// # Errors
/// Why it could not be executed or was lost, with its causes.
pub fn exec_in_foreground(
    launch: &ExecLaunch,
    process: Vec<u8>,
    signals: SignalFd,
    preserved: Vec<OwnedFd>,
    size: Option<&dyn Fn() -> io::Result<(u16, u16)>>,
) -> Result<Exit, String> {
    let paths = ContainerPaths::new(&launch.root, &launch.id);
    // Only a list lacks it without: on a disk that is full one can still look into a container.
    let _note = Note::command(&paths)
        .inspect_err(|e| log::warn!("ps will not list this command: {}", chain(e)))
        .ok();
    let inherited = Inherited::share().map(|inherited| Inherited {
        preserved,
        ..inherited
    });
    let result = inherited.map_err(Failure::Own).and_then(|inherited| {
        let parts = ExecParts {
            process,
            signals,
            inherited,
            console_socket: None,
            control: None,
            leaves_log: false,
        };
        accompany(launch, parts, size)
    });
    result.map_err(|failure| chain(&failure))
}

/// Executes a process and accompanies it as its monitor.
pub(super) fn exec_detached(launch: &ExecLaunch, parts: ExecParts) -> Report {
    let paths = ContainerPaths::new(&launch.root, &launch.id);
    let result = Note::exec(&paths).map_err(Failure::from).and_then(|_note| {
        join_cgroup(launch)?;
        join_monitor(launch.monitor)?;
        accompany(launch, parts, None)
    });
    match result {
        Ok(exit) => report_of(exit),
        Err(failure) => Report::Failed {
            message: chain(&failure),
        },
    }
}

/// Goes into the container's cgroup on this machine, if it has one.
fn join_cgroup(launch: &ExecLaunch) -> Result<(), Failure> {
    let id = ContainerId::new(&launch.id).map_err(|_| Failure::MonitorGone)?;
    let state = StateDir::open(&launch.root, &id)?.load()?;
    if let Some(cgroup) = state.cgroup {
        cgroup.add_process(std::process::id())?;
    }
    Ok(())
}

/// Goes where the container's monitor is, so that `/proc/PID/ns` and `/proc/PID/cgroup` of this
/// process are the container's too.
fn join_monitor(monitor: ProcessId) -> Result<(), Failure> {
    let monitor = monitor.open().map_err(Failure::Own)?;
    let monitor = monitor.ok_or(Failure::MonitorGone)?;
    sys::join_namespaces(&monitor).map_err(Failure::Network)
}

fn accompany(
    launch: &ExecLaunch,
    parts: ExecParts,
    size: Option<&dyn Fn() -> io::Result<(u16, u16)>>,
) -> Result<Exit, Failure> {
    let ExecParts {
        process,
        signals,
        inherited,
        console_socket,
        control,
        leaves_log,
    } = parts;
    let machine = state::open_directory(&launch.machine)
        .map_err(|e| Failure::NoMachine(launch.machine.clone(), e))?;
    let (pty, plan) = streams::plan(launch.terminal, console_socket, inherited)?;
    let pty_size = || match &pty {
        Some(pty) => pty.size(),
        None => Ok((0, 0)),
    };
    let size: Option<&dyn Fn() -> io::Result<(u16, u16)>> = match &pty {
        Some(_) => Some(&pty_size),
        None => size,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(Failure::Own)?;
    let result = runtime.block_on(async {
        let control = control.map(AsyncChannel::new).transpose();
        let companion = Companion {
            launch,
            machine: machine.into(),
            control: control.map_err(Failure::Own)?,
            size,
            leaves_log,
            agent: RefCell::new(None),
            is_over: Cell::new(false),
            give_up: Notify::new(),
        };
        let signals = sys::watch(signals).map_err(Failure::Own)?;
        let result = tokio::select! {
            biased;
            result = companion.live(process, plan) => result,
            failure = companion.watch_signals(&signals) => Err(failure),
            failure = companion.watch_control() => Err(failure),
        };
        if result.is_err() {
            companion.give_up_process().await;
        }
        result
    });
    // Tasks that wait for the guest need not be waited for.
    runtime.shutdown_background();
    result
}

/// One process, from its execution to its end.
struct Companion<'a> {
    launch: &'a ExecLaunch,
    /// The state directory of its virtual machine.
    machine: OwnedFd,
    control: Option<AsyncChannel>,
    size: Option<&'a dyn Fn() -> io::Result<(u16, u16)>>,
    leaves_log: bool,
    /// There once the program runs.
    agent: RefCell<Option<Agent>>,
    is_over: Cell<bool>,
    give_up: Notify,
}

impl Companion<'_> {
    fn name(&self) -> ProcessName<'_> {
        ProcessName {
            container: &self.launch.id,
            exec: &self.launch.exec_id,
        }
    }

    /// Kills a program that runs and that nobody will stand for.
    async fn give_up_process(&self) {
        let agent = self.agent.borrow().clone();
        if let Some(agent) = agent
            && let Err(e) = agent.signal(self.name(), Signal::KILL, false).await
        {
            log::debug!("cannot kill the program: {e}");
        }
    }

    async fn live(&self, process: Vec<u8>, plan: Plan) -> Result<Exit, Failure> {
        let limit = self.launch.config.request_timeout;
        let agent = Agent::connect(&self.machine, limit).await?;
        let size = self.size.map_or(Ok((0, 0)), |size| size());
        let size = size.map_err(Failure::Terminal)?;
        let stdio = plan.stdio(size);
        let exec = async {
            let cgroup = self.launch.cgroup.clone();
            let patient = self.launch.ignore_paused;
            let answer = agent.exec(self.name(), process, stdio, cgroup, patient);
            answer.await.map_err(Failure::from)
        };
        // The agent waits for the streams that it was told of, so both go on together.
        let connect = plan.connect(&self.machine, limit);
        let ((), connected) = tokio::try_join!(exec, connect)?;
        let ended = Ended::new().map_err(Failure::Relay)?;
        let relays = connected.relay(&ended)?;
        *self.agent.borrow_mut() = Some(agent.clone());
        if let Some(path) = &self.launch.pid_file {
            let pid = ProcessId::current().map_err(Failure::Own)?.pid;
            write_pid_file(path, pid).map_err(|e| Failure::PidFile(path.clone(), e))?;
        }
        if let Some(control) = &self.control {
            let _ = control.send(&Report::Started);
        }
        if self.leaves_log {
            let paths = ContainerPaths::new(&self.launch.root, &self.launch.id);
            logger::move_to(logger::open(&paths.monitor_log()));
        }
        let exit = match agent.wait(self.name(), true).await {
            // With the container everything in it was killed, and nobody was left to say so.
            Err(AgentError::Lost { .. })
                if namespaces::has_ended(&self.launch.root, &self.launch.id, END_LIMIT) =>
            {
                Exit::killed()
            }
            result => result?,
        };
        self.is_over.set(true);
        let terminal = self.launch.terminal;
        relays.deliver(&ended, &self.give_up, terminal).await?;
        Ok(exit)
    }

    async fn watch_signals(
        &self,
        signals: &tokio::io::unix::AsyncFd<sys::Watched<SignalFd>>,
    ) -> Failure {
        loop {
            let signal = match signals::next(signals).await {
                Ok(signal) => signal,
                Err(e) => return Failure::Own(e),
            };
            let agent = self.agent.borrow().clone();
            match (signals::meaning(signal, self.size.is_some()), agent) {
                (Meaning::Own, _) => {}
                (Meaning::Forward(signal), _) if self.is_over.get() => {
                    if signals::asks_to_end(signal) {
                        self.give_up.notify_one();
                    }
                }
                (Meaning::Forward(signal), None) => {
                    if signals::asks_to_end(signal) {
                        return Failure::Interrupted(signal);
                    }
                }
                (Meaning::Resized, None) => {}
                (Meaning::Forward(signal), Some(agent)) => {
                    if let Err(e) = agent.signal(self.name(), signal, false).await {
                        log::warn!("cannot pass signal {} on: {e}", signal.number());
                    }
                }
                (Meaning::Resized, Some(agent)) => {
                    let resized = match self.size.map(|size| size()) {
                        Some(Ok((columns, rows))) => agent.resize(self.name(), columns, rows).await,
                        _ => Ok(()),
                    };
                    if let Err(e) = resized {
                        log::debug!("cannot resize the terminal: {e}");
                    }
                }
            }
        }
    }

    /// Ends when the command line goes away before the program runs.
    async fn watch_control(&self) -> Failure {
        let Some(control) = &self.control else {
            return std::future::pending().await;
        };
        loop {
            match control.recv::<Order>().await {
                Ok(Some(_)) => {}
                Ok(None) if self.agent.borrow().is_none() => return Failure::CallerGone,
                Ok(None) => return std::future::pending().await,
                Err(e) => return Failure::Own(io::Error::other(e)),
            }
        }
    }
}
