//! Network devices that come and go while a VM runs.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cloister_vmm_api::{Event, ExitReason, NetConfig, NetCounters, RateLimit, Request};

use crate::harness::{PATIENCE, Plan, Vm, kvm_expected};
use crate::tap::TapInterface;

fn config(queue_pairs: u8) -> NetConfig {
    NetConfig {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: Some(1400),
        queue_pairs,
        rx_limit: None,
        tx_limit: Some(RateLimit {
            bytes_per_second: 1 << 30,
            burst: 1 << 20,
        }),
    }
}

/// Fills `slot` with a new interface, whose descriptors this process gives up.
fn attach(vm: &Vm, slot: u8, queue_pairs: u8) -> TapInterface {
    let mut tap = TapInterface::new(queue_pairs);
    let request = Request::AttachNet {
        slot,
        config: config(queue_pairs),
    };
    vm.send_with(&request, &tap.queues());
    assert_eq!(vm.event(), Some(Event::NetAttached { slot }));
    tap.close();
    assert!(tap.exists());
    tap
}

pub(crate) fn detach(vm: &Vm, slot: u8, tap: &TapInterface) {
    vm.send(&Request::DetachNet { slot });
    assert_eq!(vm.event(), Some(Event::NetDetached { slot }));
    let start = Instant::now();
    // The kernel takes an interface apart after its last descriptor is closed.
    while tap.exists() {
        assert!(start.elapsed() < PATIENCE, "the taps stay open");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Lets the guest's `frames` send a frame and receive one.
pub(crate) fn exchange(vm: &Vm, tap: &TapInterface, text: &str) {
    receive(vm, tap);
    tap.send(text);
    vm.says(&format!("received {text}"));
}

/// Waits for the frame of the guest's `frames`.
pub(crate) fn receive(vm: &Vm, tap: &TapInterface) {
    match tap.receive() {
        Some(text) => assert!(text.starts_with("frame from the guest"), "{text}"),
        None => panic!("no frame; {:?}; console:\n{}", counters(vm), vm.console()),
    }
}

pub(crate) fn counters(vm: &Vm) -> Vec<NetCounters> {
    vm.send(&Request::NetCounters);
    match vm.event() {
        Some(Event::NetCounters { nets }) => nets,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn refusal(vm: &Vm, expected_slot: u8) -> String {
    match vm.event() {
        Some(Event::NetRefused { slot, message }) if slot == expected_slot => message,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn set_link(vm: &Vm, slot: u8, up: bool) {
    vm.send(&Request::SetLink { slot, up });
    assert_eq!(vm.event(), Some(Event::LinkSet { slot }));
}

pub(crate) fn stop(mut vm: Vm) {
    vm.send(&Request::Stop);
    assert_eq!(vm.exited().0, ExitReason::Stopped);
}

#[test]
fn slots_are_filled_emptied_and_filled_again() {
    if !kvm_expected("slots_are_filled_emptied_and_filled_again") {
        return;
    }
    let actions = "hello bind5 frames unbind5 bind6 frames unbind6 bind5 frames link wait";
    let vm = Plan::new(actions).start();
    vm.booted();
    vm.says("hello from init");
    assert_eq!(counters(&vm), []);

    let first = attach(&vm, 0, 1);
    exchange(&vm, &first, "first");
    let [net] = counters(&vm)[..] else {
        panic!("one device");
    };
    assert_eq!((net.slot, net.tx_dropped, net.rx_dropped), (0, 0, 0));
    assert!(net.rx_packets >= 1 && net.tx_packets >= 1, "{net:?}");
    assert!(net.rx_bytes >= 60 && net.tx_bytes >= 60, "{net:?}");
    vm.says("unbound virtio-mmio.5");
    detach(&vm, 0, &first);

    // The same slot and another one, at once; and while the VM stands still.
    vm.pause();
    let again = attach(&vm, 0, 1);
    vm.resume();
    let other = attach(&vm, 1, 1);
    exchange(&vm, &other, "other");
    assert_eq!(counters(&vm).len(), 2);
    exchange(&vm, &again, "again");

    set_link(&vm, 0, false);
    vm.says("carrier 0");
    set_link(&vm, 0, true);
    vm.says("carrier 1");
    // A device whose driver is still there goes as well.
    detach(&vm, 0, &again);
    detach(&vm, 1, &other);
    stop(vm);
}

#[test]
fn a_device_of_several_queues_uses_one_a_processor() {
    if !kvm_expected("a_device_of_several_queues_uses_one_a_processor") {
        return;
    }
    let mut plan = Plan::new("hello bind8 frames unbind8 wait");
    (plan.config.vcpus, plan.config.max_vcpus) = (2, 2);
    let vm = plan.start();
    vm.booted();
    let tap = attach(&vm, 3, 4);
    assert_eq!(tap.in_use(), 1);
    receive(&vm, &tap);
    assert_eq!(tap.in_use(), 2);
    tap.send("several");
    vm.says("received several");
    vm.says("unbound");
    assert_eq!(tap.in_use(), 1);
    stop(vm);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    if !kvm_expected("what_cannot_be_is_refused_and_changes_nothing") {
        return;
    }
    let vm = Plan::new("hello bind5 frames wait").start();
    vm.booted();
    let attach_with = |slot, config, fds: &[_]| {
        vm.send_with(&Request::AttachNet { slot, config }, fds);
        refusal(&vm, slot)
    };
    let mut tap = TapInterface::new(1);
    let fds = tap.queues();
    let null = File::open("/dev/null").unwrap();

    assert_eq!(
        attach_with(4, config(1), &fds),
        "slot: 4 given, 0 to 3 possible"
    );
    assert_eq!(
        attach_with(0, config(1), &[]),
        "taps: 0 descriptors, 1 queue pairs"
    );
    assert_eq!(
        attach_with(0, config(1), &[fds[0], null.as_fd(), null.as_fd()]),
        "taps: 3 descriptors, 1 queue pairs"
    );
    let bad = NetConfig {
        mtu: Some(10),
        ..config(1)
    };
    assert_eq!(
        attach_with(0, bad, &fds),
        "config: mtu: 10 given, at least 68 possible"
    );
    let message = attach_with(0, config(1), &[null.as_fd()]);
    assert!(
        message.contains("net: tap 0: not a descriptor of a tap"),
        "{message}"
    );
    let message = attach_with(0, config(2), &[fds[0], fds[0]]);
    assert!(message.contains("without IFF_MULTI_QUEUE"), "{message}");
    for request in [
        Request::DetachNet { slot: 0 },
        Request::SetLink { slot: 0, up: true },
    ] {
        vm.send(&request);
        assert_eq!(refusal(&vm, 0), "slot: 0 is empty");
    }
    vm.send(&Request::DetachNet { slot: 200 });
    assert_eq!(refusal(&vm, 200), "slot: 200 given, 0 to 3 possible");
    assert_eq!(counters(&vm), []);

    let request = Request::AttachNet {
        slot: 0,
        config: config(1),
    };
    vm.send_with(&request, &fds);
    assert_eq!(vm.event(), Some(Event::NetAttached { slot: 0 }));
    assert_eq!(attach_with(0, config(1), &fds), "slot: 0 is occupied");
    tap.close();
    exchange(&vm, &tap, "after all");
    assert!(tap.is_silent(Duration::from_millis(1)));
    // None of the descriptors that were refused is left open.
    detach(&vm, 0, &tap);
    stop(vm);
}
