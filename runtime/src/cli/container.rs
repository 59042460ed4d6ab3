//! The container that a command works on, and calls to its agent.

use std::time::Duration;

use cloister::agent::{Agent, AgentError};
use cloister::id::ContainerId;
use cloister::state::{State, StateDir, Status};

use super::{Fatal, Globals};

/// A container as it is found.
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) dir: StateDir,
    pub(crate) state: State,
    pub(crate) status: Status,
    /// How long its agent may take to answer.
    pub(crate) limit: Duration,
}

impl Container {
    /// Finds a container.
    pub(crate) fn find(globals: &Globals, id: &str) -> Result<Self, Fatal> {
        let id = ContainerId::new(id)?;
        let dir = StateDir::open(&globals.root, &id)?;
        Self::load(globals, id, dir)
    }

    /// Finds a container and keeps other commands away from it.
    pub(crate) fn lock(globals: &Globals, id: &str) -> Result<Self, Fatal> {
        let id = ContainerId::new(id)?;
        let dir = StateDir::open(&globals.root, &id)?;
        dir.lock(globals.config.request_timeout)?;
        Self::load(globals, id, dir)
    }

    fn load(globals: &Globals, id: ContainerId, dir: StateDir) -> Result<Self, Fatal> {
        let state = dir.load()?;
        Ok(Self {
            id,
            status: dir.status(&state),
            dir,
            state,
            limit: globals.config.request_timeout,
        })
    }

    /// Whether its processes are there: it is neither still being created nor over.
    pub(crate) fn lives(&self) -> bool {
        !matches!(self.status, Status::Creating | Status::Stopped)
    }

    /// Has its agent do something. The outer error is this machine's.
    pub(crate) fn ask<T>(
        &self,
        call: impl AsyncFnOnce(&Agent) -> Result<T, AgentError>,
    ) -> anyhow::Result<Result<T, AgentError>> {
        let machine = self.dir.open_machine(&self.state)?;
        Ok(runtime()?.block_on(async {
            let agent = Agent::connect_for_listings(machine, self.limit).await?;
            call(&agent).await
        }))
    }
}

/// What calls to an agent run on.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
}
