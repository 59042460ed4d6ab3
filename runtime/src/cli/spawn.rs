//! Starting a monitor, and cleaning up after one that did not get to it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::Context;
use cloister::launch::{self, Job, Order, Report};
use cloister::logger;
use cloister::paths::SELF_EXE;
use cloister::process::ProcessId;
use cloister::signal::Signal;
use cloister::state::StateDir;
use cloister_vmm_api::Channel;
use rustix::io::FdFlags;
use rustix::process::{Pid, Signal as HostSignal, WaitOptions, waitpid};

use super::Fatal;
use super::delete::{leave_sandbox, poststop, restore_network};

/// The programs that a monitor starts, as the kernel names their processes.
const WORKERS: [&str; 2] = ["cloister-vmm", "cloister-fs"];
/// How long a process that is about to end may take.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait before a child is looked for again.
const PAUSE: Duration = Duration::from_millis(2);

/// What runc sends beside the pidfd of a container's first process, and of a further one.
pub(crate) const PIDFD_OF_CONTAINER: &str = "standard";
pub(crate) const PIDFD_OF_EXEC: &str = "setns";

/// A monitor that was started by this process.
pub(crate) struct Monitor {
    child: Child,
    channel: Channel,
    dir: StateDir,
}

impl Monitor {
    /// Starts the monitor of the container whose directory is `dir`, which is removed again if
    /// that fails.
    pub(crate) fn start(
        dir: StateDir,
        job: &Job,
        spec: &[u8],
        console_socket: Option<&OwnedFd>,
        log: Option<&File>,
        preserved: &[OwnedFd],
    ) -> Result<Self, Fatal> {
        let (child, channel) = match spawn(dir.id().as_str()) {
            Ok(started) => started,
            Err(e) => {
                dir.remove()?;
                return Err(e.into());
            }
        };
        let this = Self {
            child,
            channel,
            dir,
        };
        match launch::send(&this.channel, job, spec, console_socket, log, preserved) {
            Ok(()) => Ok(this),
            // The monitor ends when it reads the end of the socket.
            Err(e) => Err(this.clean_up(anyhow::Error::new(e))),
        }
    }

    /// Passes a signal on; a monitor that has ended is noticed by its socket.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        // The child is not reaped yet, so the pid is its own.
        match ProcessId::of(self.child.id().cast_signed()) {
            Ok(process) => process.signal(signal).map(|_| ()),
            Err(e) => Err(e),
        }
    }

    /// The monitor's pid, which stays its own until it is waited for.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The container's directory.
    pub(crate) fn dir(&self) -> &StateDir {
        &self.dir
    }

    /// The socket over which reports come.
    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Waits for the next report; `None` if the monitor is gone.
    pub(crate) fn report(&self) -> anyhow::Result<Option<Report>> {
        let message = self.channel.recv().context("cannot hear the monitor")?;
        Ok(message.map(|(report, _)| report))
    }

    /// Passes an order on, if the monitor is still there.
    pub(crate) fn order(&self, order: Order) {
        // Its end is noticed where its reports are awaited.
        let _ = self.channel.send(&order, &[]);
    }

    /// Waits for the end of a monitor that has said its last word.
    pub(crate) fn wait(mut self) -> io::Result<ExitStatus> {
        drop(self.channel);
        self.child.wait()
    }

    /// After the monitor went away without a word: ends what it has started, removes its traces,
    /// and says what happened. If it was killed, the exit code is a shell's for that.
    pub(crate) fn clean_up(self, cause: anyhow::Error) -> Fatal {
        let Self {
            mut child,
            channel,
            dir,
        } = self;
        drop(channel);
        let (how, code) = match child.wait() {
            Ok(status) => describe(status),
            Err(e) => (format!("is lost: {e}"), 1),
        };
        let mut error = cause.context(format!("the monitor {how}"));
        if let Ok(state) = dir.load() {
            for worker in [state.vmm, state.fs].into_iter().flatten() {
                if let Err(e) = end(worker) {
                    error = error.context(format!("process {}: {e}", worker.pid));
                }
            }
        }
        reap_workers();
        let state = dir.load().ok();
        if let (Some(state), Some(root)) = (&state, dir.paths().dir().parent()) {
            leave_sandbox(root, END_LIMIT, state);
            if let Err(e) = restore_network(root, state) {
                error = error.context(format!("{e:#}"));
            }
            if let Some(cgroup) = &state.cgroup
                && let Err(e) = cgroup.kill_own().and_then(|()| cgroup.remove())
            {
                error = error.context(format!("{e:#}"));
            }
        }
        if let Err(e) = dir.remove() {
            error = error.context(format!("{e:#}"));
        }
        if let Some(state) = &state {
            poststop(state);
        }
        Fatal::new(code, error)
    }
}

