//! Where everything is in the guest's physical address space. The only module that knows.
//!
//! ```text
//!   0x0000_0000  GDT, zero page, page tables, command line   (boot structures, one use)
//!   0x0009_fc00  MP table, up to 1 KiB
//!   0x000a_0000  hole of the PC
//!   0x0010_0000  RAM; the kernel where its program headers say, the initramfs behind it
//!   0xc000_0000  hole for devices: virtio-mmio pages, IOAPIC, local APICs
//!   1 << 32      the rest of RAM
//!   above it     RAM that is added while the VM runs, from a multiple of 2 GiB on
//! ```

use std::ops::Range;

use cloister_virtio::device::GuestRam;
use cloister_virtio::mem;
use cloister_virtio::mmio::PAGE_SIZE as MMIO_PAGE_SIZE;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::PAGE;

/// RAM below this address is in one piece; what does not fit continues at [`HIGH_RAM_START`].
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Where RAM continues above the hole.
pub const HIGH_RAM_START: u64 = 1 << 32;

/// The global descriptor table of the boot protocol.
pub const GDT: u64 = 0x1000;
/// The `boot_params` of the boot protocol.
pub const ZERO_PAGE: u64 = 0x2000;
/// The top-level page table of the boot protocol.
pub const PML4: u64 = 0x3000;
/// The one second-level page table.
pub const PDPT: u64 = 0x4000;
/// The one third-level page table; maps the first GiB.
pub const PAGE_DIRECTORY: u64 = 0x5000;
/// The kernel command line, in the same page as the descriptor table: a page less to allocate.
pub const CMDLINE: u64 = 0x1800;
/// The longest command line of an x86-64 kernel with its terminating zero (COMMAND_LINE_SIZE).
pub const CMDLINE_SIZE: usize = 2048;
/// The MP table: the kernel looks into the last KiB of base memory (MultiProcessor Specification
/// 1.4, chapter 4).
pub const MP_TABLE: u64 = 0x9_fc00;
/// The end of the MP table's room, and of base memory.
pub const MP_TABLE_END: u64 = 0xa_0000;
/// Where RAM continues after the hole of the PC.
pub const EXTENDED_RAM_START: u64 = 0x10_0000;

/// The first virtio-mmio page.
pub const MMIO_START: u64 = 0xd000_0000;
/// The IOAPIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// The length of the IOAPIC's registers.
pub const IOAPIC_SIZE: u64 = 0x20;
/// The local APICs, all at one address.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Where KVM may put the task state segment that Intel processors without unrestricted guest mode
/// need; three pages.
pub const KVM_TSS: usize = 0xfffb_d000;

/// The interrupt line of the serial port.
pub const SERIAL_LINE: u32 = 4;
/// The interrupt line of the first device slot.
pub const FIRST_SLOT_LINE: u32 = 5;

/// What a kernel has for each of its pages: `struct page`.
const PAGE_DESCRIPTOR: u64 = 64;
/// What a kernel allocates at the end of RAM while it starts, beside page descriptors.
const EARLY_ALLOCATIONS: u64 = 1 << 20;
/// A part of RAM from which a kernel that has started serves its first allocations. The next 2 MiB as a huge page would
/// save 3.7 million instructions of a start and cost 0.5 MiB in every sandbox; the lowest 2 MiB of RAM, 2.6 million and
/// 0.7 MiB.
const FIRST_ALLOCATIONS: Range<u64> = 8 << 20..12 << 20;

/// The parts of RAM that a guest uses densely from its start, beside the kernel's image: found by
/// looking at where guests fault.
#[must_use]
pub fn dense(memory: &GuestRam) -> Vec<Range<u64>> {
    let mut ranges = vec![FIRST_ALLOCATIONS];
    let end = |region: &_| GuestMemoryRegion::start_addr(region).0 + GuestMemoryRegion::len(region);
    if let Some(end) = memory.iter().map(end).max() {
        let descriptors = end / PAGE * PAGE_DESCRIPTOR;
        ranges.push(end.saturating_sub(descriptors + EARLY_ALLOCATIONS)..end);
    }
    ranges
}

/// The largest sections in which an x86-64 kernel takes memory, and where they begin.
const LARGE_SECTION: u64 = 2 << 30;
/// The sections that it goes by if it has booted with less memory than [`MUCH_MEMORY`]
/// (arch/x86/mm/init_64.c: `probe_memory_block_size`).
const SMALL_SECTION: u64 = 128 << 20;
const MUCH_MEMORY: u64 = 64 << 30;

/// Where RAM is that is added to `boot` bytes while the VM runs, up to `max` bytes in all; `None` if none
/// is.
#[must_use]
pub fn added_ram(boot: u64, max: u64) -> Option<mem::Config> {
    let more = max.checked_sub(boot).filter(|&more| more > 0)?;
    let end = if boot > LOW_RAM_END {
        HIGH_RAM_START + (boot - LOW_RAM_END)
    } else {
        boot
    };
    let section = if end < MUCH_MEMORY {
        SMALL_SECTION
    } else {
        LARGE_SECTION
    };
    Some(mem::Config {
        addr: end.max(HIGH_RAM_START).next_multiple_of(LARGE_SECTION),
        region_size: more.next_multiple_of(section),
        section,
    })
}

