//! The processes of a container are killed, one or the other: the truth is told and nothing is left.

use std::path::Path;

use crate::harness::{Cmd, eventually};

use super::daemon::{self, Version};
use super::events::Listener;
use super::{BUNDLES, Case, PROGRAM, kill, logged_since, pids_of};

pub(super) fn shim_killed(version: Version) {
    let case = Case::new(version);
    let listener = Listener::new(&case);
    // `ctr` would remove FIFOs with the task.
    case.detached(&["--null-io"], "s", "sleep 600");
    let (pid, _) = case.listed("s").expect("a task");
    kill(case.shim_pid("s"));
    // containerd calls the shim's `delete`, and tells how that ended the task.
    eventually("its end is told", || {
        let told = listener.tasks();
        told.iter().any(|(topic, _)| topic == "delete")
    });
    let told = listener.tasks();
    let exit = told.iter().find(|(topic, _)| topic == "exit");
    assert_eq!(exit.expect("an end").1["exit_status"], 137, "{told:?}");
    assert!(!Path::new("/proc").join(pid.to_string()).exists());
    for name in ["cloister-vmm", "cloister-fs"] {
        assert!(pids_of(name).is_empty(), "{name} is left");
    }
    assert!(!super::bundle("s").exists(), "the bundle is left");
    assert_eq!(case.status("s"), "gone");
    // The same name again works.
    case.ctr(["container", "delete", "s"]).run().ok();
    assert_eq!(case.run(&[], "s", "echo again").ok(), "again\n");
}

pub(super) fn virtual_machine_killed(version: Version) {
    let case = Case::new(version);
    let begin = daemon::log().len();
    let running = case.command(&["--rm"], "v", "sleep 600").spawn();
    case.await_status("v", "RUNNING");
    let [vmm] = pids_of("cloister-vmm")[..] else {
        panic!("one virtual machine was expected");
    };
    kill(vmm);
    let finished = running.wait();
    assert_eq!(finished.status.code(), Some(255), "{finished}");
    let log = logged_since(begin);
    assert!(
        log.contains("container v: the virtual machine ended"),
        "{log}"
    );
}

pub(super) fn monitor_killed(version: Version) {
    let case = Case::new(version);
    let begin = daemon::log().len();
    let running = case.command(&["--rm"], "m", "sleep 600").spawn();
    case.await_status("m", "RUNNING");
    let (pid, _) = case.listed("m").expect("a task");
    kill(pid);
    let finished = running.wait();
    assert_eq!(finished.status.code(), Some(137), "{finished}");
    let log = logged_since(begin);
    assert!(log.contains("container m: its monitor was killed"), "{log}");
}

/// After each shim, containerd calls its program to delete what is left. It may come to that only when the bundle is
/// gone and another container has its name.
pub(super) fn late_delete(version: Version) {
    let case = Case::new(version);
    case.detached(&[], "again", "sleep 600");
    let script = "mkdir /run/gone && cd /run/gone && rmdir /run/gone && exec \"$0\" \"$@\"";
    let bundle = format!("{BUNDLES}/again");
    let words = ["-namespace", "default", "-id", "again", "-bundle", &bundle];
    let deleted = Cmd::new("sh").args(["-c", script, PROGRAM]).args(words);
    deleted.args(["delete"]).run().ok();
    assert_eq!(case.status("again"), "RUNNING");
    let looked = case.ctr(["task", "exec", "--exec-id", "look", "again", "true"]);
    looked.run().ok();
}
