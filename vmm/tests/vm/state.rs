//! A VM's state, taken and given to another one.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use cloister_virtio::vsock::{Connector, ConnectorError};
use cloister_vmm::machine::{Backends, Machine};
use cloister_vmm::memory;
use cloister_vmm::state::VmState;
use cloister_vmm::vcpus::Start;
use cloister_vmm_api::{Event, NetConfig, Request, VmConfig};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use kvm_ioctls::Kvm;

use crate::boot::tiny_kernel;
use crate::harness::{self, Plan, kvm_expected};
use crate::tap::TapInterface;

struct Nobody;

impl Connector for Nobody {
    fn connect(&mut self, port: u32) -> Result<UnixStream, ConnectorError> {
        Err(ConnectorError::Refused { port })
    }
}

fn backends(directory: &tempfile::TempDir, name: &str) -> Backends {
    Backends {
        console: tempfile::tempfile().unwrap(),
        vsock_listener: UnixListener::bind(directory.path().join(name)).unwrap(),
        vsock_connector: Box::new(Nobody),
        fs: None,
        added_memory: None,
        nets: Vec::new(),
    }
}

fn kvm() -> Kvm {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .unwrap();
    // SAFETY: the descriptor is owned and given up here.
    unsafe { Kvm::from_raw_fd(file.into_raw_fd()) }
}

fn config() -> VmConfig {
    let mut config = Plan::with_kernel(harness::file(b""), "").config;
    (config.vcpus, config.max_vcpus) = (2, 2);
    config
}

/// What two states have in common if they are of the same VM: everything but the clocks, which go
/// on, and what KVM derives from them.
fn comparable(mut state: VmState) -> VmState {
    state.clock = Default::default();
    for vcpu in &mut state.vcpus {
        // IA32_TIME_STAMP_COUNTER and IA32_TSC_ADJUST.
        vcpu.msrs.retain(|(index, _)| ![0x10, 0x3b].contains(index));
    }
    state
}

#[test]
fn a_restored_vm_has_the_state_it_was_given() {
    if !kvm_expected("a_restored_vm_has_the_state_it_was_given") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (config, kvm) = (config(), kvm());
    let machine = Machine::assemble(&config, &kvm, backends(&directory, "first")).unwrap();
    let kernel = harness::file(&tiny_kernel(&[0xf4]));
    let initramfs = harness::file(&harness::initramfs());
    machine.load(&kernel, &initramfs).unwrap();
    // What a driver and a kernel have left behind: an unmasked pin, a device that was found.
    let ioapic = machine.bus.ioapic();
    for (offset, value) in [(0, 0x1a), (0x10, 0x31), (0, 0x1b), (0x10, 1 << 24)] {
        ioapic.write(offset, &u32::to_le_bytes(value)).unwrap();
    }
    machine.bus.port_write(0x3ff, &[0x5a]);
    let status = cloister_vmm::layout::Slot::Rng.address() + 0x70;
    machine.bus.memory_write(status, &[1, 0, 0, 0]).unwrap();

    let saved = machine.save().unwrap();
    let json = serde_json::to_vec(&saved).unwrap();
    let read: VmState = serde_json::from_slice(&json).unwrap();
    assert_eq!(read, saved);
    assert_eq!(saved.serial.scratch, 0x5a);
    assert_eq!(saved.slots[1].as_ref().unwrap().status, 1);
    assert_eq!(saved.vcpus[0].regs.rip, 0x10_0000);

    let memory = memory::create(u64::from(config.memory_mib) << 20).unwrap();
    let backends = backends(&directory, "second");
    let second = Machine::restore(&config, &kvm, backends, memory, read).unwrap();
    let (restored, saved) = (comparable(second.save().unwrap()), comparable(saved));
    for (restored, saved) in restored.vcpus.iter().zip(&saved.vcpus) {
        assert_eq!(restored.msrs, saved.msrs);
        assert_eq!(restored.lapic, saved.lapic);
        assert_eq!(restored.events, saved.events);
        assert_eq!(restored, saved);
    }
    assert_eq!(restored, saved);
}

#[test]
fn a_vcpu_that_has_come_is_restored() {
    if !kvm_expected("a_vcpu_that_has_come_is_restored") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut config, kvm) = (config(), kvm());
    config.max_vcpus = 3;
    let machine = Machine::assemble(&config, &kvm, backends(&directory, "first")).unwrap();
    let start: Start = Box::new(|_, _| Ok(()));
    let request = Request::AddVcpus { vcpus: 3 };
    let answer = machine.vcpus.lock().unwrap().follow(request, &start);
    assert_eq!(answer.unwrap(), Event::VcpusAdded { vcpus: 3 });
    let saved = machine.save().unwrap();
    assert_eq!(saved.vcpus.len(), 3);
    let memory = memory::create(1 << 20).unwrap();
    let second = backends(&directory, "second");
    let second = Machine::restore(&config, &kvm, second, memory, saved.clone()).unwrap();
    assert_eq!(second.save().unwrap().vcpus.len(), 3);
    config.max_vcpus = 2;
    let memory = memory::create(1 << 20).unwrap();
    let third = backends(&directory, "third");
    let error = Machine::restore(&config, &kvm, third, memory, saved);
    assert_eq!(
        error.err().unwrap().to_string(),
        "saved state: the number of vCPUs does not match the configuration"
    );
}

