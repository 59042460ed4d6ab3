//! A driver that does anything to the register page of a device, and to the queues it has configured there.
//!
//! `tests/fuzz 60 mmio`. The transport and the entropy device behind it have to survive, to come
//! to rest after each step, to keep their state restorable, and to work for a driver that follows the rules after a reset.
#![no_main]

use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use cloister_virtio::device::GuestRam;
use cloister_virtio::mmio::{PAGE_SIZE, Transport};
use cloister_virtio::rng::{Config, Rng};
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 0x2_0000;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFER: u64 = 0x4000;

/// virtio-v1.3 §4.2.2.
mod register {
    pub(super) const DRIVER_FEATURES: u64 = 0x20;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub(super) const QUEUE_SEL: u64 = 0x30;
    pub(super) const QUEUE_SIZE: u64 = 0x38;
    pub(super) const QUEUE_READY: u64 = 0x44;
    pub(super) const QUEUE_NOTIFY: u64 = 0x50;
    pub(super) const INTERRUPT_STATUS: u64 = 0x60;
    pub(super) const STATUS: u64 = 0x70;
    pub(super) const QUEUE_DESC: u64 = 0x80;
    pub(super) const QUEUE_DRIVER: u64 = 0x90;
    pub(super) const QUEUE_DEVICE: u64 = 0xa0;
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// One of the registers that exist, aligned and 32 bits wide.
    Register {
        number: u8,
        value: u32,
    },
    /// Small values are what most registers take.
    SmallRegister {
        number: u8,
        value: u8,
    },
    Write {
        offset: u16,
        data: Vec<u8>,
    },
    Read {
        offset: u16,
        len: u8,
    },
    Memory {
        address: u32,
        value: u64,
    },
    /// A descriptor that is in guest memory, made available.
    Request {
        index: u8,
        len: u16,
        flags: u8,
        next: u8,
    },
    Kick {
        queue: u8,
    },
    /// Everything up to DRIVER_OK, as a driver should.
    Start,
    Reset,
    Save,
}

struct World {
    memory: GuestRam,
    transport: Transport,
    manager: EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>,
    available: u16,
}

impl World {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let device = Arc::new(Mutex::new(Rng::new(Config {}).unwrap()));
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(device.clone() as Arc<Mutex<dyn MutEventSubscriber + Send>>);
        let transport = Transport::new(device, memory.clone()).unwrap();
        Self {
            memory,
            transport,
            manager,
            available: 0,
        }
    }

    fn set(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn get(&self, register: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(register, &mut word);
        u32::from_le_bytes(word)
    }

    /// The timer that the device waits for when its allowance is used up does not count as work.
    fn pump(&mut self) {
        for _ in 0..100 {
            if self.manager.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device keeps the event loop busy");
    }

    fn start(&mut self) {
        self.set(register::STATUS, 1);
        self.set(register::STATUS, 3);
        self.set(register::DRIVER_FEATURES_SEL, 1);
        self.set(register::DRIVER_FEATURES, 1);
        self.set(register::STATUS, 11);
        self.set(register::QUEUE_SEL, 0);
        self.set(register::QUEUE_SIZE, 16);
        for (register, address) in [
            (register::QUEUE_DESC, DESCRIPTORS),
            (register::QUEUE_DRIVER, AVAILABLE),
            (register::QUEUE_DEVICE, USED),
        ] {
            self.set(register, address as u32);
            self.set(register + 4, 0);
        }
        self.set(register::QUEUE_READY, 1);
        self.set(register::STATUS, 15);
    }

    fn request(&mut self, index: u16, len: u32, flags: u16, next: u16) {
        let mut bytes = (BUFFER + u64::from(index) * 0x100).to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let slot = GuestAddress(DESCRIPTORS + u64::from(index) * 16);
        self.memory.write_slice(&bytes, slot).unwrap();
        let entry = GuestAddress(AVAILABLE + 4 + u64::from(self.available % 16) * 2);
        self.memory.write_obj(index, entry).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory
            .write_obj(self.available, GuestAddress(AVAILABLE + 2))
            .unwrap();
        self.set(register::QUEUE_NOTIFY, 0);
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Register { number, value } => {
                self.set(u64::from(number % 0x40) * 4, value);
            }
            Step::SmallRegister { number, value } => {
                self.set(u64::from(number % 0x40) * 4, value.into());
            }
            Step::Write { offset, data } => {
                let data = &data[..data.len().min(16)];
                self.transport.write(u64::from(offset) % PAGE_SIZE, data);
            }
            Step::Read { offset, len } => {
                let mut data = [0xff; 16];
                let len = usize::from(len % 17);
                self.transport
                    .read(u64::from(offset) % PAGE_SIZE, &mut data[..len]);
            }
            Step::Memory { address, value } => {
                let address = u64::from(address) % (MEMORY as u64 - 8);
                self.memory.write_obj(value, GuestAddress(address)).unwrap();
            }
            Step::Request {
                index,
                len,
                flags,
                next,
            } => self.request((index % 16).into(), len.into(), flags.into(), next.into()),
            Step::Kick { queue } => self.set(register::QUEUE_NOTIFY, queue.into()),
            Step::Start => self.start(),
            Step::Reset => self.set(register::STATUS, 0),
            Step::Save => self.save(),
        }
        self.pump();
    }

    /// What is saved of any transport that a driver can bring about can be restored.
    fn save(&self) {
        let state = self.transport.state();
        let device = Arc::new(Mutex::new(Rng::new(Config {}).unwrap()));
        let other = Transport::restore(device, self.memory.clone(), &state).unwrap();
        // Queues that were good when they were activated may lie elsewhere now.
        if !other.state().needs_reset {
            assert_eq!(other.state(), state);
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut world = World::new();
    for step in steps {
        world.take(step);
    }
    // Whatever was done to it: a reset and a driver that follows the rules.
    world.set(register::STATUS, 0);
    assert_eq!(world.get(register::STATUS), 0);
    world
        .memory
        .write_slice(&[0; MEMORY], GuestAddress(0))
        .unwrap();
    world.available = 0;
    world.start();
    assert_eq!(world.get(register::STATUS), 15);
    world.request(0, 64, 2, 0);
    world.pump();
    // What was taken before may have used up the allowance; then the buffer is filled later.
    if world.get(register::INTERRUPT_STATUS) & 1 != 0 {
        let filled: u32 = world.memory.read_obj(GuestAddress(USED + 8)).unwrap();
        assert!((1..=64).contains(&filled), "{filled} bytes");
    }
});
