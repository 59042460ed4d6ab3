//! The process of a hook, and the loop that stays with it.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::{Cause, Checked, Ending, Surroundings};
use crate::sys;
use crate::text::printable;

/// How much of each of a hook's output streams is kept, in bytes: the last, where errors are.
pub(super) const OUTPUT_MAX: usize = 4096;
/// How long a hook that has failed may have its output completed by processes it has left.
const LINGER: Duration = Duration::from_millis(100);
/// How long a hook that was killed may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A hook's process. Dropping it leaves no process of its group, unless it has ended by itself.
pub(super) struct Running {
    child: Child,
    pid: Option<Pid>,
    stdin: Option<ChildStdin>,
    stdout: Output,
    stderr: Output,
    ended: Option<ExitStatus>,
}

impl Running {
    pub(super) fn start(hook: &Checked<'_>, surroundings: Surroundings<'_>) -> Result<Self, Cause> {
        let error = |e| Cause::Start(hook.path.to_owned(), e);
        let network = surroundings.network.map(|fd| fd.try_clone_to_owned());
        let network = network.transpose().map_err(error)?;
        let mut command = Command::new(hook.path);
        // config.md#posix-platform-hooks: as with execv, the first argument is the name.
        if let [name, args @ ..] = hook.args {
            command.arg0(name).args(args);
        }
        command
            .current_dir(surroundings.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // What the hook has started is killed with it.
            .process_group(0);
        if let Some(env) = &hook.env {
            command
                .env_clear()
                .envs(env.iter().map(|(k, v)| (OsStr::new(k), OsStr::new(v))));
        }
        sys::start_afresh(&mut command, network);
        let mut child = command.spawn().map_err(error)?;
        Ok(Self {
            pid: Pid::from_raw(child.id().cast_signed()),
            stdin: child.stdin.take(),
            stdout: Output::new(child.stdout.take().map(Into::into)),
            stderr: Output::new(child.stderr.take().map(Into::into)),
            child,
            ended: None,
        })
    }

    /// Stays with the hook until it is done.
    pub(super) fn attend(mut self, hook: &Checked<'_>, state: &[u8]) -> Result<(), Cause> {
        let limit = hook.timeout;
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        match self.follow(state, deadline) {
            Ok(Some(status)) if status.success() => Ok(()),
            Ok(Some(status)) => Err(Cause::Ended {
                status: Ending(status),
                stdout: self.stdout.text(),
                stderr: self.stderr.text(),
            }),
            Ok(None) => Err(Cause::TimedOut {
                path: hook.path.to_owned(),
                seconds: limit.unwrap_or_default().as_secs(),
                stdout: self.stdout.text(),
                stderr: self.stderr.text(),
            }),
            Err(e) => Err(Cause::Follow(hook.path.to_owned(), e)),
        }
    }

    /// Feeds and drains the hook until its end, or `None` if that does not come before `deadline`.
    fn follow(
        &mut self,
        state: &[u8],
        deadline: Option<Instant>,
    ) -> io::Result<Option<ExitStatus>> {
        let pid = self.pid.ok_or(Errno::SRCH)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        for fd in self.streams() {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        let mut rest = state;
        let mut deadline = deadline;
        loop {
            if rest.is_empty() {
                self.stdin = None;
            }
            // A hook that prints without end always has something to do.
            let late = deadline.is_some_and(|at| Instant::now() >= at);
            if late || !self.wait(&pidfd, deadline)? {
                return Ok(self.ended);
            }
            if let Some(stdin) = &mut self.stdin {
                match stdin.write(rest) {
                    Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                    Err(e) if is_passing(&e) => {}
                    // A hook need not read what it is told.
                    Err(_) => rest = &[],
                }
            }
            // Asked for before the streams are drained: what it printed before its end is there.
            let ended = self.child.try_wait()?;
            self.stdout.drain();
            self.stderr.drain();
            match ended {
                Some(status) if status.success() => {
                    self.ended = ended;
                    return Ok(ended);
                }
                Some(_) if self.ended.is_none() => {
                    self.ended = ended;
                    rest = &[];
                    deadline = Instant::now().checked_add(LINGER);
                }
                _ => {}
            }
            if self.ended.is_some() && self.stdout.fd.is_none() && self.stderr.fd.is_none() {
                return Ok(self.ended);
            }
        }
    }

    fn streams(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let outputs = [&self.stdout, &self.stderr].into_iter();
        let outputs = outputs.filter_map(|output| output.fd.as_ref().map(AsFd::as_fd));
        self.stdin.iter().map(AsFd::as_fd).chain(outputs)
    }

    /// Waits until there is something to do; `false` if there is nothing before `deadline`.
    fn wait(&self, pidfd: &OwnedFd, deadline: Option<Instant>) -> io::Result<bool> {
        let mut fds = Vec::with_capacity(4);
        if self.ended.is_none() {
            fds.push(PollFd::new(pidfd, PollFlags::IN));
        }
        // A stream is readable or writable, never both: the other event does not come.
        fds.extend(
            self.streams()
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN | PollFlags::OUT)),
        );
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            // A time too long to express is none.
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut fds, left.as_ref()) {
                Ok(count) => return Ok(count > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let Some(pid) = self.pid else {
            return;
        };
        // The child is not reaped, so the group is its own. It may consist of zombies by now.
        let _ = kill_process_group(pid, Signal::KILL);
        let deadline = Instant::now() + KILL_LIMIT;
        let ended = pidfd_open(pid, PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(|pidfd| {
                self.stdin = None;
                self.stdout.fd = None;
                self.stderr.fd = None;
                self.wait(&pidfd, Some(deadline))
            });
        if ended.is_ok_and(|ended| ended) {
            let _ = self.child.wait();
        } else {
            log::error!("the hook's process {pid} was killed and does not end");
        }
    }
}

/// The end of what a hook has printed to one of its streams.
struct Output {
    fd: Option<OwnedFd>,
    kept: Vec<u8>,
    lost: bool,
}

impl Output {
    fn new(fd: Option<OwnedFd>) -> Self {
        Self {
            fd,
            kept: Vec::new(),
            lost: false,
        }
    }

    /// Takes what is there now.
    fn drain(&mut self) {
        let Some(fd) = &self.fd else {
            return;
        };
        let mut buffer = [0; 4096];
        match rustix::io::read(fd, &mut buffer) {
            Ok(0) => self.fd = None,
            Ok(count) => self.keep(buffer.get(..count).unwrap_or_default()),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A pipe does not fail; if it does, there is no more to be had of it.
            Err(_) => self.fd = None,
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept.extend_from_slice(bytes);
        let excess = self.kept.len().saturating_sub(OUTPUT_MAX);
        if excess > 0 {
            self.kept.drain(..excess);
            self.lost = true;
        }
    }

    /// One line of it.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        // Bytes that are no text take three in place of one.
        let text = printable(text.trim_end(), 3 * OUTPUT_MAX);
        if self.lost {
            format!("…{text}")
        } else {
            text
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
