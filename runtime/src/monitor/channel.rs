//! Control sockets in a runtime that must not block: of the VMM, the file server, the command line and
//! other commands.

use std::os::fd::{BorrowedFd, OwnedFd};

use cloister_vmm_api::{Channel, ChannelError};
use rustix::io::{Errno, ioctl_fionbio};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;

use crate::sys::{self, Watched};

/// A control socket that is waited for beside others.
#[derive(Debug)]
pub(crate) struct AsyncChannel(AsyncFd<Watched<Channel>>);

impl AsyncChannel {
    /// Must be called within a runtime.
    pub(crate) fn new(channel: Channel) -> std::io::Result<Self> {
        ioctl_fionbio(&channel, true)?;
        Ok(Self(sys::watch(channel)?))
    }

    /// Sends without waiting.
    pub(crate) fn send<T: Serialize>(&self, message: &T) -> Result<(), ChannelError> {
        self.send_with(message, &[])
    }

    /// Sends, and descriptors beside it, without waiting.
    pub(crate) fn send_with<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        self.0.get_ref().inner().send(message, fds)
    }

    pub(crate) async fn recv<T: DeserializeOwned>(
        &self,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, ChannelError> {
        loop {
            let Ok(mut ready) = self.0.readable().await else {
                // The runtime shuts down, and with it all that waits here.
                return Err(ChannelError::Receive(Errno::CANCELED));
            };
            match self.0.get_ref().inner().recv() {
                Err(ChannelError::Receive(Errno::AGAIN)) => ready.clear_ready(),
                result => return result,
            }
        }
    }
}
