use std::fs::File;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, SubscriberOps};
use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, FileOffset, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::request::{REQUEST_LEN, RESPONSE_LEN};
use super::*;
use crate::device::{
    Activation, ActiveQueue, GuestRam, INTERRUPT_CONFIG_CHANGE, Interrupt, VirtioDevice as _,
};

const ADDR: u64 = 4 << 30;
const SECTION: u64 = 4 * BLOCK;
const CONFIG: Config = Config {
    addr: ADDR,
    region_size: 4 * SECTION,
    section: SECTION,
};
const REQUEST: u64 = 0x2_0000;
const RESPONSE: u64 = 0x3_0000;

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

/// A device under a driver and an event loop, with memory behind its first two sections.
struct Rig {
    memory: GuestRam,
    device: Arc<Mutex<Mem>>,
    manager: EventManager<Arc<Mutex<Mem>>>,
    kick: EventFd,
    status: Arc<AtomicU32>,
    file: File,
}

impl Rig {
    fn new() -> Self {
        let file = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC);
        let file = File::from(file.unwrap());
        file.set_len(2 * SECTION).unwrap();
        let length = usize::try_from(2 * SECTION).unwrap();
        let memory = GuestRam::from_ranges_with_files([
            (GuestAddress(0), 1 << 20, None),
            (
                GuestAddress(ADDR),
                length,
                Some(FileOffset::new(file.try_clone().unwrap(), 0)),
            ),
        ])
        .unwrap();
        let device = Arc::new(Mutex::new(Mem::new(CONFIG).unwrap()));
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(device.clone());
        Self {
            memory,
            device,
            manager,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            status: Arc::default(),
            file,
        }
    }

    fn request_size(&self, size: u64) {
        self.device.lock().unwrap().request(size).unwrap();
    }

    /// What the device answers to these descriptors: type and state, and the bytes it has written.
    fn ask_with(&mut self, descriptors: &[RawDescriptor]) -> (u16, u16, u32) {
        let memory = self.memory.clone();
        let driver = MockSplitQueue::new(&memory, 16);
        driver.add_desc_chains(descriptors, 0).unwrap();
        let activation = Activation {
            memory: memory.clone(),
            features: 0,
            queues: vec![ActiveQueue {
                queue: driver.create_queue().unwrap(),
                kick: self.kick.try_clone().unwrap(),
            }],
            interrupt: Interrupt::new(
                self.status.clone(),
                Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            ),
        };
        memory
            .write_slice(&[0xee; RESPONSE_LEN], GuestAddress(RESPONSE))
            .unwrap();
        self.device.lock().unwrap().activate(activation).unwrap();
        while self.manager.run_with_timeout(20).unwrap() > 0 {}
        assert_eq!(u16::from_le(driver.used().idx().load()), 1);
        let written = driver.used().ring().ref_at(0).unwrap().load().len();
        let word = |offset| {
            memory
                .read_obj::<u16>(GuestAddress(RESPONSE + offset))
                .unwrap()
        };
        (word(0), word(8), written)
    }

    fn ask(&mut self, kind: u16, addr: u64, nb_blocks: u16) -> (u16, u16) {
        let mut request = [0; REQUEST_LEN];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&addr.to_le_bytes());
        request[16..18].copy_from_slice(&nb_blocks.to_le_bytes());
        self.memory
            .write_slice(&request, GuestAddress(REQUEST))
            .unwrap();
        let (kind, state, written) = self.ask_with(&[
            descriptor(REQUEST, REQUEST_LEN, VRING_DESC_F_NEXT, 1),
            descriptor(RESPONSE, RESPONSE_LEN, VRING_DESC_F_WRITE, 0),
        ]);
        assert_eq!(usize::try_from(written).unwrap(), RESPONSE_LEN);
        (kind, state)
    }

    fn plugged(&self) -> u64 {
        self.device.lock().unwrap().plugged_size() / BLOCK
    }
}

fn descriptor(address: u64, length: usize, flags: u32, next: u16) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(
        address,
        u32::try_from(length).unwrap(),
        u16::try_from(flags).unwrap(),
        next,
    ))
}

fn at(block: u64) -> u64 {
    ADDR + block * BLOCK
}

