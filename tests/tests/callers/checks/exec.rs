//! `exec` in a container that runs.

use crate::harness::{Case, Finished, eventually};

fn exec(case: &Case, words: &[&str]) -> Finished {
    case.command(["exec"]).args(words).run()
}

pub(crate) fn output_and_exit_code(case: &Case) {
    case.detached("box", &[], "sleep 600");
    let finished = exec(case, &["box", "sh", "-c", "echo out; echo err >&2; exit 6"]);
    assert_eq!(finished.status.code(), Some(6), "{finished}");
    assert_eq!(finished.out(), "out\n", "{finished}");
    assert_eq!(finished.err(), "err\n", "{finished}");
    // The same file system and the same processes as the container's first one.
    let finished = exec(
        case,
        &["box", "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '"],
    );
    assert!(finished.out().contains("sleep 600"), "{finished}");
}

pub(crate) fn environment_and_user(case: &Case) {
    case.detached("box", &["--env", "FIRST=1"], "sleep 600");
    let options = ["--env", "SECOND=2", "--workdir", "/data", "--user", "guest"];
    let finished = case
        .command(["exec"])
        .args(options)
        .args(["box", "sh", "-c", "echo $FIRST$SECOND; pwd; id -u; id -G"])
        .run();
    assert_eq!(finished.out(), "12\n/data\n1000\n1000 2000\n", "{finished}");
}

pub(crate) fn input(case: &Case) {
    case.detached("box", &[], "sleep 600");
    let finished = case
        .command(["exec", "-i", "box", "wc", "-c"])
        .input(vec![b'x'; 50_000])
        .run();
    assert_eq!(finished.out().trim(), "50000", "{finished}");
}

pub(crate) fn terminal(case: &Case) {
    case.detached("box", &[], "sleep 600");
    let shown = case.on_terminal(
        "exec -it box sh",
        "test -t 1 && echo sum $((40+2))\nexit 4\n",
    );
    assert_eq!(shown.status.code(), Some(4), "{shown}");
    assert!(shown.out().contains("sum 42"), "{shown}");
}

pub(crate) fn detached(case: &Case) {
    case.detached("box", &[], "sleep 600");
    case.ok([
        "exec",
        "--detach",
        "box",
        "sh",
        "-c",
        "echo done >/data/mark; sleep 600",
    ]);
    eventually("the detached process writes", || {
        exec(case, &["box", "cat", "/data/mark"]).out() == "done\n"
    });
}

pub(crate) fn a_missing_program(case: &Case) {
    case.detached("box", &[], "sleep 600");
    let finished = exec(case, &["box", "/no/such/program"]);
    let code = finished.status.code();
    assert!(matches!(code, Some(126 | 127)), "{finished}");
    // It did the container no harm.
    assert_eq!(exec(case, &["box", "echo", "alive"]).out(), "alive\n");
}
