//! Network devices whose packets the host's kernel moves.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::Duration;

use cloister_vmm_api::{Event, NetConfig, NetCounters, RateLimit, Request};

use crate::harness::{Plan, Vm, kvm_expected};
use crate::net::{counters, detach, exchange, receive, refusal, set_link, stop};
use crate::tap::TapInterface;

fn config(queue_pairs: u8) -> NetConfig {
    NetConfig {
        mac: [2, 0, 0, 0, 0, 1],
        mtu: None,
        queue_pairs,
        rx_limit: None,
        tx_limit: None,
    }
}

/// Descriptors of vhost-net; `None` on a machine without it, which the test bed is not.
fn vhosts(count: u8) -> Option<Vec<File>> {
    let open = |_| {
        let mut options = File::options();
        options.read(true).write(true).open("/dev/vhost-net")
    };
    match (0..count).map(open).collect() {
        Ok(vhosts) => Some(vhosts),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
            assert_ne!(host.trim(), "bed");
            eprintln!("not run: this machine has no /dev/vhost-net");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Fills `slot` with a new interface, and descriptors of vhost-net behind its own.
fn attach(vm: &Vm, slot: u8, queue_pairs: u8) -> Option<TapInterface> {
    let vhosts = vhosts(queue_pairs)?;
    let mut tap = TapInterface::new(queue_pairs);
    let request = Request::AttachNet {
        slot,
        config: config(queue_pairs),
    };
    let mut fds = tap.queues();
    fds.extend(vhosts.iter().map(AsFd::as_fd));
    vm.send_with(&request, &fds);
    assert_eq!(vm.event(), Some(Event::NetAttached { slot }));
    tap.close();
    Some(tap)
}

/// What has passed through the VMM.
fn moved(vm: &Vm) -> u64 {
    let [
        NetCounters {
            rx_packets,
            tx_packets,
            ..
        },
    ] = counters(vm)[..]
    else {
        panic!("one device");
    };
    rx_packets + tx_packets
}

#[test]
fn the_kernel_moves_the_packets() {
    if !kvm_expected("the_kernel_moves_the_packets") {
        return;
    }
    let actions = "hello bind5 frames frames link frames unbind5 bind5 frames wait";
    let mut plan = Plan::new(actions);
    (plan.config.vcpus, plan.config.max_vcpus) = (2, 2);
    let vm = plan.start();
    vm.booted();
    vm.says("hello from init");
    let Some(tap) = attach(&vm, 0, 2) else { return };
    exchange(&vm, &tap, "first");
    assert_eq!(tap.in_use(), 2);
    assert_eq!(moved(&vm), 0);

    // While the VM stands still nothing passes; then it goes on where it was.
    receive(&vm, &tap);
    vm.pause();
    while !tap.is_silent(Duration::ZERO) {
        receive(&vm, &tap);
    }
    tap.send("held back");
    assert!(tap.is_silent(Duration::from_millis(200)));
    assert!(!vm.console().contains("held back"));
    vm.resume();
    vm.says("received held back");
    assert_eq!(moved(&vm), 0);

    // What comes while the link is down is dropped, which the kernel would not do; the link may go while the VM stands still.
    vm.pause();
    set_link(&vm, 0, false);
    vm.resume();
    vm.says("carrier 0");
    let before = moved(&vm);
    tap.send("nobody hears this");
    set_link(&vm, 0, true);
    vm.says("carrier 1");
    exchange(&vm, &tap, "up again");
    assert!(!vm.console().contains("nobody hears this"));
    let after = moved(&vm);
    assert!(after <= before + 1, "{before} packets, then {after}");

    // A driver that goes and comes, and a device that goes under its driver.
    exchange(&vm, &tap, "bound again");
    assert_eq!(moved(&vm), after);
    detach(&vm, 0, &tap);
    stop(vm);
}

#[test]
fn the_kernel_learns_of_memory_that_has_come() {
    if !kvm_expected("the_kernel_learns_of_memory_that_has_come") {
        return;
    }
    // What was there before is used up first: Linux takes what has come only then.
    let actions = "hello bind5 frames bind3 mib240 touch110 frames wait";
    let mut plan = Plan::new(actions);
    plan.config.max_memory_mib = 512;
    let vm = plan.start();
    vm.booted();
    let Some(tap) = attach(&vm, 0, 1) else { return };
    exchange(&vm, &tap, "before");
    vm.send(&Request::AddMemory { memory_mib: 256 });
    assert!(matches!(
        vm.event(),
        Some(Event::Memory {
            granted_mib: 256,
            ..
        })
    ));
    vm.says("touch passed");
    // Each takes a buffer, in whose place the driver puts another one: soon they are in what has come.
    tap.flood(2000);
    exchange(&vm, &tap, "after");
    assert_eq!(moved(&vm), 0);
    stop(vm);
}

#[test]
fn what_is_no_vhost_is_done_without() {
    if !kvm_expected("what_is_no_vhost_is_done_without") {
        return;
    }
    let vm = Plan::new("hello bind5 frames wait").start();
    vm.booted();
    let mut tap = TapInterface::new(1);
    let null = File::open("/dev/null").unwrap();
    let fds = [tap.queues()[0], null.as_fd()];
    let vhosts = vhosts(1);
    let attach = |config, fds: &[_]| vm.send_with(&Request::AttachNet { slot: 0, config }, fds);
    if let Some(vhosts) = &vhosts {
        let limit = RateLimit {
            bytes_per_second: 1 << 30,
            burst: 1 << 20,
        };
        let limited = NetConfig {
            rx_limit: Some(limit),
            ..config(1)
        };
        attach(limited, &[tap.queues()[0], vhosts[0].as_fd()]);
        assert_eq!(
            refusal(&vm, 0),
            "cannot make the device: net: a rate limit and vhost-net exclude each other"
        );
    }
    attach(config(1), &fds);
    assert_eq!(vm.event(), Some(Event::NetAttached { slot: 0 }));
    // What keeps vhost-net from looking at packets itself.
    assert_eq!(tap.send_buffer(), i32::MAX - 1);
    tap.close();
    exchange(&vm, &tap, "all the same");
    assert!(moved(&vm) >= 2);
    detach(&vm, 0, &tap);
    stop(vm);
}