#[test]
fn a_driver_gets_what_is_requested_and_no_more() {
    let mut rig = Rig::new();
    assert_eq!(rig.ask(PLUG, ADDR, 1), (ERROR, 0), "nothing is usable");
    rig.request_size(5 * BLOCK);
    assert_eq!(rig.ask(PLUG, ADDR, 3), (ACK, 0));
    assert_eq!(
        rig.ask(PLUG, at(6), 2),
        (ACK, 0),
        "anywhere in the usable part"
    );
    assert_eq!(rig.plugged(), 5);
    assert_eq!(rig.ask(PLUG, at(3), 1), (NACK, 0), "more than requested");
    assert_eq!(rig.ask(STATE, ADDR, 3), (ACK, 0), "plugged");
    assert_eq!(rig.ask(STATE, at(3), 3), (ACK, 1), "not plugged");
    assert_eq!(rig.ask(STATE, at(2), 2), (ACK, 2), "partly");
    rig.request_size(6 * BLOCK);
    assert_eq!(rig.ask(PLUG, at(3), 1), (ACK, 0));
    let metrics = rig.device.lock().unwrap().metrics();
    assert_eq!(
        (metrics.acknowledged, metrics.refused, metrics.errors),
        (6, 1, 1)
    );
}

#[test]
fn what_no_driver_asks_for_is_an_error() {
    let mut rig = Rig::new();
    rig.request_size(8 * BLOCK);
    assert_eq!(rig.ask(PLUG, at(2), 2), (ACK, 0));
    for (what, kind, addr, blocks) in [
        ("no such request", 4, ADDR, 1),
        ("no blocks", PLUG, ADDR, 0),
        ("not aligned", PLUG, ADDR + 4096, 1),
        ("before the region", PLUG, ADDR - BLOCK, 1),
        ("at the end of all addresses", PLUG, u64::MAX - BLOCK + 1, 2),
        ("behind the usable part", PLUG, at(8), 1),
        ("across its end", PLUG, at(7), 2),
        ("more than there is", PLUG, ADDR, u16::MAX),
        ("plugged in part", PLUG, at(1), 2),
        ("unplugged in part", UNPLUG, at(3), 2),
        ("not plugged", UNPLUG, at(5), 1),
        ("a state behind the usable part", STATE, at(8), 1),
    ] {
        assert_eq!(rig.ask(kind, addr, blocks), (ERROR, 0), "{what}");
        assert_eq!(rig.plugged(), 2, "{what}");
    }
}

#[test]
fn what_is_given_back_leaves_the_file() {
    use std::os::unix::fs::MetadataExt;

    let mut rig = Rig::new();
    rig.request_size(8 * BLOCK);
    assert_eq!(rig.ask(PLUG, ADDR, 8), (ACK, 0));
    for block in [1, 2, 7] {
        rig.memory
            .write_obj(0x55_u8, GuestAddress(at(block)))
            .unwrap();
    }
    let before = rig.file.metadata().unwrap().blocks();
    assert_eq!(rig.ask(UNPLUG, at(1), 1), (ACK, 0));
    // Before a page of it is read, which makes it anew.
    assert!(rig.file.metadata().unwrap().blocks() < before);
    assert_eq!(rig.plugged(), 7);
    let byte = |rig: &Rig, block| rig.memory.read_obj::<u8>(GuestAddress(at(block))).unwrap();
    assert_eq!((byte(&rig, 1), byte(&rig, 2)), (0, 0x55));
    assert_eq!(rig.ask(UNPLUG_ALL, 0, 0), (ACK, 0));
    assert_eq!((rig.plugged(), byte(&rig, 2), byte(&rig, 7)), (0, 0, 0));
    // It may be had again.
    assert_eq!(rig.ask(PLUG, ADDR, 8), (ACK, 0));
    assert_eq!(rig.device.lock().unwrap().metrics().kept, 0);
}

