//! What comes while a VM runs.

use cloister_vmm_api::{Event, ExitReason, Request};

use crate::harness::{Plan, Vm, kvm_expected};

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
    let mut plan = Plan::new("cpus online1 online2 cpus ticks");
    plan.config.max_vcpus = 4;
    let mut vm = plan.start();
    vm.booted();
    // Its kernel has set its first processor up by then.
    vm.says("cpus 0");
    vm.send(&Request::AddVcpus { vcpus: 5 });
    assert_eq!(refused(&vm), "vcpus: 5 given, at most 4 possible");
    vm.send(&Request::AddVcpus { vcpus: 2 });
    assert_eq!(vm.event(), Some(Event::VcpusAdded { vcpus: 2 }));
    vm.send(&Request::Pause);
    assert_eq!(vm.event(), Some(Event::Paused));
    vm.send(&Request::AddVcpus { vcpus: 3 });
    assert_eq!(vm.event(), Some(Event::VcpusAdded { vcpus: 3 }));
    vm.send(&Request::Resume);
    assert_eq!(vm.event(), Some(Event::Resumed));
    // A kernel whose processor does not start tries again.
    vm.says("cpus 0-2");
    // There already: nothing is to be done.
    vm.send(&Request::AddVcpus { vcpus: 1 });
    assert_eq!(vm.event(), Some(Event::VcpusAdded { vcpus: 3 }));
    // All of them stand still, and go on.
    for _ in 0..3 {
        vm.send(&Request::Pause);
        assert_eq!(vm.event(), Some(Event::Paused));
        let before = vm.console();
        vm.send(&Request::Resume);
        assert_eq!(vm.event(), Some(Event::Resumed));
        vm.says(&format!("tick {}", before.matches("tick").count() + 3));
    }
    vm.send(&Request::Stop);
    assert_eq!(vm.exited().0, ExitReason::Stopped);
}
