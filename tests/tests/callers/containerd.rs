//! containerd with its own shim for runc: `ctr`. And the plugins by which it makes networks.

mod cni;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;

use crate::harness::{
    Cmd, Finished, Machine, afterwards, eventually, image_archive, mount_tmpfs, report_logs,
    runtime,
};

const IMAGE: &str = "docker.io/library/busybox:latest";

const SOCKET: &str = "/run/containerd/containerd.sock";

const LOG: &str = "/run/containerd.log";

/// One check. Dropping it removes every container and asserts that nothing is left.
struct Case {
    machine: Machine,
}

/// Starts the daemon and imports the image.
#[expect(
    clippy::zombie_processes,
    reason = "the daemon lives as long as the bed"
)]
fn start_daemon() {
    mount_tmpfs("/var/lib/containerd");
    fs::create_dir_all("/etc/containerd").expect("/etc/containerd");
    // Neither of them has anything to do here, and each takes its time to start.
    let settings = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n";
    fs::write("/etc/containerd/config.toml", settings).expect("config.toml");
    let log = fs::File::create(LOG).expect("the daemon's log");
    Command::new("containerd")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log)
        .spawn()
        .expect("containerd");
    eventually("containerd answers", || {
        Path::new(SOCKET).exists() && ctr(["version"]).run().status.success()
    });
    let archive = image_archive().to_string_lossy().into_owned();
    ctr(["image", "import", &archive]).run().ok();
    // What is made once and kept is made now; the tests tell whether it works.
    ctr([
        "run",
        "--rm",
        "--runc-binary",
        runtime(),
        IMAGE,
        "first",
        "true",
    ])
    .run();
}

fn ctr<'a>(args: impl IntoIterator<Item = &'a str>) -> Cmd {
    Cmd::new("ctr").args(args)
}

impl Case {
    fn new() -> Self {
        static DAEMON: Once = Once::new();
        Self {
            machine: Machine::alone(|| DAEMON.call_once(start_daemon)),
        }
    }

    /// `ctr run OPTIONS busybox NAME sh -c SCRIPT`
    fn run(&self, options: &[&str], name: &str, script: &str) -> Finished {
        let command = ctr(["run", "--runc-binary", runtime()])
            .args(options)
            .args([IMAGE, name, "sh", "-c", script]);
        if options.contains(&"--detach") {
            command.outlived().run()
        } else {
            command.run()
        }
    }

    fn detached(&self, name: &str, script: &str) {
        self.run(&["--detach"], name, script).ok();
    }

    /// Runs a process in a container.
    fn exec(&self, name: &str, id: &str, script: &str) -> Finished {
        ctr(["task", "exec", "--exec-id", id, name, "sh", "-c", script]).run()
    }

    /// What `ctr task list` says of it.
    fn status(&self, name: &str) -> String {
        let listed = ctr(["task", "list"]).run().ok();
        let line = listed
            .lines()
            .find(|line| line.split_whitespace().next() == Some(name));
        line.and_then(|line| line.split_whitespace().nth(2))
            .unwrap_or("gone")
            .to_owned()
    }

    fn remove_all(&self) {
        for name in ctr(["container", "list", "--quiet"]).run().out().lines() {
            ctr(["task", "delete", "--force", name]).run();
            let removed = ctr(["container", "delete", name]).run();
            if removed.status.code() != Some(0) {
                eprintln!("container delete {name}: {removed}");
            }
        }
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            afterwards(report);
        }
        afterwards(|| self.remove_all());
        if !failed {
            self.machine.assert_clean(|| ());
        }
    }
}

/// Prints what there is to know after a failure.
fn report() {
    eprintln!("=== tasks\n{}", ctr(["task", "list"]).run());
    let text = fs::read_to_string(LOG).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    let tail = lines.len().saturating_sub(40);
    eprintln!("=== {LOG}\n{}", lines[tail..].join("\n"));
    report_logs();
}

#[test]
fn run_in_the_foreground() {
    let case = Case::new();
    let finished = case.run(&["--rm"], "r", "echo out; echo err >&2; exit 7");
    assert_eq!(finished.status.code(), Some(7), "{finished}");
    assert_eq!(finished.out(), "out\n", "{finished}");
    assert!(finished.err().contains("err\n"), "{finished}");
}

