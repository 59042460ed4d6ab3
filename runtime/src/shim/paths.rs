//! Where the shim finds and leaves things.

use std::path::{Path, PathBuf};

use super::options::Options;

/// Where containers of containerd have their state, by namespace.
const STATE: &str = "/run/containerd/cloister";
/// Where shims have their sockets: a short path, for a socket's address holds 108 bytes.
const SOCKETS: &str = "/run/containerd/s";
/// Where cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The state directory of the containers of a namespace.
pub(crate) fn root(options: &Options, namespace: &str) -> PathBuf {
    let base = options.root.as_deref().unwrap_or(Path::new(STATE));
    base.join(namespace)
}

/// The directory of the sockets.
pub(crate) fn sockets(asked: Option<&str>) -> PathBuf {
    asked.map_or_else(|| SOCKETS.into(), PathBuf::from)
}

/// Whether this machine has cgroup v2 alone.
pub(crate) fn has_cgroup_v2() -> bool {
    Path::new(CGROUPS).join("cgroup.controllers").exists()
}
