//! containerd crashes and comes back; containers go on.

use crate::harness::eventually;

use super::Case;
use super::daemon::{self, Version};

pub(super) fn a_container_outlives_containerd(version: Version) {
    let case = Case::with_own_daemon(version);
    let script = "trap 'echo last; exit 3' TERM; touch /ready; n=0; while :; do n=$((n+1)); echo $n >/n; sleep 0.1; done";
    case.detached(&[], "o", script);
    case.await_file("o", "/ready");
    let before = case.listed("o");
    let shim = case.shim_pid("o");
    daemon::stop();
    daemon::start(version);
    assert_eq!(case.listed("o"), before);
    assert_eq!(case.shim_pid("o"), shim);
    let counted = || {
        let shown = case.exec("o", "look", "cat /n").run().ok();
        shown.trim().parse::<u64>().unwrap_or(0)
    };
    let first = counted();
    eventually("it goes on", || counted() > first);
    // Whoever waits now learns of the end, and gets what is said last: its streams were kept open.
    let waiting = case.ctr(["task", "attach", "o"]).spawn();
    eventually("somebody reads the output", || {
        let dir = format!("/proc/{}/fd", waiting.pid());
        let fds = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut targets = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets.any(|target| target.ends_with("o-stdout"))
    });
    case.ctr(["task", "kill", "--signal", "SIGTERM", "o"])
        .run()
        .ok();
    let ended = waiting.wait();
    assert_eq!(ended.status.code(), Some(3), "{ended}");
    assert!(ended.out().contains("last\n"), "{ended}");
}

pub(super) fn an_end_while_containerd_is_away(version: Version) {
    let case = Case::with_own_daemon(version);
    case.detached(&["--null-io"], "a", "sleep 600");
    let (pid, _) = case.listed("a").expect("a task");
    daemon::stop();
    let cloister = crate::harness::Cmd::new(crate::harness::runtime());
    let words = [
        "--root",
        "/run/containerd/cloister/default",
        "kill",
        "a",
        "KILL",
    ];
    cloister.args(words).run().ok();
    eventually("it has ended", || {
        !std::path::Path::new("/proc").join(pid.to_string()).exists()
    });
    daemon::start(version);
    assert_eq!(case.status("a"), "STOPPED");
    let deleted = case.ctr(["task", "delete", "a"]).run();
    assert!(deleted.err().contains("exit code 137"), "{deleted}");
    assert_eq!(case.status("a"), "gone");
}
