//! What the owner does to a running VM.

use std::time::Duration;

use cloister_vmm_api::{ExitReason, Request};

use crate::harness::{Plan, kvm_expected};

#[test]
fn a_vm_ends_with_its_owner() {
    if !kvm_expected("a_vm_ends_with_its_owner") {
        return;
    }
    let mut vm = Plan::new("hello wait").start();
    vm.booted();
    vm.says("hello from init");
    vm.owner = None;
    assert!(vm.gone().success());
}

#[test]
fn an_owner_that_goes_before_the_boot_request_leaves_nothing() {
    if !kvm_expected("an_owner_that_goes_before_the_boot_request_leaves_nothing") {
        return;
    }
    let mut vm = Plan::new("").spawn().0;
    vm.owner = None;
    assert!(vm.gone().success());
}

#[test]
fn stop_ends_a_vm_at_once() {
    if !kvm_expected("stop_ends_a_vm_at_once") {
        return;
    }
    let mut plan = Plan::new("hello wait");
    (plan.config.vcpus, plan.config.max_vcpus) = (2, 2);
    let mut vm = plan.start();
    vm.booted();
    vm.says("hello from init");
    vm.send(&Request::Stop);
    assert_eq!(vm.exited().0, ExitReason::Stopped);
}

#[test]
fn a_paused_vm_stands_still_and_goes_on() {
    if !kvm_expected("a_paused_vm_stands_still_and_goes_on") {
        return;
    }
    let mut plan = Plan::new("ticks");
    (plan.config.vcpus, plan.config.max_vcpus) = (2, 2);
    let mut vm = plan.start();
    vm.booted();
    vm.says("tick 3");
    for _ in 0..3 {
        vm.pause();
        let before = vm.console();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(vm.console(), before);
        vm.resume();
        let last = before.matches("tick").count();
        vm.says(&format!("tick {}", last + 3));
    }
    vm.pause();
    vm.send(&Request::Stop);
    assert_eq!(vm.exited().0, ExitReason::Stopped);
}

#[test]
fn a_request_out_of_order_is_an_error_by_name() {
    if !kvm_expected("a_request_out_of_order_is_an_error_by_name") {
        return;
    }
    let mut vm = Plan::new("wait").start();
    vm.booted();
    vm.send(&Request::Resume);
    let (reason, _) = vm.exited();
    let message = "request resume is out of order".to_owned();
    assert_eq!(reason, ExitReason::HostError { message });
}
