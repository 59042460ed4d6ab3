//! Docker of Debian trixie, which starts the shim by its runtime's name, with the containerd of that release.

use std::path::PathBuf;
use std::process::Command;

use crate::checks::engine_checks;
use crate::docker::{SOCKET, start};
use crate::harness::{Case, Cmd, Engine, other_version};

engine_checks! { @tests Docker26,
    run: output_and_exit_code, terminal;
    exec: output_and_exit_code, terminal;
    lifecycle: stop, stats;
    network: published_port;
}

/// The directories with its programs, before those that are installed.
fn path() -> String {
    let dirs = [
        "docker-cli-26/usr/bin",
        "docker.io-26/usr/sbin",
        "containerd-1.7/usr/bin",
    ];
    let dirs = dirs.map(|dir| other_version(dir).display().to_string());
    let installed = std::env::var("PATH").expect("PATH");
    format!("{}:{installed}", dirs.join(":"))
}

/// The command line's program.
pub(crate) fn program() -> PathBuf {
    other_version("docker-cli-26/usr/bin/docker")
}

/// Starts the daemon, with the shim that is tested as the runtime of every container.
pub(crate) fn start_daemon() {
    let daemon = other_version("docker.io-26/usr/sbin/dockerd");
    let mut command = Command::new(daemon);
    command
        .env("PATH", path())
        .args(["--host", SOCKET, "--storage-driver", "overlay2"])
        .args(["--default-runtime", super::shim()]);
    start(command, "{}");
}

/// A container runs in a virtual machine, and by that name.
#[test]
fn the_shim_runs_it() {
    let case = Case::new(Engine::Docker26);
    case.detached("shim", &[], "exec sleep 600");
    assert_eq!(case.inspect("shim")["HostConfig"]["Runtime"], super::shim());
    // As much of its name as the kernel keeps.
    assert_eq!(super::pids_of("containerd-shim").len(), 1);
    let kernel = case.ok(["exec", "shim", "uname", "-r"]);
    assert_ne!(kernel, Cmd::new("uname").args(["-r"]).run().ok());
    let version = case.ok(["version", "--format", "{{.Server.Version}}"]);
    assert!(version.starts_with("26."), "{version}");
}
