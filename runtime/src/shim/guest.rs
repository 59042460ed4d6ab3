//! What is asked of a container's guest, and what its monitor has written down of its end.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use cloister::agent::{Agent, AgentError};
use cloister::cgroup::CgroupError;
use cloister::cgroup::stats::Stats;
use cloister::control::{self, ControlError, InterfaceCounters};
use cloister::figures::oom_kills;
use cloister::id::{ContainerId, IdError};
use cloister::monitor;
use cloister::state::{Phase, StateDir, StateError};
use tokio::task::{JoinError, spawn_blocking};

/// How long an agent may take to answer.
const LIMIT: Duration = Duration::from_secs(10);
/// The least time between two reports of the OOM killer: a guest must not keep this machine busy.
const OOM_PAUSE: Duration = Duration::from_millis(100);

/// Why a guest does not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    /// The container is none.
    #[error(transparent)]
    Id(#[from] IdError),
    /// It is not there.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its agent does not answer.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Its cgroup cannot be read.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// What its network has counted is not told.
    #[error("the figures of its network cannot be had")]
    Network(#[source] ControlError),
    /// Whoever was to ask has ended without an answer.
    #[error("the figures of its network cannot be had")]
    Asking(#[from] JoinError),
}

async fn agent(root: &Path, id: &str) -> Result<Agent, GuestError> {
    let dir = StateDir::open(root, &ContainerId::new(id)?)?;
    let machine = dir.open_machine(&dir.load()?)?;
    Ok(Agent::connect_for_listings(machine, LIMIT).await?)
}

/// The files of a container's cgroup in its guest.
pub(crate) async fn stats(root: &Path, id: &str) -> Result<HashMap<String, String>, GuestError> {
    Ok(agent(root, id).await?.stats(id).await?)
}

/// What the processes of a container's own virtual machine use on this machine; nothing if it is in
/// another's, or if nobody counts.
pub(crate) fn machine(root: &Path, id: &str) -> Result<Option<Stats>, GuestError> {
    let state = StateDir::open(root, &ContainerId::new(id)?)?.load()?;
    let cgroup = state.cgroup.filter(|_| state.vmm.is_some());
    Ok(cgroup.map(|cgroup| cgroup.stats()).transpose()?)
}

/// What the network interfaces of a container's own virtual machine have counted; nothing if it is in another's,
/// or has no network.
pub(crate) async fn network(root: &Path, id: &str) -> Result<Vec<InterfaceCounters>, GuestError> {
    let dir = StateDir::open(root, &ContainerId::new(id)?)?;
    if dir.load()?.network.is_none() {
        return Ok(Vec::new());
    }
    // The monitor asks the VMM, which may take its time.
    let asked = spawn_blocking(move || control::network_counters(dir.file(), LIMIT));
    asked.await?.map_err(GuestError::Network)
}

/// Whether a container's guest answers.
pub(crate) async fn ping(root: &Path, id: &str) -> Result<(), GuestError> {
    agent(root, id).await.map(drop)
}

/// Calls `tell` each time the OOM killer has struck in a container. Ends with an error, at the
/// latest with the container.
pub(crate) async fn follow_oom(root: &Path, id: &str, tell: impl Fn()) -> Result<(), GuestError> {
    let agent = agent(root, id).await?;
    let mut known = oom_kills(&agent.stats(id).await?);
    if known > 0 {
        tell();
    }
    loop {
        let count = agent.wait_oom(id, known).await?;
        if count > known {
            known = count;
            tell();
        }
        tokio::time::sleep(OOM_PAUSE).await;
    }
}

/// The end of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct End {
    /// Why, if it was not its own doing.
    pub(crate) loss: Option<String>,
    /// Whether there was no memory left: in its guest, or for one that was lost on this machine.
    pub(crate) is_oom: bool,
}

/// How a container has ended.
pub(crate) fn end(root: &Path, id: &str) -> End {
    let state = ContainerId::new(id).ok().and_then(|id| {
        let dir = StateDir::open(root, &id).ok()?;
        dir.load().ok()
    });
    // Of one that was removed meanwhile there is nothing to say.
    let Some(state) = state else {
        return End::default();
    };
    let loss = match state.phase {
        Phase::Exited {
            error: None,
            oom_killed,
            ..
        } => {
            return End {
                loss: None,
                is_oom: oom_killed,
            };
        }
        Phase::Exited {
            error: Some(error), ..
        } => error,
        // Its monitor was killed before it could write anything down.
        Phase::Creating | Phase::Created => {
            monitor::lost("its monitor was killed".into(), state.cgroup.as_ref())
        }
    };
    // One that cannot be read has not told of the OOM killer.
    let kills = state.cgroup.map(|cgroup| cgroup.oom_kills().unwrap_or(0));
    End {
        loss: Some(loss),
        is_oom: kills.is_some_and(|kills| kills > 0),
    }
}
