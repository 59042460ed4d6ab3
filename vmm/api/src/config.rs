//! What a VM is made of.

use serde::{Deserialize, Serialize};

use crate::API_VERSION;

/// The most virtual CPUs a VM can have.
pub const MAX_VCPUS: u8 = 32;
/// The least guest memory the guest kernel boots in, in MiB.
const MIN_MEMORY_MIB: u32 = 32;
/// The most guest memory, in MiB (1 TiB).
pub const MAX_MEMORY_MIB: u32 = 1 << 20;
/// The kernel's limit for its command line on x86-64, in bytes, less what the VMM adds itself.
const MAX_CMDLINE: usize = 1024;
/// virtio-v1.3 §5.11.4: the tag field of a file system device is 36 bytes.
const MAX_TAG: usize = 36;
/// The first context id that a guest may have: 0 to 2 are the hypervisor, loopback and the host.
const FIRST_GUEST_CID: u32 = 3;

/// One virtual machine.
///
/// Everything else about the machine (device slots, interrupt lines, addresses) is fixed, so that
/// a VM restored from saved state always finds what it was born with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Must equal [`API_VERSION`].
    pub api_version: u32,
    /// Virtual CPUs that are there from the start.
    pub vcpus: u8,
    /// Virtual CPUs that there can be, `vcpus` or more: the guest's kernel makes room for so many when
    /// it boots. [`Request::AddVcpus`](crate::Request::AddVcpus) adds them.
    pub max_vcpus: u8,
    /// Guest RAM in MiB.
    pub memory_mib: u32,
    /// Guest RAM that there can be, in MiB, `memory_mib` or more.
    /// [`Request::AddMemory`](crate::Request::AddMemory) adds it.
    pub max_memory_mib: u32,
    /// Appended to the command line that the VMM makes for its own devices.
    pub cmdline: String,
    /// The socket device.
    pub vsock: VsockConfig,
    /// The shared file system device, if a directory is shared. Its backend is the vhost-user
    /// server behind the descriptor with [`FdRole::FsBackend`](crate::FdRole::FsBackend).
    pub fs: Option<FsConfig>,
    /// Who the process becomes once the VM is set up.
    pub jail: JailConfig,
}

/// The virtio socket device of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, at least 3.
    pub guest_cid: u32,
    /// The host ports that a guest process may connect to; any other port is refused with a reset.
    /// A connection appears as [`Event::GuestConnect`](crate::Event::GuestConnect).
    pub host_ports: Vec<u32>,
}

/// The virtio file system device of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// The name under which the guest mounts it, 1 to 36 bytes.
    pub tag: String,
}

/// The confinement of the VMM process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// The unprivileged user that runs the VM.
    pub uid: u32,
    /// Its only group.
    pub gid: u32,
}

/// Why a [`VmConfig`] cannot be run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The two sides are of different builds.
    #[error("api_version: {got} given, this VMM speaks {API_VERSION}")]
    Version {
        /// The version that was given.
        got: u32,
    },
    /// `vcpus` is out of range.
    #[error("vcpus: {got} given, 1 to {MAX_VCPUS} possible")]
    Vcpus {
        /// The number that was given.
        got: u8,
    },
    /// `max_vcpus` is out of range.
    #[error("max_vcpus: {got} given, vcpus ({least}) to {MAX_VCPUS} possible")]
    MaxVcpus {
        /// The number that was given.
        got: u8,
        /// The number at the start.
        least: u8,
    },
    /// `memory_mib` is out of range.
    #[error("memory_mib: {got} given, {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} possible")]
    Memory {
        /// The size that was given, in MiB.
        got: u32,
    },
    /// `max_memory_mib` is out of range.
    #[error("max_memory_mib: {got} given, memory_mib ({least}) to {MAX_MEMORY_MIB} possible")]
    MaxMemory {
        /// The size that was given, in MiB.
        got: u32,
        /// The size at the start.
        least: u32,
    },
    /// `cmdline` is too long or has bytes that a kernel command line cannot hold.
    #[error("cmdline: must be at most {MAX_CMDLINE} bytes of printable ASCII")]
    Cmdline,
    /// `vsock.guest_cid` is reserved.
    #[error("vsock.guest_cid: {got} is reserved, the first guest id is {FIRST_GUEST_CID}")]
    GuestCid {
        /// The id that was given.
        got: u32,
    },
    /// `fs.tag` is empty or too long.
    #[error("fs.tag: must be 1 to {MAX_TAG} bytes")]
    Tag,
    /// `jail` would leave the process with root's identity.
    #[error("jail: uid and gid must not be 0")]
    JailRoot,
}

