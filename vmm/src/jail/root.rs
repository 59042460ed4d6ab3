//! A root directory with nothing in it.

use std::os::fd::AsFd;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{fchdir, pivot_root};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{Error, step};

/// Moves the process into a mount namespace of its own, whose root is an empty read-only tmpfs and
/// in which nothing else is mounted.
pub(super) fn empty() -> Result<(), Error> {
    unshare_mounts()?;
    // What is unmounted below must stay mounted for everybody else.
    let propagation = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    step("private mounts", mount_change("/", propagation))?;

    let tmpfs = step(
        "fsopen(tmpfs)",
        fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC),
    )?;
    step("creation of a tmpfs", fsconfig_create(tmpfs.as_fd()))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = step(
        "fsmount",
        fsmount(tmpfs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes),
    )?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    step("move_mount", move_mount(root.as_fd(), "", CWD, "/", flags))?;
    step("fchdir", fchdir(&root))?;
    // pivot_root(2), "pivot_root(".", ".")": the old root comes to lie on the new one, and is what
    // the unmounting finds there.
    step("pivot_root", pivot_root(".", "."))?;
    step(
        "unmounting of the old root",
        unmount(".", UnmountFlags::DETACH),
    )
}

#[expect(
    unsafe_code,
    reason = "unshare can take away what other code relies on"
)]
fn unshare_mounts() -> Result<(), Error> {
    // SAFETY: the mount namespace is no part of what Rust code relies on; descriptors stay.
    let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNS) };
    step("a new mount namespace", unshared)
}
