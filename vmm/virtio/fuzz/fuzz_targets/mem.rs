//! A driver that asks a memory device for anything, in buffers of any shape, while the host raises what it may have.
//!
//! `tests/fuzz 60 mem`. The device has to survive, to come to rest after each step, to keep its
//! state restorable, to answer what a model of the rules says, and never to have more plugged than was requested.
#![no_main]

use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use cloister_virtio::device::GuestRam;
use cloister_virtio::mem::{BLOCK, Config, Mem, REQUEST_LEN, RESPONSE_LEN};
use cloister_virtio::mmio::Transport;
use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempfile::TempFile;

const MEMORY: usize = 0x2_0000;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFER: u64 = 0x4000;
const REQUEST: u64 = 0x1_0000;
const RESPONSE: u64 = 0x1_1000;

const ADDR: u64 = 4 << 30;
const BLOCKS: u64 = 16;
const CONFIG: Config = Config {
    addr: ADDR,
    region_size: BLOCKS * BLOCK,
    section: 4 * BLOCK,
};

/// virtio-v1.3 §4.2.2.
mod register {
    pub(super) const DRIVER_FEATURES: u64 = 0x20;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub(super) const QUEUE_SEL: u64 = 0x30;
    pub(super) const QUEUE_SIZE: u64 = 0x38;
    pub(super) const QUEUE_READY: u64 = 0x44;
    pub(super) const QUEUE_NOTIFY: u64 = 0x50;
    pub(super) const STATUS: u64 = 0x70;
    pub(super) const QUEUE_DESC: u64 = 0x80;
    pub(super) const QUEUE_DRIVER: u64 = 0x90;
    pub(super) const QUEUE_DEVICE: u64 = 0xa0;
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// A request of the right shape; small numbers are in the region.
    Ask {
        kind: u8,
        block: u8,
        blocks: u8,
    },
    /// Any bytes, of the right shape.
    AskBytes([u8; REQUEST_LEN]),
    /// Any descriptors; what they lead to is up to `Memory`.
    Chain {
        index: u8,
        len: u16,
        flags: u8,
        next: u8,
    },
    Memory {
        address: u32,
        value: u64,
    },
    /// The host allows so many blocks.
    Raise(u8),
    Reset,
    Save,
}

struct World {
    memory: GuestRam,
    device: Arc<Mutex<Mem>>,
    transport: Transport,
    manager: EventManager<Arc<Mutex<dyn MutEventSubscriber + Send>>>,
    available: u16,
    /// Which blocks are plugged, while all that was asked is known.
    model: Option<[bool; BLOCKS as usize]>,
    requested: u64,
}

impl World {
    fn new() -> Self {
        let file = TempFile::new().unwrap().into_file();
        file.set_len(CONFIG.region_size).unwrap();
        let memory = GuestMemoryMmap::from_ranges_with_files([
            (GuestAddress(0), MEMORY, None),
            (
                GuestAddress(ADDR),
                CONFIG.region_size as usize,
                Some(FileOffset::new(file, 0)),
            ),
        ])
        .unwrap();
        let device = Arc::new(Mutex::new(Mem::new(CONFIG).unwrap()));
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(device.clone() as Arc<Mutex<dyn MutEventSubscriber + Send>>);
        let transport = Transport::new(device.clone(), memory.clone()).unwrap();
        let mut world = Self {
            memory,
            device,
            transport,
            manager,
            available: 0,
            model: Some([false; BLOCKS as usize]),
            requested: 0,
        };
        world.start();
        world
    }

    fn set(&self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    fn pump(&mut self) {
        for _ in 0..100 {
            if self.manager.run_with_timeout(0).unwrap() == 0 {
                return;
            }
        }
        panic!("the device keeps the event loop busy");
    }

    fn start(&mut self) {
        self.set(register::STATUS, 0);
        (self.memory.write_slice(&[0; MEMORY], GuestAddress(0))).unwrap();
        self.available = 0;
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
        self.pump();
    }

    fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let slot = GuestAddress(DESCRIPTORS + u64::from(index) * 16);
        self.memory.write_slice(&bytes, slot).unwrap();
    }

    fn offer(&mut self, index: u16) {
        let entry = GuestAddress(AVAILABLE + 4 + u64::from(self.available % 16) * 2);
        self.memory.write_obj(index, entry).unwrap();
        self.available = self.available.wrapping_add(1);
        (self
            .memory
            .write_obj(self.available, GuestAddress(AVAILABLE + 2)))
        .unwrap();
        self.set(register::QUEUE_NOTIFY, 0);
        self.pump();
    }

