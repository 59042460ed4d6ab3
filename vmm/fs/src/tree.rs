//! The shared tree: a mount namespace that holds the exports and nothing else.
//!
//! ```text
//!   host                                  server
//!   /var/lib/…/rootfs  ──clone──▶         /rootfs        (with every mount below it)
//!   /etc/resolv.conf   ──clone──▶         /resolv.conf
//!                                         /              an empty tmpfs, read-only
//! ```
//!
//! Each export is a clone of the mount tree at its descriptor, private from then on: mounting and
//! unmounting on the host does not show, and what is mounted here is not seen there and goes with
//! the process. The clones are made *before* the process leaves the namespace it was started in,
//! since the kernel clones mounts of the caller's own namespace only.
//!
//! A clone also loses what serving files does not need, so that a server that is taken over has
//! less to work with: no symbolic link in it is followed by the kernel, no device node in it can be
//! opened, nothing in it can be executed. The guest does not see these flags: it interprets links,
//! devices and modes itself.
#![allow(unsafe_code)] // mount_setattr and unshare have no safe wrapper.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use cloister_vmm_api::fs::Export;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, mkdirat, openat, statx};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{fchdir, pivot_root};

/// What a cloned mount loses. `MOUNT_ATTR_NOSYMFOLLOW` needs Linux 5.14.
const CLONE_ATTRIBUTES: u64 = libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR_NOSYMFOLLOW;

/// Why the shared tree cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// An export cannot be looked at.
    #[error("exports[{index}] ({name}): cannot stat the descriptor")]
    Stat {
        /// Which export.
        index: usize,
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: Errno,
    },
    /// An export is something that cannot be mounted.
    #[error("exports[{index}] ({name}): is a symbolic link")]
    Symlink {
        /// Which export.
        index: usize,
        /// Its name.
        name: String,
    },
    /// A step for one export failed.
    #[error("exports[{index}] ({name}): cannot {operation}")]
    Export {
        /// Which export.
        index: usize,
        /// Its name.
        name: String,
        /// What failed.
        operation: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
    /// A step for the tree as a whole failed.
    #[error("shared tree: cannot {operation}")]
    Step {
        /// What failed.
        operation: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
}

/// An export on its way to its place.
#[derive(Debug)]
struct Clone<'a> {
    index: usize,
    export: &'a Export,
    directory: bool,
    mount: OwnedFd,
}

impl Clone<'_> {
    fn error(&self, operation: &'static str) -> impl FnOnce(Errno) -> TreeError {
        export_error(self.index, self.export, operation)
    }
}

fn export_error(
    index: usize,
    export: &Export,
    operation: &'static str,
) -> impl FnOnce(Errno) -> TreeError + use<> {
    let name = export.name.clone();
    move |source| TreeError::Export {
        index,
        name,
        operation,
        source,
    }
}

fn step(operation: &'static str) -> impl FnOnce(Errno) -> TreeError {
    move |source| TreeError::Step { operation, source }
}

