//! `run` in the foreground.

use crate::harness::Case;

pub(crate) fn output_and_exit_code(case: &Case) {
    let finished = case.sh(&[], "echo out; echo err >&2; exit 7");
    assert_eq!(finished.status.code(), Some(7), "{finished}");
    assert_eq!(finished.out(), "out\n", "{finished}");
    assert_eq!(finished.err(), "err\n", "{finished}");
}

pub(crate) fn input(case: &Case) {
    let words = [
        "run",
        "--rm",
        "-i",
        "--network",
        "none",
        "busybox",
        "wc",
        "-c",
    ];
    let finished = case.command(words).input(vec![b'x'; 100_000]).run();
    assert_eq!(finished.status.code(), Some(0), "{finished}");
    assert_eq!(finished.out().trim(), "100000", "{finished}");
}

pub(crate) fn exit_codes_of_signals(case: &Case) {
    let finished = case
        .command(["run", "--name", "signalled", "--network", "none"])
        .args(["busybox", "sh", "-c", "kill -9 $$; sleep 1; exit 9"])
        .run();
    // The first process of a PID namespace is immune to its own signals.
    assert_eq!(finished.status.code(), Some(9), "{finished}");
    assert_eq!(case.inspect("signalled")["State"]["ExitCode"], 9);
    let finished = case.sh(&[], "sh -c 'kill -9 $$'; exit $?");
    assert_eq!(finished.status.code(), Some(137), "{finished}");
}

pub(crate) fn terminal(case: &Case) {
    let words = "run --rm -it --network none busybox sh";
    let shown = case.on_terminal(words, "test -t 0 && tty; echo sum $((40+2))\nexit 5\n");
    assert_eq!(shown.status.code(), Some(5), "{shown}");
    assert!(shown.out().contains("/dev/pts/0"), "{shown}");
    assert!(shown.out().contains("sum 42"), "{shown}");
}

pub(crate) fn names_and_environment(case: &Case) {
    let options = [
        "--hostname",
        "vm-host",
        "--env",
        "GREETING=hello world",
        "--workdir",
        "/home/guest",
    ];
    let out = case.sh_ok(&options, "hostname; echo $GREETING; pwd; echo $HOSTNAME");
    assert_eq!(out, "vm-host\nhello world\n/home/guest\nvm-host\n");
}

pub(crate) fn a_missing_program(case: &Case) {
    let finished = case
        .command([
            "run",
            "--rm",
            "--network",
            "none",
            "busybox",
            "/no/such/program",
        ])
        .run();
    // Both engines tell "not found" from the runtime's message.
    assert_eq!(finished.status.code(), Some(127), "{finished}");
}

pub(crate) fn init(case: &Case) {
    let out = case.sh_ok(
        &["--init"],
        "cat /proc/1/comm; echo; ls -l /proc/1/exe | grep -c init",
    );
    assert!(out.contains("init"), "{out}");
}
