//! Guest RAM: one memfd, mapped once.
//!
//! A page that a guest touches for the first time costs two faults, one of the guest's and one of the
//! host's, and they are most of what booting a kernel costs. So what is known to be used
//! densely is made of huge pages beforehand ([`make_huge`]): one fault for 512 pages.

#![allow(unsafe_code)] // Maps memory, and hands the mapping's address to KVM.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use cloister_virtio::device::GuestRam;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap,
};

use crate::layout::{HIGH_RAM_START, LOW_RAM_END};

/// The size of a huge page: what one entry of a third-level page table can map.
pub const HUGE_PAGE: u64 = 2 << 20;
/// The size of a page, of the host's and the guest's alike.
pub const PAGE: u64 = 4096;
/// A huge page costs what the faults of so many bytes in small pages cost.
const WORTHWHILE: u64 = 256 << 10;
/// include/uapi/asm-generic/mman-common.h; not in every version of the C library's headers.
const MADV_COLLAPSE: libc::c_int = 25;

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
        source: io::Error,
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
        let fail = |source| Error::Map {
            size: length,
            source,
        };
        let bytes = usize::try_from(length).map_err(|_| Error::Layout { size })?;
        let file = FileOffset::from_arc(memfd.clone(), offset);
        let host = map_aligned(&file, bytes).map_err(|errno| fail(errno.into()))?;
        // SAFETY: the mapping is `bytes` long and belongs to nobody else; it is never unmapped.
        let builder = unsafe { MmapRegionBuilder::new(bytes).with_raw_mmap_pointer(host.cast()) };
        let mapping = builder
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(file)
            .build()
            .map_err(|error| fail(io::Error::other(error)))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(address));
        regions.push(region.ok_or(Error::Layout { size })?);
    }
    GuestRam::from_regions(regions).map_err(|_| Error::Layout { size })
}

/// Maps `bytes` of `file` at an address that is a multiple of [`HUGE_PAGE`]: guest pages can only
/// be huge where guest and host address agree below that. The mapping stays until the process ends.
fn map_aligned(file: &FileOffset, bytes: usize) -> Result<*mut libc::c_void, Errno> {
    use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

    let huge = usize::try_from(HUGE_PAGE).map_err(|_| Errno::INVAL)?;
    let reserved = bytes.checked_add(huge).ok_or(Errno::INVAL)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start =
        unsafe { mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), flags) }?;
    let before = start.align_offset(huge);
    let aligned = start.wrapping_byte_add(before);
    let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
    let (protection, fd) = (ProtFlags::READ | ProtFlags::WRITE, file.file());
    // SAFETY: replaces a part of the mapping made above, which nobody uses.
    let mapped = unsafe { mmap(aligned, bytes, protection, flags, fd, file.start()) }?;
    let after = mapped.wrapping_byte_add(bytes);
    for (edge, length) in [(start, before), (after, huge - before)] {
        if length > 0 {
            // SAFETY: a part of the mapping made above that was not replaced.
            unsafe { munmap(edge, length) }?;
        }
    }
    Ok(mapped)
}

/// Makes the blocks that lie in `ranges` of huge pages, as far as the host can: for speed only, so
/// a host that cannot is no error. A block of which little is in a range is left as it is. Nothing
/// may be mapped into the ranges by [`map_file`].
pub fn make_huge(memory: &GuestRam, ranges: &[Range<u64>]) {
    for range in ranges {
        let blocks = whole_blocks(range);
        let Some(region) = memory.find_region(GuestAddress(blocks.start)) else {
            continue;
        };
        let region_end = (region.start_addr().0 + region.len()) / HUGE_PAGE * HUGE_PAGE;
        let (start, end) = (blocks.start, blocks.end.min(region_end));
        if start >= end {
            continue;
        }
        if let Err(error) = collapse(memory, start, end) {
            log::debug!("no huge pages from {start:#x} to {end:#x}: {error}");
        }
    }
}

/// The blocks of which at least [`WORTHWHILE`] bytes are in `range`.
fn whole_blocks(range: &Range<u64>) -> Range<u64> {
    let start = (range.start + WORTHWHILE)
        .div_ceil(HUGE_PAGE)
        .saturating_sub(1)
        * HUGE_PAGE;
    let end = (range.end + HUGE_PAGE - WORTHWHILE) / HUGE_PAGE * HUGE_PAGE;
    start..end
}

