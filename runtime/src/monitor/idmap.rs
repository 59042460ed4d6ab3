//! Ids of bind mounts are mapped on this machine, before their sources are shared: the guest's kernel
//! cannot map those of what the host serves (config.md#posix-platform-mounts, mount_setattr(2)).

use std::io;
use std::os::fd::OwnedFd;

use cloister_idmap::{Keeper, map_ids};

use crate::launch::{Bind, IdMap};

/// Why the ids of a mount cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdMapError {
    #[error("config.json: mounts[{0}]: cannot make a user namespace for its mappings")]
    Namespace(u32, #[source] io::Error),
    #[error("config.json: mounts[{index}].{field}: the kernel does not take these mappings")]
    Mappings {
        index: u32,
        field: &'static str,
        #[source]
        error: io::Error,
    },
    #[error(
        "config.json: mounts[{}]: {}: its file system cannot be id-mapped on this machine",
        .0.index, .0.source.display()
    )]
    FileSystem(Bind),
    #[error("config.json: mounts[{}]: cannot map the ids of {}", bind.index, bind.source.display())]
    Map {
        bind: Bind,
        #[source]
        error: io::Error,
    },
}

/// Maps the ids of a detached clone of a mount's source, if that is asked for.
pub(crate) fn apply(bind: &Bind, clone: &OwnedFd) -> Result<(), IdMapError> {
    let Some(map) = &bind.id_map else {
        return Ok(());
    };
    let index = bind.index;
    let namespace = |e| IdMapError::Namespace(index, e);
    let keeper = Keeper::start().map_err(namespace)?;
    for (field, file, mappings) in [
        ("uidMappings", "uid_map", &map.uids),
        ("gidMappings", "gid_map", &map.gids),
    ] {
        let lines = mappings.iter().map(|(container, host, size)| {
            // user_namespaces(7): the id inside, the id outside, how many.
            format!("{container} {host} {size}\n")
        });
        keeper
            .map(file, &lines.collect::<String>())
            .map_err(|error| IdMapError::Mappings {
                index,
                field,
                error,
            })?;
    }
    let namespace = keeper.namespace().map_err(namespace)?;
    let IdMap { recursive, .. } = map;
    match map_ids(clone, &namespace, *recursive) {
        Ok(()) => Ok(()),
        // The namespace has its mappings and the mount is detached: it can only be the file system.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            Err(IdMapError::FileSystem(bind.clone()))
        }
        Err(error) => Err(IdMapError::Map {
            bind: bind.clone(),
            error,
        }),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{AtFlags, CWD, statat};
    use rustix::mount::{MountFlags, mount};

    use super::*;
    use crate::sys;
    use crate::text::chain;

    fn bind(source: &std::path::Path, gids: Vec<(u32, u32, u32)>, recursive: bool) -> Bind {
        Bind {
            index: 7,
            source: source.to_owned(),
            destination: "/data".into(),
            readonly: false,
            id_map: Some(IdMap {
                uids: vec![(1000, 2000, 10), (0, 0, 1)],
                gids,
                recursive,
            }),
        }
    }

    #[test]
    fn ids_are_mapped_at_the_top_or_all_the_way_down_and_errors_name_the_mount() {
        // What is mounted here goes with the thread.
        let test = std::thread::spawn(|| {
            sys::own_mounts().unwrap();
            sys::set_mount_attributes(
                &std::fs::File::open("/").unwrap(),
                0,
                0,
                libc::MS_PRIVATE,
                true,
            )
            .unwrap();
            let dir = tempfile::tempdir().unwrap();
            let top = dir.path();
            let below = top.join("below");
            let tmpfs = |at: &std::path::Path| {
                mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
                std::os::unix::fs::chown(at, Some(1005), Some(1005)).unwrap();
            };
            tmpfs(top);
            std::fs::create_dir(&below).unwrap();
            tmpfs(&below);
            let clone = |path: &std::path::Path| sys::clone_mounts(CWD, path, 0).unwrap();
            let gids = vec![(1000, 3000, 10)];
            for (recursive, expected) in [(false, 1005), (true, 2005)] {
                let mapped = clone(top);
                apply(&bind(top, gids.clone(), recursive), &mapped).unwrap();
                let stat = statat(&mapped, c"", AtFlags::EMPTY_PATH).unwrap();
                assert_eq!((stat.st_uid, stat.st_gid), (2005, 3005));
                let stat = statat(&mapped, c"below", AtFlags::empty()).unwrap();
                assert_eq!(stat.st_uid, expected, "{recursive}");
            }
            let twice = vec![(0, 1, 1), (0, 2, 1)];
            let error = apply(&bind(top, twice, false), &clone(top)).unwrap_err();
            assert_eq!(
                chain(&error),
                "config.json: mounts[7].gidMappings: the kernel does not take these mappings: Invalid argument (os error 22)"
            );
            let proc = std::path::Path::new("/proc");
            let error = apply(&bind(proc, gids, false), &clone(proc)).unwrap_err();
            assert_eq!(
                chain(&error),
                "config.json: mounts[7]: /proc: its file system cannot be id-mapped on this machine"
            );
        });
        test.join().unwrap();
    }
}
