use std::io::Write;

use super::*;

const ADDRESS: u64 = 0x10_0000;
const READ_EXECUTE: u32 = 5;
const READ_WRITE: u32 = 6;

/// A program header and the contents of its segment, which begin with a page of the file.
struct Part {
    flags: u32,
    address: u64,
    contents: Vec<u8>,
    memory_size: u64,
}

impl Part {
    fn new(flags: u32, address: u64, contents: Vec<u8>) -> Self {
        Self {
            flags,
            address,
            memory_size: contents.len() as u64,
            contents,
        }
    }
}

fn kernel(e_flags: u32, parts: &[Part]) -> Vec<u8> {
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend_from_slice(&2_u16.to_le_bytes());
    elf.extend_from_slice(&elf::EM_X86_64.to_le_bytes());
    elf.extend_from_slice(&1_u32.to_le_bytes());
    for word in [ADDRESS, 64, 0] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(&e_flags.to_le_bytes());
    let count = u16::try_from(parts.len()).unwrap();
    for half in [64, 56, count, 0, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    let mut offset = PAGE;
    for part in parts {
        elf.extend_from_slice(&elf::PT_LOAD.to_le_bytes());
        elf.extend_from_slice(&part.flags.to_le_bytes());
        let size = part.contents.len() as u64;
        for word in [offset, 0, part.address, size, part.memory_size, PAGE] {
            elf.extend_from_slice(&word.to_le_bytes());
        }
        offset += size.div_ceil(PAGE) * PAGE;
    }
    for part in parts {
        elf.resize(elf.len().next_multiple_of(4096), 0);
        elf.extend_from_slice(&part.contents);
    }
    elf.resize(elf.len().next_multiple_of(4096), 0);
    elf
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn ram() -> GuestRam {
    memory::create(4 << 20).unwrap()
}

/// What the memory file, which the file server sees, has at an address.
fn in_memory_file(memory: &GuestRam, address: u64) -> u8 {
    let region = memory.find_region(GuestAddress(address)).unwrap();
    let mut byte = [0];
    let file = region.file_offset().unwrap();
    file.file()
        .read_exact_at(&mut byte, file.start() + address)
        .unwrap();
    byte[0]
}

fn in_memory(memory: &GuestRam, address: u64) -> u8 {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn two_parts() -> Vec<Part> {
    vec![
        Part::new(READ_EXECUTE, ADDRESS, vec![0xa1; 5000]),
        Part::new(READ_WRITE, ADDRESS + 8192, vec![0xb2; 100]),
    ]
}

#[test]
fn a_kernel_that_promises_nothing_is_copied() {
    let memory = ram();
    let loaded = load(&memory, &file(&kernel(0, &two_parts()))).unwrap();
    assert_eq!((loaded.entry, loaded.end), (ADDRESS, ADDRESS + 8192 + 100));
    for (address, byte) in [
        (ADDRESS, 0xa1),
        (ADDRESS + 4999, 0xa1),
        (ADDRESS + 8192, 0xb2),
    ] {
        assert_eq!(in_memory(&memory, address), byte, "{address:#x}");
        assert_eq!(in_memory_file(&memory, address), byte, "{address:#x}");
    }
}

#[test]
fn what_a_kernel_keeps_and_never_writes_is_mapped() {
    let memory = ram();
    let source = file(&kernel(SHAREABLE, &two_parts()));
    load(&memory, &source).unwrap();
    assert_eq!(in_memory(&memory, ADDRESS + 4999), 0xa1);
    assert_eq!(in_memory_file(&memory, ADDRESS + 4999), 0);
    assert_eq!(in_memory(&memory, ADDRESS + 8192), 0xb2);
    assert_eq!(in_memory_file(&memory, ADDRESS + 8192), 0xb2);
    // What this guest writes there is its own.
    memory.write_obj(7_u8, GuestAddress(ADDRESS)).unwrap();
    let other = ram();
    load(&other, &source).unwrap();
    assert_eq!(in_memory(&memory, ADDRESS), 7);
    assert_eq!(in_memory(&other, ADDRESS), 0xa1);
}

#[test]
fn a_segment_that_is_not_made_of_pages_of_the_file_is_copied() {
    let mut parts = two_parts();
    // Zeroed beyond the file.
    parts[0].memory_size += 1;
    let memory = ram();
    load(&memory, &file(&kernel(SHAREABLE, &parts))).unwrap();
    assert_eq!(in_memory_file(&memory, ADDRESS), 0xa1);
    // The file ends within the last page.
    let parts = [Part::new(READ_EXECUTE, ADDRESS, vec![0xa1; 5000])];
    let mut bytes = kernel(SHAREABLE, &parts);
    bytes.truncate(4096 + 5000);
    let memory = ram();
    load(&memory, &file(&bytes)).unwrap();
    assert_eq!(in_memory_file(&memory, ADDRESS + 4999), 0xa1);
    // It does not begin with a page.
    let parts = [Part::new(READ_EXECUTE, ADDRESS - 16, vec![0xa1; 5000])];
    let refused = load(&ram(), &file(&kernel(SHAREABLE, &parts)));
    assert!(matches!(refused, Err(Error::ProgramHeader { .. })));
    let parts = [Part::new(READ_EXECUTE, ADDRESS + 16, vec![0xa1; 5000])];
    let mut bytes = kernel(SHAREABLE, &parts);
    bytes[24..32].copy_from_slice(&(ADDRESS + 16).to_le_bytes());
    let memory = ram();
    load(&memory, &file(&bytes)).unwrap();
    assert_eq!(in_memory_file(&memory, ADDRESS + 16), 0xa1);
}

#[test]
fn headers_that_make_no_sense_are_refused() {
    let refused = |bytes: &[u8]| load(&ram(), &file(bytes)).unwrap_err().to_string();
    let good = kernel(0, &two_parts());
    assert_eq!(refused(&good[..63]), refused(b"not a kernel"));
    let with = |offset: usize, value: u64| {
        let mut bytes = good.clone();
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    let header = 64;
    for (bytes, message) in [
        (
            with(24, ADDRESS + (1 << 20)),
            "entry point 0x200000 is in no segment",
        ),
        (with(32, 1 << 40), "cannot read the program headers"),
        (
            with(header + 8, u64::MAX),
            "program header 0: past the end of the file (truncated?)",
        ),
        (
            with(header + 24, 0),
            "program header 0: below 1 MiB, where the boot structures are",
        ),
        (
            with(header + 40, 1),
            "program header 0: larger in the file than in memory",
        ),
        (
            with(header + 40, 1 << 30),
            "segment at 0x100000, 1073741824 bytes, is not in guest memory",
        ),
        (
            with(header + 24, u64::MAX - 100),
            "segment at 0xffffffffffffff9b, 5000 bytes, is not in guest memory",
        ),
    ] {
        assert_eq!(refused(&bytes), message);
    }
}
