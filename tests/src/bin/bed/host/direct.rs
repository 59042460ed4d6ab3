//! Running a command on the machine itself, where its KVM can run guests.

use super::TIMED_OUT;
use super::cli::RunOptions;
use crate::protocol::Exited;
use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use std::env;
use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How long the probe may take before the answer is no.
const PROBE_LIMIT: Duration = Duration::from_secs(30);

/// Whether the staged VMM says that this machine's KVM can run guests.
pub(super) fn usable() -> bool {
    let Some(stage) = env::var_os("CLOISTER_STAGE").map(PathBuf::from) else {
        return false;
    };
    let vmm = stage.join("usr/local/libexec/cloister/cloister-vmm");
    let probe = Command::new(vmm)
        .arg("--check")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    // No VMM, or none that can run here: no answer but no.
    probe.is_ok_and(|mut probe| {
        wait(&mut probe, Some(PROBE_LIMIT))
            .is_ok_and(|status| status.is_some_and(|status| status.success()))
    })
}

/// Runs the command with the staged programs on the PATH.
pub(super) fn run(options: &RunOptions) -> Result<u8> {
    let mut words = options.command.iter();
    let program = words.next().context("no command given")?;
    let mut command = Command::new(program);
    command.args(words).env("PATH", path()?);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("bed: {}: {error}", program.display());
            return Ok(if error.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            });
        }
    };
    let Some(status) = wait(&mut child, options.timeout())? else {
        eprintln!(
            "bed: the command did not end within {} s and was killed",
            options.timeout
        );
        return Ok(TIMED_OUT);
    };
    let exited = match (status.code(), status.signal()) {
        (Some(code), _) => Exited::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        (None, signal) => Exited::Signal(
            signal
                .and_then(|signal| u8::try_from(signal).ok())
                .unwrap_or(u8::MAX),
        ),
    };
    Ok(exited.shell_code())
}

fn path() -> Result<OsString> {
    let stage =
        env::var_os("CLOISTER_STAGE").map(|stage| PathBuf::from(stage).join("usr/local/bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(stage.into_iter().chain(env::split_paths(&path))).context("extend the PATH")
}

/// Waits for the child; kills it and gives none when it takes longer than `limit`.
fn wait(child: &mut Child, limit: Option<Duration>) -> Result<Option<ExitStatus>> {
    if let Some(limit) = limit {
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("the child's pid")?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .context("open the child's pidfd")?;
        let limit = Timespec::try_from(limit).context("the time limit")?;
        if poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))
            .context("wait for the child")?
            == 0
        {
            rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).context("kill the child")?;
            child.wait().context("reap the child")?;
            return Ok(None);
        }
    }
    Ok(Some(child.wait().context("wait for the child")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_takes_too_long_is_killed() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(
            wait(&mut child, Some(Duration::from_millis(50))).unwrap(),
            None
        );
        assert_eq!(
            child.try_wait().unwrap().unwrap().signal(),
            Some(libc::SIGKILL)
        );
    }

    #[test]
    fn a_child_that_ends_in_time_reports_its_status() {
        let mut child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let status = wait(&mut child, Some(Duration::from_secs(60)))
            .unwrap()
            .unwrap();
        assert_eq!(status.code(), Some(3));
    }
}
