//! Limits on resources: what the container sees, and that they hold.

use crate::harness::Case;

pub(crate) fn memory(case: &Case) {
    let script = "cat /sys/fs/cgroup/memory.max; dd if=/dev/zero of=/data/fill bs=1M count=150";
    let options = ["--memory", "64m", "--tmpfs", "/data:size=200m"];
    let finished = case.sh(&options, script);
    assert!(finished.out().starts_with("67108864\n"), "{finished}");
    // The first process is the one that is left of two: dd was killed.
    assert_eq!(finished.status.code(), Some(137), "{finished}");
}

pub(crate) fn cpus(case: &Case) {
    let out = case.sh_ok(
        &["--cpus", "0.5", "--cpu-shares", "512"],
        "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.weight",
    );
    assert_eq!(out, "50000 100000\n59\n");
}

pub(crate) fn pids(case: &Case) {
    let script =
        "cat /sys/fs/cgroup/pids.max; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 9 & done";
    let finished = case.sh(&["--pids-limit", "10"], script);
    assert!(finished.out().starts_with("10\n"), "{finished}");
    assert!(finished.err().contains("can't fork"), "{finished}");
}

pub(crate) fn update(case: &Case) {
    case.detached("box", &["--memory", "128m"], "sleep 600");
    case.ok(["update", "--memory", "256m", "--memory-swap", "512m", "box"]);
    let out = case.ok(["exec", "box", "cat", "/sys/fs/cgroup/memory.max"]);
    assert_eq!(out, "268435456\n");
}

pub(crate) fn ulimit(case: &Case) {
    let out = case.sh_ok(&["--ulimit", "nofile=300:400"], "ulimit -Sn; ulimit -Hn");
    assert_eq!(out, "300\n400\n");
}
