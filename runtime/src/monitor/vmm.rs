//! The VMM, as those speak to it who want something of it while it runs.
//!
//! One who asks at a time: the answers come by way of whoever watches the VMM for its end. The VMM is not
//! trusted: what it says unasked takes no memory, and what it says about another request is no answer.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use cloister_vmm_api::{Channel, ChannelError, Event, Request};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::channel::AsyncChannel;

/// How long the VMM may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How many answers may wait to be read: more than there are questions, of which there is one at a time.
const WAITING: usize = 16;

/// A VMM's control socket.
pub(crate) struct Vmm {
    channel: AsyncChannel,
    answers: Answers,
}

impl Vmm {
    /// Must be called within a runtime.
    pub(crate) fn new(channel: Channel) -> std::io::Result<Self> {
        Ok(Self {
            channel: AsyncChannel::new(channel)?,
            answers: Answers::new(),
        })
    }

    /// The next event.
    pub(crate) async fn recv(&self) -> Result<Option<(Event, Vec<OwnedFd>)>, ChannelError> {
        self.channel.recv().await
    }

    /// Takes an event that is the answer to a request.
    pub(crate) fn answered(&self, event: Event) {
        self.answers.put(event);
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
        let send = || self.channel.send_with(request, fds);
        self.answers.to(request, send, ANSWER_LIMIT).await
    }
}

/// The answers, on their way from whoever hears the VMM to whoever has asked.
#[derive(Debug)]
struct Answers {
    sender: mpsc::Sender<Event>,
    receiver: Mutex<mpsc::Receiver<Event>>,
}

impl Answers {
    fn new() -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        let receiver = Mutex::new(receiver);
        Self { sender, receiver }
    }

    /// Takes what the VMM has said.
    fn put(&self, event: Event) {
        if self.sender.try_send(event).is_err() {
            log::debug!("the VMM says more than it was asked");
        }
    }

    /// The answer to a request, which `send` sends; `None` if there is none within `limit`.
    async fn to(
        &self,
        request: &Request,
        send: impl FnOnce() -> Result<(), ChannelError>,
        limit: Duration,
    ) -> Result<Option<Event>, ChannelError> {
        let mut receiver = self.receiver.lock().await;
        // What came too late for an earlier question.
        while receiver.try_recv().is_ok() {}
        send()?;
        let answer = async {
            loop {
                let event = receiver.recv().await?;
                if is_answer(request, &event) {
                    return Some(event);
                }
            }
        };
        Ok(timeout(limit, answer).await.unwrap_or_default())
    }
}

/// Whether an event is about what was asked.
fn is_answer(request: &Request, event: &Event) -> bool {
    match (request, event) {
        (Request::AttachNet { slot, .. }, Event::NetAttached { slot: of })
        | (Request::DetachNet { slot }, Event::NetDetached { slot: of })
        | (Request::SetLink { slot, .. }, Event::LinkSet { slot: of })
        | (
            Request::AttachNet { slot, .. }
            | Request::DetachNet { slot }
            | Request::SetLink { slot, .. },
            Event::NetRefused { slot: of, .. },
        ) => slot == of,
        (Request::NetCounters, Event::NetCounters { .. })
        | (Request::AddVcpus { .. }, Event::VcpusAdded { .. } | Event::GrowthRefused { .. })
        | (Request::AddMemory { .. }, Event::Memory { .. } | Event::GrowthRefused { .. })
        | (Request::Memory, Event::Memory { .. }) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn what_nobody_asked_for_takes_no_memory_and_is_no_answer() {
        let answers = Answers::new();
        for _ in 0..10_000 {
            answers.put(Event::NetDetached { slot: 1 });
        }
        assert_eq!(answers.receiver.lock().await.len(), WAITING);
        let send = || {
            for slot in [0, 2, 1] {
                answers.put(Event::NetDetached { slot });
            }
            Ok(())
        };
        let request = Request::DetachNet { slot: 2 };
        let answer = answers.to(&request, send, LIMIT).await.unwrap();
        assert_eq!(answer, Some(Event::NetDetached { slot: 2 }));
    }

    #[tokio::test]
    async fn a_refusal_is_an_answer_and_silence_is_none() {
        let answers = Answers::new();
        let refusal = Event::NetRefused {
            slot: 3,
            message: "no".into(),
        };
        let request = Request::SetLink { slot: 3, up: true };
        let send = || {
            // Of another request about the same slot.
            answers.put(Event::NetDetached { slot: 3 });
            answers.put(refusal.clone());
            Ok(())
        };
        let answer = answers.to(&request, send, LIMIT).await.unwrap();
        assert_eq!(answer, Some(refusal.clone()));
        let short = Duration::from_millis(1);
        let answer = answers.to(&request, || Ok(()), short).await.unwrap();
        assert_eq!(answer, None);
    }

    #[tokio::test]
    async fn what_is_said_about_memory_is_no_answer_about_processors() {
        let answers = Answers::new();
        let memory = Event::Memory {
            granted_mib: 256,
            plugged_mib: 128,
        };
        let refusal = Event::GrowthRefused {
            message: "no".into(),
        };
        let send = || {
            answers.put(memory.clone());
            answers.put(refusal.clone());
            Ok(())
        };
        let request = Request::AddVcpus { vcpus: 2 };
        let answer = answers.to(&request, send, LIMIT).await.unwrap();
        assert_eq!(answer, Some(refusal.clone()));
        let send = || {
            answers.put(refusal.clone());
            answers.put(memory.clone());
            Ok(())
        };
        let answer = answers.to(&Request::Memory, send, LIMIT).await.unwrap();
        assert_eq!(answer, Some(memory.clone()));
    }
}
