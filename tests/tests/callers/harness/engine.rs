//! Podman and Docker, which have the same command line.

use std::sync::Once;
use std::time::Instant;

use serde_json::Value;

use super::{Cmd, Finished, LIMIT, Machine, PAUSE, busybox_tar, eventually};
use super::{afterwards, mount_tmpfs, report_logs, runtime};
use crate::docker;
use crate::shim::docker_26 as by_shim;

/// Name of the image that tests run.
const IMAGE: &str = "busybox";

/// A program that manages containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Podman,
    Docker,
    /// Docker of Debian trixie, whose containers the shim runs.
    Docker26,
}

/// One check with an engine. Dropping it removes every container and asserts that nothing is left; after a failure
/// it prints what there is to know.
pub(crate) struct Case {
    pub(crate) engine: Engine,
    machine: Machine,
}

impl Engine {
    /// Its command, ready for a subcommand.
    fn command(self) -> Cmd {
        match self {
            Self::Podman => Cmd::new("podman").args([
                "--runtime",
                runtime(),
                "--cgroup-manager",
                "cgroupfs",
                "--events-backend",
                "file",
                "--storage-driver",
                "overlay",
            ]),
            Self::Docker => Cmd::new("docker").args(["--host", docker::SOCKET]),
            Self::Docker26 => Cmd::new(by_shim::program()).args(["--host", docker::SOCKET]),
        }
    }

    /// The command as a line for a shell.
    fn shell_words(self) -> String {
        match self {
            Self::Podman => format!(
                "podman --runtime {} --cgroup-manager cgroupfs --events-backend file --storage-driver overlay",
                runtime()
            ),
            Self::Docker => format!("docker --host {}", docker::SOCKET),
            Self::Docker26 => {
                format!("{} --host {}", by_shim::program().display(), docker::SOCKET)
            }
        }
    }

    /// Starts what must run, imports the image and runs one container, so that what an engine makes once and keeps
    /// is there before anything is compared.
    fn prepare(self) {
        static PODMAN: Once = Once::new();
        static DOCKER: Once = Once::new();
        static DOCKER_26: Once = Once::new();
        match self {
            Self::Podman => PODMAN.call_once(|| {
                mount_tmpfs("/var/lib/containers");
                self.import();
            }),
            Self::Docker => DOCKER.call_once(|| {
                docker::start_daemon();
                self.import();
            }),
            Self::Docker26 => DOCKER_26.call_once(|| {
                by_shim::start_daemon();
                self.import();
            }),
        }
    }

    fn import(self) {
        let tar = busybox_tar().to_string_lossy().into_owned();
        self.command().args(["import", &tar, IMAGE]).run().ok();
        // Its result does not matter here: the tests tell.
        let first = self
            .command()
            .args(["run", "--rm", "--network", "none", IMAGE, "true"])
            .run();
        if first.status.code() != Some(0) {
            eprintln!("the first container: {first}");
        }
        // What an engine makes for its networks once.
        let first = self.command().args(["run", "--rm", IMAGE, "true"]).run();
        if first.status.code() != Some(0) {
            eprintln!("the first container with a network: {first}");
        }
    }
}

impl Case {
    pub(crate) fn new(engine: Engine) -> Self {
        Self {
            engine,
            machine: Machine::alone(|| engine.prepare()),
        }
    }

    /// A command of the engine.
    pub(crate) fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Cmd {
        self.engine.command().args(args)
    }

