//! Limits on this machine, beside those in the guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use super::harness::{Finished, Setup, finish, read};

/// A path for a cgroup that no other test has, or `None`, which is said.
fn cgroups_path(setup: &Setup) -> Option<String> {
    let name = setup.path("").file_name()?.to_str()?.to_owned();
    let name = format!("cloister-test-{}", name.trim_start_matches('.'));
    match cgroup(&name, "cpu") {
        Some(_) => Some(format!("/{name}")),
        None => {
            eprintln!("SKIPPED: cgroups cannot be made here");
            None
        }
    }
}

/// Where a cgroup's files of a controller are, if there is such a controller that can be used.
fn cgroup(name: &str, controller: &str) -> Option<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let is_v2 = root.join("cgroup.controllers").exists();
    let root = if is_v2 {
        root.to_owned()
    } else {
        root.join(controller)
    };
    let probe = root.join(format!("{name}-probe"));
    fs::create_dir(&probe).ok()?;
    fs::remove_dir(&probe).ok()?;
    Some(root.join(name))
}

fn update(setup: &Setup, resources: &Value) -> Finished {
    let mut command = setup.command(&["update", "--resources", "-", "x"]);
    let child = command.stdin(Stdio::piped()).spawn().unwrap();
    finish(child, resources.to_string().as_bytes())
}

#[test]
fn what_this_machine_refuses_is_not_asked_of_the_guest() {
    let setup = Setup::new(&["sleep"]);
    let Some(path) = cgroups_path(&setup) else {
        return;
    };
    let setup = setup.with(|spec| spec["linux"]["cgroupsPath"] = path.clone().into());
    let updated = setup.path("tmp/updated");
    setup.run_detached(&["run", "--detach", "x"]).ok();
    let refused = json!({"memory": {"limit": 256 << 20}, "cpu": {"cpus": "777"}});
    update(&setup, &refused).fails(1, &["linux.resources.cpu.cpus: CPU 777 does not exist"]);
    let by_option = setup.run(&["update", "--cpuset-cpus", "777", "x"]);
    by_option.fails(
        1,
        &["--cpuset-cpus: linux.resources.cpu.cpus: CPU 777 does not exist"],
    );
    let refused = json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]});
    update(&setup, &refused).fails(1, &["linux.resources.hugepageLimits: no "]);
    assert!(!updated.exists());

    let name = path.trim_start_matches('/');
    let dir = cgroup(name, "cpu").unwrap();
    update(&setup, &json!({"cpu": {"shares": 512}})).ok();
    assert!(read(&updated).contains("512"));
    let [v1, v2] = ["cpu.shares", "cpu.weight"].map(|file| fs::read_to_string(dir.join(file)));
    assert!(v1.is_ok_and(|text| text == "512\n") || v2.is_ok_and(|text| text == "59\n"));
    setup.run(&["delete", "--force", "x"]).ok();
    assert!(!dir.exists());
    setup.assert_nothing_left("x");
}

/// Resources with every limit that means nothing in a guest, and their fields.
fn of_this_machine() -> (Value, [&'static str; 4]) {
    let resources = json!({
        "cpu": {"cpus": "0", "mems": "0"},
        "blockIO": {
            "weight": 500,
            "throttleReadBpsDevice": [{"major": 1, "minor": 0, "rate": 1_000_000}],
        },
        "unified": {"io.max": "1:0 wbps=1000000", "pids.max": "100"},
    });
    let fields = [
        "linux.resources.cpu.cpus",
        "linux.resources.cpu.mems",
        "linux.resources.blockIO.throttleReadBpsDevice[0]",
        "linux.resources.unified[\\\"io.max\\\"]",
    ];
    (resources, fields)
}

#[test]
fn limits_of_this_machine_are_not_passed_over_without_a_cgroup() {
    let (resources, fields) = of_this_machine();
    let setup = Setup::new(&["sleep"]).with(|spec| spec["linux"]["resources"] = resources.clone());
    let disabled = ["--cgroup-manager", "disabled", "run", "--detach", "x"];
    let warned = setup.run_detached(&disabled).fails(0, &fields);
    assert_eq!(warned.matches("has no cgroup here").count(), 4, "{warned}");

    let updated = setup.path("tmp/updated");
    for (part, field) in [
        (json!({"cpu": {"cpus": "0"}}), fields[0]),
        (json!({"cpu": {"mems": "0"}}), fields[1]),
        (
            json!({"blockIO": {"throttleReadBpsDevice": resources["blockIO"]["throttleReadBpsDevice"]}}),
            fields[2],
        ),
        (
            json!({"unified": {"io.max": "1:0 wbps=1000000"}}),
            fields[3],
        ),
    ] {
        update(&setup, &part).fails(1, &[field, "has no cgroup here"]);
        assert!(!updated.exists(), "{part}");
    }
    // What holds in the guest does without.
    let both =
        json!({"cpu": {"shares": 512}, "blockIO": {"weight": 500}, "unified": {"pids.max": "9"}});
    update(&setup, &both).ok();
    assert!(updated.exists());
}