fn collapse(memory: &GuestRam, start: u64, end: u64) -> io::Result<()> {
    // A block with nothing in it is left as it is; so something is put in.
    for block in (start..end).step_by(usize::try_from(HUGE_PAGE).unwrap_or(usize::MAX)) {
        let byte: u8 = memory
            .read_obj(GuestAddress(block))
            .map_err(io::Error::other)?;
        memory
            .write_obj(byte, GuestAddress(block))
            .map_err(io::Error::other)?;
    }
    let bytes = usize::try_from(end - start).map_err(io::Error::other)?;
    let slice = memory
        .get_slice(GuestAddress(start), bytes)
        .map_err(io::Error::other)?;
    let host = slice.ptr_guard_mut().as_ptr();
    // SAFETY: the range is guest RAM; its contents stay what they are.
    match unsafe { libc::madvise(host.cast(), bytes, MADV_COLLAPSE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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

/// Lets go of pages that [`map_file`] has put into `range` and that nobody will read again: their
/// memory is the host's page cache again. Should somebody read them, they come back from the file.
///
/// # Errors
/// If the range is not in guest memory.
pub fn release_file(memory: &GuestRam, range: &Range<u64>) -> io::Result<()> {
    let length = range.end.saturating_sub(range.start);
    let bytes = usize::try_from(length).map_err(io::Error::other)?;
    let slice = memory
        .get_slice(GuestAddress(range.start), bytes)
        .map_err(io::Error::other)?;
    let host = slice.ptr_guard_mut().as_ptr();
    // SAFETY: the range is a private mapping of a file within guest RAM, which nobody has written
    // to but a guest that has no business there, and which stays readable.
    match unsafe { libc::madvise(host.cast(), bytes, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
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
    fn a_block_is_huge_if_enough_of_it_is_used() {
        const KIB: u64 = 1 << 10;
        assert_eq!(whole_blocks(&(0..640 * KIB)), 0..2 * MIB);
        assert_eq!(whole_blocks(&(0..255 * KIB)), 0..0);
        assert_eq!(
            whole_blocks(&(16 * MIB..28 * MIB + 92 * KIB)),
            16 * MIB..28 * MIB
        );
        assert_eq!(
            whole_blocks(&(16 * MIB..28 * MIB + 256 * KIB)),
            16 * MIB..30 * MIB
        );
        assert_eq!(whole_blocks(&(125 * MIB..128 * MIB)), 124 * MIB..128 * MIB);
        assert_eq!(whole_blocks(&(6 * MIB - 10..8 * MIB)), 6 * MIB..8 * MIB);
    }

    #[test]
    fn huge_pages_keep_what_was_there() {
        let memory = create(8 * MIB).unwrap();
        memory.write_obj(0x77_u8, GuestAddress(3 * MIB)).unwrap();
        memory.write_obj(0x78_u8, GuestAddress(2 * MIB)).unwrap();
        // Whole blocks, and cut at the end of memory.
        make_huge(
            &memory,
            &[3 * MIB..5 * MIB, 7 * MIB..20 * MIB, 40 * MIB..41 * MIB],
        );
        for (address, expected) in [(3 * MIB, 0x77_u8), (2 * MIB, 0x78), (5 * MIB, 0)] {
            assert_eq!(
                memory.read_obj::<u8>(GuestAddress(address)).unwrap(),
                expected
            );
        }
        let host = memory.get_host_address(GuestAddress(0)).unwrap();
        assert_eq!(host.align_offset(2 << 20), 0);
    }

    #[test]
    fn a_released_file_is_still_there() {
        use std::io::Write;

        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0x44; 8192]).unwrap();
        let memory = create(4 * MIB).unwrap();
        map_file(&memory, &file, 0, MIB, 8192).unwrap();
        let read = || memory.read_obj::<u8>(GuestAddress(MIB + 4096)).unwrap();
        assert_eq!(read(), 0x44);
        release_file(&memory, &(MIB..MIB + 8192)).unwrap();
        assert_eq!(read(), 0x44);
        assert!(release_file(&memory, &(3 * MIB..5 * MIB)).is_err());
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
