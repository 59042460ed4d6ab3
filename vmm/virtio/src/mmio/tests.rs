use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use super::*;
use crate::device::ActivateError;

const FEATURE: u64 = 1 << 5;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

const ACKNOWLEDGE: u32 = status::ACKNOWLEDGE;
const DRIVER: u32 = ACKNOWLEDGE | status::DRIVER;
const FEATURES: u32 = DRIVER | status::FEATURES_OK;
const RUNNING: u32 = FEATURES | status::DRIVER_OK;

#[derive(Default)]
struct Fake {
    active: Option<Activation>,
    resets: u32,
    refuse: bool,
    config: [u8; 8],
}

impl VirtioDevice for Fake {
    fn device_type(&self) -> u32 {
        42
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }

    fn offered_features(&self) -> u64 {
        FEATURE | EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let start = usize::try_from(offset).unwrap();
        let source = self.config.get(start..).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(source) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).unwrap();
        for (to, from) in self.config.iter_mut().skip(start).zip(data) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if self.refuse {
            return Err(ActivateError::Queue { index: 1 });
        }
        self.active = Some(activation);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.resets += 1;
    }

    fn set_memory(&mut self, memory: GuestRam) {
        if let Some(active) = &mut self.active {
            active.memory = memory;
        }
    }

    fn queue_states(&self) -> Vec<SavedQueue> {
        let queues = self.active.iter().flat_map(|a| &a.queues);
        queues.map(|q| q.queue.state().into()).collect()
    }
}

impl MutEventSubscriber for Fake {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}

    fn init(&mut self, _ops: &mut EventOps) {}
}

/// A driver's view of a transport.
struct Driver {
    transport: Transport,
    device: Arc<Mutex<Fake>>,
}

impl Driver {
    fn new() -> Self {
        let device = Arc::new(Mutex::new(Fake::default()));
        let transport = Transport::new(device.clone(), ram()).unwrap();
        Self { transport, device }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.transport.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn set_status(&self, value: u32) -> u32 {
        self.write(STATUS, value);
        self.read(STATUS)
    }

    fn accept(&self, features: u64) {
        for (selector, word) in [(0, features), (1, features >> 32)] {
            self.write(DRIVER_FEATURES_SEL, selector);
            self.write(DRIVER_FEATURES, u32::try_from(word & 0xffff_ffff).unwrap());
        }
    }

    fn negotiate(&self, features: u64) -> u32 {
        self.set_status(ACKNOWLEDGE);
        self.set_status(DRIVER);
        self.accept(features);
        self.set_status(FEATURES)
    }

    fn set_up_queue(&self, index: u32, size: u32, base: u64) {
        self.write(QUEUE_SEL, index);
        self.write(QUEUE_SIZE, size);
        let pairs = [
            (QUEUE_DESC_LOW, base),
            (QUEUE_DRIVER_LOW, base + 0x1000),
            (QUEUE_DEVICE_LOW, base + 0x2000),
        ];
        for (low, address) in pairs {
            self.write(low, u32::try_from(address & 0xffff_ffff).unwrap());
            self.write(low + 4, u32::try_from(address >> 32).unwrap());
        }
        self.write(QUEUE_READY, 1);
    }

    fn run(&self) -> u32 {
        self.negotiate(FEATURE | VERSION_1 | EVENT_IDX);
        self.set_up_queue(0, 16, 0x1000);
        self.set_up_queue(1, 4, 0x5000);
        self.set_status(RUNNING)
    }
}

fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
}

