//! Stopping the processes of a cgroup and letting them go on.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::CgroupError;
use super::file;

/// How long the processes of a cgroup may take to stop.
const LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(1);
/// After how many looks at a cgroup of version 1 it is thawed for a moment.
const LOOKS: u32 = 50;

/// Whether a cgroup of version 2 is frozen; one that is not there is not.
pub(super) fn is_frozen_v2(dir: &Path) -> Result<bool, CgroupError> {
    Ok(file::number(&dir.join("cgroup.freeze"))? == Some(1))
}

/// Whether a cgroup of version 1 is frozen by itself, not by one above it.
pub(super) fn is_frozen_v1(dir: &Path) -> Result<bool, CgroupError> {
    let state = file::read(&dir.join("freezer.state"))?.unwrap_or_default();
    if state.trim().is_empty() || state.trim() == "THAWED" {
        return Ok(false);
    }
    Ok(file::number(&dir.join("freezer.self_freezing"))? != Some(0))
}

/// Freezes a cgroup of version 2 and waits until it is. If it does not become so, it is thawed.
pub(super) fn freeze_v2(dir: &Path) -> Result<(), CgroupError> {
    let error = |error| failed("freeze", dir, error);
    file::write(&dir.join("cgroup.freeze"), "1").map_err(error)?;
    let deadline = Instant::now() + LIMIT;
    loop {
        if file::number_of(&dir.join("cgroup.events"), "frozen")? == Some(1) {
            return Ok(());
        }
        if Instant::now() > deadline {
            thaw_v2(dir)?;
            return Err(error(io::ErrorKind::TimedOut.into()));
        }
        std::thread::sleep(PAUSE);
    }
}

/// Lets the processes of a cgroup of version 2 go on.
pub(super) fn thaw_v2(dir: &Path) -> Result<(), CgroupError> {
    file::write(&dir.join("cgroup.freeze"), "0").map_err(|e| failed("thaw", dir, e))
}

/// Freezes a cgroup of version 1 and waits until it is. If it does not become so, it is thawed.
pub(super) fn freeze_v1(dir: &Path) -> Result<(), CgroupError> {
    let result = try_freeze_v1(dir);
    if result.is_err() {
        // Half frozen is worse than not at all.
        let _ = thaw_v1(dir);
    }
    result
}

fn try_freeze_v1(dir: &Path) -> Result<(), CgroupError> {
    let path = dir.join("freezer.state");
    let error = |error| failed("freeze", dir, error);
    let deadline = Instant::now() + LIMIT;
    let mut looks = 0;
    loop {
        // The kernel may stay at FREEZING for good while processes are born: it has to be asked
        // again, and to begin anew at times.
        file::write(&path, "FROZEN").map_err(error)?;
        if file::read(&path)?.is_some_and(|state| state.trim() == "FROZEN") {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(error(io::ErrorKind::TimedOut.into()));
        }
        looks += 1;
        if looks % LOOKS == 0 {
            thaw_v1(dir)?;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Lets the processes of a cgroup of version 1 go on.
pub(super) fn thaw_v1(dir: &Path) -> Result<(), CgroupError> {
    file::write(&dir.join("freezer.state"), "THAWED").map_err(|e| failed("thaw", dir, e))
}

fn failed(verb: &'static str, dir: &Path, error: io::Error) -> CgroupError {
    CgroupError::Freeze {
        verb,
        path: dir.to_owned(),
        error,
    }
}
