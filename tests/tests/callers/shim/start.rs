//! `start`, and the shim itself, as a caller runs them who says more than containerd does: where to listen, and that the
//! pod shares no core.

use std::fs;
use std::path::{Path, PathBuf};

use containerd_shim_protos::{Client, TaskClient, api};

use crate::harness::{Cmd, Finished, Machine, eventually};

use super::peer::{ID, NAMESPACE, alone, await_end, limit, socket, write_bundle};
use super::{PROGRAM, kill};

/// A bundle in which shims are started that never have a task. Dropping it asserts that nothing is left.
struct Bundle {
    machine: Machine,
    dir: tempfile::TempDir,
}

impl Bundle {
    fn new() -> Self {
        let machine = alone();
        let dir = tempfile::tempdir().expect("a directory");
        write_bundle(dir.path(), "true", |_| ());
        Self { machine, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A program in the bundle: the shim's, or one that runs it.
    fn run<'a>(&self, program: &str, words: impl IntoIterator<Item = &'a str>) -> Cmd {
        Cmd::new(program)
            .args(words)
            .args(["-namespace", NAMESPACE, "-id", ID, "-address", ""])
            .env("TTRPC_ADDRESS", "")
            .dir(self.dir.path())
    }

    fn shim_pid(&self) -> i32 {
        let pid = fs::read_to_string(self.path("shim.pid")).expect("the shim's pid");
        pid.trim().parse().expect("a pid")
    }

    /// Asserts that a shim listens there, and has it end.
    fn end(&self, address: &str, pid: i32) {
        shut_down(address, pid);
        await_end(pid);
        assert!(!socket(address).exists(), "{address} is left");
    }
}

/// Asserts that a shim listens there, and asks it to end.
fn shut_down(address: &str, pid: i32) {
    let client = Client::connect(address).expect("the shim's socket");
    let tasks = TaskClient::new(client);
    let connected = tasks.connect(limit(), &api::ConnectRequest::default());
    let connected = connected.expect("an answer");
    assert_eq!(i32::try_from(connected.shim_pid), Ok(pid));
    let shutdown = api::ShutdownRequest::default();
    tasks.shutdown(limit(), &shutdown).expect("an end");
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("log"));
            eprintln!("=== the shim's log\n{}", log.unwrap_or_default());
            let pid = fs::read_to_string(self.path("shim.pid")).unwrap_or_default();
            if let Ok(pid) = pid.trim().parse::<i32>()
                && Path::new("/proc").join(pid.to_string()).exists()
            {
                kill(pid);
            }
            return;
        }
        fs::remove_dir_all(self.dir.path()).expect("the bundle");
        self.machine.assert_clean(|| ());
    }
}

#[test]
fn at_a_socket_of_the_callers() {
    let bundle = Bundle::new();
    let place = bundle.path("sockets/own");
    let place = place.display().to_string();
    let start = || {
        let words = ["-debug", "-publish-binary", "/bin/false", "-socket", &place];
        bundle.run(PROGRAM, words).args(["start"])
    };
    let address = start().run().ok();
    assert_eq!(address, format!("unix://{place}"));
    // What the shim itself has been told.
    let words = fs::read(format!("/proc/{}/cmdline", bundle.shim_pid())).expect("the shim");
    assert!(words.split(|byte| *byte == 0).any(|word| word == b"-debug"));
    assert_eq!(start().run().ok(), address, "there is another shim");
    bundle.end(&address, bundle.shim_pid());
}

/// Without an action the shim serves, in the foreground.
#[test]
fn in_the_foreground() {
    let bundle = Bundle::new();
    let place = bundle.path("own");
    let address = format!("unix://{}", place.display());
    // Its name begins in the directory that the shim is started in.
    let shim = bundle.run(PROGRAM, ["-socket", "own"]).spawn();
    eventually("the shim listens", || Client::connect(&address).is_ok());
    let second: Finished = bundle.run(PROGRAM, ["-socket", "own"]).run();
    assert_eq!(second.status.code(), Some(1), "{second}");
    assert!(second.err().contains("a shim listens at"), "{second}");
    shut_down(&address, shim.pid());
    shim.wait().ok();
    assert!(!place.exists(), "the socket is left");
}

/// Debian's kernels have no core scheduling: strace(1) says in their place what comes of the call.
#[test]
fn on_cores_of_its_own() {
    let bundle = Bundle::new();
    let trace = bundle.path("trace");
    let start = |asked: &str, outcome: &str| {
        let inject = format!("inject=prctl:{outcome}");
        let trace = trace.display().to_string();
        let words = ["-o", &trace, "-e", "trace=prctl", "-e", &inject, PROGRAM];
        bundle
            .run("strace", words)
            .args(["start"])
            .env("SCHED_CORE", asked)
            .run()
    };
    let asked = || {
        let text = fs::read_to_string(&trace).expect("the trace");
        let calls = text
            .lines()
            .filter(|line| line.contains("PR_SCHED_CORE_CREATE"));
        calls.map(str::to_owned).collect::<Vec<_>>()
    };
    let refused = start("1", "error=ENODEV");
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    for word in ["SCHED_CORE is set", "PR_SCHED_CORE", "No such device"] {
        assert!(refused.err().contains(word), "{refused}");
    }
    assert!(!bundle.path("shim.pid").exists(), "there is a shim");
    // All threads of this process: what it starts inherits it.
    let address = start("1", "retval=0").ok();
    let [call] = &asked()[..] else {
        panic!("one call was expected: {:?}", asked());
    };
    assert!(
        call.contains("PIDTYPE_TGID") || call.contains(", 0x1"),
        "{call}"
    );
    // One that is there is as it is.
    assert_eq!(start("1", "error=EINVAL").ok(), address);
    assert_eq!(asked(), [""; 0]);
    bundle.end(&address, bundle.shim_pid());
    // Nobody asks.
    let address = start("", "error=EINVAL").ok();
    assert_eq!(asked(), [""; 0]);
    bundle.end(&address, bundle.shim_pid());
}