#[test]
fn a_driver_finds_the_device() {
    let driver = Driver::new();
    assert_eq!(driver.read(MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(VERSION_REGISTER), 2);
    assert_eq!(driver.read(DEVICE_ID), 42);
    assert_eq!(driver.read(STATUS), 0);
    let features = [0, 1, 2].map(|selector| {
        driver.write(DEVICE_FEATURES_SEL, selector);
        driver.read(DEVICE_FEATURES)
    });
    assert_eq!(features, [0x2000_0020, 1, 0]);
    let sizes = [0, 1, 2].map(|index| {
        driver.write(QUEUE_SEL, index);
        driver.read(QUEUE_SIZE_MAX)
    });
    assert_eq!(sizes, [16, 8, 0]);
    assert_eq!(driver.read(SHM_LEN_LOW), u32::MAX);
}

#[test]
fn a_driver_that_keeps_the_rules_runs_the_device() {
    let driver = Driver::new();
    assert_eq!(driver.run(), RUNNING);
    let device = driver.device.lock().unwrap();
    let active = device.active.as_ref().unwrap();
    assert_eq!(active.features, FEATURE | VERSION_1 | EVENT_IDX);
    let queues: Vec<_> = active.queues.iter().map(|q| q.queue.state()).collect();
    assert_eq!((queues[0].size, queues[0].desc_table), (16, 0x1000));
    assert_eq!((queues[1].size, queues[1].used_ring), (4, 0x7000));
    assert!(queues.iter().all(|q| q.ready && q.event_idx_enabled));
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let driver = Driver::new();
    assert_eq!(driver.negotiate(VERSION_1 | 1 << 6), DRIVER);
    // The driver may try again with fewer.
    driver.accept(VERSION_1);
    assert_eq!(driver.set_status(FEATURES), FEATURES);
}

#[test]
fn a_legacy_driver_is_refused() {
    let driver = Driver::new();
    assert_eq!(driver.negotiate(FEATURE), DRIVER);
}

#[test]
fn features_cannot_change_once_agreed() {
    let driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.accept(VERSION_1 | FEATURE);
    driver.set_status(RUNNING);
    let device = driver.device.lock().unwrap();
    assert_eq!(device.active.as_ref().unwrap().features, VERSION_1);
}

#[test]
fn steps_out_of_order_are_ignored() {
    let driver = Driver::new();
    assert_eq!(driver.set_status(status::DRIVER), 0);
    assert_eq!(driver.set_status(RUNNING), 0);
    assert_eq!(driver.set_status(ACKNOWLEDGE), ACKNOWLEDGE);
    assert_eq!(driver.set_status(DRIVER | status::DRIVER_OK), ACKNOWLEDGE);
    assert_eq!(driver.set_status(DRIVER), DRIVER);
    // A bit cannot be taken back.
    assert_eq!(driver.set_status(ACKNOWLEDGE), DRIVER);
    // Nor can the device's own bit be set.
    assert_eq!(
        driver.set_status(DRIVER | status::DEVICE_NEEDS_RESET),
        DRIVER
    );
    // A bit that does not exist.
    assert_eq!(driver.set_status(DRIVER | 16), DRIVER);
    assert_eq!(
        driver.set_status(DRIVER | status::FAILED),
        DRIVER | status::FAILED
    );
    assert!(driver.device.lock().unwrap().active.is_none());
}

#[test]
fn a_reset_takes_everything_back() {
    let driver = Driver::new();
    driver.run();
    driver.transport.interrupt.used_buffer().unwrap();
    assert_eq!(driver.read(INTERRUPT_STATUS), 1);
    assert_eq!(driver.set_status(0), 0);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
    driver.write(QUEUE_SEL, 0);
    assert_eq!(driver.read(QUEUE_READY), 0);
    {
        let device = driver.device.lock().unwrap();
        assert_eq!(device.resets, 1);
        assert!(device.active.is_none());
    }
    assert_eq!(driver.run(), RUNNING);
    assert!(driver.device.lock().unwrap().active.is_some());
}

#[test]
fn queues_outside_memory_need_a_reset() {
    let driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, 16, 0x1000);
    driver.set_up_queue(1, 8, 0xffff_0000);
    assert_eq!(
        driver.set_status(RUNNING),
        RUNNING | status::DEVICE_NEEDS_RESET
    );
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    assert_eq!(driver.transport.line().read().unwrap(), 1);
    assert!(driver.device.lock().unwrap().active.is_none());
    assert_eq!(driver.set_status(0), 0);
    assert_eq!(driver.run(), RUNNING);
}

