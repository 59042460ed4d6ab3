//! From `run --detach` to `rm`.

use std::fs;

use crate::harness::{Case, eventually};

pub(crate) fn logs(case: &Case) {
    case.detached("box", &[], "echo one; echo two >&2; sleep 600");
    case.await_log("box", "one");
    let finished = case.command(["logs", "box"]).run();
    assert_eq!(finished.out(), "one\n", "{finished}");
    assert_eq!(finished.err(), "two\n", "{finished}");
}

pub(crate) fn stop(case: &Case) {
    case.detached(
        "box",
        &[],
        "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done",
    );
    case.await_log("box", "ready");
    case.ok(["stop", "--time", "60", "box"]);
    let state = case.inspect("box")["State"].take();
    assert_eq!(state["ExitCode"], 3, "{state:#}");
    assert_eq!(state["Status"], "exited", "{state:#}");
    case.await_log("box", "bye");
    case.ok(["rm", "box"]);
    // What ignores the signal is killed in the end.
    case.detached(
        "box",
        &[],
        "trap '' TERM; echo ready; while :; do sleep 0.1; done",
    );
    case.await_log("box", "ready");
    case.ok(["stop", "--time", "1", "box"]);
    assert_eq!(case.inspect("box")["State"]["ExitCode"], 137);
}

pub(crate) fn kill(case: &Case) {
    case.detached(
        "box",
        &[],
        "trap 'echo usr1' USR1; echo ready; while :; do sleep 0.1; done",
    );
    case.await_log("box", "ready");
    case.ok(["kill", "--signal", "USR1", "box"]);
    case.await_log("box", "usr1");
    assert_eq!(case.inspect("box")["State"]["Status"], "running");
    case.ok(["kill", "box"]);
    case.await_status("box", "exited");
    assert_eq!(case.inspect("box")["State"]["ExitCode"], 137);
}

pub(crate) fn pause(case: &Case) {
    let script = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1; done";
    case.detached("box", &[], script);
    case.await_log("box", "tick 3");
    case.ok(["pause", "box"]);
    assert_eq!(case.inspect("box")["State"]["Status"], "paused");
    let count = || case.command(["logs", "box"]).run().out().lines().count();
    let paused = count();
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(count() <= paused + 1, "it went on while it was paused");
    case.ok(["unpause", "box"]);
    assert_eq!(case.inspect("box")["State"]["Status"], "running");
    eventually("it goes on", || count() > paused + 3);
}

pub(crate) fn top(case: &Case) {
    case.detached("box", &[], "sleep 601 & echo ready; exec sleep 602");
    case.await_log("box", "ready");
    let listed = case.ok(["top", "box"]);
    assert!(listed.contains("sleep 601"), "{listed}");
    assert!(listed.contains("sleep 602"), "{listed}");
}

pub(crate) fn stats(case: &Case) {
    let fill = "dd if=/dev/zero of=/data/fill bs=1M count=24; echo filled; sleep 600";
    case.detached("box", &["--memory", "256m", "--tmpfs", "/data"], fill);
    case.await_log("box", "filled");
    let format = "{{.MemUsage}} {{.PIDs}}";
    let line = case.ok(["stats", "--no-stream", "--format", format, "box"]);
    // "25.1MB / 268.4MB 2"
    let used: String = line
        .chars()
        .take_while(|c| c.is_ascii_digit() || *c == '.')
        .collect();
    let used: f64 = used
        .parse()
        .unwrap_or_else(|error| panic!("{error}: {line:?}"));
    assert!(used >= 20.0 && line.contains('M'), "{line:?}");
}

pub(crate) fn wait(case: &Case) {
    case.detached("box", &[], "sleep 1; exit 11");
    assert_eq!(case.ok(["wait", "box"]), "11\n");
}

pub(crate) fn start_again(case: &Case) {
    case.detached("again", &[], "echo run >>/data/runs; exit 2");
    case.await_status("again", "exited");
    for _ in 0..2 {
        case.ok(["start", "again"]);
        case.await_status("again", "exited");
    }
    assert_eq!(case.inspect("again")["State"]["ExitCode"], 2);
    let copied = case.ok(["cp", "again:/data/runs", "-"]);
    assert_eq!(copied.matches("run\n").count(), 3, "{copied:?}");
}

pub(crate) fn remove_by_force(case: &Case) {
    let id = case.detached("box", &[], "sleep 600");
    case.ok(["rm", "--force", "box"]);
    // Its monitors end on their own, soon.
    eventually("no process of it is left", || !mentioned(&id));
}

/// Whether a process has the word on its command line.
fn mentioned(word: &str) -> bool {
    let processes = fs::read_dir("/proc").expect("/proc");
    processes.flatten().any(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(word)
    })
}

pub(crate) fn two_at_once(case: &Case) {
    for name in ["one", "two"] {
        case.detached(name, &[], &format!("echo I am {name}; sleep 600"));
    }
    for name in ["one", "two"] {
        case.await_log(name, &format!("I am {name}"));
    }
    case.ok(["rm", "--force", "one"]);
    assert_eq!(case.ok(["exec", "two", "echo", "still"]), "still\n");
}