/// A monitor of a further process of a container.
pub(crate) struct Detached<'a> {
    pub(crate) id: &'a str,
    pub(crate) job: &'a Job,
    pub(crate) process: &'a [u8],
    pub(crate) console_socket: Option<&'a OwnedFd>,
    pub(crate) pidfd_socket: Option<&'a OwnedFd>,
    pub(crate) log: Option<&'a Path>,
    pub(crate) preserved: &'a [OwnedFd],
}

impl Detached<'_> {
    /// Starts it and waits until its program runs.
    pub(crate) fn start(&self) -> Result<u8, Fatal> {
        let log = self.log.map(logger::open).transpose()?;
        let (mut child, channel) = spawn(self.id)?;
        // A monitor that is told nothing ends with the socket.
        if let Some(socket) = self.pidfd_socket {
            send_pidfd(socket, Pid::from_child(&child), PIDFD_OF_EXEC)?;
        }
        launch::send(
            &channel,
            self.job,
            self.process,
            self.console_socket,
            log.as_ref(),
            self.preserved,
        )?;
        match channel.recv::<Report>()? {
            // Whoever waits for it sees how it ends.
            Some((Report::Started | Report::Exited { .. }, _)) => Ok(0),
            Some((Report::Failed { message } | Report::Lost { message }, _)) => {
                child.wait()?;
                Err(anyhow::anyhow!(message).into())
            }
            Some((Report::Created, _)) | None => {
                let (how, code) = describe(child.wait()?);
                Err(Fatal::new(code, anyhow::anyhow!("the monitor {how}")))
            }
        }
    }
}

/// Sends a pidfd of a process over a socket beside runc's name of what it is.
pub(crate) fn send_pidfd(socket: &OwnedFd, pid: Pid, what: &str) -> anyhow::Result<()> {
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .context("cannot open the monitor")?;
    cloister::sys::send_fd(socket, &pidfd, what.as_bytes()).context("cannot send the pidfd")
}

/// Starts a monitor, which then waits for its orders.
fn spawn(id: &str) -> anyhow::Result<(Child, Channel)> {
    let (channel, theirs) = Channel::pair()?;
    let fd = theirs.as_fd();
    // Inherited, for the one child that is started before it is closed again.
    rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
    let child = Command::new(SELF_EXE)
        .arg0("cloister")
        .arg("monitor")
        .arg(fd.as_raw_fd().to_string())
        .arg(id)
        .spawn()
        .context("cannot start the monitor")?;
    Ok((child, channel))
}

fn describe(status: ExitStatus) -> (String, u8) {
    match (status.signal(), status.code()) {
        (Some(signal), _) => (
            format!("was killed by signal {signal}"),
            u8::try_from(128 + signal).unwrap_or(u8::MAX),
        ),
        (None, Some(code)) => (format!("ended with code {code}"), 1),
        (None, None) => ("ended".into(), 1),
    }
}

fn end(process: ProcessId) -> io::Result<()> {
    process.signal(Signal::KILL)?;
    if process.wait_ended(END_LIMIT)? {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        "was killed and does not end",
    ))
}

/// Kills and reaps the workers that this process has inherited from a monitor as its sub-reaper.
fn reap_workers() {
    let deadline = Instant::now() + END_LIMIT;
    loop {
        let workers = inherited_workers();
        for pid in &workers {
            // One that has ended meanwhile is reaped below.
            let _ = rustix::process::kill_process(*pid, HostSignal::KILL);
            let _ = waitpid(Some(*pid), WaitOptions::NOHANG);
        }
        if workers.is_empty() || Instant::now() > deadline {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

fn inherited_workers() -> Vec<Pid> {
    let me = rustix::process::getpid().as_raw_pid();
    let children = format!("/proc/{me}/task/{me}/children");
    let children = std::fs::read_to_string(children).unwrap_or_default();
    children
        .split_ascii_whitespace()
        .filter(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| WORKERS.contains(&name.trim_end()))
        })
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}
