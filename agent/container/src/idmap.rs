//! Id-mapped mounts (config.md#posix-platform-mounts, mount_setattr(2)).
//!
//! The mapping is that of a user namespace. New file systems get it in the init stage, which makes them.
//! The ids of bind mounts are mapped on the host, before it shares their sources: the guest's kernel
//! cannot map those of virtio-fs.

use std::io;
use std::os::fd::OwnedFd;

use cloister_idmap::{Keeper, map_ids};
use cloister_spec::{MountOption, mount_option};

use crate::config::{IdMapping, Linux, Mount};
use crate::error::{Context, Failure};

/// The mappings of one mount.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdMap<'a> {
    uids: &'a [IdMapping],
    gids: &'a [IdMapping],
}

impl<'a> IdMap<'a> {
    /// What is asked for: mappings of the mount's own, or by an option those of the container.
    pub(crate) fn of(mount: &'a Mount, linux: &'a Linux) -> Option<Self> {
        let own = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
        if own {
            return Some(IdMap {
                uids: &mount.uid_mappings,
                gids: &mount.gid_mappings,
            });
        }
        let asks =
            |option: &String| matches!(mount_option(option), Some(MountOption::IdMap { .. }));
        mount.options.iter().any(asks).then_some(IdMap {
            uids: &linux.uid_mappings,
            gids: &linux.gid_mappings,
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
            let lines = map_text(mappings);
            keeper
                .map(file, &lines)
                .doing(|| context(field))
                .map_err(Failure::blamed_on_spec)?;
        }
        keeper.namespace().doing(|| context("uidMappings"))
    }
}

/// Maps the ids of a new, detached mount by those of a user namespace.
pub(crate) fn map(index: usize, mount: &OwnedFd, namespace: &OwnedFd) -> Result<(), Failure> {
    let context = || format!("mounts[{index}].uidMappings: map the ids of the mount");
    match map_ids(mount, namespace, false) {
        // The namespace has its mappings: it can only be the file system.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Err(Failure::invalid(
            format!("{}: its file system cannot be id-mapped", context()),
        )),
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
