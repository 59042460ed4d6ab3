//! `tmpcopyup`: what a directory holds is copied into the tmpfs that covers it.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};

/// Deeper than any sane image; a bound for the recursion.
const MAX_DEPTH: usize = 64;

/// Copies the content of `from` (opened with O_PATH) into the root of the detached mount `to`.
pub(crate) fn copy_up(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let from = open_directory(from, c".")?;
    let to = open_directory(to, c".")?;
    copy_directory(&from, &to, 0)
}

fn open_directory(parent: &OwnedFd, name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("directories are nested too deeply"));
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, mode)?;
                copy_directory(
                    &open_directory(from, name)?,
                    &open_directory(to, name)?,
                    depth + 1,
                )?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&target, to, name)?;
            }
            FileType::RegularFile => copy_file(from, to, name, mode)?,
            kind => rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?,
        }
        set_owner(to, name, &stat)?;
    }
    Ok(())
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &std::ffi::CStr, mode: Mode) -> io::Result<()> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut source = std::fs::File::from(rustix::fs::openat(from, name, read, Mode::empty())?);
    let mut copy = std::fs::File::from(rustix::fs::openat(to, name, write, mode)?);
    io::copy(&mut source, &mut copy)?;
    Ok(())
}

fn set_owner(dir: &OwnedFd, name: &std::ffi::CStr, stat: &Stat) -> io::Result<()> {
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(
        dir,
        name,
        Some(owner.0),
        Some(owner.1),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // A change of owner has taken set-user-id bits away.
        rustix::fs::chmodat(
            dir,
            name,
            Mode::from_raw_mode(stat.st_mode),
            AtFlags::empty(),
        )?;
    }
    Ok(())
}
