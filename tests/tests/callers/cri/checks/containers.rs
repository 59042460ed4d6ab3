//! Containers of one pod: what they share, and how they come and go.

use std::fs;

use protobuf::MessageField;

use super::network::SERVER;
use crate::cri::messages as cri;
use crate::cri::pod::Case;

/// What the names of a container's namespaces point to.
const NAMESPACES: &str = "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done";

fn pid_mode(config: &mut cri::ContainerConfig, mode: cri::NamespaceMode, target: &str) {
    let linux = config.linux.mut_or_insert_default();
    let security = linux.security_context.mut_or_insert_default();
    security.namespace_options = MessageField::some(cri::NamespaceOption {
        pid: mode.into(),
        target_id: target.to_owned(),
        ..cri::NamespaceOption::default()
    });
}

/// Adds a directory or a file of the machine.
fn mount(config: &mut cri::ContainerConfig, host: &std::path::Path, place: &str, readonly: bool) {
    config.mounts.push(cri::Mount {
        container_path: place.to_owned(),
        host_path: host.display().to_string(),
        readonly,
        ..cri::Mount::default()
    });
}

pub(crate) fn shared_namespaces(case: &Case) {
    let pod = case.pod("shared");
    let web = pod.start("web", SERVER);
    let other = pod.start("other", "exec sleep 1000");
    let page = "until wget -q -O - http://127.0.0.1/page; do sleep 0.1; done";
    assert_eq!(other.sh(page), "found\n");
    let of_web = web.sh(NAMESPACES);
    let of_other = other.sh(NAMESPACES);
    let is_same: Vec<_> = of_web
        .lines()
        .zip(of_other.lines())
        .map(|(one, two)| one == two)
        .collect();
    assert_eq!(
        is_same,
        [true, true, true, false, false],
        "{of_web}{of_other}"
    );
    // Each has files and processes of its own, and memory that is shared by name.
    web.sh("echo shared >/dev/shm/name");
    assert_eq!(other.sh("test ! -e /www; cat /dev/shm/name"), "shared\n");
    assert_eq!(other.sh("tr '\\0' ' ' </proc/1/cmdline"), "sleep 1000 ");
    assert_eq!(web.boot_id(), other.boot_id());
    // As `kubectl debug --target` adds one.
    let debug = pod.start_with("debug", "exec sleep 1001", |config| {
        pid_mode(config, cri::NamespaceMode::TARGET, &web.id);
    });
    let first = debug.sh("tr '\\0' ' ' </proc/1/cmdline");
    assert!(first.starts_with("httpd "), "{first}");
}

pub(crate) fn one_process_namespace(case: &Case) {
    let pod = case.pod_with("processes", |config| {
        let linux = config.linux.mut_or_insert_default();
        let security = linux.security_context.mut_or_insert_default();
        security.namespace_options = MessageField::some(cri::NamespaceOption::default());
    });
    let member = |name: &str, script: &str| {
        pod.start_with(name, script, |config| {
            pid_mode(config, cri::NamespaceMode::POD, "");
        })
    };
    let victim = member("victim", "exec sleep 1001");
    let other = member("other", "exec sleep 1002");
    let shown = other.sh("ps -o pid,args");
    for process in ["pause", "sleep 1001", "sleep 1002"] {
        assert!(shown.contains(process), "no {process}: {shown}");
    }
    other.sh("kill -9 $(ps -o pid,args | awk '/[s]leep 1001/ { print $1 }')");
    assert_eq!(victim.wait(), 137);
    assert_eq!(other.sh("echo still"), "still\n");
}

pub(crate) fn init_and_restart(case: &Case) {
    let dir = tempfile::tempdir().expect("a directory");
    let pod = case.pod("init");
    let start = |name: &str, attempt: u32, script: &str| {
        pod.start_with(name, script, |config| {
            mount(config, dir.path(), "/work", false);
            config.metadata.mut_or_insert_default().attempt = attempt;
            config.log_path = format!("{name}-{attempt}.log");
        })
    };
    let init = start("init", 0, "echo prepared >/work/file");
    assert_eq!(init.wait(), 0);
    let main = start(
        "main",
        0,
        "cat /work/file; cat /proc/sys/kernel/random/boot_id; exit 3",
    );
    assert_eq!(main.wait(), 3);
    main.await_log(" prepared\n");
    assert_eq!(main.status().reason, "Error");
    // The kubelet removes what has ended when the next one runs.
    let again = start("main", 1, "exec sleep 1000");
    main.remove();
    let boot = again.boot_id();
    main_ran_in(&boot, &main.log_text());
    assert_eq!(again.sh("cat /work/file"), "prepared\n");
}

fn main_ran_in(boot: &str, log: &str) {
    assert!(log.contains(boot.trim()), "{boot} is not in {log}");
}

pub(crate) fn termination(case: &Case) {
    let pod = case.pod("ends");
    let polite = pod.start(
        "polite",
        "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.1; done",
    );
    let stubborn = pod.start(
        "stubborn",
        "trap '' TERM; echo ready; while :; do sleep 0.1; done",
    );
    polite.await_log("ready");
    stubborn.await_log("ready");
    polite.stop(100);
    assert_eq!(polite.status().exit_code, 7);
    polite.await_log("bye");
    stubborn.stop(1);
    assert_eq!(stubborn.status().exit_code, 137);
    polite.remove();
    stubborn.remove();
    // The pod is there without them.
    assert_eq!(
        pod.status().state,
        cri::PodSandboxState::SANDBOX_READY.into()
    );
    pod.stop();
    assert_eq!(
        pod.status().state,
        cri::PodSandboxState::SANDBOX_NOTREADY.into()
    );
    pod.remove();
}

pub(crate) fn volumes(case: &Case) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), "a setting\n").expect("a file");
    fs::write(dir.path().join("from-host"), "host\n").expect("a file");
    let pod = case.pod("volumes");
    let one = pod.start_with("one", "exec sleep 1000", |config| {
        mount(config, dir.path(), "/data", false);
        mount(config, file.path(), "/etc/setting", true);
    });
    let two = pod.start_with("two", "exec sleep 1000", |config| {
        mount(config, dir.path(), "/other", false);
        mount(config, dir.path(), "/fixed", true);
    });
    assert_eq!(
        one.sh("cat /data/from-host /etc/setting"),
        "host\na setting\n"
    );
    one.sh("echo container >/data/from-one");
    let written = fs::read_to_string(dir.path().join("from-one"));
    assert_eq!(written.expect("what the container wrote"), "container\n");
    assert_eq!(
        two.sh("cat /other/from-one /fixed/from-one"),
        "container\ncontainer\n"
    );
    two.sh("echo more >>/other/from-one; ! touch /fixed/x");
    assert_eq!(
        one.sh("cat /data/from-one; ! touch /etc/setting"),
        "container\nmore\n"
    );
    fs::write(dir.path().join("later"), "later\n").expect("a file");
    assert_eq!(one.sh("cat /data/later"), "later\n");
}

pub(crate) fn out_of_memory(case: &Case) {
    let pod = case.pod("hungry");
    let script = "exec dd if=/dev/zero of=/dev/null bs=48M count=1";
    let hungry = pod.start_with("hungry", script, |config| {
        let linux = config.linux.mut_or_insert_default();
        linux
            .resources
            .mut_or_insert_default()
            .memory_limit_in_bytes = 32 << 20;
    });
    assert_eq!(hungry.wait(), 137);
    assert_eq!(hungry.status().reason, "OOMKilled");
    // The others go on.
    assert_eq!(pod.start("other", "exec sleep 1000").sh("echo on"), "on\n");
}
