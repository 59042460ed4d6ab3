//! The further processes of a container, and what becomes of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cloister_container::Exec;
use rustix::process::WaitStatus;
use tokio::sync::watch;

use crate::containers::{ContainerError, Exit, lock};
use crate::session::Session;

/// The most executed processes of one container.
const MAX_EXECS: usize = 4096;

/// How long after the execution somebody has to begin to wait for a process.
const WAIT_LIMIT: Duration = Duration::from_secs(20);

/// The executed processes of one container.
#[derive(Debug, Default)]
pub(crate) struct Execs(Mutex<HashMap<String, Arc<Running>>>);

/// One of them, from its birth on.
#[derive(Debug)]
pub(crate) struct Running {
    pid: u32,
    /// There once its program runs.
    program: Mutex<Option<(Exec, Session)>>,
    exit: watch::Sender<Option<Exit>>,
    state: Mutex<State>,
}

/// Who waits for a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody yet.
    New,
    Awaited,
    /// Nobody any more.
    Abandoned,
}

impl Running {
    /// Where its end will be told.
    pub(crate) fn exit(&self) -> &watch::Sender<Option<Exit>> {
        &self.exit
    }

    /// Notes that its program runs.
    pub(crate) fn runs(&self, exec: Exec, session: Session) {
        *lock(&self.program) = Some((exec, session));
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: u32) -> Result<(), ContainerError> {
        match &*lock(&self.program) {
            Some((exec, _)) => Ok(exec.signal(signal)?),
            // Not known to anybody yet.
            None => Ok(()),
        }
    }

    /// Sets the size of its terminal.
    pub(crate) fn resize(&self, id: &str, columns: u16, rows: u16) -> Result<(), ContainerError> {
        match &*lock(&self.program) {
            Some((_, session)) => session.resize(id, columns, rows),
            None => Ok(()),
        }
    }

    fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }
}

impl Execs {
    /// Refuses an id that is in use.
    pub(crate) fn check(&self, id: &str) -> Result<(), ContainerError> {
        let execs = lock(&self.0);
        if execs.len() >= MAX_EXECS {
            return Err(ContainerError::TooManyExecs);
        }
        if execs.contains_key(id) {
            return Err(ContainerError::ExecExists { id: id.into() });
        }
        Ok(())
    }

    /// Takes in a process that was born, and that is not taken in already.
    pub(crate) fn insert(&self, id: String, pid: u32) -> Arc<Running> {
        let running = Arc::new(Running {
            pid,
            program: Mutex::new(None),
            exit: watch::Sender::new(None),
            state: Mutex::new(State::New),
        });
        lock(&self.0).insert(id, Arc::clone(&running));
        running
    }

    /// Forgets a process whose program never ran. It has ended.
    pub(crate) fn forget(&self, id: &str) {
        if let Some(running) = lock(&self.0).remove(id) {
            // Whoever waits for all of them waits for this one too.
            running.exit.send_replace(Some(Exit::unknown()));
        }
    }

    /// Kills a process that nobody has begun to wait for within [`WAIT_LIMIT`].
    pub(crate) async fn expect_wait(&self, id: &str, running: &Arc<Running>) {
        tokio::time::sleep(WAIT_LIMIT).await;
        let is_same = |other: &Arc<Running>| Arc::ptr_eq(other, running);
        if *lock(&running.state) == State::New && self.get(id).is_ok_and(|other| is_same(&other)) {
            log::warn!("process {id:?}: nobody waits for it");
            drop(Forget { execs: self, id });
        }
    }

    /// Finds a process.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Running>, ContainerError> {
        let found = lock(&self.0).get(id).cloned();
        found.ok_or_else(|| ContainerError::NoExec { id: id.into() })
    }

    /// Waits for the end of a process, and forgets it. A process that is not waited for to its end
    /// is killed.
    pub(crate) async fn wait(&self, id: &str) -> Result<Exit, ContainerError> {
        let running = self.get(id)?;
        *lock(&running.state) = State::Awaited;
        let _forget = Forget { execs: self, id };
        let mut exit = running.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await;
        exit.ok()
            .and_then(|exit| *exit)
            .ok_or_else(|| ContainerError::NoExec { id: id.into() })
    }

    /// Waits for the end of all of them.
    pub(crate) async fn wait_all(&self) {
        let all: Vec<_> = lock(&self.0).values().cloned().collect();
        for running in all {
            // The sender lives as long as `running`.
            let _ = running.exit.subscribe().wait_for(Option::is_some).await;
        }
    }

    /// Notes the end of a process; false if it is none of these.
    pub(crate) fn ended(&self, pid: u32, status: WaitStatus) -> bool {
        let mut execs = lock(&self.0);
        let found = execs
            .iter()
            // A pid may be used again once it has been reaped.
            .find(|(_, running)| running.pid == pid && !running.has_ended());
        let Some((id, running)) = found.map(|(id, running)| (id.clone(), Arc::clone(running)))
        else {
            return false;
        };
        running.exit.send_replace(Some(Exit::of(status, false)));
        if *lock(&running.state) == State::Abandoned {
            execs.remove(&id);
        }
        true
    }
}

/// Forgets a process when whoever has waited for it is done, or gone.
struct Forget<'a> {
    execs: &'a Execs,
    id: &'a str,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut execs = lock(&self.execs.0);
        let Some(running) = execs.get(self.id) else {
            return;
        };
        if let Some((_, session)) = &mut *lock(&running.program) {
            session.end_input();
        }
        if running.has_ended() {
            execs.remove(self.id);
            return;
        }
        *lock(&running.state) = State::Abandoned;
        if let Err(e) = running.signal(libc::SIGKILL.unsigned_abs()) {
            log::warn!("process {:?}: {}", self.id, crate::chain(&e));
        }
    }
}
