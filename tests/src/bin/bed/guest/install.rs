//! Files of the machine that the bed keeps in memory: the staged installation and whatever must be read fast.

use super::MACHINE_ROOT;
use crate::protocol::Start;
use anyhow::{Context as _, Result, bail};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timestamps};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink,
};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

static INSTALLER: Mutex<Installer> = Mutex::new(Installer {
    stage: Tree::new(),
    fast: BTreeMap::new(),
});

/// Each request to the machine's file server costs the same, however much it carries.
const COPY_BUFFER: usize = 1 << 20;

/// How many links may lead to a file, as the kernel has it.
const LINKS: usize = 40;

/// Where the stage goes.
const PREFIX: &str = "usr/local";

/// What tells that a file has changed: inode, size, modification time in seconds and nanoseconds, mode, owner, group.
type Stamp = (u64, u64, i64, i64, u32, u32, u32);

/// The stamps of everything below a directory, by relative path; of the directory or file itself by the empty path.
type Tree = BTreeMap<PathBuf, Stamp>;

/// What has been copied so far.
#[derive(Debug)]
pub(super) struct Installer {
    stage: Tree,
    fast: BTreeMap<PathBuf, Tree>,
}

impl Installer {
    /// The bed's only one.
    pub(super) fn get() -> MutexGuard<'static, Self> {
        INSTALLER.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the bed what `start` wants it to be.
    pub(super) fn install(&mut self, start: &Start) -> Result<()> {
        if start.refresh {
            // 3: pages, and the names and attributes that lead to them.
            fs::write("/proc/sys/vm/drop_caches", "3")
                .context("forget what is cached of the machine's files")?;
        }
        if let Some(stage) = &start.stage {
            let source = on_machine(Path::new(OsStr::from_bytes(stage)))?.join(PREFIX);
            self.install_stage(&source, &Path::new("/").join(PREFIX))?;
        }
        for path in &start.fast {
            self.install_fast(Path::new(OsStr::from_bytes(path)))?;
        }
        Ok(())
    }

    /// Copies a directory onto a tmpfs of its own, or a file into the layer above the machine. A program comes with what
    /// the dynamic linker opens for it, and a link with what it points to: an open that reaches the machine's file
    /// server lets the bed idle, and the instruction-counted clock jumps when it does.
    fn install_fast(&mut self, path: &Path) -> Result<()> {
        if on_machine(path)?.is_dir() {
            return self.install_directory(path);
        }
        self.install_file(path)?;
        let path = path
            .canonicalize()
            .with_context(|| format!("resolve {}", path.display()))?;
        for needed in linked_files(&path)? {
            self.install_file(&needed)?;
        }
        Ok(())
    }

    /// Brings `target` up to date with `source`, without touching what came from elsewhere.
    fn install_stage(&mut self, source: &Path, target: &Path) -> Result<()> {
        let wanted = match source.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Tree::new(),
            _ => survey(source)?,
        };
        for (path, stamp) in &wanted {
            if self.stage.get(path) != Some(stamp) {
                copy_entry(&source.join(path), &target.join(path))?;
            }
        }
        for path in self.stage.keys().filter(|path| !wanted.contains_key(*path)) {
            let gone = target.join(path);
            if gone
                .symlink_metadata()
                .is_ok_and(|metadata| !metadata.is_dir())
            {
                fs::remove_file(&gone).with_context(|| format!("remove {}", gone.display()))?;
            }
        }
        self.stage = wanted;
        Ok(())
    }

    fn install_directory(&mut self, path: &Path) -> Result<()> {
        let source = on_machine(path)?;
        let wanted = survey(&source)?;
        if self.fast.get(path) == Some(&wanted) {
            return Ok(());
        }
        if self.fast.contains_key(path) {
            unmount(path, UnmountFlags::DETACH)
                .with_context(|| format!("unmount {}", path.display()))?;
        }
        fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        mount("bed-fast", path, "tmpfs", MountFlags::empty(), c"mode=755")
            .with_context(|| format!("mount tmpfs on {}", path.display()))?;
        dress(
            path,
            &source
                .metadata()
                .with_context(|| format!("look at {}", source.display()))?,
        )?;
        for below in wanted.keys() {
            copy_entry(&join(&source, below), &join(path, below))?;
        }
        self.fast.insert(path.to_owned(), wanted);
        Ok(())
    }

    /// Copies a file that is not a directory, and what it points to if it is a link.
    fn install_file(&mut self, path: &Path) -> Result<()> {
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            let source = on_machine(&path)?;
            let wanted = survey(&source)?;
            if self.fast.get(&path) != Some(&wanted) {
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)
                        .with_context(|| format!("create {}", parent.display()))?;
                }
                copy_entry(&source, &path)?;
                self.fast.insert(path.clone(), wanted);
            }
            match fs::read_link(&path) {
                Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
                Err(_) => return Ok(()),
            }
        }
        bail!("too many links at {}", path.display())
    }
}

