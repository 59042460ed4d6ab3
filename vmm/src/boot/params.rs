//! The zero page: `boot_params` of the Linux boot protocol.

use cloister_virtio::device::GuestRam;
use linux_loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::Error;
use super::kernel::Initramfs;
use crate::layout::{CMDLINE, EXTENDED_RAM_START, MP_TABLE, MP_TABLE_END, ZERO_PAGE};

/// Documentation/arch/x86/boot.rst: "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// Protocol 2.12, the first with a 64-bit entry.
const PROTOCOL: u16 = 0x020c;
/// "Undefined": no loader has an identifier for us.
const LOADER: u8 = 0xff;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// The memory map: start, length, type.
fn memory_map(memory: &GuestRam) -> Vec<(u64, u64, u32)> {
    let mut map = vec![
        (0, MP_TABLE, E820_RAM),
        (MP_TABLE, MP_TABLE_END - MP_TABLE, E820_RESERVED),
    ];
    for region in memory.iter() {
        let end = region.start_addr().0 + region.len();
        let start = region.start_addr().0.max(EXTENDED_RAM_START);
        map.push((start, end - start, E820_RAM));
    }
    map
}

/// Writes the zero page.
pub(super) fn write(
    memory: &GuestRam,
    initramfs: Initramfs,
    cmdline_size: u32,
) -> Result<(), Error> {
    let mut params = boot_params::default();
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.version = PROTOCOL;
    params.hdr.type_of_loader = LOADER;
    // Below 1 MiB.
    params.hdr.cmd_line_ptr = u32::try_from(CMDLINE).unwrap_or_default();
    params.hdr.cmdline_size = cmdline_size;
    params.hdr.ramdisk_image = initramfs.address;
    params.hdr.ramdisk_size = initramfs.size;
    let map = memory_map(memory);
    let mut table = params.e820_table;
    for (entry, &(addr, size, r#type)) in table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr, size, r#type };
    }
    params.e820_table = table;
    params.e820_entries = u8::try_from(map.len()).unwrap_or_default();
    memory
        .write_obj(params, GuestAddress(ZERO_PAGE))
        .map_err(|source| Error::Write {
            structure: "zero page",
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_map_leaves_out_holes_and_tables() {
        let memory = crate::memory::create(4608 * MIB).unwrap();
        assert_eq!(
            memory_map(&memory),
            [
                (0, 0x9_fc00, E820_RAM),
                (0x9_fc00, 0x400, E820_RESERVED),
                (MIB, 3071 * MIB, E820_RAM),
                (4096 * MIB, 1536 * MIB, E820_RAM),
            ]
        );
    }

    #[test]
    fn the_zero_page_has_its_fields_where_the_protocol_says() {
        let memory = crate::memory::create(64 * MIB).unwrap();
        let initramfs = Initramfs {
            address: 0x0300_0000,
            size: 77,
        };
        write(&memory, initramfs, 33).unwrap();
        let word = |offset| {
            memory
                .read_obj::<u32>(GuestAddress(ZERO_PAGE + offset))
                .unwrap()
        };
        assert_eq!(word(0x202), HEADER_MAGIC);
        assert_eq!(word(0x218), 0x0300_0000);
        assert_eq!(word(0x21c), 77);
        assert_eq!(u64::from(word(0x228)), CMDLINE);
        assert_eq!(word(0x1e8) & 0xff, 3);
    }
}
