//! The initramfs: a newc archive that is the same for the same contents.
//!
//! Format: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst` and
//! `cpio(5)`. Each entry is a header of 110 ASCII bytes, the name with its NUL, padding to four bytes,
//! the contents, padding to four bytes; an entry named `TRAILER!!!` ends the archive.
//!
//! Nothing of the machine that packs gets in: entries are sorted by name, times are zero, owners are root,
//! inode numbers count from one. The archive is not compressed: unpacking it would cost every guest's start
//! more than reading it costs.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::elf::{self, ElfError};

/// `cpio(5)`, "New ASCII Format".
const MAGIC: &str = "070701";
/// The length of a header, the magic number included.
const HEADER_LEN: usize = 110;
/// The name of the entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";
/// The kernel unpacks no name that is longer, its NUL included (`init/initramfs.c`, `PATH_MAX`).
const PATH_MAX: usize = 4096;

/// `inode(7)`: the file type bits of a mode.
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFCHR: u32 = 0o020_000;
/// `inode(7)`: the bits of a mode that are no file type.
const PERMISSIONS: u32 = 0o7777;

/// Why an entry cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The name cannot stand in an archive.
    #[error("{name:?}: not a name for an initramfs entry: {why}")]
    Name {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// There is an entry of that name already.
    #[error("{0}: added twice")]
    Twice(String),
    /// The directory that the entry lies in is not in the archive.
    #[error("{name}: its directory {parent} is not in the archive")]
    NoParent {
        /// The entry.
        name: String,
        /// The directory.
        parent: String,
    },
    /// The mode has more than permission bits.
    #[error("{name}: mode {mode:#o} has bits beyond 07777")]
    Mode {
        /// The entry.
        name: String,
        /// The mode as given.
        mode: u32,
    },
    /// The format's sizes are 32 bits.
    #[error("{name}: {size} bytes, an entry holds fewer than 4 GiB")]
    Size {
        /// The entry.
        name: String,
        /// The size of its contents.
        size: usize,
    },
    /// The agent cannot run in the guest.
    #[error("agent")]
    Agent(#[source] ElfError),
}

#[derive(Debug)]
enum Kind {
    Directory,
    File(Vec<u8>),
    CharDevice { major: u32, minor: u32 },
}

#[derive(Debug)]
struct Entry {
    permissions: u32,
    kind: Kind,
}

/// An archive in the making.
#[derive(Debug, Default)]
pub struct Archive(BTreeMap<String, Entry>);

impl Archive {
    /// An archive without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// The archive that a guest starts from: `agent` as `/init`, the directories it mounts on, and the
    /// two device nodes that must exist before it has mounted anything.
    ///
    /// # Errors
    ///
    /// `agent` is not a static x86-64 program, or too large.
    pub fn guest(agent: Vec<u8>) -> Result<Self, InitramfsError> {
        elf::check_static_program(&agent).map_err(InitramfsError::Agent)?;
        let mut archive = Self::new();
        for (name, mode) in [
            ("dev", 0o755),
            ("proc", 0o555),
            ("run", 0o755),
            ("sys", 0o555),
            ("tmp", 0o1777),
        ] {
            archive.directory(name, mode)?;
        }
        // Documentation/admin-guide/devices.txt. The kernel opens /dev/console as the standard streams of
        // /init, before devtmpfs is mounted.
        archive.char_device("dev/console", 0o600, 5, 1)?;
        archive.char_device("dev/null", 0o666, 1, 3)?;
        archive.file("init", 0o755, agent)?;
        Ok(archive)
    }

    /// Adds a directory.
    ///
    /// # Errors
    ///
    /// The name or the mode is not valid, is taken, or has no directory.
    pub fn directory(&mut self, name: &str, mode: u32) -> Result<(), InitramfsError> {
        self.add(name, mode, Kind::Directory)
    }

    /// Adds a regular file.
    ///
    /// # Errors
    ///
    /// As [`Archive::directory`]; or the contents are too large.
    pub fn file(&mut self, name: &str, mode: u32, contents: Vec<u8>) -> Result<(), InitramfsError> {
        if u32::try_from(contents.len()).is_err() {
            return Err(InitramfsError::Size {
                name: name.into(),
                size: contents.len(),
            });
        }
        self.add(name, mode, Kind::File(contents))
    }

    /// Adds a character device node.
    ///
    /// # Errors
    ///
    /// As [`Archive::directory`].
    pub fn char_device(
        &mut self,
        name: &str,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> Result<(), InitramfsError> {
        self.add(name, mode, Kind::CharDevice { major, minor })
    }

    fn add(&mut self, name: &str, mode: u32, kind: Kind) -> Result<(), InitramfsError> {
        check_name(name).map_err(|why| InitramfsError::Name {
            name: name.into(),
            why,
        })?;
        if mode & !PERMISSIONS != 0 {
            return Err(InitramfsError::Mode {
                name: name.into(),
                mode,
            });
        }
        if let Some((parent, _)) = name.rsplit_once('/')
            && !matches!(
                self.0.get(parent),
                Some(Entry {
                    kind: Kind::Directory,
                    ..
                })
            )
        {
            return Err(InitramfsError::NoParent {
                name: name.into(),
                parent: parent.into(),
            });
        }
        if self.0.contains_key(name) {
            return Err(InitramfsError::Twice(name.into()));
        }
        self.0.insert(
            name.into(),
            Entry {
                permissions: mode,
                kind,
            },
        );
        Ok(())
    }

    /// Writes the archive.
    ///
    /// # Errors
    ///
    /// `out` fails.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        // Sorted by name, so a directory comes before what lies in it.
        for (ino, (name, entry)) in (1..).zip(&self.0) {
            let (file_type, nlink, (rdev_major, rdev_minor), contents) = match &entry.kind {
                Kind::Directory => (S_IFDIR, 2, (0, 0), &[][..]),
                Kind::File(contents) => (S_IFREG, 1, (0, 0), contents.as_slice()),
                Kind::CharDevice { major, minor } => (S_IFCHR, 1, (*major, *minor), &[][..]),
            };
            let header = Header {
                ino,
                mode: file_type | entry.permissions,
                nlink,
                rdev_major,
                rdev_minor,
            };
            header.write_to(out, name, contents)?;
        }
        Header {
            ino: 0,
            mode: 0,
            nlink: 1,
            rdev_major: 0,
            rdev_minor: 0,
        }
        .write_to(out, TRAILER, &[])
    }
}

/// The fields of a header that differ between entries; the others are zero.
struct Header {
    ino: u32,
    mode: u32,
    nlink: u32,
    rdev_major: u32,
    rdev_minor: u32,
}

impl Header {
    fn write_to(&self, out: &mut impl Write, name: &str, contents: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::other("entry too large");
        let size = u32::try_from(contents.len()).map_err(too_large)?;
        let namesize = u32::try_from(name.len() + 1).map_err(too_large)?;
        let (uid, gid, mtime, dev_major, dev_minor, check) = (0, 0, 0, 0, 0, 0);
        out.write_all(MAGIC.as_bytes())?;
        for field in [
            self.ino,
            self.mode,
            uid,
            gid,
            self.nlink,
            mtime,
            size,
            dev_major,
            dev_minor,
            self.rdev_major,
            self.rdev_minor,
            namesize,
            check,
        ] {
            write!(out, "{field:08X}")?;
        }
        out.write_all(name.as_bytes())?;
        out.write_all(b"\0")?;
        pad(out, HEADER_LEN + name.len() + 1)?;
        out.write_all(contents)?;
        pad(out, contents.len())
    }
}

/// Fills up to a multiple of four bytes after `written` of them.
fn pad(out: &mut impl Write, written: usize) -> io::Result<()> {
    let missing = written.next_multiple_of(4) - written;
    out.write_all([0; 3].get(..missing).unwrap_or_default())
}

fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => return Err("it is empty"),
        TRAILER => return Err("it ends an archive"),
        _ => {}
    }
    if name.len() >= PATH_MAX {
        return Err("it is longer than 4095 bytes");
    }
    if name.contains('\0') {
        return Err("it has a NUL");
    }
    if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("it is not a plain relative path");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
