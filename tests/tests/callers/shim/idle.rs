//! A shim that has nothing to do costs next to nothing.

use std::fs;
use std::time::Duration;

use super::Case;
use super::daemon::Version;

/// How much memory of its own it may have.
const MEMORY_MAX_KIB: u64 = 4096;
/// How long its time is looked at.
const WINDOW: Duration = Duration::from_secs(5);

/// The time that a process has used, in ticks of 10 ms.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its figures");
    let (_, fields) = stat.rsplit_once(") ").expect("its name in parentheses");
    // proc_pid_stat(5): utime and stime are fields 14 and 15; the one after the name is 3.
    let fields: Vec<_> = fields.split(' ').collect();
    let figure = |field: usize| fields[field - 3].parse::<u64>().expect("a number");
    figure(14) + figure(15)
}

/// The memory that a process shares with nobody, in KiB.
fn private_kib(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("its figures");
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    let figure = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    private.map(|line| figure(line).expect("a number")).sum()
}

pub(super) fn memory_and_time(version: Version) {
    let case = Case::new(version);
    case.detached(&[], "i", "sleep 600");
    // It has done what it does.
    for n in 0..3 {
        let id = format!("x{n}");
        case.exec("i", &id, "true").run().ok();
    }
    case.ctr(["task", "metrics", "i"]).run().ok();
    let shim = case.shim_pid("i");
    let memory = private_kib(shim);
    println!("an idle shim has {memory} KiB of its own");
    assert!(memory > 0 && memory < MEMORY_MAX_KIB, "{memory} KiB");
    let before = ticks(shim);
    std::thread::sleep(WINDOW);
    let used = ticks(shim) - before;
    assert!(used <= 1, "{used} ticks in {WINDOW:?}");
    // It is a little more expendable than containerd, which has started it and has what this process has.
    let score = |pid: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("a score");
        text.trim().parse::<i32>().expect("a number")
    };
    assert_eq!(score(&shim.to_string()), (score("self") + 1).min(1000));
}
