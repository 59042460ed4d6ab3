//! The guest: its memory, its rings, and its driver.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cloister_virtio::device::{Activation, ActiveQueue, GuestRam, Interrupt, VirtioDevice};
use cloister_virtio::fs::{Config, Fs};
use virtio_queue_018::{Queue, QueueT};
use vm_memory_018::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::PATIENCE;

const MEMORY: u64 = 64 << 20;
pub const QUEUE_SIZE: u16 = 64;
/// Where each queue's rings are.
const RINGS: u64 = 0x10_000;
const RING_STRIDE: u64 = 0x4000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where memory is that comes later.
const ADDED: u64 = 1 << 33;
/// Where the buffers of each slot of a queue are: one for the request, one for the answer.
const BUFFERS: u64 = 0x10_0000;
const BUFFER: u64 = 0x2_0000;

const VIRTIO_F_VERSION_1: u64 = 1 << 32;

/// A guest with the device in use.
pub struct Guest {
    pub memory: GuestRam,
    pub device: Fs,
    kicks: Vec<EventFd>,
    line: Arc<EventFd>,
    status: Arc<AtomicU32>,
    queues: Vec<Driver>,
    unique: u64,
    /// Where the buffers are.
    buffers: u64,
    pub uid: u32,
    pub gid: u32,
    /// Extensions of the request (supplementary groups), already encoded.
    pub extension: Vec<u8>,
}

/// The driver's side of a queue.
#[derive(Default)]
struct Driver {
    avail: u16,
    used: u16,
}

/// An answer's body, or its errno.
pub type Answer = Result<Vec<u8>, i32>;

pub fn memory() -> GuestRam {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = File::from(rustix::fs::memfd_create("guest", flags).unwrap());
    file.set_len(MEMORY).unwrap();
    // Two regions, as with the hole below 4 GiB.
    let half = usize::try_from(MEMORY / 2).unwrap();
    let clone = file.try_clone().unwrap();
    GuestRam::from_ranges_with_files([
        (GuestAddress(0), half, Some(FileOffset::new(file, 0))),
        (
            GuestAddress(1 << 32),
            half,
            Some(FileOffset::new(clone, MEMORY / 2)),
        ),
    ])
    .unwrap()
}

impl Guest {
    pub fn new(socket: UnixStream) -> Self {
        let device = Fs::new(Config::new("root"), socket).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let mut guest = Self {
            memory: memory(),
            kicks: (0..2).map(|_| event()).collect(),
            line: Arc::new(event()),
            status: Arc::default(),
            queues: (0..2).map(|_| Driver::default()).collect(),
            device,
            unique: 0,
            buffers: BUFFERS,
            uid: 0,
            gid: 0,
            extension: Vec::new(),
        };
        guest.activate();
        guest
    }

    pub fn activate(&mut self) {
        let queues = (0..2u64)
            .map(|index| {
                let base = RINGS + index * RING_STRIDE;
                let mut queue =
                    Queue::new(self.device.queue_sizes()[usize::try_from(index).unwrap()]).unwrap();
                queue.set_size(QUEUE_SIZE);
                queue
                    .try_set_desc_table_address(GuestAddress(base))
                    .unwrap();
                queue
                    .try_set_avail_ring_address(GuestAddress(base + AVAIL))
                    .unwrap();
                queue
                    .try_set_used_ring_address(GuestAddress(base + USED))
                    .unwrap();
                queue.set_ready(true);
                self.memory
                    .write_slice(&[0; 0x3000], GuestAddress(base))
                    .unwrap();
                ActiveQueue {
                    queue,
                    kick: self.kicks[usize::try_from(index).unwrap()]
                        .try_clone()
                        .unwrap(),
                }
            })
            .collect();
        self.queues = (0..2).map(|_| Driver::default()).collect();
        let interrupt = Interrupt::new(self.status.clone(), self.line.clone());
        self.device
            .activate(Activation {
                memory: self.memory.clone(),
                features: VIRTIO_F_VERSION_1,
                queues,
                interrupt,
            })
            .unwrap();
    }

