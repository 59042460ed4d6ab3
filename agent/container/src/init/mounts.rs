//! The `mounts` of the specification (config.md#mounts).
//!
//! Every mount is made detached, gets all its attributes, and is then moved to its place by
//! descriptor: there is no moment at which it is visible without its restrictions, and no
//! path that could be exchanged in between (CVE-2021-30465).

mod options;
mod protect;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cloister_spec::{FileSystem, MountKind, mount_kind};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::copy_up::copy_up;
use super::path::{Create, Resolved, Root, clean};
use crate::config::Mount;
use crate::error::{Context, Failure};
use crate::idmap;
use crate::sys::{MountAttr, mount_setattr};
use options::Options;
pub(crate) use options::root_propagation;
use protect::guard_proc;
pub(crate) use protect::{make_read_only, mask, open_null};

pub(crate) const READ_ONLY: u64 = MountAttrFlags::MOUNT_ATTR_RDONLY.bits() as u64;

/// What of the caller's machine the mounts need.
#[derive(Debug)]
pub(crate) struct Outside<'a> {
    /// The container's cgroup directory.
    pub(crate) cgroup: &'a Path,
    /// Whether the container has a cgroup namespace of its own.
    pub(crate) cgroup_namespace: bool,
}

/// Makes mount number `index`; `outer` is what the caller has opened for it. Gives the mount if it is
/// to become read-only once devices and directories have been made in it.
pub(crate) fn mount(
    root: &Root,
    index: usize,
    mount: &Mount,
    outer: Option<OwnedFd>,
    outside: &Outside<'_>,
) -> Result<Option<OwnedFd>, Failure> {
    let context = || format!("mounts[{index}]: {} on {:?}", mount.kind, mount.destination);
    let mut options = Options::parse(&mount.options);
    let kind = mount_kind(&mount.kind, mount.options.iter().map(String::as_str))
        .map_err(|reason| Failure::invalid(format!("mounts[{index}].type: {reason}")))?;
    let destination = clean(Path::new(&mount.destination));
    if destination == Path::new("/") {
        return Err(Failure::invalid(format!(
            "mounts[{index}].destination: the root directory cannot be mounted over"
        )));
    }
    match kind {
        MountKind::Remount => {
            let target = root
                .create(&destination, Create::Directory)
                .doing(context)?;
            remount(&target.fd, &options).doing(context)?;
            Ok(None)
        }
        MountKind::Bind(_) => {
            let source = outer
                .ok_or_else(|| Failure::new(format!("mounts[{index}]: no source was opened")))?;
            let create = if is_directory(&source).doing(context)? {
                Create::Directory
            } else {
                Create::File
            };
            let target = if options.no_follow {
                root.create_no_follow(&destination, create)
            } else {
                root.create(&destination, create)
            };
            let target = target.doing(context)?;
            guard_proc(root, index, &target, Some(&source))?;
            options.apply(&source).doing(context)?;
            options.apply_propagation(&source).doing(context)?;
            attach(&source, &target.fd).doing(context)?;
            Ok(None)
        }
        MountKind::FileSystem(fs) => {
            let target = if options.no_follow {
                root.create_no_follow(&destination, Create::Directory)
            } else {
                root.create(&destination, Create::Directory)
            };
            let target = target.doing(context)?;
            if matches!(fs.name, "proc" | "sysfs") && target.through_link {
                // CVE-2019-19921: a link could lead the mask of /proc astray.
                return Err(Failure::invalid(format!(
                    "mounts[{index}].destination: {} must be mounted on ordinary directory, {:?} is reached through a link",
                    fs.name, mount.destination,
                )));
            }
            if fs.name != "proc" {
                guard_proc(root, index, &target, None)?;
            }
            if !mount.source.is_empty() {
                options.data.push(format!("source={}", mount.source));
            }
            let id_map = outer.map(|namespace| IdMapBy { index, namespace });
            new_file_system(
                fs,
                &destination,
                &target,
                options,
                id_map,
                outside,
                &context,
            )
        }
    }
}

/// The user namespace by which the ids of mount number `index` are mapped.
struct IdMapBy {
    index: usize,
    namespace: OwnedFd,
}

