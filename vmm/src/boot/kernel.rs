//! The kernel and the initramfs, put into guest memory.
//!
//! The kernel's code and read-only data are mapped from its file, if the kernel says that it keeps them
//! ([`SHAREABLE`]): only what a guest uses is ever in memory, and it is the host's page cache, shared by
//! every guest. The pages that the kernel writes to when it fits itself to the processor become its own. The rest is read
//! into huge pages.
//!
//! The initramfs is only read, and the guest is told to keep it (`retain_initrd`): it is mapped as well, see
//! [`crate::memory::map_file`].

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use cloister_virtio::device::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use crate::layout::{EXTENDED_RAM_START, HIGH_RAM_START};
use crate::memory::{self, HUGE_PAGE, PAGE};

/// ELF-64 object file format: sizes and values of what a kernel must have.
mod elf {
    pub(super) const HEADER_SIZE: usize = 64;
    pub(super) const PROGRAM_HEADER_SIZE: usize = 56;
    /// Magic, ELFCLASS64, ELFDATA2LSB, EV_CURRENT.
    pub(super) const IDENT: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
    pub(super) const EM_X86_64: u16 = 62;
    pub(super) const PT_LOAD: u32 = 1;
    /// More than any kernel has.
    pub(super) const MAX_PROGRAM_HEADERS: u16 = 64;
}

/// The magic of a newc archive's first entry.
const NEWC: &[u8; 6] = b"070701";