/// Moves the process into a mount namespace of its own whose root holds `exports`, each a clone of
/// what the descriptor in `sources` at the same place leads to. Must be called while the process
/// has one thread. The working directory is the new root afterwards.
///
/// Returns a descriptor of `/proc/self/fd` that leads nowhere else: there is no `/proc` any more.
///
/// # Errors
/// Names the export or the step. The process may be left in a half-built namespace, and is good
/// for nothing but to exit.
pub fn build(exports: &[Export], sources: &[OwnedFd]) -> Result<File, TreeError> {
    let descriptors = open_tree(
        CWD,
        c"/proc/self/fd",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .map_err(step("open /proc/self/fd"))?;
    let clones = exports
        .iter()
        .zip(sources)
        .enumerate()
        .map(|(index, (export, source))| clone(index, export, source.as_fd()))
        .collect::<Result<Vec<_>, _>>()?;
    let root = empty_root()?;

    // SAFETY: the process has one thread, and owns no memory that depends on the namespace.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .map_err(step("make a mount namespace"))?;
    // Nothing that happens here from now on may reach the host's mounts.
    mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(step("make the mount namespace private"))?;
    move_mount(
        root.as_fd(),
        c"",
        CWD,
        c"/",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(step("mount the root"))?;
    for clone in &clones {
        attach(root.as_fd(), clone)?;
    }
    set_attributes(
        root.as_fd(),
        libc::AT_EMPTY_PATH,
        libc::MOUNT_ATTR_RDONLY,
        0,
    )
    .map_err(step("make the root read-only"))?;
    enter(root.as_fd())?;
    Ok(descriptors.into())
}

/// Clones the mount tree at `source`, detached, or takes it over if it is detached already.
fn clone<'a>(
    index: usize,
    export: &'a Export,
    source: BorrowedFd<'_>,
) -> Result<Clone<'a>, TreeError> {
    let stat = statx(source, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE).map_err(|source| {
        TreeError::Stat {
            index,
            name: export.name.clone(),
            source,
        }
    })?;
    let kind = FileType::from_raw_mode(stat.stx_mode.into());
    if kind == FileType::Symlink {
        return Err(TreeError::Symlink {
            index,
            name: export.name.clone(),
        });
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let mount = if export.detached {
        let mount = source.try_clone_to_owned();
        mount.map_err(|e| {
            let errno = Errno::from_io_error(&e).unwrap_or(Errno::INVAL);
            export_error(index, export, "take the mount tree over")(errno)
        })?
    } else {
        open_tree(source, c"", flags).map_err(export_error(
            index,
            export,
            "clone the mount tree at the descriptor",
        ))?
    };
    let readonly = if export.readonly {
        libc::MOUNT_ATTR_RDONLY
    } else {
        0
    };
    set_attributes(
        mount.as_fd(),
        libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
        CLONE_ATTRIBUTES | readonly,
        libc::MS_PRIVATE,
    )
    .map_err(export_error(index, export, "restrict the mounts"))?;
    Ok(Clone {
        index,
        export,
        directory: kind == FileType::Directory,
        mount,
    })
}

/// An empty directory to mount the exports in.
fn empty_root() -> Result<OwnedFd, TreeError> {
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(step("open a tmpfs"))?;
    fsconfig_set_string(context.as_fd(), c"mode", c"755").map_err(step("configure a tmpfs"))?;
    fsconfig_create(context.as_fd()).map_err(step("create a tmpfs"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(step("mount a tmpfs"))
}

/// Puts a clone in its place below `root`.
fn attach(root: BorrowedFd<'_>, clone: &Clone<'_>) -> Result<(), TreeError> {
    let name = clone.export.name.as_str();
    if clone.directory {
        mkdirat(root, name, Mode::from_raw_mode(0o755)).map_err(clone.error("make its place"))?;
    } else {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(root, name, flags, Mode::from_raw_mode(0o644))
            .map_err(clone.error("make its place"))?;
    }
    move_mount(
        clone.mount.as_fd(),
        c"",
        root,
        name,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(clone.error("mount it"))
}

/// Makes `root` the root of the process and lets go of everything else.
fn enter(root: BorrowedFd<'_>) -> Result<(), TreeError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = openat(CWD, c"/", flags, Mode::empty()).map_err(step("open the old root"))?;
    fchdir(root).map_err(step("enter the root"))?;
    // The old root ends up on top of the new one, from where it is taken away.
    pivot_root(c".", c".").map_err(step("change the root"))?;
    fchdir(&old).map_err(step("enter the old root"))?;
    unmount(c".", UnmountFlags::DETACH).map_err(step("detach the old root"))?;
    fchdir(root).map_err(step("enter the root"))
}

/// mount_setattr(2) on what `mount` leads to.
fn set_attributes(
    mount: BorrowedFd<'_>,
    flags: libc::c_int,
    set: u64,
    propagation: u64,
) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation,
        userns_fd: 0,
    };
    let path: &CStr = c"";
    // SAFETY: `path` is NUL-terminated, `attributes` is a mount_attr of the size given, and both
    // outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL))
    }
}
