//! The further processes of a container, and what becomes of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};

use cloister_container::Exec;
use rustix::process::WaitStatus;
use tokio::sync::watch;

use crate::containers::{ContainerError, Exit, lock};
use crate::session::Session;

/// The most executed processes of one container.
const MAX_EXECS: usize = 4096;

/// The executed processes of one container.
#[derive(Debug, Default)]
pub(crate) struct Execs(Mutex<HashMap<String, Arc<Running>>>);

/// One of them.
#[derive(Debug)]
pub(crate) struct Running {
    exec: Exec,
    session: Mutex<Session>,
    exit: watch::Sender<Option<Exit>>,
    /// Whether nobody waits for it any more.
    abandoned: Mutex<bool>,
}

impl Running {
    pub(crate) fn new(exec: Exec, session: Session, exit: watch::Sender<Option<Exit>>) -> Self {
        Self {
            exec,
            session: Mutex::new(session),
            exit,
            abandoned: Mutex::new(false),
        }
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: u32) -> Result<(), ContainerError> {
        Ok(self.exec.signal(signal)?)
    }

    /// Sets the size of its terminal.
    pub(crate) fn resize(&self, id: &str, columns: u16, rows: u16) -> Result<(), ContainerError> {
        lock(&self.session).resize(id, columns, rows)
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

    /// Takes in a process that runs.
    pub(crate) fn insert(&self, id: String, running: Running) -> Result<(), ContainerError> {
        match lock(&self.0).entry(id) {
            Entry::Occupied(entry) => Err(ContainerError::ExecExists {
                id: entry.key().clone(),
            }),
            Entry::Vacant(entry) => {
                entry.insert(Arc::new(running));
                Ok(())
            }
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
            .find(|(_, running)| running.exec.pid() == pid && !running.has_ended());
        let Some((id, running)) = found.map(|(id, running)| (id.clone(), Arc::clone(running)))
        else {
            return false;
        };
        running.exit.send_replace(Some(Exit::of(status, false)));
        if *lock(&running.abandoned) {
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
        lock(&running.session).end_input();
        if running.has_ended() {
            execs.remove(self.id);
            return;
        }
        *lock(&running.abandoned) = true;
        if let Err(e) = running.exec.signal(libc::SIGKILL.unsigned_abs()) {
            log::warn!("process {:?}: {}", self.id, crate::chain(&e));
        }
    }
}
