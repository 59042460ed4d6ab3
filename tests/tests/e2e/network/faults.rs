//! Whatever is killed, the namespace ends as it was found.

use rustix::process::{Pid, Signal, kill_process};

use super::super::harness::eventually;
use super::*;

/// The pid of a process of the container, as its state file has it.
fn process(bundle: &Bundle, which: &str) -> Pid {
    let state = std::fs::read_to_string(bundle.state_root().join("pod/state.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    let pid = state[which]["pid"].as_i64().unwrap();
    Pid::from_raw(pid.try_into().unwrap()).unwrap()
}

#[test]
fn the_monitor_the_vmm_or_the_file_server_is_killed() {
    for which in ["monitor", "vmm", "fs"] {
        let wire = Wire::new();
        let before = wire.state();
        let bundle = wire.bundle(&["sleep", "1000"]);
        start(&bundle);
        assert_ne!(wire.state(), before);
        kill_process(process(&bundle, which), Signal::KILL).unwrap();
        eventually(which, || bundle.status("pod") == "stopped");
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
    kill_process(process(&bundle, "monitor"), Signal::KILL).unwrap();
    eventually("stopped", || bundle.status("pod") == "stopped");
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
    kill_process(process(&bundle, "monitor"), Signal::KILL).unwrap();
    eventually("stopped", || bundle.status("pod") == "stopped");
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
        kill_process(process(&bundle, "monitor"), Signal::KILL).unwrap();
        eventually("stopped", || bundle.status("pod") == "stopped");
        // Nobody has deleted it yet.
        other.run().ok();
        bundle.cloister(["delete", "pod"]).run().ok();
        assert_eq!(wire.state(), before, "{kind}: after a kill");

        let bundle = wire.bundle(&["sleep", "1000"]);
        start(&bundle);
        kill_process(process(&bundle, "monitor"), Signal::KILL).unwrap();
        eventually("stopped", || bundle.status("pod") == "stopped");
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
    kill_process(process(&bundle, "monitor"), Signal::KILL).unwrap();
    eventually("stopped", || bundle.status("pod") == "stopped");
    bundle.cloister(["delete", "pod"]).run().ok();
    Cmd::new("ip").args(["netns", "add", &wire.pod]).run().ok();
}

#[test]
fn an_interface_that_goes_in_the_middle_of_the_start() {
    for delay in [0, 20, 50, 100, 150, 200, 300, 500] {
        let wire = Wire::new();
        let bundle = wire.bundle(&["sleep", "1000"]);
        bundle.command("create", &[], "pod").run().ok();
        let start = bundle.cloister(["start", "pod"]).spawn();
        std::thread::sleep(std::time::Duration::from_millis(delay));
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
    for delay in [0, 20, 50, 100, 150, 200, 300, 500] {
        let wire = Wire::new();
        let before = wire.state();
        let bundle = wire.bundle(&["sleep", "1000"]);
        bundle.command("create", &[], "pod").run().ok();
        let start = bundle.cloister(["start", "pod"]).spawn();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        kill_process(process(&bundle, "monitor"), Signal::KILL).unwrap();
        start.wait();
        eventually("stopped", || bundle.status("pod") == "stopped");
        bundle.cloister(["delete", "--force", "pod"]).run().ok();
        assert_eq!(wire.state(), before, "after {delay} ms");
    }
}
