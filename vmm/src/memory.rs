//! Guest RAM: one memfd, mapped once. What is added while the VM runs is another one ([`Extension`]).
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
        let host = reserve(bytes).map_err(|errno| fail(errno.into()))?;
        map(&file, host, bytes).map_err(|errno| fail(errno.into()))?;
        // SAFETY: the mapping was made for it just now.
        regions.push(unsafe { region(file, host, bytes, address) }?);
    }
    GuestRam::from_regions(regions).map_err(|_| Error::Layout { size })
}

/// The region of guest RAM at `address` whose `bytes` are `file`, mapped at `host`.
///
/// # Safety
/// The mapping must be `bytes` long, belong to nobody else, and never be unmapped.
unsafe fn region(
    file: FileOffset,
    host: *mut libc::c_void,
    bytes: usize,
    address: u64,
) -> Result<GuestRegionMmap<()>, Error> {
    let size = bytes as u64;
    // SAFETY: the caller's promise.
    let builder = unsafe { MmapRegionBuilder::new(bytes).with_raw_mmap_pointer(host.cast()) };
    let mapping = builder
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_file_offset(file)
        .build()
        .map_err(|error| Error::Map {
            size,
            source: io::Error::other(error),
        })?;
    GuestRegionMmap::new(mapping, GuestAddress(address)).ok_or(Error::Layout { size })
}

/// Keeps `bytes` of this process' addresses free, from a multiple of [`HUGE_PAGE`] on: guest pages can
/// only be huge where guest and host address agree below that.
fn reserve(bytes: usize) -> Result<*mut libc::c_void, Errno> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    let huge = usize::try_from(HUGE_PAGE).map_err(|_| Errno::INVAL)?;
    let reserved = bytes.checked_add(huge).ok_or(Errno::INVAL)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start =
        unsafe { mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), flags) }?;
    let before = start.align_offset(huge);
    let aligned = start.wrapping_byte_add(before);
    let after = aligned.wrapping_byte_add(bytes);
    for (edge, length) in [(start, before), (after, huge - before)] {
        if length > 0 {
            // SAFETY: a part of the mapping made above that nobody knows.
            unsafe { munmap(edge, length) }?;
        }
    }
    Ok(aligned)
}

/// Maps `bytes` of `file` at `host`, in addresses that [`reserve`] has kept. The mapping stays until the
/// process ends.
fn map(file: &FileOffset, host: *mut libc::c_void, bytes: usize) -> Result<(), Errno> {
    use rustix::mm::{MapFlags, ProtFlags, mmap};

    let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
    let (protection, fd) = (ProtFlags::READ | ProtFlags::WRITE, file.file());
    // SAFETY: replaces what nobody uses: it was reserved and not given to anybody.
    unsafe { mmap(host, bytes, protection, flags, fd, file.start()) }?;
    Ok(())
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

/// Gives the guest its first memory: one slot for each piece, set once.
///
/// # Errors
/// If KVM refuses.
pub fn attach(vm: &VmFd, memory: &GuestRam) -> Result<(), Error> {
    for (slot, region) in (0..).zip(memory.iter()) {
        attach_part(vm, slot, region, 0)?;
    }
    Ok(())
}

/// Gives the guest what is in `region` from `offset` on, as slot `slot`. KVM waits for a grace period if
/// its vCPUs run.
///
/// # Errors
/// If KVM refuses.
pub fn attach_part(
    vm: &VmFd,
    slot: u32,
    region: &GuestRegionMmap<()>,
    offset: u64,
) -> Result<(), Error> {
    let slot_region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().0 + offset,
        memory_size: region.len().saturating_sub(offset),
        userspace_addr: region.as_ptr() as u64 + offset,
    };
    // SAFETY: the mapping is `memory_size` bytes long and stays for as long as the process lives: none
    // is ever unmapped.
    unsafe { vm.set_user_memory_region(slot_region) }.map_err(|source| Error::Slot { slot, source })
}

/// Guest RAM that is added while the VM runs: a memory file and room in this process' addresses, both of
/// which are used from their starts. So memory stays where it is when there comes more behind it.
#[derive(Debug)]
pub struct Extension {
    file: Arc<File>,
    /// How long it is.
    file_length: u64,
    /// Where it begins for the guest.
    address: u64,
    /// How much there can be.
    max: u64,
    /// Where it begins in this process, once there is any.
    host: Option<usize>,
    /// How much there is.
    length: u64,
}