    /// Interrupt causes that have been raised.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    fn ring(queue: usize) -> u64 {
        RINGS + queue as u64 * RING_STRIDE
    }

    /// Gets further memory, and has its buffers there from now on.
    pub fn grow(&mut self) {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("added", flags).unwrap());
        file.set_len(MEMORY).unwrap();
        let mut regions: Vec<_> = (self.memory.iter())
            .map(|region| {
                let length = usize::try_from(region.len()).unwrap();
                (region.start_addr(), length, region.file_offset().cloned())
            })
            .collect();
        let length = usize::try_from(MEMORY).unwrap();
        let file = FileOffset::new(file, 0);
        regions.push((GuestAddress(ADDED), length, Some(file)));
        // Mapped anew, which is as good: what is in the files is what counts.
        self.memory = GuestRam::from_ranges_with_files(regions).unwrap();
        self.device.set_memory(self.memory.clone());
        self.buffers = ADDED;
    }

    fn buffers(&self, queue: usize, slot: u16) -> (u64, u64) {
        let base = self.buffers + (queue as u64 * 12 + u64::from(slot)) * 2 * BUFFER;
        (base, base + BUFFER)
    }

    /// Puts a chain of raw buffers into slot `slot` of a queue, without a notification.
    pub fn put(&mut self, queue: usize, slot: u16, request: &[u8], room: u32) {
        let ring = Self::ring(queue);
        let (readable, writable) = self.buffers(queue, slot);
        self.memory
            .write_slice(request, GuestAddress(readable))
            .unwrap();
        let mut chain = vec![(readable, u32::try_from(request.len()).unwrap(), 0u16)];
        if room > 0 {
            chain.push((writable, room, 2));
        }
        let last = chain.len() - 1;
        for (at, (address, length, flags)) in (0u16..).zip(chain) {
            let index = slot * 2 + at;
            let next = if usize::from(at) == last { 0 } else { 1 };
            let descriptor = GuestAddress(ring + u64::from(index) * 16);
            let write16 = |value: u16, offset| {
                self.memory
                    .write_obj(value, GuestAddress(descriptor.0 + offset))
                    .unwrap();
            };
            self.memory.write_obj(address, descriptor).unwrap();
            self.memory
                .write_obj(length, GuestAddress(descriptor.0 + 8))
                .unwrap();
            write16(flags | next, 12);
            write16(index + 1, 14);
        }
        let avail = &mut self.queues[queue].avail;
        let entry = ring + AVAIL + 4 + u64::from(*avail % QUEUE_SIZE) * 2;
        self.memory
            .write_obj(slot * 2, GuestAddress(entry))
            .unwrap();
        *avail = avail.wrapping_add(1);
        self.memory
            .store(*avail, GuestAddress(ring + AVAIL + 2), Ordering::SeqCst)
            .unwrap();
    }

    pub fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    /// Waits for the next used chain: its slot and how much was written.
    pub fn wait(&mut self, queue: usize) -> (u16, u32) {
        let ring = Self::ring(queue);
        let start = Instant::now();
        let used = &mut self.queues[queue].used;
        while self
            .memory
            .load::<u16>(GuestAddress(ring + USED + 2), Ordering::SeqCst)
            .unwrap()
            == *used
        {
            assert!(start.elapsed() < PATIENCE, "no answer");
            std::thread::sleep(Duration::from_micros(50));
        }
        let entry = ring + USED + 4 + u64::from(*used % QUEUE_SIZE) * 8;
        *used = used.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
        let length = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
        (u16::try_from(head / 2).unwrap(), length)
    }

    /// Whether nothing is used within a moment.
    pub fn is_quiet(&self, queue: usize) -> bool {
        std::thread::sleep(Duration::from_millis(100));
        let used: u16 = self
            .memory
            .load(GuestAddress(Self::ring(queue) + USED + 2), Ordering::SeqCst)
            .unwrap();
        used == self.queues[queue].used
    }

    /// A whole request: header, arguments, extension.
    pub fn encode(&mut self, opcode: u32, nodeid: u64, arguments: &[u8]) -> Vec<u8> {
        self.unique += 2;
        let mut request = Vec::new();
        let length = 40 + arguments.len() + self.extension.len();
        request.extend(u32::try_from(length).unwrap().to_le_bytes());
        request.extend(opcode.to_le_bytes());
        request.extend(self.unique.to_le_bytes());
        request.extend(nodeid.to_le_bytes());
        request.extend(self.uid.to_le_bytes());
        request.extend(self.gid.to_le_bytes());
        request.extend(1u32.to_le_bytes());
        request.extend(
            u16::try_from(self.extension.len() / 8)
                .unwrap()
                .to_le_bytes(),
        );
        request.extend([0; 2]);
        request.extend(arguments);
        request.extend(std::mem::take(&mut self.extension));
        request
    }

    /// The answer in a slot.
    pub fn answer(&self, queue: usize, slot: u16, length: u32) -> Answer {
        let (_, writable) = self.buffers(queue, slot);
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        self.memory
            .read_slice(&mut bytes, GuestAddress(writable))
            .unwrap();
        assert!(bytes.len() >= 16, "an answer of {} bytes", bytes.len());
        let error = i32::from_le_bytes(bytes[4..8].try_into().unwrap());
        if error == 0 {
            Ok(bytes.split_off(16))
        } else {
            Err(-error)
        }
    }

    /// One request and its answer, with room for `room` bytes after the header.
    pub fn call(&mut self, opcode: u32, nodeid: u64, arguments: &[u8], room: u32) -> Answer {
        let request = self.encode(opcode, nodeid, arguments);
        self.put(1, 0, &request, 16 + room);
        self.kick(1);
        let (slot, length) = self.wait(1);
        assert_eq!(slot, 0);
        self.answer(1, slot, length)
    }
}
