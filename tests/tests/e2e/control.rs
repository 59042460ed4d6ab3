//! Pausing, listing, limits and events.

use std::fs;

use serde_json::{Value, json};

use super::harness::{Bundle, eventually};

fn ticker() -> Bundle {
    let bundle = Bundle::sh("i=0; while :; do i=$((i+1)); echo $i >/tick; sleep 0.05; done");
    bundle.command("run", &["--detach"], "test").run().ok();
    bundle
}

#[test]
fn a_paused_container_stands_still_until_it_is_resumed() {
    let bundle = ticker();
    let tick = || fs::read_to_string(bundle.rootfs().join("tick")).unwrap_or_default();
    eventually("it ticks", || !tick().is_empty());
    bundle
        .cloister(["resume", "test"])
        .run()
        .fails(1, &["container not paused"]);
    bundle.cloister(["pause", "test"]).run().ok();
    assert_eq!(bundle.status("test"), "paused");
    let listed = bundle.cloister(["list"]).run().ok();
    assert!(listed.contains(" paused "), "{listed}");
    // The last write may be on its way.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let before = tick();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(tick(), before);
    bundle
        .cloister(["pause", "test"])
        .run()
        .fails(1, &["already paused"]);
    bundle.cloister(["exec", "test", "true"]).run().fails(
        255,
        &["cannot exec in a paused container (use --ignore-paused to override)"],
    );
    bundle.cloister(["delete", "test"]).run().fails(
        1,
        &["cannot delete container test that is not stopped: paused"],
    );
    let patient = bundle
        .cloister(["exec", "--ignore-paused", "test", "echo", "hello"])
        .spawn();
    std::thread::sleep(std::time::Duration::from_millis(300));
    bundle.cloister(["resume", "test"]).run().ok();
    assert_eq!(patient.wait().ok(), "hello\n");
    assert_eq!(bundle.status("test"), "running");
    eventually("it ticks again", || tick() != before);
    bundle.cloister(["pause", "test"]).run().ok();
    bundle.cloister(["kill", "test", "KILL"]).run().ok();
    eventually("it has ended", || bundle.status("test") == "stopped");
    bundle
        .cloister(["pause", "test"])
        .run()
        .fails(1, &["container not running"]);
    bundle.cloister(["delete", "test"]).run().ok();
}

#[test]
fn a_paused_container_can_be_deleted_by_force() {
    let bundle = ticker();
    bundle.cloister(["pause", "test"]).run().ok();
    bundle.cloister(["delete", "--force", "test"]).run().ok();
    bundle
        .cloister(["state", "test"])
        .run()
        .fails(1, &["does not exist"]);
}

#[test]
fn a_container_that_was_created_can_be_paused() {
    let bundle = Bundle::new(&["true"]);
    bundle.command("create", &[], "test").run().ok();
    bundle.cloister(["pause", "test"]).run().ok();
    assert_eq!(bundle.status("test"), "paused");
    bundle
        .cloister(["start", "test"])
        .run()
        .fails(1, &["cannot start a container in the paused state"]);
    bundle.cloister(["resume", "test"]).run().ok();
    assert_eq!(bundle.status("test"), "created");
    bundle.cloister(["start", "test"]).run().ok();
}

#[test]
fn processes_are_listed() {
    let bundle = Bundle::sh("sleep 1000 & exec sleep 999");
    bundle.command("run", &["--detach"], "test").run().ok();
    let list = |options: &[&str]| bundle.cloister(["ps", "test"]).args(options).run().ok();
    eventually("both run", || list(&[]).matches("sleep").count() == 2);
    let full = list(&["-ef"]);
    assert!(
        full.starts_with("UID          PID    PPID  C STIME TTY"),
        "{full}"
    );
    assert!(full.lines().nth(1).unwrap().starts_with("root "), "{full}");
    assert!(list(&["-e", "-x"]).contains("STAT"));
    bundle
        .cloister(["ps", "test", "-o", "pid"])
        .run()
        .fails(1, &["ps -o: not supported"]);
    bundle.cloister(["kill", "test", "KILL"]).run().ok();
    eventually("it has ended", || bundle.status("test") == "stopped");
    assert_eq!(list(&[]).lines().count(), 1);
    let json = bundle.cloister(["ps", "--format=json", "test"]).run().ok();
    assert_eq!(json, "[]\n");
}

