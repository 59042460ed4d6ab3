//! A driver of the device, as small as one can be, and as wrong as a test wants it.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{Activation, ActiveQueue, GuestRam, Interrupt};
use crate::vsock::packet::{HEADER_LEN, HOST_CID, Header, TYPE_STREAM};

pub(super) const CID: u32 = 42;
/// What the guest's sockets hold.
pub(super) const GUEST_BUF_ALLOC: u32 = 256 * 1024;

const SIZES: [u16; 3] = [128, 128, 8];
const RINGS: [u64; 3] = [0x0, 0x4000, 0x8000];
const RX_AREA: u64 = 0x10_0000;
const TX_AREA: u64 = 0x100_0000;
const EVENT_AREA: u64 = 0xf0_0000;
const SLOT: u64 = 0x1_1000;
pub(super) const NEXT: u16 = flag(VRING_DESC_F_NEXT);
pub(super) const WRITE: u16 = flag(VRING_DESC_F_WRITE);

#[expect(
    clippy::cast_possible_truncation,
    reason = "descriptor flags have 16 bits"
)]
pub(super) const fn flag(bits: u32) -> u16 {
    bits as u16
}

/// A packet from the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

/// The driver's side of one queue. Buffer `n` has the descriptors from `n * shape.len()` on.
pub(super) struct Ring {
    size: u16,
    desc_table: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    pub(super) avail_idx: u16,
    used_idx: u16,
}

pub(super) struct Guest {
    pub(super) memory: GuestRam,
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    pub(super) event: Ring,
    pub(super) kicks: [EventFd; 3],
    pub(super) line: Arc<EventFd>,
    pub(super) interrupt: Interrupt,
    event_idx: bool,
    /// The lengths of the descriptors of a buffer for packets.
    rx_shape: Vec<u32>,
    free_tx: Vec<u16>,
    /// Whether buffers are given back once they have been read.
    pub(super) refill: bool,
    /// Packets that have been taken out of the queue and not been looked at.
    inbox: Vec<Packet>,
}

impl Ring {
    fn new(memory: &GuestRam, index: usize) -> (Self, Queue) {
        let size = SIZES[index];
        // virtio-queue's mock lets the used ring begin inside of a full available ring.
        let ring = Self {
            size,
            desc_table: RINGS[index],
            avail: RINGS[index] + 0x1000,
            used: RINGS[index] + 0x2000,
            avail_idx: 0,
            used_idx: 0,
        };
        memory
            .write_slice(&[0; 0x4000], GuestAddress(RINGS[index]))
            .unwrap();
        let mut queue = Queue::new(size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(ring.desc_table))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(ring.avail))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(ring.used))
            .unwrap();
        queue.set_ready(true);
        (ring, queue)
    }

    pub(super) fn put_descriptor(&self, memory: &GuestRam, index: u16, descriptor: Descriptor) {
        let address = GuestAddress(self.desc_table + u64::from(index) * 16);
        memory
            .write_obj(RawDescriptor::from(descriptor), address)
            .unwrap();
    }

    /// Writes a chain of pieces `(address, length)`, beginning at descriptor `head`.
    pub(super) fn put_chain(
        &self,
        memory: &GuestRam,
        head: u16,
        pieces: &[(u64, u32)],
        flags: u16,
    ) {
        for (index, (address, len)) in (head..).zip(pieces) {
            let last = usize::from(index - head) + 1 == pieces.len();
            let next = if last { 0 } else { NEXT };
            let descriptor = Descriptor::new(*address, *len, flags | next, index + 1);
            self.put_descriptor(memory, index, descriptor);
        }
    }

    pub(super) fn make_available(&mut self, memory: &GuestRam, head: u16) {
        let entry = self.avail + 4 + u64::from(self.avail_idx % self.size) * 2;
        memory.write_obj(head, GuestAddress(entry)).unwrap();
        self.avail_idx = self.avail_idx.wrapping_add(1);
        memory
            .write_obj(self.avail_idx, GuestAddress(self.avail + 2))
            .unwrap();
    }

    pub(super) fn used_idx(&self, memory: &GuestRam) -> u16 {
        memory.read_obj(GuestAddress(self.used + 2)).unwrap()
    }

    /// Takes the next used element: head and length.
    pub(super) fn take_used(&mut self, memory: &GuestRam) -> Option<(u16, u32)> {
        if self.used_idx(memory) == self.used_idx {
            return None;
        }
        let entry = self.used + 4 + u64::from(self.used_idx % self.size) * 8;
        let id: u32 = memory.read_obj(GuestAddress(entry)).unwrap();
        let len: u32 = memory.read_obj(GuestAddress(entry + 4)).unwrap();
        self.used_idx = self.used_idx.wrapping_add(1);
        // used_event: interrupt at the next one.
        let used_event = self.avail + 4 + u64::from(self.size) * 2;
        memory
            .write_obj(self.used_idx, GuestAddress(used_event))
            .unwrap();
        // Only a ring that was overwritten has more bits here.
        Some((u16::try_from(id & 0xffff).unwrap(), len))
    }

    fn avail_event(&self, memory: &GuestRam) -> u16 {
        let at = self.used + 4 + u64::from(self.size) * 8;
        memory.read_obj(GuestAddress(at)).unwrap()
    }
}

