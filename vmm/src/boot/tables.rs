//! Descriptor and page tables of the 64-bit boot protocol, and the registers that go with them.

use cloister_virtio::device::GuestRam;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::Error;
use crate::layout::{GDT, PAGE_DIRECTORY, PDPT, PML4, ZERO_PAGE};

/// Documentation/arch/x86/boot.rst: `__BOOT_CS` is 0x10 and `__BOOT_DS` is 0x18.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

/// Flat, 64-bit, execute and read, accessed.
const CODE: u64 = 0x00af_9b00_0000_ffff;
/// Flat, read and write, accessed.
const DATA: u64 = 0x00cf_9300_0000_ffff;
const DESCRIPTORS: [u64; 4] = [0, 0, CODE, DATA];

const PRESENT_WRITABLE: u64 = 3;
/// A 2 MiB page.
const LARGE: u64 = 1 << 7;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set; everything else, interrupts above all, is off.
const RFLAGS: u64 = 2;

/// Writes the tables: flat segments, and the first GiB mapped to itself.
///
/// # Errors
/// If guest memory ends before them.
pub fn write(memory: &GuestRam) -> Result<(), Error> {
    let put = |structure, address, table: &[u64]| {
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        memory
            .write_slice(&bytes, GuestAddress(address))
            .map_err(|source| Error::Write { structure, source })
    };
    put("GDT", GDT, &DESCRIPTORS)?;
    put("page table", PML4, &[PDPT | PRESENT_WRITABLE])?;
    put("page table", PDPT, &[PAGE_DIRECTORY | PRESENT_WRITABLE])?;
    let directory: Vec<u64> = (0..512)
        .map(|i| i << 21 | LARGE | PRESENT_WRITABLE)
        .collect();
    put("page directory", PAGE_DIRECTORY, &directory)
}

/// The registers of a CPU at the kernel's 64-bit entry point.
#[derive(Debug, Clone, Copy)]
pub struct EntryState {
    entry: u64,
}

/// The registers for a start at `entry`.
#[must_use]
pub fn entry_state(entry: u64) -> EntryState {
    EntryState { entry }
}

impl EntryState {
    /// The general registers.
    #[must_use]
    pub fn regs(&self) -> kvm_regs {
        kvm_regs {
            rip: self.entry,
            rsi: ZERO_PAGE,
            rflags: RFLAGS,
            ..Default::default()
        }
    }

    /// Puts the CPU into long mode. `sregs` are those after reset: the rest stays.
    pub fn apply(&self, sregs: &mut kvm_sregs) {
        let data = segment(BOOT_DS, DATA);
        sregs.cs = segment(BOOT_CS, CODE);
        for register in [
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
            &mut sregs.ss,
        ] {
            *register = data;
        }
        sregs.gdt.base = GDT;
        sregs.gdt.limit = 4 * 8 - 1;
        sregs.cr3 = PML4;
        sregs.cr4 |= CR4_PAE;
        sregs.cr0 = CR0_PG | CR0_ET | CR0_PE;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
}

/// The hidden part of a segment register that has loaded `descriptor`: Intel SDM volume 3, 3.4.5.
fn segment(selector: u16, descriptor: u64) -> kvm_segment {
    let bit = |n: u32| u8::from(descriptor >> n & 1 == 1);
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: (descriptor >> 40).to_le_bytes()[0] & 0xf,
        present: bit(47),
        dpl: 0,
        db: bit(54),
        s: bit(44),
        l: bit(53),
        g: bit(55),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_flat_and_of_their_kind() {
        let code = segment(BOOT_CS, CODE);
        assert_eq!((code.type_, code.l, code.db, code.s), (0xb, 1, 0, 1));
        let data = segment(BOOT_DS, DATA);
        assert_eq!((data.type_, data.l, data.db, data.g), (3, 0, 1, 1));
    }

    #[test]
    fn the_first_gib_is_mapped_to_itself() {
        let memory = crate::memory::create(1 << 20).unwrap();
        write(&memory).unwrap();
        let entry = |table: u64, index: u64| {
            memory
                .read_obj::<u64>(GuestAddress(table + index * 8))
                .unwrap()
        };
        assert_eq!(entry(PML4, 0), PDPT | 3);
        assert_eq!(entry(PDPT, 0), PAGE_DIRECTORY | 3);
        assert_eq!(entry(PAGE_DIRECTORY, 511), 511 << 21 | 0x83);
        assert_eq!(entry(GDT, 2), CODE);
    }
}
