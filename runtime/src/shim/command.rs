//! The command line that the shim runs: `cloister`, beside it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::reaper::Reaper;

/// The most of a log that is read for an error, in bytes from its end.
const LOG_MAX: u64 = 64 * 1024;

/// The standard streams of a command. What is none is `/dev/null`.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// `cloister` for the containers of one state directory.
#[derive(Debug, Clone)]
pub(crate) struct Cloister {
    /// Where the state of its containers is.
    pub(crate) root: PathBuf,
    /// The configuration file, in place of the machine's.
    pub(crate) config: Option<PathBuf>,
    /// Whether systemd makes cgroups.
    pub(crate) systemd_cgroup: bool,
    /// Whether to log what helps to find a fault.
    pub(crate) debug: bool,
}

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// It said why.
    #[error("{0}")]
    Failed(String),
    /// It said nothing.
    #[error("cloister {command} ended with code {code} and no reason")]
    Silent {
        /// What was run.
        command: String,
        /// Its exit code.
        code: u32,
    },
    /// It could not be run.
    #[error("cannot run cloister {command}")]
    Run {
        /// What was to be run.
        command: String,
        /// What the system says.
        source: io::Error,
    },
}

/// A line of the log.
#[derive(Debug, Deserialize)]
struct Line {
    level: String,
    msg: String,
}

impl Cloister {
    /// Runs a command to its end. `log` is where it and its monitor log to.
    pub(crate) async fn run<S: AsRef<OsStr>>(
        &self,
        reaper: &Reaper,
        log: &Path,
        words: &[S],
        streams: Streams,
    ) -> Result<(), CommandError> {
        let name = words.first().map(|word| word.as_ref().to_string_lossy());
        let name = name.unwrap_or_default().into_owned();
        let failed = |source| CommandError::Run {
            command: name.clone(),
            source,
        };
        let begin = fs::metadata(log).map_or(0, |metadata| metadata.len());
        let mut command = Command::new(program().map_err(failed)?);
        command.arg("--root").arg(&self.root);
        command.arg("--log").arg(log).args(["--log-format", "json"]);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        if self.debug {
            command.arg("--debug");
        }
        command.args(words);
        command
            .stdin(stdio(streams.stdin))
            .stdout(stdio(streams.stdout))
            .stderr(stdio(streams.stderr));
        let (_, ended) = reaper.spawn(&mut command).map_err(failed)?;
        // Its copies of the streams: whoever waits for their end waits for the task's alone.
        drop(command);
        let ended = ended
            .await
            .map_err(|_| failed(io::ErrorKind::BrokenPipe.into()))?;
        if ended.code == 0 {
            return Ok(());
        }
        Err(match last_error(log, begin) {
            Some(reason) => CommandError::Failed(reason),
            None => CommandError::Silent {
                command: name,
                code: ended.code,
            },
        })
    }
}

/// `cloister` is installed beside the shim.
fn program() -> io::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    Ok(exe.with_file_name("cloister"))
}

fn stdio(fd: Option<OwnedFd>) -> Stdio {
    fd.map_or_else(Stdio::null, Stdio::from)
}

/// The last error in a log, of what was written after its first `begin` bytes.
fn last_error(log: &Path, begin: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(begin.max(len.saturating_sub(LOG_MAX))))
        .ok()?;
    let mut text = Vec::new();
    file.take(LOG_MAX).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().rev();
    lines
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .find(|line| line.level == "error")
        .map(|line| line.msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_error_since_the_command_began() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let before = "{\"level\":\"error\",\"msg\":\"old\",\"time\":\"T\"}\n";
        fs::write(&log, before).unwrap();
        let begin = before.len() as u64;
        assert_eq!(last_error(&log, begin), None);
        let lines = [
            before,
            "{\"level\":\"error\",\"msg\":\"first\",\"time\":\"T\"}\n",
            "{\"level\":\"error\",\"msg\":\"new\",\"time\":\"T\"}\n",
            "{\"level\":\"warning\",\"msg\":\"w\",\"time\":\"T\"}\ncut",
        ];
        fs::write(&log, lines.concat()).unwrap();
        assert_eq!(last_error(&log, begin).as_deref(), Some("new"));
        assert_eq!(last_error(&dir.path().join("none"), 0), None);
    }
}
