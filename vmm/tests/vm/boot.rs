//! From the boot request to the end of the guest.

use cloister_vmm_api::ExitReason;

use crate::harness::{Plan, kvm_expected};

#[test]
fn the_guest_init_builds() {
    assert!(crate::harness::initramfs().len() > 1000);
}

#[test]
fn hello_and_an_orderly_shutdown() {
    if !kvm_expected("hello_and_an_orderly_shutdown") {
        return;
    }
    let mut vm = Plan::new("init hello clock rng shutdown").start();
    let booted = vm.booted();
    let (reason, timeline) = vm.exited();
    let console = vm.console();
    assert_eq!(reason, ExitReason::Shutdown, "{console}");
    assert!(console.contains("hello from init"), "{console}");
    let order = [
        timeline.main,
        timeline.configured,
        timeline.created,
        timeline.loaded,
        timeline.entered,
        timeline.init,
    ];
    assert!(order.is_sorted() && order[0] > 0, "{timeline:?}");
    assert_eq!(booted.entered, timeline.entered);
    eprintln!("{timeline:?}\n{console}");
}

#[test]
fn a_guest_panic_is_told_from_a_shutdown() {
    if !kvm_expected("a_guest_panic_is_told_from_a_shutdown") {
        return;
    }
    let mut vm = Plan::new("hello interrupts clock rng exit").start();
    vm.booted();
    let (reason, timeline) = vm.exited();
    let console = vm.console();
    assert_eq!(reason, ExitReason::GuestPanic, "{console}");
    assert!(console.contains("Attempted to kill init"), "{console}");
    assert_eq!(timeline.init, 0);
    eprintln!("{console}");
}
