//! The container's cgroup (Linux Documentation/admin-guide/cgroup-v2.rst).

mod devices;
mod resources;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, Mode, OFlags};

use crate::config::Resources;
use crate::error::{Context, Failure};
use crate::{Error, Result};

/// linux/magic.h
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// What is enabled for containers if the machine has it.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// How long processes may take to stop where they are.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long killed processes may take to be gone.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How many processes are opened at once to be sent a signal; the list of all is read once for each
/// so many.
const SIGNAL_BATCH: usize = 512;

#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    dir: OwnedFd,
}

impl Cgroup {
    /// Makes the cgroup `id` below `parent`.
    pub(crate) fn create(parent: &Path, id: &str) -> Result<Self> {
        prepare(parent)?;
        let path = parent.join(id);
        match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(Error::Exists { id: id.to_owned() }),
            Err(error) => {
                return Err(
                    Failure::system(format!("create cgroup {}", path.display()), error).into(),
                );
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(CWD, &path, flags, Mode::empty()) {
            Ok(dir) => Ok(Cgroup { path, dir }),
            Err(error) => {
                let failure = Failure::system(format!("open cgroup {}", path.display()), error);
                rustix::fs::rmdir(&path).doing(|| format!("remove cgroup {}", path.display()))?;
                Err(failure.into())
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// Sets the limits and the device filter.
    pub(crate) fn apply(&self, resources: &Resources) -> std::result::Result<(), Failure> {
        resources::apply(self, resources)?;
        devices::apply(self, &resources.devices)
    }

    /// Gives the cgroup to the owner of a user namespace (config-linux.md#cgroup-ownership).
    pub(crate) fn delegate(&self, uid: u32) -> std::result::Result<(), Failure> {
        let context = || format!("change the owner of cgroup {}", self.path.display());
        chown(&self.path, Some(uid), None).doing(context)?;
        let files = fs::read_to_string("/sys/kernel/cgroup/delegate")
            .unwrap_or_else(|_| "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n".into());
        for file in files.lines() {
            match chown(self.path.join(file), Some(uid), None) {
                // The list names what the kernel has, a cgroup only has the controllers enabled for it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result.doing(context)?,
            }
        }
        Ok(())
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, file, flags, Mode::empty())?;
        let written = rustix::io::write(&file, value.as_bytes())?;
        if written == value.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.path.join(file))
    }

    /// Sends a signal to every process.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        if signal == libc::SIGKILL {
            return self.write("cgroup.kill", "1");
        }
        let pids = self.all_pids()?;
        for batch in pids.chunks(SIGNAL_BATCH) {
            let mut opened = Vec::with_capacity(batch.len());
            for &pid in batch {
                let Some(number) = rustix::process::Pid::from_raw(pid) else {
                    continue;
                };
                let flags = rustix::process::PidfdFlags::empty();
                match rustix::process::pidfd_open(number, flags) {
                    Ok(pidfd) => opened.push((pid, pidfd)),
                    // EINVAL: it was reaped while the kernel looked it up.
                    Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            // A number may have had a new owner when it was opened: who is still listed has not.
            let listed: HashSet<i32> = self.all_pids()?.into_iter().collect();
            for (_, pidfd) in opened.iter().filter(|(pid, _)| listed.contains(pid)) {
                match crate::sys::pidfd_send_signal(pidfd, signal) {
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }

    /// Sets limits of a container that runs.
    pub(crate) fn update(&self, resources: &Resources) -> std::result::Result<(), Failure> {
        resources::apply(self, resources)
    }

    /// Stops all processes, or lets them go on, and waits until they do.
    pub(crate) fn freeze(&self, frozen: bool) -> io::Result<()> {
        let wanted = if frozen { "1" } else { "0" };
        self.write("cgroup.freeze", wanted)?;
        let reached = self.wait_for("frozen", wanted, FREEZE_TIMEOUT);
        if reached.is_err() {
            // A process in the kernel that no signal reaches: it is as it was.
            self.write("cgroup.freeze", if frozen { "0" } else { "1" })?;
        }
        reached
    }

    /// Whether its processes are stopped, or are about to be.
    pub(crate) fn is_frozen(&self) -> bool {
        self.read("cgroup.freeze")
            .is_ok_and(|text| text.trim() == "1")
    }

    pub(crate) fn all_pids(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        for dir in subtree(&self.path)? {
            match fs::read_to_string(dir.join("cgroup.procs")) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pids)
    }

    /// Whether the OOM killer has ended a process in it.
    pub(crate) fn oom_killed(&self) -> bool {
        let events = self.read("memory.events").unwrap_or_default();
        events
            .lines()
            .filter_map(|line| line.strip_prefix("oom_kill "))
            .any(|count| count.trim() != "0")
    }

    /// Kills what is in it and removes it, with all that the container has made below.
    pub(crate) fn remove(&self) -> std::result::Result<(), Failure> {
        let context = || format!("remove cgroup {}", self.path.display());
        match self.write("cgroup.kill", "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.doing(context)?,
        }
        self.wait_for("populated", "0", REMOVAL_TIMEOUT)
            .doing(context)?;
        for dir in subtree(&self.path).doing(context)?.into_iter().rev() {
            match fs::remove_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::system(context(), error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits until `cgroup.events` says so of a state.
    fn wait_for(&self, state: &str, value: &str, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        let events = File::open(self.path.join("cgroup.events"))?;
        loop {
            let mut buffer = [0; 128];
            let length = rustix::io::pread(&events, &mut buffer, 0)?;
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            let mut states = text.lines().filter_map(|line| line.split_once(' '));
            if states.any(|found| found == (state, value)) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // A change of the file is a POLLPRI. One that came between reading and polling is not
            // lost: the kernel remembers what this file has read.
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds = [PollFd::new(&events, PollFlags::PRI)];
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A cgroup and those below it, parents first.
fn subtree(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![path.to_owned()];
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        next += 1;
        match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            entries => {
                for entry in entries? {
                    let entry = entry?;
                    if entry.file_type()?.is_dir() {
                        found.push(entry.path());
                    }
                }
            }
        }
    }
    Ok(found)
}

/// Makes the parent if it is missing, and gives it and its ancestors the controllers there are.
fn prepare(parent: &Path) -> std::result::Result<(), Failure> {
    fs::create_dir_all(parent).doing(|| format!("create cgroup {}", parent.display()))?;
    let mut levels = Vec::new();
    for level in parent.ancestors() {
        if !is_cgroup(level) {
            break;
        }
        levels.push(level);
    }
    if levels.is_empty() {
        return Err(Failure::new(format!(
            "{} is not in a cgroup v2 hierarchy",
            parent.display()
        )));
    }
    for level in levels.iter().rev() {
        enable_controllers(level)
            .doing(|| format!("enable the controllers of cgroup {}", level.display()))?;
    }
    Ok(())
}

fn is_cgroup(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == CGROUP2_SUPER_MAGIC)
}

fn enable_controllers(level: &Path) -> io::Result<()> {
    let available = fs::read_to_string(level.join("cgroup.controllers"))?;
    let control = level.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control)?;
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|name| available.split_whitespace().any(|there| there == *name))
        .filter(|name| !enabled.split_whitespace().any(|there| there == *name))
        .collect();
    let all = missing
        .iter()
        .map(|name| format!("+{name}"))
        .collect::<Vec<_>>()
        .join(" ");
    if all.is_empty() || fs::write(&control, all).is_ok() {
        return Ok(());
    }
    // One that cannot be had does not keep the others away. A limit that needs it fails and says so.
    for name in missing {
        match fs::write(&control, format!("+{name}")) {
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::EBUSY | libc::EINVAL | libc::ENOENT | libc::EOPNOTSUPP)
                ) =>
            {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.dir.as_fd()
    }
}