#[test]
fn limits_can_be_changed() {
    let bundle = Bundle::new(&["sleep", "1000"]).with(|spec| {
        // To look at its own limits.
        spec["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        let cgroup = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"});
        spec["mounts"].as_array_mut().unwrap().push(cgroup);
        spec["linux"]["resources"]["cpu"] = json!({"quota": 50_000, "period": 200_000});
    });
    let run = bundle.command("run", &["--detach"], "test");
    run.env("CLOISTER_MAX_MEMORY_MIB", "192").run().ok();
    let read = |file: &str| {
        let path = format!("/sys/fs/cgroup/{file}");
        bundle
            .cloister(["exec", "test", "cat", &path])
            .run()
            .ok()
            .trim()
            .to_owned()
    };
    assert_eq!(read("cpu.max"), "50000 200000");
    // The same on this machine, for the virtual machine.
    let state = fs::read(bundle.state_root().join("test/state.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    let on_host = || match state["cgroup"]["paths"][""].as_str() {
        Some(dir) => fs::read_to_string(format!("{dir}/cpu.max")).unwrap(),
        None => {
            let dir = state["cgroup"]["paths"]["cpu"].as_str().unwrap();
            ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
                .map(|file| fs::read_to_string(format!("{dir}/{file}")).unwrap())
                .join(" ")
        }
    };
    let on_host = || {
        let text = on_host();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(on_host(), "50000 200000");
    bundle
        .cloister([
            "update",
            "--memory",
            "40m",
            "--pids-limit",
            "55",
            "--cpu-share",
            "2048",
            "test",
        ])
        .run()
        .ok();
    assert_eq!(read("memory.max"), (40 << 20).to_string());
    assert_eq!(read("pids.max"), "55");
    assert_eq!(read("cpu.weight"), "174");
    // What is not named stays.
    bundle
        .cloister(["update", "--cpu-quota", "30000", "test"])
        .run()
        .ok();
    assert_eq!(read("cpu.max"), "30000 200000");
    assert_eq!(on_host(), "30000 200000");
    bundle
        .cloister(["update", "--cpu-period", "100000", "test"])
        .run()
        .ok();
    assert_eq!(read("cpu.max"), "30000 100000");
    assert_eq!(on_host(), "30000 100000");
    // What this machine refuses does not hold in the guest alone.
    let both = ["--cpu-share", "4096", "--cpuset-cpus", "77"];
    let refused = bundle.cloister(["update"]).args(both).args(["test"]).run();
    refused.fails(1, &["linux.resources.cpu.cpus: CPU 77 does not exist"]);
    assert_eq!(read("cpu.weight"), "174");
    assert_eq!(read("memory.max"), (40 << 20).to_string());
    bundle
        .cloister(["update", "--resources", "-", "test"])
        .input(r#"{"memory": {"limit": 50331648}, "cpu": {"cpus": "0"}}"#)
        .run()
        .ok();
    assert_eq!(read("memory.max"), "50331648");
    // What the virtual machine does not have is told.
    let more = [
        "--memory",
        "4g",
        "--cpu-period",
        "100000",
        "--cpu-quota",
        "300000",
    ];
    let raised = bundle.cloister(["update"]).args(more).args(["test"]).run();
    let raised = raised.fails(
        0,
        &[
            "memory.limit: 4294967296 bytes are more than the virtual machine",
            "can grow to: 192 MiB",
            "cpu.quota: time of 3 processors",
            "can grow to: 1",
        ],
    );
    assert_eq!(raised.err().lines().count(), 2, "{raised}");
    assert_eq!(read("memory.max"), (4_u64 << 30).to_string());
    for (args, expected) in [
        (&["--memory", "lots"][..], "invalid value for --memory"),
        (&["--memory", "1q"], "invalid value for --memory"),
        (&["--cpu-quota", "x"], "--cpu-quota"),
        (&["--blkio-weight", "5"], "--blkio-weight: 5 is not"),
        (&["--l3-cache-schema", "x"], "--l3-cache-schema: refused"),
        (&["--cpuset-cpus", "77"], "cpus"),
        (&["--resources", "/none"], "/none"),
    ] {
        bundle
            .cloister(["update"])
            .args(args)
            .args(["test"])
            .run()
            .fails(1, &[expected]);
    }
    bundle
        .cloister(["update", "-r", "-", "test"])
        .input("{\"memory\": {\"limit\": \"x\"}}")
        .run()
        .fails(1, &["memory.limit: expected an integer"]);
}

#[test]
fn events_tell_what_is_used_and_when_memory_is_out() {
    let bundle = Bundle::sh("sleep 1; head -c 200m /dev/zero | tail >/dev/null; sleep 2")
        .with(|spec| spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20}));
    bundle.command("create", &[], "test").run().ok();
    let stats = bundle.cloister(["events", "--stats", "test"]).run().ok();
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(
        (&stats["type"], &stats["id"]),
        (&json!("stats"), &json!("test"))
    );
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 16 << 20);
    assert_eq!(stats["data"]["pids"]["current"], 1);
    let events = bundle
        .cloister(["events", "--interval", "500ms", "test"])
        .spawn();
    std::thread::sleep(std::time::Duration::from_millis(500));
    bundle.cloister(["start", "test"]).run().ok();
    let lines = events.wait().ok();
    let events: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
    assert!(of("stats") >= 2, "{lines}");
    assert!(of("oom") >= 1, "{lines}");
    for (args, expected) in [
        (&["--interval", "0s"][..], "longer than nothing"),
        (&["--interval", "soon"], "is not a time"),
    ] {
        bundle
            .cloister(["events"])
            .args(args)
            .args(["test"])
            .run()
            .fails(1, &[expected]);
    }
    bundle
        .cloister(["events", "--stats", "test"])
        .run()
        .fails(1, &["container with id test is not running"]);
}

#[test]
fn containers_can_be_named_by_an_expression() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    for id in ["one-a", "one-b", "two"] {
        bundle.command("run", &["--detach"], id).run().ok();
    }
    bundle
        .cloister(["kill", "--regex", "^one-", "KILL"])
        .run()
        .ok();
    eventually("both have ended", || {
        ["one-a", "one-b"]
            .iter()
            .all(|id| bundle.status(id) == "stopped")
    });
    bundle.cloister(["delete", "--regex", "^one-"]).run().ok();
    assert_eq!(bundle.cloister(["list", "-q"]).run().ok(), "two\n");
    bundle
        .cloister(["delete", "--regex", "("])
        .run()
        .fails(1, &["regex"]);
}
