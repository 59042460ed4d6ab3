//! The file system device: virtio-v1.3 §5.11, served by another process.
//!
//! This is the vhost-user *frontend*: configuration space, features and life cycle are here, the
//! requests are not. When the driver is ready, guest memory, the rings and the queues' `kick`
//! descriptors go to the server at the other end of a socket, which from then on moves every byte
//! on its own. What it has used it announces through a `call` descriptor a queue; they are watched
//! by the event loop, because InterruptStatus must be set before the interrupt is raised.
//!
//! ```text
//!   driver ──notify──▶ kick ─────────────────────▶ server
//!                                                    │ used ring
//!   driver ◀──line── Interrupt ◀──event loop── call ◀┘
//! ```
//!
//! Nothing is sent before the first activation: the server may still be starting while the guest
//! boots. The server is trusted with guest memory and with nothing else: every answer has a
//! deadline and is checked, and one that dies or answers nonsense leaves a device that needs a
//! reset and cannot be activated again.
//!
//! [`Fs::pause`] stops the server with nothing in flight, so that [`VirtioDevice::queue_states`]
//! is exact; [`Fs::resume`] lets it go on.

mod backend;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::backend::BackendError;
use self::backend::{Backend, Ring};
use crate::chain;
use crate::device::VirtioDevice;
use crate::device::{ActivateError, Activation, ActiveQueue, GuestRam, Interrupt, SavedQueue};
use crate::kicks::{Kicked, Kicks};

/// virtio-v1.3 §5.11.4: the length of the tag field.
pub const MAX_TAG: usize = 36;
/// The most request queues a device can have.
pub const MAX_REQUEST_QUEUES: u16 = 8;

/// The system calls that the device needs once it has been made, beyond memory allocation and the
/// clock.
pub const SYSCALLS: &[libc::c_long] = &[
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_write,
];

/// virtio-v1.3 §5.11.2: queue 0 is hiprio, the request queues follow.
const HIPRIO: usize = 0;
const HIPRIO_SIZE: u16 = 128;
/// Linux sends no request larger than what fits the ring in pages: this is enough for 1 MiB.
const REQUEST_SIZE: u16 = 512;

/// A file system device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name under which the guest mounts it, 1 to [`MAX_TAG`] bytes without a NUL.
    pub tag: String,
    /// Request queues, 1 to [`MAX_REQUEST_QUEUES`]. The server takes requests of one queue in
    /// parallel: more queues only help guests with many CPUs.
    pub request_queues: u16,
}

impl Config {
    /// A device named `tag` with one request queue.
    #[must_use]
    pub fn new(tag: impl Into<String>) -> Self {
        Self {
            tag: tag.into(),
            request_queues: 1,
        }
    }
}

/// What outlives the device beside its queues, which the transport's state holds. The files that
/// the guest has open are the server's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The device.
    pub config: Config,
}

/// What a device has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Interrupts raised for buffers that the server has used.
    pub interrupts: u64,
    /// Times that a driver has started the device.
    pub activations: u64,
    /// Failures of the server that took the device out of service.
    pub failures: u64,
}

/// Why the device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tag does not fit its field.
    #[error("fs: tag: must be 1 to {MAX_TAG} bytes without a NUL")]
    Tag,
    /// The number of request queues is out of range.
    #[error("fs: request_queues: {got} given, 1 to {MAX_REQUEST_QUEUES} possible")]
    RequestQueues {
        /// The number that was given.
        got: u16,
    },
    /// The process is out of descriptors.
    #[error("fs: cannot make an event descriptor")]
    Event(#[source] io::Error),
}