#[test]
fn terminal() {
    let _case = Case::new();
    let line = format!(
        "ctr run --rm --tty --runc-binary {} {IMAGE} t sh",
        runtime()
    );
    let shown = Cmd::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .input("test -t 0 && echo sum $((40+2))\nexit 5\n")
        .run();
    assert!(shown.out().contains("sum 42"), "{shown}");
    assert_eq!(shown.status.code(), Some(5), "{shown}");
}

#[test]
fn exec_in_a_detached_container() {
    let case = Case::new();
    case.detached("e", "sleep 600");
    assert_eq!(case.status("e"), "RUNNING");
    let finished = case.exec("e", "first", "echo out; exit 6");
    assert_eq!(finished.status.code(), Some(6), "{finished}");
    assert_eq!(finished.out(), "out\n", "{finished}");
    // The same name again, and another one.
    assert_eq!(case.exec("e", "first", "echo again").ok(), "again\n");
    assert_eq!(
        case.exec("e", "second", "tr '\\0' ' ' </proc/1/cmdline")
            .ok(),
        "sleep 600 "
    );
}

#[test]
fn kill_and_delete() {
    let case = Case::new();
    case.detached(
        "k",
        "trap 'exit 3' TERM; touch /ready; while :; do sleep 0.1; done",
    );
    eventually("the trap is set", || {
        case.exec("k", "look", "test -e /ready").status.success()
    });
    ctr(["task", "kill", "--signal", "SIGTERM", "k"]).run().ok();
    eventually("stopped", || case.status("k") == "STOPPED");
    let deleted = ctr(["task", "delete", "k"]).run();
    assert!(deleted.err().contains("exit code 3"), "{deleted}");
    ctr(["container", "delete", "k"]).run().ok();
}

#[test]
fn kill_all() {
    let case = Case::new();
    case.detached("k", "sleep 600 & sleep 600");
    ctr(["task", "kill", "--all", "--signal", "SIGKILL", "k"])
        .run()
        .ok();
    eventually("stopped", || case.status("k") == "STOPPED");
}

#[test]
fn pause_and_resume() {
    let case = Case::new();
    case.detached("p", "sleep 600");
    ctr(["task", "pause", "p"]).run().ok();
    assert_eq!(case.status("p"), "PAUSED");
    ctr(["task", "resume", "p"]).run().ok();
    assert_eq!(case.status("p"), "RUNNING");
    assert_eq!(case.exec("p", "look", "echo alive").ok(), "alive\n");
}

#[test]
fn processes() {
    let case = Case::new();
    case.detached("p", "sleep 601 & sleep 602 & touch /ready; wait");
    eventually("all are started", || {
        case.exec("p", "look", "test -e /ready").status.success()
    });
    // A header, the shell, and both of its children.
    let listed = ctr(["task", "ps", "p"]).run().ok();
    assert_eq!(listed.lines().count(), 4, "{listed}");
}

#[test]
fn metrics() {
    let case = Case::new();
    case.detached("m", "sleep 600");
    let shown = ctr(["task", "metrics", "m"]).run().ok();
    let usage = shown
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == "memory.usage")
        .and_then(|(_, value)| value.trim().parse::<u64>().ok())
        .unwrap_or_else(|| panic!("no usage of memory in {shown}"));
    assert!(usage > 0, "{shown}");
}

#[test]
fn limits() {
    let case = Case::new();
    let script = "dd if=/dev/zero of=/dev/shm/fill bs=1M count=48; exit $?";
    let finished = case.run(&["--rm", "--memory-limit", "33554432"], "l", script);
    assert_eq!(finished.status.code(), Some(137), "{finished}");
}

#[test]
fn settings() {
    let case = Case::new();
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("file"), "from the host\n").expect("a file");
    let mount = format!(
        "type=bind,src={},dst=/data,options=rbind:ro",
        dir.path().display()
    );
    let options = [
        "--rm",
        "--read-only",
        "--env",
        "A=b",
        "--cwd",
        "/home/guest",
        "--mount",
        &mount,
    ];
    let script = "echo $A; pwd; cat /data/file; touch /data/x || touch /x || echo read-only";
    let finished = case.run(&options, "s", script);
    assert_eq!(
        finished.out(),
        "b\n/home/guest\nfrom the host\nread-only\n",
        "{finished}"
    );
}