impl VmConfig {
    /// Checks every field against what a VM can be.
    ///
    /// # Errors
    /// The first field that does not hold, by name.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.api_version != API_VERSION {
            return Err(ConfigError::Version {
                got: self.api_version,
            });
        }
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(ConfigError::Vcpus { got: self.vcpus });
        }
        if !(self.vcpus..=MAX_VCPUS).contains(&self.max_vcpus) {
            return Err(ConfigError::MaxVcpus {
                got: self.max_vcpus,
                least: self.vcpus,
            });
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(ConfigError::Memory {
                got: self.memory_mib,
            });
        }
        if !(self.memory_mib..=MAX_MEMORY_MIB).contains(&self.max_memory_mib) {
            return Err(ConfigError::MaxMemory {
                got: self.max_memory_mib,
                least: self.memory_mib,
            });
        }
        let printable = |b: u8| b == b' ' || b.is_ascii_graphic();
        if self.cmdline.len() > MAX_CMDLINE || !self.cmdline.bytes().all(printable) {
            return Err(ConfigError::Cmdline);
        }
        if self.vsock.guest_cid < FIRST_GUEST_CID || self.vsock.guest_cid == u32::MAX {
            return Err(ConfigError::GuestCid {
                got: self.vsock.guest_cid,
            });
        }
        if let Some(fs) = &self.fs
            && (fs.tag.is_empty() || fs.tag.len() > MAX_TAG)
        {
            return Err(ConfigError::Tag);
        }
        if self.jail.uid == 0 || self.jail.gid == 0 {
            return Err(ConfigError::JailRoot);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> VmConfig {
        VmConfig {
            api_version: API_VERSION,
            vcpus: 1,
            max_vcpus: 1,
            memory_mib: 128,
            max_memory_mib: 128,
            cmdline: "quiet".into(),
            vsock: VsockConfig {
                guest_cid: 3,
                host_ports: vec![1024],
            },
            fs: Some(FsConfig { tag: "root".into() }),
            jail: JailConfig {
                uid: 65533,
                gid: 65533,
            },
        }
    }

    #[test]
    fn a_plain_config_holds() {
        assert_eq!(config().validate(), Ok(()));
    }

    #[test]
    fn each_field_is_checked_and_named() {
        type Change = fn(&mut VmConfig);
        let cases: [(Change, &str); 13] = [
            (|c| c.api_version = 99, "api_version: 99"),
            (|c| c.vcpus = 0, "vcpus: 0"),
            (|c| c.vcpus = 33, "vcpus: 33"),
            (|c| c.max_vcpus = 0, "max_vcpus: 0 given, vcpus (1) to 32"),
            (|c| c.max_vcpus = 33, "max_vcpus: 33"),
            (|c| c.memory_mib = 31, "memory_mib: 31"),
            (
                |c| c.max_memory_mib = 127,
                "max_memory_mib: 127 given, memory_mib (128)",
            ),
            (
                |c| c.max_memory_mib = u32::MAX,
                "max_memory_mib: 4294967295",
            ),
            (|c| c.cmdline = "a\nb".into(), "cmdline:"),
            (|c| c.cmdline = "x".repeat(1025), "cmdline:"),
            (|c| c.vsock.guest_cid = 2, "vsock.guest_cid: 2"),
            (
                |c| {
                    c.fs = Some(FsConfig {
                        tag: "x".repeat(37),
                    })
                },
                "fs.tag:",
            ),
            (|c| c.jail.uid = 0, "jail:"),
        ];
        for (change, expected) in cases {
            let mut config = config();
            change(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let mut json = serde_json::to_value(config()).unwrap();
        json["gpu"] = true.into();
        let error = serde_json::from_value::<VmConfig>(json).unwrap_err();
        assert!(error.to_string().contains("gpu"), "{error}");
    }
}
