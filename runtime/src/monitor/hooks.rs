//! The hooks that the monitor runs.
//!
//! They block, so each list gets a thread of its own. Most hooks belong to the runtime's
//! namespaces (config.md#posix-platform-hooks), which the monitor leaves for those that it holds
//! for the container: their thread goes back. A hook does not outlive the monitor.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use oci_spec::runtime::Hooks;
use tokio::sync::oneshot;

use super::failure::Failure;
use crate::hooks::{self, HookError, Kind, Surroundings};
use crate::process::ProcessId;
use crate::state::{HookState, Status};
use crate::sys;

/// The namespaces in which the monitor is not where the runtime is.
const NAMESPACES: [&str; 3] = ["net", "ipc", "uts"];

/// The hooks of a container, if it has any.
pub(crate) struct HookRunner {
    hooks: Hooks,
    state: HookState,
    bundle: PathBuf,
    /// The runtime's namespaces.
    runtime: Vec<File>,
}

impl HookRunner {
    /// To be made while this process is in the runtime's namespaces.
    pub(crate) fn new(hooks: Hooks, state: HookState) -> io::Result<Self> {
        let open = |name| File::open(format!("/proc/self/ns/{name}"));
        Ok(Self {
            hooks,
            bundle: state.bundle.clone(),
            state,
            runtime: NAMESPACES.into_iter().map(open).collect::<Result<_, _>>()?,
        })
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
    ) -> Result<Option<oneshot::Receiver<Result<(), HookError>>>, Failure> {
        let list = kind.of(&self.hooks).to_vec();
        if list.is_empty() {
            return Ok(None);
        }
        let pid = ProcessId::current().map_err(Failure::Own)?.pid;
        let state = self.state.json(status, pid);
        let bundle = self.bundle.clone();
        let runtime = match kind {
            Kind::CreateContainer => Ok(Vec::new()),
            _ => self.runtime.iter().map(File::try_clone).collect(),
        };
        let runtime: Vec<File> = runtime.map_err(Failure::Own)?;
        let (sender, answer) = oneshot::channel();
        std::thread::Builder::new()
            .name("hooks".into())
            .spawn(move || {
                let moved = runtime.iter().try_for_each(|fd| sys::join(fd, 0));
                if let Err(e) = moved {
                    // The answer fails with the sender that is dropped.
                    return log::error!("cannot return to the runtime's namespaces: {e}");
                }
                let surroundings = Surroundings {
                    dir: &bundle,
                    network: None,
                };
                let result = if kind == Kind::Poststop {
                    // All of them, whatever comes of the first.
                    for e in hooks::run_all(kind, &list, &state, surroundings) {
                        log::warn!("{}", crate::text::chain(&e));
                    }
                    Ok(())
                } else {
                    hooks::run(kind, &list, &state, surroundings)
                };
                // Whoever asked may have given up.
                let _ = sender.send(result);
            })
            .map_err(Failure::Own)?;
        Ok(Some(answer))
    }
}

fn answered(
    answer: Result<Result<(), HookError>, oneshot::error::RecvError>,
) -> Result<(), Failure> {
    match answer {
        Ok(result) => Ok(result?),
        Err(e) => Err(Failure::Own(io::Error::other(e))),
    }
}