#[test]
fn queues_that_are_not_aligned_need_a_reset() {
    let driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, 16, 0x1001);
    assert_ne!(driver.set_status(RUNNING) & status::DEVICE_NEEDS_RESET, 0);
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let driver = Driver::new();
    driver.device.lock().unwrap().refuse = true;
    assert_eq!(driver.run(), RUNNING | status::DEVICE_NEEDS_RESET);
}

#[test]
fn queue_sizes_that_make_no_sense_are_ignored() {
    let driver = Driver::new();
    driver.negotiate(VERSION_1);
    driver.set_up_queue(0, 4, 0x1000);
    driver.write(QUEUE_READY, 0);
    for size in [0, 3, 32, 0x1_0004] {
        driver.write(QUEUE_SIZE, size);
    }
    driver.write(QUEUE_READY, 1);
    // A queue that is ready does not change.
    driver.write(QUEUE_SIZE, 8);
    driver.set_status(RUNNING);
    let device = driver.device.lock().unwrap();
    assert_eq!(device.active.as_ref().unwrap().queues[0].queue.size(), 4);
}

#[test]
fn queues_are_set_up_between_features_and_driver_ok_only() {
    let driver = Driver::new();
    driver.write(QUEUE_READY, 1);
    assert_eq!(driver.read(QUEUE_READY), 0);
    driver.run();
    driver.write(QUEUE_SEL, 0);
    driver.write(QUEUE_READY, 0);
    assert_eq!(driver.read(QUEUE_READY), 1);
    driver.write(QUEUE_SEL, 77);
    driver.write(QUEUE_READY, 1);
    assert_eq!(driver.read(QUEUE_READY), 0);
}

#[test]
fn notifications_and_acknowledgements_need_no_lock() {
    let driver = Driver::new();
    driver.run();
    let _registers = driver.transport.registers.lock().unwrap();
    let _device = driver.device.lock().unwrap();
    driver.write(QUEUE_NOTIFY, 1);
    driver.write(QUEUE_NOTIFY, 2);
    assert_eq!(driver.transport.kicks()[1].read().unwrap(), 1);
    assert!(driver.transport.kicks()[0].read().is_err());
    driver.transport.interrupt.used_buffer().unwrap();
    driver.transport.interrupt.config_change().unwrap();
    assert_eq!(driver.read(INTERRUPT_STATUS), 3);
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
}

#[test]
fn buffers_used_elsewhere_are_the_cause_of_any_interrupt() {
    let driver = Driver::new();
    driver.run();
    let interrupt = driver.transport.interrupt.clone();
    interrupt.used_elsewhere(true);
    assert_eq!(driver.read(INTERRUPT_STATUS), 1);
    driver.write(INTERRUPT_ACK, 1);
    assert_eq!(driver.read(INTERRUPT_STATUS), 1);
    interrupt.config_change().unwrap();
    assert_eq!(driver.read(INTERRUPT_STATUS), 3);
    driver.write(STATUS, 0);
    assert_eq!(driver.read(INTERRUPT_STATUS), 0);
}

#[test]
fn a_configuration_change_is_a_new_generation() {
    let driver = Driver::new();
    let before = driver.read(CONFIG_GENERATION);
    driver.transport.interrupt.used_buffer().unwrap();
    assert_eq!(driver.read(CONFIG_GENERATION), before);
    driver.transport.interrupt.config_change().unwrap();
    assert_eq!(driver.read(CONFIG_GENERATION), before + 1);
}

#[test]
fn the_configuration_space_takes_any_width() {
    let driver = Driver::new();
    driver.transport.write(CONFIG + 2, &[7]);
    assert_eq!(driver.read(CONFIG), 0, "written before there is a driver");
    driver.set_status(ACKNOWLEDGE);
    driver.set_status(DRIVER);
    driver.transport.write(CONFIG + 2, &[7, 8]);
    let mut bytes = [0xff; 8];
    driver.transport.read(CONFIG, &mut bytes);
    assert_eq!(bytes, [0, 0, 7, 8, 0, 0, 0, 0]);
    driver.transport.read(CONFIG + 0xe00, &mut bytes);
    assert_eq!(bytes, [0; 8]);
}

