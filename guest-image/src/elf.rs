//! What must be true of the two ELF files of an image: the agent and the kernel.

use object::Endianness;
use object::elf::{
    DT_NEEDED, EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD,
    PT_NOTE,
};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};

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
