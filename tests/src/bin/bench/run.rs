//! Whole commands, from exec to exit.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// What a run may take, in virtual time: a hang must not hold up the other figures for ever.
const LIMIT: Duration = Duration::from_secs(20);

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
        let child = match command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
        {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| runtime.to_owned())?,
        };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let (done, ended) = mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            let late = ended.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout);
            if let (true, Some(pid)) = (late, pid) {
                // It may be ending at this very moment.
                _ = kill_process(pid, Signal::KILL);
            }
            late
        });
        let output = child
            .wait_with_output()
            .with_context(|| runtime.to_owned())?;
        let took = start.elapsed();
        drop(done);
        if watch.join().unwrap_or(true) {
            bail!("{runtime} run {round}: killed, since it had not ended after {LIMIT:?}");
        }
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
