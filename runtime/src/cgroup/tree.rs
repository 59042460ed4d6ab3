//! The directories of cgroups: making and removing them, and the processes in them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::file::{self, is_gone};
use super::{CgroupError, Hierarchies};

/// How long a cgroup may take to become empty whose processes are about to end.
pub(super) const REMOVE_LIMIT: Duration = Duration::from_secs(1);
/// How long to wait before it is attempted again: at first, and at most.
const REMOVE_PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];
/// How often a process is attempted that is being born: cgroup.procs then takes no pid.
const JOIN_TRIES: u32 = 5;
const JOIN_PAUSE: Duration = Duration::from_millis(30);
/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
const KILL_PAUSE: Duration = Duration::from_millis(5);

/// The hierarchies that may be missing or out of bounds: they limit nothing.
const OPTIONAL: [&str; 3] = ["name=systemd", "misc", Hierarchies::UNIFIED];

/// Directories that were made. Unless they are kept, they are removed again when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Made {
    dirs: Vec<PathBuf>,
    kept: bool,
}

impl Made {
    /// Makes a directory; one that is there is as good.
    fn dir(&mut self, path: &Path) -> Result<(), CgroupError> {
        match fs::create_dir(path) {
            Ok(()) => self.dirs.push(path.to_owned()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(CgroupError::Create(path.to_owned(), e)),
        }
        Ok(())
    }

    /// Whether the directory was not there before.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.dirs.iter().any(|dir| dir == path)
    }

    /// Leaves the directories where they are.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.kept {
            for dir in self.dirs.iter().rev() {
                // One that others use meanwhile stays.
                let _ = remove_dir(dir);
            }
        }
    }
}

/// The directories on the way from a mount point, which is not among them, to `path`.
fn steps(mount: &Path, path: &Path) -> Vec<PathBuf> {
    let mut steps: Vec<_> = path
        .ancestors()
        .take_while(|dir| *dir != mount && dir.starts_with(mount))
        .map(Path::to_owned)
        .collect();
    steps.reverse();
    steps
}

/// Makes a cgroup of version 1.
pub(super) fn make_v1(
    controller: &str,
    mount: &Path,
    path: &Path,
    made: &mut Made,
) -> Result<(), CgroupError> {
    let mut parent = mount.to_owned();
    for dir in steps(mount, path) {
        made.dir(&dir)?;
        if controller == "cpuset" {
            inherit_cpuset(&parent, &dir)?;
        }
        parent = dir;
    }
    Ok(())
}

/// No process can join a cpuset without processors and memory nodes, which a new one has not.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let path = dir.join(name);
        let own = file::read(&path)?;
        if own.is_none_or(|own| !own.trim().is_empty()) {
            continue;
        }
        let inherited = file::read(&parent.join(name))?.unwrap_or_default();
        file::write(&path, inherited.trim()).map_err(|e| CgroupError::Create(path, e))?;
    }
    Ok(())
}

/// Makes a cgroup of version 2 to which every controller that there is is handed down.
/// `whole_processes` says that limits are to be set which threads cannot have by themselves.
pub(super) fn make_v2(
    mount: &Path,
    path: &Path,
    whole_processes: bool,
    made: &mut Made,
) -> Result<(), CgroupError> {
    let mut parent = mount.to_owned();
    for dir in steps(mount, path) {
        enable_controllers(&parent)?;
        made.dir(&dir)?;
        check_mode(&dir, whole_processes)?;
        parent = dir;
    }
    Ok(())
}

/// Hands the controllers of a cgroup down to those below it. What cannot be handed down is found
/// out when a limit is set.
fn enable_controllers(dir: &Path) -> Result<(), CgroupError> {
    let there = file::read(&dir.join("cgroup.controllers"))?.unwrap_or_default();
    let path = dir.join("cgroup.subtree_control");
    let enabled = file::read(&path)?.unwrap_or_default();
    let enabled: Vec<_> = enabled.split_whitespace().collect();
    let missing: Vec<_> = there
        .split_whitespace()
        .filter(|name| !enabled.contains(name))
        .map(|name| format!("+{name}"))
        .collect();
    if !missing.is_empty() && file::write(&path, &missing.join(" ")).is_err() {
        // One may be at fault for all.
        for name in &missing {
            if let Err(e) = file::write(&path, name) {
                log::debug!("{}: {name}: {e}", path.display());
            }
        }
    }
    Ok(())
}

