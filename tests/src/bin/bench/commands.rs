//! How long each command takes, from exec of its process to its exit.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::bail;

use crate::run::{Output, Times, timed};

/// The commands of a container's life, in the order in which they are measured.
pub(crate) const COMMANDS: [&str; 6] = ["create", "start", "exec", "state", "kill", "delete"];

/// Takes a container through its life `rounds` times after a warm one.
pub(crate) fn of_a_life(
    runtime: &str,
    bundle: &Path,
    rounds: usize,
) -> anyhow::Result<BTreeMap<&'static str, Times>> {
    let mut all: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for round in 0..=rounds {
        for name in COMMANDS {
            let mut command = Command::new(runtime);
            let mut output = Output::Pipes;
            match name {
                "create" => {
                    output = Output::Outlived;
                    command.args(["create", "--bundle"]).arg(bundle).arg("life")
                }
                "exec" => command.args(["exec", "life", "true"]),
                "kill" => command.args(["kill", "life", "KILL"]),
                name => command.args([name, "life"]),
            };
            if name == "delete" {
                wait_until_stopped(runtime)?;
            }
            let took = timed(command, &format!("{runtime} {name}"), output)?;
            if round > 0 {
                all.entry(name).or_default().push(took);
            }
        }
    }
    let of = |(name, times)| (name, Times::of(times));
    Ok(all.into_iter().map(of).collect())
}

/// The end of the process that was killed is not the command's to wait for.
fn wait_until_stopped(runtime: &str) -> anyhow::Result<()> {
    for _ in 0..1000 {
        let state = Command::new(runtime).args(["state", "life"]).output()?;
        if String::from_utf8_lossy(&state.stdout).contains("stopped") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("{runtime}: the container that was killed does not stop")
}
