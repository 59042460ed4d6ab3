//! What a device and its transport know of each other.
//!
//! ```text
//!                 ┌───────────── activate(Activation) ─────────────┐
//!                 ▼                                                │
//!   (new) ──▶ Inactive ──────────────────────────────────────▶ Active
//!                 ▲                                                │
//!                 └────────────────── reset() ─────────────────────┘
//! ```
//!
//! A device lives behind a mutex. The vCPU threads reach it through its transport, for
//! configuration accesses, activation and reset, all of them rare; the event thread runs its
//! [`MutEventSubscriber`] side, which is where every byte is moved. A device registers its queues'
//! `kick` descriptors with the event loop after [`VirtioDevice::activate`], and must cope with a
//! guest that resets it at any moment.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use event_manager::MutEventSubscriber;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// The guest's RAM. Cloning shares the mapping.
pub type GuestRam = GuestMemoryMmap<()>;

/// virtio-v1.3 §4.2.2: bit 0 of InterruptStatus, a used buffer notification.
pub const INTERRUPT_USED_BUFFER: u32 = 1;
/// virtio-v1.3 §4.2.2: bit 1 of InterruptStatus, a configuration change notification.
pub const INTERRUPT_CONFIG_CHANGE: u32 = 2;

/// One virtio device, without its transport.
pub trait VirtioDevice: MutEventSubscriber + Send {
    /// The device type of virtio-v1.3 §5.
    fn device_type(&self) -> u32;

    /// The largest size of each queue, and with it the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// The feature bits that the device offers.
    fn offered_features(&self) -> u64;

    /// Reads the device's configuration space. Bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the device's configuration space; anything that is not writable is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Takes the queues that the driver has set up and starts work.
    ///
    /// # Errors
    /// The transport then sets DEVICE_NEEDS_RESET and drops the queues.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Gives up the queues and every trace of the driver's session. Must not fail: what cannot be
    /// undone is closed.
    fn reset(&mut self);

    /// Takes guest memory that has become larger. What was there before is where it was.
    fn set_memory(&mut self, memory: GuestRam);

    /// The positions of the queues of an active device, in the order they were given; empty for an
    /// inactive one.
    fn queue_states(&self) -> Vec<SavedQueue>;
}

/// What a device is given when the driver says DRIVER_OK.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: GuestRam,
    /// The features both sides agreed on.
    pub features: u64,
    /// All queues of the device, in order. Those that the driver did not enable are not `ready`.
    pub queues: Vec<ActiveQueue>,
    /// How to notify the driver.
    pub interrupt: Interrupt,
}

/// A queue in use and the descriptor through which the driver announces available buffers.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The split virtqueue.
    pub queue: Queue,
    /// Signalled when the driver has made buffers available.
    pub kick: EventFd,
}

/// The way from a device to its driver.
#[derive(Debug, Clone)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    line: Arc<EventFd>,
    generation: Arc<AtomicU32>,
    broken: Arc<AtomicBool>,
    /// Who uses buffers signals `line` alone.
    elsewhere: Arc<AtomicBool>,
}

impl Interrupt {
    /// An interrupt whose pending causes are collected in `status` and which is raised by
    /// signalling `line`.
    #[must_use]
    pub fn new(status: Arc<AtomicU32>, line: Arc<EventFd>) -> Self {
        Self {
            status,
            line,
            generation: Arc::default(),
            broken: Arc::default(),
            elsewhere: Arc::default(),
        }
    }

    /// Tells the driver that buffers were used.
    ///
    /// # Errors
    /// If the event descriptor cannot be signalled.
    pub fn used_buffer(&self) -> io::Result<()> {
        self.raise(INTERRUPT_USED_BUFFER)
    }

    /// Tells the driver that the configuration space changed.
    ///
    /// # Errors
    /// If the event descriptor cannot be signalled.
    pub fn config_change(&self) -> io::Result<()> {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(INTERRUPT_CONFIG_CHANGE)
    }

    /// Tells the driver that the device can do nothing more until it is reset: the driver broke
    /// the rules in a way that the device cannot ignore. The device stops using its queues.
    ///
    /// # Errors
    /// If the event descriptor cannot be signalled.
    pub fn needs_reset(&self) -> io::Result<()> {
        self.broken.store(true, Ordering::SeqCst);
        // virtio-v1.3 §2.1.2: a configuration change notification follows DEVICE_NEEDS_RESET.
        self.raise(INTERRUPT_CONFIG_CHANGE)
    }

    /// Whether buffers are used by somebody who signals [`Interrupt::line`] without coming here. Each interrupt may then be for
    /// used buffers; a driver that finds none has lost nothing.
    pub fn used_elsewhere(&self, elsewhere: bool) {
        self.elsewhere.store(elsewhere, Ordering::SeqCst);
    }

    /// Which causes are pending, as the driver reads them in InterruptStatus.
    #[must_use]
    pub fn pending(&self) -> u32 {
        let assumed = if self.elsewhere.load(Ordering::SeqCst) {
            INTERRUPT_USED_BUFFER
        } else {
            0
        };
        self.status.load(Ordering::SeqCst) | assumed
    }

    /// Which causes are known to be pending: bits of InterruptStatus.
    #[must_use]
    pub fn status(&self) -> &AtomicU32 {
        &self.status
    }

    /// How often the configuration space has changed.
    #[must_use]
    pub fn generation(&self) -> &AtomicU32 {
        &self.generation
    }

    /// Whether the device has asked for a reset.
    #[must_use]
    pub fn broken(&self) -> &AtomicBool {
        &self.broken
    }

    /// The descriptor behind the interrupt, for a backend in another process.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        &self.line
    }

    fn raise(&self, cause: u32) -> io::Result<()> {
        self.status.fetch_or(cause, Ordering::SeqCst);
        self.line.write(1)
    }
}

/// Why a device could not start work.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out queues that the device cannot work without.
    #[error("queue {index} is not ready or not valid")]
    Queue {
        /// The queue.
        index: usize,
    },
    /// Signalling the event thread failed.
    #[error("cannot signal the event thread")]
    Signal(#[source] io::Error),
    /// A backend in another process refused.
    #[error("backend: {operation} failed")]
    Backend {
        /// What was asked of it.
        operation: &'static str,
        /// Its answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The driver starts the device again and again, which is work for the host each time.
    #[error("it has been reset and started too often")]
    TooOften,
}

/// A queue's configuration and position in a form that can be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    /// The largest size the device offers, in descriptors.
    pub max_size: u16,
    /// The size the driver chose.
    pub size: u16,
    /// Whether the driver enabled the queue.
    pub ready: bool,
    /// Whether VIRTIO_F_EVENT_IDX is in use.
    pub event_idx: bool,
    /// The next available ring entry to read.
    pub next_avail: u16,
    /// The next used ring entry to write.
    pub next_used: u16,
    /// Guest address of the descriptor table.
    pub desc_table: u64,
    /// Guest address of the available ring.
    pub avail_ring: u64,
    /// Guest address of the used ring.
    pub used_ring: u64,
}

impl From<QueueState> for SavedQueue {
    fn from(state: QueueState) -> Self {
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            event_idx: state.event_idx_enabled,
            next_avail: state.next_avail,
            next_used: state.next_used,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl TryFrom<SavedQueue> for Queue {
    type Error = virtio_queue::Error;

    fn try_from(saved: SavedQueue) -> Result<Self, Self::Error> {
        Queue::try_from(QueueState {
            max_size: saved.max_size,
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.desc_table,
            avail_ring: saved.avail_ring,
            used_ring: saved.used_ring,
        })
    }
}
