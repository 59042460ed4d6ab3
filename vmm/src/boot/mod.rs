//! What a kernel finds in memory when it starts: the 64-bit Linux boot protocol.
//!
//! The kernel is an ELF `vmlinux`, entered at its `startup_64` with paging on and the address of
//! [`boot_params`](linux_loader::bootparam::boot_params) in `rsi` (Documentation/arch/x86/boot.rst,
//! "64-bit Boot Protocol"). PVH, the other way into a `vmlinux`, starts in 32-bit mode and makes its
//! own way to the same `startup_64`: it does more for the same result.

mod cmdline;
mod kernel;
mod mptable;
mod params;
mod tables;

use std::fs::File;
use std::ops::Range;

use cloister_virtio::device::GuestRam;
use vm_memory::GuestMemoryError;

pub use self::cmdline::Cmdline;
pub use self::tables::{EntryState, entry_state, write as write_tables};
use crate::{layout, memory};

/// Why a guest cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel cannot be loaded.
    #[error("kernel")]
    Kernel(#[source] kernel::Error),
    /// The initramfs cannot be loaded.
    #[error("initramfs")]
    Initramfs(#[source] kernel::InitramfsError),
    /// The command line is too long.
    #[error("command line: {length} bytes, {limit} possible")]
    Cmdline {
        /// Its length with the terminating zero.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A boot structure does not fit into guest memory.
    #[error("boot structures: {structure} cannot be written")]
    Write {
        /// Which one.
        structure: &'static str,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
    /// A file cannot be mapped.
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

/// A guest that can start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The address at which the first vCPU starts.
    pub entry: u64,
    /// The pages of the initramfs, which nobody reads once the guest's init runs.
    pub initramfs: Range<u64>,
}

/// Fills guest memory.
///
/// # Errors
/// If the kernel or the initramfs is not what it should be or does not fit.
pub fn load(
    memory: &GuestRam,
    kernel: &File,
    initramfs: &File,
    cmdline: &Cmdline,
    vcpus: u8,
) -> Result<Loaded, Error> {
    let kernel = kernel::load(memory, kernel).map_err(Error::Kernel)?;
    memory::make_huge(memory, &layout::dense(memory));
    let initramfs =
        kernel::load_initramfs(memory, initramfs, kernel.end).map_err(Error::Initramfs)?;
    let cmdline_size = cmdline.write(memory)?;
    params::write(memory, initramfs, cmdline_size)?;
    mptable::write(memory, vcpus)?;
    tables::write(memory)?;
    Ok(Loaded {
        entry: kernel.entry,
        initramfs: initramfs.pages(),
    })
}
