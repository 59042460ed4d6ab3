//! A driver of the device, as small as one can be, and as wrong as a test wants it.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{Activation, ActiveQueue, GuestRam, Interrupt};
use crate::net::HEADER_LEN;

pub(super) const NEXT: u16 = flag(VRING_DESC_F_NEXT);
pub(super) const WRITE: u16 = flag(VRING_DESC_F_WRITE);
pub(super) const INDIRECT: u16 = flag(VRING_DESC_F_INDIRECT);

const RAM: usize = 64 << 20;
const RINGS: u64 = 0x4000;
const BUFFERS: u64 = 0x10_0000;
/// Each descriptor of each ring has this much memory of its own, more than it needs as a rule.
const PIECE: u64 = 0x2_0000;

#[expect(clippy::cast_possible_truncation, reason = "flags have 16 bits")]
const fn flag(bits: u32) -> u16 {
    bits as u16
}

/// The driver's side of one queue.
pub(super) struct Ring {
    pub(super) size: u16,
    base: u64,
    buffers: u64,
    pub(super) avail_idx: u16,
    pub(super) used_idx: u16,
    /// The length of each descriptor that was made available.
    lengths: Vec<Vec<(u64, u32)>>,
}

pub(super) struct Guest {
    pub(super) memory: GuestRam,
    pub(super) rings: Vec<Ring>,
    pub(super) kicks: Vec<EventFd>,
    pub(super) line: Arc<EventFd>,
    pub(super) interrupt: Interrupt,
    event_idx: bool,
}

impl Ring {
    fn new(index: u64, size: u16) -> Self {
        Self {
            size,
            base: RINGS * index,
            buffers: BUFFERS + index * 16 * PIECE,
            avail_idx: 0,
            used_idx: 0,
            lengths: vec![Vec::new(); size.into()],
        }
    }

    fn avail(&self) -> u64 {
        self.base + 0x1000
    }

    fn used(&self) -> u64 {
        self.base + 0x2000
    }

    /// Where buffer `slot` (of 16) is.
    pub(super) fn buffer(&self, slot: u16) -> u64 {
        self.buffers + u64::from(slot % 16) * PIECE
    }
}

impl Guest {
    /// A guest with queues of these sizes, all of them ready unless their size is 0.
    pub(super) fn new(sizes: &[u16], event_idx: bool) -> Self {
        let memory = GuestRam::from_ranges(&[
            (GuestAddress(0), RAM / 2),
            (GuestAddress(RAM as u64 / 2), RAM / 2),
        ])
        .unwrap();
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Self {
            memory,
            rings: (0..).zip(sizes).map(|(i, s)| Ring::new(i, *s)).collect(),
            kicks: sizes
                .iter()
                .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
                .collect(),
            interrupt: Interrupt::new(Arc::new(AtomicU32::new(0)), line.clone()),
            line,
            event_idx,
        }
    }

    /// What a device is given at DRIVER_OK, with fresh rings.
    pub(super) fn activation(&mut self, features: u64) -> Activation {
        let mut queues = Vec::new();
        for (ring, kick) in self.rings.iter_mut().zip(&self.kicks) {
            *ring = Ring {
                avail_idx: 0,
                used_idx: 0,
                lengths: vec![Vec::new(); ring.size.into()],
                ..*ring
            };
            let zeros = vec![0; usize::try_from(RINGS).unwrap()];
            self.memory
                .write_slice(&zeros, GuestAddress(ring.base))
                .unwrap();
            let mut queue = Queue::new(ring.size.max(1)).unwrap();
            queue
                .try_set_desc_table_address(GuestAddress(ring.base))
                .unwrap();
            queue
                .try_set_avail_ring_address(GuestAddress(ring.avail()))
                .unwrap();
            queue
                .try_set_used_ring_address(GuestAddress(ring.used()))
                .unwrap();
            queue.set_event_idx(self.event_idx);
            queue.set_ready(ring.size > 0);
            queues.push(ActiveQueue {
                queue,
                kick: kick.try_clone().unwrap(),
            });
        }
        Activation {
            memory: self.memory.clone(),
            features: features | 1 << 32 | u64::from(self.event_idx) << 29,
            queues,
            interrupt: self.interrupt.clone(),
        }
    }

    pub(super) fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    pub(super) fn put_descriptor(&self, queue: usize, index: u16, descriptor: Descriptor) {
        let at = self.rings[queue].base + u64::from(index) * 16;
        self.memory
            .write_obj(RawDescriptor::from(descriptor), GuestAddress(at))
            .unwrap();
    }

    pub(super) fn make_available(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let entry = ring.avail() + 4 + u64::from(ring.avail_idx % ring.size) * 2;
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        ring.avail_idx = ring.avail_idx.wrapping_add(1);
        self.memory
            .write_obj(ring.avail_idx, GuestAddress(ring.avail() + 2))
            .unwrap();
    }

    /// Makes a chain of these pieces available, from descriptor `head` on.
    pub(super) fn put_chain(&mut self, queue: usize, head: u16, pieces: &[(u64, u32)], flags: u16) {
        for (index, (address, len)) in (head..).zip(pieces) {
            let last = usize::from(index - head) + 1 == pieces.len();
            let next = if last { 0 } else { NEXT };
            let descriptor = Descriptor::new(*address, *len, flags | next, index + 1);
            self.put_descriptor(queue, index, descriptor);
        }
        self.rings[queue].lengths[usize::from(head)] = pieces.to_vec();
        self.make_available(queue, head);
    }

