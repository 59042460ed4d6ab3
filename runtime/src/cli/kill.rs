//! `cloister kill`.

use std::time::Duration;

use cloister::agent::{AgentError, ProcessName};
use cloister::id::ContainerId;
use cloister::signal::Signal;
use cloister::state::{State, StateDir, Status};

use super::args::KillOptions;
use super::container::Container;
use super::{Fatal, Globals};

/// How long a guest may take to kill its workload before it is killed itself.
const KILL_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn kill(globals: &Globals, options: &KillOptions) -> Result<u8, Fatal> {
    if !options.regex {
        return kill_one(globals, options, &options.id);
    }
    each_match(globals, &options.id, |id| {
        kill_one(globals, options, id.as_str())
    })
}

/// Does something with every container whose name a regular expression matches; the first failure
/// is told when all of them have had their turn.
pub(crate) fn each_match(
    globals: &Globals,
    pattern: &str,
    mut work: impl FnMut(&ContainerId) -> Result<u8, Fatal>,
) -> Result<u8, Fatal> {
    let pattern = regex::Regex::new(pattern)?;
    let mut result = Ok(0);
    for dir in StateDir::all(&globals.root)? {
        if pattern.is_match(dir.id().as_str())
            && let Err(e) = work(dir.id())
            && result.is_ok()
        {
            result = Err(e);
        }
    }
    result
}

fn kill_one(globals: &Globals, options: &KillOptions, id: &str) -> Result<u8, Fatal> {
    let mut container = Container::find(globals, id)?;
    // Signal 0 reaches nobody: it asks whether there is somebody, which the state tells.
    let signal = match options.signal.parse() {
        Ok(0) => None,
        _ => Some(Signal::parse(&options.signal)?),
    };
    if container.status == Status::Stopped {
        // As with runc: to signal all processes when there are none is no error.
        if options.all {
            return Ok(0);
        }
        // runc's words, and the container's name.
        return Err(anyhow::anyhow!("container not running: {id}").into());
    }
    let Some(signal) = signal else {
        return Ok(0);
    };
    if container.status == Status::Creating {
        // There is nobody else yet who could take it.
        container.state.monitor.signal(signal)?;
        return Ok(0);
    }
    let is_kill = signal == Signal::KILL;
    if is_kill {
        container.limit = container.limit.min(KILL_LIMIT);
    }
    let init = ProcessName::init(id);
    let answer = container.ask(async |agent| agent.signal(init, signal, options.all).await)?;
    let state = &container.state;
    match answer {
        Ok(()) => {}
        Err(AgentError::Refused { gone: true, .. }) if !asks_to_end(signal) => {
            return Err(anyhow::anyhow!("container not running: {id}").into());
        }
        Err(AgentError::Refused { gone: true, .. }) => {
            // The workload has ended; the monitor may still wait for somebody to read its output.
            state.monitor.signal(Signal::TERM)?;
        }
        Err(AgentError::Refused {
            gone: false,
            message,
        }) => {
            return Err(anyhow::anyhow!(message).into());
        }
        Err(e) if is_kill => {
            log::warn!("container {id}: {e}; its virtual machine is killed");
            kill_processes(state)?;
        }
        Err(e) => return Err(e.into()),
    }
    Ok(0)
}

/// Whether a signal means that somebody wants the end.
fn asks_to_end(signal: Signal) -> bool {
    [
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::KILL,
    ]
    .contains(&signal)
}

/// Kills everything of a container on this machine; what runs in its guest dies with it.
pub(crate) fn kill_processes(state: &State) -> std::io::Result<()> {
    for process in state.processes() {
        process.signal(Signal::KILL)?;
    }
    Ok(())
}
