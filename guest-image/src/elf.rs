//! What must be true of the two ELF files of an image: the agent and the kernel.

use object::Endianness;
use object::elf::{
    DT_NEEDED, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD,
    PT_NOTE,
};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

/// The bit of `e_flags`, which x86-64 leaves unused, that [`mark_shareable`] sets. The VMM looks for it under
/// the same name (`vmm/src/boot/kernel.rs`).
pub const SHAREABLE: u32 = 1 << 31;

/// The offset of `e_flags` in the header of a 64-bit file.
const E_FLAGS: usize = 48;
const PAGE: u64 = 4096;

/// Xen's `public/elfnote.h`: the note that carries the 32-bit entry point of the PVH boot protocol.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Why an ELF file is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// The bytes are no ELF file, or a damaged one.
    #[error("not a 64-bit ELF file, or a damaged one")]
    Malformed(#[from] object::read::Error),
    /// Another processor, byte order or kind of file.
    #[error("not an x86-64 program: machine {machine}, type {kind}")]
    NotX86_64 {
        /// `e_machine`.
        machine: u16,
        /// `e_type`.
        kind: u16,
    },
    /// It has an interpreter.
    #[error(
        "dynamically linked (it asks for the interpreter {0}): the guest has no libraries, build it static \
         (`-C target-feature=+crt-static --target x86_64-unknown-linux-gnu`)"
    )]
    Interpreter(String),
    /// It names shared libraries.
    #[error(
        "dynamically linked (it needs shared libraries): the guest has none, build it static \
         (`-C target-feature=+crt-static --target x86_64-unknown-linux-gnu`)"
    )]
    SharedLibraries,
    /// Nothing in it can be run.
    #[error("no executable segment")]
    NoCode,
    /// Between code and read-only data there are pages that the kernel gives to its allocator.
    #[error(
        "a gap between _etext ({text_end:#x}) and __start_rodata ({rodata:#x}), which the kernel frees"
    )]
    Gap {
        /// Where the code ends.
        text_end: u64,
        /// Where the read-only data begins.
        rodata: u64,
    },
    /// A symbol is not in the kernel's table.
    #[error("no symbol {0}")]
    NoSymbol(&'static str),
    /// A kernel without the note that PVH boot needs.
    #[error("no PVH entry point (CONFIG_PVH)")]
    NoPvhEntry,
}

/// Succeeds if `bytes` are a static x86-64 program, position-independent or not.
///
/// # Errors
///
/// Says what they are instead.
pub fn check_static_program(bytes: &[u8]) -> Result<(), ElfError> {
    let (header, endian) = header(bytes)?;
    let mut code = false;
    for segment in header.program_headers(endian, bytes)? {
        match segment.p_type(endian) {
            PT_INTERP => {
                let name = segment.interpreter(endian, bytes)?.unwrap_or_default();
                return Err(ElfError::Interpreter(
                    String::from_utf8_lossy(name).into_owned(),
                ));
            }
            PT_DYNAMIC => {
                let dynamic = segment.dynamic(endian, bytes)?.unwrap_or_default();
                if dynamic.iter().any(|d| d.tag32(endian) == Some(DT_NEEDED)) {
                    return Err(ElfError::SharedLibraries);
                }
            }
            PT_LOAD => code |= segment.p_flags(endian) & PF_X != 0,
            _ => {}
        }
    }
    if code { Ok(()) } else { Err(ElfError::NoCode) }
}

/// The entry point of the PVH boot protocol of the kernel in `bytes`.
///
/// # Errors
///
/// The bytes are no x86-64 kernel, or it has no such entry.
pub fn pvh_entry(bytes: &[u8]) -> Result<u64, ElfError> {
    let (header, endian) = header(bytes)?;
    for segment in header.program_headers(endian, bytes)? {
        if segment.p_type(endian) != PT_NOTE {
            continue;
        }
        let Some(mut notes) = segment.notes(endian, bytes)? else {
            continue;
        };
        while let Some(note) = notes.next()? {
            if note.name() != b"Xen" || note.n_type(endian) != XEN_ELFNOTE_PHYS32_ENTRY {
                continue;
            }
            // The kernel writes a native word: 8 bytes, or 4 in older ones.
            let desc = note.desc();
            let entry = <[u8; 8]>::try_from(desc)
                .map(u64::from_le_bytes)
                .or_else(|_| <[u8; 4]>::try_from(desc).map(|d| u64::from(u32::from_le_bytes(d))));
            return entry.map_err(|_| ElfError::NoPvhEntry);
        }
    }
    Err(ElfError::NoPvhEntry)
}

/// Marks a kernel whose read-only segment the VMM may map from the file instead of copying it, so that every guest
/// shares it: each page of it is code or data for as long as the guest lives.
///
/// The kernel frees the pages between its code and its read-only data and uses them for anything, also for buffers that
/// another process reads; `symbols`, its System.map, has to show that there are none.
///
/// # Errors
///
/// The bytes are no x86-64 kernel, or there are such pages.
pub fn mark_shareable(bytes: &mut [u8], symbols: &str) -> Result<(), ElfError> {
    let address = |wanted: &'static str| {
        symbols
            .lines()
            .find_map(|line| {
                let mut words = line.split(' ');
                let address = u64::from_str_radix(words.next()?, 16).ok()?;
                (words.nth(1)? == wanted).then_some(address)
            })
            .ok_or(ElfError::NoSymbol(wanted))
    };
    let (text_end, rodata) = (address("_etext")?, address("__start_rodata")?);
    if text_end.div_ceil(PAGE) < rodata / PAGE {
        return Err(ElfError::Gap { text_end, rodata });
    }
    let (file, endian) = header(bytes)?;
    let flags = file.e_flags(endian) | SHAREABLE;
    // The header was parsed, so it is there.
    if let Some(field) = bytes.get_mut(E_FLAGS..E_FLAGS + 4) {
        field.copy_from_slice(&flags.to_le_bytes());
    }
    Ok(())
}

fn header(bytes: &[u8]) -> Result<(&FileHeader64<Endianness>, Endianness), ElfError> {
    let header = FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let (machine, kind) = (header.e_machine(endian), header.e_type(endian));
    let little = endian == Endianness::Little;
    if !little || machine != EM_X86_64 || !matches!(kind, ET_EXEC | ET_DYN) {
        return Err(ElfError::NotX86_64 { machine, kind });
    }
    Ok((header, endian))
}

#[cfg(test)]
pub(crate) mod tests;
