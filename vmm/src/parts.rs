//! The descriptors of a boot request, each in its place.

#![allow(unsafe_code)] // KVM's descriptor can only be taken over as a number.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use cloister_vmm_api::{ConfigError, FdRole, VmConfig};
use kvm_ioctls::Kvm;

/// Why a boot request cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration does not hold.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The descriptors and their roles do not match in number.
    #[error("fds: {roles} roles, {fds} descriptors")]
    Count {
        /// Roles given.
        roles: usize,
        /// Descriptors given.
        fds: usize,
    },
    /// A descriptor that the VM needs was not given.
    #[error("fds: {} is missing", name(*.0))]
    Missing(FdRole),
    /// A descriptor was given that the VM has no use for, or was given twice.
    #[error("fds: {} is surplus", name(*.0))]
    Surplus(FdRole),
}

/// The name of a role on the wire.
fn name(role: FdRole) -> &'static str {
    match role {
        FdRole::Kvm => "kvm",
        FdRole::Kernel => "kernel",
        FdRole::Initramfs => "initramfs",
        FdRole::Console => "console",
        FdRole::VsockListener => "vsock_listener",
        FdRole::FsBackend => "fs_backend",
    }
}

/// What a VM is made of besides its configuration.
#[derive(Debug)]
pub struct Parts {
    /// `/dev/kvm`.
    pub kvm: Kvm,
    /// The guest kernel.
    pub kernel: File,
    /// The initramfs.
    pub initramfs: File,
    /// The console file.
    pub console: File,
    /// The listening socket of the socket device.
    pub vsock_listener: UnixListener,
    /// The file server, if the VM has a file system device.
    pub fs_backend: Option<UnixStream>,
}

impl Parts {
    /// Sorts `fds` by `roles`, and checks `config` and both against each other.
    ///
    /// # Errors
    /// The first thing that is wrong, by name.
    pub fn sort(config: &VmConfig, roles: &[FdRole], fds: Vec<OwnedFd>) -> Result<Self, Error> {
        config.validate()?;
        if roles.len() != fds.len() {
            return Err(Error::Count {
                roles: roles.len(),
                fds: fds.len(),
            });
        }
        let mut sorted = Sorted::default();
        for (&role, fd) in roles.iter().zip(fds) {
            if sorted.place(role).replace(fd).is_some() {
                return Err(Error::Surplus(role));
            }
        }
        if config.fs.is_none() && sorted.fs_backend.is_some() {
            return Err(Error::Surplus(FdRole::FsBackend));
        }
        if config.fs.is_some() && sorted.fs_backend.is_none() {
            return Err(Error::Missing(FdRole::FsBackend));
        }
        let mut take = |role| sorted.place(role).take().ok_or(Error::Missing(role));
        let kvm = take(FdRole::Kvm)?;
        Ok(Self {
            // SAFETY: the descriptor is owned and given up here.
            kvm: unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) },
            kernel: take(FdRole::Kernel)?.into(),
            initramfs: take(FdRole::Initramfs)?.into(),
            console: take(FdRole::Console)?.into(),
            vsock_listener: take(FdRole::VsockListener)?.into(),
            fs_backend: sorted.fs_backend.map(UnixStream::from),
        })
    }
}

#[derive(Default)]
struct Sorted {
    kvm: Option<OwnedFd>,
    kernel: Option<OwnedFd>,
    initramfs: Option<OwnedFd>,
    console: Option<OwnedFd>,
    vsock_listener: Option<OwnedFd>,
    fs_backend: Option<OwnedFd>,
}

impl Sorted {
    fn place(&mut self, role: FdRole) -> &mut Option<OwnedFd> {
        match role {
            FdRole::Kvm => &mut self.kvm,
            FdRole::Kernel => &mut self.kernel,
            FdRole::Initramfs => &mut self.initramfs,
            FdRole::Console => &mut self.console,
            FdRole::VsockListener => &mut self.vsock_listener,
            FdRole::FsBackend => &mut self.fs_backend,
        }
    }
}

#[cfg(test)]
mod tests {
    use cloister_vmm_api::{API_VERSION, FsConfig, JailConfig, VsockConfig};

    use super::*;

    const REQUIRED: [FdRole; 5] = [
        FdRole::Kvm,
        FdRole::Kernel,
        FdRole::Initramfs,
        FdRole::Console,
        FdRole::VsockListener,
    ];

    fn config(fs: bool) -> VmConfig {
        VmConfig {
            api_version: API_VERSION,
            vcpus: 1,
            max_vcpus: 1,
            memory_mib: 128,
            max_memory_mib: 128,
            cmdline: String::new(),
            vsock: VsockConfig {
                guest_cid: 3,
                host_ports: Vec::new(),
            },
            fs: fs.then(|| FsConfig { tag: "root".into() }),
            jail: JailConfig { uid: 1, gid: 1 },
        }
    }

    fn sort(fs: bool, roles: &[FdRole]) -> Result<Parts, String> {
        let fds = (roles.iter())
            .map(|_| File::open("/dev/null").unwrap().into())
            .collect();
        Parts::sort(&config(fs), roles, fds).map_err(|error| error.to_string())
    }

    #[test]
    fn the_required_descriptors_suffice() {
        sort(false, &REQUIRED).unwrap();
    }

    #[test]
    fn a_missing_descriptor_is_named() {
        for (index, role) in REQUIRED.iter().enumerate() {
            let mut roles = REQUIRED.to_vec();
            roles.remove(index);
            let error = sort(false, &roles).unwrap_err();
            assert_eq!(error, format!("fds: {} is missing", name(*role)));
        }
        assert_eq!(
            sort(true, &REQUIRED).unwrap_err(),
            "fds: fs_backend is missing"
        );
    }

    #[test]
    fn a_surplus_descriptor_is_named() {
        let with = |role| [&REQUIRED[..], &[role]].concat();
        assert_eq!(
            sort(false, &with(FdRole::FsBackend)).unwrap_err(),
            "fds: fs_backend is surplus"
        );
        assert_eq!(
            sort(false, &with(FdRole::Kernel)).unwrap_err(),
            "fds: kernel is surplus"
        );
        sort(true, &with(FdRole::FsBackend)).unwrap();
    }

    #[test]
    fn names_are_those_of_the_wire() {
        for role in [REQUIRED.as_slice(), &[FdRole::FsBackend]].concat() {
            let json = serde_json::to_string(&role).unwrap();
            assert_eq!(json, format!("\"{}\"", name(role)));
        }
    }

    #[test]
    fn roles_without_descriptors_are_refused() {
        let error = Parts::sort(&config(false), &REQUIRED, Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "fds: 5 roles, 0 descriptors");
    }
}
