//! The container's file system tree, from the detached root to `pivot_root`.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::{MountPropagationFlags, UnmountFlags};

use super::devices;
use super::mounts::{self, Outside, READ_ONLY};
use super::path::{Create, Root};
use super::procfs::Procfs;
use crate::channel::Setup;
use crate::config::Config;
use crate::error::{Context, Failure};
use crate::sys::{MountAttr, mount_setattr};

/// What has become of the descriptors of a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// The end that the caller keeps.
    pub(crate) controller: OwnedFd,
    /// The end that becomes the standard streams.
    pub(crate) terminal: OwnedFd,
}

/// Builds the tree below `rootfs`, a detached mount, and makes it this process's root.
pub(crate) fn build(
    setup: &Setup,
    rootfs: OwnedFd,
    mut sources: Vec<Option<OwnedFd>>,
    procfs: &Procfs,
    warnings: &mut Vec<String>,
) -> Result<Option<Terminal>, Failure> {
    let config = &setup.config;
    // Nothing that happens here shows in the namespace this one is a copy of.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).doing(|| "make the mount namespace private")?;
    let null = mounts::open_null().doing(|| "open /dev/null")?;
    let root = attach_root(config, rootfs)?;
    let outside = Outside {
        cgroup: &setup.cgroup,
        cgroup_namespace: config.linux.has_namespace("cgroup"),
    };
    let mut late_read_only = Vec::new();
    for (index, mount) in config.mounts.iter().enumerate() {
        let source = setup
            .bind_sources
            .get(&index)
            .and_then(|&position| sources.get_mut(position))
            .and_then(Option::take);
        late_read_only.extend(mounts::mount(&root, index, mount, source, &outside)?);
    }
    let own_dev = !config.mounts.iter().any(|mount| {
        super::path::clean(Path::new(&mount.destination)) == Path::new("/dev")
            && cloister_spec::mount_kind(&mount.kind, mount.options.iter().map(String::as_str))
                .is_ok_and(|kind| matches!(kind, cloister_spec::MountKind::Bind(_)))
    });
    if own_dev {
        devices::create(&root, &config.linux.devices, warnings)?;
    } else if !config.linux.devices.is_empty() {
        return Err(Failure::invalid(
            "linux.devices: cannot be made in a /dev that is a bind mount",
        ));
    }
    let terminal = if config.process.terminal {
        let (controller, terminal) = devices::terminal(&root, setup.terminal)?;
        devices::console(&root, &terminal)?;
        Some(Terminal {
            controller,
            terminal,
        })
    } else {
        None
    };
    root.create(Path::new(&config.process.cwd), Create::Directory)
        .doing(|| format!("process.cwd: create {:?}", config.process.cwd))?;
    for (key, value) in &config.linux.sysctl {
        let path = Path::new("sys").join(sysctl_path(key));
        procfs
            .write(&path, value.as_bytes())
            .doing(|| format!("linux.sysctl[{key:?}]: set to {value:?}"))?;
    }
    for (index, path) in config.linux.readonly_paths.iter().enumerate() {
        mounts::make_read_only(&root, path)
            .doing(|| format!("linux.readonlyPaths[{index}]: {path}"))?;
    }
    let mut empty = None;
    for (index, path) in config.linux.masked_paths.iter().enumerate() {
        mounts::mask(&root, path, &null, &mut empty)
            .doing(|| format!("linux.maskedPaths[{index}]: {path}"))?;
    }
    let read_only = MountAttr::new(READ_ONLY, 0);
    for mount in &late_read_only {
        mount_setattr(mount, &read_only, false).doing(|| "make a tmpfs read-only")?;
    }
    if config.root.readonly {
        mount_setattr(root.fd(), &read_only, false).doing(|| "root.readonly")?;
    }
    pivot(&root)?;
    // A shared or unbindable root could neither be pivoted to nor bound from.
    if let Some(name) = &config.linux.rootfs_propagation {
        set_propagation(root.fd(), name)?;
    }
    Ok(terminal)
}

/// Attaches the root on top of `/`: pivot_root needs it attached, and no other directory surely exists.
/// This process keeps seeing what is below.
fn attach_root(config: &Config, rootfs: OwnedFd) -> Result<Root, Failure> {
    // What propagates to a slave is decided where the root came from, so that is kept from the first.
    let before = match config.linux.rootfs_propagation.as_deref() {
        Some("slave" | "rslave") => "rslave",
        _ => "rprivate",
    };
    set_propagation(&rootfs, before)?;
    let slash = super::path::open_outside(Path::new("/")).doing(|| "open /")?;
    mounts::attach(&rootfs, &slash).doing(|| "attach the root file system")?;
    Ok(Root::new(rootfs))
}

fn set_propagation(root: &OwnedFd, name: &str) -> Result<(), Failure> {
    let Some((propagation, recursive)) = mounts::root_propagation(name) else {
        return Err(Failure::invalid(format!(
            "linux.rootfsPropagation: unknown {name:?}"
        )));
    };
    mount_setattr(root, &MountAttr::propagation(propagation), recursive)
        .doing(|| format!("linux.rootfsPropagation: make the root {name}"))
}

/// Makes the tree this process's root and lets go of the old one.
fn pivot(root: &Root) -> Result<(), Failure> {
    rustix::process::fchdir(root.fd()).doing(|| "enter the root file system")?;
    // The old root ends up on top of the new one, in one and the same place (pivot_root(2)).
    rustix::process::pivot_root(".", ".").doing(|| "pivot_root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).doing(|| "unmount the old root")?;
    rustix::process::chdir("/").doing(|| "enter the new root")
}

/// `net.ipv4.ip_forward` is `net/ipv4/ip_forward`, and so is `net/ipv4/ip_forward`; the separator
/// that comes first is the separator (sysctl(8)).
fn sysctl_path(key: &str) -> String {
    match key.find(['.', '/']).and_then(|at| key.as_bytes().get(at)) {
        Some(b'.') => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => key.to_owned(),
    }
}
