//! Scopes of systemd. Nothing speaks to systemd yet: every request is an error.

use oci_spec::runtime::LinuxResources;

use super::{Overhead, Unit, Version};

/// Why systemd has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// There is nobody to ask it.
    #[error("the systemd driver is not supported")]
    Unsupported,
}

pub(super) fn start(
    unit: &Unit,
    _version: Version,
    _resources: &LinuxResources,
    _overhead: Overhead,
    _pid: u32,
) -> Result<LinuxResources, SystemdError> {
    log::debug!("{} is a slice: {}", unit.name, unit.is_slice());
    Err(SystemdError::Unsupported)
}

pub(super) fn update(
    _unit: &Unit,
    _version: Version,
    _resources: &LinuxResources,
    _overhead: Overhead,
) -> Result<LinuxResources, SystemdError> {
    Err(SystemdError::Unsupported)
}

pub(super) fn stop(_name: &str) -> Result<(), SystemdError> {
    Err(SystemdError::Unsupported)
}
