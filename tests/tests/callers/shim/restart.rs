//! containerd crashes and comes back, or a newer one comes in its place; containers go on.

use std::path::Path;

use crate::harness::{Cmd, eventually, runtime};

use super::Case;
use super::daemon::{self, Version};

/// Counts, and says something last.
const COUNTING: &str = "trap 'echo last; exit 3' TERM; touch /ready; n=0; while :; do n=$((n+1)); echo $n >/n; sleep 0.1; done";

/// Runs a container that counts.
fn start_counting(case: &Case, name: &str) {
    case.detached(&[], name, COUNTING);
    case.await_file(name, "/ready");
}

/// Asserts that a container does something, and can be asked what.
fn assert_goes_on(case: &Case, name: &str) {
    let counted = || {
        let shown = case.exec(name, "look", "cat /n").run().ok();
        shown.trim().parse::<u64>().unwrap_or(0)
    };
    let first = counted();
    eventually("it goes on", || counted() > first);
}

/// Whoever waits now learns of the end, and gets what is said last: the container's streams were kept open.
fn assert_ends_heard(case: &Case, name: &str) {
    let waiting = case.ctr(["task", "attach", name]).spawn();
    let stdout = format!("{name}-stdout");
    eventually("somebody reads the output", || {
        let dir = format!("/proc/{}/fd", waiting.pid());
        let fds = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut targets = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets.any(|target| target.ends_with(&stdout))
    });
    case.ctr(["task", "kill", "--signal", "SIGTERM", name])
        .run()
        .ok();
    let ended = waiting.wait();
    assert_eq!(ended.status.code(), Some(3), "{ended}");
    assert!(ended.out().contains("last\n"), "{ended}");
}

/// Ends a container while there is no containerd.
fn kill_unseen(case: &Case, name: &str, end_daemon: fn()) {
    let (pid, _) = case.listed(name).expect("a task");
    end_daemon();
    let words = [
        "--root",
        "/run/containerd/cloister/default",
        "kill",
        name,
        "KILL",
    ];
    Cmd::new(runtime()).args(words).run().ok();
    eventually("it has ended", || {
        !Path::new("/proc").join(pid.to_string()).exists()
    });
}

/// That end is known afterwards.
fn assert_ended_unseen(case: &Case, name: &str) {
    assert_eq!(case.status(name), "STOPPED");
    let deleted = case.ctr(["task", "delete", name]).run();
    assert!(deleted.err().contains("exit code 137"), "{deleted}");
    assert_eq!(case.status(name), "gone");
}

pub(super) fn a_container_outlives_containerd(version: Version) {
    let case = Case::with_own_daemon(version);
    start_counting(&case, "o");
    let before = case.listed("o");
    let shim = case.shim_pid("o");
    daemon::stop();
    case.start_daemon();
    assert_eq!(case.listed("o"), before);
    assert_eq!(case.shim_pid("o"), shim);
    assert_goes_on(&case, "o");
    assert_ends_heard(&case, "o");
}

pub(super) fn an_end_while_containerd_is_away(version: Version) {
    let case = Case::with_own_daemon(version);
    case.detached(&["--null-io"], "a", "sleep 600");
    kill_unseen(&case, "a", daemon::stop);
    case.start_daemon();
    assert_ended_unseen(&case, "a");
}

/// Each version takes over what the one before it has left, which was killed or asked to end.
#[test]
fn upgrades() {
    // No older version is to come back to it.
    let root = "/var/lib/containerd-upgraded".to_owned();
    let mut case = Case::with_daemon_on(Version::V1_6, root);
    start_counting(&case, "last");
    let of_last = (case.listed("last"), case.shim_pid("last"));
    let exec = "trap 'exit 5' TERM; touch /executed; while :; do sleep 0.1; done";
    // `ctr` leaves the FIFOs of what it does not wait for.
    let fifos = tempfile::tempdir().expect("a directory");
    let words = [
        "task",
        "exec",
        "--detach",
        "--exec-id",
        "beside",
        "--fifo-dir",
    ];
    let exec_in_last = case.ctr(words).args([fifos.path()]);
    let exec = exec_in_last.args(["last", "sh", "-c", exec]).outlived();
    exec.run().ok();
    case.await_file("last", "/executed");
    let newer: [(_, fn()); 2] = [
        (Version::V1_7, daemon::stop),
        (Version::V2, daemon::terminate),
    ];
    for (version, end_daemon) in newer {
        start_counting(&case, "ends");
        case.detached(&["--null-io"], "unseen", "sleep 600");
        let of_ends = (case.listed("ends"), case.shim_pid("ends"));
        kill_unseen(&case, "unseen", end_daemon);
        case.version = version;
        case.start_daemon();
        for (name, before) in [("last", &of_last), ("ends", &of_ends)] {
            assert_eq!(&(case.listed(name), case.shim_pid(name)), before);
            assert_goes_on(&case, name);
            let shown = case.ctr(["task", "metrics", name]).run().ok();
            assert!(shown.contains("memory.usage"), "{shown}");
        }
        assert_ended_unseen(&case, "unseen");
        assert_ends_heard(&case, "ends");
        for name in ["ends", "unseen"] {
            case.ctr(["container", "delete", name]).run().ok();
            assert!(!super::bundle(name).exists(), "{name}");
        }
        assert_eq!(case.run(&[], "new", "echo new").ok(), "new\n");
    }
    // The first one's process beside the container has its end with the last one.
    let control = |words: &[&str]| case.ctr(["task"]).args(words).args(["last"]).run();
    control(&["kill", "--exec-id", "beside", "--signal", "SIGTERM"]).ok();
    eventually("its exit code", || {
        control(&["delete", "--exec-id", "beside"]).status.code() == Some(5)
    });
    control(&["pause"]).ok();
    assert_eq!(case.status("last"), "PAUSED");
    control(&["resume"]).ok();
    assert_ends_heard(&case, "last");
}
