//! What is known of a container on the host: its state directory.
//!
//! ```text
//! <root>/<id>/            mode 0700; its existence claims the id
//!   state.json            written by the monitor alone, replaced atomically
//!   config.json           the specification, as it was read
//!   started               empty; there once the user's program was started, `not-started` before
//!   paused                empty; there while the container is paused, `not-paused` otherwise
//!   members/ID            empty; each names a container in the virtual machine of this one
//!   execs/PID-START       empty; each names a monitor of a process that was executed here
//!   commands/PID-START    empty; each names a command in the foreground that stands for one
//!   console.log agent.log monitor.log vsock.sock control.sock
//! ```
//!
//! The status follows from these and from whether the monitor lives, never from asking the guest:
//!
//! ```text
//!   monitor not alive, or an exit recorded ─▶ stopped
//!   phase "creating"                       ─▶ creating
//!   `paused` is there                      ─▶ paused
//!   phase "created", no `started`          ─▶ created
//!   phase "created" and `started`          ─▶ running
//! ```
//!
//! Commands that change a container hold a lock on the directory. The monitor takes none, so that
//! nothing can keep it from ending.

mod notes;
mod record;
mod salvage;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;

use self::notes::turn;
pub use self::notes::{Note, mark_started, prepare_notes};
pub use self::record::{HookState, NetworkPlace, Phase, STATE_VERSION, State, Status, VmSize};
use crate::id::ContainerId;
use crate::paths::ContainerPaths;
use crate::process::ProcessId;
use crate::text::chain;

/// How long to wait before a lock is asked for again.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// How often a directory is attempted that fills up while it is being removed.
const REMOVE_TRIES: u32 = 3;

