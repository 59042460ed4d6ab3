//! Mounts: file system types and options (config.md#mounts).
//!
//! An option that is not in the table here belongs to the file system: it is passed on, and the
//! kernel refuses it by name if the file system does not know it. A bind mount has no file system of
//! its own to pass it on to: there such an option is refused here.

/// What a mount attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A directory or file that exists; `true` with everything mounted below it.
    Bind(bool),
    /// Nothing: an existing mount gets other options.
    Remount,
    /// A new file system.
    FileSystem(&'static FileSystem),
}

/// A file system type that can be mounted.
#[derive(Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Its name in specifications.
    pub name: &'static str,
    /// Its name for the kernel.
    pub kernel_name: &'static str,
}

const fn file_system(name: &'static str) -> FileSystem {
    FileSystem {
        name,
        kernel_name: name,
    }
}

/// The file systems that can be mounted: those that the guest's kernel makes from nothing. Others
/// would be made from a device or from directories of the host, by names that mean something else in
/// the virtual machine.
///
/// `cgroup` gives a cgroup v2 mount: specifications say `cgroup` for whatever the machine has.
pub(crate) static FILE_SYSTEMS: &[FileSystem] = &[
    file_system("binfmt_misc"),
    file_system("bpf"),
    FileSystem {
        name: "cgroup",
        kernel_name: "cgroup2",
    },
    file_system("cgroup2"),
    file_system("devpts"),
    file_system("hugetlbfs"),
    file_system("mqueue"),
    file_system("proc"),
    file_system("ramfs"),
    file_system("securityfs"),
    file_system("sysfs"),
    file_system("tmpfs"),
];

/// What an option does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountOption {
    /// Sets or clears an attribute of the mount, with `recursive` also of those below it.
    Attribute {
        /// The attribute.
        attribute: Attribute,
        /// Whether it is set.
        set: bool,
        /// Whether it reaches the mounts below.
        recursive: bool,
    },
    /// How access times are kept.
    AccessTime {
        /// The mode.
        mode: AccessTime,
        /// Whether it reaches the mounts below.
        recursive: bool,
    },
    /// How mounts and unmounts propagate.
    Propagation {
        /// The type.
        propagation: Propagation,
        /// Whether it reaches the mounts below.
        recursive: bool,
    },
    /// A bind mount, with `recursive` of everything below the source too.
    Bind {
        /// Whether everything below the source comes too.
        recursive: bool,
    },
    /// Other options for an existing mount.
    Remount,
    /// A flag of the file system, by its name for fsconfig(2).
    Superblock(&'static str),
    /// The directory's content is copied into the new tmpfs.
    CopyUp,
    /// Users and groups are mapped, with `recursive` also in the mounts below.
    IdMap {
        /// Whether it reaches the mounts below.
        recursive: bool,
    },
    /// A link at the destination is mounted over, not followed.
    NoFollow,
    /// The default, or without effect on the file systems in the table of file systems.
    Nothing,
    /// Known and refused, with the reason.
    Refused(&'static str),
}

/// An attribute of a mount (mount_setattr(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// MOUNT_ATTR_RDONLY
    ReadOnly,
    /// MOUNT_ATTR_NOSUID
    NoSuid,
    /// MOUNT_ATTR_NODEV
    NoDev,
    /// MOUNT_ATTR_NOEXEC
    NoExec,
    /// MOUNT_ATTR_NODIRATIME
    NoDirAtime,
    /// MOUNT_ATTR_NOSYMFOLLOW
    NoSymFollow,
}

/// How access times are kept (mount_setattr(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessTime {
    /// MOUNT_ATTR_RELATIME, the kernel's default
    Relative,
    /// MOUNT_ATTR_NOATIME
    Never,
    /// MOUNT_ATTR_STRICTATIME
    Strict,
}

/// How mounts and unmounts propagate (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// MS_PRIVATE
    Private,
    /// MS_SHARED
    Shared,
    /// MS_SLAVE
    Slave,
    /// MS_UNBINDABLE
    Unbindable,
}

