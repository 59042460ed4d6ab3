//! `ctr events`: what containerd is told of tasks, in order.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::{Cmd, Running, eventually};

use super::Case;
use super::daemon::Version;

/// Listens to events.
pub(super) struct Listener {
    process: Option<Running>,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Listener {
    /// Starts to listen; nothing that happens later is missed.
    pub(super) fn new(case: &Case) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("events");
        let line = "exec \"$0\" events >\"$1\"";
        let process = Cmd::new("sh")
            .args(["-c", line])
            .args([&case.version.program("ctr"), &file])
            .spawn();
        eventually("events are told", || {
            case.ctr(["namespace", "create", "probe"]).run().ok();
            case.ctr(["namespace", "remove", "probe"]).run().ok();
            fs::read_to_string(&file).is_ok_and(|text| text.contains("/namespaces/"))
        });
        Self {
            process: Some(process),
            file,
            _dir: dir,
        }
    }

    /// What was told of tasks so far: topics and events.
    pub(super) fn tasks(&self) -> Vec<(String, Value)> {
        let text = fs::read_to_string(&self.file).expect("the events");
        let whole = text.lines().filter_map(|line| {
            let (_, rest) = line.split_once(" /tasks/")?;
            let (topic, event) = rest.split_once(' ')?;
            Some((topic.to_owned(), serde_json::from_str(event).ok()?))
        });
        whole.collect()
    }

    /// Waits until the last of `topics` was told, and asserts that all were, in this order, and no other.
    pub(super) fn expect(&self, topics: &[&str]) -> Vec<Value> {
        let last = topics.last().expect("topics");
        eventually(&format!("{last} is told"), || {
            self.tasks().last().is_some_and(|(topic, _)| topic == last)
        });
        let (told, events): (Vec<_>, Vec<_>) = self.tasks().into_iter().unzip();
        assert_eq!(told, topics, "{events:?}");
        events
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }
}

pub(super) fn in_order(version: Version) {
    let case = Case::new(version);
    let listener = Listener::new(&case);
    case.detached(&[], "e", "sleep 600");
    let exec = case.exec("e", "x", "exit 5").run();
    assert_eq!(exec.status.code(), Some(5), "{exec}");
    case.ctr(["task", "pause", "e"]).run().ok();
    case.ctr(["task", "resume", "e"]).run().ok();
    let pid = case.listed("e").expect("a task").0;
    case.ctr(["task", "kill", "--signal", "SIGKILL", "e"])
        .run()
        .ok();
    case.await_status("e", "STOPPED");
    case.ctr(["task", "delete", "e"]).run();
    let events = listener.expect(&[
        "create",
        "start",
        "exec-added",
        "exec-started",
        "exit",
        "paused",
        "resumed",
        "exit",
        "delete",
    ]);
    for event in &events {
        assert_eq!(event["container_id"], "e", "{events:?}");
    }
    let [create, start, added, started, exec_exit, _, _, exit, delete] = &events[..] else {
        unreachable!("their number was compared");
    };
    assert_eq!(create["pid"], pid, "{create}");
    assert!(create["bundle"].is_string(), "{create}");
    assert!(create["io"]["stdout"].is_string(), "{create}");
    assert_eq!(start["pid"], pid, "{start}");
    for event in [added, started] {
        assert_eq!(event["exec_id"], "x", "{event}");
    }
    assert!(started["pid"].is_number(), "{started}");
    assert_eq!(
        (&exec_exit["id"], &exec_exit["exit_status"]),
        (&"x".into(), &5.into())
    );
    assert_eq!(exec_exit["pid"], started["pid"], "{exec_exit}");
    for event in [exit, delete] {
        assert_eq!(event["exit_status"], 137, "{event}");
        assert_eq!(event["pid"], pid, "{event}");
        assert!(
            event["exited_at"].is_string() || event["exited_at"].is_object(),
            "{event}"
        );
    }
}

pub(super) fn oom(version: Version) {
    let case = Case::new(version);
    let listener = Listener::new(&case);
    // One process of several is ended: the container goes on, and tells what its shell has seen.
    let fill = "dd if=/dev/zero of=/dev/shm/fill bs=1M count=48";
    let options = ["--memory-limit", "33554432"];
    let finished = case.run(&options, "some", &format!("({fill}); exit $?"));
    assert_eq!(finished.status.code(), Some(137), "{finished}");
    listener.expect(&["create", "start", "oom", "exit", "delete"]);
    // The container's only process is: the event comes before the end all the same.
    let finished = case.run(&options, "only", &format!("exec {fill}"));
    assert_eq!(finished.status.code(), Some(137), "{finished}");
    let once = ["create", "start", "oom", "exit", "delete"];
    listener.expect(&[once, once].concat());
}
