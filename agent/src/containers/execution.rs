//! What takes as long as a workload likes, and so goes on beside everything else.

use std::sync::Arc;

use cloister_container::Executing;

use super::{ContainerError, Slot};
use crate::execs::Running;
use crate::session::Session;
use crate::stdio::Relayed;
use crate::sys;

/// The execution of a program in a container, from the birth of its process on.
pub(super) struct Execution {
    pub(super) container: String,
    pub(super) id: String,
    pub(super) running: Arc<Running>,
    pub(super) slot: Arc<Slot>,
}

impl Execution {
    /// Waits until the program runs, relays its streams, and gives its pid.
    pub(super) async fn finish(
        self,
        executing: Executing,
        relayed: Relayed,
    ) -> Result<u32, ContainerError> {
        let Self {
            container,
            id,
            running,
            slot,
        } = self;
        // Meanwhile the other containers go on: the workload may have stopped the process.
        let result = on_thread(&container, "exec", move || executing.finish()).await;
        let started = result.and_then(|exec| {
            let mut exec = exec?;
            for warning in exec.warnings() {
                log::warn!("container {container:?}: {warning}");
            }
            let terminal = exec.take_terminal();
            match Session::start(&container, relayed, terminal, running.exit()) {
                Ok(session) => Ok((exec, session)),
                Err(e) => {
                    exec.signal(libc::SIGKILL.unsigned_abs())?;
                    Err(e)
                }
            }
        });
        let (exec, session) = match started {
            Ok(started) => started,
            Err(e) => {
                slot.execs.forget(&id);
                return Err(e);
            }
        };
        let pid = exec.pid();
        running.runs(exec, session);
        tokio::spawn(async move { slot.execs.expect_wait(&id, &running).await });
        Ok(pid)
    }
}

/// Does what may take long on a thread of its own.
pub(super) async fn on_thread<T: Send + 'static>(
    id: &str,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ContainerError> {
    let lost = |source| ContainerError::Thread {
        id: id.into(),
        source,
    };
    sys::on_thread(name, work).await.map_err(lost)
}