impl Extension {
    /// None yet, from `address` on, and up to `max` bytes of it.
    ///
    /// # Errors
    /// If the memory file cannot be made.
    pub fn new(address: u64, max: u64) -> Result<Self, Error> {
        let file = |operation| {
            move |errno: rustix::io::Errno| Error::File {
                operation,
                source: errno.into(),
            }
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = memfd_create("guest-ram-added", flags).map_err(file("memfd_create"))?;
        // As above, but that it grows.
        fcntl_add_seals(&memfd, SealFlags::SHRINK | SealFlags::SEAL)
            .map_err(file("F_ADD_SEALS"))?;
        Ok(Self::of(memfd.into(), 0, address, max))
    }

    /// What is in the memory file of another machine is there as far as [`Extension::grow`] is told.
    ///
    /// # Errors
    /// If the file does not tell its length.
    pub fn restore(file: File, address: u64, max: u64) -> Result<Self, Error> {
        let length = file.metadata().map_err(|source| Error::File {
            operation: "fstat",
            source,
        })?;
        Ok(Self::of(file, length.len(), address, max))
    }

    fn of(file: File, file_length: u64, address: u64, max: u64) -> Self {
        Self {
            file: Arc::new(file),
            file_length,
            address,
            max,
            host: None,
            length: 0,
        }
    }

    /// How much there is, in bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// `memory`, which has what there is of this, with `length` bytes of it, or as many as there are if
    /// that is more.
    ///
    /// # Errors
    /// If it cannot be; then nothing has changed.
    pub fn grow(&mut self, memory: &GuestRam, length: u64) -> Result<GuestRam, Error> {
        if length <= self.length {
            return Ok(memory.clone());
        }
        let layout = |_| Error::Layout { size: length };
        let fail = |size| {
            move |errno: Errno| Error::Map {
                size,
                source: errno.into(),
            }
        };
        if length > self.max {
            return Err(Error::Layout { size: length });
        }
        let added = length - self.length;
        let bytes = |size: u64| usize::try_from(size).map_err(|_| Error::Layout { size });
        let host = match self.host {
            Some(host) => host,
            None => reserve(bytes(self.max)?)
                .map_err(fail(self.max))?
                .expose_provenance(),
        };
        self.host = Some(host);
        if self.file_length < length {
            ftruncate(&*self.file, length).map_err(|errno| Error::File {
                operation: "ftruncate",
                source: errno.into(),
            })?;
            self.file_length = length;
        }
        let rest = FileOffset::from_arc(self.file.clone(), self.length);
        let place = std::ptr::with_exposed_provenance_mut(host + bytes(self.length)?);
        map(&rest, place, bytes(added)?).map_err(fail(added))?;
        let all = FileOffset::from_arc(self.file.clone(), 0);
        let start = std::ptr::with_exposed_provenance_mut(host);
        // SAFETY: mapped up to `length` by now, in the addresses that were reserved for it.
        let region = unsafe { region(all, start, bytes(length)?, self.address) }?;
        let rest = match self.length {
            0 => memory.clone(),
            before => {
                let address = GuestAddress(self.address);
                memory.remove_region(address, before).map_err(layout)?.0
            }
        };
        let grown = rest.insert_region(Arc::new(region)).map_err(layout)?;
        self.length = length;
        Ok(grown)
    }

    /// Its region in `memory`, which has it.
    #[must_use]
    pub fn region<'m>(&self, memory: &'m GuestRam) -> Option<&'m GuestRegionMmap<()>> {
        let region = memory.find_region(GuestAddress(self.address))?;
        (region.start_addr().0 == self.address).then_some(region)
    }
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
    fn added_memory_stays_where_it_is_when_there_comes_more() {
        use std::os::unix::fs::FileExt;

        const START: u64 = 4 << 30;
        let first = create(4 * MIB).unwrap();
        let mut extension = Extension::new(START, 64 * MIB).unwrap();
        assert!(extension.region(&first).is_none());
        let memory = extension.grow(&first, 8 * MIB).unwrap();
        memory.write_obj(0x66_u8, GuestAddress(START + 5)).unwrap();
        let more = extension.grow(&memory, 24 * MIB).unwrap();
        assert_eq!(extension.length(), 24 * MIB);
        let host = |memory: &GuestRam| memory.get_host_address(GuestAddress(START)).unwrap();
        assert_eq!(host(&memory), host(&more));
        assert_eq!(host(&more).align_offset(2 << 20), 0);
        more.write_obj(0x67_u8, GuestAddress(START + 20 * MIB))
            .unwrap();
        assert!(
            memory
                .read_obj::<u8>(GuestAddress(START + 20 * MIB))
                .is_err()
        );
        assert!(first.read_obj::<u8>(GuestAddress(START)).is_err());
        let region = extension.region(&more).unwrap();
        assert_eq!(region.len(), 24 * MIB);
        for (offset, expected) in [(5, 0x66), (20 * MIB, 0x67)] {
            let mut byte = [0];
            let file = region.file_offset().unwrap();
            file.file().read_exact_at(&mut byte, offset).unwrap();
            assert_eq!(byte, [expected]);
        }
        // Less is not taken away, and there is an end.
        assert_eq!(extension.grow(&more, MIB).unwrap().num_regions(), 2);
        assert!(extension.grow(&more, 65 * MIB).is_err());
        assert_eq!(extension.length(), 24 * MIB);
        let shrunk = region.file_offset().unwrap().file().set_len(MIB);
        assert!(shrunk.is_err());
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
