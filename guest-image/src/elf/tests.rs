use super::*;
use object::elf::{EM_AARCH64, ET_CORE};

/// A hand-made ELF file: a header, and one program header per segment with its contents.
pub(crate) fn elf(machine: u16, kind: u16, segments: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&machine.to_le_bytes());
    bytes.extend_from_slice(&1u32.to_le_bytes());
    bytes.extend_from_slice(&0u64.to_le_bytes()); // e_entry
    bytes.extend_from_slice(&64u64.to_le_bytes()); // e_phoff
    bytes.extend_from_slice(&0u64.to_le_bytes()); // e_shoff
    bytes.extend_from_slice(&0u32.to_le_bytes()); // e_flags
    let count = u16::try_from(segments.len()).unwrap();
    for half in [64, 56, count, 64, 0, 0] {
        bytes.extend_from_slice(&half.to_le_bytes());
    }
    let mut offset = 64 + 56 * segments.len() as u64;
    for (p_type, p_flags, contents) in segments {
        bytes.extend_from_slice(&p_type.to_le_bytes());
        bytes.extend_from_slice(&p_flags.to_le_bytes());
        let size = contents.len() as u64;
        for word in [offset, 0, 0, size, size, 4] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        offset += size;
    }
    for (_, _, contents) in segments {
        bytes.extend_from_slice(contents);
    }
    bytes
}

/// The smallest file that passes for a static agent.
pub(crate) fn static_program() -> Vec<u8> {
    elf(EM_X86_64, ET_EXEC, &[(PT_LOAD, PF_X, b"\xf4")])
}

fn note(name: &[u8], n_type: u32, desc: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
    for word in [len(name) + 1, len(desc), n_type] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    for part in [[name, b"\0"].concat(), desc.to_vec()] {
        bytes.extend_from_slice(&part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn dynamic(tags: &[u64]) -> Vec<u8> {
    tags.iter()
        .chain([&0])
        .flat_map(|tag| [tag.to_le_bytes(), [0; 8]])
        .flatten()
        .collect()
}

#[test]
fn static_programs_pass() {
    check_static_program(&static_program()).unwrap();
    // Static and position-independent: a dynamic section with relocations, without libraries.
    let pie = elf(
        EM_X86_64,
        ET_DYN,
        &[(PT_LOAD, PF_X, b"\xf4"), (PT_DYNAMIC, 0, &dynamic(&[7, 8]))],
    );
    check_static_program(&pie).unwrap();
}

#[test]
fn a_dynamic_program_is_refused_with_its_interpreter() {
    let bytes = elf(
        EM_X86_64,
        ET_DYN,
        &[(PT_LOAD, PF_X, b"\xf4"), (PT_INTERP, 0, b"/lib64/ld.so\0")],
    );
    let message = check_static_program(&bytes).unwrap_err().to_string();
    assert!(message.contains("interpreter /lib64/ld.so)"), "{message}");
    assert!(message.contains("+crt-static"), "{message}");
}

#[test]
fn this_test_program_is_dynamic_and_refused() {
    let bytes = std::fs::read("/proc/self/exe").unwrap();
    assert!(matches!(
        check_static_program(&bytes),
        Err(ElfError::Interpreter(_))
    ));
}

#[test]
fn needed_libraries_are_refused_without_an_interpreter_too() {
    let bytes = elf(
        EM_X86_64,
        ET_DYN,
        &[
            (PT_LOAD, PF_X, b"\xf4"),
            (PT_DYNAMIC, 0, &dynamic(&[u64::from(DT_NEEDED)])),
        ],
    );
    assert!(matches!(
        check_static_program(&bytes),
        Err(ElfError::SharedLibraries)
    ));
}

#[test]
fn other_files_are_refused() {
    let load: &[(u32, u32, &[u8])] = &[(PT_LOAD, PF_X, b"\xf4")];
    assert!(matches!(
        check_static_program(&elf(EM_AARCH64, ET_EXEC, load)),
        Err(ElfError::NotX86_64 {
            machine: 183,
            kind: 2
        })
    ));
    assert!(matches!(
        check_static_program(&elf(EM_X86_64, ET_CORE, load)),
        Err(ElfError::NotX86_64 {
            machine: 62,
            kind: 4
        })
    ));
    let data = elf(EM_X86_64, ET_EXEC, &[(PT_LOAD, 0, b"data")]);
    assert!(matches!(check_static_program(&data), Err(ElfError::NoCode)));
    for bytes in [&b"#!/bin/sh\n"[..], b"", &static_program()[..70]] {
        assert!(
            matches!(check_static_program(bytes), Err(ElfError::Malformed(_))),
            "{bytes:?}"
        );
    }
}

#[test]
fn the_pvh_entry_is_found_among_other_notes() {
    let notes = [
        note(b"GNU", 3, b"build id here"),
        note(b"Xen", 6, b"linux"),
        note(
            b"Xen",
            XEN_ELFNOTE_PHYS32_ENTRY,
            &0x0100_0620u64.to_le_bytes(),
        ),
    ]
    .concat();
    let bytes = elf(
        EM_X86_64,
        ET_EXEC,
        &[(PT_LOAD, PF_X, b"\xf4"), (PT_NOTE, 0, &notes)],
    );
    assert_eq!(pvh_entry(&bytes).unwrap(), 0x0100_0620);
}

#[test]
fn a_kernel_without_a_pvh_entry_is_refused() {
    assert!(matches!(
        pvh_entry(&static_program()),
        Err(ElfError::NoPvhEntry)
    ));
    let notes = note(b"Xen", XEN_ELFNOTE_PHYS32_ENTRY, b"odd");
    let bytes = elf(EM_X86_64, ET_EXEC, &[(PT_NOTE, 0, &notes)]);
    assert!(matches!(pvh_entry(&bytes), Err(ElfError::NoPvhEntry)));
}

#[test]
fn a_kernel_without_a_gap_in_its_read_only_part_is_marked() {
    let mut bytes = static_program();
    let symbols =
        "ffffffff81000000 T _text\nffffffff81a00000 T _etext\nffffffff81a00000 D __start_rodata\n";
    mark_shareable(&mut bytes, symbols).unwrap();
    assert_eq!(bytes[48..52], SHAREABLE.to_le_bytes());
    assert_eq!(bytes[52..], static_program()[52..]);
}

#[test]
fn a_kernel_that_would_free_pages_of_it_is_refused() {
    let mut bytes = static_program();
    let symbols = "ffffffff819ff001 T _etext\nffffffff81a01000 D __start_rodata\n";
    let refused = mark_shareable(&mut bytes, symbols);
    assert!(matches!(refused, Err(ElfError::Gap { .. })), "{refused:?}");
    let refused = mark_shareable(&mut bytes, "ffffffff81a00000 T _etext\n");
    assert!(matches!(refused, Err(ElfError::NoSymbol("__start_rodata"))));
    assert_eq!(bytes, static_program());
}
