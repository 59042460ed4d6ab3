//! Id-mapped mounts (config.md#posix-platform-mounts, mount_setattr(2)).
//!
//! The mapping is that of a user namespace. The mounts of sources get it here, where the privileges
//! over their file systems are; those of new file systems in the init stage, which makes them.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;

use cloister_spec::{MountOption, mount_option};

use crate::config::{IdMapping, Linux, Mount};
use crate::error::{Context, Failure};
use crate::sys::user_namespace::Keeper;
use crate::sys::{MountAttr, mount_setattr};

/// The mappings of one mount.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdMap<'a> {
    uids: &'a [IdMapping],
    gids: &'a [IdMapping],
    /// Whether the mounts below get them too.
    recursive: bool,
}

impl<'a> IdMap<'a> {
    /// What is asked for: mappings of the mount's own, or by an option those of the container.
    pub(crate) fn of(mount: &'a Mount, linux: &'a Linux) -> Option<Self> {
        let asked = recursion(&mount.options);
        let own = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
        let recursive = match asked {
            Some(recursive) => recursive,
            None if own => false,
            None => return None,
        };
        let (uids, gids) = if own {
            (&mount.uid_mappings, &mount.gid_mappings)
        } else {
            (&linux.uid_mappings, &linux.gid_mappings)
        };
        Some(IdMap {
            uids,
            gids,
            recursive,
        })
    }

    /// A user namespace with these mappings.
    pub(crate) fn namespace(&self, index: usize) -> Result<OwnedFd, Failure> {
        let context = |what: &str| format!("mounts[{index}].{what}: map the ids of the mount");
        let keeper = Keeper::start().doing(|| context("uidMappings"))?;
        for (field, file, mappings) in [
            ("uidMappings", "uid_map", self.uids),
            ("gidMappings", "gid_map", self.gids),
        ] {
            fs::write(format!("/proc/{}/{file}", keeper.pid), map_text(mappings))
                .doing(|| context(field))
                .map_err(Failure::blamed_on_spec)?;
        }
        let namespace = File::open(format!("/proc/{}/ns/user", keeper.pid));
        Ok(namespace.doing(|| context("uidMappings"))?.into())
    }

    /// Maps the ids of a detached mount.
    pub(crate) fn apply(&self, index: usize, mount: &OwnedFd) -> Result<(), Failure> {
        let namespace = self.namespace(index)?;
        map(index, mount, &namespace, self.recursive)
    }
}

/// Whether `idmap` or `ridmap` is among the options: the last one counts.
pub(crate) fn recursion(options: &[String]) -> Option<bool> {
    options
        .iter()
        .rev()
        .find_map(|option| match mount_option(option) {
            Some(MountOption::IdMap { recursive }) => Some(recursive),
            _ => None,
        })
}

/// linux/magic.h. virtio-fs has the same; and what the host has mounted in the tree that it shares is
/// of a kind that Linux 6.12 does not map.
const FUSE_SUPER_MAGIC: rustix::fs::FsWord = 0x6573_5546;

/// Maps the ids of a detached mount by those of a user namespace.
pub(crate) fn map(
    index: usize,
    mount: &OwnedFd,
    namespace: &OwnedFd,
    recursive: bool,
) -> Result<(), Failure> {
    let context = || format!("mounts[{index}].uidMappings: map the ids of the mount");
    match mount_setattr(mount, &MountAttr::id_map(namespace), recursive) {
        // The namespace has its mappings: it can only be the file system.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            let shared =
                rustix::fs::fstatfs(mount).is_ok_and(|stat| stat.f_type == FUSE_SUPER_MAGIC);
            let what = if shared {
                "a directory of the host cannot be id-mapped in the virtual machine"
            } else {
                "its file system cannot be id-mapped"
            };
            Err(Failure::invalid(format!("{}: {what}", context())))
        }
        result => result.doing(context),
    }
}

/// The lines of a mapping file of procfs (user_namespaces(7)).
pub(crate) fn map_text(mappings: &[IdMapping]) -> String {
    mappings
        .iter()
        .map(|map| format!("{} {} {}\n", map.container_id, map.host_id, map.size))
        .collect()
}
