//! Processes killed at any moment: the truth is told and nothing is left.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::harness::{Bundle, Cmd, LIMIT, Residue, eventually};

/// The pids of processes with this name whose ancestry or arguments do not matter: these tests
/// are alone on the machine.
fn pids(name: &str) -> Vec<Pid> {
    fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter(|entry| {
            let dir = entry.path();
            let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
            let command = fs::read(dir.join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            match name {
                "monitor" => comm.trim() == "cloister" && command.contains("\0monitor"),
                _ => comm.trim() == name,
            }
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .collect()
}

fn kill_soon_after_start(victim: &str) {
    let bundle = Bundle::alone(&["sh", "-c", "echo up; sleep 600"]);
    let before = Residue::now();
    // Moments from "hardly spawned" to "long since running".
    for delay_ms in [0, 3, 10, 40, 120, 300, 700, 1500, 3000] {
        let running = bundle.command("run", &[], "victim").spawn();
        eventually(&format!("{victim} runs"), || !pids(victim).is_empty());
        std::thread::sleep(Duration::from_millis(delay_ms));
        kill_all(victim);
        let finished = running.wait();
        assert_ne!(
            finished.status.code(),
            Some(0),
            "{victim} after {delay_ms} ms: {finished}"
        );
        assert!(
            !finished.err().is_empty(),
            "{victim} after {delay_ms} ms: no error was printed"
        );
        bundle.cloister(["delete", "--force", "victim"]).run().ok();
        before.assert_nothing_new();
    }
}

#[test]
fn a_killed_monitor_leaves_nothing() {
    kill_soon_after_start("monitor");
}

#[test]
fn a_killed_vmm_leaves_nothing() {
    kill_soon_after_start("cloister-vmm");
}

#[test]
fn a_killed_file_server_leaves_nothing() {
    let bundle = Bundle::alone(&["sh", "-c", "echo up; sleep 600"]);
    let before = Residue::now();
    let running = bundle.command("run", &[], "fs").spawn();
    eventually("running", || {
        bundle
            .cloister(["state", "fs"])
            .run()
            .out()
            .contains("\"running\"")
    });
    for pid in pids("cloister-fs") {
        kill_process(pid, Signal::KILL).expect("a signal");
    }
    bundle.cloister(["delete", "--force", "fs"]).run().ok();
    running.wait();
    before.assert_nothing_new();
}

#[test]
fn a_detached_container_whose_monitor_was_killed_is_stopped_and_can_be_deleted() {
    let bundle = Bundle::alone(&["sleep", "600"]);
    let before = Residue::now();
    bundle.command("run", &["--detach"], "d").run().ok();
    let pid = bundle.state("d")["pid"]
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok());
    kill_process(pid.and_then(Pid::from_raw).expect("a pid"), Signal::KILL).expect("a signal");
    eventually("stopped", || bundle.status("d") == "stopped");
    eventually("the VM is gone", || pids("cloister-vmm").is_empty());
    bundle.cloister(["delete", "d"]).run().ok();
    before.assert_nothing_new();
}

#[test]
fn a_container_outlives_its_run_command_and_can_be_deleted() {
    let bundle = Bundle::alone(&["sleep", "600"]);
    let before = Residue::now();
    let running = bundle.command("run", &[], "r").outlived().spawn();
    eventually("running", || {
        bundle
            .cloister(["state", "r"])
            .run()
            .out()
            .contains("\"running\"")
    });
    let pid = Pid::from_raw(running.pid()).expect("a pid");
    kill_process(pid, Signal::KILL).expect("a signal");
    running.wait();
    // As with runc, the container is its own master.
    assert_eq!(bundle.status("r"), "running");
    bundle.cloister(["delete", "--force", "r"]).run().ok();
    before.assert_nothing_new();
}

/// Kills everything of this name.
fn kill_all(victim: &str) {
    for pid in pids(victim) {
        // It may have ended by itself in between.
        let _ = kill_process(pid, Signal::KILL);
    }
}

#[test]
fn what_is_killed_within_a_create_leaves_nothing_that_delete_does_not_take() {
    let bundle = Bundle::alone(&["sleep", "600"]);
    let before = Residue::now();
    for victim in ["create", "monitor"] {
        // From "hardly begun" to "about to be created", or just created.
        for delay_ms in [0, 3, 10, 40, 120, 300, 700, 1500] {
            let create = bundle.command("create", &[], "c").spawn();
            if victim == "monitor" {
                eventually("the monitor runs", || !pids(victim).is_empty());
            }
            std::thread::sleep(Duration::from_millis(delay_ms));
            match (victim, Pid::from_raw(create.pid())) {
                // It may have ended, and is not reaped yet.
                ("create", Some(pid)) => kill_process(pid, Signal::KILL).expect("a signal"),
                _ => kill_all(victim),
            }
            let create = create.wait();
            let told = format!("{victim} after {delay_ms} ms: {create}");
            if victim == "monitor" && create.status.code() != Some(0) {
                assert!(!create.err().is_empty(), "no error: {told}");
            }
            bundle.cloister(["delete", "--force", "c"]).run().ok();
            before.assert_nothing_new();
            // The name is free again.
            assert!(bundle.ids().is_empty(), "{told}");
        }
    }
}

#[test]
fn a_monitor_that_is_killed_as_it_makes_its_cgroup_leaves_none() {
    let name = format!("cloister-fault-{}", std::process::id());
    let bundle = Bundle::alone(&["sleep", "600"]).with(|spec| {
        spec["linux"]["cgroupsPath"] = format!("/{name}").into();
        spec["linux"]["resources"]["cpu"] = serde_json::json!({"shares": 512});
    });
    let before = Residue::now();
    let root = fs::read_dir("/sys/fs/cgroup").expect("cgroups");
    let places: Vec<_> = root
        .flatten()
        .map(|entry| entry.path().join(&name))
        .collect();
    let is_there = || {
        let v2 = Path::new("/sys/fs/cgroup").join(&name);
        v2.exists() || places.iter().any(|place| place.exists())
    };
    // Without the command, which would clean up, and with it.
    for is_alone in [true, false, true, false] {
        let create = bundle.command("create", &[], "g").spawn();
        let deadline = Instant::now() + LIMIT;
        while !is_there() {
            assert!(Instant::now() < deadline, "no cgroup is made");
            std::thread::yield_now();
        }
        if let (true, Some(pid)) = (is_alone, Pid::from_raw(create.pid())) {
            kill_process(pid, Signal::KILL).expect("a signal");
        }
        kill_all("monitor");
        let create = create.wait();
        assert_ne!(create.status.code(), Some(0), "{create}");
        if !is_alone {
            before.assert_nothing_new();
        }
        bundle.cloister(["delete", "--force", "g"]).run().ok();
        before.assert_nothing_new();
    }
}

#[test]
fn a_container_of_another_version_is_deleted_by_force_with_all_it_has() {
    let bundle = Bundle::alone(&["sleep", "600"]).with(|spec| {
        // So that there is a cgroup on this machine.
        spec["linux"]["resources"]["cpu"] = serde_json::json!({"shares": 512});
    });
    let before = Residue::now();
    let state_file = bundle.state_root().join("v/state.json");
    let newer = |text: &str| {
        let mut state: serde_json::Value = serde_json::from_str(text).expect("JSON");
        state["version"] = 99.into();
        state.to_string()
    };
    let text = "version 99 of the state file is not understood";
    bundle.command("run", &["--detach"], "v").run().ok();
    let state = fs::read_to_string(&state_file).expect("a state file");
    fs::write(&state_file, newer(&state)).expect("a state file");
    bundle.cloister(["delete", "v"]).run().fails(1, &[text]);
    assert_eq!(pids("cloister-vmm").len(), 1, "nothing was done");
    let delete = bundle.cloister(["delete", "--force", "v"]).run();
    delete.fails(0, &[text]);
    before.assert_nothing_new();
    // A file that says nothing at all, of a container without a cgroup.
    let bundle = bundle.with(|spec| {
        let resources = spec["linux"]["resources"].as_object_mut();
        resources.expect("resources").remove("cpu");
    });
    bundle.command("run", &["--detach"], "v").run().ok();
    fs::write(&state_file, "{").expect("a state file");
    let delete = bundle.cloister(["delete", "--force", "v"]).run();
    delete.fails(0, &["state.json is damaged"]);
    before.assert_nothing_new();
}

#[test]
fn a_killed_exec_command_takes_its_process_along_and_nothing_else() {
    let bundle = Bundle::alone(&["sleep", "600"]);
    bundle.command("run", &["--detach"], "e").run().ok();
    let before = Residue::now();
    let inside = || bundle.cloister(["ps", "e"]).run().ok();
    for delay_ms in [0, 5, 20, 60, 150, 400] {
        let exec = bundle.cloister(["exec", "e", "sleep", "599"]).spawn();
        std::thread::sleep(Duration::from_millis(delay_ms));
        let pid = Pid::from_raw(exec.pid()).expect("a pid");
        kill_process(pid, Signal::KILL).expect("a signal");
        exec.wait();
        eventually("its process is gone", || !inside().contains("sleep 599"));
        before.assert_nothing_new();
    }
    // What was asked for at the last moment does not begin later.
    std::thread::sleep(Duration::from_secs(1));
    assert!(!inside().contains("sleep 599"));
    assert_eq!(bundle.status("e"), "running");
    bundle.cloister(["delete", "--force", "e"]).run().ok();
}

#[test]
fn what_is_killed_within_an_exec_ends_it_and_leaves_nothing() {
    let bundle = Bundle::alone(&["sleep", "600"]);
    let before = Residue::now();
    for victim in ["monitor", "cloister-vmm", "cloister-fs"] {
        for delay_ms in [0, 60, 300] {
            bundle.command("run", &["--detach"], "e").run().ok();
            let exec = bundle.cloister(["exec", "e", "sleep", "599"]).spawn();
            std::thread::sleep(Duration::from_millis(delay_ms));
            kill_all(victim);
            // Without its file server a guest may go on, until it wants a file.
            if victim != "cloister-fs" {
                eventually("stopped", || bundle.status("e") == "stopped");
            }
            bundle.cloister(["delete", "--force", "e"]).run().ok();
            let exec = exec.wait();
            let told = format!("{victim} after {delay_ms} ms: {exec}");
            assert_ne!(exec.status.code(), Some(0), "{told}");
            before.assert_nothing_new();
        }
    }
}

#[test]
fn what_is_killed_within_a_delete_is_deleted_by_the_next() {
    let bundle = Bundle::alone(&["sleep", "600"]);
    let before = Residue::now();
    for victim in ["delete", "monitor", "cloister-vmm", "cloister-fs"] {
        for delay_ms in [0, 10, 40, 150] {
            bundle.command("run", &["--detach"], "d").run().ok();
            let delete = bundle.cloister(["delete", "--force", "d"]).spawn();
            std::thread::sleep(Duration::from_millis(delay_ms));
            match (victim, Pid::from_raw(delete.pid())) {
                ("delete", Some(pid)) => {
                    let _ = kill_process(pid, Signal::KILL);
                }
                _ => kill_all(victim),
            }
            let delete = delete.wait();
            if victim != "delete" {
                assert_eq!(delete.code(), 0, "{victim} after {delay_ms} ms: {delete}");
            }
            bundle.cloister(["delete", "--force", "d"]).run().ok();
            before.assert_nothing_new();
        }
    }
}

/// A file system that is full after a number of files, at the state directory of a bundle.
struct Full<'a>(&'a Bundle);

impl<'a> Full<'a> {
    fn mount(bundle: &'a Bundle, files: u32) -> Self {
        // The root directory is a file, too.
        let options = format!("size=256k,nr_inodes={}", files + 1);
        let root = bundle.state_root();
        Cmd::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "none"])
            .args([&root])
            .run()
            .ok();
        Self(bundle)
    }
}

