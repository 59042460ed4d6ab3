//! Hooks: the programs that a specification has run at points of a container's life
//! (config.md#posix-platform-hooks).
//!
//! [`run`] and [`run_all`] block until the hooks have ended, so that a caller with other things to
//! attend to gives them a thread. One loop feeds a hook its standard input, collects what it
//! prints, and watches its end and the clock; no order in which a hook reads, prints, closes its
//! streams and ends can hold it up:
//!
//! ```text
//!   spawn ─▶ running ──ended with 0───────────────────────────▶ done
//!               │ ├─────ended otherwise─▶ lingering ──────────▶ failed, with its output
//!               │ │                          (until its streams are closed, LINGER at most)
//!               │ └─────timeout────▶ process group killed ────▶ failed
//! ```
//!
//! A hook may leave processes behind. They are not waited for, whatever they hold open.

mod process;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use oci_spec::runtime::{Hook, Hooks};

use self::process::Running;

/// When hooks are run, in the order of a container's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Within `create`, before the others; deprecated by the specification.
    Prestart,
    /// Within `create`, in the namespaces of the runtime.
    CreateRuntime,
    /// Within `create`, in the namespaces of the container.
    CreateContainer,
    /// Within `start`, in the container, before the user's program.
    StartContainer,
    /// Within `start`, after the user's program was started.
    Poststart,
    /// Within `delete`, after the container was destroyed.
    Poststop,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    /// The specification's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// The hooks of this kind.
    #[must_use]
    pub fn of(self, hooks: &Hooks) -> &[Hook] {
        let list = match self {
            Self::Prestart => hooks.prestart(),
            Self::CreateRuntime => hooks.create_runtime(),
            Self::CreateContainer => hooks.create_container(),
            Self::StartContainer => hooks.start_container(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What hooks are run in.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The working directory: as with runc the bundle, or the root file system for `createContainer`.
    pub dir: &'a Path,
    /// The network namespace, if it is another than the caller's: hooks of the runtime's
    /// namespaces must not find themselves in the container's.
    pub network: Option<BorrowedFd<'a>>,
}

/// A hook that failed. Followed by its cause it reads as with runc.
#[derive(Debug, thiserror::Error)]
#[error("error running {kind} hook #{index}")]
pub struct HookError {
    /// Which list it is in.
    pub kind: Kind,
    /// Where in the list, from 0.
    pub index: usize,
    /// The program.
    pub path: PathBuf,
    /// What went wrong.
    #[source]
    pub cause: Cause,
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The specification wants an absolute path.
    #[error("path {} is not absolute", .0.display())]
    Relative(PathBuf),
    /// The specification wants a timeout to be greater than zero.
    #[error("timeout {0} is not greater than zero")]
    Timeout(i64),
    /// An entry of `env` is none.
    #[error("env[{0}] is no NAME=VALUE")]
    Env(usize),
    /// The program cannot be started.
    #[error("cannot start {}", .0.display())]
    Start(PathBuf, #[source] io::Error),
    /// The program cannot be attended to.
    #[error("cannot follow {}", .0.display())]
    Follow(PathBuf, #[source] io::Error),
    /// The program has ended, and not with success.
    #[error("{status}, stdout: {stdout}, stderr: {stderr}")]
    Ended {
        /// How.
        status: Ending,
        /// The end of what it has printed to its standard output.
        stdout: String,
        /// The same for its standard error.
        stderr: String,
    },
    /// The program took too long and was killed.
    #[error("{} ran past its timeout of {seconds}s, stdout: {stdout}, stderr: {stderr}", path.display())]
    TimedOut {
        /// The program.
        path: PathBuf,
        /// The timeout.
        seconds: u64,
        /// The end of what it has printed to its standard output.
        stdout: String,
        /// The same for its standard error.
        stderr: String,
    },
}

/// How a program has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending(ExitStatus);

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.code(), self.0.signal()) {
            (Some(code), _) => write!(f, "exit status {code}"),
            (None, Some(signal)) => write!(f, "killed by signal {signal}"),
            (None, None) => self.0.fmt(f),
        }
    }
}

/// Runs hooks in their order, each with `state` on its standard input. The first failure is the
/// end of it.
///
/// # Errors
/// If a hook cannot be run, fails or exceeds its timeout.
pub fn run(
    kind: Kind,
    hooks: &[Hook],
    state: &[u8],
    surroundings: Surroundings<'_>,
) -> Result<(), HookError> {
    for (index, hook) in hooks.iter().enumerate() {
        run_one(kind, index, hook, state, surroundings)?;
    }
    Ok(())
}

/// Runs hooks in their order, each with `state` on its standard input, whatever comes of those
/// before it: runtime.md#lifecycle wants that of `poststop` hooks. Returns what failed, which is
/// for the log.
#[must_use]
pub fn run_all(
    kind: Kind,
    hooks: &[Hook],
    state: &[u8],
    surroundings: Surroundings<'_>,
) -> Vec<HookError> {
    let each = hooks.iter().enumerate();
    each.filter_map(|(index, hook)| run_one(kind, index, hook, state, surroundings).err())
        .collect()
}

/// Checks what of the hooks of a kind can be checked before any is run.
///
/// # Errors
/// The first thing that the specification forbids.
pub fn check(kind: Kind, hooks: &[Hook]) -> Result<(), HookError> {
    for (index, hook) in hooks.iter().enumerate() {
        checked(hook).map_err(|cause| error(kind, index, hook, cause))?;
    }
    Ok(())
}

fn error(kind: Kind, index: usize, hook: &Hook, cause: Cause) -> HookError {
    HookError {
        kind,
        index,
        path: hook.path().clone(),
        cause,
    }
}

fn run_one(
    kind: Kind,
    index: usize,
    hook: &Hook,
    state: &[u8],
    surroundings: Surroundings<'_>,
) -> Result<(), HookError> {
    checked(hook)
        .and_then(|checked| Running::start(&checked, surroundings)?.attend(&checked, state))
        .map_err(|cause| error(kind, index, hook, cause))
}

/// A hook that keeps to the specification.
struct Checked<'a> {
    path: &'a Path,
    args: &'a [String],
    /// `None` for the environment of this process, as runc and crun have it.
    env: Option<Vec<(&'a str, &'a str)>>,
    timeout: Option<Duration>,
}

fn checked(hook: &Hook) -> Result<Checked<'_>, Cause> {
    if !hook.path().is_absolute() {
        return Err(Cause::Relative(hook.path().clone()));
    }
    let timeout = match hook.timeout() {
        None => None,
        Some(seconds) => match u64::try_from(seconds) {
            Ok(positive) if positive > 0 => Some(Duration::from_secs(positive)),
            _ => return Err(Cause::Timeout(seconds)),
        },
    };
    let env = hook.env().as_deref().map(|env| {
        let env = env.iter().enumerate();
        env.map(|(index, entry)| entry.split_once('=').ok_or(Cause::Env(index)))
            .collect::<Result<_, _>>()
    });
    Ok(Checked {
        path: hook.path(),
        args: hook.args().as_deref().unwrap_or_default(),
        env: env.transpose()?,
        timeout,
    })
}

#[cfg(test)]
mod tests;
