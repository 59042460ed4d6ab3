//! Ends that a container has not chosen are told apart: by its exit code, by what containerd is told, and by the log.

use std::fs;

use super::daemon::{self, Version};
use super::events::Listener;
use super::{Case, logged_since};

/// What the log says of each end, and of no other.
const OOM_OF_THE_MACHINE: &str = "this machine's OOM killer ended a process of the virtual machine";
const PANIC: &str = "the virtual machine ended: guest kernel panicked";
const AGENT: &str = "the connection to the agent broke";

/// How a container is to end.
struct End<'a> {
    code: i32,
    is_oom: bool,
    /// What the log says, none of which is said of another end.
    log: &'a [&'a str],
}

/// Runs a script that ends, by `meanwhile` if not by itself, as it is to.
fn assert_end(case: &Case, options: &[&str], script: &str, meanwhile: impl FnOnce(), end: &End) {
    let listener = Listener::new(case);
    let begin = daemon::log().len();
    let options = [&["--rm"], options].concat();
    let running = case.command(&options, "end", script).spawn();
    meanwhile();
    let finished = running.wait();
    assert_eq!(finished.status.code(), Some(end.code), "{finished}");
    let oom: &[_] = if end.is_oom { &["oom"] } else { &[] };
    let topics = [&["create", "start"], oom, &["exit", "delete"]].concat();
    let events = listener.expect(&topics);
    let exit = &events[topics.len() - 2];
    assert_eq!(exit["exit_status"], end.code, "{exit}");
    let log = logged_since(begin);
    for words in end.log {
        assert!(log.contains(words), "no {words:?}: {log}");
    }
    for words in [OOM_OF_THE_MACHINE, PANIC, AGENT] {
        assert!(end.log.contains(&words) || !log.contains(words), "{log}");
    }
}

/// The container's memory limit.
pub(super) fn oom_of_the_guest(version: Version) {
    let case = Case::new(version);
    let end = End {
        code: 137,
        is_oom: true,
        log: &[],
    };
    let script = "exec dd if=/dev/zero of=/dev/shm/fill bs=1M count=48";
    let options = ["--memory-limit", "33554432"];
    assert_end(&case, &options, script, || (), &end);
}

/// The limit of the cgroup that the virtual machine is in.
pub(super) fn oom_of_the_machine(version: Version) {
    let case = Case::new(version);
    let end = End {
        code: 137,
        is_oom: true,
        log: &["container end: ", OOM_OF_THE_MACHINE],
    };
    // Less than it has: what is there already is counted. The largest process is ended, and then even the monitor.
    for limit in ["8M", "1M"] {
        let meanwhile = || {
            case.await_status("end", "RUNNING");
            let (pid, _) = case.listed("end").expect("a task");
            let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroup");
            let (_, path) = cgroup.trim().rsplit_once("::").expect("a cgroup of v2");
            let written = fs::write(format!("/sys/fs/cgroup{path}/memory.max"), limit);
            written.unwrap_or_else(|e| panic!("{path}: {e}"));
        };
        assert_end(&case, &[], "exec sleep 600", meanwhile, &end);
    }
}

/// A container with power over its kernel has that panic.
pub(super) fn panic_of_the_guest(version: Version) {
    let case = Case::new(version);
    let end = End {
        code: 255,
        is_oom: false,
        log: &[
            "container end: ",
            PANIC,
            "last lines of the guest's console",
            "Kernel panic - not syncing: Out of memory",
        ],
    };
    // sysctl vm.panic_on_oom: 2 is for every reason, the limit of a cgroup too.
    let script =
        "echo 2 >/proc/sys/vm/panic_on_oom && exec dd if=/dev/zero of=/dev/shm/fill bs=1M count=48";
    let options = ["--privileged", "--memory-limit", "33554432"];
    assert_end(&case, &options, script, || (), &end);
}

/// Such a container takes the device away by which the agent is heard.
pub(super) fn loss_of_the_agent(version: Version) {
    let case = Case::new(version);
    let end = End {
        code: 255,
        is_oom: false,
        log: &["container end: ", AGENT],
    };
    let script = "cd /sys/bus/virtio/drivers/vmw_vsock_virtio_transport || exit 1; \
        set -- virtio*; echo $1 >unbind; exec sleep 600";
    assert_end(&case, &["--privileged"], script, || (), &end);
}