    /// Runs a command of the engine and gives what it printed; it must succeed.
    pub(crate) fn ok<'a>(&self, args: impl IntoIterator<Item = &'a str> + Clone) -> String {
        let finished = self.command(args.clone()).run();
        let words: Vec<_> = args.into_iter().collect();
        assert_eq!(finished.status.code(), Some(0), "{words:?}: {finished}");
        finished.out()
    }

    /// `run --rm --network none OPTIONS busybox sh -c SCRIPT`, to its end.
    pub(crate) fn sh(&self, options: &[&str], script: &str) -> Finished {
        self.command(["run", "--rm", "--network", "none"])
            .args(options)
            .args([IMAGE, "sh", "-c", script])
            .run()
    }

    /// The same, which must succeed; gives what it printed.
    pub(crate) fn sh_ok(&self, options: &[&str], script: &str) -> String {
        let finished = self.sh(options, script);
        assert_eq!(
            finished.status.code(),
            Some(0),
            "{options:?} {script:?}: {finished}"
        );
        finished.out()
    }

    /// `run --detach --name NAME --network none OPTIONS busybox sh -c SCRIPT`; gives its id.
    pub(crate) fn detached(&self, name: &str, options: &[&str], script: &str) -> String {
        let finished = self
            .command(["run", "--detach", "--name", name, "--network", "none"])
            .args(options)
            .args([IMAGE, "sh", "-c", script])
            .outlived()
            .run();
        assert_eq!(
            finished.status.code(),
            Some(0),
            "{options:?} {script:?}: {finished}"
        );
        finished.out().trim().to_owned()
    }

    /// A command of the engine on a terminal, to which `input` is typed; gives what the terminal showed.
    pub(crate) fn on_terminal(&self, words: &str, input: &str) -> Finished {
        let line = format!("{} {words}", self.engine.shell_words());
        Cmd::new("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .input(input)
            .run()
    }

    /// A command of the engine in a line of a shell.
    pub(crate) fn in_shell(&self, before: &str, words: &str) -> Finished {
        let line = format!("{before} {} {words}", self.engine.shell_words());
        Cmd::new("sh").args(["-c", &line]).run()
    }

    /// What `inspect` says of a container.
    pub(crate) fn inspect(&self, name: &str) -> Value {
        let text = self.ok(["container", "inspect", name]);
        let mut list: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        list[0].take()
    }

    /// Waits until the container's log has `text`.
    pub(crate) fn await_log(&self, name: &str, text: &str) {
        let mut last = String::new();
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            let finished = self.command(["logs", name]).run();
            last = finished.to_string();
            if finished.out().contains(text) {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        panic!("no {text:?} in the log of {name}: {last}");
    }

    /// Waits until `inspect` gives this status.
    pub(crate) fn await_status(&self, name: &str, status: &str) {
        eventually(status, || self.inspect(name)["State"]["Status"] == status);
    }

    /// The ids of all containers, from the engine's files: asking it takes seconds.
    fn containers(&self) -> Vec<String> {
        let place = match self.engine {
            Engine::Podman => "/var/lib/containers/storage/overlay-containers",
            Engine::Docker | Engine::Docker26 => "/var/lib/docker/containers",
        };
        let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    fn report(&self) {
        eprintln!("=== containers\n{}", self.command(["ps", "--all"]).run());
        for id in self.containers() {
            eprintln!("=== logs {id}\n{}", self.command(["logs", &id]).run());
        }
        if self.engine != Engine::Podman {
            docker::report_log();
        }
        report_logs();
    }

    fn remove_all(&self) {
        let ids = self.containers();
        if ids.is_empty() {
            return;
        }
        // Podman would first wait ten seconds for an end of the container's own.
        let how: &[&str] = match self.engine {
            Engine::Podman => &["rm", "--force", "--time", "0", "--depend"],
            Engine::Docker | Engine::Docker26 => &["rm", "--force"],
        };
        let removed = self.command(how.iter().copied()).args(ids).run();
        if removed.status.code() != Some(0) {
            eprintln!("{how:?}: {removed}");
        }
    }

    /// Removes what the engine makes for itself, and leaves now and then. What is still in use is busy, and stays.
    fn tidy(&self) {
        match self.engine {
            Engine::Podman => {
                Cmd::new("umount")
                    .args(["/var/lib/containers/storage/overlay"])
                    .run();
                std::fs::remove_dir("/sys/fs/cgroup/podman_probe").ok();
                // What its name server keeps when it has nobody to serve any more.
                std::fs::remove_dir_all("/run/containers/networks/aardvark-dns").ok();
                std::fs::remove_file("/run/containers/networks/aardvark.lock").ok();
            }
            // Docker itself removes these once a minute, after it has unmounted the namespaces.
            Engine::Docker | Engine::Docker26 => {
                // The name that it has for this machine's own network, once somebody has asked for that.
                Cmd::new("umount").args(["/run/docker/netns/default"]).run();
                let names = std::fs::read_dir("/run/docker/netns");
                for entry in names.into_iter().flatten().flatten() {
                    std::fs::remove_file(entry.path()).ok();
                }
            }
        }
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            afterwards(|| self.report());
        }
        afterwards(|| self.remove_all());
        if !failed {
            self.machine.assert_clean(|| self.tidy());
        }
    }
}
