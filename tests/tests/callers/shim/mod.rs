//! `containerd-shim-cloister-v2` under containerd: `ctr`, and a peer that speaks the shim's protocol itself.
//!
//! Each check is a function of a version of containerd. All of them are run with the newest; those in which versions
//! differ, by what they say to a shim or expect of it, with the others too. With `CLOISTER_TEST_RUNTIME=runc` runc's
//! own shim is tested, which tells a fault of the shim from one of a check.

mod bench;
mod cgroup_v1;
mod control;
mod crio;
mod daemon;
pub(crate) mod docker_26;
mod ends;
mod events;
mod exec;
mod failures;
mod group;
mod idle;
mod options;
mod page;
mod peer;
mod program;
mod restart;
mod rootfs;
mod run;
mod sandbox;
mod service;
mod start;
mod streams;

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{Cmd, Finished, Machine, afterwards, eventually, report_logs, runtime};

use self::daemon::Version;

const IMAGE: &str = "docker.io/library/busybox:latest";
/// The shim's program.
const PROGRAM: &str = "/usr/local/bin/containerd-shim-cloister-v2";
/// Where containerd has the bundles of the namespace that `ctr` uses.
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/default";

/// The name of the runtime that is tested, as containerd is told it.
fn shim() -> &'static str {
    match runtime().ends_with("/cloister") {
        true => "io.containerd.cloister.v2",
        false => "io.containerd.runc.v2",
    }
}

/// Makes a test of each check, for one version of containerd.
macro_rules! tests {
    ($module:ident, $version:ident, $($theme:ident: $($check:ident),+;)+) => {
        mod $module {
            $(mod $theme {
                $(#[test]
                fn $check() {
                    crate::shim::$theme::$check(crate::shim::daemon::Version::$version);
                })+
            })+
        }
    };
}

tests!(containerd_1_6, V1_6,
    run: foreground, terminal;
    exec: several_at_once;
    control: pause_and_resume, metrics;
    group: one_shim;
    events: in_order;
    streams: a_logging_program;
    options: a_wrong_configuration;
    restart: a_container_outlives_containerd;
    failures: shim_killed;
);
tests!(containerd_1_7, V1_7,
    run: foreground, terminal;
    exec: several_at_once;
    control: metrics;
    events: in_order;
    streams: a_logging_program;
    options: a_wrong_configuration;
    restart: a_container_outlives_containerd;
    failures: shim_killed;
);
tests!(containerd_2, V2,
    run: foreground, the_same_name_at_once, exit_codes, input_to_its_end, terminal, terminal_resized;
    exec: codes_and_streams, several_at_once, terminal, killed, attach;
    control: kill, kill_all, pause_and_resume, processes, metrics, delete, checkpoint, described;
    group: one_shim;
    events: in_order, oom;
    streams: a_file, a_logging_program, a_logging_program_that_is_not_there, large_output;
    options: a_configuration, a_wrong_configuration, an_id_twice, a_missing_program;
    restart: a_container_outlives_containerd, an_end_while_containerd_is_away;
    failures: shim_killed, virtual_machine_killed, monitor_killed, late_delete;
    ends: oom_of_the_guest, oom_of_the_machine, panic_of_the_guest, loss_of_the_agent;
    idle: memory_and_time;
    page: containerd;
);

/// One check under one version of containerd. Dropping it removes every container and asserts that nothing is left.
struct Case {
    machine: Machine,
    version: Version,
    /// Where containerd keeps what it has.
    root: String,
    /// Whether containerd was started by this check, and is ended with it.
    is_daemon_own: bool,
}

impl Case {
    fn new(version: Version) -> Self {
        let root = version.root();
        Self {
            machine: Machine::alone(|| daemon::ensure(version, &root)),
            version,
            root,
            is_daemon_own: false,
        }
    }

    /// The same with a containerd that may end during the check: what was there before was there without one.
    fn with_own_daemon(version: Version) -> Self {
        Self::with_daemon_on(version, version.root())
    }

    /// The same on a root of its own.
    fn with_daemon_on(version: Version, root: String) -> Self {
        let machine = Machine::alone(|| {
            daemon::ensure(version, &root);
            daemon::stop();
        });
        let this = Self {
            machine,
            version,
            root,
            is_daemon_own: true,
        };
        this.start_daemon();
        this
    }

