//! Processes named across time: a pid alone may belong to somebody else by now.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::signal::Signal;
use crate::sys::signal_process;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A process and the moment it was born, which together are not used again before the next boot:
/// whoever keeps one for longer keeps [`boot_id`] beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessId {
    /// The pid in the host's namespace.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks since boot.
    pub start_time: u64,
}

/// What `/proc/<pid>/stat` says of a process.
struct Stat {
    state: char,
    start_time: u64,
}

impl ProcessId {
    /// Stands for a process that is not there: no process has pid 0.
    pub const NOBODY: Self = Self {
        pid: 0,
        start_time: 0,
    };

    /// Names a process that runs now.
    ///
    /// # Errors
    /// If there is none with this pid.
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start_time: stat(pid)?.start_time,
        })
    }

    /// Names the calling process.
    ///
    /// # Errors
    /// If `/proc` is not mounted.
    pub fn current() -> io::Result<Self> {
        Self::of(rustix::process::getpid().as_raw_pid())
    }

    /// Whether the process still runs; a zombie does not.
    #[must_use]
    pub fn alive(self) -> bool {
        stat(self.pid).is_ok_and(|stat| {
            stat.start_time == self.start_time && !matches!(stat.state, 'Z' | 'X' | 'x')
        })
    }

    /// Opens the process; `None` if it has ended.
    ///
    /// # Errors
    /// If the process is there but cannot be opened.
    pub fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // The descriptor was opened first and the identity checked after: if the birth time
            // is right now, the descriptor is for this process and no later one.
            Ok(fd) if self.alive() => Ok(Some(fd)),
            // EINVAL: it was reaped while the kernel looked it up.
            Ok(_) | Err(Errno::SRCH | Errno::INVAL) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends a signal; `false` if the process has ended.
    ///
    /// # Errors
    /// If the process may not be signalled.
    pub fn signal(self, signal: Signal) -> io::Result<bool> {
        let Some(fd) = self.open()? else {
            return Ok(false);
        };
        match signal_process(fd.as_fd(), signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until the process has ended; `false` if it has not within `limit`.
    ///
    /// # Errors
    /// If the process cannot be watched.
    pub fn wait_ended(self, limit: Duration) -> io::Result<bool> {
        let Some(fd) = self.open()? else {
            return Ok(true);
        };
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or(Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            });
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// What tells this boot of the machine from all others (random(4)).
///
/// # Errors
/// If `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim_ascii().to_owned())
}

fn stat(pid: i32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse(&text).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/proc/{pid}/stat is not understood"),
        )
    })
}

/// proc_pid_stat(5): the command's name is in parentheses and may hold any character.
fn parse(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3, the start time field 22.
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start_time })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        let stat = parse(&format!("12 (a) Z (b)) {rest}")).unwrap();
        assert_eq!(stat.state, 'S');
        assert_eq!(stat.start_time, 4711);
        assert!(parse("12 (a) S 1 2").is_none());
    }

    #[test]
    fn the_same_pid_at_another_time_is_another_process() {
        let me = ProcessId::current().unwrap();
        assert!(me.alive());
        assert!(me.open().unwrap().is_some());
        let other = ProcessId {
            start_time: me.start_time + 1,
            ..me
        };
        assert!(!other.alive());
        assert!(other.open().unwrap().is_none());
        assert!(!other.signal(Signal::KILL).unwrap(), "and is not killed");
        let nobody = ProcessId::NOBODY;
        assert!(!nobody.alive() && !nobody.signal(Signal::KILL).unwrap());
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = Command::new("sleep")
            .arg("60")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process = ProcessId::of(child.id().try_into().unwrap()).unwrap();
        assert!(!process.wait_ended(Duration::from_millis(10)).unwrap());
        assert!(process.signal(Signal::KILL).unwrap());
        assert!(process.wait_ended(Duration::from_secs(10)).unwrap());
        assert!(!process.alive());
        child.wait().unwrap();
        assert!(!process.alive());
    }
}