#[test]
fn registers_are_words() {
    let driver = Driver::new();
    let mut byte = [0xff];
    driver.transport.read(MAGIC_VALUE, &mut byte);
    assert_eq!(byte, [0]);
    driver.transport.write(STATUS, &[1]);
    driver.transport.write(STATUS, &[1; 8]);
    assert_eq!(driver.read(STATUS), 0);
    assert_eq!(driver.read(0x3), 0);
    assert_eq!(driver.read(0xf0), 0);
}

#[test]
fn a_device_that_gives_up_says_so() {
    let driver = Driver::new();
    driver.run();
    driver.transport.interrupt.needs_reset().unwrap();
    assert_ne!(driver.read(STATUS) & status::DEVICE_NEEDS_RESET, 0);
    assert_eq!(driver.read(INTERRUPT_STATUS), 2);
    assert_eq!(driver.set_status(0), 0);
}

#[test]
fn state_survives() {
    let driver = Driver::new();
    driver.run();
    driver.write(QUEUE_SEL, 1);
    driver.transport.interrupt.config_change().unwrap();
    {
        let mut device = driver.device.lock().unwrap();
        let queue = &mut device.active.as_mut().unwrap().queues[1].queue;
        queue.set_next_avail(5);
        queue.set_next_used(3);
    }
    let state = driver.transport.state();
    assert_eq!(state.queues[1].next_avail, 5);
    let json = serde_json::to_string(&state).unwrap();
    let state: TransportState = serde_json::from_str(&json).unwrap();

    let device = Arc::new(Mutex::new(Fake::default()));
    let restored = Transport::restore(device.clone(), ram(), &state).unwrap();
    assert_eq!(restored.state(), state);
    let device = device.lock().unwrap();
    let queue = &device.active.as_ref().unwrap().queues[1].queue;
    assert_eq!((queue.next_avail(), queue.next_used()), (5, 3));
}

#[test]
fn state_of_another_device_is_refused() {
    let driver = Driver::new();
    let mut state = driver.transport.state();
    state.queues.pop();
    let device: SharedDevice = Arc::new(Mutex::new(Fake::default()));
    let error = Transport::restore(device.clone(), ram(), &state).unwrap_err();
    assert_eq!(error.to_string(), "the state has 1 queues, the device 2");
}

#[test]
fn state_with_queues_outside_memory_needs_a_reset() {
    let driver = Driver::new();
    driver.run();
    let mut state = driver.transport.state();
    state.queues[0].desc_table = 0xffff_0000;
    let device: SharedDevice = Arc::new(Mutex::new(Fake::default()));
    let restored = Transport::restore(device, ram(), &state).unwrap();
    assert!(restored.state().needs_reset);
}

#[test]
fn memory_that_has_come_is_for_the_device_and_for_queues() {
    let driver = Driver::new();
    assert_eq!(driver.run(), RUNNING);
    let more = (1 << 32, 0x1_0000);
    let memory = [(GuestAddress(0), 0x1_0000), (GuestAddress(more.0), more.1)];
    let memory = GuestRam::from_ranges(&memory).unwrap();
    driver.transport.set_memory(memory.clone());
    let regions = |driver: &Driver| {
        let device = driver.device.lock().unwrap();
        device.active.as_ref().unwrap().memory.num_regions()
    };
    assert_eq!(regions(&driver), 2);
    // A driver that starts anew may have its queues there.
    driver.set_status(0);
    driver.negotiate(FEATURE | VERSION_1);
    driver.set_up_queue(0, 16, more.0 + 0x1000);
    driver.set_up_queue(1, 4, 0x5000);
    assert_eq!(driver.set_status(RUNNING), RUNNING);
    assert_eq!(regions(&driver), 2);
}
