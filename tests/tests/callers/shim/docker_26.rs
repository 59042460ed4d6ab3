//! Docker of Debian trixie, which starts the shim by its runtime's name, with the containerd of that release.
//! (The module is not named `docker`: names are chosen by what they contain.)

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::checks::engine_checks;
use crate::docker::{LOG, SETTINGS, SOCKET, start};
use crate::harness::{Case, Cmd, Engine, Page, eventually, other_version};

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

/// Has the daemon read its settings, as `systemctl reload docker` does.
fn reload(settings: &str) {
    fs::write(SETTINGS, settings).expect("daemon.json");
    let logged = || fs::read_to_string(LOG).expect("the daemon's log");
    let begin = logged().len();
    let pid = fs::read_to_string("/run/docker.pid").expect("the daemon's pid");
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().expect("a pid"));
    let hangup = rustix::process::Signal::HUP;
    rustix::process::kill_process(pid.expect("a pid"), hangup).expect("a signal");
    eventually("the daemon has read its settings", || {
        let log = logged().split_off(begin);
        assert!(!log.contains("level=error"), "{log}");
        log.contains("Reloaded configuration")
    });
}

/// Runs a command as it is printed.
fn follow(line: &str) -> String {
    let shell = Cmd::new("sh").args(["-c", line]);
    shell
        .env("PATH", path())
        .env("DOCKER_HOST", SOCKET)
        .run()
        .ok()
}

/// A container of no other runtime is there.
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

#[test]
fn page() {
    // What runc's shim makes once, and keeps: the page's first runtime is started by it.
    fs::create_dir_all("/run/docker/runtime-runc/moby").expect("runc's state directory");
    let case = Case::new(Engine::Docker26);
    let mut page = Page::open("docker.md");
    let here = Cmd::new("uname").args(["-r"]).run().ok();
    page.assert_says("in `/etc/docker/daemon.json`, then `systemctl reload docker`");
    reload(&page.take("json"));
    assert_ne!(follow(&page.take("")), here);
    // The configuration is nothing to this one.
    assert_ne!(follow(&page.take("")), here);
    let named = page.take("json");
    fs::create_dir_all("/etc/cloister").expect("/etc/cloister");
    let config = "/etc/cloister/docker.toml";
    assert!(named.contains(config), "{named}");
    fs::write(config, "memory_mib = 192\n").expect("the configuration");
    reload(&named);
    let words = ["--runtime", "cloister"];
    let total = case.sh_ok(&words, "awk '/^MemTotal/ { print $2 }' /proc/meminfo");
    let mib = total.trim().parse::<u32>().expect("a number") / 1024;
    assert!((130..=192).contains(&mib), "{mib} MiB");
    page.assert_says("`--network host`, is refused with the reason");
    let host = ["run", "--rm", "--runtime", "cloister", "--network=host"];
    let refused = case.command(host).args(["busybox", "true"]).run();
    assert_ne!(refused.status.code(), Some(0), "{refused}");
    assert!(refused.err().contains("network namespace"), "{refused}");
    page.assert_says("`--pid host` shows the processes of the virtual machine");
    let seen = case.sh_ok(&["--runtime", "cloister", "--pid=host"], "ps -o args");
    assert!(
        seen.contains("/init") && !seen.contains("dockerd"),
        "{seen}"
    );
    page.assert_followed();
}