/// Why a file is not a kernel that can be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// Which part of it.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is something else.
    #[error("not an uncompressed x86-64 ELF file (vmlinux)")]
    NotElf,
    /// The program headers make no sense.
    #[error("program header {index}: {reason}")]
    ProgramHeader {
        /// Which one.
        index: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The entry point is in no segment.
    #[error("entry point {0:#x} is in no segment")]
    Entry(u64),
    /// A segment does not fit into guest memory.
    #[error("segment at {address:#x}, {size} bytes, is not in guest memory")]
    DoesNotFit {
        /// Where it belongs.
        address: u64,
        /// Its size in memory.
        size: u64,
    },
    /// A segment cannot be mapped into guest memory.
    #[error(transparent)]
    Map(memory::Error),
    /// A segment cannot be put into guest memory.
    #[error("segment at {address:#x} cannot be read into guest memory")]
    Copy {
        /// Where it belongs.
        address: u64,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// The bit of `e_flags` by which a kernel promises that it keeps its read-only segments for ever: what lies there is never a
/// device's buffer. Set where it is built, under the same name (`guest-image/src/elf.rs`).
const SHAREABLE: u32 = 1 << 31;
/// System V ABI: a segment that is written.
const PF_W: u32 = 2;

/// Why a file is not an initramfs that can be used.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The file cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// The file is something else.
    #[error("not a newc cpio archive")]
    NotCpio,
    /// It leaves no room.
    #[error("{size} bytes do not fit into guest memory beside the kernel")]
    DoesNotFit {
        /// Its size.
        size: u64,
    },
    /// It cannot be mapped.
    #[error(transparent)]
    Memory(#[from] memory::Error),
}

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kernel {
    /// Where the first vCPU starts.
    pub(super) entry: u64,
    /// The first address after it.
    pub(super) end: u64,
}

/// The place of the initramfs in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Initramfs {
    pub(super) address: u32,
    pub(super) size: u32,
}

impl Initramfs {
    /// The pages that it lies in.
    pub(super) fn pages(&self) -> Range<u64> {
        let start = u64::from(self.address);
        start..start + u64::from(self.size).div_ceil(PAGE) * PAGE
    }
}

struct Segment {
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
    /// It can be mapped from the file.
    shared: bool,
}

impl Segment {
    /// The bytes of the pages that hold it, if it begins with a page.
    fn pages(&self) -> u64 {
        self.memory_size.div_ceil(PAGE).saturating_mul(PAGE)
    }
}

/// A little-endian number at `offset`; zero past the end, which no caller asks for.
fn number<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes
        .get(offset..offset + N)
        .and_then(|part| part.try_into().ok())
        .unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(number(bytes, offset))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(number(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(number(bytes, offset))
}

/// Reads the headers: the entry point and the segments to load.
fn read_headers(file: &File, file_len: u64) -> Result<(u64, Vec<Segment>), Error> {
    let read = |what| move |source| Error::Read { what, source };
    if file_len < elf::HEADER_SIZE as u64 {
        return Err(Error::NotElf);
    }
    let mut header = [0; elf::HEADER_SIZE];
    file.read_exact_at(&mut header, 0)
        .map_err(read("the ELF header"))?;
    let (machine, entry, table) = (
        u16_at(&header, 18),
        u64_at(&header, 24),
        u64_at(&header, 32),
    );
    let shareable = u32_at(&header, 48) & SHAREABLE != 0;
    let (entry_size, count) = (u16_at(&header, 54), u16_at(&header, 56));
    if !header.starts_with(&elf::IDENT)
        || machine != elf::EM_X86_64
        || usize::from(entry_size) != elf::PROGRAM_HEADER_SIZE
        || count == 0
        || count > elf::MAX_PROGRAM_HEADERS
    {
        return Err(Error::NotElf);
    }
    let mut headers = vec![0; usize::from(count) * elf::PROGRAM_HEADER_SIZE];
    file.read_exact_at(&mut headers, table)
        .map_err(read("the program headers"))?;

    let mut segments = Vec::new();
    for (index, header) in headers.chunks_exact(elf::PROGRAM_HEADER_SIZE).enumerate() {
        if u32_at(header, 0) != elf::PT_LOAD {
            continue;
        }
        let mut segment = Segment {
            offset: u64_at(header, 8),
            address: u64_at(header, 24),
            file_size: u64_at(header, 32),
            memory_size: u64_at(header, 40),
            shared: false,
        };
        segment.shared = shareable
            && u32_at(header, 4) & PF_W == 0
            && segment.file_size == segment.memory_size
            && segment.offset.is_multiple_of(PAGE)
            && segment.address.is_multiple_of(PAGE)
            // Mapped to the end of its last page, which has to be in the file.
            && segment.offset.saturating_add(segment.pages()) <= file_len;
        let invalid = |reason| Err(Error::ProgramHeader { index, reason });
        if segment.file_size > segment.memory_size {
            return invalid("larger in the file than in memory");
        }
        match segment.offset.checked_add(segment.file_size) {
            Some(end) if end <= file_len => {}
            _ => return invalid("past the end of the file (truncated?)"),
        }
        if segment.address < EXTENDED_RAM_START {
            return invalid("below 1 MiB, where the boot structures are");
        }
        segments.push(segment);
    }
    Ok((entry, segments))
}

/// Loads an ELF kernel where its program headers say.
pub(super) fn load(memory: &GuestRam, file: &File) -> Result<Kernel, Error> {
    let file_len = file.metadata().map_err(|source| Error::Read {
        what: "its size",
        source,
    })?;
    let (entry, segments) = read_headers(file, file_len.len())?;
    let mut image = Range {
        start: u64::MAX,
        end: 0,
    };
    let mut entered = false;
    for segment in &segments {
        let &Segment {
            address,
            memory_size,
            ..
        } = segment;
        let does_not_fit = Error::DoesNotFit {
            address,
            size: memory_size,
        };
        let Some(end) = address.checked_add(memory_size) else {
            return Err(does_not_fit);
        };
        let bytes = usize::try_from(memory_size).unwrap_or(usize::MAX);
        if end > HIGH_RAM_START || memory.get_slice(GuestAddress(address), bytes).is_err() {
            return Err(does_not_fit);
        }
        entered |= (address..end).contains(&entry);
        image = image.start.min(address)..image.end.max(end);
    }
    if !entered {
        return Err(Error::Entry(entry));
    }
    let copied: Vec<_> = segments.iter().filter(|segment| !segment.shared).collect();
    let ends = |segment: &&Segment| segment.address + segment.memory_size;
    if let (Some(start), Some(end)) = (
        copied.iter().map(|segment| segment.address).min(),
        copied.iter().map(ends).max(),
    ) {
        memory::make_huge(memory, std::slice::from_ref(&(start..end)));
    }
    for segment in copied {
        read_segment(memory, file, segment)?;
    }
    // Last, since nothing that is mapped can be made huge or copied to.
    for segment in segments.iter().filter(|segment| segment.shared) {
        memory::map_file(
            memory,
            file,
            segment.offset,
            segment.address,
            segment.pages(),
        )
        .map_err(Error::Map)?;
    }
    Ok(Kernel {
        entry,
        end: image.end,
    })
}

/// Reads a segment where it belongs. What it has in memory beyond the file is zero already.
fn read_segment(memory: &GuestRam, file: &File, segment: &Segment) -> Result<(), Error> {
    use std::io::{Seek, SeekFrom};

    let &Segment {
        address,
        offset,
        file_size,
        ..
    } = segment;
    let copy = |source| Error::Copy { address, source };
    let mut file = file;
    file.seek(SeekFrom::Start(offset))
        .map_err(|error| copy(GuestMemoryError::IOError(error)))?;
    // Not larger than what was found to be in memory.
    let size = usize::try_from(file_size).unwrap_or_default();
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, size)
        .map_err(copy)
}

/// Maps the initramfs behind the kernel, away from where the kernel allocates.
pub(super) fn load_initramfs(
    memory: &GuestRam,
    file: &File,
    kernel_end: u64,
) -> Result<Initramfs, InitramfsError> {
    let size = file.metadata().map_err(InitramfsError::Read)?.len();
    let mut magic = [0; NEWC.len()];
    if size >= magic.len() as u64 {
        file.read_exact_at(&mut magic, 0)
            .map_err(InitramfsError::Read)?;
    }
    if magic != *NEWC {
        return Err(InitramfsError::NotCpio);
    }
    // Huge pages and mapped pages do not go together.
    let address = kernel_end.div_ceil(HUGE_PAGE) * HUGE_PAGE;
    let pages = size.div_ceil(PAGE) * PAGE;
    let low = memory.find_region(GuestAddress(0)).map_or(0, |r| r.len());
    let fits = address.checked_add(pages).is_some_and(|end| end <= low);
    let narrow = |value| u32::try_from(value).ok().filter(|_| fits);
    let (Some(start), Some(length)) = (narrow(address), narrow(size)) else {
        return Err(InitramfsError::DoesNotFit { size });
    };
    memory::map_file(memory, file, 0, address, pages)?;
    Ok(Initramfs {
        address: start,
        size: length,
    })
}

#[cfg(test)]
#[path = "kernel/tests.rs"]
mod tests;