impl Drop for Full<'_> {
    fn drop(&mut self) {
        for id in self.0.ids() {
            self.0.cloister(["delete", "--force", &id]).run();
        }
        Cmd::new("umount").args([&self.0.state_root()]).run();
    }
}

#[test]
fn a_disk_that_is_full_is_named_at_each_file_and_nothing_is_left() {
    let bundle = Bundle::alone(&["sleep", "1000"]);
    drop(Full::mount(&bundle, 1));
    let before = Residue::now();
    let mut succeeded = false;
    for files in 0..20 {
        let _full = Full::mount(&bundle, files);
        let done = bundle.command("create", &[], "test").run();
        if done.code() == 0 {
            bundle.cloister(["delete", "test"]).run().ok();
            succeeded = true;
            break;
        }
        done.fails(1, &["No space left on device"]);
        let left = std::fs::read_dir(bundle.state_root()).unwrap().count();
        assert_eq!(left, 0, "after {files} files");
    }
    assert!(succeeded);
    before.assert_nothing_new();
}

#[test]
fn a_container_on_a_disk_that_is_full_can_be_used_and_deleted() {
    let bundle = Bundle::alone(&["sleep", "1000"]);
    // mount(8) makes a directory for itself.
    drop(Full::mount(&bundle, 1));
    let before = Residue::now();
    {
        let _full = Full::mount(&bundle, 40);
        bundle.command("create", &[], "test").run().ok();
        let filler = bundle.state_root().join("filler");
        let mut number = 0;
        while std::fs::write(filler.with_extension(number.to_string()), "").is_ok() {
            number += 1;
        }
        bundle.cloister(["start", "test"]).run().ok();
        assert_eq!(bundle.status("test"), "running");
        bundle.cloister(["pause", "test"]).run().ok();
        assert_eq!(bundle.status("test"), "paused");
        bundle.cloister(["resume", "test"]).run().ok();
        assert_eq!(
            bundle
                .cloister(["exec", "test", "echo", "hello"])
                .run()
                .ok(),
            "hello\n"
        );
        bundle
            .cloister(["exec", "-d", "test", "true"])
            .outlived()
            .run()
            .fails(255, &["No space left on device"]);
        bundle.cloister(["kill", "test", "KILL"]).run().ok();
        eventually("it has ended", || bundle.status("test") == "stopped");
        bundle.cloister(["delete", "test"]).run().ok();
    }
    before.assert_nothing_new();
}