/// The device.
#[derive(Debug)]
pub struct Fs {
    config: Config,
    queue_sizes: Vec<u16>,
    backend: Backend,
    /// The descriptors through which the server announces used buffers.
    calls: Kicks,
    active: Option<Active>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Active {
    memory: GuestRam,
    features: u64,
    queues: Vec<ActiveQueue>,
    interrupt: Interrupt,
    /// The server has been told to stop, and each queue's position is known.
    paused: bool,
}

impl Fs {
    /// A device that waits for its driver. `backend` leads to the server.
    ///
    /// # Errors
    /// If `config` is out of range or the process is out of descriptors.
    pub fn new(config: Config, backend: UnixStream) -> Result<Self, Error> {
        let tag = config.tag.as_bytes();
        if tag.is_empty() || tag.len() > MAX_TAG || tag.contains(&0) {
            return Err(Error::Tag);
        }
        if !(1..=MAX_REQUEST_QUEUES).contains(&config.request_queues) {
            return Err(Error::RequestQueues {
                got: config.request_queues,
            });
        }
        let mut queue_sizes = vec![REQUEST_SIZE; 1 + usize::from(config.request_queues)];
        if let Some(size) = queue_sizes.get_mut(HIPRIO) {
            *size = HIPRIO_SIZE;
        }
        Ok(Self {
            config,
            queue_sizes,
            backend: Backend::new(backend),
            calls: Kicks::new().map_err(Error::Event)?,
            active: None,
            metrics: Metrics::default(),
        })
    }

    /// A device as it was when `state` was taken, on a new connection to a server.
    ///
    /// # Errors
    /// As [`Fs::new`].
    pub fn restore(state: &State, backend: UnixStream) -> Result<Self, Error> {
        Self::new(state.config.clone(), backend)
    }

    /// What outlives the device.
    #[must_use]
    pub fn state(&self) -> State {
        State {
            config: self.config.clone(),
        }
    }

    /// What the device has done so far.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics
    }

    /// Stops the server once it has nothing in flight. Does nothing to a device that is not active.
    ///
    /// # Errors
    /// If the server does not stop; the device is out of service then.
    pub fn pause(&mut self) -> Result<(), BackendError> {
        let Some(active) = self.active.as_mut().filter(|active| !active.paused) else {
            return Ok(());
        };
        let indices = active.ready();
        match self.backend.stop(&indices) {
            Ok(bases) => {
                for (&index, base) in indices.iter().zip(bases) {
                    if let Some(queue) = active.queues.get_mut(usize::from(index)) {
                        queue.queue.set_next_avail(base);
                        // Nothing is in flight: as much is used as was taken.
                        queue.queue.set_next_used(base);
                    }
                }
                active.paused = true;
                Ok(())
            }
            Err(error) => {
                self.fail(&error);
                Err(error)
            }
        }
    }

    /// Lets a stopped server go on.
    ///
    /// # Errors
    /// If the server does not start; the device is out of service then.
    pub fn resume(&mut self) -> Result<(), ActivateError> {
        if !self.active.as_ref().is_some_and(|active| active.paused) {
            return Ok(());
        }
        self.start().inspect_err(|error| self.fail(error))?;
        // The server's signals before the pause may still have been on their way.
        self.interrupt();
        Ok(())
    }

    /// Hands the queues to the server.
    fn start(&mut self) -> Result<(), ActivateError> {
        let Some(active) = self.active.as_mut() else {
            return Ok(());
        };
        let mut calls = Vec::new();
        for index in active.ready() {
            let call = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ActivateError::Signal)?;
            calls.push((index, call));
        }
        let rings: Vec<_> = calls
            .iter()
            .filter_map(|(index, call)| {
                let queue = active.queues.get(usize::from(*index))?;
                Some(Ring {
                    index: *index,
                    queue: &queue.queue,
                    kick: &queue.kick,
                    call,
                })
            })
            .collect();
        let queues = self.queue_sizes.len();
        self.backend
            .start(active.features, &active.memory, queues, &rings)
            .map_err(|source| ActivateError::Backend {
                operation: "start",
                source: source.into(),
            })?;
        active.paused = false;
        let calls = calls.into_iter().map(|(i, call)| (usize::from(i), call));
        self.calls.activate(calls)
    }

    /// Takes the device out of service.
    fn fail(&mut self, error: &dyn std::error::Error) {
        self.backend.abandon();
        self.metrics.failures += 1;
        log::error!("fs: the server has failed: {}", chain(error));
        if let Some(active) = self.active.take()
            && let Err(error) = active.interrupt.needs_reset()
        {
            log::error!("fs: cannot raise an interrupt: {error}");
        }
        self.calls.reset();
    }

    fn interrupt(&mut self) {
        if let Some(active) = &self.active {
            match active.interrupt.used_buffer() {
                Ok(()) => self.metrics.interrupts += 1,
                Err(error) => log::error!("fs: cannot raise an interrupt: {error}"),
            }
        }
    }
}

