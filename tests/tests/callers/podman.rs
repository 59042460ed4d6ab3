//! Podman: what it shares with Docker, and what it alone does.

mod inside;

use crate::checks::engine_checks;
use crate::harness::{Case, Engine};

engine_checks!(Podman);

#[test]
fn healthcheck() {
    let case = Case::new(Engine::Podman);
    // The interval needs systemd's timers: here each look is asked for.
    let options = [
        "--health-cmd",
        "test -e /data/healthy",
        "--health-interval",
        "disable",
        "--health-retries",
        "1",
    ];
    case.detached("h", &options, "sleep 600");
    let sick = case.command(["healthcheck", "run", "h"]).run();
    assert_eq!(sick.status.code(), Some(1), "{sick}");
    case.ok(["exec", "h", "touch", "/data/healthy"]);
    case.ok(["healthcheck", "run", "h"]);
    assert_eq!(case.inspect("h")["State"]["Health"]["Status"], "healthy");
}

#[test]
fn top_by_the_containers_own_ps() {
    let case = Case::new(Engine::Podman);
    case.detached("t", &[], "sleep 601 & echo ready; exec sleep 602");
    case.await_log("t", "ready");
    let listed = case.ok(["top", "t", "-o", "pid,args"]);
    assert!(listed.contains("sleep 601"), "{listed}");
    assert!(listed.contains("sleep 602"), "{listed}");
}

#[test]
fn preserved_descriptors() {
    let case = Case::new(Engine::Podman);
    case.detached("p", &[], "sleep 600");
    let words = "exec --preserve-fds 1 p sh -c 'cat <&3' 3<&0 </dev/null";
    let seen = case.in_shell("printf piped |", words);
    assert_eq!(seen.ok(), "piped");
}

#[test]
fn pod_without_infra() {
    let case = Case::new(Engine::Podman);
    case.ok([
        "pod",
        "create",
        "--infra=false",
        "--share",
        "none",
        "--name",
        "pod",
    ]);
    for name in ["one", "two"] {
        case.detached(name, &["--pod", "pod"], "echo up; sleep 600");
        case.await_log(name, "up");
    }
    case.ok(["pod", "stop", "--time", "0", "pod"]);
    case.ok(["pod", "rm", "pod"]);
}

#[test]
fn pod_that_shares_namespaces() {
    let case = Case::new(Engine::Podman);
    case.ok([
        "pod",
        "create",
        "--name",
        "sharing",
        "--network",
        "none",
        "--hostname",
        "shared",
        "--share",
        "ipc,net,uts",
        "--infra-image",
        "busybox",
        "--infra-command",
        "sleep 600",
    ]);
    for name in ["one", "two"] {
        let started = case
            .command([
                "run", "--detach", "--name", name, "--pod", "sharing", "busybox",
            ])
            .args(["sh", "-c", "sleep 600"])
            .outlived()
            .run();
        assert_eq!(started.status.code(), Some(0), "{started}");
        let mark = format!("/dev/shm/{name}");
        case.ok(["exec", name, "touch", &mark]);
    }
    let look = "hostname; ls /dev/shm; ls /sys/class/net";
    let seen = case.ok(["exec", "one", "sh", "-c", look]);
    assert_eq!(seen, "shared\none\ntwo\nlo\n");
    case.ok(["pod", "rm", "--force", "--time", "0", "sharing"]);
}

#[test]
fn attach_at_start() {
    let case = Case::new(Engine::Podman);
    case.ok([
        "create",
        "--name",
        "a",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        "echo attached; exit 3",
    ]);
    let finished = case.command(["start", "--attach", "a"]).run();
    assert_eq!(finished.status.code(), Some(3), "{finished}");
    assert_eq!(finished.out(), "attached\n", "{finished}");
}
