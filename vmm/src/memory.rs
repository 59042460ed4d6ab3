//! Guest RAM: one memfd, mapped once.

#![allow(unsafe_code)] // A memory slot hands the mapping's address to KVM.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use cloister_virtio::device::GuestRam;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::layout::{HIGH_RAM_START, LOW_RAM_END};

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The memory file could not be made.
    #[error("guest memory: {operation} failed")]
    File {
        /// What was done to it.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The memory file could not be mapped.
    #[error("guest memory: cannot map {size} bytes")]
    Map {
        /// The bytes.
        size: u64,
        /// Why it failed.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The regions do not fit the address space.
    #[error("guest memory: {size} bytes do not fit the address space")]
    Layout {
        /// The bytes.
        size: u64,
    },
    /// A file could not be mapped into guest memory.
    #[error("guest memory: cannot map {length} bytes of a file at {address:#x}")]
    MapFile {
        /// The guest address.
        address: u64,
        /// The bytes.
        length: u64,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// KVM refused a memory slot.
    #[error("guest memory: KVM_SET_USER_MEMORY_REGION failed for slot {slot}")]
    Slot {
        /// The slot.
        slot: u32,
        /// Why it failed.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// The pieces of guest RAM of `size` bytes: guest address, length, and offset in the memory file.
fn pieces(size: u64) -> Vec<(u64, u64, u64)> {
    let low = size.min(LOW_RAM_END);
    let mut pieces = vec![(0, low, 0)];
    if size > low {
        pieces.push((HIGH_RAM_START, size - low, low));
    }
    pieces
}

/// Makes and maps guest RAM of `size` bytes. Nothing of it is allocated before it is touched.
///
/// # Errors
/// If the file cannot be made, sealed or mapped.
pub fn create(size: u64) -> Result<GuestRam, Error> {
    let file = |operation| {
        move |errno: rustix::io::Errno| Error::File {
            operation,
            source: errno.into(),
        }
    };
    let memfd = memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(file("memfd_create"))?;
    ftruncate(&memfd, size).map_err(file("ftruncate"))?;
    // Whoever maps it, the file server above all, must not be hit by SIGBUS.
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&memfd, seals).map_err(file("F_ADD_SEALS"))?;
    let memfd = Arc::new(File::from(memfd));

    let mut regions = Vec::new();
    for (address, length, offset) in pieces(size) {
        let bytes = usize::try_from(length).map_err(|_| Error::Layout { size })?;
        let mapping = MmapRegionBuilder::new(bytes)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(memfd.clone(), offset))
            .build()
            .map_err(|source| Error::Map {
                size: length,
                source,
            })?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(address));
        regions.push(region.ok_or(Error::Layout { size })?);
    }
    GuestRam::from_regions(regions).map_err(|_| Error::Layout { size })
}

/// Gives the guest its memory: one slot for each piece, set once.
///
/// # Errors
/// If KVM refuses.
pub fn attach(vm: &VmFd, memory: &GuestRam) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let slot_region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping is `memory_size` bytes long and stays for as long as the process
        // lives: the regions are kept by the machine, which is never dropped before the VM.
        unsafe { vm.set_user_memory_region(slot_region) }
            .map_err(|source| Error::Slot { slot, source })?;
    }
    Ok(())
}

/// Puts `length` bytes of `file` from `offset` at `address` without copying them: the guest shares
/// the host's page cache until it writes to a page, which it then has for itself.
///
/// The pages are then not in the memory file, so nothing that a device in another process reads or
/// writes may ever lie there: only what the guest never frees can be put this way.
///
/// # Errors
/// If the range is not in guest memory or the file cannot be mapped.
pub fn map_file(
    memory: &GuestRam,
    file: &File,
    offset: u64,
    address: u64,
    length: u64,
) -> Result<(), Error> {
    let fail = |source| Error::MapFile {
        address,
        length,
        source,
    };
    let invalid = || fail(io::ErrorKind::InvalidInput.into());
    let bytes = usize::try_from(length).map_err(|_| invalid())?;
    let offset = libc::off_t::try_from(offset).map_err(|_| invalid())?;
    let slice = memory
        .get_slice(GuestAddress(address), bytes)
        .map_err(|_| invalid())?;
    let host = slice.ptr_guard_mut().as_ptr();
    // SAFETY: the range is `length` bytes of the mapping of guest RAM, which only this process
    // reaches and only through volatile accesses; the new pages are as readable and writable as
    // the old ones and are unmapped together with them.
    let mapped = unsafe {
        libc::mmap(
            host.cast(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(fail(io::Error::last_os_error()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn memory_past_the_hole_continues_above_it() {
        assert_eq!(pieces(128 * MIB), [(0, 128 * MIB, 0)]);
        assert_eq!(pieces(3072 * MIB), [(0, 3072 * MIB, 0)]);
        assert_eq!(
            pieces(4608 * MIB),
            [(0, 3072 * MIB, 0), (1 << 32, 1536 * MIB, 3072 * MIB)]
        );
    }

    #[test]
    fn memory_is_shared_through_its_file() {
        use std::os::unix::fs::FileExt;

        let memory = create(3080 * MIB).unwrap();
        memory
            .write_obj(0x55_u8, GuestAddress((1 << 32) + 5))
            .unwrap();
        let region = memory.find_region(GuestAddress(1 << 32)).unwrap();
        let offset = region.file_offset().unwrap();
        let mut byte = [0];
        let position = offset.start() + 5;
        offset.file().read_exact_at(&mut byte, position).unwrap();
        assert_eq!(byte, [0x55]);
        let shrunk = offset.file().set_len(MIB).unwrap_err();
        assert_eq!(shrunk.kind(), io::ErrorKind::PermissionDenied);
    }
}
