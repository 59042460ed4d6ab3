//! What pods cost, with cloister and with runc below the same containerd: no check, but figures, which
//! `tests/bench pods` prints. In its bed the clock is a count of instructions.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use super::daemon::Node;
use super::pod::{Case, Pod};

/// How often a start is measured, after one that fills the page cache.
const ROUNDS: usize = 5;
/// How many idle pods are there at once when their memory is counted: `CLOISTER_TEST_PODS` in the environment, or this
/// many.
const PODS: usize = 10;
/// A handler and what it is called.
const HANDLERS: [(&str, &str); 3] = [
    ("cloister", "cloister"),
    ("cloister-shim", "cloister, no pause container"),
    ("runc", "runc"),
];

/// A pod whose container runs.
fn run(case: &Case, handler: &str, name: &str) -> Pod {
    let pod = case
        .run_with(handler, case.config(name))
        .unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
    pod.start("main", "sleep 100000");
    pod
}

/// The proportional memory of all processes of pods, in KiB, by what they run. A guest's memory is its VMM's.
fn memory() -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let comm = read("comm").trim().to_owned();
        let is_ours = ["containerd-shim", "cloister", "sleep"].iter();
        if !is_ours.clone().any(|name| comm.starts_with(name)) {
            continue;
        }
        let rollup = read("smaps_rollup");
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = pss.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
        *all.entry(comm).or_default() += kib.unwrap_or(0);
    }
    all
}

#[test]
#[ignore = "figures for people: tests/bench pods"]
fn figures() {
    let case = Case::with_handlers(Node::V2, &HANDLERS.map(|(handler, _)| handler));
    println!("a pod and its container, from RunPodSandbox to running, in virtual ms");
    for (handler, name) in HANDLERS {
        let mut times = Vec::new();
        for round in 0..=ROUNDS {
            let begin = Instant::now();
            let pod = run(&case, handler, "bench");
            if round > 0 {
                times.push(begin.elapsed());
            }
            pod.stop();
            pod.remove();
        }
        times.sort();
        let ms = |index: usize| times[index].as_secs_f64() * 1e3;
        println!(
            "  {name:<30} median {:>7.1}, least {:>7.1}, most {:>7.1}",
            ms(ROUNDS / 2),
            ms(0),
            ms(ROUNDS - 1)
        );
    }
    let asked = std::env::var("CLOISTER_TEST_PODS").ok();
    let pods = asked.map_or(PODS, |text| text.parse().expect("a number"));
    println!("proportional memory of one of {pods} idle pods, in KiB");
    for (handler, name) in HANDLERS {
        let idle: Vec<_> = (0..pods)
            .map(|number| run(&case, handler, &format!("idle-{number}")))
            .collect();
        let parts = memory();
        let count = pods as u64;
        let total = parts.values().sum::<u64>() / count;
        print!("  {name:<30} {total:>7}:");
        for (part, kib) in &parts {
            print!(" {part} {}", kib / count);
        }
        println!();
        for pod in idle {
            pod.stop();
            pod.remove();
        }
    }
}
