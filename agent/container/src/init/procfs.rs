//! A procfs that nobody can have put anything into or over.
//!
//! It is mounted for this process alone and attached nowhere, so that a write to `/proc/sys`
//! goes to the kernel whatever the container's `/proc` has become (CVE-2019-16884, CVE-2025-52881).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::path::open_beneath;

#[derive(Debug)]
pub(crate) struct Procfs(OwnedFd);

impl Procfs {
    /// Mounts procfs of the process's pid namespace.
    pub(crate) fn mount() -> io::Result<Self> {
        let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(&context)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        Ok(Procfs(rustix::mount::fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            flags,
        )?))
    }

    /// Reads one of its files.
    pub(crate) fn read(&self, path: &Path) -> io::Result<String> {
        let file = open_beneath(&self.0, path, OFlags::RDONLY)?;
        io::read_to_string(std::fs::File::from(file))
    }

    /// Writes to one of its files.
    pub(crate) fn write(&self, path: &Path, value: &[u8]) -> io::Result<()> {
        let file = open_beneath(&self.0, path, OFlags::WRONLY)?;
        let written = rustix::io::write(&file, value)?;
        // The kernel takes a parameter in one piece or not at all.
        if written == value.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
}
