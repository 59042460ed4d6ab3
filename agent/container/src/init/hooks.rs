//! `hooks.startContainer`: programs of the container that run before its own (config.md#posix-platform-hooks).
//!
//! They run as runc runs them: as the container's user, in its namespaces, root and working directory,
//! with its environment unless they have one of their own.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use serde_json::json;

use crate::channel::Setup;
use crate::config::Hook;
use crate::error::{Context, Failure};

/// What is told of each of a hook's output streams, in bytes.
const MAX_OUTPUT: u64 = 4096;

/// The hooks, ready to run.
///
/// Everything is opened when this is made: later a system call filter may be in place that knows
/// nothing of memfds.
#[derive(Debug)]
pub(crate) struct Hooks<'a> {
    hooks: &'a [Hook],
    env: &'a [CString],
    state: File,
    stdout: File,
    stderr: File,
}

impl<'a> Hooks<'a> {
    /// Gets the hooks ready; `None` if there are none.
    pub(crate) fn prepare(setup: &'a Setup, env: &'a [CString]) -> Result<Option<Self>, Failure> {
        let hooks = &setup.config.hooks.start_container;
        if hooks.is_empty() {
            return Ok(None);
        }
        let context = || "hooks.startContainer: prepare";
        let state = json!({
            "ociVersion": setup.config.oci_version,
            "id": setup.id,
            "status": "created",
            // As seen here, which is where the hooks are.
            "pid": rustix::process::getpid().as_raw_nonzero().get(),
            "bundle": setup.bundle,
            "annotations": setup.config.annotations,
        });
        let mut file = memfd().doing(context)?;
        file.write_all(state.to_string().as_bytes())
            .doing(context)?;
        Ok(Some(Hooks {
            hooks,
            env,
            state: file,
            stdout: memfd().doing(context)?,
            stderr: memfd().doing(context)?,
        }))
    }

    /// Runs one after the other; the first that fails is the last.
    pub(crate) fn run(self) -> Result<(), Failure> {
        for (index, hook) in self.hooks.iter().enumerate() {
            self.run_one(hook).map_err(|how| {
                Failure::invalid(format!("error running startContainer hook #{index}: {how}"))
            })?;
        }
        // What they have left behind is not the program's to collect.
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        Ok(())
    }

    fn run_one(&self, hook: &Hook) -> Result<(), String> {
        let path = &hook.path;
        let mut child = self
            .start(hook)
            .map_err(|error| format!("cannot start {path}: {}", crate::error::reason(&error)))?;
        let ended = wait(&mut child, hook.timeout)
            .map_err(|error| format!("wait for {path}: {}", crate::error::reason(&error)))?;
        let how = match ended {
            Some(status) if status.success() => return Ok(()),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, signal) => format!("killed by signal {}", signal.unwrap_or_default()),
            },
            None => {
                let seconds = hook.timeout.unwrap_or_default();
                format!("{path} ran past its timeout of {seconds}s")
            }
        };
        let [stdout, stderr] = [&self.stdout, &self.stderr].map(end_of);
        Err(format!("{how}, stdout: {stdout}, stderr: {stderr}"))
    }

    fn start(&self, hook: &Hook) -> io::Result<Child> {
        (&self.state).seek(SeekFrom::Start(0))?;
        for mut output in [&self.stdout, &self.stderr] {
            output.set_len(0)?;
            output.seek(SeekFrom::Start(0))?;
        }
        let mut command = Command::new(&hook.path);
        if let Some((name, args)) = hook.args.split_first() {
            command.arg0(name).args(args);
        }
        command.env_clear();
        if hook.env.is_empty() {
            command.envs(self.env.iter().filter_map(|entry| split(entry.to_bytes())));
        } else {
            command.envs(hook.env.iter().filter_map(|entry| split(entry.as_bytes())));
        }
        command
            .process_group(0)
            .stdin(self.state.try_clone()?)
            .stdout(self.stdout.try_clone()?)
            .stderr(self.stderr.try_clone()?)
            .spawn()
    }
}

/// The end of what a hook has written, on one line.
fn end_of(mut output: &File) -> String {
    let mut read = || -> io::Result<Vec<u8>> {
        let length = output.seek(SeekFrom::End(0))?;
        output.seek(SeekFrom::Start(length.saturating_sub(MAX_OUTPUT)))?;
        let mut bytes = Vec::new();
        output.take(MAX_OUTPUT).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().replace('\n', "; "),
        Err(error) => crate::error::reason(&error),
    }
}

fn memfd() -> io::Result<File> {
    let fd: OwnedFd = rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC)?;
    Ok(File::from(fd))
}

fn split(entry: &[u8]) -> Option<(&std::ffi::OsStr, &std::ffi::OsStr)> {
    let at = entry.iter().position(|&byte| byte == b'=')?;
    let (name, value) = entry.split_at_checked(at)?;
    Some((
        std::ffi::OsStr::from_bytes(name),
        std::ffi::OsStr::from_bytes(value.get(1..)?),
    ))
}

/// Waits for the end of a hook; `None` if it was killed after its time.
fn wait(child: &mut Child, timeout: Option<u64>) -> io::Result<Option<std::process::ExitStatus>> {
    let Some(seconds) = timeout else {
        return child.wait().map(Some);
    };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = std::time::Instant::now().checked_add(Duration::from_secs(seconds));
    loop {
        let left =
            deadline.map(|deadline| deadline.saturating_duration_since(std::time::Instant::now()));
        let left = left
            .map(Timespec::try_from)
            .transpose()
            .map_err(io::Error::other)?;
        match rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], left.as_ref()) {
            Ok(0) => {
                // With what it has started, which is in its group.
                match rustix::process::kill_process_group(pid, Signal::KILL) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(error) => return Err(error.into()),
                }
                child.wait()?;
                return Ok(None);
            }
            Ok(_) => return child.wait().map(Some),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