    fn start_daemon(&self) {
        daemon::start(self.version, &self.root);
    }

    fn ctr<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        Cmd::new(self.version.program("ctr")).args(args)
    }

    /// `ctr run OPTIONS busybox NAME sh -c SCRIPT`
    fn command(&self, options: &[&str], name: &str, script: &str) -> Cmd {
        self.ctr(["run", "--runtime", shim()])
            .args(options)
            .args([IMAGE, name, "sh", "-c", script])
    }

    /// The same, to its end, and removed after it.
    fn run(&self, options: &[&str], name: &str, script: &str) -> Finished {
        let options = [&["--rm"], options].concat();
        self.command(&options, name, script).run()
    }

    fn detached(&self, options: &[&str], name: &str, script: &str) {
        let options = [&["--detach"], options].concat();
        let command = self.command(&options, name, script);
        command.outlived().run().ok();
    }

    /// Runs a process in a container.
    fn exec(&self, name: &str, id: &str, script: &str) -> Cmd {
        self.ctr(["task", "exec", "--exec-id", id, name, "sh", "-c", script])
    }

    /// Runs `ctr` with these words on a terminal, which gets `input`. `before` is a line for the shell on it.
    fn on_terminal(&self, before: &str, words: &str, input: &str) -> Finished {
        let line = format!(
            "{before} exec {} {words}",
            self.version.program("ctr").display()
        );
        Cmd::new("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .input(input)
            .run()
    }

    /// What `ctr task list` says of a container: its pid and its status.
    fn listed(&self, name: &str) -> Option<(i32, String)> {
        let listed = self.ctr(["task", "list"]).run().ok();
        let mut lines = listed.lines().map(|line| line.split_whitespace());
        let mut line = lines.find(|line| line.clone().next() == Some(name))?;
        let pid = line.nth(1)?.parse().ok()?;
        Some((pid, line.next()?.to_owned()))
    }

    fn status(&self, name: &str) -> String {
        self.listed(name)
            .map_or_else(|| "gone".into(), |(_, status)| status)
    }

    fn await_status(&self, name: &str, status: &str) {
        eventually(&format!("{name} is {status}"), || {
            self.status(name) == status
        });
    }

    /// Waits until a container has made a file: it tells how far its script is.
    fn await_file(&self, name: &str, file: &str) {
        eventually(&format!("{name} has made {file}"), || {
            let look = self.exec(name, "look", &format!("test -e {file}"));
            look.run().status.success()
        });
    }

    /// The pid of a container's shim.
    fn shim_pid(&self, name: &str) -> i32 {
        let file = bundle(name).join("shim.pid");
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        text.trim().parse().expect("a pid")
    }

    fn remove_all(&self) {
        for name in self
            .ctr(["container", "list", "--quiet"])
            .run()
            .out()
            .lines()
        {
            self.ctr(["task", "delete", "--force", name]).run();
            let removed = self.ctr(["container", "delete", name]).run();
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
            afterwards(|| {
                eprintln!("=== tasks\n{}", self.ctr(["task", "list"]).run());
                daemon::report_log();
                report_logs();
            });
        }
        afterwards(|| {
            // A check may have failed while there was none.
            daemon::ensure(self.version, &self.root);
            self.remove_all();
        });
        if self.is_daemon_own {
            afterwards(daemon::stop);
        }
        if !failed {
            self.machine.assert_clean(|| {
                if self.is_daemon_own {
                    // What containerd 2 makes once and keeps: older ones have not made it.
                    fs::remove_dir("/run/containerd/io.containerd.sandbox.controller.v1.shim").ok();
                }
            });
        }
    }
}

/// The bundle of a container.
fn bundle(name: &str) -> PathBuf {
    Path::new(BUNDLES).join(name)
}

/// What the log says after its first `begin` bytes.
fn logged_since(begin: usize) -> String {
    daemon::log().get(begin..).unwrap_or_default().to_owned()
}

/// The pids of the processes that have this name: each check has the machine to itself.
fn pids_of(comm: &str) -> Vec<i32> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let named = processes.filter(|entry| {
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        name.trim() == comm
    });
    named
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Ends a process with SIGKILL.
fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a signal");
}
