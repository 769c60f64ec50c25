//! The start-of-day structures of the x86/HVM direct boot ABI (Xen's
//! xen/include/public/arch-x86/hvm/start_info.h).

use std::ops::Range;

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::Error;
use crate::layout;
use crate::memory_map::memory_map;

/// The version with a memory map.
const VERSION: u32 = 1;

/// Writes `hvm_start_info`, its module list and its memory map.
pub(crate) fn write_start_info(
    ram: &GuestMemoryMmap,
    memory: u64,
    initrd: Option<&Range<u64>>,
    rsdp: u64,
) -> Result<(), Error> {
    let map = memory_map(memory);
    let mut info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::PVH_MEMORY_MAP,
        // A handful.
        #[allow(clippy::cast_possible_truncation)]
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some(initrd) = initrd {
        info.nr_modules = 1;
        info.modlist_paddr = layout::PVH_MODULES;
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.end - initrd.start,
            ..Default::default()
        };
        ram.write_obj(module, GuestAddress(layout::PVH_MODULES))?;
    }
    let mut address = layout::PVH_MEMORY_MAP;
    for region in map {
        let entry = hvm_memmap_table_entry {
            addr: region.start,
            size: region.length,
            type_: region.kind as u32,
            reserved: 0,
        };
        ram.write_obj(entry, GuestAddress(address))?;
        address += size_of_val(&entry) as u64;
    }
    ram.write_obj(info, GuestAddress(layout::PVH_START_INFO))?;
    Ok(())
}