impl Guest {
    /// A guest whose buffers for packets are chains of descriptors of these lengths.
    pub(super) fn new(event_idx: bool, rx_shape: &[u32]) -> (Self, Activation) {
        let memory = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), 0x80_0000),
            (GuestAddress(0x80_0000), 0x180_0000),
        ])
        .unwrap();
        let (rx, rx_queue) = Ring::new(&memory, 0);
        let (tx, tx_queue) = Ring::new(&memory, 1);
        let (event, event_queue) = Ring::new(&memory, 2);
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let interrupt = Interrupt::new(Arc::new(AtomicU32::new(0)), line.clone());
        let guest = Self {
            memory,
            rx,
            tx,
            event,
            kicks: [(); 3].map(|()| EventFd::new(EFD_NONBLOCK).unwrap()),
            line,
            interrupt,
            event_idx,
            rx_shape: rx_shape.to_vec(),
            free_tx: (0..32).collect(),
            refill: true,
            inbox: Vec::new(),
        };
        let activation = guest.activation([rx_queue, tx_queue, event_queue]);
        (guest, activation)
    }

    pub(super) fn activation(&self, queues: [Queue; 3]) -> Activation {
        let queues = queues.into_iter().zip(&self.kicks);
        Activation {
            memory: self.memory.clone(),
            features: 1 << 32 | u64::from(self.event_idx) << 29,
            queues: queues
                .map(|(mut queue, kick)| {
                    queue.set_event_idx(self.event_idx);
                    let kick = kick.try_clone().unwrap();
                    ActiveQueue { queue, kick }
                })
                .collect(),
            interrupt: self.interrupt.clone(),
        }
    }

    /// Makes every buffer for packets available.
    pub(super) fn fill_rx(&mut self) {
        let descriptors = u16::try_from(self.rx_shape.len()).unwrap();
        for slot in 0..SIZES[0] / descriptors {
            self.give_rx(slot * descriptors);
        }
        self.kick(0);
    }

    pub(super) fn give_rx(&mut self, head: u16) {
        let pieces = self.rx_pieces(head);
        self.rx.put_chain(&self.memory, head, &pieces, WRITE);
        self.rx.make_available(&self.memory, head);
    }

    fn rx_pieces(&self, head: u16) -> Vec<(u64, u32)> {
        let mut address = RX_AREA + u64::from(head) * SLOT;
        let piece = |len: &u32| {
            let piece = (address, *len);
            address += u64::from(*len);
            piece
        };
        self.rx_shape.iter().map(piece).collect()
    }

    pub(super) fn fill_events(&mut self) {
        for head in 0..8 {
            let pieces = [(EVENT_AREA + u64::from(head) * 16, 4)];
            self.event.put_chain(&self.memory, head, &pieces, WRITE);
            self.event.make_available(&self.memory, head);
        }
        self.kick(2);
    }

    /// Takes the events from the device.
    pub(super) fn events(&mut self) -> Vec<u32> {
        let mut events = Vec::new();
        while let Some((head, len)) = self.event.take_used(&self.memory) {
            assert_eq!(len, 4);
            let at = GuestAddress(EVENT_AREA + u64::from(head) * 16);
            events.push(self.memory.read_obj(at).unwrap());
        }
        events
    }

    pub(super) fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    /// Whether the device wants to be notified of what has just been made available.
    fn wants_kick(&self, ring: &Ring) -> bool {
        if self.event_idx {
            ring.avail_idx.wrapping_sub(1) == ring.avail_event(&self.memory)
        } else {
            let flags: u16 = self.memory.read_obj(GuestAddress(ring.used)).unwrap();
            flags & 1 == 0
        }
    }

    /// Whether a packet can be sent.
    pub(super) fn has_tx_space(&mut self) -> bool {
        while let Some((head, len)) = self.tx.take_used(&self.memory) {
            assert_eq!(len, 0);
            self.free_tx.push(head / 4);
        }
        !self.free_tx.is_empty()
    }

    /// Sends a packet cut into descriptors of these lengths; the last one takes the rest. False,
    /// if the queue is full.
    pub(super) fn send_cut(&mut self, header: Header, payload: &[u8], cuts: &[u32]) -> bool {
        self.has_tx_space();
        let Some(slot) = self.free_tx.pop() else {
            return false;
        };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(payload);
        let mut address = TX_AREA + u64::from(slot) * SLOT;
        self.memory
            .write_slice(&bytes, GuestAddress(address))
            .unwrap();
        let mut left = u32::try_from(bytes.len()).unwrap();
        let mut pieces = Vec::new();
        for cut in cuts.iter().copied().chain([u32::MAX]) {
            let len = cut.min(left);
            if len > 0 {
                pieces.push((address, len));
            }
            address += u64::from(len);
            left -= len;
        }
        self.tx.put_chain(&self.memory, slot * 4, &pieces, 0);
        self.tx.make_available(&self.memory, slot * 4);
        if self.wants_kick(&self.tx) {
            self.kick(1);
        }
        true
    }

    /// Sends a packet that may be nonsense, whatever became of those before it.
    pub(super) fn send_anything(&mut self, header: Header, payload: &[u8], cut: u32) {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(payload);
        let slot = self.tx.avail_idx % 32;
        let address = TX_AREA + u64::from(slot) * SLOT;
        self.memory
            .write_slice(&bytes, GuestAddress(address))
            .unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        let cut = cut.min(len);
        let pieces = [(address, cut), (address + u64::from(cut), len - cut)];
        self.tx.put_chain(&self.memory, slot * 4, &pieces, 0);
        self.tx.make_available(&self.memory, slot * 4);
        self.kick(1);
    }

    /// Takes whatever the device has used in rx and gives it back, if it is a buffer at all.
    pub(super) fn drain_rx(&mut self) {
        for _ in 0..SIZES[0] {
            let Some((head, _)) = self.rx.take_used(&self.memory) else {
                break;
            };
            if self.refill && head < SIZES[0] {
                self.give_rx(head);
            }
        }
        self.kick(0);
    }

    /// Sends a packet as Linux does: header and payload in a descriptor each.
    pub(super) fn send(&mut self, header: Header, payload: &[u8]) -> bool {
        self.send_cut(header, payload, &[44])
    }

    /// Makes a chain of these pieces available in the tx queue, without any sense in it.
    pub(super) fn send_raw(&mut self, pieces: &[(u64, u32)], flags: u16) {
        self.tx.put_chain(&self.memory, 0, pieces, flags);
        self.tx.make_available(&self.memory, 0);
        self.kick(1);
    }

    /// Writes to where [`Guest::send_raw`] can point to.
    pub(super) fn scratch(&self, bytes: &[u8]) -> u64 {
        self.memory
            .write_slice(bytes, GuestAddress(TX_AREA))
            .unwrap();
        TX_AREA
    }

    fn collect(&mut self) {
        let mut given = false;
        while let Some((head, len)) = self.rx.take_used(&self.memory) {
            let mut bytes = Vec::new();
            for (address, piece) in self.rx_pieces(head) {
                let mut part = vec![0; piece as usize];
                self.memory
                    .read_slice(&mut part, GuestAddress(address))
                    .unwrap();
                bytes.extend(part);
            }
            if self.refill {
                self.give_rx(head);
                given |= self.wants_kick(&self.rx);
            }
            if len == 0 {
                continue;
            }
            let len = len as usize;
            let header = Header::from_bytes(bytes[..HEADER_LEN].try_into().unwrap());
            assert_eq!(header.len as usize, len - HEADER_LEN);
            assert_eq!(header.src_cid, HOST_CID);
            assert_eq!(header.dst_cid, u64::from(CID));
            self.inbox.push(Packet {
                header,
                payload: bytes[HEADER_LEN..len].to_vec(),
            });
        }
        if given {
            self.kick(0);
        }
    }

    /// Takes the packets from the device.
    pub(super) fn packets(&mut self) -> Vec<Packet> {
        self.collect();
        std::mem::take(&mut self.inbox)
    }

    pub(super) fn interrupts(&self) -> u64 {
        self.line.read().unwrap_or(0)
    }
}

/// A header from a guest port to a host port.
pub(super) fn header(ports: (u32, u32), op: u16) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: ports.0,
        dst_port: ports.1,
        type_: TYPE_STREAM,
        op,
        buf_alloc: GUEST_BUF_ALLOC,
        ..Header::default()
    }
}
