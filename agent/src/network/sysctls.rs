//! Parameters of the host's namespace, in the container's.
//!
//! Here as there, what a specification or a program has set stays: a parameter that is neither as it was in
//! the beginning nor as it was set here belongs to the container.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Component, Path, PathBuf};

use cloister_protocol::agent::Sysctl;

use super::{NetworkError, within};

/// Where the kernel shows the parameters of the namespace of whoever looks.
const ROOT: &str = "/proc/sys";

/// The parameters that were set so far, with their values.
#[derive(Debug, Default)]
pub(super) struct Sysctls(HashMap<String, String>);

impl Sysctls {
    /// Sets what `wanted` says in the namespace that `process` is in.
    pub(super) fn set(
        &mut self,
        process: BorrowedFd<'_>,
        wanted: Vec<Sysctl>,
    ) -> Result<(), NetworkError> {
        // The agent's own namespace is as any is in the beginning.
        let beginning: Vec<_> = wanted.iter().map(read).collect::<Result<_, _>>()?;
        within(process, || {
            for (sysctl, beginning) in wanted.into_iter().zip(beginning) {
                let expected = self.0.get(&sysctl.path).unwrap_or(&beginning);
                if !is_same(&read(&sysctl)?, expected) {
                    continue;
                }
                if !is_same(&sysctl.value, expected) {
                    fs::write(path(&sysctl)?, &sysctl.value).map_err(|e| error(&sysctl, e))?;
                }
                self.0.insert(sysctl.path, sysctl.value);
            }
            Ok(())
        })?
    }
}

/// Sets the parameters of an interface that were not set so `before`.
pub(super) fn set_others(
    process: BorrowedFd<'_>,
    before: &[Sysctl],
    wanted: &[Sysctl],
) -> Result<(), NetworkError> {
    let wanted = wanted.iter().filter(|wanted| !before.contains(wanted));
    let mut changes = Vec::new();
    for sysctl in wanted {
        let set = before.iter().find(|before| before.path == sysctl.path);
        let expected = match set {
            Some(set) => set.value.clone(),
            None => read(&of_any_interface(sysctl))?,
        };
        changes.push((sysctl, expected));
    }
    within(process, || {
        for (sysctl, expected) in changes {
            if is_same(&read(sysctl)?, &expected) && !is_same(&sysctl.value, &expected) {
                fs::write(path(sysctl)?, &sysctl.value).map_err(|e| error(sysctl, e))?;
            }
        }
        Ok(())
    })?
}

/// The parameter that an interface begins with: in the agent's own namespace, as the kernel made it.
fn of_any_interface(sysctl: &Sysctl) -> Sysctl {
    let mut path = PathBuf::from(&sysctl.path);
    let name = path.file_name().map(ToOwned::to_owned);
    path.pop();
    path.set_file_name("default");
    path.extend(name);
    Sysctl {
        path: path.to_string_lossy().into_owned(),
        ..sysctl.clone()
    }
}

fn read(sysctl: &Sysctl) -> Result<String, NetworkError> {
    fs::read_to_string(path(sysctl)?).map_err(|e| error(sysctl, e))
}

fn error(sysctl: &Sysctl, source: io::Error) -> NetworkError {
    NetworkError::Sysctl {
        path: sysctl.path.clone(),
        value: sysctl.value.clone(),
        source,
    }
}

/// The file of a parameter of a network namespace.
fn path(sysctl: &Sysctl) -> Result<PathBuf, NetworkError> {
    let relative = Path::new(&sysctl.path);
    let is_plain = |component| matches!(component, Component::Normal(_));
    if relative.starts_with("net") && relative.components().all(is_plain) {
        return Ok(Path::new(ROOT).join(relative));
    }
    let source = io::Error::new(io::ErrorKind::InvalidInput, "no parameter of a network");
    Err(error(sysctl, source))
}

/// Numbers are separated by a blank or a tab.
fn is_same(a: &str, b: &str) -> bool {
    a.split_whitespace().eq(b.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctl(path: &str) -> Sysctl {
        Sysctl {
            path: path.into(),
            value: "1".into(),
            ..Sysctl::default()
        }
    }

    #[test]
    fn only_parameters_of_a_network_are_set() {
        let good = path(&sysctl("net/ipv4/ip_forward")).unwrap();
        assert_eq!(good, Path::new("/proc/sys/net/ipv4/ip_forward"));
        for bad in [
            "",
            "kernel/pid_max",
            "net/../kernel/pid_max",
            "/net/ipv4/ip_forward",
            "netx/a",
        ] {
            let error = path(&sysctl(bad)).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }

    #[test]
    fn an_interface_begins_as_any_does() {
        let default = of_any_interface(&sysctl("net/ipv6/conf/eth0.5/accept_ra"));
        assert_eq!(default.path, "net/ipv6/conf/default/accept_ra");
    }

    #[test]
    fn blanks_make_no_difference() {
        assert!(is_same("0\t2147483647\n", "0 2147483647"));
        assert!(!is_same("1\t0\n", "0 1"));
    }
}