const fn attribute(attribute: Attribute, set: bool, recursive: bool) -> MountOption {
    MountOption::Attribute {
        attribute,
        set,
        recursive,
    }
}

const fn access_time(mode: AccessTime, recursive: bool) -> MountOption {
    MountOption::AccessTime { mode, recursive }
}

const fn propagation(propagation: Propagation, recursive: bool) -> MountOption {
    MountOption::Propagation {
        propagation,
        recursive,
    }
}

/// The options that do not depend on the file system (config.md#linux-mount-options), in
/// alphabetical order.
pub(crate) static MOUNT_OPTIONS: &[(&str, MountOption)] = {
    use AccessTime::{Never, Relative, Strict};
    use Attribute::{NoDev, NoDirAtime, NoExec, NoSuid, NoSymFollow, ReadOnly};
    use Propagation::{Private, Shared, Slave, Unbindable};
    &[
        ("async", MountOption::Superblock("async")),
        ("atime", access_time(Relative, false)),
        ("bind", MountOption::Bind { recursive: false }),
        ("copy-symlink", MountOption::Refused(SOURCE_LINK)),
        ("defaults", MountOption::Nothing),
        ("dest-nofollow", MountOption::NoFollow),
        ("dev", attribute(NoDev, false, false)),
        ("diratime", attribute(NoDirAtime, false, false)),
        ("dirsync", MountOption::Superblock("dirsync")),
        ("exec", attribute(NoExec, false, false)),
        ("idmap", MountOption::IdMap { recursive: false }),
        ("iversion", MountOption::Nothing),
        ("lazytime", MountOption::Superblock("lazytime")),
        ("loud", MountOption::Nothing),
        ("mand", MountOption::Refused(NO_LOCKS)),
        ("noatime", access_time(Never, false)),
        ("nodev", attribute(NoDev, true, false)),
        ("nodiratime", attribute(NoDirAtime, true, false)),
        ("noexec", attribute(NoExec, true, false)),
        ("noiversion", MountOption::Nothing),
        ("nolazytime", MountOption::Superblock("nolazytime")),
        ("nomand", MountOption::Nothing),
        ("norelatime", access_time(Relative, false)),
        ("nostrictatime", access_time(Relative, false)),
        ("nosuid", attribute(NoSuid, true, false)),
        ("nosymfollow", attribute(NoSymFollow, true, false)),
        ("private", propagation(Private, false)),
        ("rasync", MountOption::Nothing),
        ("ratime", access_time(Relative, true)),
        ("rbind", MountOption::Bind { recursive: true }),
        ("rdev", attribute(NoDev, false, true)),
        ("rdiratime", attribute(NoDirAtime, false, true)),
        ("rdirsync", MountOption::Refused(NOT_RECURSIVE)),
        ("relatime", access_time(Relative, false)),
        ("remount", MountOption::Remount),
        ("rexec", attribute(NoExec, false, true)),
        ("ridmap", MountOption::IdMap { recursive: true }),
        ("rmand", MountOption::Refused(NO_LOCKS)),
        ("rnoatime", access_time(Never, true)),
        ("rnodev", attribute(NoDev, true, true)),
        ("rnodiratime", attribute(NoDirAtime, true, true)),
        ("rnoexec", attribute(NoExec, true, true)),
        ("rnomand", MountOption::Nothing),
        ("rnorelatime", access_time(Relative, true)),
        ("rnostrictatime", access_time(Relative, true)),
        ("rnosuid", attribute(NoSuid, true, true)),
        ("rnosymfollow", attribute(NoSymFollow, true, true)),
        ("ro", attribute(ReadOnly, true, false)),
        ("rprivate", propagation(Private, true)),
        ("rrelatime", access_time(Relative, true)),
        ("rro", attribute(ReadOnly, true, true)),
        ("rrw", attribute(ReadOnly, false, true)),
        ("rshared", propagation(Shared, true)),
        ("rslave", propagation(Slave, true)),
        ("rstrictatime", access_time(Strict, true)),
        ("rsuid", attribute(NoSuid, false, true)),
        ("rsymfollow", attribute(NoSymFollow, false, true)),
        ("rsync", MountOption::Refused(NOT_RECURSIVE)),
        ("runbindable", propagation(Unbindable, true)),
        ("rw", attribute(ReadOnly, false, false)),
        ("shared", propagation(Shared, false)),
        ("silent", MountOption::Nothing),
        ("slave", propagation(Slave, false)),
        ("src-nofollow", MountOption::Refused(SOURCE_LINK)),
        ("strictatime", access_time(Strict, false)),
        ("suid", attribute(NoSuid, false, false)),
        ("symfollow", attribute(NoSymFollow, false, false)),
        ("sync", MountOption::Superblock("sync")),
        ("tmpcopyup", MountOption::CopyUp),
        ("unbindable", propagation(Unbindable, false)),
    ]
};

