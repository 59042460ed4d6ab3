//! Standard streams: separate, binary-safe, complete, with end-of-file both ways.

use cloister_tests::noise;

use super::harness::{Bundle, Cmd, eventually};

#[test]
fn stdout_and_stderr_are_separate() {
    let finished = Bundle::sh("echo out; echo err >&2").run();
    assert_eq!(finished.err(), "err\n");
    assert_eq!(finished.ok(), "out\n");
}

#[test]
fn sixty_four_mebibytes_pass_through_unchanged() {
    let bundle = Bundle::new(&["cat"]);
    let input = noise(64 << 20);
    let finished = bundle.command("run", &[], "cat").input(input.clone()).run();
    assert_eq!(finished.code(), 0, "{}", finished.err());
    assert_eq!(finished.stdout.len(), input.len());
    assert!(finished.stdout == input, "the bytes differ");
}

#[test]
fn the_workload_computes_the_same_checksum() {
    let bundle = Bundle::new(&["sha256sum"]);
    let input = noise(8 << 20);
    let here = Cmd::new("sha256sum").input(input.clone()).run().ok();
    let there = bundle.command("run", &[], "sum").input(input).run().ok();
    assert_eq!(here, there);
}

#[test]
fn end_of_file_on_stdin_reaches_the_workload() {
    let bundle = Bundle::sh("cat >/dev/null; echo finished");
    assert_eq!(
        bundle.command("run", &[], "eof").input("x").run().ok(),
        "finished\n"
    );
}

#[test]
fn a_workload_that_reads_nothing_does_not_hang() {
    let bundle = Bundle::sh("exec <&-; echo closed");
    let finished = bundle
        .command("run", &[], "noread")
        .input(noise(4 << 20))
        .run();
    assert_eq!(finished.ok(), "closed\n");
}

#[test]
fn the_last_bytes_before_the_exit_arrive() {
    let bundle = Bundle::sh("head -c 1000000 /dev/zero; printf end; exit 3");
    let finished = bundle.run();
    assert_eq!(finished.code(), 3, "{}", finished.err());
    assert_eq!(finished.stdout.len(), 1_000_003);
    assert!(finished.stdout.ends_with(b"end"));
}

#[test]
fn a_closed_stdout_ends_the_writer() {
    let bundle = Bundle::new(&["yes"]);
    let script = format!(
        "cloister --root {} run --bundle {} piped | head -n 2",
        bundle.state_root().display(),
        bundle.path().display()
    );
    assert_eq!(Cmd::new("sh").args(["-c", &script]).run().ok(), "y\ny\n");
    eventually("the container is gone", || {
        !bundle.state_root().join("piped").exists()
    });
}

#[test]
fn a_background_process_that_holds_stdout_does_not_hold_the_exit() {
    let bundle = Bundle::sh("sleep 600 & echo started");
    assert_eq!(bundle.run().ok(), "started\n");
}

#[test]
fn a_detached_container_holds_no_stream_that_it_has_closed() {
    let bundle = Bundle::sh("exec >/dev/null 2>&1; exec sleep 1000");
    let path = bundle.path();
    // Read to their end, as by a caller that collects output.
    bundle
        .cloister([
            "run",
            "--detach",
            "--bundle",
            path.to_str().unwrap(),
            "test",
        ])
        .run()
        .ok();
    assert_eq!(bundle.status("test"), "running");
    bundle
        .cloister([
            "exec",
            "--detach",
            "test",
            "sh",
            "-c",
            "exec >/dev/null 2>&1; exec sleep 1000",
        ])
        .run()
        .ok();
}
