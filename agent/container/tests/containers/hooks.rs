//! Hooks that run in the container.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::support::{Bundle, Tests};

pub(crate) const TESTS: Tests = &[
    ("they_run_before_the_program", they_run_before_the_program),
    ("they_are_told_the_state", they_are_told_the_state),
    ("they_are_the_containers_user", they_are_the_containers_user),
    ("arguments_and_environment", arguments_and_environment),
    (
        "one_that_fails_ends_the_start",
        one_that_fails_ends_the_start,
    ),
    (
        "one_that_takes_too_long_is_killed",
        one_that_takes_too_long_is_killed,
    ),
    (
        "they_are_not_bound_by_the_late_filter",
        they_are_not_bound_by_the_late_filter,
    ),
    (
        "what_they_leave_behind_is_collected",
        what_they_leave_behind_is_collected,
    ),
];

fn hooked(program: &str, hooks: Value) -> Bundle {
    Bundle::script(program).set("/hooks/startContainer", hooks)
}

fn script(bundle: &Bundle, name: &str, text: &str) {
    let path = bundle.rootfs().join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

fn they_run_before_the_program() {
    let bundle = hooked(
        "cat /tmp/trace",
        json!([{"path": "/one"}, {"path": "/two", "timeout": 60}]),
    );
    script(&bundle, "one", "echo one >> /tmp/trace");
    script(&bundle, "two", "echo two >> /tmp/trace");
    let outcome = bundle.run_with(|_| {}).unwrap();
    assert_eq!(outcome.lines(), ["one", "two"]);
    assert_eq!(outcome.stderr, "");
}

fn they_are_told_the_state() {
    let bundle = hooked(
        "cat /tmp/state",
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/state"]}]),
    )
    .set("/annotations", json!({"org.example.key": "value"}));
    let outcome = bundle.run();
    let state: Value = serde_json::from_str(outcome.lines()[0]).unwrap();
    assert_eq!(
        state,
        json!({
            "ociVersion": bundle.spec["ociVersion"], "id": bundle.id, "status": "created", "pid": 1,
            "bundle": bundle.dir.path(), "annotations": {"org.example.key": "value"},
        })
    );
    // Each is told, and one that does not listen is none the worse for it.
    let bundle = hooked(
        "cat /tmp/a /tmp/b | wc -l",
        json!([
            {"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/a; echo >> /tmp/a"]},
            {"path": "/bin/true"},
            {"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/b; echo >> /tmp/b"]},
        ]),
    );
    assert_eq!(bundle.run().lines(), ["2"]);
}

fn they_are_the_containers_user() {
    let bundle = hooked("cat /tmp/who", json!([{"path": "/bin/sh", "args": ["sh", "-c", "(id -u; pwd; hostname; readlink /proc/self/ns/pid) > /tmp/who"]}]))
        .set("/process/user", json!({"uid": 1000, "gid": 1000}))
        .set("/process/cwd", json!("/tmp"))
        .set("/hostname", json!("inside"));
    std::os::unix::fs::chown(bundle.rootfs().join("tmp"), Some(1000), None).unwrap();
    let outcome = bundle.run();
    let ours = fs::read_link("/proc/self/ns/pid").unwrap();
    let lines = outcome.lines();
    assert_eq!(lines[..3], ["1000", "/tmp", "inside"]);
    assert_ne!(lines[3], ours.to_str().unwrap());
}

fn arguments_and_environment() {
    let bundle = |hook: Value| {
        let bundle = hooked("cat /tmp/seen", json!([hook]))
            .set("/process/env", json!(["PATH=/bin", "OF=container"]));
        script(&bundle, "hook", "(echo \"$*\"; env | grep ^OF) > /tmp/seen");
        bundle
    };
    let own = bundle(
        json!({"path": "/hook", "args": ["name", "a", "b"], "env": ["OF=hook", "PATH=/bin"]}),
    );
    assert_eq!(own.run().lines(), ["a b", "OF=hook"]);
    let inherited = bundle(json!({"path": "/hook"}));
    assert_eq!(inherited.run().lines(), ["", "OF=container"]);
}

fn one_that_fails_ends_the_start() {
    let bundle = hooked(
        "echo never",
        json!([{"path": "/bin/true"}, {"path": "/hook"}, {"path": "/bin/touch", "args": ["touch", "/tmp/third"]}]),
    );
    script(
        &bundle,
        "hook",
        "echo to the log; echo twice; echo no such thing >&2; exit 3",
    );
    assert_eq!(
        bundle.error(),
        "error running startContainer hook #1: exit status 3, stdout: to the log; twice, stderr: no such thing"
    );
    assert!(!bundle.rootfs().join("tmp/third").exists());
    let error = hooked("true", json!([{"path": "/nothing"}])).error();
    assert_eq!(
        error,
        "error running startContainer hook #0: cannot start /nothing: no such file or directory"
    );
    let bundle = hooked(
        "true",
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "kill -9 $$"]}]),
    );
    assert_eq!(
        bundle.error(),
        "error running startContainer hook #0: killed by signal 9, stdout: , stderr: "
    );
}

fn one_that_takes_too_long_is_killed() {
    let bundle = hooked(
        "true",
        json!([{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]),
    );
    assert_eq!(
        bundle.error(),
        "error running startContainer hook #0: /bin/sleep ran past its timeout of 1s, stdout: , stderr: "
    );
}

fn they_are_not_bound_by_the_late_filter() {
    // With noNewPrivileges the filter is the last thing before the program.
    let filter = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
    });
    let bundle = hooked(
        "mkdir /tmp/b 2>/dev/null; ls /tmp",
        json!([{"path": "/bin/mkdir", "args": ["mkdir", "/tmp/a"]}]),
    )
    .set("/linux/seccomp", filter);
    assert_eq!(bundle.run().lines(), ["a"]);
}

fn what_they_leave_behind_is_collected() {
    let bundle = hooked(
        "sleep 0.5; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null; true",
        json!([{"path": "/hook"}]),
    );
    script(&bundle, "hook", "(true) & exit 0");
    assert_eq!(bundle.run().stdout, "");
}
