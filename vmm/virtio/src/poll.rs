//! An epoll set of one device.
//!
//! The process's event loop watches one descriptor of such a device: this set. That costs a system
//! call a wake-up and buys three things: every descriptor that is ready is served in one go, with
//! one interrupt; closing a descriptor, on any thread, takes it out of the set; and an event names
//! what it is about instead of a descriptor number that may already mean another.
//!
//! All watches are edge-triggered: an event says that something may be possible now, the owner
//! remembers it, and no watch has to be taken back while the guest cannot keep up.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Events taken from the kernel at once.
const BATCH: usize = 64;

/// What is watched has a name of type `T`.
#[derive(Debug)]
pub(crate) struct Poller<T> {
    epoll: Epoll,
    tokens: PhantomData<fn(T) -> T>,
}

impl<T: Into<u64> + From<u64>> Poller<T> {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
            tokens: PhantomData,
        })
    }

    /// Starts to watch `source`. What is ready already is an event.
    pub(crate) fn add(&self, source: &impl AsRawFd, token: T, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Add, source, token, events)
    }

    /// Watches `source` for other events. What is ready already is an event.
    pub(crate) fn modify(
        &self,
        source: &impl AsRawFd,
        token: T,
        events: EventSet,
    ) -> io::Result<()> {
        self.control(ControlOperation::Modify, source, token, events)
    }

    /// Stops to watch a descriptor that has twins elsewhere, so that closing it is not enough.
    pub(crate) fn remove(&self, source: &impl AsRawFd) -> io::Result<()> {
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
        token: T,
        events: EventSet,
    ) -> io::Result<()> {
        let event = EpollEvent::new(events | EventSet::EDGE_TRIGGERED, token.into());
        self.epoll.ctl(operation, source.as_raw_fd(), event)
    }

    /// Takes what has happened, without waiting. What does not fit stays for the next time.
    pub(crate) fn take(&self) -> io::Result<impl Iterator<Item = (T, EventSet)> + use<T>> {
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(0, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(events.into_iter().take(count).map(|event| {
            (
                T::from(event.data()),
                EventSet::from_bits_truncate(event.events()),
            )
        }))
    }
}

impl<T> AsRawFd for Poller<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