    /// Asks in a session of its own, and compares the answer with the model's.
    fn ask(&mut self, request: [u8; REQUEST_LEN]) {
        self.start();
        (self.memory.write_slice(&request, GuestAddress(REQUEST))).unwrap();
        self.descriptor(0, REQUEST, REQUEST_LEN as u32, 1, 1);
        self.descriptor(1, RESPONSE, RESPONSE_LEN as u32, 2, 0);
        self.offer(0);
        let used: u16 = self.memory.read_obj(GuestAddress(USED + 2)).unwrap();
        assert_eq!(used, 1, "no answer");
        let kind: u16 = self.memory.read_obj(GuestAddress(RESPONSE)).unwrap();
        let state: u16 = self.memory.read_obj(GuestAddress(RESPONSE + 8)).unwrap();
        if let Some(mut model) = self.model {
            let expected = answer(&mut model, self.requested, &request);
            assert_eq!((kind, state), expected, "{request:?}");
            self.model = Some(model);
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Ask {
                kind,
                block,
                blocks,
            } => {
                let mut request = [0; REQUEST_LEN];
                request[0] = kind % 5;
                let addr = ADDR + u64::from(block % 20) * BLOCK;
                request[8..16].copy_from_slice(&addr.to_le_bytes());
                request[16] = blocks % 20;
                self.ask(request);
            }
            Step::AskBytes(request) => self.ask(request),
            Step::Chain {
                index,
                len,
                flags,
                next,
            } => {
                let index = u16::from(index % 16);
                let address = BUFFER + u64::from(index) * 0x100;
                self.descriptor(index, address, len.into(), flags.into(), (next % 16).into());
                // What it means is not known.
                self.model = None;
                self.offer(index);
            }
            Step::Memory { address, value } => {
                let address = u64::from(address) % (MEMORY as u64 - 8);
                self.memory.write_obj(value, GuestAddress(address)).unwrap();
            }
            Step::Raise(blocks) => {
                let size = u64::from(blocks % 20) * BLOCK;
                let raised = self.device.lock().unwrap().request(size);
                let fits = (self.requested..=CONFIG.region_size).contains(&size);
                assert_eq!(raised.is_ok(), fits);
                if fits {
                    self.requested = size;
                }
                self.pump();
            }
            Step::Reset => self.start(),
            Step::Save => {
                let state = self.device.lock().unwrap().state();
                assert_eq!(Mem::restore(state.clone()).unwrap().state(), state);
            }
        }
        let device = self.device.lock().unwrap();
        assert!(device.plugged_size() <= self.requested);
        if let Some(model) = self.model {
            let plugged = model.iter().filter(|plugged| **plugged).count() as u64;
            assert_eq!(device.plugged_size(), plugged * BLOCK);
        }
    }
}

/// virtio-v1.3 §5.15.6, over the blocks of the model: type and state of the answer.
fn answer(model: &mut [bool], requested: u64, request: &[u8; REQUEST_LEN]) -> (u16, u16) {
    const ERROR: (u16, u16) = (3, 0);
    let kind = u16::from_le_bytes([request[0], request[1]]);
    if kind == 2 {
        model.fill(false);
        return (0, 0);
    }
    let addr = u64::from_le_bytes(request[8..16].try_into().unwrap());
    let blocks = u64::from(u16::from_le_bytes([request[16], request[17]]));
    let usable = requested
        .next_multiple_of(CONFIG.section)
        .min(CONFIG.region_size)
        / BLOCK;
    if kind > 3 || addr < ADDR || addr % BLOCK != 0 || blocks == 0 {
        return ERROR;
    }
    let first = (addr - ADDR) / BLOCK;
    if first >= usable || blocks > usable - first {
        return ERROR;
    }
    let plugged_now = model.iter().filter(|plugged| **plugged).count() as u64;
    let extent = &mut model[first as usize..(first + blocks) as usize];
    let plugged = extent.iter().filter(|plugged| **plugged).count() as u64;
    match kind {
        0 if plugged > 0 => ERROR,
        0 if (plugged_now + blocks) * BLOCK > requested => (1, 0),
        1 if plugged < blocks => ERROR,
        0 | 1 => {
            extent.fill(kind == 0);
            (0, 0)
        }
        _ if plugged == blocks => (0, 0),
        _ if plugged == 0 => (0, 1),
        _ => (0, 2),
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut world = World::new();
    for step in steps {
        world.take(step);
    }
});