fn new_file_system(
    fs: &FileSystem,
    destination: &Path,
    target: &Resolved,
    mut options: Options,
    id_map: Option<IdMapBy>,
    outside: &Outside<'_>,
    context: &dyn Fn() -> String,
) -> Result<Option<OwnedFd>, Failure> {
    let late_read_only = options.attr.set & READ_ONLY != 0
        && (fs.name == "tmpfs" || destination == Path::new("/dev"));
    if late_read_only {
        options.attr.set &= !READ_ONLY;
    }
    let mount = if fs.kernel_name == "cgroup2" && !outside.cgroup_namespace {
        // Without a cgroup namespace a new mount would show the whole hierarchy.
        let mount = clone_tree(CWD, outside.cgroup, false).doing(context)?;
        mount_setattr(&mount, &MountAttr::propagation(options::PRIVATE), true).doing(context)?;
        mount
    } else {
        if fs.name == "tmpfs" && !options.data.iter().any(|data| data.starts_with("mode=")) {
            let stat = rustix::fs::fstat(&target.fd).doing(context)?;
            options
                .data
                .push(format!("mode={:o}", stat.st_mode & 0o7777));
        }
        create_file_system(fs.kernel_name, &options).map_err(|error| error.into_failure(context))?
    };
    if let Some(IdMapBy { index, namespace }) = id_map {
        idmap::map(index, &mount, &namespace)?;
    }
    options.apply(&mount).doing(context)?;
    if options.copy_up {
        copy_up(&target.fd, &mount).doing(context)?;
    }
    options.apply_propagation(&mount).doing(context)?;
    attach(&mount, &target.fd).doing(context)?;
    Ok(late_read_only.then_some(mount))
}

/// Gives an existing mount other options.
fn remount(target: &OwnedFd, options: &Options) -> io::Result<()> {
    options.apply(target)?;
    options.apply_propagation(target)?;
    if !options.superblock.is_empty() {
        let context = rustix::mount::fspick(
            target,
            "",
            rustix::mount::FsPickFlags::FSPICK_CLOEXEC
                | rustix::mount::FsPickFlags::FSPICK_EMPTY_PATH,
        )?;
        for flag in &options.superblock {
            rustix::mount::fsconfig_set_flag(&context, *flag)?;
        }
        rustix::mount::fsconfig_reconfigure(&context)?;
    }
    Ok(())
}

/// Why a file system could not be made, with the kernel's own words if it has any.
struct FileSystemError {
    error: Errno,
    option: Option<String>,
    log: String,
}

impl FileSystemError {
    fn into_failure(self, context: &dyn Fn() -> String) -> Failure {
        let option = self
            .option
            .map(|option| format!(": option {option:?}"))
            .unwrap_or_default();
        let log = if self.log.is_empty() {
            String::new()
        } else {
            format!(" ({})", self.log)
        };
        let mut failure = Failure::system(format!("{}{option}", context()), self.error);
        failure.message.push_str(&log);
        failure
    }
}

fn create_file_system(kernel_name: &str, options: &Options) -> Result<OwnedFd, FileSystemError> {
    let plain = |error| FileSystemError {
        error,
        option: None,
        log: String::new(),
    };
    let context = rustix::mount::fsopen(kernel_name, FsOpenFlags::FSOPEN_CLOEXEC).map_err(plain)?;
    let logged = |option: Option<&str>| {
        let option = option.map(str::to_owned);
        |error| FileSystemError {
            error,
            option,
            log: context_log(&context),
        }
    };
    for flag in &options.superblock {
        rustix::mount::fsconfig_set_flag(&context, *flag).map_err(logged(Some(flag)))?;
    }
    for data in &options.data {
        match data.split_once('=') {
            Some((key, value)) => rustix::mount::fsconfig_set_string(&context, key, value),
            None => rustix::mount::fsconfig_set_flag(&context, data.as_str()),
        }
        .map_err(logged(Some(data)))?;
    }
    rustix::mount::fsconfig_create(&context).map_err(logged(None))?;
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(logged(None))
}

/// What the kernel says about a file system context: lines like `e tmpfs: Bad value for 'size'`.
fn context_log(context: &OwnedFd) -> String {
    let mut log = String::new();
    let mut buffer = [0; 256];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        let line = line.trim_end();
        if !log.is_empty() {
            log.push_str("; ");
        }
        log.push_str(line.split_once(' ').map_or(line, |(_, text)| text));
    }
    log
}

fn is_directory(fd: &OwnedFd) -> io::Result<bool> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// A detached copy of the mount at a path, with `recursive` of everything below it.
pub(crate) fn clone_tree(
    dir: impl AsFd,
    path: impl AsRef<Path>,
    recursive: bool,
) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if path.as_ref().as_os_str().is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(dir, path.as_ref(), flags)?)
}

/// Moves a detached mount to its place.
pub(crate) fn attach(mount: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    Ok(rustix::mount::move_mount(
        mount,
        "",
        target,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?)
}

/// A detached mount of a new file system without options.
pub(crate) fn detached(kernel_name: &str, data: &[&str], attributes: u64) -> io::Result<OwnedFd> {
    let options = Options {
        attr: MountAttr::new(attributes, 0),
        data: data.iter().map(|&data| data.to_owned()).collect(),
        ..Options::default()
    };
    let mount = create_file_system(kernel_name, &options).map_err(|error| error.error)?;
    options.apply(&mount)?;
    Ok(mount)
}
