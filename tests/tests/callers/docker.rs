//! Docker: its daemon, and the checks it shares with Podman.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::checks::engine_checks;
use crate::harness::{Cmd, eventually, mount_tmpfs, runtime};

/// Where the daemon listens.
pub(crate) const SOCKET: &str = "unix:///run/docker.sock";

/// The daemon's settings.
pub(crate) const SETTINGS: &str = "/etc/docker/daemon.json";

/// What it and its own containerd have said.
pub(crate) const LOG: &str = "/run/dockerd.log";

engine_checks!(Docker);

/// Starts the daemon, with the runtime under test as the default one.
pub(crate) fn start_daemon() {
    let settings = serde_json::json!({
        "runtimes": {"tested": {"path": runtime()}},
        "default-runtime": "tested",
        "storage-driver": "overlay2",
        "hosts": [SOCKET],
    });
    start(Command::new("dockerd"), &settings.to_string());
}

/// Starts a daemon with these settings and waits until it answers.
#[expect(
    clippy::zombie_processes,
    reason = "the daemon lives as long as the bed"
)]
pub(crate) fn start(mut daemon: Command, settings: &str) {
    mount_tmpfs("/var/lib/docker");
    fs::create_dir_all("/etc/docker").expect("/etc/docker");
    fs::write(SETTINGS, settings).expect("daemon.json");
    let log = fs::File::create(LOG).expect("the daemon's log");
    daemon
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a descriptor"))
        .stderr(log)
        .spawn()
        .expect("dockerd");
    eventually("dockerd answers", || {
        Path::new("/run/docker.sock").exists()
            && Cmd::new("docker")
                .args(["--host", SOCKET, "info"])
                .run()
                .status
                .success()
    });
}

/// Prints the end of the daemon's log.
pub(crate) fn report_log() {
    let text = fs::read_to_string(LOG).unwrap_or_default();
    let tail: Vec<_> = text.lines().rev().take(40).collect();
    eprintln!("=== {LOG}");
    for line in tail.iter().rev() {
        eprintln!("{line}");
    }
}
