//! Whole commands, from exec to exit.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// Virtual milliseconds over several rounds.
pub(crate) struct Times {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

/// Times `RUNTIME run … true`; `None` if the runtime is not installed.
pub(crate) fn run_true(
    runtime: &str,
    bundle: &Path,
    rounds: usize,
) -> anyhow::Result<Option<Times>> {
    let mut times = Vec::new();
    // The first round fills the page cache.
    for round in 0..=rounds {
        let mut command = Command::new(runtime);
        command
            .args(["run", "--bundle"])
            .arg(bundle)
            .arg(format!("bench{round}"))
            .stdin(Stdio::null());
        let start = Instant::now();
        let output = match command.output() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| runtime.to_owned())?,
        };
        let took = start.elapsed();
        ensure!(
            output.status.success(),
            "{runtime} run: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        if round > 0 {
            times.push(took);
        }
        // What a runtime leaves for later belongs to the round that caused it, not to the next.
        std::thread::sleep(Duration::from_millis(200));
    }
    times.sort();
    let ms = |index: usize| times.get(index).map_or(f64::NAN, |t| t.as_secs_f64() * 1e3);
    Ok(Some(Times {
        median: ms(rounds / 2),
        least: ms(0),
        most: ms(rounds - 1),
    }))
}
