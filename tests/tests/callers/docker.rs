//! Docker: its daemon, and the checks it shares with Podman.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::checks::{engine_checks, network::await_page};
use crate::harness::{Case, Cmd, Engine, LIMIT, eventually, mount_tmpfs, runtime};

/// Where the daemon listens.
pub(crate) const SOCKET: &str = "unix:///run/docker.sock";

/// The daemon's settings.
pub(crate) const SETTINGS: &str = "/etc/docker/daemon.json";

/// What it and its own containerd have said.
pub(crate) const LOG: &str = "/run/dockerd.log";

engine_checks!(Docker);

/// Two services that ask each other for a page, by name.
const COMPOSE: &str = r#"
version: "2.4"
services:
  web:
    image: busybox
    runtime: tested
    command: sh -c "mkdir /www; echo found >/www/page; echo serving; exec httpd -f -p 80 -h /www"
    ports: ["8081:80"]
  client:
    image: busybox
    runtime: tested
    depends_on: [web]
    command: sh -c "until wget -q -O /page http://web/page; do sleep 0.3; done; httpd -p 80 -h /; cat /page; exec sleep 1000"
"#;

#[test]
fn compose() {
    let case = Case::new(Engine::Docker);
    let project = tempfile::tempdir().expect("a directory");
    let file = project.path().join("docker-compose.yml");
    fs::write(&file, COMPOSE).expect("the project");
    // A large Python program, and the containers one after another.
    let compose = |words: &str| {
        Cmd::new("docker-compose")
            .args(["--host", SOCKET, "--no-ansi", "--project-name", "pair"])
            .args(["--file".as_ref(), file.as_path()])
            .args(words.split(' '))
            .within(3 * LIMIT)
            .run()
            .ok()
    };
    compose("up --detach");
    let listed = compose("ps");
    for parts in [
        ["pair_web_1 ", " Up ", ":8081->80/tcp"],
        ["pair_client_1 ", " Up ", ""],
    ] {
        let is_it = |line: &str| parts.iter().all(|part| line.contains(part));
        assert!(listed.lines().any(is_it), "{parts:?}: {listed}");
    }
    await_page("127.0.0.1:8081");
    eventually("the client has the page", || {
        let logs = compose("logs --no-color");
        logs.lines()
            .any(|line| line.starts_with("client_1") && line.ends_with("| found"))
    });
    let logs = compose("logs --no-color web");
    assert!(logs.contains("| serving\n"), "{logs}");
    let fetched = compose("exec -T web wget -q -O - http://client/page");
    assert_eq!(fetched, "found\n");
    compose("down --timeout 0");
    assert_eq!(case.ok(["ps", "--all", "--quiet"]), "");
    let networks = case.ok(["network", "ls", "--format", "{{.Name}}"]);
    assert!(!networks.contains("pair"), "{networks}");
}

/// Docker's own name server is at a loopback address of the namespace, and takes questions over TCP, too.
#[test]
fn a_name_over_tcp() {
    // Of 21 bytes, for an address of `web` (RFC 1035).
    const QUESTION: &str =
        r"\000\025\000\001\001\000\000\001\000\000\000\000\000\000\003web\000\000\001\000\001";
    let case = Case::new(Engine::Docker);
    case.ok(["network", "create", "own"]);
    let started = case
        .command(["run", "--detach", "--name", "web", "--network", "own"])
        .args(["busybox", "sleep", "1000"])
        .outlived()
        .run();
    started.ok();
    let networks = case.inspect("web")["NetworkSettings"]["Networks"].clone();
    let address: Ipv4Addr = networks["own"]["IPAddress"]
        .as_str()
        .and_then(|address| address.parse().ok())
        .expect("an address");
    let ask = format!(
        r#"printf '{QUESTION}' | timeout 100 nc 127.0.0.11 53 | hexdump -v -e '1/1 "%02x"'"#
    );
    let answer = case.ok(["exec", "web", "sh", "-c", &ask]);
    // The address is the end of the only record.
    let end = format!("0004{:08x}", address.to_bits());
    assert!(answer.ends_with(&end), "{address}: {answer}");
    case.ok(["rm", "--force", "web"]);
    case.ok(["network", "rm", "own"]);
}

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
