//! Exit codes and signals arrive exactly.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use rustix::process::{self as prctl, Pid, WaitOptions, waitpid};
use serde_json::Value;

use super::harness::{Bundle, eventually};

#[test]
fn exit_codes_are_exact() {
    for code in [0, 1, 42, 255] {
        let finished = Bundle::sh(&format!("exit {code}")).run();
        assert_eq!(finished.code(), code, "{finished}");
    }
}

#[test]
fn death_by_a_signal_is_128_and_its_number() {
    // The shell is the container's init, which its own signals cannot kill: a child dies instead,
    // and `exec` of that shell's status is what `wait` reports.
    for (name, number) in [("KILL", 9), ("SEGV", 11), ("TERM", 15)] {
        let script = format!("sh -c 'kill -{name} $$'; exit $?");
        let finished = Bundle::sh(&script).run();
        assert_eq!(finished.code(), 128 + number, "{name}: {finished}");
    }
}

/// The first process of a PID namespace ignores what it has no handler for, but for SIGKILL: to die of another signal it
/// has to be no such process.
fn in_the_pid_namespace_of_the_guest(spec: &mut Value) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut();
    namespaces
        .expect("namespaces")
        .retain(|namespace| namespace["type"] != "pid");
}

#[test]
fn an_init_killed_from_outside_is_128_and_the_signal() {
    for signal in ["KILL", "SEGV"] {
        let bundle = Bundle::new(&["sleep", "600"]).with(|spec| {
            if signal != "KILL" {
                in_the_pid_namespace_of_the_guest(spec);
            }
        });
        let running = bundle.command("run", &[], "killed").spawn();
        eventually("running", || {
            bundle.state_root().join("killed").exists()
                && bundle
                    .cloister(["state", "killed"])
                    .run()
                    .out()
                    .contains("\"running\"")
        });
        bundle.cloister(["kill", "killed", signal]).run().ok();
        let expected = if signal == "KILL" { 137 } else { 139 };
        let finished = running.wait();
        assert_eq!(finished.code(), expected, "{finished}");
    }
}

#[test]
fn the_monitor_dies_by_the_same_signal_as_the_workload() {
    // Alone, since every orphan of the machine becomes this process's child meanwhile.
    let bundle = Bundle::alone(&["sleep", "600"]).with(in_the_pid_namespace_of_the_guest);
    let adopt = |on| prctl::set_child_subreaper(on).expect("subreaper");
    adopt(Some(rustix::process::getpid()));
    let pid_file = bundle.scratch("pid");
    let pid_option = pid_file.to_string_lossy().into_owned();
    bundle
        .command("run", &["--detach", "--pid-file", &pid_option], "same")
        .run()
        .ok();
    let text = fs::read_to_string(&pid_file).expect("pid file");
    let pid = text.parse().ok().and_then(Pid::from_raw).expect("a pid");
    bundle.cloister(["kill", "same", "USR1"]).run().ok();
    let (_, status) = waitpid(Some(pid), WaitOptions::empty())
        .expect("the monitor is ours to reap")
        .expect("a status");
    adopt(None);
    let status = std::process::ExitStatus::from_raw(status.as_raw());
    assert_eq!(status.signal(), Some(10), "{status}");
}
