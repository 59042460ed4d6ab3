//! What is done for a new container outside of its namespaces: mounts that are opened, namespaces of
//! others, mappings of ids, its cgroup's owner.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cloister_spec::{MountKind, mount_kind};

use super::CreateOptions;
use super::stage::Child;
use crate::cgroup::Cgroup;
use crate::channel;
use crate::config::{Config, IdMapping, NAMESPACES};
use crate::error::{Context, Failure};
use crate::idmap::{IdMap, map_text};
use crate::init::{self, clean};

/// Opens the root file system and the sources of bind mounts as detached mounts: here, where the
/// caller sees them, and not in the namespaces of the container. New file systems have none; what is
/// opened for them is the user namespace by which their ids are mapped. The ids of a source are mapped
/// by whoever has given it.
pub(super) fn open_mounts(
    config: &Config,
    options: &CreateOptions,
) -> std::result::Result<(BTreeMap<usize, usize>, Vec<OwnedFd>), Failure> {
    let rootfs = init::clone_tree(&options.rootfs, true)
        .doing(|| format!("root file system {}", options.rootfs.display()))?;
    let mut mounts = vec![rootfs];
    let mut positions = BTreeMap::new();
    for (index, mount) in config.mounts.iter().enumerate() {
        let kind = mount_kind(&mount.kind, mount.options.iter().map(String::as_str));
        let Ok(MountKind::Bind(recursive)) = kind else {
            if let Some(id_map) = IdMap::of(mount, &config.linux) {
                positions.insert(index, mounts.len() - 1);
                mounts.push(id_map.namespace(index)?);
            }
            continue;
        };
        let source = options
            .bind_sources
            .get(&index)
            .map_or(Path::new(&mount.source), PathBuf::as_path);
        let source = init::clone_tree(source, recursive)
            .doing(|| format!("mounts[{index}].source: {}", mount.source))
            .map_err(Failure::blamed_on_spec)?;
        positions.insert(index, mounts.len() - 1);
        mounts.push(source);
    }
    Ok((positions, mounts))
}

/// The namespaces that the init stage joins, whose descriptors go to the end of `fds`. It starts in
/// the pid namespace.
pub(super) fn joins(
    config: &Config,
    options: &CreateOptions,
    fds: &mut Vec<OwnedFd>,
) -> std::result::Result<Vec<i32>, Failure> {
    let mut joins = Vec::new();
    for (kind, pidfd) in &options.joins {
        let what = || format!("linux.namespaces: join a {kind} namespace");
        let known = NAMESPACES.iter().find(|(name, _)| name == kind);
        let &(_, flag) = known.ok_or_else(|| Failure::invalid(what()))?;
        if !config.linux.has_namespace(kind) || matches!(kind.as_str(), "mount" | "user") {
            return Err(Failure::invalid(format!("{}: not possible", what())));
        }
        if kind != "pid" {
            joins.push(flag);
            fds.push(pidfd.try_clone().doing(what)?);
        }
    }
    Ok(joins)
}

/// What is written about the new process from outside of its namespaces.
pub(super) fn configure(
    config: &Config,
    child: &Child,
    cgroup: &Cgroup,
    channel: &OwnedFd,
) -> std::result::Result<(), Failure> {
    let proc = PathBuf::from(format!("/proc/{}", child.pid));
    if let Some(score) = config.process.oom_score_adj {
        fs::write(proc.join("oom_score_adj"), score.to_string())
            .doing(|| format!("process.oomScoreAdj: set to {score}"))?;
    }
    if let Some(owner) = cgroup_owner(config) {
        cgroup.delegate(owner)?;
    }
    let linux = &config.linux;
    if !linux.has_namespace("user") {
        return Ok(());
    }
    for (field, file, mappings) in [
        ("uid", "uid_map", &linux.uid_mappings),
        ("gid", "gid_map", &linux.gid_mappings),
    ] {
        fs::write(proc.join(file), map_text(mappings))
            .doing(|| format!("linux.{field}Mappings: write {file}"))
            .map_err(Failure::blamed_on_spec)?;
    }
    channel::write_all(channel, b"M").doing(|| "release the init stage")
}

/// Who is given the container's cgroup: the user of the program, outside of its user namespace, if the
/// cgroup is mounted to be written to (config-linux.md#cgroup-ownership).
fn cgroup_owner(config: &Config) -> Option<u32> {
    let linux = &config.linux;
    let writable = config.mounts.iter().any(|mount| {
        let read_only = ["ro", "rro"];
        mount.kind.starts_with("cgroup")
            && clean(Path::new(&mount.destination)) == Path::new("/sys/fs/cgroup")
            && !mount
                .options
                .iter()
                .any(|option| read_only.contains(&option.as_str()))
    });
    if !writable || !linux.has_namespace("cgroup") {
        return None;
    }
    let uid = config.process.user.uid;
    if !linux.has_namespace("user") {
        return (uid != 0).then_some(uid);
    }
    let inside = |map: &&IdMapping| {
        uid.checked_sub(map.container_id)
            .is_some_and(|n| n < map.size)
    };
    let map = linux.uid_mappings.iter().find(inside)?;
    map.host_id.checked_add(uid - map.container_id)
}
