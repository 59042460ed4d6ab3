//! The VMM, as those speak to it who want something of it while it runs.
//!
//! One who asks at a time: the answers come in the order of the requests, by way of whoever watches the VMM
//! for its end.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use cloister_vmm_api::{Channel, ChannelError, Event, Request};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::life::AsyncChannel;

/// How long the VMM may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How many answers may wait to be read: more than there are questions, of which there is one at a time.
const WAITING: usize = 16;

/// A VMM's control socket.
pub(crate) struct Vmm {
    channel: AsyncChannel,
    answers: (mpsc::Sender<Event>, Mutex<mpsc::Receiver<Event>>),
}

impl Vmm {
    /// Must be called within a runtime.
    pub(crate) fn new(channel: Channel) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel(WAITING);
        Ok(Self {
            channel: AsyncChannel::new(channel)?,
            answers: (sender, Mutex::new(receiver)),
        })
    }

    /// The next event.
    pub(crate) async fn recv(&self) -> Result<Option<(Event, Vec<OwnedFd>)>, ChannelError> {
        self.channel.recv().await
    }

    /// Takes an event that is the answer to a request.
    pub(crate) fn answered(&self, event: Event) {
        // It is not trusted: what it says unasked takes no memory.
        if self.answers.0.try_send(event).is_err() {
            log::debug!("the VMM says more than it was asked");
        }
    }

    /// Sends a request without waiting for its answer.
    pub(crate) fn send(&self, request: &Request) -> Result<(), ChannelError> {
        self.channel.send(request)
    }

    /// What the VMM says to a request; `None` if nothing.
    pub(crate) async fn ask(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Option<Event>, ChannelError> {
        let mut answers = self.answers.1.lock().await;
        // What came too late for an earlier question.
        while answers.try_recv().is_ok() {}
        self.channel.send_with(request, fds)?;
        Ok(timeout(ANSWER_LIMIT, answers.recv())
            .await
            .unwrap_or_default())
    }
}