/// Why a container's state cannot be had. The first two texts begin as runc's.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The id is taken.
    #[error("container with given ID already exists: {0}")]
    Exists(ContainerId),
    /// There is no such container.
    #[error("container does not exist: {0}")]
    NotFound(ContainerId),
    /// The directory that holds all containers cannot be made.
    #[error("cannot make the root directory {}", .0.display())]
    Root(PathBuf, #[source] io::Error),
    /// A file cannot be read or written.
    #[error("cannot access {}", .0.display())]
    Access(PathBuf, #[source] io::Error),
    /// A state file is damaged.
    #[error("{} is damaged", .0.display())]
    Damaged(PathBuf, #[source] serde_json::Error),
    /// A state file is of another version of cloister.
    #[error("{}: version {got} of the state file is not understood", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        got: u32,
    },
    /// Another command works on the container.
    #[error("container {0} is busy: another command is working on it")]
    Busy(ContainerId),
}

/// A container's state directory, opened.
#[derive(Debug)]
pub struct StateDir {
    id: ContainerId,
    paths: ContainerPaths,
    /// The directory; the lock is on this descriptor.
    dir: File,
}

/// A container by its name, and its directory or why that cannot be opened.
pub type Found = (ContainerId, Result<StateDir, StateError>);

impl StateDir {
    /// Claims an id: makes its directory and locks it.
    ///
    /// # Errors
    /// [`StateError::Exists`] if the id is taken.
    pub fn create(root: &Path, id: &ContainerId) -> Result<Self, StateError> {
        let paths = ContainerPaths::new(root, id.as_str());
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        let mut made = builder.create(paths.dir());
        if made
            .as_ref()
            .is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
        {
            DirBuilder::new()
                .mode(0o711)
                .recursive(true)
                .create(root)
                .map_err(|e| StateError::Root(root.to_owned(), e))?;
            made = builder.create(paths.dir());
        }
        match made {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StateError::Exists(id.clone()));
            }
            Err(e) => return Err(StateError::Access(paths.dir().to_owned(), e)),
        }
        let this = Self::open(root, id)?;
        this.lock(Duration::ZERO)?;
        Ok(this)
    }

    /// Opens the directory of an id.
    ///
    /// # Errors
    /// [`StateError::NotFound`] if there is none.
    pub fn open(root: &Path, id: &ContainerId) -> Result<Self, StateError> {
        let paths = ContainerPaths::new(root, id.as_str());
        match open_directory(paths.dir()) {
            Ok(dir) => Ok(Self {
                id: id.clone(),
                paths,
                dir,
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(StateError::NotFound(id.clone())),
            Err(e) => Err(StateError::Access(paths.dir().to_owned(), e)),
        }
    }

    /// Every container below `root`, in the order of their ids. One whose directory cannot be opened
    /// is left out, with a warning.
    ///
    /// # Errors
    /// If `root` cannot be read; a root that does not exist holds no containers.
    pub fn all(root: &Path) -> Result<Vec<Self>, StateError> {
        let mut found = Vec::new();
        for (id, dir) in Self::each(root)? {
            match dir {
                Ok(dir) => found.push(dir),
                Err(e) => log::warn!("container {id}: {}", chain(&e)),
            }
        }
        Ok(found)
    }

    /// Every container below `root`, in the order of their ids, with its directory or why it cannot
    /// be opened.
    ///
    /// # Errors
    /// If `root` cannot be read; a root that does not exist holds no containers.
    pub fn each(root: &Path) -> Result<Vec<Found>, StateError> {
        let access = |e| StateError::Access(root.to_owned(), e);
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(access(e)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(access)?;
            if let Some(id) = entry.file_name().to_str()
                && let Ok(id) = ContainerId::new(id)
                && entry.file_type().is_ok_and(|kind| kind.is_dir())
            {
                ids.push(id);
            }
        }
        ids.sort();
        let mut found = Vec::new();
        for id in ids {
            match Self::open(root, &id) {
                // It was deleted meanwhile.
                Err(StateError::NotFound(_)) => {}
                dir => found.push((id, dir)),
            }
        }
        Ok(found)
    }

    /// The container's id.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// The files in the directory.
    #[must_use]
    pub fn paths(&self) -> &ContainerPaths {
        &self.paths
    }

    /// The directory.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.dir
    }

    /// The user that owns the directory.
    ///
    /// # Errors
    /// If the directory cannot be examined.
    pub fn owner(&self) -> Result<u32, StateError> {
        match self.dir.metadata() {
            Ok(metadata) => Ok(metadata.uid()),
            Err(e) => Err(StateError::Access(self.paths.dir().to_owned(), e)),
        }
    }

    /// Keeps other commands away until this value is dropped.
    ///
    /// # Errors
    /// [`StateError::Busy`] if another command holds the lock for longer than `limit`,
    /// [`StateError::NotFound`] if the directory was removed meanwhile.
    pub fn lock(&self, limit: Duration) -> Result<(), StateError> {
        let deadline = Instant::now() + limit;
        loop {
            match self.dir.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(StateError::Busy(self.id.clone()));
                }
                Err(TryLockError::Error(e)) => {
                    return Err(StateError::Access(self.paths.dir().to_owned(), e));
                }
            }
        }
        // The lock may be that of a directory which its last holder has removed.
        match self.dir.metadata() {
            Ok(metadata) if metadata.nlink() == 0 => Err(StateError::NotFound(self.id.clone())),
            Ok(_) => Ok(()),
            Err(e) => Err(StateError::Access(self.paths.dir().to_owned(), e)),
        }
    }

    /// Lets other commands work on the container.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn unlock(&self) -> Result<(), StateError> {
        self.dir
            .unlock()
            .map_err(|e| StateError::Access(self.paths.dir().to_owned(), e))
    }

    /// Reads what the monitor has written. Processes of another boot are not in it.
    ///
    /// # Errors
    /// [`StateError::NotFound`] if it has not written anything.
    pub fn load(&self) -> Result<State, StateError> {
        let path = self.paths.state();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::NotFound(self.id.clone()));
            }
            Err(e) => return Err(StateError::Access(path, e)),
        };
        // A later form may differ anywhere but in its number.
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |e| StateError::Damaged(path.clone(), e);
        let Version { version } = serde_json::from_slice(&text).map_err(damaged)?;
        if version != STATE_VERSION {
            return Err(StateError::Version { path, got: version });
        }
        let state: State = serde_json::from_slice(&text).map_err(damaged)?;
        state.without_the_dead()
    }

    /// The status of a container whose monitor has written `state`.
    #[must_use]
    pub fn status(&self, state: &State) -> Status {
        match state.phase {
            Phase::Exited { .. } => Status::Stopped,
            _ if !state.monitor.alive() => Status::Stopped,
            Phase::Creating => Status::Creating,
            Phase::Created if self.paths.paused().exists() => Status::Paused,
            Phase::Created if self.paths.started().exists() => Status::Running,
            Phase::Created => Status::Created,
        }
    }

    /// Notes whether the user's program was started.
    ///
    /// # Errors
    /// If the note cannot be made.
    pub fn mark_started(&self, started: bool) -> Result<(), StateError> {
        turn(self.paths.not_started(), self.paths.started(), started)
    }

    /// Notes whether the container is paused.
    ///
    /// # Errors
    /// If the note cannot be made.
    pub fn mark_paused(&self, paused: bool) -> Result<(), StateError> {
        turn(self.paths.not_paused(), self.paths.paused(), paused)
    }

    /// The state directory of the container whose virtual machine this one is in.
    #[must_use]
    pub fn machine(&self, state: &State) -> PathBuf {
        match (&state.sandbox, self.paths.dir().parent()) {
            (Some(sandbox), Some(root)) => root.join(sandbox),
            _ => self.paths.dir().to_owned(),
        }
    }

    /// The size of the virtual machine that the container is in.
    ///
    /// # Errors
    /// If the container whose machine it is cannot be read.
    pub fn vm_size(&self, state: &State) -> Result<Option<VmSize>, StateError> {
        let Some(sandbox) = &state.sandbox else {
            return Ok(state.vm);
        };
        let (Ok(id), Some(root)) = (ContainerId::new(sandbox), self.paths.dir().parent()) else {
            return Ok(None);
        };
        Ok(Self::open(root, &id)?.load()?.vm)
    }

    /// The monitors of what was executed in the container.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn execs(&self) -> Result<Vec<ProcessId>, StateError> {
        self.noted_processes(self.paths.execs())
    }

    /// The commands that accompany in the foreground what they have executed in the container. They
    /// are their callers': each ends by itself, and tells how, when its process has ended.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn commands(&self) -> Result<Vec<ProcessId>, StateError> {
        self.noted_processes(self.paths.commands())
    }

    /// The processes that live of those that have left a note in a directory.
    fn noted_processes(&self, path: PathBuf) -> Result<Vec<ProcessId>, StateError> {
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(StateError::Access(path, e)),
        };
        let mut processes = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| StateError::Access(path.clone(), e))?;
            let process = entry.file_name().to_str().and_then(|name| {
                let (pid, start_time) = name.split_once('-')?;
                Some(ProcessId {
                    pid: pid.parse().ok()?,
                    start_time: start_time.parse().ok()?,
                })
            });
            processes.extend(process.filter(|process| process.alive()));
        }
        processes.sort_by_key(|process| process.pid);
        Ok(processes)
    }

    /// Opens the state directory of the container whose virtual machine this one is in.
    ///
    /// # Errors
    /// If it is gone.
    pub fn open_machine(&self, state: &State) -> Result<File, StateError> {
        if state.sandbox.is_none() {
            let own = self.dir.try_clone();
            return own.map_err(|e| StateError::Access(self.paths.dir().to_owned(), e));
        }
        let path = self.machine(state);
        open_directory(&path).map_err(|e| StateError::Access(path, e))
    }

    /// Reads the specification as it was when the container was created.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn spec(&self) -> Result<Vec<u8>, StateError> {
        let path = self.paths.spec();
        fs::read(&path).map_err(|e| StateError::Access(path, e))
    }

    /// Removes the directory with all it holds.
    ///
    /// # Errors
    /// If something of it stays.
    pub fn remove(&self) -> Result<(), StateError> {
        remove(&self.paths)
    }
}

