//! What dies in the middle, and what is left of the pod.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::cri::messages as cri;
use crate::cri::pod::{Case, Pod};
use crate::harness::eventually;

/// Ends the one process of this name.
fn kill(name: &str) {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let pids: Vec<u32> = processes
        .filter(|entry| {
            let comm = fs::read_to_string(entry.path().join("comm"));
            comm.is_ok_and(|comm| comm.trim_end() == name)
        })
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| is_alive(pid))
        .collect();
    let [pid] = pids[..] else {
        panic!("not one {name}: {pids:?}");
    };
    let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
    kill_process(pid, Signal::KILL).unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// A pod whose virtual machine has gone is told as not ready, and can be removed.
fn assert_ends(pod: &Pod) {
    eventually("the pod is not ready", || {
        pod.status().state == cri::PodSandboxState::SANDBOX_NOTREADY.into()
    });
    pod.stop();
    pod.remove();
}

pub(crate) fn containerd(case: &Case) {
    let pod = case.pod("stays");
    let ticking = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.5; done";
    let stays = pod.start("stays", ticking);
    let ends = pod.start(
        "ends",
        "until test -e /dev/shm/end; do sleep 0.1; done; exit 9",
    );
    stays.await_log("tick 1\n");
    let boot = stays.boot_id();
    stays.sh("(sleep 3; touch /dev/shm/end) >/dev/null 2>&1 &");
    let pid = process_of(&stays.id);
    case.crash_daemon(|| {
        // One container ends while nobody looks.
        eventually("it has ended", || !is_alive(process_of(&ends.id)));
    });
    assert!(is_alive(pid));
    assert_eq!(stays.boot_id(), boot);
    // containerd gives up what has ended in its absence, and knows no exit code.
    ends.wait();
    // What it says is written down again.
    let before = stays.log_text().len();
    eventually("the log grows", || stays.log_text().len() > before);
    // And the pod takes new containers.
    assert_eq!(pod.start("new", "exec sleep 1000").boot_id(), boot);
    pod.stop();
    pod.remove();
}

/// The process that stands for a container.
fn process_of(id: &str) -> u32 {
    let path = format!("{}/{id}/init.pid", crate::cri::daemon::BUNDLES);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    text.trim()
        .parse()
        .unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn is_alive(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A process that was not collected yet is dead.
    !status.is_empty() && !status.contains(") Z ")
}

pub(crate) fn shim(case: &Case) {
    let pod = case.pod("shimless");
    let container = pod.start("c", "exec sleep 1000");
    // As much of its name as the kernel keeps.
    kill("containerd-shim");
    assert_ne!(container.wait(), 0);
    assert_ends(&pod);
}

pub(crate) fn virtual_machine(case: &Case) {
    let pod = case.pod("fallen");
    let container = pod.start("c", "exec sleep 1000");
    kill("cloister-vmm");
    assert_eq!(container.wait(), 255);
    assert_ends(&pod);
}
