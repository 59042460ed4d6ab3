//! `cloister pause` and `cloister resume`.

use anyhow::anyhow;
use cloister::agent::AgentError;
use cloister::state::Status;

use super::container::Container;
use super::{Fatal, Globals};

pub(crate) fn pause(globals: &Globals, id: &str) -> Result<u8, Fatal> {
    let container = Container::lock(globals, id)?;
    match container.status {
        Status::Created | Status::Running => {}
        Status::Paused => return Err(anyhow!("container already paused: {id}").into()),
        Status::Creating | Status::Stopped => {
            // runc's words, and the container's name.
            return Err(anyhow!("container not running: {id}").into());
        }
    }
    container.ask(async |agent| agent.pause(id).await)??;
    container.dir.mark_paused(true)?;
    Ok(0)
}

pub(crate) fn resume(globals: &Globals, id: &str) -> Result<u8, Fatal> {
    let container = Container::lock(globals, id)?;
    let not_paused = || anyhow!("container not paused: {id}");
    if !container.lives() {
        return Err(not_paused().into());
    }
    // The agent knows better than the note whether it is paused: whoever made the note may have
    // been killed in between.
    match container.ask(async |agent| agent.resume(id).await)? {
        Ok(()) => container.dir.mark_paused(false)?,
        Err(AgentError::Refused { gone: true, .. }) => {
            container.dir.mark_paused(false)?;
            return Err(not_paused().into());
        }
        Err(e) => return Err(e.into()),
    }
    Ok(0)
}
