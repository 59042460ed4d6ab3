//! The streams of a process that runs: their relays, and its terminal.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

use crate::containers::{ContainerError, Exit};
use crate::relay::{self, Terminal};
use crate::stdio::Relayed;

/// The relays of one process.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// Only its relay keeps a terminal open, so that the session is hung up when the host closes
    /// the stream.
    terminal: Option<Weak<Terminal>>,
    /// What still has to reach the host when the process has ended.
    outputs: Vec<JoinHandle<()>>,
    inputs: Vec<AbortHandle>,
}

impl Session {
    /// Starts to relay. `terminal` is the master of the process's terminal if it has one, `exit`
    /// tells when it has ended.
    pub(crate) fn start(
        id: &str,
        relayed: Relayed,
        terminal: Option<OwnedFd>,
        exit: &watch::Sender<Option<Exit>>,
    ) -> Result<Self, ContainerError> {
        let name: Arc<str> = id.into();
        let mut this = Self::default();
        let Relayed {
            inputs,
            outputs,
            sockets,
            terminal: terminal_stream,
        } = relayed;
        for (socket, pipe) in inputs {
            let task = spawn(Arc::clone(&name), relay::input(socket, pipe));
            this.inputs.push(task.abort_handle());
        }
        for (pipe, socket) in outputs {
            let ended = ended(exit.subscribe());
            let task = spawn(Arc::clone(&name), relay::output(pipe, socket, ended));
            this.outputs.push(task);
        }
        for (process, host) in sockets {
            let ended = ended(exit.subscribe());
            let task = spawn(Arc::clone(&name), relay::both(process, host, ended));
            this.outputs.push(task);
        }
        if let Some(socket) = terminal_stream {
            let state = |state| ContainerError::State {
                id: id.into(),
                state,
            };
            let master = terminal.ok_or_else(|| state("was made without a terminal"))?;
            let master = Terminal::new(master).map_err(|source| ContainerError::Resize {
                id: id.into(),
                source,
            })?;
            let master = Arc::new(master);
            this.terminal = Some(Arc::downgrade(&master));
            let ended = ended(exit.subscribe());
            this.outputs
                .push(spawn(name, relay::terminal(master, socket, ended)));
        }
        Ok(this)
    }

    /// Sets the size of the terminal.
    pub(crate) fn resize(&self, id: &str, columns: u16, rows: u16) -> Result<(), ContainerError> {
        let state = |state| ContainerError::State {
            id: id.into(),
            state,
        };
        let terminal = self.terminal.as_ref();
        let terminal = terminal.ok_or_else(|| state("has no terminal"))?;
        let terminal = terminal.upgrade();
        let terminal = terminal.ok_or_else(|| state("has closed its terminal"))?;
        terminal
            .resize(columns, rows)
            .map_err(|source| ContainerError::Resize {
                id: id.into(),
                source,
            })
    }

    /// The relays of what the process has written, which end by themselves.
    pub(crate) fn take_outputs(&mut self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.outputs)
    }

    /// Stops relaying input, once.
    pub(crate) fn end_input(&mut self) {
        for input in self.inputs.drain(..) {
            input.abort();
        }
    }
}

async fn ended(mut exit: watch::Receiver<Option<Exit>>) {
    if exit.wait_for(Option::is_some).await.is_err() {
        // Nobody will tell any more.
        std::future::pending().await
    }
}

fn spawn(
    id: Arc<str>,
    relay: impl Future<Output = std::io::Result<()>> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(e) = relay.await {
            log::error!("container {id:?}: a stream broke: {e}");
        }
    })
}
