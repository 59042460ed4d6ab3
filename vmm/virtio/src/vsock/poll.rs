//! The device's own epoll set.
//!
//! The process's event loop watches one descriptor of the device: this set. That costs a system
//! call a wake-up and buys three things: every descriptor that is ready is served in one go, with
//! one interrupt; closing a socket, on any thread, takes it out of the set; and an event names its
//! stream instead of a descriptor number that may already mean another.
//!
//! All watches are edge-triggered: an event says that something may be possible now, the owner
//! remembers it, and no watch has to be taken back while the guest cannot keep up.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::Key;

/// Events taken from the kernel at once.
const BATCH: usize = 64;

/// The host port of tokens that are no streams: `VMADDR_PORT_ANY`, which no stream has.
pub(super) const NO_PORT: u32 = u32::MAX;

const WAKE: u32 = 0;
const LISTENER: u32 = 1;
const FIRST_QUEUE: u32 = 2;
const FIRST_HANDSHAKE: u32 = 16;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// The device's own event: look at everything.
    Wake,
    /// The listening socket.
    Listener,
    /// The kick of the queue with this index.
    Queue(u8),
    /// A host process that has not said where it wants to go; numbered by arrival, below 2³¹.
    Handshake(u32),
    /// A stream.
    Stream(Key),
}

impl Token {
    fn encode(self) -> u64 {
        let (high, low) = match self {
            Self::Wake => (NO_PORT, WAKE),
            Self::Listener => (NO_PORT, LISTENER),
            Self::Queue(index) => (NO_PORT, FIRST_QUEUE + u32::from(index & 7)),
            Self::Handshake(number) => (NO_PORT, FIRST_HANDSHAKE + (number & (u32::MAX >> 1))),
            Self::Stream(key) => (key.host_port, key.guest_port),
        };
        u64::from(high) << 32 | u64::from(low)
    }

    fn decode(data: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
        let (high, low) = ((data >> 32) as u32, data as u32);
        if high != NO_PORT {
            return Self::Stream(Key {
                host_port: high,
                guest_port: low,
            });
        }
        match low {
            WAKE => Self::Wake,
            LISTENER => Self::Listener,
            FIRST_HANDSHAKE.. => Self::Handshake(low - FIRST_HANDSHAKE),
            #[expect(clippy::cast_possible_truncation, reason = "below 16")]
            _ => Self::Queue((low - FIRST_QUEUE) as u8),
        }
    }
}

/// The set.
#[derive(Debug)]
pub(super) struct Poller {
    epoll: Epoll,
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
        })
    }

    /// Starts to watch `source`. What is ready already is an event.
    pub(super) fn add(
        &self,
        source: &impl AsRawFd,
        token: Token,
        events: EventSet,
    ) -> io::Result<()> {
        self.control(ControlOperation::Add, source, token, events)
    }

    /// Watches `source` for other events. What is ready already is an event.
    pub(super) fn modify(
        &self,
        source: &impl AsRawFd,
        token: Token,
        events: EventSet,
    ) -> io::Result<()> {
        self.control(ControlOperation::Modify, source, token, events)
    }

    /// Stops to watch a descriptor that has twins elsewhere, so that closing it is not enough.
    pub(super) fn remove(&self, source: &impl AsRawFd) -> io::Result<()> {
        self.epoll.ctl(
            ControlOperation::Delete,
            source.as_raw_fd(),
            EpollEvent::default(),
        )
    }

    fn control(
        &self,
        operation: ControlOperation,
        source: &impl AsRawFd,
        token: Token,
        events: EventSet,
    ) -> io::Result<()> {
        let event = EpollEvent::new(events | EventSet::EDGE_TRIGGERED, token.encode());
        self.epoll.ctl(operation, source.as_raw_fd(), event)
    }

    /// Takes what has happened, without waiting. What does not fit stays for the next time.
    pub(super) fn take(&self) -> io::Result<impl Iterator<Item = (Token, EventSet)> + use<>> {
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(events.into_iter().take(count).map(|event| {
            (
                Token::decode(event.data()),
                EventSet::from_bits_truncate(event.events()),
            )
        }))
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_told_apart() {
        let key = |host_port, guest_port| {
            Token::Stream(Key {
                host_port,
                guest_port,
            })
        };
        let tokens = [
            Token::Wake,
            Token::Listener,
            Token::Queue(0),
            Token::Queue(2),
            Token::Handshake(0),
            Token::Handshake(u32::MAX >> 1),
            key(0, 0),
            key(1, u32::MAX),
            key(NO_PORT - 1, 0),
        ];
        for token in tokens {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