#[test]
fn memory_that_has_come_is_restored_from_its_file() {
    if !kvm_expected("memory_that_has_come_is_restored_from_its_file") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut config, kvm) = (config(), kvm());
    config.max_memory_mib = 1024;
    let machine = Machine::assemble(&config, &kvm, backends(&directory, "first")).unwrap();
    let request = Request::AddMemory { memory_mib: 300 };
    let mut manager = EventManager::new().unwrap();
    let owner = manager.add_subscriber(Owner {
        machine: &machine,
        request: Some((request, Vec::new())),
        answer: None,
    });
    let owner = manager.remove_subscriber(owner).unwrap();
    let granted = Event::Memory {
        granted_mib: 300,
        plugged_mib: 128,
    };
    assert_eq!(owner.answer, Some(granted));
    let saved = machine.save().unwrap();
    assert_eq!(saved.mem.as_ref().unwrap().requested_size, 172 << 20);
    let json = serde_json::to_vec(&saved).unwrap();
    let saved: VmState = serde_json::from_slice(&json).unwrap();

    let restore = |name, added_memory| {
        let memory = memory::create(u64::from(config.memory_mib) << 20).unwrap();
        let backends = Backends {
            added_memory,
            ..backends(&directory, name)
        };
        Machine::restore(&config, &kvm, backends, memory, saved.clone())
    };
    let second = restore("second", Some(tempfile::tempfile().unwrap())).unwrap();
    let state = second.save().unwrap();
    assert_eq!((&state.mem, &state.slots), (&saved.mem, &saved.slots));
    let error = restore("third", None).err().unwrap();
    assert_eq!(
        error.to_string(),
        "saved state: the memory device does not match the configuration and the memory"
    );
}

#[test]
fn the_state_of_another_vm_is_refused() {
    if !kvm_expected("the_state_of_another_vm_is_refused") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (mut config, kvm) = (config(), kvm());
    let machine = Machine::assemble(&config, &kvm, backends(&directory, "first")).unwrap();
    let saved = machine.save().unwrap();
    (config.vcpus, config.max_vcpus) = (1, 1);
    let memory = memory::create(1 << 20).unwrap();
    let backends = backends(&directory, "second");
    let error = Machine::restore(&config, &kvm, backends, memory, saved);
    assert_eq!(
        error.err().unwrap().to_string(),
        "saved state: the number of vCPUs does not match the configuration"
    );
}

/// Has a request about a part of the machine followed where the event loop would do it.
struct Owner<'m> {
    machine: &'m Machine,
    request: Option<(Request, Vec<OwnedFd>)>,
    answer: Option<Event>,
}

impl MutEventSubscriber for Owner<'_> {
    fn init(&mut self, ops: &mut EventOps) {
        let (request, fds) = self.request.take().unwrap();
        let mut nets = self.machine.nets.lock().unwrap();
        let answer = nets.follow(request, fds, ops);
        let mut ram = self.machine.ram.lock().unwrap();
        let answer = answer.or_else(|request| ram.follow(*request, &mut nets, ops));
        self.answer = Some(answer.unwrap());
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}
}

#[test]
fn a_network_device_is_restored_on_the_taps_it_is_given() {
    if !kvm_expected("a_network_device_is_restored_on_the_taps_it_is_given") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (config, kvm) = (config(), kvm());
    let machine = Machine::assemble(&config, &kvm, backends(&directory, "first")).unwrap();
    let mut tap = TapInterface::new(2);
    let net = NetConfig {
        mac: [2, 0, 0, 0, 0, 5],
        mtu: None,
        queue_pairs: 2,
        rx_limit: None,
        tx_limit: None,
    };
    let request = Request::AttachNet {
        slot: 2,
        config: net,
    };
    let mut manager = EventManager::new().unwrap();
    let owner = manager.add_subscriber(Owner {
        machine: &machine,
        request: Some((request, tap.take_queues())),
        answer: None,
    });
    let owner = manager.remove_subscriber(owner).unwrap();
    assert_eq!(owner.answer, Some(Event::NetAttached { slot: 2 }));
    let address = cloister_vmm::layout::Slot::Net(2).address();
    machine
        .bus
        .memory_write(address + 0x70, &[1, 0, 0, 0])
        .unwrap();

    let saved = machine.save().unwrap();
    let json = serde_json::to_vec(&saved).unwrap();
    let saved: VmState = serde_json::from_slice(&json).unwrap();
    let restore = |name, nets| {
        let memory = memory::create(1 << 20).unwrap();
        let backends = Backends {
            nets,
            ..backends(&directory, name)
        };
        Machine::restore(&config, &kvm, backends, memory, saved.clone())
    };
    let mut tap = TapInterface::new(2);
    let second = restore("second", vec![(2, tap.take_queues())]).unwrap();
    let state = second.save().unwrap();
    assert_eq!(state.nets, saved.nets);
    assert_eq!(state.slots, saved.slots);
    let mut word = [0; 4];
    second.bus.memory_read(address + 8, &mut word);
    assert_eq!(word, [1, 0, 0, 0]);
    // An empty slot has no device, but is there.
    second.bus.memory_read(address + 0x1008, &mut word);
    assert_eq!(word, [0; 4]);
    second.bus.memory_read(address + 0x1000, &mut word);
    assert_eq!(&word, b"virt");

    let mut tap = TapInterface::new(2);
    let wrong = [Vec::new(), vec![(1, tap.take_queues())]];
    for (index, nets) in wrong.into_iter().enumerate() {
        let error = restore(["third", "fourth"][index], nets).err().unwrap();
        let text = "saved state: the network devices do not match the taps";
        assert_eq!(error.to_string(), text);
    }
}
