//! What output costs, through our shim and runc's below the same containerd: no check, but figures, which
//! `tests/bench output` prints. In its bed the clock is a count of instructions.

use std::time::{Duration, Instant};

use crate::harness::Cmd;

use super::daemon::Version;
use super::{Case, IMAGE};

/// How much a container writes, in MiB: `CLOISTER_TEST_STREAM_MIB` in the environment, or this much.
const SIZE_MIB: u64 = 256;
/// How long a container may take.
const LIMIT: Duration = Duration::from_secs(1200);
/// The output is this many random bytes again and again: nothing comes twice, and nothing in another order, unnoticed.
const PATTERN_MIB: u64 = 16;
const RUNTIMES: [&str; 2] = ["io.containerd.cloister.v2", "io.containerd.runc.v2"];

/// A line for a shell in which a container writes the pattern so often, from memory that is its own, and `sink`
/// takes it.
fn line(case: &Case, runtime: &str, rounds: u64, sink: &str) -> String {
    let script = format!(
        "cp /pattern /dev/shm/p && i=0; while [ $i -lt {rounds} ]; do cat /dev/shm/p; i=$((i+1)); done"
    );
    format!(
        "{} run --rm --runtime {runtime} --mount type=bind,src=/run/pattern,dst=/pattern,options=rbind:ro \
         {IMAGE} bench sh -c '{script}' {sink}",
        case.version.program("ctr").display()
    )
}

fn shell(line: &str) -> String {
    Cmd::new("sh").args(["-c", line]).within(LIMIT).run().ok()
}

#[test]
#[ignore = "figures for people: tests/bench output"]
fn output() {
    // What runc's shim makes once, and keeps.
    std::fs::create_dir_all("/run/containerd/runc/default").expect("runc's state directory");
    let case = Case::new(Version::V2);
    let asked = std::env::var("CLOISTER_TEST_STREAM_MIB").ok();
    let size = asked.map_or(SIZE_MIB, |text| text.parse().expect("a number"));
    let rounds = size / PATTERN_MIB;
    shell(&format!(
        "head -c {PATTERN_MIB}M /dev/urandom >/run/pattern"
    ));
    let all = "cat /run/pattern; i=$((i+1)); done | md5sum";
    let expected = shell(&format!("i=0; while [ $i -lt {rounds} ]; do {all}"));
    for runtime in RUNTIMES {
        // It is whole; and whatever is read for the first time has been read.
        assert_eq!(shell(&line(&case, runtime, rounds, "| md5sum")), expected);
        let time = |rounds| {
            let begin = Instant::now();
            shell(&line(&case, runtime, rounds, ">/dev/null"));
            begin.elapsed().as_secs_f64()
        };
        // The start is in both.
        let seconds = time(rounds) - time(0);
        println!(
            "{size} MiB of {runtime}: {:.0} ms, {:.0} MiB per virtual second",
            seconds * 1e3,
            size as f64 / seconds
        );
    }
    std::fs::remove_file("/run/pattern").expect("the pattern");
}
