//! Paths below the container's root, which a hostile image has filled.
//!
//! Nothing here ever follows a path from the root of the process. An existing path is opened
//! by openat2(2) with RESOLVE_IN_ROOT; a path that is to be created is walked component by component,
//! each opened without following links, and links are resolved by hand against the root.
//! Everything is then done to the descriptor, never again to the path.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The container's root directory.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

/// What [`Root::create`] makes of a path's last component if it does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Create {
    Directory,
    File,
}

/// A path below the root that has been resolved.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// It, opened with O_PATH.
    pub(crate) fd: OwnedFd,
    /// Where it is, without links, from the root.
    pub(crate) path: PathBuf,
    /// Whether a link was followed to get there.
    pub(crate) through_link: bool,
}

/// Linux's own limit (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

/// The kernel gives up with EAGAIN if something was renamed while it walked (openat2(2)).
const MAX_RETRIES: usize = 64;

impl Root {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Root(fd)
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Opens an existing path.
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        open_in(
            &self.0,
            path,
            flags,
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    }

    /// Opens a path, after creating what is missing of it.
    pub(crate) fn create(&self, path: &Path, last: Create) -> io::Result<Resolved> {
        self.create_and(path, last, true)
    }

    /// The same; a link at the end of the path is not followed but opened itself.
    pub(crate) fn create_no_follow(&self, path: &Path, last: Create) -> io::Result<Resolved> {
        self.create_and(path, last, false)
    }

    fn create_and(&self, path: &Path, last: Create, follow: bool) -> io::Result<Resolved> {
        let mut walk = Walk::new(&self.0)?;
        let mut pending = components(path);
        pending.reverse();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                walk.up();
                continue;
            }
            let create = if pending.is_empty() {
                last
            } else {
                Create::Directory
            };
            match walk.enter(&name, create, follow || !pending.is_empty())? {
                Entered::Yes => {}
                Entered::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    if target.is_absolute() {
                        walk.restart();
                    }
                    pending.extend(components(&target).into_iter().rev());
                }
            }
        }
        Ok(Resolved {
            path: walk.path(),
            fd: walk.into_fd()?,
            through_link: links > 0,
        })
    }

    /// Opens the directory that holds `path`, after creating what is missing, and gives the last name.
    pub(crate) fn create_parent(&self, path: &Path) -> io::Result<(OwnedFd, std::ffi::OsString)> {
        let path = clean(path);
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                Ok((self.create(parent, Create::Directory)?.fd, name.to_owned()))
            }
            _ => Err(Errno::ISDIR.into()),
        }
    }
}

/// Opens a path below a directory that is under no one's control but the kernel's, links refused.
pub(crate) fn open_beneath(dir: &impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    open_in(
        dir,
        path,
        flags,
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}

fn open_in(
    dir: &impl AsFd,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let mut retries = 0;
    loop {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if retries < MAX_RETRIES => retries += 1,
            result => return Ok(result?),
        }
    }
}

/// `path` from the root without `.`, `..` and doubled slashes, as runc takes a mount's destination.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            _ => {}
        }
    }
    cleaned
}

fn components(path: &Path) -> Vec<std::ffi::OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

enum Entered {
    Yes,
    Link(PathBuf),
}

/// The directories from the root to where the walk is.
struct Walk<'a> {
    root: &'a OwnedFd,
    below: Vec<(std::ffi::OsString, OwnedFd)>,
}

impl<'a> Walk<'a> {
    fn new(root: &'a OwnedFd) -> io::Result<Self> {
        Ok(Walk {
            root,
            below: Vec::new(),
        })
    }

    fn here(&self) -> &OwnedFd {
        self.below.last().map_or(self.root, |(_, fd)| fd)
    }

    fn up(&mut self) {
        self.below.pop();
    }

    fn restart(&mut self) {
        self.below.clear();
    }

    fn path(&self) -> PathBuf {
        Path::new("/").join(self.below.iter().map(|(name, _)| name).collect::<PathBuf>())
    }

    fn into_fd(mut self) -> io::Result<OwnedFd> {
        match self.below.pop() {
            Some((_, fd)) => Ok(fd),
            None => Ok(rustix::io::fcntl_dupfd_cloexec(self.root, 0)?),
        }
    }

    fn enter(&mut self, name: &OsStr, create: Create, follow: bool) -> io::Result<Entered> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(self.here(), name, flags, Mode::empty());
        let fd = match open() {
            Err(Errno::NOENT) => {
                make(self.here(), name, create)?;
                open()?
            }
            result => result?,
        };
        let stat = rustix::fs::fstat(&fd)?;
        if follow && FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let target = rustix::fs::readlinkat(&fd, c"", Vec::new())?;
            return Ok(Entered::Link(PathBuf::from(OsStr::from_bytes(
                target.as_bytes(),
            ))));
        }
        self.below.push((name.to_owned(), fd));
        Ok(Entered::Yes)
    }
}

fn make(dir: &OwnedFd, name: &OsStr, create: Create) -> io::Result<()> {
    let made = match create {
        Create::Directory => rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)),
        Create::File => rustix::fs::openat(
            dir,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY,
            Mode::from_raw_mode(0o755),
        )
        .map(drop),
    };
    match made {
        // Somebody else was faster; what it is shows when it is opened.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The device number and type of what is at `name` in a directory, links not followed.
pub(crate) fn stat_at(dir: &OwnedFd, name: &OsStr) -> io::Result<rustix::fs::Stat> {
    Ok(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Opens a path of the caller's machine, before the root is changed.
pub(crate) fn open_outside(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}
