//! `cloister pause` and `cloister resume`.

use anyhow::anyhow;
use cloister::agent::{Agent, AgentError};
use cloister::id::ContainerId;
use cloister::state::{StateDir, Status};

use super::start::runtime;
use super::{Fatal, Globals};

pub(crate) fn pause(globals: &Globals, id: &str) -> Result<u8, Fatal> {
    let id = ContainerId::new(id)?;
    let limit = globals.config.request_timeout;
    let dir = StateDir::open(&globals.root, &id)?;
    dir.lock(limit)?;
    let state = dir.load()?;
    match dir.status(&state) {
        Status::Created | Status::Running => {}
        Status::Paused => return Err(anyhow!("container already paused: {id}").into()),
        Status::Creating | Status::Stopped => {
            // runc's words, and the container's name.
            return Err(anyhow!("container not running: {id}").into());
        }
    }
    let machine = dir.open_machine(&state)?;
    runtime()?.block_on(async {
        let agent = Agent::connect(machine, limit).await?;
        agent.pause(id.as_str()).await
    })?;
    dir.mark_paused(true)?;
    Ok(0)
}

pub(crate) fn resume(globals: &Globals, id: &str) -> Result<u8, Fatal> {
    let id = ContainerId::new(id)?;
    let limit = globals.config.request_timeout;
    let dir = StateDir::open(&globals.root, &id)?;
    dir.lock(limit)?;
    let state = dir.load()?;
    let not_paused = || anyhow!("container not paused: {id}");
    if matches!(dir.status(&state), Status::Creating | Status::Stopped) {
        return Err(not_paused().into());
    }
    // The agent knows better than the note whether it is paused: whoever made the note may have
    // been killed in between.
    let machine = dir.open_machine(&state)?;
    let answer = runtime()?.block_on(async {
        let agent = Agent::connect(machine, limit).await?;
        agent.resume(id.as_str()).await
    });
    match answer {
        Ok(()) => dir.mark_paused(false)?,
        Err(AgentError::Refused { gone: true, .. }) => {
            dir.mark_paused(false)?;
            return Err(not_paused().into());
        }
        Err(e) => return Err(e.into()),
    }
    Ok(0)
}
