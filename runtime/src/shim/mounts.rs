//! The mounts that make a root file system: containerd names them, the shim makes them.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cloister::sys::loop_device::LoopDevice;
use containerd_shim_protos::api::Mount;
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_remount, unmount,
};

/// The largest text of options that mount(2) takes, in bytes: a page with its end.
const DATA_MAX: usize = 4095;

/// Why a root file system is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MountError {
    /// A mount was refused.
    #[error("cannot mount {source_name} ({kind}) at {}", target.display())]
    Mount {
        /// What was to be mounted.
        source_name: String,
        /// Its type.
        kind: String,
        /// Where.
        target: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The options are too long.
    #[error("cannot mount at {}: {length} bytes of options, the kernel takes {DATA_MAX}", target.display())]
    Long {
        /// Where.
        target: PathBuf,
        /// How many.
        length: usize,
    },
    /// It is of a form that is made otherwise.
    #[error("cannot mount {source_name} ({kind}): option {option:?} is not supported: {reason}")]
    Option {
        /// What was to be mounted.
        source_name: String,
        /// Its type.
        kind: String,
        /// The option.
        option: String,
        /// Why.
        reason: &'static str,
    },
    /// It could not be taken away.
    #[error("cannot unmount {}", target.display())]
    Unmount {
        /// Where.
        target: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// mount(8)'s names of flags: each sets or clears.
const FLAGS: [(&str, bool, MountFlags); 20] = [
    ("ro", true, MountFlags::RDONLY),
    ("rw", false, MountFlags::RDONLY),
    ("nosuid", true, MountFlags::NOSUID),
    ("suid", false, MountFlags::NOSUID),
    ("nodev", true, MountFlags::NODEV),
    ("dev", false, MountFlags::NODEV),
    ("noexec", true, MountFlags::NOEXEC),
    ("exec", false, MountFlags::NOEXEC),
    ("sync", true, MountFlags::SYNCHRONOUS),
    ("async", false, MountFlags::SYNCHRONOUS),
    ("dirsync", true, MountFlags::DIRSYNC),
    ("mand", true, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
    ("nomand", false, MountFlags::PERMIT_MANDATORY_FILE_LOCKING),
    ("noatime", true, MountFlags::NOATIME),
    ("atime", false, MountFlags::NOATIME),
    ("nodiratime", true, MountFlags::NODIRATIME),
    ("diratime", false, MountFlags::NODIRATIME),
    ("relatime", true, MountFlags::RELATIME),
    ("norelatime", false, MountFlags::RELATIME),
    ("strictatime", true, MountFlags::STRICTATIME),
];

/// What options mean.
#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    flags: MountFlags,
    bind: Option<Bind>,
    /// Whether the source is a file, to be mounted as a device; and whether that passes the file's page cache over.
    on_loop: bool,
    is_direct: bool,
    data: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Bind {
    Alone,
    Recursive,
}

fn parse(kind: &str, options: &[String]) -> Parsed {
    let mut parsed = Parsed {
        flags: MountFlags::empty(),
        bind: (kind == "bind").then_some(Bind::Alone),
        on_loop: options.iter().any(|option| option == "loop"),
        is_direct: false,
        data: Vec::new(),
    };
    for option in options {
        if let Some((_, set, flag)) = FLAGS.iter().find(|(name, ..)| name == option) {
            parsed.flags.set(*flag, *set);
            continue;
        }
        match &**option {
            "bind" if parsed.bind.is_none() => parsed.bind = Some(Bind::Alone),
            "rbind" => parsed.bind = Some(Bind::Recursive),
            "bind" | "defaults" | "" | "loop" => {}
            // Of the device, as containerd's own mounting has it.
            "direct-io" if parsed.on_loop => parsed.is_direct = true,
            _ => parsed.data.push(option.clone()),
        }
    }
    parsed
}

/// Makes mounts at `target`, one above the other; none is left if one fails.
pub(crate) fn mount_all(mounts: &[Mount], target: &Path) -> Result<(), MountError> {
    for entry in mounts {
        let place = match entry.target.trim_start_matches('/') {
            "" => target.to_owned(),
            below => target.join(below),
        };
        if let Err(e) = mount_one(entry, &place) {
            // What was attempted is what is to be told.
            let _ = unmount_all(target);
            return Err(e);
        }
    }
    Ok(())
}

/// What an option is refused for: containerd's own mounting gives it a meaning that mount(2) does not know.
fn refusal(option: &str) -> Option<&'static str> {
    const OTHERS: [(&str, &str); 3] = [
        (
            "X-containerd.",
            "it is for containerd's mount manager, which has left it",
        ),
        (
            "uidmap=",
            "the ids of a pod are mapped in no user namespace of this machine",
        ),
        (
            "gidmap=",
            "the ids of a pod are mapped in no user namespace of this machine",
        ),
    ];
    let found = OTHERS.iter().find(|(start, _)| option.starts_with(start));
    found.map(|(_, reason)| *reason)
}

fn mount_one(entry: &Mount, target: &Path) -> Result<(), MountError> {
    for option in &entry.options {
        if let Some(reason) = refusal(option) {
            return Err(MountError::Option {
                source_name: entry.source.clone(),
                kind: entry.type_.clone(),
                option: option.clone(),
                reason,
            });
        }
    }
    let refused = |source: io::Error| MountError::Mount {
        source_name: entry.source.clone(),
        kind: entry.type_.clone(),
        target: target.to_owned(),
        source,
    };
    let failed = |errno: Errno| refused(errno.into());
    let long = |data: &str| MountError::Long {
        target: target.to_owned(),
        length: data.len(),
    };
    let parsed = parse(&entry.type_, &entry.options);
    if let Some(bind) = parsed.bind {
        match bind {
            Bind::Alone => mount_bind(&*entry.source, target),
            Bind::Recursive => mount_bind_recursive(&*entry.source, target),
        }
        .map_err(failed)?;
        // mount(2): a new bind mount has the flags of what it is of, whatever is asked.
        if !parsed.flags.is_empty() {
            mount_remount(target, MountFlags::BIND | parsed.flags, "").map_err(failed)?;
        }
        return Ok(());
    }
    let data = parsed.data.join(",");
    if parsed.on_loop {
        if data.len() > DATA_MAX {
            return Err(long(&data));
        }
        return mount_on_loop(entry, target, &parsed, &data).map_err(refused);
    }
    if data.len() <= DATA_MAX {
        return mount_with(entry, target, parsed.flags, &data).map_err(failed);
    }
    // Layers beside each other: their names are shorter from the directory that they are in.
    let Some((directory, data)) = relative_layers(&parsed.data) else {
        return Err(long(&data));
    };
    if data.len() > DATA_MAX {
        return Err(long(&data));
    }
    let mount = || {
        let before = rustix::fs::open(
            ".",
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        rustix::process::chdir(&directory)?;
        let mounted = mount_with(entry, target, parsed.flags, &data);
        rustix::process::fchdir(&before)?;
        mounted
    };
    // The working directory is the process's, which has one thread that comes this way.
    mount().map_err(failed)
}

/// Mounts a file as a device, which goes with its last mount.
fn mount_on_loop(entry: &Mount, target: &Path, parsed: &Parsed, data: &str) -> io::Result<()> {
    let is_read_only = parsed.flags.contains(MountFlags::RDONLY);
    let file = OpenOptions::new()
        .read(true)
        .write(!is_read_only)
        .open(&entry.source)?;
    let device = LoopDevice::attach(file.as_fd(), is_read_only, parsed.is_direct)?;
    let entry = Mount {
        source: device.path.display().to_string(),
        type_: entry.type_.clone(),
        ..Mount::default()
    };
    Ok(mount_with(&entry, target, parsed.flags, data)?)
}

fn mount_with(entry: &Mount, target: &Path, flags: MountFlags, data: &str) -> Result<(), Errno> {
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    let data = (!data.is_empty()).then_some(data.as_c_str());
    mount(&*entry.source, target, &*entry.type_, flags, data)
}

/// The directory that all lower layers have in common, and the options with names below it.
fn relative_layers(options: &[String]) -> Option<(PathBuf, String)> {
    let layers = options
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="))?;
    let layers: Vec<&Path> = layers.split(':').map(Path::new).collect();
    let first = layers.first()?.parent()?;
    let common = first
        .ancestors()
        .find(|directory| layers.iter().all(|layer| layer.starts_with(directory)))?;
    let names: Option<Vec<String>> = layers
        .iter()
        .map(|layer| {
            let name = layer.strip_prefix(common).ok()?.as_os_str();
            (!name.as_bytes().is_empty()).then(|| name.to_string_lossy().into_owned())
        })
        .collect();
    let lowerdir = format!("lowerdir={}", names?.join(":"));
    let options: Vec<&str> = options
        .iter()
        .map(|option| match option.starts_with("lowerdir=") {
            true => &*lowerdir,
            false => &**option,
        })
        .collect();
    Some((common.to_owned(), options.join(",")))
}

/// Takes away every mount at `target`; there may be none.
pub(crate) fn unmount_all(target: &Path) -> Result<(), MountError> {
    loop {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there, or there is nothing.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => {
                return Err(MountError::Unmount {
                    target: target.to_owned(),
                    source: errno.into(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(options: &[&str]) -> Vec<String> {
        options.iter().map(|option| (*option).to_owned()).collect()
    }

    #[test]
    fn options_are_flags_or_the_file_systems() {
        let parsed = parse(
            "overlay",
            &strings(&["ro", "lowerdir=/a:/b", "nodev", "rw"]),
        );
        assert_eq!(
            parsed,
            Parsed {
                flags: MountFlags::NODEV,
                bind: None,
                on_loop: false,
                is_direct: false,
                data: strings(&["lowerdir=/a:/b"]),
            }
        );
        let parsed = parse("ext4", &strings(&["direct-io", "loop", "noload"]));
        assert!(parsed.on_loop && parsed.is_direct);
        assert_eq!(parsed.data, ["noload"]);
        // Without a device of the file's it is the file system's own.
        assert_eq!(parse("9p", &strings(&["direct-io"])).data, ["direct-io"]);
        assert_eq!(
            parse("bind", &strings(&["rbind", "ro"])).bind,
            Some(Bind::Recursive)
        );
        assert_eq!(parse("bind", &strings(&["bind"])).bind, Some(Bind::Alone));
        assert_eq!(parse("ext4", &[]).bind, None);
    }

    #[test]
    fn layers_are_named_from_what_they_have_in_common() {
        let options = strings(&["index=off", "lowerdir=/s/1/fs:/s/23/fs", "upperdir=/s/4/fs"]);
        let expected = "index=off,lowerdir=1/fs:23/fs,upperdir=/s/4/fs".to_owned();
        assert_eq!(relative_layers(&options), Some(("/s".into(), expected)));
        assert_eq!(
            relative_layers(&strings(&["lowerdir=/a:/a/b"])),
            Some(("/".into(), "lowerdir=a:a/b".into()))
        );
        assert_eq!(relative_layers(&strings(&["upperdir=/a"])), None);
    }

    #[test]
    fn what_mount_does_not_know_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for option in ["X-containerd.mkfs.fs=ext4", "uidmap=0:1:2", "gidmap=0:1:2"] {
            let entry = Mount {
                type_: "overlay".into(),
                source: "overlay".into(),
                options: strings(&["index=off", option]),
                ..Mount::default()
            };
            let error = mount_all(&[entry], dir.path()).unwrap_err().to_string();
            assert!(error.contains(option), "{error}");
        }
    }

    #[test]
    fn where_nothing_is_mounted_nothing_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        unmount_all(dir.path()).unwrap();
        unmount_all(&dir.path().join("none")).unwrap();
    }
}
