//! Whole commands, from exec to exit.

use std::io::{ErrorKind, Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// What a command may take, in virtual time: a hang must not hold up the other figures for ever.
const LIMIT: Duration = Duration::from_secs(20);

/// Virtual milliseconds over several rounds.
pub(crate) struct Times {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Times {
    /// Of at least one duration.
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let ms = |index: usize| times.get(index).map_or(f64::NAN, |t| t.as_secs_f64() * 1e3);
        Self {
            median: ms(times.len() / 2),
            least: ms(0),
            most: ms(times.len().saturating_sub(1)),
        }
    }
}

/// Where the output of a measured command goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Through pipes, which are read to their end.
    Pipes,
    /// Nowhere but to a file for errors: what the command starts may live on with its streams.
    Outlived,
}

/// Whether a runtime is there to be measured.
pub(crate) fn is_installed(runtime: &str) -> bool {
    let version = Command::new(runtime).arg("--version").output();
    !matches!(version, Err(error) if error.kind() == ErrorKind::NotFound)
}

/// Times `RUNTIME run … true`.
pub(crate) fn run_true(runtime: &str, bundle: &Path, rounds: usize) -> anyhow::Result<Times> {
    let mut times = Vec::new();
    // The first round fills the page cache.
    for round in 0..=rounds {
        let mut command = Command::new(runtime);
        let id = format!("bench{round}");
        command.args(["run", "--bundle"]).arg(bundle).arg(id);
        let took = timed(command, &format!("{runtime} run"), Output::Pipes)?;
        if round > 0 {
            times.push(took);
        }
    }
    Ok(Times::of(times))
}

/// Times a command, which must succeed.
pub(crate) fn timed(command: Command, what: &str, output: Output) -> anyhow::Result<Duration> {
    timed_within(command, what, output, LIMIT)
}

/// Times a command that may take as long as `limit`.
pub(crate) fn timed_within(
    mut command: Command,
    what: &str,
    output: Output,
    limit: Duration,
) -> anyhow::Result<Duration> {
    let mut errors = tempfile::tempfile().context("a file for errors")?;
    command.stdin(Stdio::null());
    match output {
        Output::Pipes => command.stdout(Stdio::piped()).stderr(Stdio::piped()),
        Output::Outlived => command.stdout(Stdio::null()).stderr(errors.try_clone()?),
    };
    let start = Instant::now();
    let child = command.spawn().with_context(|| what.to_owned())?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let (done, ended) = mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        let late = ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        if let (true, Some(pid)) = (late, pid) {
            // It may be ending at this very moment.
            _ = kill_process(pid, Signal::KILL);
        }
        late
    });
    let finished = child.wait_with_output().with_context(|| what.to_owned())?;
    let took = start.elapsed();
    drop(done);
    if watch.join().unwrap_or(true) {
        bail!("{what}: killed, since it had not ended after {limit:?}");
    }
    let mut text = String::from_utf8_lossy(&finished.stderr).into_owned();
    errors.rewind()?;
    errors.read_to_string(&mut text)?;
    ensure!(
        finished.status.success(),
        "{what}: {}: {text}",
        finished.status
    );
    // What a runtime leaves for later belongs to the round that caused it, not to the next.
    std::thread::sleep(Duration::from_millis(200));
    Ok(took)
}
