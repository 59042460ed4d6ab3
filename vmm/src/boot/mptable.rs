//! The MP table: how a kernel without ACPI finds its CPUs and its IOAPIC.
//!
//! MultiProcessor Specification 1.4, chapter 4. Also there for one CPU: without it the kernel does
//! not look for an IOAPIC, and then has no interrupt lines.

use cloister_virtio::device::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::Error;
use crate::ioapic;
use crate::layout::{IOAPIC, LOCAL_APIC, MP_TABLE, MP_TABLE_END};

const FLOATING_POINTER_SIZE: usize = 16;
const HEADER_SIZE: usize = 44;
const SPEC_REVISION: u8 = 4;

const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

const PROCESSOR_ENABLED: u8 = 1;
const PROCESSOR_BOOTSTRAP: u8 = 2;
/// A local APIC on the chip, and an FPU.
const PROCESSOR_FEATURES: u32 = 1 << 9 | 1;
/// An integrated local APIC.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const IO_APIC_ENABLED: u8 = 1;

const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
const ALL_LOCAL_APICS: u8 = 0xff;

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, b| sum.wrapping_sub(*b))
}

/// The table for `vcpus` CPUs, with its floating pointer in front.
fn table(vcpus: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut count = 0_u16;
    let mut add = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..vcpus {
        let bootstrap = if id == 0 { PROCESSOR_BOOTSTRAP } else { 0 };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[
            PROCESSOR,
            id,
            LOCAL_APIC_VERSION,
            PROCESSOR_ENABLED | bootstrap,
        ]);
        entry[8..12].copy_from_slice(&PROCESSOR_FEATURES.to_le_bytes());
        add(&entry);
    }
    add(&[BUS, 0, b'I', b'S', b'A', b' ', b' ', b' ']);
    let address = u32::try_from(IOAPIC).unwrap_or_default().to_le_bytes();
    let mut io_apic = [
        IO_APIC,
        ioapic::ID,
        IO_APIC_VERSION,
        IO_APIC_ENABLED,
        0,
        0,
        0,
        0,
    ];
    io_apic[4..].copy_from_slice(&address);
    add(&io_apic);
    // Every line of the one bus goes to the pin of the same number; polarity and trigger conform
    // to the bus: active high, edge.
    for pin in (0..ioapic::PINS).filter_map(|pin| u8::try_from(pin).ok()) {
        add(&[IO_INTERRUPT, INT, 0, 0, 0, pin, ioapic::ID, pin]);
    }
    add(&[LOCAL_INTERRUPT, EXT_INT, 0, 0, 0, 0, 0, 0]);
    add(&[LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, ALL_LOCAL_APICS, 1]);

    let length = HEADER_SIZE + entries.len();
    let mut header = Vec::with_capacity(length);
    header.extend_from_slice(b"PCMP");
    header.extend_from_slice(&u16::try_from(length).unwrap_or_default().to_le_bytes());
    header.extend_from_slice(&[SPEC_REVISION, 0]);
    header.extend_from_slice(b"CLOISTER");
    header.extend_from_slice(b"MICROVM     ");
    header.extend_from_slice(&[0; 6]);
    header.extend_from_slice(&count.to_le_bytes());
    header.extend_from_slice(&LOCAL_APIC.to_le_bytes());
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&entries);
    header[7] = checksum(&header);

    let configuration = MP_TABLE + FLOATING_POINTER_SIZE as u64;
    let mut pointer = [0; FLOATING_POINTER_SIZE];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(
        &u32::try_from(configuration)
            .unwrap_or_default()
            .to_le_bytes(),
    );
    pointer[8] = 1;
    pointer[9] = SPEC_REVISION;
    pointer[10] = checksum(&pointer);

    let mut all = pointer.to_vec();
    all.extend_from_slice(&header);
    all
}

/// Writes the table.
pub(super) fn write(memory: &GuestRam, vcpus: u8) -> Result<(), Error> {
    let table = table(vcpus);
    debug_assert!(table.len() as u64 <= MP_TABLE_END - MP_TABLE);
    memory
        .write_slice(&table, GuestAddress(MP_TABLE))
        .map_err(|source| Error::Write {
            structure: "MP table",
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_table_has_room_and_sums_to_zero() {
        for vcpus in [1, 32] {
            let table = table(vcpus);
            assert!(
                table.len() as u64 <= MP_TABLE_END - MP_TABLE,
                "{}",
                table.len()
            );
            let (pointer, configuration) = table.split_at(FLOATING_POINTER_SIZE);
            assert_eq!(checksum(pointer), 0);
            assert_eq!(checksum(configuration), 0);
            let length = u16::from_le_bytes([configuration[4], configuration[5]]);
            assert_eq!(usize::from(length), configuration.len());
            let count = u16::from_le_bytes([configuration[34], configuration[35]]);
            assert_eq!(count, u16::from(vcpus) + 1 + 1 + 24 + 2);
        }
    }
}
