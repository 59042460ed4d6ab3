//! The `mounts` of the specification (config.md#mounts).
//!
//! Every mount is made detached, gets all its attributes, and is then moved to its place by
//! descriptor: there is no moment at which it is visible without its restrictions, and no
//! path that could be exchanged in between (CVE-2021-30465).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use cloister_spec::{
    AccessTime, Attribute, FileSystem, MountKind, MountOption, Propagation, mount_kind,
    mount_option,
};
use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};

use super::copy_up::copy_up;
use super::path::{Create, Resolved, Root, clean};
use crate::config::Mount;
use crate::error::{Context, Failure};
use crate::sys::{MountAttr, mount_setattr};

/// MOUNT_ATTR__ATIME: the attributes that exclude each other.
const ACCESS_TIME_MASK: u64 = 0x70;
const NO_SYM_FOLLOW: u64 = 0x20_0000;

pub(crate) const READ_ONLY: u64 = MountAttrFlags::MOUNT_ATTR_RDONLY.bits() as u64;

/// What of the caller's machine the mounts need.
#[derive(Debug)]
pub(crate) struct Outside<'a> {
    /// The container's cgroup directory.
    pub(crate) cgroup: &'a Path,
    /// Whether the container has a cgroup namespace of its own.
    pub(crate) cgroup_namespace: bool,
}

/// What the options of one mount come to.
#[derive(Debug, Default)]
struct Options {
    attr: MountAttr,
    recursive: MountAttr,
    propagation: Vec<(u64, bool)>,
    superblock: Vec<&'static str>,
    data: Vec<String>,
    copy_up: bool,
}

impl Options {
    fn parse(options: &[String]) -> Self {
        let mut parsed = Options::default();
        for text in options {
            match mount_option(text) {
                None => parsed.data.push(text.clone()),
                Some(MountOption::Attribute {
                    attribute,
                    set,
                    recursive,
                }) => {
                    let bit = attribute_bit(attribute);
                    let attr = parsed.attr(recursive);
                    // The last word counts.
                    (attr.set, attr.clear) = if set {
                        (attr.set | bit, attr.clear & !bit)
                    } else {
                        (attr.set & !bit, attr.clear | bit)
                    };
                }
                Some(MountOption::AccessTime { mode, recursive }) => {
                    let attr = parsed.attr(recursive);
                    attr.clear |= ACCESS_TIME_MASK;
                    attr.set = attr.set & !ACCESS_TIME_MASK | access_time_bits(mode);
                }
                Some(MountOption::Propagation {
                    propagation,
                    recursive,
                }) => {
                    parsed
                        .propagation
                        .push((propagation_bits(propagation), recursive));
                }
                Some(MountOption::Superblock(flag)) => parsed.superblock.push(flag),
                Some(MountOption::CopyUp) => parsed.copy_up = true,
                Some(
                    MountOption::Bind { .. }
                    | MountOption::Remount
                    | MountOption::Nothing
                    | MountOption::Refused(_),
                ) => {}
            }
        }
        parsed
    }

    fn attr(&mut self, recursive: bool) -> &mut MountAttr {
        if recursive {
            &mut self.recursive
        } else {
            &mut self.attr
        }
    }

    /// Gives a detached or attached mount its attributes.
    fn apply(&self, mount: &OwnedFd) -> io::Result<()> {
        if self.recursive != MountAttr::default() {
            mount_setattr(mount, &self.recursive, true)?;
        }
        if self.attr != MountAttr::default() {
            mount_setattr(mount, &self.attr, false)?;
        }
        Ok(())
    }

    fn apply_propagation(&self, mount: &OwnedFd) -> io::Result<()> {
        for (propagation, recursive) in &self.propagation {
            mount_setattr(mount, &MountAttr::propagation(*propagation), *recursive)?;
        }
        Ok(())
    }
}

