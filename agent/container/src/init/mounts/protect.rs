//! What nobody may see, write to or mount over: masked and read-only paths (config-linux.md), and procfs.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;

use super::{Resolved, attach, clone_tree, detached, is_directory};
use crate::error::Failure;
use crate::init::mounts::READ_ONLY;
use crate::init::path::Root;
use crate::sys::{MountAttr, mount_setattr};

/// `linux.maskedPaths`: files become `/dev/null`, directories an empty read-only tmpfs.
///
/// `empty` keeps that tmpfs for all of them.
pub(crate) fn mask(
    root: &Root,
    path: &str,
    null: &OwnedFd,
    empty: &mut Option<OwnedFd>,
) -> io::Result<()> {
    let Some(target) = open_if_there(root, path)? else {
        return Ok(());
    };
    if !is_directory(&target)? {
        return attach(&clone_tree(null, "", false)?, &target);
    }
    if let Some(empty) = empty {
        return attach(&clone_tree(empty, "", false)?, &target);
    }
    let mount = detached(
        "tmpfs",
        &["mode=755", "nr_blocks=1", "nr_inodes=1"],
        READ_ONLY,
    )?;
    attach(&mount, &target)?;
    *empty = Some(mount);
    Ok(())
}

/// `linux.readonlyPaths`.
pub(crate) fn make_read_only(root: &Root, path: &str) -> io::Result<()> {
    let Some(target) = open_if_there(root, path)? else {
        return Ok(());
    };
    let mount = clone_tree(&target, "", true)?;
    mount_setattr(&mount, &MountAttr::new(READ_ONLY, 0), false)?;
    attach(&mount, &target)
}

/// Paths that do not exist need no protection.
fn open_if_there(root: &Root, path: &str) -> io::Result<Option<OwnedFd>> {
    match root.open(&PathBuf::from(path), rustix::fs::OFlags::PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Opens the caller's `/dev/null` and makes sure that it is that.
pub(crate) fn open_null() -> io::Result<OwnedFd> {
    let fd = crate::init::path::open_outside(Path::new("/dev/null"))?;
    let stat = rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH)?;
    let is_null = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_char_device()
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if is_null {
        Ok(fd)
    } else {
        Err(io::Error::other("/dev/null is not the null device"))
    }
}

/// Refuses what would put something of the image's or the user's choice into procfs.
///
/// Not a matter of the specification: programs trust `/proc` (runc refuses the same).
pub(super) fn guard_proc(
    root: &Root,
    index: usize,
    target: &Resolved,
    bind_source: Option<&OwnedFd>,
) -> Result<(), Failure> {
    /// What container engines mount their own versions of.
    const ALLOWED: [&str; 10] = [
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "slabinfo",
        "stat",
        "swaps",
        "sys/crypto/fips_enabled",
        "sys/kernel/ns_last_pid",
        "uptime",
    ];
    let Ok(inside) = target.path.strip_prefix("/proc") else {
        return Ok(());
    };
    let refuse = |reason: &str| {
        Err(Failure::invalid(format!(
            "mounts[{index}].destination: {:?} {reason}",
            target.path
        )))
    };
    if inside == Path::new("") {
        let is_proc = |fd: &OwnedFd| {
            rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type == rustix::fs::PROC_SUPER_MAGIC)
        };
        return match bind_source {
            Some(source) if is_proc(source) => Ok(()),
            _ => refuse("can only be a procfs"),
        };
    }
    // A directory of that name that is no procfs is an ordinary directory.
    let proc = root.open(Path::new("/proc"), rustix::fs::OFlags::PATH);
    let proc_is_mounted = proc
        .and_then(|fd| Ok(rustix::fs::fstatfs(&fd)?))
        .is_ok_and(|stat| stat.f_type == rustix::fs::PROC_SUPER_MAGIC);
    if proc_is_mounted && !ALLOWED.iter().any(|allowed| inside == Path::new(allowed)) {
        return refuse("cannot be mounted because it is inside /proc");
    }
    Ok(())
}
