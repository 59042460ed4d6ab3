//! A virtqueue that returns several chains at once.
//!
//! virtio-v1.3 §5.1.6.4: a driver that sees the first buffer of a packet must see them all, since the
//! first one tells how many there are and nothing tells when the others are due. `Queue::add_used`
//! publishes each as it comes, and a driver that polls would catch the device in between.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use crate::device::{GuestRam, SavedQueue};

/// virtio-v1.3 §2.7.6, §2.7.8: the rings begin with flags and an index.
const RING_HEADER: u64 = 4;
const AVAIL_ENTRY: u64 = 2;
const USED_ENTRY: u64 = 8;

/// A chain to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) head: u16,
    /// How many bytes were written to it.
    pub(super) len: u32,
}

/// A queue in use.
#[derive(Debug)]
pub(super) struct Ring {
    queue: Queue,
    /// The used index when the driver was considered last.
    considered: Wrapping<u16>,
}

impl Ring {
    pub(super) fn new(queue: Queue) -> Self {
        let considered = Wrapping(queue.next_used());
        Self { queue, considered }
    }

    pub(super) fn ready(&self) -> bool {
        self.queue.ready()
    }

    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    pub(super) fn state(&self) -> SavedQueue {
        self.queue.state().into()
    }

    /// Goes on at `next`, where somebody else has left off who had nothing under way.
    pub(super) fn go_to(&mut self, next: u16) {
        self.queue.set_next_avail(next);
        self.queue.set_next_used(next);
        self.considered = Wrapping(next);
    }

    /// Takes the next chain.
    pub(super) fn pop<'m>(
        &mut self,
        memory: &'m GuestRam,
    ) -> Result<Option<DescriptorChain<&'m GuestRam>>, QueueError> {
        Ok(self.queue.iter(memory)?.next())
    }

    /// Takes back the last `count` chains that were taken.
    pub(super) fn put_back(&mut self, count: usize) {
        for _ in 0..count {
            self.queue.go_to_previous_position();
        }
    }

    pub(super) fn disable_notification(&mut self, memory: &GuestRam) -> Result<(), QueueError> {
        self.queue.disable_notification(memory)
    }

    /// Asks to be notified of new chains. Returns whether there are some already.
    pub(super) fn enable_notification(&mut self, memory: &GuestRam) -> Result<bool, QueueError> {
        self.queue.enable_notification(memory)
    }

    /// Returns chains to the driver, which sees all of them or none.
    pub(super) fn add_used(&mut self, memory: &GuestRam, used: &[Used]) -> Result<(), QueueError> {
        let Some((last, others)) = used.split_last() else {
            return Ok(());
        };
        for Used { head, len } in others {
            if *head >= self.queue.size() {
                return Err(QueueError::InvalidDescriptorIndex);
            }
            let next = self.queue.next_used();
            let offset = RING_HEADER + u64::from(next % self.queue.size()) * USED_ENTRY;
            let entry = u64::from(*head) | u64::from(*len) << 32;
            memory
                .write_obj(entry.to_le(), at(self.queue.used_ring(), offset)?)
                .map_err(QueueError::GuestMemory)?;
            self.queue.set_next_used(next.wrapping_add(1));
        }
        // Writes its entry and then the index, which publishes all.
        self.queue.add_used(memory, last.head, last.len)
    }

    /// Whether the driver wants to be interrupted for what was returned since the last call.
    pub(super) fn needs_notification(&mut self, memory: &GuestRam) -> Result<bool, QueueError> {
        let new = Wrapping(self.queue.next_used());
        let old = std::mem::replace(&mut self.considered, new);
        if new == old {
            return Ok(false);
        }
        // virtio-v1.3 §2.7.7.2: the index is written before the driver's wish is read.
        fence(Ordering::SeqCst);
        let avail = self.queue.avail_ring();
        let load = |offset| {
            memory
                .load::<u16>(at(avail, offset)?, Ordering::Relaxed)
                .map(u16::from_le)
                .map_err(QueueError::GuestMemory)
        };
        if !self.queue.event_idx_enabled() {
            return Ok(u32::from(load(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let used_event = load(RING_HEADER + u64::from(self.queue.size()) * AVAIL_ENTRY)?;
        Ok(new - Wrapping(used_event) - Wrapping(1) < new - old)
    }
}

fn at(ring: u64, offset: u64) -> Result<GuestAddress, QueueError> {
    GuestAddress(ring)
        .checked_add(offset)
        .ok_or(QueueError::AddressOverflow)
}
