//! `cloister start`.

use cloister::agent::Agent;
use cloister::id::ContainerId;
use cloister::state::{StateDir, Status};

use super::{Fatal, Globals};

pub(crate) fn start(globals: &Globals, id: &str) -> Result<u8, Fatal> {
    let id = ContainerId::new(id)?;
    let limit = globals.config.request_timeout;
    let dir = StateDir::open(&globals.root, &id)?;
    dir.lock(limit)?;
    let state = dir.load()?;
    // runc's words, and the container's name.
    match dir.status(&state) {
        Status::Created => {}
        Status::Stopped => {
            return Err(anyhow::anyhow!("cannot start a container that has stopped: {id}").into());
        }
        Status::Running => {
            return Err(anyhow::anyhow!("cannot start an already running container: {id}").into());
        }
        Status::Creating => {
            let text = format!("cannot start a container in the creating state: {id}");
            return Err(anyhow::anyhow!(text).into());
        }
    }
    runtime()?.block_on(async {
        let agent = Agent::connect(dir.file(), limit).await?;
        agent.start(id.as_str()).await
    })?;
    dir.mark_started()?;
    Ok(0)
}

/// What calls to an agent run on.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
}
