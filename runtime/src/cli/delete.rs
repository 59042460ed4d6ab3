//! `cloister delete`.

use std::path::Path;
use std::time::Duration;

use cloister::agent::{Agent, AgentError, ProcessName};
use cloister::hooks::{self, Kind, Surroundings};
use cloister::id::ContainerId;
use cloister::network::{self, NetworkError};
use cloister::signal::Signal;
use cloister::state::{State, StateDir, StateError, Status};
use cloister::{monitor, namespaces};

use super::args::DeleteOptions;
use super::container::runtime;
use super::kill::{each_match, kill_processes};
use super::{Fatal, Globals};

/// How long another command is waited for before the container is killed under it.
const FORCE_LOCK_LIMIT: Duration = Duration::from_secs(1);
/// How long a guest may take to end in order before it is killed.
const ORDER_LIMIT: Duration = Duration::from_secs(10);
/// How long a process that was killed may take to be gone.
const GONE_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn delete(globals: &Globals, options: &DeleteOptions) -> Result<u8, Fatal> {
    if !options.regex {
        return delete_one(globals, options.force, &ContainerId::new(&options.id)?);
    }
    each_match(globals, &options.id, |id| {
        delete_one(globals, options.force, id)
    })
}

fn delete_one(globals: &Globals, force: bool, id: &ContainerId) -> Result<u8, Fatal> {
    let dir = match StateDir::open(&globals.root, id) {
        Ok(dir) => dir,
        // As runc: what is to be gone is gone.
        Err(StateError::NotFound(_)) if force => return Ok(0),
        Err(e) => return Err(e.into()),
    };
    let locked = if force {
        dir.lock(FORCE_LOCK_LIMIT)
    } else {
        dir.lock(globals.config.request_timeout)
    };
    let is_locked = match locked {
        Ok(()) => true,
        Err(StateError::Busy(_)) if force => false,
        Err(StateError::NotFound(_)) if force => return Ok(0),
        Err(e) => return Err(e.into()),
    };
    let mut holders = Vec::new();
    let state = match dir.load() {
        Ok(state) => state,
        // Somebody was killed before there was anything to write down. As runc: what is left of it
        // goes, and it is told that there was no container.
        Err(e @ StateError::NotFound(_)) => {
            dir.remove()?;
            return if force { Ok(0) } else { Err(e.into()) };
        }
        Err(e @ (StateError::Damaged(..) | StateError::Version { .. })) if force => {
            let e = anyhow::Error::new(e);
            log::warn!("container {id}: {e:#}; it is deleted by what can be read of it");
            holders = dir.holders()?;
            dir.salvage()?
        }
        Err(e) => return Err(e.into()),
    };
    let status = dir.status(&state);
    match status {
        // It has written its last word and is about to be gone.
        Status::Stopped => {
            state.monitor.wait_ended(ORDER_LIMIT)?;
        }
        // As runc: nothing of the user's has run, so nothing can be lost.
        Status::Created => {}
        Status::Running | Status::Paused if force => end_in_order(globals, &dir, &state),
        Status::Creating if force => {}
        Status::Creating | Status::Running | Status::Paused => {
            // runc's words.
            let status = status.as_str();
            let text = format!("cannot delete container {id} that is not stopped: {status}");
            return Err(anyhow::anyhow!(text).into());
        }
    }
    kill_processes(&state)?;
    for process in &holders {
        process.signal(Signal::KILL)?;
    }
    for process in state.processes().chain(holders) {
        if !process.wait_ended(GONE_LIMIT)? {
            let text = format!("process {} was killed and does not end", process.pid);
            return Err(anyhow::anyhow!(text).into());
        }
    }
    if !is_locked {
        // Whoever held it has nothing left to work on, or has removed the container itself.
        match dir.lock(ORDER_LIMIT) {
            Err(StateError::NotFound(_)) => return Ok(0),
            result => result?,
        }
    }
    if state.is_of_this_boot()? {
        for exec in dir.execs()? {
            exec.signal(Signal::KILL)?;
            exec.wait_ended(GONE_LIMIT)?;
        }
    }
    restore_network(&globals.root, &state)?;
    let limit = globals.config.request_timeout.min(ORDER_LIMIT);
    leave_sandbox(&globals.root, limit, &state);
    if let Some(cgroup) = &state.cgroup {
        cgroup.kill_own()?;
        cgroup.remove()?;
    }
    dir.remove()?;
    poststop(&state);
    Ok(0)
}

/// Leaves the network namespace as it was found, if a monitor that was killed could not.
pub(crate) fn restore_network(root: &Path, state: &State) -> Result<(), NetworkError> {
    match state
        .network
        .as_ref()
        .and_then(|network| network.path.as_ref())
    {
        Some(path) => network::restore(path, root, &state.id),
        None => Ok(()),
    }
}

/// What a monitor that was killed has left in the virtual machine of another container.
pub(crate) fn leave_sandbox(root: &Path, limit: Duration, state: &State) {
    let Some(sandbox) = &state.sandbox else {
        return;
    };
    // With the sandbox all of it is gone.
    let Ok((dir, sandbox)) = namespaces::sandbox_state(root, sandbox) else {
        return;
    };
    let asked = runtime().map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            let agent = Agent::connect(dir.file(), limit).await?;
            match agent.delete(&state.id).await {
                Err(AgentError::Refused { gone: true, .. }) => Ok(()),
                result => Ok(result?),
            }
        })
    });
    if let Err(e) = asked {
        log::warn!("cannot take container {} apart: {e:#}", state.id);
    }
    if let Some(server) = sandbox.fs
        && let Err(e) = monitor::clean_up_guest(server, state.monitor)
    {
        log::warn!("cannot take the container's directories away: {e}");
    }
}

/// Runs the hooks of the end; what fails is for the log.
pub(crate) fn poststop(state: &State) {
    let Some(hooks) = &state.hooks else {
        return;
    };
    let list = Kind::Poststop.of(hooks);
    let document = state.for_hooks().json(Status::Stopped, 0);
    let surroundings = Surroundings {
        dir: &state.bundle,
        network: None,
    };
    for e in hooks::run_all(Kind::Poststop, list, &document, surroundings) {
        log::warn!("{:#}", anyhow::Error::new(e));
    }
}

/// Lets the guest kill the workload and write back its file systems, if it is able to.
fn end_in_order(globals: &Globals, dir: &StateDir, state: &State) {
    let limit = globals.config.request_timeout.min(ORDER_LIMIT);
    let asked = runtime().map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            let agent = Agent::connect(dir.open_machine(state)?, limit).await?;
            let init = ProcessName::init(dir.id().as_str());
            agent.signal(init, Signal::KILL, true).await?;
            anyhow::Ok(())
        })
    });
    let ended = asked.and_then(|()| Ok(state.monitor.wait_ended(ORDER_LIMIT)?));
    match ended {
        Ok(true) => {}
        Ok(false) => log::warn!("container {} does not end in order, it is killed", dir.id()),
        Err(e) => log::warn!("container {}: {e:#}; it is killed", dir.id()),
    }
}
