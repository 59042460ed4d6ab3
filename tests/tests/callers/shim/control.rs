//! What is done to a running container, and asked of it.

use crate::harness::{Finished, eventually};

use super::daemon::Version;
use super::{Case, shim};

pub(super) fn kill(version: Version) {
    let case = Case::new(version);
    let script = "trap 'exit 3' TERM; touch /ready; while :; do sleep 0.1; done";
    case.detached(&[], "k", script);
    case.await_file("k", "/ready");
    let kill = |words: &[&str]| case.ctr(["task", "kill"]).args(words).args(["k"]).run();
    kill(&["--signal", "SIGTERM"]).ok();
    case.await_status("k", "STOPPED");
    let again = kill(&["--signal", "SIGTERM"]);
    assert!(!again.status.success(), "{again}");
    assert!(again.err().contains("already finished"), "{again}");
    assert_eq!(deleted(&case, "k"), 3);
}

pub(super) fn kill_all(version: Version) {
    let case = Case::new(version);
    case.detached(&[], "k", "sleep 600 & sleep 600");
    let words = ["task", "kill", "--all", "--signal", "SIGKILL", "k"];
    case.ctr(words).run().ok();
    case.await_status("k", "STOPPED");
    assert_eq!(deleted(&case, "k"), 137);
}

pub(super) fn pause_and_resume(version: Version) {
    let case = Case::new(version);
    case.detached(&[], "p", "while :; do date +%s%N >/now; sleep 0.1; done");
    case.await_file("p", "/now");
    let control = |what: &str| case.ctr(["task", what, "p"]).run();
    control("pause").ok();
    assert_eq!(case.status("p"), "PAUSED");
    let again = control("pause");
    assert!(!again.status.success(), "{again}");
    control("resume").ok();
    assert_eq!(case.status("p"), "RUNNING");
    let running = control("resume");
    assert!(!running.status.success(), "{running}");
    let now = || case.exec("p", "look", "cat /now").run().ok();
    let before = now();
    eventually("it goes on", || now() != before);
}

pub(super) fn processes(version: Version) {
    let case = Case::new(version);
    case.detached(&[], "p", "sleep 600");
    let exec = case.exec("p", "beside", "touch /ready; exec sleep 600");
    let exec = exec.spawn();
    case.await_file("p", "/ready");
    let (pid, _) = case.listed("p").expect("a task");
    // Those that stand for the container and for what is executed in it.
    let listed = case.ctr(["task", "ps", "p"]).run().ok();
    let lines: Vec<_> = listed.lines().skip(1).collect();
    assert_eq!(lines.len(), 2, "{listed}");
    let of = |pid: &str| {
        lines
            .iter()
            .find(|line| line.split_whitespace().next() == Some(pid))
    };
    assert!(of(&pid.to_string()).is_some(), "{listed}");
    assert!(lines.iter().any(|line| line.contains("beside")), "{listed}");
    for line in &lines {
        let pid = line.split_whitespace().next().expect("a pid");
        assert!(std::path::Path::new("/proc").join(pid).exists(), "{listed}");
    }
    let words = [
        "task",
        "kill",
        "--exec-id",
        "beside",
        "--signal",
        "SIGKILL",
        "p",
    ];
    case.ctr(words).run().ok();
    exec.wait();
}

pub(super) fn metrics(version: Version) {
    const LIMIT: u64 = 96 << 20;
    const OVERHEAD_MAX: u64 = 512 << 20;
    let case = Case::new(version);
    let limit = LIMIT.to_string();
    let script = "head -c 1000000 /dev/zero | md5sum; touch /ready; sleep 600";
    case.detached(&["--memory-limit", &limit], "m", script);
    case.await_file("m", "/ready");
    let shown = case.ctr(["task", "metrics", "m"]).run().ok();
    let figure = |name: &str| figure(&shown, name);
    for name in ["pids.current", "cpu.usage_usec", "memory.usage"] {
        assert!(figure(name) > 0, "{name}: {shown}");
    }
    // Both are with the virtual machine's overhead.
    let shown_limit = figure("memory.usage_limit");
    assert!(
        (LIMIT..LIMIT + OVERHEAD_MAX).contains(&shown_limit),
        "{shown}"
    );
    assert!(figure("memory.usage") <= shown_limit, "{shown}");
}

/// A figure in what `ctr task metrics` shows.
pub(super) fn figure(shown: &str, name: &str) -> u64 {
    let mut lines = shown.lines().map(|line| line.split_whitespace());
    let mut line = lines
        .find(|line| line.clone().next() == Some(name))
        .unwrap_or_else(|| panic!("no {name} in {shown}"));
    let value = line.nth(1).and_then(|value| value.parse::<u64>().ok());
    value.unwrap_or_else(|| panic!("no figure of {name} in {shown}"))
}

pub(super) fn delete(version: Version) {
    let case = Case::new(version);
    case.detached(&[], "d", "sleep 600");
    let running = case.ctr(["task", "delete", "d"]).run();
    assert!(!running.status.success(), "{running}");
    assert_eq!(case.status("d"), "RUNNING");
    case.ctr(["task", "delete", "--force", "d"]).run();
    assert_eq!(case.status("d"), "gone");
    case.ctr(["container", "delete", "d"]).run().ok();
}

pub(super) fn checkpoint(version: Version) {
    let case = Case::new(version);
    case.detached(&[], "c", "sleep 600");
    let refused = case.ctr(["task", "checkpoint", "c"]).run();
    assert!(!refused.status.success(), "{refused}");
    let words = "checkpoint is not supported: a container's processes are in a virtual machine";
    assert!(refused.err().contains(words), "{refused}");
    // containerd has paused it meanwhile.
    assert_eq!(case.status("c"), "RUNNING");
}

/// What containerd 2 shows of a runtime by its `-info`.
pub(super) fn described(version: Version) {
    let case = Case::new(version);
    let words = ["plugins", "inspect-runtime", "--runtime", shim()];
    let shown = case.ctr(words).run().ok();
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown["Name"], shim(), "{shown}");
    assert!(shown["Features"]["ociVersionMax"].is_string(), "{shown}");
}

/// Deletes a task that has ended, and gives its exit code.
fn deleted(case: &Case, name: &str) -> i32 {
    let finished: Finished = case.ctr(["task", "delete", name]).run();
    let text = finished.err();
    let (_, code) = text.split_once("exit code ").unwrap_or(("", "0"));
    let end = code.find(|c: char| !c.is_ascii_digit());
    let code = code[..end.unwrap_or(code.len())].parse();
    code.unwrap_or_else(|_| panic!("no exit code: {finished}"))
}
