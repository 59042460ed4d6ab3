//! Where the time of a cold start goes.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

/// One phase of a start.
pub(crate) struct Phase {
    /// What was reached.
    pub(crate) name: String,
    /// Virtual milliseconds since the command was executed.
    pub(crate) at: f64,
    /// Virtual milliseconds since the phase before.
    pub(crate) took: f64,
}

/// Runs `true` once, warm, and reads the timeline that cloister wrote.
pub(crate) fn of_a_cold_start(bundle: &Path, dir: &Path) -> anyhow::Result<Vec<Phase>> {
    let file = dir.join("timeline.json");
    let start = monotonic_ns();
    let status = Command::new("cloister")
        .arg("--timeline")
        .arg(&file)
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg("timeline")
        .stdin(Stdio::null())
        .status()
        .context("cloister")?;
    let end = monotonic_ns();
    ensure!(status.success(), "cloister run: {status}");
    let text = std::fs::read(&file).with_context(|| file.display().to_string())?;
    let json: Value = serde_json::from_slice(&text).context("the timeline is JSON")?;
    let mut reached: Vec<(String, u64)> = json
        .as_object()
        .context("the timeline is an object")?
        .iter()
        .filter_map(|(name, at)| Some((name.clone(), at.as_u64()?)))
        .collect();
    reached.push(("exit".into(), end));
    reached.sort_by_key(|(_, at)| *at);
    let mut before = start;
    let mut phases = Vec::new();
    for (name, at) in reached {
        phases.push(Phase {
            name,
            at: ms(start, at),
            took: ms(before, at),
        });
        before = at;
    }
    Ok(phases)
}

fn ms(from: u64, to: u64) -> f64 {
    std::time::Duration::from_nanos(to.saturating_sub(from)).as_secs_f64() * 1e3
}

fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}
