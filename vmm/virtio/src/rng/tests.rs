use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, SubscriberOps};
use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::device::ActiveQueue;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM: usize = 1 << 20;
const BUFFERS: u64 = 0x1_0000;

/// A device under a driver and an event loop.
struct Rig {
    memory: GuestRam,
    device: Arc<Mutex<Rng>>,
    manager: EventManager<Arc<Mutex<Rng>>>,
    kick: EventFd,
    status: Arc<AtomicU32>,
    line: Arc<EventFd>,
}

impl Rig {
    fn new() -> Self {
        let device = Arc::new(Mutex::new(Rng::new(Config::default()).unwrap()));
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(device.clone());
        Self {
            memory: GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).unwrap(),
            device,
            manager,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            status: Arc::default(),
            line: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        }
    }

    fn activate(&self, queue: Queue) {
        let activation = Activation {
            memory: self.memory.clone(),
            features: 0,
            queues: vec![ActiveQueue {
                queue,
                kick: self.kick.try_clone().unwrap(),
            }],
            interrupt: Interrupt::new(self.status.clone(), self.line.clone()),
        };
        self.device.lock().unwrap().activate(activation).unwrap();
    }

    fn run(&mut self) {
        while self.manager.run_with_timeout(20).unwrap() > 0 {}
    }
}

fn buffer(address: u64, length: u32, flags: u32) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(
        address,
        length,
        u16::try_from(flags).unwrap(),
        0,
    ))
}

#[test]
fn buffers_are_filled_up_to_the_limit() {
    let mut rig = Rig::new();
    let memory = rig.memory.clone();
    let driver = MockSplitQueue::new(&memory, 16);
    let descriptors = [
        buffer(BUFFERS, 64, VRING_DESC_F_WRITE),
        buffer(BUFFERS + 0x1000, 10_000, VRING_DESC_F_WRITE),
    ];
    driver.add_desc_chains(&descriptors, 0).unwrap();
    rig.activate(driver.create_queue().unwrap());
    rig.run();

    assert_eq!(driver.used().idx().load(), 2);
    let used = [0, 1].map(|i| driver.used().ring().ref_at(i).unwrap().load().len());
    assert_eq!(used, [64, u32::try_from(REQUEST_LIMIT).unwrap()]);
    let mut bytes = [0; 64];
    memory
        .read_slice(&mut bytes, GuestAddress(BUFFERS))
        .unwrap();
    assert!(bytes.iter().any(|b| *b != 0));
    let mut past = [0; 16];
    let end = BUFFERS + 0x1000 + REQUEST_LIMIT as u64;
    memory.read_slice(&mut past, GuestAddress(end)).unwrap();
    assert_eq!(past, [0; 16]);
    assert_eq!(rig.status.load(Ordering::SeqCst), 1);
    assert!(rig.line.read().unwrap() > 0);
}

#[test]
fn a_buffer_that_cannot_be_written_is_returned_empty() {
    let mut rig = Rig::new();
    let memory = rig.memory.clone();
    let driver = MockSplitQueue::new(&memory, 16);
    driver
        .add_desc_chains(&[buffer(BUFFERS, 64, 0)], 0)
        .unwrap();
    rig.activate(driver.create_queue().unwrap());
    rig.run();
    assert_eq!(driver.used().idx().load(), 1);
    assert_eq!(driver.used().ring().ref_at(0).unwrap().load().len(), 0);
}

#[test]
fn a_guest_cannot_take_more_than_its_rate() {
    let mut rig = Rig::new();
    let memory = rig.memory.clone();
    let driver = MockSplitQueue::new(&memory, 64);
    let descriptors: Vec<_> = (0..32)
        .map(|i| buffer(BUFFERS + i * 0x1000, 4096, VRING_DESC_F_WRITE))
        .collect();
    driver.add_desc_chains(&descriptors, 0).unwrap();
    rig.device.lock().unwrap().allowance.bytes = 8192;
    rig.activate(driver.create_queue().unwrap());
    rig.manager.run_with_timeout(0).unwrap();
    let served = driver.used().idx().load();
    assert!((2..32).contains(&served), "{served}");
    // The timer brings the rest without another kick.
    let deadline = Instant::now() + Duration::from_secs(20);
    while driver.used().idx().load() < 32 {
        assert!(Instant::now() < deadline, "{}", driver.used().idx().load());
        rig.manager.run_with_timeout(100).unwrap();
    }
}

#[test]
fn the_allowance_fills_at_its_rate_up_to_its_burst() {
    let start = Instant::now();
    let mut allowance = Allowance {
        bytes: 0,
        filled: start,
    };
    allowance.refill(start + Duration::from_millis(10));
    assert_eq!(allowance.bytes, 10 * RATE / 1000);
    allowance.refill(start + Duration::from_secs(100));
    assert_eq!(allowance.bytes, BURST);
}

#[test]
fn a_broken_ring_needs_a_reset() {
    let mut rig = Rig::new();
    let memory = rig.memory.clone();
    let driver = MockSplitQueue::new(&memory, 16);
    let queue = driver.create_queue().unwrap();
    // More entries than the ring has.
    driver.avail().idx().store(1000_u16.to_le());
    rig.activate(queue);
    rig.run();
    assert_eq!(rig.status.load(Ordering::SeqCst), 2);
    assert!(rig.device.lock().unwrap().queue_states().is_empty());
}

#[test]
fn a_reset_device_serves_nothing() {
    let mut rig = Rig::new();
    let memory = rig.memory.clone();
    let driver = MockSplitQueue::new(&memory, 16);
    rig.activate(driver.create_queue().unwrap());
    rig.run();
    rig.device.lock().unwrap().reset();
    let chain = [buffer(BUFFERS, 64, VRING_DESC_F_WRITE)];
    driver.add_desc_chains(&chain, 0).unwrap();
    rig.kick.write(1).unwrap();
    rig.run();
    assert_eq!(driver.used().idx().load(), 0);
}

#[test]
fn a_queue_that_is_not_ready_is_refused() {
    let rig = Rig::new();
    let activation = Activation {
        memory: rig.memory.clone(),
        features: 0,
        queues: vec![ActiveQueue {
            queue: Queue::new(16).unwrap(),
            kick: rig.kick.try_clone().unwrap(),
        }],
        interrupt: Interrupt::new(rig.status.clone(), rig.line.clone()),
    };
    let error = rig.device.lock().unwrap().activate(activation).unwrap_err();
    assert!(matches!(error, ActivateError::Queue { index: 0 }));
}