#[test]
fn buffers_that_hold_no_request_are_counted() {
    let mut rig = Rig::new();
    rig.request_size(8 * BLOCK);
    let request = |length| descriptor(REQUEST, length, VRING_DESC_F_NEXT, 1);
    let response = |length| descriptor(RESPONSE, length, VRING_DESC_F_WRITE, 0);
    // A request to plug a block: its type and the padding are zero.
    let mut bytes = [0; REQUEST_LEN];
    bytes[8..16].copy_from_slice(&ADDR.to_le_bytes());
    bytes[16] = 1;
    rig.memory
        .write_slice(&bytes, GuestAddress(REQUEST))
        .unwrap();
    let short = rig.ask_with(&[request(REQUEST_LEN - 1), response(RESPONSE_LEN)]);
    assert_eq!((short.0, short.2), (ERROR, 10));
    // No room for the answer: nothing is done.
    let cramped = rig.ask_with(&[request(REQUEST_LEN), response(RESPONSE_LEN - 1)]);
    assert_eq!(cramped.2, 0);
    assert_eq!(rig.plugged(), 0);
    assert_eq!(rig.device.lock().unwrap().metrics().malformed, 2);
}

#[test]
fn the_configuration_is_told_and_changes_are_announced() {
    let mut rig = Rig::new();
    rig.request_size(BLOCK);
    let words = |rig: &Rig| {
        let mut bytes = [0xee; 64];
        rig.device.lock().unwrap().read_config(0, &mut bytes);
        let words = bytes.chunks_exact(8);
        words
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect::<Vec<_>>()
    };
    let region = 4 * SECTION;
    assert_eq!(words(&rig), [BLOCK, 0, ADDR, region, SECTION, 0, BLOCK, 0]);
    assert_eq!(rig.ask(PLUG, ADDR, 1), (ACK, 0));
    let pending = || rig.status.load(Ordering::SeqCst) & INTERRUPT_CONFIG_CHANGE != 0;
    assert!(!pending());
    // Rounded up to a block.
    rig.request_size(SECTION + 1);
    assert!(pending());
    let requested = SECTION + BLOCK;
    assert_eq!(words(&rig)[4..7], [2 * SECTION, BLOCK, requested]);
    let mut byte = [0];
    rig.device.lock().unwrap().read_config(u64::MAX, &mut byte);
    assert_eq!(byte, [0]);
}

#[test]
fn more_than_the_region_or_less_than_before_cannot_be_requested() {
    let mut device = Mem::new(CONFIG).unwrap();
    device.request(3 * BLOCK).unwrap();
    for size in [2 * BLOCK, 4 * SECTION + 1, u64::MAX] {
        assert!(matches!(device.request(size), Err(Error::Request { .. })));
    }
    assert_eq!(device.requested_size(), 3 * BLOCK);
    for config in [
        Config {
            section: 0,
            ..CONFIG
        },
        Config {
            section: BLOCK / 2,
            ..CONFIG
        },
        Config {
            addr: ADDR + BLOCK,
            ..CONFIG
        },
        Config {
            addr: u64::MAX - SECTION + 1,
            ..CONFIG
        },
        Config {
            region_size: 0,
            ..CONFIG
        },
        Config {
            region_size: SECTION + BLOCK,
            ..CONFIG
        },
        Config {
            region_size: 2 * MAX_REGION,
            ..CONFIG
        },
    ] {
        assert!(
            matches!(Mem::new(config), Err(Error::Config(_))),
            "{config:?}"
        );
    }
}

#[test]
fn a_device_goes_on_from_its_state_and_from_no_other() {
    let mut rig = Rig::new();
    rig.request_size(6 * BLOCK);
    assert_eq!(rig.ask(PLUG, ADDR, 2), (ACK, 0));
    assert_eq!(rig.ask(PLUG, at(5), 3), (ACK, 0));
    let state = rig.device.lock().unwrap().state();
    assert_eq!(state.plugged, [(0, 2), (5, 3)]);
    let json = serde_json::to_string(&state).unwrap();
    let read: State = serde_json::from_str(&json).unwrap();
    let restored = Mem::restore(read).unwrap();
    assert_eq!(restored.state(), state);
    assert_eq!(restored.plugged_size(), 5 * BLOCK);
    for plugged in [vec![(0, 0)], vec![(7, 2)], vec![(u64::MAX, 2)]] {
        let wrong = State {
            plugged,
            ..state.clone()
        };
        assert!(matches!(Mem::restore(wrong), Err(Error::State)));
    }
    let wrong = State {
        requested_size: 1,
        ..state.clone()
    };
    assert!(
        Mem::restore(State {
            plugged: vec![],
            ..wrong
        })
        .is_err()
    );
}
