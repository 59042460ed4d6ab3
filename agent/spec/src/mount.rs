//! Mounts: file system types and options (config.md#mounts).
//!
//! The specification lets a runtime pass options it does not know to the file system. Cloister does
//! not: an option is in one of the tables here or it is refused by name.

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
    /// The options it takes, without `=value`.
    pub options: &'static [&'static str],
}

/// The file systems that can be mounted.
///
/// `cgroup` gives a cgroup v2 mount: specifications say `cgroup` for whatever the machine has.
pub(crate) static FILE_SYSTEMS: &[FileSystem] = &[
    FileSystem {
        name: "cgroup",
        kernel_name: "cgroup2",
        options: &[],
    },
    FileSystem {
        name: "cgroup2",
        kernel_name: "cgroup2",
        options: &[],
    },
    FileSystem {
        name: "devpts",
        kernel_name: "devpts",
        options: &["gid", "max", "mode", "newinstance", "ptmxmode", "uid"],
    },
    FileSystem {
        name: "mqueue",
        kernel_name: "mqueue",
        options: &[],
    },
    FileSystem {
        name: "proc",
        kernel_name: "proc",
        options: &["gid", "hidepid", "subset"],
    },
    FileSystem {
        name: "sysfs",
        kernel_name: "sysfs",
        options: &[],
    },
    FileSystem {
        name: "tmpfs",
        kernel_name: "tmpfs",
        options: &[
            "gid",
            "huge",
            "inode32",
            "inode64",
            "mode",
            "mpol",
            "noswap",
            "nr_blocks",
            "nr_inodes",
            "size",
            "uid",
        ],
    },
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
        ("defaults", MountOption::Nothing),
        ("dev", attribute(NoDev, false, false)),
        ("diratime", attribute(NoDirAtime, false, false)),
        ("dirsync", MountOption::Superblock("dirsync")),
        ("exec", attribute(NoExec, false, false)),
        ("idmap", MountOption::Refused(crate::table::IDMAP_REASON)),
        ("iversion", MountOption::Nothing),
        ("lazytime", MountOption::Superblock("lazytime")),
        ("loud", MountOption::Nothing),
        (
            "mand",
            MountOption::Refused("Linux has no mandatory locks since 5.15"),
        ),
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
        ("ratime", access_time(Relative, true)),
        ("rbind", MountOption::Bind { recursive: true }),
        ("rdev", attribute(NoDev, false, true)),
        ("rdiratime", attribute(NoDirAtime, false, true)),
        ("relatime", access_time(Relative, false)),
        ("remount", MountOption::Remount),
        ("rexec", attribute(NoExec, false, true)),
        ("ridmap", MountOption::Refused(crate::table::IDMAP_REASON)),
        ("rnoatime", access_time(Never, true)),
        ("rnodev", attribute(NoDev, true, true)),
        ("rnodiratime", attribute(NoDirAtime, true, true)),
        ("rnoexec", attribute(NoExec, true, true)),
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
        ("runbindable", propagation(Unbindable, true)),
        ("rw", attribute(ReadOnly, false, false)),
        ("shared", propagation(Shared, false)),
        ("silent", MountOption::Nothing),
        ("slave", propagation(Slave, false)),
        ("strictatime", access_time(Strict, false)),
        ("suid", attribute(NoSuid, false, false)),
        ("symfollow", attribute(NoSymFollow, false, false)),
        ("sync", MountOption::Superblock("sync")),
        ("tmpcopyup", MountOption::CopyUp),
        ("unbindable", propagation(Unbindable, false)),
    ]
};

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
                "refused: file system {fs_type:?} cannot be mounted, only {} can",
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
        (Some(_), _) => None,
        (None, MountKind::FileSystem(fs)) => {
            let name = option.split_once('=').map_or(option, |(name, _)| name);
            (!fs.options.contains(&name)).then(|| {
                format!(
                    "{quoted} is refused: not a mount option that Cloister knows for {}",
                    fs.name
                )
            })
        }
        (None, MountKind::Bind(_)) => Some(format!(
            "{quoted} is refused: not a mount option that Cloister knows for bind mounts"
        )),
        (None, MountKind::Remount) => Some(format!(
            "{quoted} is refused: not a mount option that Cloister knows for remounts"
        )),
    }
}