/// What the dynamic linker opens to start the program at `path`: nothing for a script or a static one.
fn linked_files(path: &Path) -> Result<Vec<PathBuf>> {
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    if read.is_err() || magic != *b"\x7fELF" {
        return Ok(Vec::new());
    }
    let output = Command::new("ldd")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .context("run ldd")?;
    // ldd fails when there is nothing to list.
    let mut files = parse_ldd(&String::from_utf8_lossy(&output.stdout));
    if !files.is_empty() {
        files.push(PathBuf::from("/etc/ld.so.cache"));
    }
    Ok(files)
}

/// Takes `/path` from lines like `name => /path (0x…)` and `/path (0x…)`.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.trim().rsplit_once(" (0x"))
        .map(|(file, _)| file.rsplit_once("=> ").map_or(file, |(_, path)| path))
        .filter(|file| file.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// `path` as the machine has it.
fn on_machine(path: &Path) -> Result<PathBuf> {
    let below = path
        .strip_prefix("/")
        .with_context(|| format!("{} is not absolute", path.display()))?;
    Ok(Path::new(MACHINE_ROOT).join(below))
}

/// `Path::join`, but joining nothing adds no slash: a file's name must not end in one.
fn join(base: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() {
        base.to_owned()
    } else {
        base.join(below)
    }
}

/// Everything at and below `root`, parents before their children.
fn survey(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(below) = pending.pop() {
        let path = join(root, &below);
        let metadata = path
            .symlink_metadata()
            .with_context(|| format!("look at {}", path.display()))?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
                let entry = entry.with_context(|| format!("list {}", path.display()))?;
                pending.push(below.join(entry.file_name()));
            }
        }
        tree.insert(below, stamp(&metadata));
    }
    Ok(tree)
}

fn stamp(metadata: &Metadata) -> Stamp {
    // A directory's time changes with its content, which has stamps of its own.
    let (size, seconds, nanoseconds) = if metadata.is_dir() {
        (0, 0, 0)
    } else {
        (metadata.size(), metadata.mtime(), metadata.mtime_nsec())
    };
    (
        metadata.ino(),
        size,
        seconds,
        nanoseconds,
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
    )
}

/// Copies one directory (without its content), file, link or special file, with mode, owner and times.
fn copy_entry(source: &Path, target: &Path) -> Result<()> {
    let metadata = source
        .symlink_metadata()
        .with_context(|| format!("look at {}", source.display()))?;
    if metadata.is_dir() {
        match fs::create_dir(target) {
            Ok(()) => return dress(target, &metadata),
            // Somebody else's: it stays as it is.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("create {}", target.display()));
            }
        }
    }
    // A new file under a new name, then renamed: the old one may be running.
    let Some(name) = target.file_name() else {
        bail!("{} has no name", target.display())
    };
    let mut fresh = name.to_owned();
    fresh.push(".bed-new");
    let fresh = target.with_file_name(fresh);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove {}", fresh.display()));
        }
        _ => {}
    }
    create_copy(source, &fresh, &metadata)
        .with_context(|| format!("copy {} to {}", source.display(), target.display()))?;
    dress(&fresh, &metadata)?;
    fs::rename(&fresh, target).with_context(|| format!("replace {}", target.display()))
}

fn create_copy(source: &Path, target: &Path, metadata: &Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    if kind.is_symlink() {
        return symlink(fs::read_link(source)?, target);
    }
    if kind.is_file() {
        let mut from = File::open(source)?;
        let mut to = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(target)?;
        let mut buffer = vec![0; COPY_BUFFER];
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            to.write_all(buffer.get(..count).unwrap_or_default())?;
        }
    }
    let special = if kind.is_fifo() {
        FileType::Fifo
    } else if kind.is_socket() {
        FileType::Socket
    } else if kind.is_block_device() {
        FileType::BlockDevice
    } else {
        FileType::CharacterDevice
    };
    Ok(rustix::fs::mknodat(
        CWD,
        target,
        special,
        Mode::RUSR | Mode::WUSR,
        metadata.rdev(),
    )?)
}

