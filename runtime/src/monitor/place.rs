//! The network namespace of a sandbox, and what is to be undone in it.

use std::path::PathBuf;
use std::sync::Arc;

use crate::launch::{Container, Launch};
use crate::network::{self, Limits, Mark, Namespace, NetworkError};
use crate::text::chain;

/// Whether a container has a network namespace that its own virtual machine is connected to.
pub(crate) fn has_network(container: &Container) -> bool {
    let has_new = container.new_namespaces & libc::CLONE_NEWNET != 0;
    container.sandbox.is_none() && (has_new || container.network.is_some())
}

/// The namespace of a sandbox. Dropping it leaves it as it was found.
#[derive(Debug)]
pub(crate) struct Place {
    pub(super) namespace: Arc<Namespace>,
    /// Where others find it; `None` if it ends with this process.
    pub(super) path: Option<PathBuf>,
    pub(super) mark: Mark,
    pub(super) limits: Limits,
    /// This machine's kernel may move the packets.
    pub(super) vhost: bool,
}

impl Place {
    /// That of a container with a virtual machine of its own, once the first thread is in it; `None`
    /// if it has no network namespace.
    pub(crate) fn of(launch: &Launch) -> Result<Option<Self>, NetworkError> {
        let container = &launch.container;
        if !has_network(container) {
            return Ok(None);
        }
        Ok(Some(Self {
            namespace: Arc::new(Namespace::of_first_thread()?),
            path: container.network.clone(),
            mark: Mark::new(&launch.root, &launch.id),
            limits: Limits::new(&container.annotations, &launch.config)?,
            vhost: launch.config.network_vhost,
        }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.path.is_none() {
            return;
        }
        let restored =
            (self.namespace.socket()).and_then(|socket| network::undo_all(&socket, self.mark));
        if let Err(e) = restored {
            log::error!("{}", chain(&e));
        }
    }
}
