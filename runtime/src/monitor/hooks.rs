//! The hooks that the monitor runs.
//!
//! They block, so each list gets a thread of its own. The threads are where the runtime is, as most
//! hooks have to be (config.md#posix-platform-hooks); that of `createContainer` hooks enters the
//! namespaces that the first thread holds for the container. A hook does not outlive the monitor.

use std::io;
use std::path::PathBuf;

use oci_spec::runtime::Hooks;
use tokio::sync::oneshot;

use super::failure::Failure;
use crate::hooks::{self, Kind, Surroundings};
use crate::process::ProcessId;
use crate::state::{HookState, Status};
use crate::sys;

/// The hooks of a container, if it has any.
pub(crate) struct HookRunner {
    hooks: Hooks,
    state: HookState,
    bundle: PathBuf,
    rootfs: PathBuf,
}

impl HookRunner {
    pub(crate) fn new(hooks: Hooks, state: HookState, rootfs: PathBuf) -> Self {
        Self {
            hooks,
            bundle: state.bundle.clone(),
            rootfs,
            state,
        }
    }

    /// Runs what belongs to the creation.
    pub(crate) async fn create(&self) -> Result<(), Failure> {
        self.run(Kind::Prestart, Status::Creating).await?;
        self.run(Kind::CreateRuntime, Status::Creating).await?;
        self.run(Kind::CreateContainer, Status::Creating).await
    }

    /// Runs the `poststart` hooks.
    pub(crate) async fn started(&self) -> Result<(), Failure> {
        self.run(Kind::Poststart, Status::Running).await
    }

    async fn run(&self, kind: Kind, status: Status) -> Result<(), Failure> {
        match self.start(kind, status)? {
            Some(answer) => answered(answer.await),
            None => Ok(()),
        }
    }

    /// Runs the `poststop` hooks; what fails is for the log.
    pub(crate) fn stopped(&self) {
        let result = match self.start(Kind::Poststop, Status::Stopped) {
            Ok(Some(answer)) => answered(answer.blocking_recv()),
            Ok(None) => Ok(()),
            Err(e) => Err(e),
        };
        if let Err(e) = result {
            log::warn!("{}", crate::text::chain(&e));
        }
    }

    /// Starts the thread that runs the hooks of a kind, if there are any.
    fn start(
        &self,
        kind: Kind,
        status: Status,
    ) -> Result<Option<oneshot::Receiver<Result<(), Failure>>>, Failure> {
        let list = kind.of(&self.hooks).to_vec();
        if list.is_empty() {
            return Ok(None);
        }
        let pid = ProcessId::current().map_err(Failure::Own)?.pid;
        let state = self.state.json(status, pid);
        // As with runc, where these are run when everything is mounted there.
        let dir = match kind {
            Kind::CreateContainer => self.rootfs.clone(),
            _ => self.bundle.clone(),
        };
        let container = match kind {
            Kind::CreateContainer => Some(ProcessId::current().and_then(ProcessId::open)),
            _ => None,
        };
        let container = container.transpose().map_err(Failure::Own)?.flatten();
        let (sender, answer) = oneshot::channel();
        std::thread::Builder::new()
            .name("hooks".into())
            .spawn(move || {
                if let Some(container) = container
                    && let Err(e) = sys::join_namespaces(&container)
                {
                    let _ = sender.send(Err(Failure::Network(e)));
                    return;
                }
                let surroundings = Surroundings {
                    dir: &dir,
                    network: None,
                };
                let result = if kind == Kind::Poststop {
                    // All of them, whatever comes of the first.
                    for e in hooks::run_all(kind, &list, &state, surroundings) {
                        log::warn!("{}", crate::text::chain(&e));
                    }
                    Ok(())
                } else {
                    hooks::run(kind, &list, &state, surroundings).map_err(Failure::from)
                };
                // Whoever asked may have given up.
                let _ = sender.send(result);
            })
            .map_err(Failure::Own)?;
        Ok(Some(answer))
    }
}

fn answered(answer: Result<Result<(), Failure>, oneshot::error::RecvError>) -> Result<(), Failure> {
    answer.unwrap_or_else(|e| Err(Failure::Own(io::Error::other(e))))
}
