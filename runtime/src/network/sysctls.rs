//! Parameters of a namespace that its caller may have set before the container is started: CNI plugins and
//! pod sandboxes do, and programs without privileges depend on some of them.

use std::fs;
use std::io;
use std::path::Path;

use super::{Namespace, NetworkError};

/// Where the kernel shows the parameters of the namespace of whoever looks.
const ROOT: &str = "/proc/sys";

/// Those that every namespace has for itself, and whose defaults are not a matter of the machine's size.
const PATHS: [&str; 17] = [
    "net/core/somaxconn",
    "net/ipv4/ip_default_ttl",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/ip_nonlocal_bind",
    "net/ipv4/ip_unprivileged_port_start",
    "net/ipv4/ping_group_range",
    "net/ipv4/tcp_fin_timeout",
    "net/ipv4/tcp_keepalive_intvl",
    "net/ipv4/tcp_keepalive_probes",
    "net/ipv4/tcp_keepalive_time",
    "net/ipv4/tcp_syncookies",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/lo/disable_ipv6",
    "net/ipv6/ip_nonlocal_bind",
];

/// Those that every interface has for itself, below /proc/sys/net/ipv6/conf: whoever makes a network without IPv6
/// switches it off there, and routers are not listened to where addresses are given.
const OF_INTERFACE: [&str; 3] = ["accept_ra", "autoconf", "disable_ipv6"];

/// The parameters of a namespace, as paths below /proc/sys and values.
pub(crate) fn sysctls(namespace: &Namespace) -> Result<Vec<(String, String)>, NetworkError> {
    read_all(namespace, PATHS.into_iter().map(str::to_owned))
}

/// Those of an interface.
pub(crate) fn interface_sysctls(
    namespace: &Namespace,
    interface: &str,
) -> Result<Vec<(String, String)>, NetworkError> {
    let path = |name| format!("net/ipv6/conf/{interface}/{name}");
    read_all(namespace, OF_INTERFACE.into_iter().map(path))
}

fn read_all(
    namespace: &Namespace,
    paths: impl Iterator<Item = String>,
) -> Result<Vec<(String, String)>, NetworkError> {
    let read = |path: String| {
        let text = match fs::read_to_string(Path::new(ROOT).join(&path)) {
            Ok(text) => Ok(text.trim_end().to_owned()),
            // A kernel without IPv6, or an older one, or an interface that has just gone.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
            Err(source) => return Some(Err(NetworkError::Sysctl { path, source })),
        };
        Some(text.map(|text| (path, text)))
    };
    namespace.within(|| paths.filter_map(read).collect())?
}
