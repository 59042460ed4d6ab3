//! `cloister start`.

use std::time::Duration;

use cloister::agent::AgentError;
use cloister::control;
use cloister::hooks::{self, Kind, Surroundings};
use cloister::state::{Phase, State, StateDir, Status};

use super::container::Container;
use super::kill::kill_processes;
use super::{Fatal, Globals};

/// How long a monitor whose machine is gone may take to write its last word.
const END_LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn start(globals: &Globals, id: &str) -> Result<u8, Fatal> {
    let container = Container::lock(globals, id)?;
    let Container { dir, state, .. } = &container;
    // runc's words, and the container's name.
    match container.status {
        Status::Created => {}
        Status::Stopped => {
            return Err(anyhow::anyhow!("cannot start a container that has stopped: {id}").into());
        }
        Status::Running => {
            return Err(anyhow::anyhow!("cannot start an already running container: {id}").into());
        }
        status @ (Status::Creating | Status::Paused) => {
            let status = status.as_str();
            let text = format!("cannot start a container in the {status} state: {id}");
            return Err(anyhow::anyhow!(text).into());
        }
    }
    if state.network.is_some() {
        let dir = container.dir.file();
        control::connect_network(&dir, container.limit)?;
    }
    // Before: whatever becomes of this command, a container whose program may run is not "created".
    dir.mark_started(true)?;
    let answer = container.ask(async |agent| agent.start(id, state.hooks.as_ref()).await)?;
    match answer {
        Ok(()) => {}
        // A program may be over before the answer got out of its virtual machine.
        Err(AgentError::Lost { .. }) if is_over(dir, state)? => {}
        Err(e @ AgentError::Refused { .. }) => {
            dir.mark_started(false)?;
            return Err(e.into());
        }
        Err(e) => return Err(e.into()),
    }
    poststart(dir, state)?;
    Ok(0)
}

/// As runc: a hook that fails is the end of the container.
fn poststart(dir: &StateDir, state: &State) -> Result<(), Fatal> {
    let Some(hooks) = &state.hooks else {
        return Ok(());
    };
    let list = Kind::Poststart.of(hooks);
    let document = state.for_hooks().json(Status::Running, state.monitor.pid);
    let surroundings = Surroundings {
        dir: &state.bundle,
        network: None,
    };
    if let Err(e) = hooks::run(Kind::Poststart, list, &document, surroundings) {
        log::warn!("container {} is killed: a hook has failed", dir.id());
        kill_processes(state)?;
        return Err(e.into());
    }
    Ok(())
}

/// Whether the program of a container has ended, and by its own doing.
fn is_over(dir: &StateDir, state: &State) -> anyhow::Result<bool> {
    state.monitor.wait_ended(END_LIMIT)?;
    let phase = dir.load()?.phase;
    Ok(matches!(phase, Phase::Exited { error: None, .. }))
}
