//! A device of the machine that the host has put into a virtio-mmio slot while the guest runs.
//!
//! The kernel has looked at each slot once, when it started, and has found it empty. Binding the driver by hand
//! (Documentation/ABI/testing/sysfs-bus-platform) makes it look again.

use std::fs;
use std::io;
use std::path::Path;

/// The driver's directory.
const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";

/// The name of the platform device of a number.
pub(crate) fn name(number: u32) -> String {
    format!("virtio-mmio.{number}")
}

/// Has the driver take the device of this name.
pub(crate) fn bind(name: &str) -> io::Result<()> {
    fs::write(format!("{DRIVER}/bind"), name)
}

/// Has the driver let go of it.
pub(crate) fn unbind(name: &str) -> io::Result<()> {
    fs::write(format!("{DRIVER}/unbind"), name)
}

/// Whether the driver has it.
pub(crate) fn is_bound(name: &str) -> bool {
    Path::new(DRIVER).join(name).exists()
}
