//! A driver that does anything to the queues of the network device, while packets arrive.
//!
//! `tests/fuzz 60 net`. The device has to survive, to come to rest after each step, to keep its
//! state restorable, and to work for a driver that follows the rules after a reset.
#![no_main]

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use cloister_virtio::device::{Activation, ActiveQueue, GuestRam, Interrupt, VirtioDevice};
use cloister_virtio::net::{Config, HEADER_LEN, Net, RateLimit, Tap};
use event_manager::{EventManager, SubscriberOps};
use libfuzzer_sys::fuzz_target;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: usize = 0x8_0000;
const PAIRS: u8 = 2;
const QUEUES: usize = 5;
/// Rings lie below, buffers above.
const BUFFERS: u64 = 0x1_0000;
const CONTROL: usize = 4;

#[derive(Debug, Arbitrary)]
enum Step {
    /// A descriptor whose buffer is in memory, more or less.
    Descriptor {
        queue: u8,
        index: u8,
        page: u8,
        len: u16,
        flags: u8,
        next: u8,
    },
    /// Any descriptor.
    Wild {
        queue: u8,
        index: u8,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    },
    /// A good buffer for packets, or a good packet.
    Good {
        queue: u8,
        index: u8,
        len: u16,
    },
    Available {
        queue: u8,
        head: u8,
    },
    /// A command, with its answer's place behind it.
    Command {
        bytes: [u8; 10],
        len: u8,
    },
    Memory {
        address: u32,
        value: u64,
    },
    Kick {
        queue: u8,
    },
    Arrive {
        pair: bool,
        len: u16,
    },
    Leave {
        pair: bool,
    },
    Link {
        up: bool,
    },
    Save,
    Reset,
    Start {
        features: u64,
        event_idx: bool,
        unready: u8,
    },
}

#[derive(Debug, Arbitrary)]
struct Input {
    limited: bool,
    steps: Vec<Step>,
}

struct World {
    memory: GuestRam,
    device: Arc<Mutex<Net>>,
    manager: EventManager<Arc<Mutex<Net>>>,
    peers: Vec<UnixDatagram>,
    kicks: Vec<EventFd>,
    available: [u16; QUEUES],
    sizes: [u16; QUEUES],
    active: bool,
}

fn taps() -> (Vec<Tap>, Vec<UnixDatagram>) {
    (0..PAIRS)
        .map(|_| {
            let (a, b) = UnixDatagram::pair().unwrap();
            b.set_nonblocking(true).unwrap();
            (Tap::stand_in(OwnedFd::from(a)).unwrap(), b)
        })
        .unzip()
}

impl World {
    fn new(limited: bool) -> Self {
        let limit = limited.then_some(RateLimit {
            bytes_per_second: 1_000_000,
            burst: 20_000,
        });
        let config = Config {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: Some(1500),
            queue_pairs: PAIRS,
            rx_limit: limit,
            tx_limit: limit,
        };
        let (taps, peers) = taps();
        let device = Arc::new(Mutex::new(Net::new(config, taps).unwrap()));
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(device.clone());
        Self {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap(),
            device,
            manager,
            peers,
            kicks: (0..QUEUES)
                .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
                .collect(),
            available: [0; QUEUES],
            sizes: [16, 16, 32, 16, 8],
            active: false,
        }
    }

    fn base(queue: usize) -> u64 {
        queue as u64 * 0x2000
    }

    fn activation(&self, features: u64, event_idx: bool, unready: u8) -> Activation {
        let queues = (0..QUEUES)
            .map(|index| {
                let base = Self::base(index);
                let mut queue = Queue::new(self.sizes[index]).unwrap();
                queue
                    .try_set_desc_table_address(GuestAddress(base))
                    .unwrap();
                queue
                    .try_set_avail_ring_address(GuestAddress(base + 0x800))
                    .unwrap();
                queue
                    .try_set_used_ring_address(GuestAddress(base + 0x1000))
                    .unwrap();
                queue.set_event_idx(event_idx);
                queue.set_ready(unready & 1 << index == 0);
                ActiveQueue {
                    queue,
                    kick: self.kicks[index].try_clone().unwrap(),
                }
            })
            .collect();
        Activation {
            memory: self.memory.clone(),
            features,
            queues,
            interrupt: Interrupt::new(
                Arc::default(),
                Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            ),
        }
    }

    /// As a transport does: an active device is reset first, and one that refuses is, too.
    fn start(&mut self, features: u64, event_idx: bool, unready: u8) {
        self.reset();
        let activation = self.activation(features, event_idx, unready);
        let mut device = self.device.lock().unwrap();
        self.active = device.activate(activation).is_ok();
        if !self.active {
            device.reset();
        }
    }

