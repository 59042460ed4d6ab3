//! The store of things that take minutes to make, outside any checkout.
//!
//! An entry is a directory named by the digest of everything that went into it, so it is never updated:
//! other inputs are another entry, and old ones stay until someone deletes them. An entry is made in a
//! work directory beside the entries and moved into place when it is complete. Whoever makes it holds a lock
//! on a file of its own, so a second builder of the same entry waits and then finds it.
//!
//! ```text
//! ~/.cache/cloister/
//!   kernel/KEY/        an entry
//!   lock/kernel-KEY    its lock
//!   work/kernel-KEY/   where it is being made
//!   log/kernel-KEY     how making it went, kept when it failed
//!   hash/KEY           the digest of a large file, by path, size and time
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::digest;

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Neither variable tells where.
    #[error("no place for the cache: set --cache, XDG_CACHE_HOME or HOME to an absolute path")]
    NoPlace,
    /// A file operation failed.
    #[error("{action} {path}", path = path.display())]
    Io {
        /// What was done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// A closure that turns an I/O error into one that says what was done to `path`.
fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    move |source| CacheError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// A directory of entries.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache in `root`, which is made when it is first written to.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The user's cache: `$XDG_CACHE_HOME/cloister`, else `$HOME/.cache/cloister`, as told by `variable`.
    ///
    /// # Errors
    ///
    /// [`CacheError::NoPlace`] if neither is an absolute path (XDG Base Directory Specification: a
    /// relative path is to be ignored).
    pub fn of_user(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<Self, CacheError> {
        let absolute = |name| variable(name).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .ok_or(CacheError::NoPlace)?;
        Ok(Self::at(base.join("cloister")))
    }

    /// Where entry `key` of `kind` is, or would be.
    pub fn entry(&self, kind: &str, key: &str) -> PathBuf {
        self.root.join(kind).join(key)
    }

    /// Takes the right to make entry `key` of `kind`; `waiting` is called if another process has it.
    ///
    /// # Errors
    ///
    /// The lock or the directories cannot be made.
    pub fn lock(
        &self,
        kind: &str,
        key: &str,
        waiting: impl FnOnce(),
    ) -> Result<Making, CacheError> {
        let name = format!("{kind}-{key}");
        let path = self.directory("lock")?.join(&name);
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(failed("cannot open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                lock.lock().map_err(failed("cannot lock", &path))?;
            }
            Err(TryLockError::Error(e)) => return Err(failed("cannot lock", &path)(e)),
        }
        self.directory(kind)?;
        let making = Making {
            entry: self.entry(kind, key),
            work: self.directory("work")?.join(&name),
            log: self.directory("log")?.join(&name),
            _lock: lock,
        };
        Ok(making)
    }

    /// The digest of the file at `path`, remembered by its path, size and time of modification.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn digest_of(&self, path: &Path) -> Result<String, CacheError> {
        let path = fs::canonicalize(path).map_err(failed("cannot find", path))?;
        let meta = fs::metadata(&path).map_err(failed("cannot examine", &path))?;
        let state = format!(
            "{}\n{}\n{}.{:09}\n{}",
            path.display(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ino()
        );
        let memo = self
            .directory("hash")?
            .join(digest::of_bytes(state.as_bytes()));
        if let Ok(known) = fs::read_to_string(&memo)
            && is_digest(&known)
        {
            return Ok(known);
        }
        let (digest, _) = digest::of_file(&path).map_err(failed("cannot read", &path))?;
        write_atomically(&memo, digest.as_bytes())?;
        Ok(digest)
    }

    fn directory(&self, name: &str) -> Result<PathBuf, CacheError> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).map_err(failed("cannot make", &path))?;
        Ok(path)
    }
}

/// The right to make one entry, held until dropped.
#[derive(Debug)]
pub struct Making {
    entry: PathBuf,
    work: PathBuf,
    log: PathBuf,
    _lock: File,
}

impl Making {
    /// Where the entry is, or will be.
    pub fn entry(&self) -> &Path {
        &self.entry
    }

    /// Where the log of the making goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// An empty directory to work in. What an interrupted maker left there is gone.
    ///
    /// # Errors
    ///
    /// It cannot be emptied or made.
    pub fn work(&self) -> Result<&Path, CacheError> {
        remove_tree(&self.work)?;
        fs::create_dir(&self.work).map_err(failed("cannot make", &self.work))?;
        Ok(&self.work)
    }

    /// Makes `complete`, a directory in the work directory, the entry, and removes the work directory and
    /// the log.
    ///
    /// # Errors
    ///
    /// It cannot be moved.
    pub fn finish(&self, complete: &Path) -> Result<(), CacheError> {
        remove_tree(&self.entry)?;
        fs::rename(complete, &self.entry).map_err(failed("cannot move", complete))?;
        remove_tree(&self.work)?;
        match fs::remove_file(&self.log) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(failed("cannot remove", &self.log)(e))
            }
            _ => Ok(()),
        }
    }
}

/// Writes a file that others see whole or not at all.
///
/// # Errors
///
/// It cannot be written or moved into place.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), CacheError> {
    create_atomically(path, |file| file.write_all(bytes))
}

/// As [`write_atomically`], for contents that `write` produces.
///
/// # Errors
///
/// As [`write_atomically`].
pub fn create_atomically(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), CacheError> {
    use std::os::unix::fs::PermissionsExt;

    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(directory)
        .map_err(failed("cannot write in", directory))?;
    write(file.as_file_mut()).map_err(failed("cannot write", path))?;
    file.persist(path)
        .map_err(|e| failed("cannot write", path)(e.error))?;
    Ok(())
}

fn remove_tree(path: &Path) -> Result<(), CacheError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("cannot remove", path)(e)),
        _ => Ok(()),
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests;
