//! How processes of a container end.

use rustix::process::WaitStatus;

/// How a container's init process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit code, if it exited.
    pub(crate) code: u32,
    /// The signal that ended it, or 0.
    pub(crate) signal: u32,
    /// Whether the OOM killer has ended a process of the container.
    pub(crate) oom_killed: bool,
}

impl Exit {
    /// That of a process whose end was not told.
    pub(crate) fn unknown() -> Self {
        Self {
            code: 0,
            signal: libc::SIGKILL.unsigned_abs(),
            oom_killed: false,
        }
    }

    pub(crate) fn of(status: WaitStatus, oom_killed: bool) -> Self {
        let number = |number: Option<i32>| number.map_or(0, i32::unsigned_abs);
        Self {
            code: number(status.exit_status()),
            signal: number(status.terminating_signal()),
            oom_killed,
        }
    }
}