    fn reset(&mut self) {
        if std::mem::take(&mut self.active) {
            self.device.lock().unwrap().reset();
        }
        self.memory
            .write_slice(&vec![0; BUFFERS as usize], GuestAddress(0))
            .unwrap();
        self.available = [0; QUEUES];
    }

    fn descriptor(&self, queue: usize, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let at = Self::base(queue) + u64::from(index % self.sizes[queue]) * 16;
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    fn available(&mut self, queue: usize, head: u16) {
        let ring = Self::base(queue) + 0x800;
        let at = ring + 4 + u64::from(self.available[queue] % self.sizes[queue]) * 2;
        self.memory.write_obj(head, GuestAddress(at)).unwrap();
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.memory
            .write_obj(self.available[queue], GuestAddress(ring + 2))
            .unwrap();
        self.kicks[queue].write(1).unwrap();
    }

    fn good(&mut self, queue: usize, index: u16, len: u32) {
        let write = if queue.is_multiple_of(2) { 2 } else { 0 };
        let index = index % self.sizes[queue];
        let address = BUFFERS + u64::from(index) * 0x1000;
        self.descriptor(queue, index, address, len, write, 0);
        self.available(queue, index);
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Descriptor {
                queue,
                index,
                page,
                len,
                flags,
                next,
            } => {
                let address = u64::from(page) * 0x900;
                let (queue, next) = (usize::from(queue) % QUEUES, u16::from(next % 40));
                self.descriptor(
                    queue,
                    index.into(),
                    address,
                    len.into(),
                    u16::from(flags & 7),
                    next,
                );
            }
            Step::Wild {
                queue,
                index,
                address,
                len,
                flags,
                next,
            } => self.descriptor(
                usize::from(queue) % QUEUES,
                index.into(),
                address,
                len,
                flags,
                next,
            ),
            Step::Good { queue, index, len } => {
                self.good(
                    usize::from(queue) % CONTROL,
                    index.into(),
                    u32::from(len) % 0x3000,
                );
            }
            Step::Available { queue, head } => {
                self.available(usize::from(queue) % QUEUES, u16::from(head % 40));
            }
            Step::Command { bytes, len } => {
                self.memory
                    .write_slice(&bytes, GuestAddress(BUFFERS))
                    .unwrap();
                self.descriptor(CONTROL, 0, BUFFERS, u32::from(len % 12), 1, 1);
                self.descriptor(CONTROL, 1, BUFFERS + 0x100, 1, 2, 0);
                self.available(CONTROL, 0);
            }
            Step::Memory { address, value } => {
                let address = u64::from(address) % (MEMORY as u64 - 8);
                self.memory.write_obj(value, GuestAddress(address)).unwrap();
            }
            Step::Kick { queue } => self.kicks[usize::from(queue) % QUEUES].write(1).unwrap(),
            Step::Arrive { pair, len } => {
                let packet = vec![0x11; usize::from(len)];
                // Its queue may be full.
                let _ = self.peers[usize::from(pair)].send(&packet);
            }
            Step::Leave { pair } => {
                let mut packet = vec![0; 0x2_0000];
                if let Ok(len) = self.peers[usize::from(pair)].recv(&mut packet) {
                    assert!(len > HEADER_LEN);
                }
            }
            Step::Link { up } => self.device.lock().unwrap().set_link(up),
            Step::Save => {
                let state = self.device.lock().unwrap().state();
                let device = Net::restore(state.clone(), taps().0).unwrap();
                assert_eq!(device.state(), state);
            }
            Step::Reset => self.reset(),
            Step::Start {
                features,
                event_idx,
                unready,
            } => self.start(features, event_idx, unready),
        }
        self.pump();
    }

    /// What waits for the timer of a rate limit does not count as work.
    fn pump(&mut self) {
        for _ in 0..200 {
            if self.manager.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device keeps the event loop busy");
    }
}

fuzz_target!(|input: Input| {
    let mut world = World::new(input.limited);
    world.start(u64::MAX, false, 0);
    for step in input.steps {
        world.take(step);
    }
    if input.limited {
        return;
    }
    // Whatever was done to it: a reset and a driver that follows the rules.
    world.device.lock().unwrap().set_link(true);
    let mut packet = vec![0; 0x2_0000];
    for peer in &world.peers {
        while peer.recv(&mut packet).is_ok() {}
    }
    let before = world.device.lock().unwrap().metrics();
    world.start(1 << 15 | 1 << 17, false, 0);
    world.good(1, 0, 100);
    for index in 0..16 {
        world.good(0, index, 0x1000);
    }
    world.pump();
    assert_eq!(world.peers[0].recv(&mut packet).unwrap(), 100);
    let after = world.device.lock().unwrap().metrics();
    assert_eq!(after.tx_packets, before.tx_packets + 1);
    // At most what waited in the tap.
    assert_eq!(after.queue_errors, before.queue_errors);
});