const NO_LOCKS: &str = "Linux has no mandatory locks since 5.15";
const NOT_RECURSIVE: &str = "it is a property of a file system, not of the mounts below";
const SOURCE_LINK: &str =
    "links in the source are followed on the host, where the source is shared from";

/// The option of this name that does not depend on the file system.
pub fn mount_option(name: &str) -> Option<MountOption> {
    MOUNT_OPTIONS
        .binary_search_by_key(&name, |(known, _)| known)
        .ok()
        .and_then(|index| MOUNT_OPTIONS.get(index))
        .map(|(_, option)| *option)
}

/// What a mount of this type with these options attaches.
///
/// # Errors
/// The type is missing, or is not in the table of file systems; the text says which.
pub fn mount_kind<'a>(
    fs_type: &str,
    options: impl Iterator<Item = &'a str>,
) -> Result<MountKind, String> {
    let mut bind = (fs_type == "bind").then_some(false);
    for option in options {
        match mount_option(option) {
            Some(MountOption::Remount) => return Ok(MountKind::Remount),
            Some(MountOption::Bind { recursive }) => bind = Some(bind == Some(true) || recursive),
            _ => {}
        }
    }
    if let Some(recursive) = bind {
        return Ok(MountKind::Bind(recursive));
    }
    if fs_type.is_empty() {
        return Err("is required unless the options contain bind or rbind".into());
    }
    FILE_SYSTEMS
        .iter()
        .find(|fs| fs.name == fs_type)
        .map(MountKind::FileSystem)
        .ok_or_else(|| {
            let known: Vec<&str> = FILE_SYSTEMS.iter().map(|fs| fs.name).collect();
            format!(
                "refused: file system {fs_type:?} cannot be mounted inside the virtual machine, only {} can",
                known.join(", ")
            )
        })
}

/// Why an option cannot be used on such a mount, if it cannot.
pub(crate) fn refusal(kind: MountKind, option: &str) -> Option<String> {
    let quoted = format!("{option:?}");
    match (mount_option(option), kind) {
        (Some(MountOption::Refused(reason)), _) => Some(format!("{quoted} is refused: {reason}")),
        (Some(MountOption::CopyUp), MountKind::FileSystem(fs)) if fs.name == "tmpfs" => None,
        (Some(MountOption::CopyUp), _) => Some(format!("{quoted} is refused: only tmpfs has it")),
        (Some(MountOption::Superblock("async" | "nolazytime")), MountKind::Bind(_)) => None,
        (Some(MountOption::Superblock(_)), MountKind::Bind(_)) => Some(format!(
            "{quoted} is refused: it is a property of the file system, which a bind mount does not change"
        )),
        (Some(MountOption::IdMap { .. } | MountOption::NoFollow), MountKind::Remount) => {
            Some(format!("{quoted} is refused: a remount cannot change it"))
        }
        // The file system's own, or nobody's: the kernel says which.
        (Some(_), _) | (None, MountKind::FileSystem(_)) => None,
        (None, MountKind::Bind(_)) => Some(format!(
            "{quoted} is refused: not a mount option that Cloister knows for bind mounts"
        )),
        (None, MountKind::Remount) => Some(format!(
            "{quoted} is refused: not a mount option that Cloister knows for remounts"
        )),
    }
}