/// Opens a state directory.
pub(crate) fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(path)
}

/// Keeps the specification for commands to come.
///
/// # Errors
/// If it cannot be written.
pub fn keep_spec(paths: &ContainerPaths, spec: &[u8]) -> Result<(), StateError> {
    let path = paths.spec();
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    file.and_then(|mut file| file.write_all(spec))
        .map_err(|e| StateError::Access(path, e))
}

/// Removes a state directory with all it holds; one that is not there is no error.
///
/// # Errors
/// If something of it stays.
pub fn remove(paths: &ContainerPaths) -> Result<(), StateError> {
    // Another process may remove it at the same moment, or the monitor write its last word.
    for _ in 0..REMOVE_TRIES {
        match fs::remove_dir_all(paths.dir()) {
            Ok(()) => return Ok(()),
            Err(_) if !paths.dir().exists() => return Ok(()),
            Err(_) => {}
        }
    }
    match fs::remove_dir_all(paths.dir()) {
        Err(e) if paths.dir().exists() => Err(StateError::Access(paths.dir().to_owned(), e)),
        _ => Ok(()),
    }
}

/// Replaces a container's state file: a reader sees the old one or the new one.
///
/// # Errors
/// If it cannot be written; the old one stays.
pub fn write(paths: &ContainerPaths, state: &State) -> Result<(), StateError> {
    let path = paths.state();
    let access = |e| StateError::Access(path.clone(), e);
    let mut text = serde_json::to_vec(state).map_err(|e| StateError::Damaged(path.clone(), e))?;
    text.push(b'\n');
    let mut file = tempfile::NamedTempFile::new_in(paths.dir()).map_err(access)?;
    file.write_all(&text).map_err(access)?;
    file.persist(&path).map_err(|e| access(e.error))?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
