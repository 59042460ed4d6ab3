//! What dies in the middle, and what is left of the pod.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::cri::daemon::{self, Node};
use crate::cri::messages as cri;
use crate::cri::pod::{Case, Container, Pod};
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
    kill_pid(pid);
}

pub(super) fn kill_pid(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
    kill_process(pid, Signal::KILL).unwrap_or_else(|e| panic!("{pid:?}: {e}"));
}

/// A pod whose virtual machine has gone is told as not ready, and can be removed.
pub(super) fn assert_ends(pod: &Pod) {
    eventually("the pod is not ready", || {
        pod.status().state == cri::PodSandboxState::SANDBOX_NOTREADY.into()
    });
    pod.stop();
    pod.remove();
}

/// Says something again and again, until it is asked to end.
const TICKING: &str =
    "trap 'echo bye; exit 7' TERM; i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.5; done";

/// Asserts that a container is what it was, and is heard.
fn assert_goes_on(container: &Container, boot: &str, pid: u32) {
    assert_eq!(process_of(&container.id), pid);
    assert!(is_alive(pid));
    assert_eq!(container.boot_id(), boot);
    let before = container.log_text().len();
    eventually("the log grows", || container.log_text().len() > before);
}

/// Each version takes over the pods of the one before it, which was killed or asked to end.
pub(crate) fn upgrades(case: &Case) {
    let pod = case.pod("stays");
    let stays = pod.start("stays", TICKING);
    stays.await_log("tick 1\n");
    let (boot, pid) = (stays.boot_id(), process_of(&stays.id));
    let newer: [(Node, fn()); 2] = [(Node::V1_7, daemon::kill), (Node::V2, daemon::stop)];
    for (node, end) in newer {
        let name = format!("{node:?}");
        let before = pod.start(&name, TICKING);
        before.await_log("tick 1\n");
        let address = pod.address();
        case.upgrade_daemon(node, end);
        assert_eq!(pod.address(), address);
        assert_goes_on(&stays, &boot, pid);
        assert_ne!(stays.stats().memory.working_set_bytes.value, 0);
        // Its end, and what it says then, is not lost.
        before.stop(100);
        assert_eq!(before.status().exit_code, 7);
        before.await_log("bye");
        before.remove();
        // The pod takes new containers, and there are new pods.
        let new = pod.start(&format!("new-{name}"), "exec sleep 1000");
        assert_eq!(new.boot_id(), boot);
        let other = case.pod(&name);
        assert_ne!(other.start("c", "exec sleep 1000").boot_id(), boot);
        other.stop();
        other.remove();
    }
    stays.stop(100);
    assert_eq!(stays.status().exit_code, 7);
    pod.stop();
    pod.remove();
}

pub(crate) fn containerd(case: &Case) {
    let pod = case.pod("stays");
    let stays = pod.start("stays", TICKING);
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
    // containerd gives up what has ended in its absence, and knows no exit code.
    ends.wait();
    // What the other says is written down again.
    assert_goes_on(&stays, &boot, pid);
    // And the pod takes new containers.
    assert_eq!(pod.start("new", "exec sleep 1000").boot_id(), boot);
    pod.stop();
    pod.remove();
}

/// The process that stands for a container.
fn process_of(id: &str) -> u32 {
    pid_in(id, "init.pid")
}

/// The pid in a file of a bundle.
pub(super) fn pid_in(id: &str, file: &str) -> u32 {
    let path = format!("{}/{id}/{file}", daemon::BUNDLES);
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
