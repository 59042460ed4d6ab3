//! What comes while a VM runs.

use std::time::{Duration, Instant};

use cloister_vmm_api::{Event, ExitReason, Request};

use crate::boot::tiny_kernel;
use crate::harness::{self, PATIENCE, Plan, Vm, kvm_expected};

fn refused(vm: &Vm) -> String {
    match vm.event() {
        Some(Event::GrowthRefused { message }) => message,
        other => panic!("{other:?}; console:\n{}", vm.console()),
    }
}

#[test]
fn vcpus_come_when_they_are_asked_for() {
    if !kvm_expected("vcpus_come_when_they_are_asked_for") {
        return;
    }
    // The guest waits for the first of its devices before it starts the processors.
    let mut plan = Plan::new("cpus bind3 online1 online2 cpus ticks");
    plan.config.max_vcpus = 4;
    plan.config.max_memory_mib = 256;
    let mut vm = plan.start();
    vm.booted();
    // Its kernel has set its first processor up by then.
    vm.says("cpus 0");
    vm.send(&Request::AddVcpus { vcpus: 5 });
    assert_eq!(refused(&vm), "vcpus: 5 given, at most 4 possible");
    vm.send(&Request::AddVcpus { vcpus: 2 });
    assert_eq!(vm.event(), Some(Event::VcpusAdded { vcpus: 2 }));
    vm.pause();
    vm.send(&Request::AddVcpus { vcpus: 3 });
    assert_eq!(vm.event(), Some(Event::VcpusAdded { vcpus: 3 }));
    vm.resume();
    vm.send(&Request::AddMemory { memory_mib: 129 });
    assert!(matches!(vm.event(), Some(Event::Memory { .. })));
    let asked = Instant::now();
    vm.says("cpus 0-2");
    // A kernel whose processor does not start waits for it for ten seconds.
    assert!(asked.elapsed() < Duration::from_secs(9), "{}", vm.console());
    assert!(!vm.console().contains("failed"), "{}", vm.console());
    // There already: nothing is to be done.
    vm.send(&Request::AddVcpus { vcpus: 1 });
    assert_eq!(vm.event(), Some(Event::VcpusAdded { vcpus: 3 }));
    // All of them stand still, and go on.
    for _ in 0..3 {
        vm.pause();
        let before = vm.console();
        vm.resume();
        vm.says(&format!("tick {}", before.matches("tick").count() + 3));
    }
    vm.send(&Request::Stop);
    assert_eq!(vm.exited().0, ExitReason::Stopped);
}

/// Waits until the guest has taken all that it may.
fn plugged(vm: &Vm, mib: u32) {
    let start = Instant::now();
    loop {
        vm.send(&Request::Memory);
        match vm.event() {
            Some(Event::Memory {
                granted_mib,
                plugged_mib,
            }) => {
                assert_eq!(granted_mib, mib, "{}", vm.console());
                if plugged_mib == mib {
                    return;
                }
            }
            other => panic!("{other:?}; console:\n{}", vm.console()),
        }
        assert!(start.elapsed() < PATIENCE, "console:\n{}", vm.console());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn memory_comes_when_it_is_asked_for() {
    if !kvm_expected("memory_comes_when_it_is_asked_for") {
        return;
    }
    let mut plan = Plan::new("memory bind3 mib240 touch180 mib370 touch160 rng ticks");
    plan.config.max_memory_mib = 512;
    let mut vm = plan.start();
    vm.booted();
    vm.says("memory 1");
    assert!(!vm.console().contains("bound"), "{}", vm.console());
    vm.send(&Request::AddMemory { memory_mib: 513 });
    assert_eq!(refused(&vm), "memory_mib: 513 given, at most 512 possible");
    vm.send(&Request::AddMemory { memory_mib: 256 });
    let granted = Event::Memory {
        granted_mib: 256,
        plugged_mib: 128,
    };
    assert_eq!(vm.event(), Some(granted));
    plugged(&vm, 256);
    vm.says("there are 240 MiB");
    vm.says("touch passed");
    // More of it, in parts of sections, while the guest stands still; and less, which changes nothing.
    vm.pause();
    for memory_mib in [300, 398, 200] {
        vm.send(&Request::AddMemory { memory_mib });
        let granted = Event::Memory {
            granted_mib: memory_mib.max(if memory_mib == 200 { 398 } else { 300 }),
            plugged_mib: 256,
        };
        assert_eq!(vm.event(), Some(granted));
    }
    vm.resume();
    plugged(&vm, 398);
    vm.says("there are 370 MiB");
    // The devices reach what has come.
    vm.says("rng 256 bytes");
    assert_eq!(vm.console().matches("touch passed").count(), 2);
    vm.send(&Request::Stop);
    assert_eq!(vm.exited().0, ExitReason::Stopped);
}

#[test]
fn a_vm_gets_more_whatever_its_guest_does() {
    if !kvm_expected("a_vm_gets_more_whatever_its_guest_does") {
        return;
    }
    // hlt; jmp to it.
    let kernel = harness::file(&tiny_kernel(&[0xf4, 0xeb, 0xfd]));
    let mut plan = Plan::with_kernel(kernel, "");
    (plan.config.max_vcpus, plan.config.max_memory_mib) = (2, 1024);
    let mut vm = plan.start();
    vm.booted();
    vm.send(&Request::AddVcpus { vcpus: 2 });
    assert_eq!(vm.event(), Some(Event::VcpusAdded { vcpus: 2 }));
    for memory_mib in [129, 257, 1024] {
        vm.send(&Request::AddMemory { memory_mib });
        let granted = Event::Memory {
            granted_mib: if memory_mib == 1024 {
                1024
            } else {
                memory_mib + 1
            },
            plugged_mib: 128,
        };
        assert_eq!(vm.event(), Some(granted));
    }
    vm.send(&Request::Stop);
    assert_eq!(vm.exited().0, ExitReason::Stopped);
}
