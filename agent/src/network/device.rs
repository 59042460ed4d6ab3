//! A network device of the machine: a [slot] that the host has filled.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::NetworkError;
use crate::slot;

/// The devices' directories.
const DEVICES: &str = "/sys/bus/platform/devices";

/// A device whose driver is bound.
#[derive(Debug)]
pub(super) struct Device {
    name: String,
}

impl Device {
    /// Has the driver take the device of a number.
    pub(super) fn bind(number: u32) -> Result<Self, NetworkError> {
        let this = Self {
            name: slot::name(number),
        };
        slot::bind(&this.name).map_err(|e| this.error("its driver does not take it", e))?;
        Ok(this)
    }

    /// Has the driver let go of it, wherever its interface is by now.
    pub(super) fn unbind(&self) -> Result<(), NetworkError> {
        slot::unbind(&self.name).map_err(|e| self.error("its driver does not let go of it", e))
    }

    /// The index of its interface, while that is in the namespace that sysfs shows.
    pub(super) fn interface_index(&self) -> Result<u32, NetworkError> {
        self.find_index()
            .map_err(|e| self.error("it has no interface", e))
    }

    fn find_index(&self) -> io::Result<u32> {
        let device = PathBuf::from(DEVICES).join(&self.name);
        let virtio = child(&device, "virtio")?;
        let interface = child(&virtio.join("net"), "")?;
        let index = fs::read_to_string(interface.join("ifindex"))?;
        index.trim().parse().map_err(io::Error::other)
    }

    fn error(&self, problem: &'static str, source: io::Error) -> NetworkError {
        NetworkError::Device {
            name: self.name.clone(),
            problem,
            source,
        }
    }
}

/// The first entry of a directory whose name begins so.
fn child(directory: &std::path::Path, prefix: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_bytes())
        {
            return Ok(entry.path());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
