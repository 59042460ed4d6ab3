//! Notes in a state directory: files without contents, whose names say everything.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::StateError;
use crate::paths::ContainerPaths;
use crate::process::ProcessId;

/// Notes that the user's program of a container was started.
///
/// # Errors
/// If the note cannot be made.
pub fn mark_started(paths: &ContainerPaths) -> Result<(), StateError> {
    turn(paths.not_started(), paths.started(), true)
}

/// Makes the notes that later commands turn round: a disk that is full by then takes no new file.
///
/// # Errors
/// If one cannot be made.
pub fn prepare_notes(paths: &ContainerPaths) -> Result<(), StateError> {
    for path in [paths.not_started(), paths.not_paused()] {
        note(&path).map_err(|e| StateError::Access(path, e))?;
    }
    Ok(())
}

/// Turns a note round to `yes` or `no`; it is done if it was done before.
pub(super) fn turn(no: PathBuf, yes: PathBuf, is: bool) -> Result<(), StateError> {
    let (from, to) = if is { (no, yes) } else { (yes, no) };
    let turned = match fs::rename(&from, &to) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => note(&to),
        result => result,
    };
    turned.map_err(|e| StateError::Access(to, e))
}

/// A note in a state directory that is taken back when the value is dropped.
#[derive(Debug)]
pub struct Note(PathBuf);

impl Note {
    fn make(dir: PathBuf, name: &str) -> Result<Self, StateError> {
        let path = dir.join(name);
        let made = match DirBuilder::new().mode(0o700).create(&dir) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => note(&path),
        };
        match made {
            Ok(()) => Ok(Self(path)),
            Err(e) => Err(StateError::Access(path, e)),
        }
    }

    /// Notes that a container is in the virtual machine of the one whose directory `machine` is.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn member(machine: &ContainerPaths, id: &str) -> Result<Self, StateError> {
        Self::make(machine.members(), id)
    }

    /// Notes that this process is the monitor of one executed in a container.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn exec(paths: &ContainerPaths) -> Result<Self, StateError> {
        Self::process(paths.execs())
    }

    /// Notes that this process stands in the foreground for one executed in a container.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn command(paths: &ContainerPaths) -> Result<Self, StateError> {
        Self::process(paths.commands())
    }

    fn process(dir: PathBuf) -> Result<Self, StateError> {
        let current = ProcessId::current();
        let ProcessId { pid, start_time } =
            current.map_err(|e| StateError::Access(dir.clone(), e))?;
        Self::make(dir, &format!("{pid}-{start_time}"))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        // Gone with the directory, or of somebody who has been killed and is passed over.
        let _ = fs::remove_file(&self.0);
    }
}

/// Makes an empty file, unless there is one.
fn note(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    Ok(())
}
