//! create, start, state, kill, delete, list: what is allowed when, and what is told.

use std::fs;

use serde_json::Value;

use super::harness::{Bundle, Residue, eventually};

#[test]
fn created_running_stopped() {
    let bundle = Bundle::alone(&["sleep", "600"]);
    let before = Residue::now();
    let pid_file = bundle.scratch("pid");
    let pid_option = pid_file.to_string_lossy().into_owned();
    bundle
        .command("create", &["--pid-file", &pid_option], "life")
        .run()
        .ok();
    let state = bundle.state("life");
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], "life");
    assert_eq!(state["bundle"], bundle.path().to_string_lossy().as_ref());
    let pid = fs::read_to_string(&pid_file).expect("pid file");
    assert_eq!(state["pid"].to_string(), pid);
    assert!(fs::exists(format!("/proc/{pid}")).expect("/proc"));

    bundle.cloister(["start", "life"]).run().ok();
    assert_eq!(bundle.status("life"), "running");
    bundle.cloister(["kill", "life", "0"]).run().ok();
    bundle.cloister(["start", "life"]).run().fails(1, &["life"]);
    bundle
        .cloister(["delete", "life"])
        .run()
        .fails(1, &["life"]);

    bundle.cloister(["kill", "life", "KILL"]).run().ok();
    eventually("stopped", || bundle.status("life") == "stopped");
    assert_eq!(bundle.state("life")["pid"], 0);
    bundle
        .cloister(["kill", "life", "TERM"])
        .run()
        .fails(1, &["not running"]);
    bundle
        .cloister(["kill", "life", "0"])
        .run()
        .fails(1, &["not running"]);
    // As with runc, all processes of a container that has none get what they are sent.
    bundle.cloister(["kill", "--all", "life", "0"]).run().ok();
    bundle.cloister(["delete", "life"]).run().ok();
    bundle
        .cloister(["state", "life"])
        .run()
        .fails(1, &["does not exist"]);
    fs::remove_file(pid_file).expect("pid file");
    before.assert_nothing_new();
}

#[test]
fn a_created_container_can_be_killed_and_deleted() {
    let bundle = Bundle::new(&["sleep", "600"]);
    bundle.command("create", &[], "c").run().ok();
    bundle.cloister(["delete", "--force", "c"]).run().ok();
    bundle
        .cloister(["state", "c"])
        .run()
        .fails(1, &["does not exist"]);
    // Forced deletion of what is not there is no error, as with runc.
    bundle.cloister(["delete", "--force", "c"]).run().ok();
}

#[test]
fn signals_by_name_and_number_reach_the_workload() {
    let script = "trap 'echo term; exit 3' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.1; done";
    for signal in ["TERM", "SIGTERM", "15"] {
        let bundle = Bundle::sh(script);
        let marker = bundle.rootfs().join("tmp/ready");
        let bundle = bundle.with(|spec| {
            spec["process"]["args"][2] = script.replace("echo ready", "touch /tmp/ready").into();
        });
        let running = bundle.command("run", &[], "sig").spawn();
        eventually("the trap is set", || marker.exists());
        bundle.cloister(["kill", "sig", signal]).run().ok();
        let finished = running.wait();
        assert_eq!(finished.code(), 3, "{signal}: {finished}");
        assert_eq!(finished.out(), "term\n");
    }
}

#[test]
fn signals_to_the_monitor_and_to_run_reach_the_workload() {
    let script = "trap 'echo term; exit 4' TERM; touch /tmp/ready; while :; do sleep 0.1; done";
    for to_monitor in [true, false] {
        let bundle = Bundle::sh(script);
        let running = bundle.command("run", &[], "sig").spawn();
        eventually("the trap is set", || {
            bundle.rootfs().join("tmp/ready").exists()
        });
        let pid = if to_monitor {
            bundle.state("sig")["pid"]
                .as_i64()
                .and_then(|pid| i32::try_from(pid).ok())
        } else {
            Some(running.pid())
        };
        let pid = pid.and_then(rustix::process::Pid::from_raw).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
        let finished = running.wait();
        assert_eq!(
            finished.code(),
            4,
            "to the monitor: {to_monitor}: {finished}"
        );
        assert_eq!(finished.out(), "term\n");
    }
}

#[test]
fn list_shows_every_container() {
    let bundle = Bundle::new(&["sleep", "600"]);
    for id in ["one", "two"] {
        bundle.command("run", &["--detach"], id).run().ok();
    }
    let table = bundle.cloister(["list"]).run().ok();
    let header: Vec<_> = table
        .lines()
        .next()
        .expect("a header")
        .split_whitespace()
        .collect();
    assert_eq!(
        header,
        ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    );
    let quiet = bundle.cloister(["list", "--quiet"]).run().ok();
    assert_eq!(quiet, "one\ntwo\n");
    let json: Vec<Value> =
        serde_json::from_str(&bundle.cloister(["list", "--format", "json"]).run().ok())
            .expect("JSON");
    assert_eq!(json.len(), 2);
    assert!(
        json.iter()
            .all(|container| container["status"] == "running")
    );
}

#[test]
fn the_network_namespace_is_the_containers_own() {
    let bundle = Bundle::new(&["sleep", "600"]);
    bundle.command("run", &["--detach"], "net").run().ok();
    let pid = bundle.state("net")["pid"].to_string();
    let theirs = fs::read_link(format!("/proc/{pid}/ns/net")).expect("a namespace");
    let ours = fs::read_link("/proc/self/ns/net").expect("a namespace");
    assert_ne!(theirs, ours);
}
