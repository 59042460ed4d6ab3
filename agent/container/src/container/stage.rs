//! The init stage seen from its caller: how it is started, told what to do, and understood.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{WaitId, WaitIdOptions};
use serde::Serialize;

use super::{PATIENCE, Stdio};
use crate::channel::{self, Report};
use crate::error::{Context, Failure, reason};
use crate::init;
use crate::sys;

/// A container's process before it is a container.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

impl Child {
    /// Puts into words why the init stage has fallen silent.
    pub(crate) fn explain(&self, failure: Failure) -> Failure {
        if failure.message != SILENT {
            return failure;
        }
        // Its end stays there to be collected.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let how = match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
            Ok(Some(status)) if status.killed() || status.dumped() => {
                format!(
                    "was killed by signal {}",
                    status.terminating_signal().unwrap_or_default()
                )
            }
            Ok(Some(status)) => {
                format!(
                    "exited with code {}",
                    status.exit_status().unwrap_or_default()
                )
            }
            Ok(None) => "has closed its channel".into(),
            Err(error) => format!("has gone ({})", reason(&error.into())),
        };
        Failure::new(format!(
            "the container's process {how} while it was being created"
        ))
    }

    /// Kills and reaps the process.
    pub(crate) fn end(&self) {
        // It may be dead already, and the caller's reaper may have been faster: neither is an error.
        let _ = sys::pidfd_send_signal(&self.pidfd, libc::SIGKILL);
        let wait =
            || rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        while matches!(wait(), Err(rustix::io::Errno::INTR)) {}
    }
}

/// The message of a failure that [`Child::explain`] explains.
const SILENT: &str = "the init stage has closed the channel";

/// A channel to an init stage that may be silent for so long.
pub(crate) fn socket_pair(patience: Duration) -> std::result::Result<(OwnedFd, OwnedFd), Failure> {
    let context = || "create the channel to the init stage";
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .doing(context)?;
    for timeout in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&ours, timeout, Some(patience)).doing(context)?;
    }
    Ok((ours, theirs))
}

/// How an init stage is started.
pub(crate) struct Stage<'a> {
    pub(crate) namespaces: u64,
    pub(crate) pid_namespace_of: Option<&'a OwnedFd>,
    pub(crate) wait_for_mappings: bool,
    pub(crate) stdio: &'a Stdio,
    pub(crate) init_exe: &'a Path,
    pub(crate) cgroup: &'a OwnedFd,
    pub(crate) channel: &'a OwnedFd,
}

pub(crate) fn spawn(stage: &Stage<'_>) -> std::result::Result<Child, Failure> {
    let context = || "start the init stage";
    let exe =
        open_executable(stage.init_exe).doing(|| format!("open {}", stage.init_exe.display()))?;
    let null = rustix::fs::openat(
        CWD,
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .doing(|| "open /dev/null")?;
    let streams = match stage.stdio {
        Stdio::Streams {
            stdin,
            stdout,
            stderr,
        } => [stdin, stdout, stderr],
        Stdio::Terminal { .. } => [&None, &None, &None],
    };
    let mut above = Vec::with_capacity(3);
    for stream in streams {
        above.push(sys::above_stdio(stream.as_ref().unwrap_or(&null)).doing(context)?);
    }
    let [stdin, stdout, stderr] = above.as_slice() else {
        return Err(Failure::new(
            "start the init stage: three streams make three streams",
        ));
    };
    let (pid, pidfd) = sys::spawn(&sys::Spawn {
        namespaces: stage.namespaces,
        pid_namespace_of: stage.pid_namespace_of,
        cgroup: &sys::above_stdio(stage.cgroup).doing(context)?,
        exe: &sys::above_stdio(&exe).doing(context)?,
        name: init::NAME,
        stdio: [stdin, stdout, stderr],
        channel: &sys::above_stdio(stage.channel).doing(context)?,
        wait_for_mappings: stage.wait_for_mappings,
    })
    .doing(context)?;
    Ok(Child { pid, pidfd })
}

/// Opens the executable on a read-only mount of its own, so that the container's program
/// cannot overwrite it through `/proc/self/exe` (CVE-2019-5736).
fn open_executable(path: &Path) -> io::Result<OwnedFd> {
    // /proc/self/exe is a link out of procfs; opening it follows it.
    let file = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    init::read_only_clone(&file)
}

/// How long a stage at this channel may be silent.
fn patience(channel: &OwnedFd) -> Duration {
    let timeout = socket_timeout(channel, Timeout::Recv);
    timeout.ok().flatten().unwrap_or(PATIENCE)
}

/// Tells the init stage what to build, with the program's descriptors and with those to build from, and
/// hears what has become of it.
pub(crate) fn converse(
    channel: &OwnedFd,
    task: &impl Serialize,
    fds: [&[impl AsFd]; 2],
    has_terminal: bool,
) -> std::result::Result<(Option<OwnedFd>, Vec<String>), Failure> {
    let send = |fds| channel::send_fds(channel, fds);
    let sent = channel::send(channel, task).and_then(|()| fds.into_iter().try_for_each(send));
    // Who does not listen may have said why.
    match sent {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            ) =>
        {
            return Err(Failure::system("talk to the init stage", error));
        }
        _ => {}
    }
    let mut terminal = None;
    let report = match has_terminal {
        false => channel::receive::<Report>(channel),
        true => channel::receive_with_fd(channel, &mut terminal),
    };
    match report {
        Ok(Some(Report::Created { warnings })) => Ok((terminal, warnings)),
        Ok(Some(Report::Failed(failure))) => Err(failure),
        Ok(None) => Err(Failure::new(SILENT)),
        // It has not even read what it was told.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(Failure::new(SILENT)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Failure::new(format!(
            "the init stage has not answered for {} seconds",
            patience(channel).as_secs()
        ))),
        Err(error) if error.raw_os_error().is_some() => {
            Err(Failure::system("execute the init stage", error))
        }
        Err(error) => Err(Failure::system("understand the init stage", error)),
    }
}
