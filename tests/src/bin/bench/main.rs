//! Measures Cloister against other runtimes, side by side in one run.
//!
//! `make bench` runs this inside the test bed with instruction counting, where the clock is a
//! count of executed instructions (one virtual millisecond is a million of them): the figures do
//! not depend on what else the machine does. A table for people goes to standard error, the same
//! figures as JSON to standard output:
//!
//! ```json
//! {"cloister": {"run_true": {"virtual_ms": 1.0, …}, "commands_virtual_ms": {"exec": 1.0, …},
//!               "network": {"send_mib_per_s": 1.0, …}, "timeline_ms": {…}, "idle_pss_kib": {…},
//!               "idle_private_kib": {…}},
//!  "runc": {"run_true": {…}, "commands_virtual_ms": {…}, "network": {…}}, "crun": {…},
//!  "cloister-without-vhost": {"network": {…}}, "qemu": {"network": {…}}, "qemu-vhost": {…}, "sizes": {…}}
//! ```

mod bundle;
mod commands;
mod load;
mod memory;
mod network;
mod run;
mod timeline;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Map, Value, json};

/// How often each command is measured, after one run that warms the page cache.
const ROUNDS: usize = 5;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["load", server] => return exit(load::client(server)),
        [] => measure(true, &[]),
        // Only that: the rest takes minutes.
        ["network", ref who @ ..] => measure(false, who),
        _ => Err(anyhow::anyhow!(
            "usage: bench [network [WHO…] | load ADDRESS]"
        )),
    };
    match result {
        Ok(report) => {
            println!("{report:#}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(all: bool, who: &[&str]) -> anyhow::Result<Value> {
    let dir = tempfile::tempdir().context("temporary directory")?;
    let mut report = Map::new();
    if all {
        measure_lives(dir.path(), &mut report)?;
    }
    measure_networks(dir.path(), who, &mut report)?;
    Ok(report.into())
}

/// What each network carries: those of `only`, or all.
fn measure_networks(
    dir: &Path,
    only: &[&str],
    report: &mut Map<String, Value>,
) -> anyhow::Result<()> {
    let bundle = bundle::create(&dir.join("network"))?;
    eprintln!("\nTCP over a veth pair: MiB and round trips a virtual second");
    eprintln!("  {:<22} {:>8} {:>8} {:>8}", "", "send", "receive", "ping");
    let kernel = Path::new("/usr/local/share/cloister/vmlinux");
    for who in [
        "cloister",
        "cloister-without-vhost",
        "qemu",
        "qemu-vhost",
        "crun",
        "runc",
    ] {
        if !only.is_empty() && !only.contains(&who) {
            continue;
        }
        let figures = match who {
            "qemu" | "qemu-vhost" if !network::has_qemu() => continue,
            "qemu" | "qemu-vhost" => network::of_a_qemu_guest(dir, kernel, who == "qemu-vhost")?,
            "cloister-without-vhost" => {
                let never = [("CLOISTER_NETWORK_VHOST", "never")];
                network::of_a_container("cloister", &bundle, &never)?
            }
            runtime if !run::is_installed(runtime) => continue,
            runtime => network::of_a_container(runtime, &bundle, &[])?,
        };
        let load::Figures {
            send,
            receive,
            round_trips,
        } = figures;
        eprintln!("  {who:<22} {send:>8.1} {receive:>8.1} {round_trips:>8.0}");
        let figures = json!({
            "send_mib_per_s": send, "receive_mib_per_s": receive, "round_trips_per_s": round_trips,
        });
        let place = report.entry(who).or_insert_with(|| json!({}));
        place["network"] = figures;
    }
    Ok(())
}

fn measure_lives(dir: &Path, report: &mut Map<String, Value>) -> anyhow::Result<()> {
    let bundle = bundle::create(dir)?;

    eprintln!("run … true, exec to exit, in virtual ms ({ROUNDS} rounds after a warm one)");
    eprintln!("  {:<10} {:>8} {:>8} {:>8}", "", "median", "least", "most");
    let runtimes: Vec<&str> = ["cloister", "crun", "runc"]
        .into_iter()
        .filter(|runtime| run::is_installed(runtime))
        .collect();
    for &runtime in &runtimes {
        let times = run::run_true(runtime, &bundle, ROUNDS)?;
        eprintln!(
            "  {runtime:<10} {:>8.2} {:>8.2} {:>8.2}",
            times.median, times.least, times.most
        );
        let figures = json!({
            "virtual_ms": times.median, "least": times.least, "most": times.most, "rounds": ROUNDS,
        });
        report.insert(runtime.to_owned(), json!({ "run_true": figures }));
    }

    eprintln!("\nthe commands of a life, median of {ROUNDS} rounds, in virtual ms");
    eprint!("  {:<10}", "");
    for command in commands::COMMANDS {
        eprint!(" {command:>8}");
    }
    eprintln!();
    let sleeper = bundle::create(&dir.join("sleeper"))?;
    bundle::command(&sleeper, &["/bin/sleep", "100000"])?;
    for &runtime in &runtimes {
        let life = commands::of_a_life(runtime, &sleeper, ROUNDS)?;
        eprint!("  {runtime:<10}");
        let mut figures = Map::new();
        for command in commands::COMMANDS {
            let median = life.get(command).map_or(f64::NAN, |times| times.median);
            eprint!(" {median:>8.2}");
            figures.insert(command.into(), median.into());
        }
        eprintln!();
        if let Some(Value::Object(report)) = report.get_mut(runtime) {
            report.insert("commands_virtual_ms".into(), figures.into());
        }
    }

    let phases = timeline::of_a_cold_start(&bundle, dir)?;
    eprintln!("\ncold start of cloister by phase, in virtual ms");
    for phase in &phases {
        eprintln!(
            "  {:<20} {:>8.2} at {:>8.2}",
            phase.name, phase.took, phase.at
        );
    }
    let idle = memory::of_an_idle_sandbox(&bundle)?;
    eprintln!("\nmemory of an idle sandbox, guest memory included, in KiB: proportional, private");
    for (process, memory) in &idle {
        eprintln!("  {process:<20} {:>8} {:>8}", memory.pss, memory.private);
    }
    let sum = |part: fn(&memory::Memory) -> u64| idle.values().map(part).sum::<u64>();
    let (pss, private) = (sum(|memory| memory.pss), sum(|memory| memory.private));
    eprintln!("  {:<20} {pss:>8} {private:>8}", "total");

    let sizes = memory::sizes()?;
    eprintln!("\nsizes, in KiB");
    for (file, bytes) in &sizes {
        eprintln!("  {file:<20} {:>8}", bytes / 1024);
    }

    let ours = report
        .get_mut("cloister")
        .and_then(Value::as_object_mut)
        .context("cloister is not installed")?;
    let phases: Map<String, Value> = phases
        .iter()
        .map(|phase| (phase.name.clone(), json!(phase.at)))
        .collect();
    ours.insert("timeline_ms".into(), phases.into());
    let by_process = |part: fn(&memory::Memory) -> u64| -> Map<String, Value> {
        idle.iter()
            .map(|(process, memory)| (process.clone(), json!(part(memory))))
            .collect()
    };
    ours.insert(
        "idle_pss_kib".into(),
        by_process(|memory| memory.pss).into(),
    );
    ours.insert(
        "idle_private_kib".into(),
        by_process(|memory| memory.private).into(),
    );
    report.insert("sizes".into(), json!(sizes));
    Ok(())
}