impl Active {
    /// The indices of the queues that the driver has enabled.
    fn ready(&self) -> Vec<u16> {
        (0..)
            .zip(&self.queues)
            .filter(|(_, q)| q.queue.ready())
            .map(|(i, _)| i)
            .collect()
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // virtio-v1.3 §5.11.4: the tag, padded with NULs, and le32 num_request_queues.
        let tag = self
            .config
            .tag
            .bytes()
            .chain(std::iter::repeat(0))
            .take(MAX_TAG);
        let queues = u32::from(self.config.request_queues).to_le_bytes();
        let space = tag.chain(queues).chain(std::iter::repeat(0));
        let offset = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(MAX_TAG + queues.len());
        for (byte, value) in data.iter_mut().zip(space.skip(offset)) {
            *byte = value;
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        // virtio-v1.3 §5.11.2: hiprio and the first request queue always exist.
        for index in [HIPRIO, HIPRIO + 1] {
            if !activation
                .queues
                .get(index)
                .is_some_and(|q| q.queue.ready())
            {
                return Err(ActivateError::Queue { index });
            }
        }
        self.active = Some(Active {
            memory: activation.memory,
            features: activation.features,
            queues: activation.queues,
            interrupt: activation.interrupt,
            paused: false,
        });
        self.metrics.activations += 1;
        self.start().inspect_err(|_| {
            self.active = None;
            self.metrics.failures += 1;
        })
    }

    fn reset(&mut self) {
        if let Some(active) = self.active.take()
            && !self.backend.is_broken()
        {
            let stopped = if active.paused {
                Ok(())
            } else {
                self.backend.stop(&active.ready()).map(drop)
            };
            if let Err(error) = stopped.and_then(|()| self.backend.reset()) {
                self.fail(&error);
            }
        }
        self.calls.reset();
    }

    /// The server gets all of it anew, while it goes on: what it is about to do was in the memory before.
    fn set_memory(&mut self, memory: GuestRam) {
        let Some(active) = &mut self.active else {
            return;
        };
        active.memory = memory;
        if let Err(error) = self.backend.share(&active.memory) {
            self.fail(&error);
        }
    }

    /// Exact while the device is paused; of a running device, what is known of its queues.
    fn queue_states(&self) -> Vec<SavedQueue> {
        let queues = self.active.iter().flat_map(|active| &active.queues);
        queues.map(|queue| queue.queue.state().into()).collect()
    }
}

impl MutEventSubscriber for Fs {
    fn init(&mut self, ops: &mut EventOps) {
        self.calls.init(ops);
        // Answers are read where they are expected; here only the end matters.
        let end = Events::new(&self.backend.as_fd(), EventSet::READ_HANG_UP);
        if let Err(error) = ops.add(end) {
            log::error!("fs: cannot watch the server: {error}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match self.calls.process(events, ops) {
            Kicked::Queue(_) => self.interrupt(),
            Kicked::Changed | Kicked::Nothing => {}
            Kicked::Foreign if events.fd() == self.backend.as_fd().as_raw_fd() => {
                if let Err(error) = ops.remove(events) {
                    log::error!("fs: cannot stop watching the server: {error}");
                }
                if !self.backend.is_broken() {
                    self.fail(&BackendError::Gone);
                }
            }
            Kicked::Foreign => log::error!("fs: event of an unknown descriptor"),
        }
    }
}