/// Below a cgroup with processes, or one of threads, a cgroup can only be one of threads.
fn check_mode(dir: &Path, whole_processes: bool) -> Result<(), CgroupError> {
    let path = dir.join("cgroup.type");
    let mode = file::read(&path)?.unwrap_or_default();
    let mode = mode.trim();
    match mode {
        "" | "domain" => Ok(()),
        _ if whole_processes => Err(CgroupError::Mode {
            path: dir.to_owned(),
            mode: mode.to_owned(),
        }),
        "domain invalid" => {
            file::write(&path, "threaded").map_err(|e| CgroupError::Create(dir.to_owned(), e))
        }
        _ => Ok(()),
    }
}

/// Whether a controller's hierarchy need not have the sandbox in it.
pub(super) fn is_optional(controller: &str, version: super::Version) -> bool {
    version == super::Version::V1 && OPTIONAL.contains(&controller)
}

/// Puts a process into a cgroup.
pub(super) fn join(dir: &Path, pid: u32) -> Result<(), CgroupError> {
    let path = dir.join("cgroup.procs");
    let mut tries = JOIN_TRIES;
    loop {
        tries -= 1;
        match file::write(&path, &pid.to_string()) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::InvalidInput && tries > 0 => {
                std::thread::sleep(JOIN_PAUSE);
            }
            Err(error) => {
                return Err(CgroupError::Join {
                    pid,
                    path: dir.to_owned(),
                    error,
                });
            }
        }
    }
}

/// Puts a process into a cgroup of each hierarchy, or back where it was.
pub(super) fn join_all(
    paths: &BTreeMap<String, PathBuf>,
    hierarchies: &Hierarchies,
    pid: u32,
) -> Result<(), CgroupError> {
    let before = hierarchies.places(pid)?;
    for (controller, path) in paths {
        match join(path, pid) {
            Err(e) if !is_optional(controller, hierarchies.version()) => {
                move_back(&before, paths, pid);
                return Err(e);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Undoes a join as far as possible.
pub(super) fn move_back(
    before: &BTreeMap<String, PathBuf>,
    paths: &BTreeMap<String, PathBuf>,
    pid: u32,
) {
    for (controller, path) in before {
        if paths.contains_key(controller)
            && let Err(e) = join(path, pid)
        {
            log::warn!("{}", crate::text::chain(&e));
        }
    }
}

/// The processes in a cgroup and in those below it. One that is not there has none.
pub(super) fn processes(dir: &Path) -> Result<Vec<u32>, CgroupError> {
    let mut pids = own_processes(dir)?;
    for child in children(dir)? {
        pids.extend(processes(&child)?);
    }
    Ok(pids)
}

fn own_processes(dir: &Path) -> Result<Vec<u32>, CgroupError> {
    let path = dir.join("cgroup.procs");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if is_gone(&e) => return Ok(Vec::new()),
        // One of threads knows no processes.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            file::read(&dir.join("cgroup.threads"))?.unwrap_or_default()
        }
        Err(e) => return Err(CgroupError::Read(path, e)),
    };
    let pids = text.lines().filter_map(|line| line.trim().parse().ok());
    // Those of other pid namespaces are shown as 0.
    Ok(pids.filter(|&pid| pid != 0).collect())
}

fn children(dir: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if is_gone(&e) => return Ok(Vec::new()),
        Err(e) => return Err(CgroupError::Read(dir.to_owned(), e)),
    };
    let mut children = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| CgroupError::Read(dir.to_owned(), e))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            children.push(entry.path());
        }
    }
    Ok(children)
}

/// Kills every process in a cgroup and below it but this one, and waits until they are gone.
pub(super) fn kill(dir: &Path) -> Result<(), CgroupError> {
    let me = std::process::id();
    let deadline = Instant::now() + KILL_LIMIT;
    loop {
        let pids: Vec<_> = processes(dir)?.into_iter().filter(|&p| p != me).collect();
        if pids.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(CgroupError::Alive {
                path: dir.to_owned(),
                count: pids.len(),
            });
        }
        // Others may be born meanwhile: again until there is none.
        for pid in pids {
            if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
                // It may have ended since.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(KILL_PAUSE);
    }
}

/// Removes a cgroup and those below it; one that is not there is no error. Processes that are about
/// to end are waited for until `deadline`.
pub(super) fn remove(dir: &Path, deadline: Instant) -> Result<(), CgroupError> {
    if remove_dir(dir).is_ok() {
        return Ok(());
    }
    for child in children(dir)? {
        remove(&child, deadline)?;
    }
    let [mut pause, longest] = REMOVE_PAUSES;
    loop {
        match remove_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {}
            result => return result.map_err(|e| CgroupError::Remove(dir.to_owned(), e)),
        }
        std::thread::sleep(pause);
        pause = longest.min(pause * 2);
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if !is_gone(&e) => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
