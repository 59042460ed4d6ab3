//! The kernel command line.

use cloister_virtio::device::GuestRam;
use cloister_virtio::mmio::PAGE_SIZE;
use vm_memory::{Bytes, GuestAddress};

use super::Error;
use crate::layout::{CMDLINE, CMDLINE_SIZE, Slot};

/// What every guest gets, each for a reason:
///
/// - `console=ttyS0 quiet`: the console is there, but a byte on it costs an exit, so only what is
///   worth it is said;
/// - `panic=-1 reboot=k`: a panic resets the machine at once, through the keyboard controller,
///   which the VMM reports;
/// - `retain_initrd`: the initramfs is a mapping of the host's file, which must not be reused as
///   memory ([`crate::memory::map_file`]);
/// - `8250.nr_uarts=1`: there is one serial port; probing for more costs exits;
/// - `random.trust_cpu=on`: the generator is seeded before anybody waits for it.
const BASE: &str =
    "console=ttyS0 quiet panic=-1 reboot=k retain_initrd 8250.nr_uarts=1 random.trust_cpu=on";

/// A command line that grows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmdline {
    text: String,
}

impl Default for Cmdline {
    fn default() -> Self {
        Self { text: BASE.into() }
    }
}

impl Cmdline {
    /// Announces `slot`, whether there is a device in it or not. Its name in the guest is its own,
    /// whichever other slots are announced.
    pub fn announce(&mut self, slot: Slot) {
        // Documentation/admin-guide/kernel-parameters.txt: virtio_mmio.device=SIZE@BASE:IRQ:ID.
        let (kib, address, line) = (PAGE_SIZE / 1024, slot.address(), slot.line());
        let id = slot.platform_id();
        self.append(&format!(
            "virtio_mmio.device={kib}K@{address:#x}:{line}:{id}"
        ));
    }

    /// Has the kernel start `vcpus` of the CPUs that the MP table lists, and no more until it is told
    /// to.
    pub fn start_only(&mut self, vcpus: usize) {
        self.append(&format!("maxcpus={vcpus}"));
    }

    /// Adds `words`.
    pub fn append(&mut self, words: &str) {
        if !words.is_empty() {
            self.text.push(' ');
            self.text.push_str(words);
        }
    }

    /// Puts the command line where the zero page says it is; returns its length without the
    /// terminating zero.
    pub(super) fn write(&self, memory: &GuestRam) -> Result<u32, Error> {
        let length = self.text.len() + 1;
        if length > CMDLINE_SIZE {
            return Err(Error::Cmdline {
                length,
                limit: CMDLINE_SIZE,
            });
        }
        // Guest memory is zero where nothing was written.
        memory
            .write_slice(self.text.as_bytes(), GuestAddress(CMDLINE))
            .map_err(|source| Error::Write {
                structure: "command line",
                source,
            })?;
        // At most CMDLINE_SIZE.
        Ok(u32::try_from(self.text.len()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_announced_where_they_are() {
        let mut cmdline = Cmdline::default();
        cmdline.announce(Slot::Rng);
        cmdline.append("");
        cmdline.start_only(1);
        assert!(
            cmdline
                .text
                .ends_with(" virtio_mmio.device=4K@0xd0001000:6:1 maxcpus=1"),
            "{}",
            cmdline.text
        );
    }

    #[test]
    fn a_command_line_that_the_kernel_would_cut_is_refused() {
        let memory = crate::memory::create(1 << 20).unwrap();
        let mut cmdline = Cmdline::default();
        cmdline.append(&"x".repeat(CMDLINE_SIZE - cmdline.text.len() - 2));
        cmdline.write(&memory).unwrap();
        cmdline.text.push('y');
        let error = cmdline.write(&memory).unwrap_err();
        assert_eq!(error.to_string(), "command line: 2049 bytes, 2048 possible");
    }
}
