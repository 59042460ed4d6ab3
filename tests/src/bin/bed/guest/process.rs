//! A session's command: started, and killed with everything in its session.

use super::sys::lead_session;
use crate::protocol::{Exited, Failed, Start, WindowSize};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running command and our ends of its streams, all non-blocking.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pidfd: OwnedFd,
    /// Where input goes.
    pub(super) input: Option<File>,
    /// Where output comes from.
    pub(super) output: Option<File>,
    /// Where the second output comes from; none on a terminal.
    pub(super) error: Option<File>,
    terminal: Option<OwnedFd>,
}

impl Process {
    pub(super) fn start(start: Start) -> Result<Self, Failed> {
        let mut words = start.argv.into_iter().map(OsString::from_vec);
        let program = words
            .next()
            .ok_or_else(|| failed(125, "no command given".to_owned()))?;
        let cwd = OsStr::from_bytes(&start.cwd);
        if !Path::new(cwd).is_dir() {
            let reason = "does not exist inside the bed, whose /tmp and /run are its own (--fast copies a path there)";
            return Err(failed(
                125,
                format!("working directory {} {reason}", cwd.display()),
            ));
        }
        let mut command = Command::new(&program);
        command.args(words).current_dir(cwd).env_clear();
        command.envs(
            start
                .env
                .iter()
                .map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value))),
        );
        let plumbing = |error: io::Error| {
            failed(
                125,
                format!("prepare the streams of {}: {error}", program.display()),
            )
        };
        let terminal = match start.terminal {
            Some(size) => Some(attach_terminal(&mut command, size).map_err(plumbing)?),
            None => {
                command
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped());
                None
            }
        };
        lead_session(&mut command, terminal.is_some());
        let mut child = command.spawn().map_err(|error| {
            let code = if error.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            };
            failed(code, format!("{}: {error}", program.display()))
        })?;
        // The command holds the terminal's other side: closing it then shows as a hang-up.
        drop(command);
        Self::plumb(
            child.stdin.take(),
            child.stdout.take(),
            child.stderr.take(),
            terminal,
            child,
        )
        .map_err(plumbing)
    }

    fn plumb(
        stdin: Option<std::process::ChildStdin>,
        stdout: Option<std::process::ChildStdout>,
        stderr: Option<std::process::ChildStderr>,
        terminal: Option<OwnedFd>,
        child: Child,
    ) -> io::Result<Self> {
        let pidfd = rustix::process::pidfd_open(pid_of(&child)?, PidfdFlags::empty())?;
        let mut input = stdin.map(OwnedFd::from);
        let mut output = stdout.map(OwnedFd::from);
        if let Some(terminal) = &terminal {
            input = Some(terminal.try_clone()?);
            output = Some(terminal.try_clone()?);
        }
        let error = stderr.map(OwnedFd::from);
        for fd in [&input, &output, &error].into_iter().flatten() {
            rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK)?;
        }
        let [input, output, error] = [input, output, error].map(|fd| fd.map(File::from));
        Ok(Self {
            child,
            pidfd,
            input,
            output,
            error,
            terminal,
        })
    }

    /// Readable once the command has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How the command ended, if it has.
    pub(super) fn exited(&mut self) -> io::Result<Option<Exited>> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(None);
        };
        let exited = match (status.code(), status.signal()) {
            (Some(code), _) => Exited::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
            (None, signal) => Exited::Signal(
                signal
                    .and_then(|signal| u8::try_from(signal).ok())
                    .unwrap_or(u8::MAX),
            ),
        };
        Ok(Some(exited))
    }

    pub(super) fn resize(&self, size: WindowSize) -> io::Result<()> {
        match &self.terminal {
            Some(terminal) => Ok(rustix::termios::tcsetwinsize(terminal, winsize(size))?),
            None => Ok(()),
        }
    }

    /// Kills every process of the command's session and reaps the command.
    pub(super) fn kill(&mut self) -> io::Result<()> {
        let leader = pid_of(&self.child)?;
        for pid in processes_of_session(leader)? {
            match rustix::process::kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.child.wait()?;
        Ok(())
    }
}

fn attach_terminal(command: &mut Command, size: WindowSize) -> io::Result<OwnedFd> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = rustix::pty::openpt(flags)?;
    rustix::pty::unlockpt(&terminal)?;
    let inside = rustix::pty::ioctl_tiocgptpeer(&terminal, flags)?;
    rustix::termios::tcsetwinsize(&terminal, winsize(size))?;
    command
        .stdin(inside.try_clone()?)
        .stdout(inside.try_clone()?)
        .stderr(inside);
    Ok(terminal)
}

fn winsize(size: WindowSize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn pid_of(child: &Child) -> io::Result<Pid> {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other(format!("pid {} out of range", child.id())))
}

/// Those that are in the session `leader` leads, `leader` included.
fn processes_of_session(leader: Pid) -> io::Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name
            .to_str()
            .and_then(|name| name.parse().ok())
            .and_then(Pid::from_raw)
        else {
            continue;
        };
        match rustix::process::getsid(Some(pid)) {
            Ok(session) if session == leader => found.push(pid),
            Ok(_) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

fn failed(code: u8, message: String) -> Failed {
    Failed { code, message }
}