fn attribute_bit(attribute: Attribute) -> u64 {
    let flag = match attribute {
        Attribute::ReadOnly => MountAttrFlags::MOUNT_ATTR_RDONLY,
        Attribute::NoSuid => MountAttrFlags::MOUNT_ATTR_NOSUID,
        Attribute::NoDev => MountAttrFlags::MOUNT_ATTR_NODEV,
        Attribute::NoExec => MountAttrFlags::MOUNT_ATTR_NOEXEC,
        Attribute::NoDirAtime => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
        Attribute::NoSymFollow => return NO_SYM_FOLLOW,
    };
    u64::from(flag.bits())
}

fn access_time_bits(mode: AccessTime) -> u64 {
    let flag = match mode {
        AccessTime::Relative => MountAttrFlags::MOUNT_ATTR_RELATIME,
        AccessTime::Never => MountAttrFlags::MOUNT_ATTR_NOATIME,
        AccessTime::Strict => MountAttrFlags::MOUNT_ATTR_STRICTATIME,
    };
    u64::from(flag.bits())
}

fn propagation_bits(propagation: Propagation) -> u64 {
    let flag = match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Shared => MountPropagationFlags::SHARED,
        Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
        Propagation::Unbindable => MountPropagationFlags::UNBINDABLE,
    };
    u64::from(flag.bits())
}

/// The attribute for `linux.rootfsPropagation`, and whether it is recursive.
pub(crate) fn root_propagation(name: &str) -> Option<(u64, bool)> {
    match mount_option(name) {
        Some(MountOption::Propagation {
            propagation,
            recursive,
        }) => Some((propagation_bits(propagation), recursive)),
        _ => None,
    }
}

/// Makes mount number `index`. Gives the mount if it is to become read-only once devices and
/// directories have been made in it.
pub(crate) fn mount(
    root: &Root,
    index: usize,
    mount: &Mount,
    bind_source: Option<OwnedFd>,
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
            let source = bind_source
                .ok_or_else(|| Failure::new(format!("mounts[{index}]: no source was opened")))?;
            let create = if is_directory(&source).doing(context)? {
                Create::Directory
            } else {
                Create::File
            };
            let target = root.create(&destination, create).doing(context)?;
            guard_proc(root, index, &target, Some(&source))?;
            options.apply(&source).doing(context)?;
            options.apply_propagation(&source).doing(context)?;
            attach(&source, &target.fd).doing(context)?;
            Ok(None)
        }
        MountKind::FileSystem(fs) => {
            let target = root
                .create(&destination, Create::Directory)
                .doing(context)?;
            if matches!(fs.name, "proc" | "sysfs") && target.through_link {
                // CVE-2019-19921: a link could lead the mask of /proc astray.
                return Err(Failure::invalid(format!(
                    "mounts[{index}].destination: {} must be mounted on an ordinary directory, {:?} is reached through a link",
                    fs.name, mount.destination,
                )));
            }
            if fs.name != "proc" {
                guard_proc(root, index, &target, None)?;
            }
            if !mount.source.is_empty() {
                options.data.push(format!("source={}", mount.source));
            }
            new_file_system(fs, &destination, &target, options, outside, &context)
        }
    }
}

fn new_file_system(
    fs: &FileSystem,
    destination: &Path,
    target: &Resolved,
    mut options: Options,
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
        mount_setattr(
            &mount,
            &MountAttr::propagation(propagation_bits(Propagation::Private)),
            true,
        )
        .doing(context)?;
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

/// Refuses what would put something of the image's or the user's choice into procfs.
///
/// Not a matter of the specification: programs trust `/proc` (runc refuses the same).
fn guard_proc(
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
    let fd = super::path::open_outside(Path::new("/dev/null"))?;
    let stat = rustix::fs::statat(&fd, "", AtFlags::EMPTY_PATH)?;
    let is_null = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_char_device()
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if is_null {
        Ok(fd)
    } else {
        Err(io::Error::other("/dev/null is not the null device"))
    }
}
