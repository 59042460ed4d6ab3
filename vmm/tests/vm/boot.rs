//! From the boot request to the end of the guest.

use std::fs::File;

use cloister_vmm_api::{Event, ExitReason, FdRole};

use crate::harness::{self, Plan, Vm, kvm_expected};

/// The message of the host error that `vm` ends with.
fn host_error(mut vm: Vm) -> String {
    match vm.exited() {
        (ExitReason::HostError { message }, _) => message,
        (other, _) => panic!("{other}; console:\n{}", vm.console()),
    }
}

#[test]
fn the_guest_init_builds() {
    assert!(harness::initramfs().len() > 1000);
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
    assert!(console.contains("clocksource kvm-clock") || console.contains("clocksource tsc"));
    assert!(console.contains("rng 256 bytes"), "{console}");
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
}

#[test]
fn every_cpu_is_seen() {
    if !kvm_expected("every_cpu_is_seen") {
        return;
    }
    for (vcpus, online) in [(1, "cpus 0\n"), (2, "cpus 0-1\n"), (4, "cpus 0-3\n")] {
        let mut plan = Plan::new("cpus shutdown");
        (plan.config.vcpus, plan.config.max_vcpus) = (vcpus, vcpus);
        let mut vm = plan.start();
        vm.booted();
        let (reason, _) = vm.exited();
        let console = vm.console().replace('\r', "");
        assert_eq!(reason, ExitReason::Shutdown, "{console}");
        assert!(console.contains(online), "{vcpus}:\n{console}");
    }
}

#[test]
fn memory_on_both_sides_of_the_hole_is_usable() {
    if !kvm_expected("memory_on_both_sides_of_the_hole_is_usable") {
        return;
    }
    let mut plan = Plan::new("memory touch shutdown");
    (plan.config.memory_mib, plan.config.max_memory_mib) = (4608, 4608);
    let mut vm = plan.start();
    vm.booted();
    let (reason, _) = vm.exited();
    let console = vm.console();
    assert_eq!(reason, ExitReason::Shutdown, "{console}");
    assert!(console.contains("touch passed"), "{console}");
    let memory = (console.lines())
        .find_map(|line| line.strip_prefix("memory ")?.strip_suffix(" MiB"))
        .and_then(|number| number.parse::<u32>().ok());
    // The kernel keeps a few percent for itself.
    assert!(
        memory.is_some_and(|m| (4300..=4608).contains(&m)),
        "{console}"
    );
}

#[test]
fn a_guest_panic_is_told_from_a_shutdown() {
    if !kvm_expected("a_guest_panic_is_told_from_a_shutdown") {
        return;
    }
    let mut vm = Plan::new("hello exit").start();
    vm.booted();
    let (reason, timeline) = vm.exited();
    let console = vm.console();
    assert_eq!(reason, ExitReason::GuestPanic, "{console}");
    assert!(console.contains("Attempted to kill init"), "{console}");
    assert_eq!(timeline.init, 0);
}

#[test]
fn a_triple_fault_is_told_from_a_panic() {
    if !kvm_expected("a_triple_fault_is_told_from_a_panic") {
        return;
    }
    // The kernel then resets by loading an empty IDT.
    let mut vm = Plan::new("exit").cmdline("reboot=t").start();
    vm.booted();
    assert_eq!(vm.exited().0, ExitReason::TripleFault);
}

#[test]
fn a_missing_descriptor_is_named() {
    if !kvm_expected("a_missing_descriptor_is_named") {
        return;
    }
    let mut plan = Plan::new("");
    plan.fds.retain(|(role, _)| *role != FdRole::Initramfs);
    assert_eq!(
        host_error(plan.start()),
        "boot request: fds: initramfs is missing"
    );
}

#[test]
fn a_configuration_that_does_not_hold_is_refused_by_field() {
    if !kvm_expected("a_configuration_that_does_not_hold_is_refused_by_field") {
        return;
    }
    let mut plan = Plan::new("");
    plan.config.vcpus = 33;
    assert_eq!(
        host_error(plan.start()),
        "boot request: vcpus: 33 given, 1 to 32 possible"
    );
}

#[test]
fn what_is_no_kernel_is_refused() {
    if !kvm_expected("what_is_no_kernel_is_refused") {
        return;
    }
    let plan = Plan::with_kernel(harness::file(b"#!/bin/sh\n"), "");
    assert_eq!(
        host_error(plan.start()),
        "kernel: not an uncompressed x86-64 ELF file (vmlinux)"
    );
    let plan = Plan::with_kernel(harness::file(b""), "");
    assert_eq!(
        host_error(plan.start()),
        "kernel: not an uncompressed x86-64 ELF file (vmlinux)"
    );
}

#[test]
fn a_truncated_kernel_is_refused() {
    if !kvm_expected("a_truncated_kernel_is_refused") {
        return;
    }
    let whole = std::fs::read(harness::kernel()).unwrap();
    let half = harness::file(&whole[..whole.len() / 2]);
    let message = host_error(Plan::with_kernel(half, "").start());
    assert!(
        message.ends_with("past the end of the file (truncated?)"),
        "{message}"
    );
}

#[test]
fn what_is_no_initramfs_is_refused() {
    if !kvm_expected("what_is_no_initramfs_is_refused") {
        return;
    }
    let plan = Plan::new("").replace(FdRole::Initramfs, harness::file(b"\x1f\x8b"));
    assert_eq!(
        host_error(plan.start()),
        "initramfs: not a newc cpio archive"
    );
}

#[test]
fn what_is_no_kvm_is_refused() {
    if !kvm_expected("what_is_no_kvm_is_refused") {
        return;
    }
    let plan = Plan::new("").replace(FdRole::Kvm, File::open("/dev/null").unwrap());
    let message = host_error(plan.start());
    assert!(
        message.starts_with("/dev/kvm is no KVM device"),
        "{message}"
    );
}

/// An ELF kernel whose entry point is `code`.
pub(crate) fn tiny_kernel(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x10_0000;
    let mut elf = Vec::new();
    elf.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend_from_slice(&2_u16.to_le_bytes());
    elf.extend_from_slice(&62_u16.to_le_bytes());
    elf.extend_from_slice(&1_u32.to_le_bytes());
    for word in [ADDRESS, 64, 0] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(&0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    elf.extend_from_slice(&1_u32.to_le_bytes());
    elf.extend_from_slice(&5_u32.to_le_bytes());
    let size = code.len() as u64;
    for word in [120, ADDRESS, ADDRESS, size, size, 1] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(code);
    elf
}

#[test]
fn events_come_in_order() {
    if !kvm_expected("events_come_in_order") {
        return;
    }
    // out dx, al with the orderly shutdown on the control port.
    let code = [0x66, 0xba, 0xe0, 0x05, 0xb0, 0x02, 0xee, 0xf4];
    let vm = Plan::with_kernel(harness::file(&tiny_kernel(&code)), "").start();
    assert!(matches!(vm.event(), Some(Event::Booted { .. })));
    let Some(Event::Exited { reason, .. }) = vm.event() else {
        panic!("no exit event");
    };
    assert_eq!(reason, ExitReason::Shutdown);
    assert_eq!(vm.event(), None);
}