    /// Makes a buffer for packets available, of descriptors of these lengths.
    pub(super) fn give(&mut self, queue: usize, head: u16, shape: &[u32]) {
        let mut at = self.rings[queue].buffers + u64::from(head) * 0x2000;
        let pieces: Vec<_> = (shape.iter())
            .map(|len| {
                let piece = (at, *len);
                at += u64::from(*len);
                piece
            })
            .collect();
        self.put_chain(queue, head, &pieces, WRITE);
        self.kick(queue);
    }

    /// Sends `packet`, cut into descriptors of these lengths; the last one takes the rest.
    pub(super) fn send(&mut self, queue: usize, head: u16, packet: &[u8], cuts: &[usize]) {
        let pieces = self.pieces(queue, head, packet, cuts);
        self.put_chain(queue, head, &pieces, 0);
        self.kick(queue);
    }

    /// As [`Guest::send`], with the descriptors in an indirect table.
    pub(super) fn send_indirect(&mut self, queue: usize, head: u16, packet: &[u8], cuts: &[usize]) {
        let pieces = self.pieces(queue, head, packet, cuts);
        let table = self.rings[queue].buffer(head) + PIECE - 0x1000;
        for (index, (address, len)) in (0_u16..).zip(&pieces) {
            let next = if usize::from(index) + 1 == pieces.len() {
                0
            } else {
                NEXT
            };
            let descriptor = RawDescriptor::from(Descriptor::new(*address, *len, next, index + 1));
            let at = table + u64::from(index) * 16;
            self.memory.write_obj(descriptor, GuestAddress(at)).unwrap();
        }
        let len = u32::try_from(pieces.len() * 16).unwrap();
        self.put_descriptor(queue, head, Descriptor::new(table, len, INDIRECT, 0));
        self.make_available(queue, head);
        self.kick(queue);
    }

    fn pieces(&self, queue: usize, head: u16, packet: &[u8], cuts: &[usize]) -> Vec<(u64, u32)> {
        let mut at = self.rings[queue].buffer(head);
        self.memory.write_slice(packet, GuestAddress(at)).unwrap();
        let mut left = packet.len();
        let mut pieces = Vec::new();
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let len = cut.min(left);
            if len > 0 {
                pieces.push((at, u32::try_from(len).unwrap()));
            }
            at += len as u64;
            left -= len;
        }
        pieces
    }

    /// Takes the next used element: head and length.
    pub(super) fn take_used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let ring = &mut self.rings[queue];
        let used_idx: u16 = self.memory.read_obj(GuestAddress(ring.used() + 2)).unwrap();
        if used_idx == ring.used_idx {
            return None;
        }
        let entry = ring.used() + 4 + u64::from(ring.used_idx % ring.size) * 8;
        let id: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
        ring.used_idx = ring.used_idx.wrapping_add(1);
        Some((u16::try_from(id).unwrap(), len))
    }

    /// Asks for an interrupt when the used index passes `index`.
    pub(super) fn set_used_event(&self, queue: usize, index: u16) {
        let ring = &self.rings[queue];
        let at = ring.avail() + 4 + u64::from(ring.size) * 2;
        self.memory.write_obj(index, GuestAddress(at)).unwrap();
    }

    pub(super) fn set_avail_flags(&self, queue: usize, flags: u16) {
        let at = GuestAddress(self.rings[queue].avail());
        self.memory.write_obj(flags, at).unwrap();
    }

    /// The next packet in a receive queue: how many buffers it had, and all of it.
    pub(super) fn receive(&mut self, queue: usize) -> Option<(u16, Vec<u8>)> {
        let (head, len) = self.take_used(queue)?;
        let mut packet = self.read(queue, head, len);
        let count = u16::from_le_bytes(packet[10..12].try_into().unwrap());
        for _ in 1..count {
            let (head, len) = self.take_used(queue).expect("all buffers of a packet");
            let part = self.read(queue, head, len);
            packet.extend(part);
        }
        Some((count, packet))
    }

    fn read(&self, queue: usize, head: u16, len: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (address, piece) in &self.rings[queue].lengths[usize::from(head)] {
            let mut part = vec![0; *piece as usize];
            self.memory
                .read_slice(&mut part, GuestAddress(*address))
                .unwrap();
            bytes.extend(part);
        }
        bytes.truncate(len as usize);
        bytes
    }

    /// Sends a command; its answer is where this returns.
    pub(super) fn command(&mut self, queue: usize, bytes: &[u8]) -> GuestAddress {
        let at = self.rings[queue].buffer(0);
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        let answer = GuestAddress(at + 0x100);
        self.memory.write_obj(0xff_u8, answer).unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        // Linux sends the header, the data and the answer in a descriptor each.
        let parts = [
            (at, 2_u32.min(len), NEXT),
            (at + 2, len.saturating_sub(2), NEXT),
        ];
        for (index, (address, len, flags)) in (0..).zip(parts) {
            let descriptor = Descriptor::new(address, len, flags, index + 1);
            self.put_descriptor(queue, index, descriptor);
        }
        self.put_descriptor(queue, 2, Descriptor::new(answer.0, 1, WRITE, 0));
        self.make_available(queue, 0);
        self.kick(queue);
        answer
    }

    pub(super) fn byte(&self, address: GuestAddress) -> u8 {
        self.memory.read_obj(address).unwrap()
    }
}

/// A packet of `len` bytes behind an empty header.
pub(super) fn packet(len: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes.extend((0..len).map(|i| u8::try_from(i % 251).unwrap() ^ seed));
    bytes
}
