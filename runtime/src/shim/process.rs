//! A process of a task: the first of a container, or one that is executed in it.
//!
//! ```text
//!   created ──start──▶ running ──end──▶ stopped
//!      └────────────────end───────────────▲
//! ```

use std::sync::{Mutex, MutexGuard, PoisonError};

use containerd_shim_protos::api::Status;
use tokio::sync::watch;

use super::console::Console;
use super::reaper::Ended;
use super::streaming::Named;
use super::streams::{Holder, Logger, Names};

/// What changes.
#[derive(Debug, Default)]
struct Inner {
    /// The process that stands for it; 0 until it is there.
    pid: u32,
    is_started: bool,
    /// containerd may close standard input while the process is being made.
    is_stdin_closed: bool,
    stdin_holder: Option<Holder>,
    console: Option<Console>,
    logger: Option<Logger>,
    named: Vec<Named>,
}

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) names: Names,
    inner: Mutex<Inner>,
    ended: watch::Sender<Option<Ended>>,
    /// Whoever starts it holds this until containerd has been told; its end is told after that.
    pub(crate) start: tokio::sync::Mutex<()>,
}

/// What belongs to a process once it is there.
#[derive(Debug, Default)]
pub(crate) struct Belongings {
    pub(crate) stdin_holder: Option<Holder>,
    pub(crate) console: Option<Console>,
    pub(crate) logger: Option<Logger>,
    pub(crate) named: Vec<Named>,
}

impl Process {
    /// One that is not there yet.
    pub(crate) fn new(names: Names) -> Self {
        Self {
            names,
            inner: Mutex::default(),
            ended: watch::Sender::new(None),
            start: tokio::sync::Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code that could panic runs under the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is there.
    pub(crate) fn exists(&self, pid: u32, belongings: Belongings) {
        let mut inner = self.lock();
        inner.pid = pid;
        inner.stdin_holder = belongings.stdin_holder.filter(|_| !inner.is_stdin_closed);
        inner.console = belongings.console;
        inner.logger = belongings.logger;
        inner.named = belongings.named;
    }

    /// Its program runs.
    pub(crate) fn mark_started(&self) {
        self.lock().is_started = true;
    }

    /// The process on this machine that stands for it; 0 before there is one.
    pub(crate) fn pid(&self) -> u32 {
        self.lock().pid
    }

    /// How it has ended.
    pub(crate) fn ended(&self) -> Option<Ended> {
        *self.ended.borrow()
    }

    /// How far it is.
    pub(crate) fn status(&self) -> Status {
        if self.ended().is_some() {
            Status::STOPPED
        } else if self.lock().is_started {
            Status::RUNNING
        } else {
            Status::CREATED
        }
    }

    /// Waits for its end.
    pub(crate) async fn wait(&self) -> Ended {
        let mut ended = self.ended.subscribe();
        loop {
            if let Some(ended) = *ended.borrow_and_update() {
                return ended;
            }
            // The sender is this object's own.
            let _ = ended.changed().await;
        }
    }

    /// It has ended. What it wrote last is delivered first.
    pub(crate) async fn finish(&self) {
        let console = self.lock().console.take();
        if let Some(console) = console {
            console.drain().await;
        }
    }

    /// Tells whoever waits.
    pub(crate) fn tell(&self, ended: Ended) {
        self.lock().stdin_holder = None;
        self.ended.send_replace(Some(ended));
    }

    /// containerd writes nothing more to its standard input.
    pub(crate) fn close_stdin(&self) {
        let mut inner = self.lock();
        inner.is_stdin_closed = true;
        inner.stdin_holder = None;
    }

    /// Sets the size of its terminal; `None` if it has none.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Option<std::io::Result<()>> {
        let inner = self.lock();
        inner
            .console
            .as_ref()
            .map(|console| console.resize(columns, rows))
    }

    /// Ends what belongs to it.
    pub(crate) async fn dispose(&self) {
        let logger = {
            let mut inner = self.lock();
            inner.stdin_holder = None;
            inner.console = None;
            inner.named.clear();
            inner.logger.take()
        };
        if let Some(logger) = logger {
            logger.end().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;

    #[tokio::test]
    async fn an_end_is_told_to_everybody_at_any_time() {
        let process = Arc::new(Process::new(Names::default()));
        assert_eq!(process.status(), Status::CREATED);
        let waiter = {
            let process = Arc::clone(&process);
            tokio::spawn(async move { process.wait().await })
        };
        process.exists(7, Belongings::default());
        process.mark_started();
        assert_eq!((process.pid(), process.status()), (7, Status::RUNNING));
        let ended = Ended {
            code: 3,
            at: SystemTime::now(),
        };
        process.tell(ended);
        assert_eq!(waiter.await.unwrap(), ended);
        assert_eq!(process.wait().await, ended);
        assert_eq!(process.status(), Status::STOPPED);
    }

    #[test]
    fn standard_input_may_be_closed_before_the_process_is_there() {
        let process = Process::new(Names::default());
        process.close_stdin();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let belongings = Belongings {
            stdin_holder: Some(Holder::Fifo(writer.into())),
            ..Belongings::default()
        };
        process.exists(7, belongings);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}