/// I/O ports.
pub mod port {
    /// The first of the eight ports of the serial port.
    pub const SERIAL: u16 = 0x3f8;
    /// The last of them.
    pub const SERIAL_END: u16 = 0x3ff;
    /// Command and status of the keyboard controller, here for the reset it can pulse.
    pub const I8042: u16 = 0x64;
    /// Where the guest's init tells the VMM how it is doing; one byte.
    pub const CONTROL: u16 = 0x5e0;
}

/// A place for a device. Every VM has all of them, occupied or not: a VM that is restored from
/// saved state finds each device where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The socket device.
    Vsock,
    /// The entropy device.
    Rng,
    /// The memory balloon.
    Balloon,
    /// The memory device.
    Mem,
    /// The shared file system.
    Fs,
    /// One of four network devices. They are filled and emptied while the VM runs; an empty one is
    /// announced to the guest all the same, and has a page without a device.
    Net(u8),
    /// One of eight block devices.
    Block(u8),
}

/// Network slots.
const NETS: u8 = cloister_vmm_api::NET_SLOTS;
/// Block slots.
const BLOCKS: u8 = 8;
/// All slots.
pub const SLOTS: usize = 5 + NETS as usize + BLOCKS as usize;

impl Slot {
    /// The network slots, in order.
    pub fn nets() -> impl Iterator<Item = Self> {
        (0..NETS).map(Self::Net)
    }

    /// The position of the slot.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Vsock => 0,
            Self::Rng => 1,
            Self::Balloon => 2,
            Self::Mem => 3,
            Self::Fs => 4,
            Self::Net(n) => 5 + (n % NETS) as usize,
            Self::Block(n) => 5 + NETS as usize + (n % BLOCKS) as usize,
        }
    }

    /// The address of its register page.
    #[must_use]
    pub const fn address(self) -> u64 {
        MMIO_START + self.index() as u64 * MMIO_PAGE_SIZE
    }

    /// What stands for N in `virtio-mmio.N`, the name of its platform device in a Linux guest.
    #[must_use]
    pub const fn platform_id(self) -> usize {
        self.index()
    }

    /// Its interrupt line.
    #[must_use]
    pub const fn line(self) -> u32 {
        // At most SLOTS.
        #[expect(clippy::cast_possible_truncation, reason = "an index is below SLOTS")]
        let index = self.index() as u32;
        FIRST_SLOT_LINE + index
    }
}

/// The slot index and the offset in its page that `address` stands for.
#[must_use]
pub fn slot_at(address: u64) -> Option<(usize, u64)> {
    let offset = address.checked_sub(MMIO_START)?;
    let index = usize::try_from(offset / MMIO_PAGE_SIZE).ok()?;
    (index < SLOTS).then_some((index, offset % MMIO_PAGE_SIZE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_their_own_page_and_line() {
        let mut slots = vec![Slot::Vsock, Slot::Rng, Slot::Balloon, Slot::Mem, Slot::Fs];
        slots.extend(Slot::nets());
        slots.extend((0..BLOCKS).map(Slot::Block));
        assert_eq!(slots.len(), SLOTS);
        for (index, slot) in slots.iter().enumerate() {
            assert_eq!(slot.index(), index);
            assert_eq!(slot_at(slot.address() + 0xfff), Some((index, 0xfff)));
            assert!(slot.line() < crate::ioapic::PINS, "{slot:?}");
        }
        assert_eq!(slot_at(MMIO_START - 1), None);
        assert_eq!(slot_at(MMIO_START + SLOTS as u64 * 0x1000), None);
    }

    #[test]
    fn added_ram_is_in_whole_sections_above_all_other() {
        const MIB: u64 = 1 << 20;
        assert_eq!(added_ram(128 * MIB, 128 * MIB), None);
        let at = |boot: u64, max: u64| {
            let config = added_ram(boot << 20, max << 20).unwrap();
            (
                config.addr >> 30,
                config.region_size >> 20,
                config.section >> 20,
            )
        };
        assert_eq!(at(128, 129), (4, 128, 128));
        assert_eq!(at(3072, 8192), (4, 5120, 128));
        assert_eq!(at(3073, 8192), (6, 5120, 128));
        assert_eq!(at(70 << 10, 71 << 10), (72, 2048, 2048));
    }

    #[test]
    fn a_restored_guest_depends_on_these() {
        assert_eq!(Slot::Vsock.address(), 0xd000_0000);
        assert_eq!(Slot::Vsock.line(), 5);
        assert_eq!(Slot::Mem.address(), 0xd000_3000);
        assert_eq!(Slot::Mem.line(), 8);
        let id = usize::from(cloister_vmm_api::MEM_PLATFORM_ID);
        assert_eq!(Slot::Mem.platform_id(), id);
        assert_eq!(Slot::Fs.address(), 0xd000_4000);
        assert_eq!(Slot::Fs.line(), 9);
        assert_eq!(Slot::Net(0).address(), 0xd000_5000);
        assert_eq!(Slot::Net(0).line(), 10);
        assert_eq!(Slot::Block(7).line(), 21);
        let id = usize::from(cloister_vmm_api::NET_PLATFORM_ID);
        assert_eq!(Slot::Net(0).platform_id(), id);
        assert_eq!(Slot::Net(3).platform_id(), id + 3);
    }
}
