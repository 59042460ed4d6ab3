//! What a VMM costs by itself: a guest of six instructions, from the start of the process to its
//! end. The figures mean something under instruction counting only (`tests/bed run --icount`).

use std::time::{Duration, Instant};

use cloister_vmm_api::{ExitReason, Timeline};

use crate::boot::tiny_kernel;
use crate::harness::{self, Plan, kvm_expected};

/// A bound that only a broken build misses, even on a busy machine without instruction counting.
const LIMIT: Duration = Duration::from_secs(20);

/// What happened when, in milliseconds from `start`.
pub(crate) fn phases(start: u64, timeline: &Timeline) -> String {
    let phases = [
        ("main", timeline.main),
        ("configured", timeline.configured),
        ("created", timeline.created),
        ("loaded", timeline.loaded),
        ("entered", timeline.entered),
        ("init", timeline.init),
    ];
    (phases.iter())
        .filter(|(_, at)| *at > 0)
        .map(|(name, at)| format!("{name} {:.2} ", (at - start) as f64 / 1e6))
        .collect()
}

#[test]
fn an_empty_guest_costs_little() {
    if !kvm_expected("an_empty_guest_costs_little") {
        return;
    }
    // mov dx, 0x5e0; mov al, 2; out dx, al: an orderly shutdown.
    let code = [0x66, 0xba, 0xe0, 0x05, 0xb0, 0x02, 0xee, 0xf4];
    for _ in 0..4 {
        let plan = Plan::with_kernel(harness::file(&tiny_kernel(&code)), "");
        let start = Instant::now();
        let nanoseconds = cloister_vmm::clock::now();
        let mut vm = plan.start();
        vm.booted();
        let (reason, timeline) = vm.exit_event();
        let told = start.elapsed();
        vm.gone();
        let gone = start.elapsed();
        assert_eq!(reason, ExitReason::Shutdown);
        assert!(gone < LIMIT, "{gone:?}");
        eprintln!(
            "empty guest: {}told {told:.2?} gone {gone:.2?}",
            phases(nanoseconds, &timeline)
        );
    }
}

#[test]
fn a_kernel_costs_what_it_does() {
    if !kvm_expected("a_kernel_costs_what_it_does") {
        return;
    }
    let more = std::env::var("CLOISTER_TEST_ACTIONS").unwrap_or_default();
    let words = std::env::var("CLOISTER_TEST_CMDLINE").unwrap_or_default();
    let max_vcpus = std::env::var("CLOISTER_TEST_MAX_VCPUS").map(|n| n.parse().unwrap());
    let max_memory = std::env::var("CLOISTER_TEST_MAX_MEMORY").map(|n| n.parse().unwrap());
    for _ in 0..3 {
        let mut plan = Plan::new(&format!("init {more} shutdown")).cmdline(&words);
        plan.config.max_vcpus = max_vcpus.clone().unwrap_or(1);
        plan.config.max_memory_mib = max_memory.clone().unwrap_or(128);
        let start = Instant::now();
        let nanoseconds = cloister_vmm::clock::now();
        let mut vm = plan.start();
        vm.booted();
        let (reason, timeline) = vm.exit_event();
        let told = start.elapsed();
        vm.gone();
        let gone = start.elapsed();
        assert_eq!(reason, ExitReason::Shutdown, "{}", vm.console());
        assert!(gone < LIMIT, "{gone:?}");
        eprintln!(
            "kernel: {}told {told:.2?} gone {gone:.2?}\n{}",
            phases(nanoseconds, &timeline),
            vm.console()
        );
    }
}