/// Gives a copy its original's owner, mode and times.
fn dress(path: &Path, original: &Metadata) -> Result<()> {
    let dressed = || -> io::Result<()> {
        std::os::unix::fs::lchown(path, Some(original.uid()), Some(original.gid()))?;
        if !original.file_type().is_symlink() {
            fs::set_permissions(path, Permissions::from_mode(original.mode() & 0o7777))?;
        }
        let time = |seconds, nanoseconds| rustix::fs::Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        };
        let times = Timestamps {
            last_access: time(original.atime(), original.atime_nsec()),
            last_modification: time(original.mtime(), original.mtime_nsec()),
        };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    };
    dressed().with_context(|| format!("set owner, mode and times of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installer() -> Installer {
        Installer {
            stage: Tree::new(),
            fast: BTreeMap::new(),
        }
    }

    #[test]
    fn a_stage_is_copied_with_modes_links_and_times() {
        let source = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        fs::create_dir(source.path().join("bin")).unwrap();
        fs::write(source.path().join("bin/tool"), b"\0binary").unwrap();
        fs::set_permissions(
            source.path().join("bin/tool"),
            Permissions::from_mode(0o751),
        )
        .unwrap();
        symlink("tool", source.path().join("bin/alias")).unwrap();

        installer()
            .install_stage(source.path(), target.path())
            .unwrap();

        let original = source.path().join("bin/tool").metadata().unwrap();
        let copy = target.path().join("bin/tool").metadata().unwrap();
        assert_eq!(
            fs::read(target.path().join("bin/tool")).unwrap(),
            b"\0binary"
        );
        assert_eq!(copy.mode() & 0o7777, 0o751);
        assert_eq!(
            (copy.mtime(), copy.mtime_nsec()),
            (original.mtime(), original.mtime_nsec())
        );
        assert_eq!(
            fs::read_link(target.path().join("bin/alias")).unwrap(),
            Path::new("tool")
        );
    }

    #[test]
    fn a_stage_that_changed_replaces_only_its_own_files() {
        let source = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        fs::write(target.path().join("foreign"), "kept").unwrap();
        fs::write(source.path().join("same"), "same").unwrap();
        fs::write(source.path().join("changed"), "old").unwrap();
        fs::write(source.path().join("gone"), "gone").unwrap();
        let mut installer = installer();
        installer
            .install_stage(source.path(), target.path())
            .unwrap();
        // An open file that is replaced keeps its content: it may be a running program.
        let running = File::open(target.path().join("changed")).unwrap();
        let same = target.path().join("same").metadata().unwrap().ino();

        fs::write(source.path().join("changed"), "newer").unwrap();
        fs::remove_file(source.path().join("gone")).unwrap();
        installer
            .install_stage(source.path(), target.path())
            .unwrap();

        assert_eq!(
            fs::read_to_string(target.path().join("changed")).unwrap(),
            "newer"
        );
        assert_eq!(io::read_to_string(running).unwrap(), "old");
        assert_eq!(target.path().join("same").metadata().unwrap().ino(), same);
        assert!(!target.path().join("gone").exists());
        assert_eq!(
            fs::read_to_string(target.path().join("foreign")).unwrap(),
            "kept"
        );
    }

    #[test]
    fn the_dynamic_linkers_list_is_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc8c5f2000)\n\
            \tlibseccomp.so.2 => /lib/x86_64-linux-gnu/libseccomp.so.2 (0x00007f5c3a000000)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f5c3a200000)\n\
            \tlibgone.so => not found\n";
        let files = [
            "/lib/x86_64-linux-gnu/libseccomp.so.2",
            "/lib64/ld-linux-x86-64.so.2",
        ]
        .map(PathBuf::from);
        assert_eq!(parse_ldd(text), files);
        assert_eq!(parse_ldd("\tstatically linked\n"), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_missing_stage_installs_nothing() {
        let target = tempfile::tempdir().unwrap();
        installer()
            .install_stage(Path::new("/nonexistent"), target.path())
            .unwrap();
        assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_survey_lists_parents_before_children_and_a_file_by_itself() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        fs::write(root.path().join("a/b/c"), "").unwrap();
        let paths: Vec<_> = survey(root.path()).unwrap().into_keys().collect();
        assert_eq!(paths, ["", "a", "a/b", "a/b/c"].map(PathBuf::from));
        let file = survey(&root.path().join("a/b/c")).unwrap();
        assert_eq!(file.into_keys().collect::<Vec<_>>(), [PathBuf::new()]);
    }
}
