//! What can cut a container's life short: the end of a process of its machine, a signal, the command
//! line that goes.

use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::time::Duration;

use cloister_protocol::{LOG_PORT, READY_PORT};
use cloister_vmm_api::fs::Reply;
use cloister_vmm_api::{Event, ExitReason};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{CAUSE_LIMIT, GONE_LIMIT, Life, Stage};
use crate::agent::ProcessName;
use crate::launch::Order;
use crate::monitor::channel::AsyncChannel;
use crate::monitor::failure::Failure;
use crate::monitor::machine::{Machine, Worker};
use crate::monitor::signals::{self, Meaning};
use crate::monitor::terminal::Pty;
use crate::monitor::vmm::Vmm;
use crate::text::printable;

/// How long the VMM may take to say why it ends when something has ended with it.
const WORD_LIMIT: Duration = Duration::from_secs(5);
/// The longest text of a worker that is shown, in bytes.
const REASON_MAX: usize = 4096;

impl Life<'_> {
    /// Ends when something is wrong.
    pub(super) async fn watch(
        &self,
        ready: oneshot::Sender<UnixStream>,
        log: mpsc::Sender<UnixStream>,
    ) -> Failure {
        tokio::select! {
            biased;
            failure = self.watch_workers(ready, log) => failure,
            failure = self.watch_signals() => failure,
            failure = self.watch_control() => failure,
            failure = self.serve() => failure,
        }
    }

    /// When one of the two processes ends, the other is not long in following: tells which one
    /// was the cause.
    async fn watch_workers(
        &self,
        ready: oneshot::Sender<UnixStream>,
        log: mpsc::Sender<UnixStream>,
    ) -> Failure {
        let (Some(vmm), Some(fs)) = (&self.vmm, &self.fs) else {
            // Of another's machine only the agent is seen.
            return std::future::pending().await;
        };
        let mut vm = std::pin::pin!(self.watch_vm(vmm, ready, log));
        let mut fs = std::pin::pin!(self.watch_fs(fs));
        let failure = tokio::select! {
            biased;
            (failure, killed) = &mut vm => {
                let cause = if killed || self.progress.stopping.get() {
                    None
                } else {
                    timeout(CAUSE_LIMIT, &mut fs).await.ok()
                };
                match cause {
                    Some((cause, FsEnd::Reason)) => cause,
                    _ => failure,
                }
            }
            (failure, end) = &mut fs => {
                let in_order = matches!(end, FsEnd::InOrder);
                let limit = match end {
                    FsEnd::Reason => None,
                    // It ends in order when the VMM goes: there is a cause.
                    FsEnd::InOrder => Some(WORD_LIMIT),
                    FsEnd::Broken => Some(CAUSE_LIMIT),
                };
                let cause = match limit {
                    Some(limit) => timeout(limit, &mut vm).await.ok(),
                    None => None,
                };
                match cause {
                    Some((cause, killed)) if killed || in_order => cause,
                    _ => failure,
                }
            }
        };
        if self.progress.stopping.get() {
            self.progress.stopped.notify_one();
            return std::future::pending().await;
        }
        failure
    }

    /// Ends with the VMM, and says whether it was killed without a last word.
    async fn watch_vm(
        &self,
        vmm: &Vmm,
        ready: oneshot::Sender<UnixStream>,
        log: mpsc::Sender<UnixStream>,
    ) -> (Failure, bool) {
        let mut ready = Some(ready);
        loop {
            let (event, mut fds) = match vmm.recv().await {
                Ok(Some(message)) => message,
                Ok(None) => {
                    let how = describe(self.status(|machine| &mut machine.vmm));
                    return (Failure::VmEnded(format!("its process {how}")), true);
                }
                Err(e) => return (Failure::VmContract(e.to_string()), false),
            };
            match event {
                Event::Booted { timeline } => self.timeline.borrow_mut().vm(&timeline),
                Event::GuestConnect { port } => {
                    let Some(stream) = fds.pop().map(stream_from_fd) else {
                        let text = format!("a connection to port {port} without a stream");
                        return (Failure::VmContract(text), false);
                    };
                    match (port, stream) {
                        (_, Err(e)) => return (Failure::VmContract(e.to_string()), false),
                        // The agent calls once; what else calls is turned away by closing.
                        (READY_PORT, Ok(stream)) => {
                            if let Some(ready) = ready.take() {
                                let _ = ready.send(stream);
                            }
                        }
                        (LOG_PORT, Ok(stream)) => {
                            let _ = log.try_send(stream);
                        }
                        _ => {}
                    }
                }
                Event::Paused | Event::Resumed => {}
                event @ (Event::NetAttached { .. }
                | Event::NetDetached { .. }
                | Event::LinkSet { .. }
                | Event::NetRefused { .. }
                | Event::NetCounters { .. }
                | Event::VcpusAdded { .. }
                | Event::Memory { .. }
                | Event::GrowthRefused { .. }) => vmm.answered(event),
                Event::Exited { reason, timeline } => {
                    self.timeline.borrow_mut().vm(&timeline);
                    let reason = match reason {
                        ExitReason::HostError { message } => printable(&message, REASON_MAX),
                        reason => reason.to_string(),
                    };
                    return (Failure::VmEnded(reason), false);
                }
            }
        }
    }

    /// Ends with the file server, and says how it ended.
    async fn watch_fs(&self, fs: &AsyncChannel) -> (Failure, FsEnd) {
        loop {
            match fs.recv::<Reply>().await {
                Ok(Some((Reply::Ready, _))) => self.reached("fs_ready"),
                Ok(Some((Reply::Error { message }, _))) => {
                    let reason = printable(&message, REASON_MAX);
                    return (Failure::FileServer(reason), FsEnd::Reason);
                }
                Ok(None) => {
                    let status = self.status(|machine| &mut machine.fs);
                    let end = match status {
                        Some(status) if status.success() => FsEnd::InOrder,
                        _ => FsEnd::Broken,
                    };
                    let how = describe(status);
                    return (Failure::FileServer(format!("its process {how}")), end);
                }
                Err(e) => return (Failure::FileServer(e.to_string()), FsEnd::Reason),
            }
        }
    }

    /// How a worker whose socket has closed has ended, if it has.
    fn status(&self, which: impl FnOnce(&mut Machine) -> &mut Worker) -> Option<ExitStatus> {
        let mut machine = self.machine.borrow_mut();
        which(machine.as_mut()?).reap(GONE_LIMIT)
    }

    async fn watch_signals(&self) -> Failure {
        loop {
            let signal = match signals::next(&self.signals).await {
                Ok(signal) => signal,
                Err(e) => return Failure::Own(e),
            };
            match (
                signals::meaning(signal, self.pty.is_some()),
                self.progress.stage.get(),
            ) {
                (Meaning::Own, _) => {}
                (Meaning::Resized, _) => match self.pty.map(Pty::size) {
                    Some(Ok(size)) => {
                        self.progress.size.set(size);
                        self.resize().await;
                    }
                    Some(Err(e)) => log::warn!("cannot read the size of the terminal: {e}"),
                    None => {}
                },
                (Meaning::Forward(signal), Stage::Booting) if signals::asks_to_end(signal) => {
                    return Failure::Interrupted(signal);
                }
                (Meaning::Forward(_), Stage::Booting) => {}
                (Meaning::Forward(signal), Stage::Live) => {
                    let init = ProcessName::init(&self.launch.id);
                    if let Some(agent) = self.agent_now()
                        && let Err(e) = agent.signal(init, signal, false).await
                    {
                        log::warn!("cannot pass signal {} on: {e}", signal.number());
                    }
                }
                (Meaning::Forward(signal), Stage::Ending) if signals::asks_to_end(signal) => {
                    self.progress.give_up.notify_one();
                }
                (Meaning::Forward(_), Stage::Ending) => {}
            }
        }
    }

    async fn watch_control(&self) -> Failure {
        loop {
            match self.control.recv::<Order>().await {
                Ok(Some((Order::Resize { columns, rows }, _))) => {
                    self.progress.size.set((columns, rows));
                    self.resize().await;
                }
                Ok(None) if self.progress.stage.get() == Stage::Booting => {
                    return Failure::CallerGone;
                }
                // Nobody waits for reports any more; the container lives on.
                Ok(None) => std::future::pending().await,
                Err(e) => return Failure::Own(std::io::Error::other(e)),
            }
        }
    }
}

/// How the file server has ended.
enum FsEnd {
    /// It has given a reason.
    Reason,
    /// With success, as when the VMM has closed its socket.
    InOrder,
    /// In another way.
    Broken,
}

fn describe(status: Option<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.map(|status| (status.signal(), status.code())) {
        None => "has closed its control socket".into(),
        Some((Some(signal), _)) => format!("was killed by signal {signal}"),
        Some((None, Some(code))) => format!("exited with code {code}"),
        Some((None, None)) => "ended".into(),
    }
}

fn stream_from_fd(fd: OwnedFd) -> std::io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}
