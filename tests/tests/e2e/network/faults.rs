//! Whatever is killed, the namespace ends as it was found.

use std::time::Duration;

use rustix::process::{Signal, kill_process};

use super::super::harness::{Running, eventually};
use super::*;

/// Kills a process of the container; that is its end.
fn kill(bundle: &Bundle, which: &str) {
    kill_process(process(bundle, which), Signal::KILL).unwrap();
    eventually(which, || bundle.status("pod") == "stopped");
}

/// Times, in milliseconds, after which a start has not come to the network yet, connects it, or is over.
const DELAYS: [u64; 8] = [0, 20, 50, 100, 150, 200, 300, 500];

/// Creates a container and lets its start go on for a time.
fn begin_start(wire: &Wire, delay: u64) -> (Bundle, Running) {
    let bundle = wire.bundle(&["sleep", "1000"]);
    bundle.command("create", &[], "pod").run().ok();
    let start = bundle.cloister(["start", "pod"]).spawn();
    std::thread::sleep(Duration::from_millis(delay));
    (bundle, start)
}

#[test]
fn the_monitor_the_vmm_or_the_file_server_is_killed() {
    for which in ["monitor", "vmm", "fs"] {
        let wire = Wire::new();
        let before = wire.state();
        let bundle = wire.bundle(&["sleep", "1000"]);
        start(&bundle);
        assert_ne!(wire.state(), before);
        kill(&bundle, which);
        bundle.cloister(["delete", "pod"]).run().ok();
        assert_eq!(wire.state(), before, "{which}");
    }
}

#[test]
fn a_namespace_that_a_killed_sandbox_has_left_is_used_again() {
    let wire = Wire::new();
    let before = wire.state();
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    kill(&bundle, "monitor");
    // Nobody deletes it.
    let other = wire.bundle(&["ping", "-c", "1", "-w", "20", HOST]);
    other.run().ok();
    bundle.cloister(["delete", "pod"]).run().ok();
    assert_eq!(wire.state(), before);
}

#[test]
fn a_redirection_that_was_only_begun_is_removed() {
    let wire = Wire::new();
    let before = wire.state();
    // As a sandbox leaves it that is killed between the queueing discipline and its filter.
    let leave = || wire.tc("qdisc add dev eth0 stab overhead 49413 ingress");
    leave();
    assert_ne!(wire.state(), before);
    let other = wire.bundle(&["ping", "-c", "1", "-w", "20", HOST]);
    other.run().ok();
    assert_eq!(wire.state(), before, "at the end of another one");

    let bundle = wire.bundle(&["sleep", "1000"]);
    bundle.command("create", &[], "pod").run().ok();
    kill(&bundle, "monitor");
    leave();
    bundle.cloister(["delete", "--force", "pod"]).run().ok();
    assert_eq!(wire.state(), before, "when it is deleted");
}

#[test]
fn a_queueing_discipline_of_the_callers_stays() {
    for kind in ["ingress", "clsact"] {
        let wire = Wire::new();
        wire.tc(&format!("qdisc add dev eth0 {kind}"));
        let before = wire.state();
        let other = wire.bundle(&["ping", "-c", "1", "-w", "20", HOST]);
        other.run().ok();
        assert_eq!(wire.state(), before, "{kind}: at an end in order");

        let bundle = wire.bundle(&["sleep", "1000"]);
        start(&bundle);
        kill(&bundle, "monitor");
        // Nobody has deleted it yet.
        other.run().ok();
        bundle.cloister(["delete", "pod"]).run().ok();
        assert_eq!(wire.state(), before, "{kind}: after a kill");

        let bundle = wire.bundle(&["sleep", "1000"]);
        start(&bundle);
        kill(&bundle, "monitor");
        bundle.cloister(["delete", "pod"]).run().ok();
        assert_eq!(wire.state(), before, "{kind}: when it is deleted");
        let filters = wire.tc("filter show dev eth0 ingress");
        assert_eq!(filters, "", "{kind}");
    }
}

#[test]
fn a_namespace_that_is_gone_at_the_end() {
    let wire = Wire::new();
    let bundle = wire.bundle(&["sleep", "1000"]);
    start(&bundle);
    // As CNI does it before the sandbox is deleted, or the machine was rebooted.
    Cmd::new("ip")
        .args(["netns", "delete", &wire.pod])
        .run()
        .ok();
    kill(&bundle, "monitor");
    bundle.cloister(["delete", "pod"]).run().ok();
    Cmd::new("ip").args(["netns", "add", &wire.pod]).run().ok();
}

#[test]
fn an_interface_that_goes_in_the_middle_of_the_start() {
    for delay in DELAYS {
        let wire = Wire::new();
        let (bundle, start) = begin_start(&wire, delay);
        wire.in_pod("link delete eth0");
        let started = start.wait();
        // Before, nothing was found; after, the change is followed.
        if started.code() != 0 {
            let gone =
                "interface eth0 of the network namespace has gone while it was being connected";
            assert!(started.err().contains(gone), "after {delay} ms: {started}");
        }
        bundle.cloister(["delete", "--force", "pod"]).run().ok();
        let links = wire.in_pod("-o link show");
        assert_eq!(links.lines().count(), 1, "after {delay} ms: {links}");
    }
}

#[test]
fn a_kill_in_the_middle_of_the_start() {
    for delay in DELAYS {
        let wire = Wire::new();
        let before = wire.state();
        let (bundle, start) = begin_start(&wire, delay);
        kill(&bundle, "monitor");
        start.wait();
        bundle.cloister(["delete", "--force", "pod"]).run().ok();
        assert_eq!(wire.state(), before, "after {delay} ms");
    }
}
