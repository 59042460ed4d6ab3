//! A container's place in the virtual machine of another.

use cloister_vmm_api::fs::Export;

use super::attach;
use super::failure::Failure;
use super::machine::{self, MachineError};
use crate::launch::Launch;
use crate::namespaces;
use crate::paths::ContainerPaths;
use crate::process::ProcessId;
use crate::state::Note;

/// What a container in the virtual machine of another has there. Dropping it takes it away.
pub(crate) struct Guest {
    server: ProcessId,
    prefix: String,
    _note: Note,
}

impl Guest {
    /// Shares what the container needs, and notes that it is there.
    pub(crate) fn join(
        launch: &Launch,
        sandbox: &ContainerPaths,
        monitor: ProcessId,
    ) -> Result<Self, Failure> {
        let container = &launch.container;
        let id = container.sandbox.as_deref().unwrap_or_default();
        let (_, state) = namespaces::sandbox_state(&launch.root, id)?;
        let server = state.fs.ok_or(Failure::MonitorGone)?;
        let prefix = attach::prefix(monitor);
        let this = Self {
            server,
            prefix: prefix.clone(),
            _note: Note::member(sandbox, &launch.id)?,
        };
        let (exports, sources) = machine::exports(container)?;
        let exports = exports
            .into_iter()
            .map(|export| Export {
                name: format!("{prefix}{}", export.name),
                ..export
            })
            .collect();
        attach::attach(server, exports, sources, prefix).map_err(MachineError::Attach)?;
        Ok(this)
    }

    /// What the names of everything it shares begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Err(e) = attach::detach(self.server, self.prefix.clone()) {
            log::warn!("cannot take the container's directories away: {e}");
        }
    }
}

/// Takes away what a container in another's virtual machine has shared, if its monitor could not.
///
/// # Errors
/// If something of it stays.
pub fn clean_up_guest(server: ProcessId, monitor: ProcessId) -> std::io::Result<()> {
    attach::detach(server, attach::prefix(monitor))
}
