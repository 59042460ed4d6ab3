//! containerd itself, in each of the versions: one at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::harness::{Cmd, eventually, image_archive, mount_tmpfs, other_version};

use super::{IMAGE, kill, shim};

const SOCKET: &str = "/run/containerd/containerd.sock";
const SETTINGS: &str = "/etc/containerd/shim-tests.toml";
const LOG: &str = "/run/containerd.log";

/// A version of containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1_6,
    V1_7,
    V2,
}

struct Daemon {
    version: Version,
    root: String,
    process: Child,
}

/// The one that runs.
static DAEMON: Mutex<Option<Daemon>> = Mutex::new(None);

fn daemon() -> MutexGuard<'static, Option<Daemon>> {
    DAEMON.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Version {
    fn line(self) -> &'static str {
        match self {
            Self::V1_6 => "1.6",
            Self::V1_7 => "1.7",
            Self::V2 => "2",
        }
    }

    /// One of its programs: installed is the one of the bed's own Debian.
    pub(super) fn program(self, name: &str) -> PathBuf {
        if self == Self::V1_6 {
            return Path::new("/usr/bin").join(name);
        }
        other_version(&format!("containerd-{}/usr/bin/{name}", self.line()))
    }

    /// Where it keeps images and containers. An older version would not read a newer one's.
    pub(super) fn root(self) -> String {
        format!("/var/lib/containerd-{}", self.line())
    }
}

/// Has a version run on what is below `root`, with the image, and no other.
pub(super) fn ensure(version: Version, root: &str) {
    let mut running = daemon();
    if let Some(daemon) = &mut *running {
        let is_alive = daemon.process.try_wait().expect("our own child").is_none();
        if is_alive && daemon.version == version && daemon.root == root {
            return;
        }
    }
    drop(running);
    stop();
    let is_new = !Path::new(root).exists();
    if is_new {
        mount_tmpfs(root);
    }
    start(version, root);
    if is_new {
        let ctr = version.program("ctr");
        let archive = image_archive().to_string_lossy().into_owned();
        Cmd::new(&ctr)
            .args(["image", "import", &archive])
            .run()
            .ok();
        // What is made once and kept is made now; the checks tell whether it works.
        let words = ["run", "--rm", "--runtime", shim(), IMAGE, "first", "true"];
        let first = Cmd::new(&ctr).args(words).run();
        if first.status.code() != Some(0) {
            eprintln!("the first container: {first}");
        }
    }
}

/// Starts a version and waits until it answers.
pub(super) fn start(version: Version, root: &str) {
    let mut running = daemon();
    assert!(running.is_none(), "containerd runs");
    fs::create_dir_all("/etc/containerd").expect("/etc/containerd");
    // These have nothing to do here, and each takes its time to start.
    let settings = format!(
        "version = 2\nroot = \"{root}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
         \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\", \
         \"io.containerd.internal.v1.opt\", \"io.containerd.nri.v1.nri\"]\n"
    );
    fs::write(SETTINGS, settings).expect("the settings");
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(LOG)
        .expect("the daemon's log");
    let process = Command::new(version.program("containerd"))
        .args(["--config", SETTINGS])
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log)
        .spawn()
        .expect("containerd");
    *running = Some(Daemon {
        version,
        root: root.to_owned(),
        process,
    });
    eventually("containerd answers", || {
        Path::new(SOCKET).exists()
            && Cmd::new(version.program("ctr"))
                .args(["version"])
                .run()
                .status
                .success()
    });
}

/// Ends the one that runs, if one does, as if it had crashed.
pub(super) fn stop() {
    if let Some(mut daemon) = daemon().take() {
        if daemon.process.try_wait().expect("our own child").is_none() {
            kill(i32::try_from(daemon.process.id()).expect("a pid"));
        }
        daemon.process.wait().expect("our own child");
    }
}

/// Ends the one that runs as a service manager does.
pub(super) fn terminate() {
    if let Some(mut daemon) = daemon().take() {
        let pid = rustix::process::Pid::from_child(&daemon.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("our own child");
        eventually("containerd has ended", || {
            daemon.process.try_wait().expect("our own child").is_some()
        });
    }
}

/// What it has logged, and the shims with it.
pub(super) fn log() -> String {
    fs::read_to_string(LOG).unwrap_or_default()
}

/// Prints the end of that.
pub(super) fn report_log() {
    let text = log();
    let lines: Vec<_> = text.lines().collect();
    let tail = lines.len().saturating_sub(60);
    eprintln!("=== {LOG}\n{}", lines[tail..].join("\n"));
}
