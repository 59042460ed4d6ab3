//! Parameters of a namespace that its caller may have set before the container is started: CNI plugins and
//! pod sandboxes do, and programs without privileges depend on some of them.

use std::fs;
use std::io;
use std::path::Path;

use super::{Namespace, NetworkError};

/// Where the kernel shows the parameters of the namespace of whoever looks.
const ROOT: &str = "/proc/sys";

/// Those that every namespace has for itself, and whose defaults are not a matter of the machine's size.
const PATHS: [&str; 16] = [
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
    "net/ipv6/ip_nonlocal_bind",
];

/// The parameters of a namespace, as paths below /proc/sys and values.
pub(crate) fn sysctls(namespace: &Namespace) -> Result<Vec<(&'static str, String)>, NetworkError> {
    namespace.within(|| {
        let read = |path| {
            let text = match fs::read_to_string(Path::new(ROOT).join(path)) {
                Ok(text) => Ok(text.trim_end().to_owned()),
                // A kernel without IPv6, or an older one.
                Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
                Err(source) => Err(NetworkError::Sysctl { path, source }),
            };
            Some(text.map(|text| (path, text)))
        };
        PATHS.into_iter().filter_map(read).collect()
    })?
}
