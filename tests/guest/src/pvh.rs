//! What the loader hands over: Xen's `hvm_start_info` (version 1).

use core::slice;
use core::sync::atomic::{AtomicU64, Ordering};

unsafe extern "C" {
    /// Filled by `entry.s`.
    static pvh_start_info: AtomicU64;
    static image_end: u8;
}

const MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;

/// The start info structure, copied.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    /// Physical address of ACPI's root pointer, or zero.
    pub rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

/// A row of the memory map.
#[repr(C)]
#[derive(Clone, Copy)]
struct MemoryMapEntry {
    address: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

impl StartInfo {
    /// Copies the structure that the loader left.
    pub fn get() -> Self {
        // SAFETY: entry.s stored the loader's EBX there; an aligned u64 in .bss.
        let address = unsafe { pvh_start_info.load(Ordering::Relaxed) };
        // SAFETY: the PVH protocol says that EBX points to the structure, in mapped low memory.
        let info = unsafe { (address as *const Self).read_unaligned() };
        assert!(info.magic == MAGIC, "no PVH start info at {address:#x}");
        assert!(info.version >= 1, "PVH start info without a memory map");
        info
    }

    /// The kernel command line; empty if there is none or it is no text.
    pub fn command_line(&self) -> &'static str {
        if self.command_line == 0 {
            return "";
        }
        let start = self.command_line as *const u8;
        let mut length = 0;
        // SAFETY: a string that ends with a NUL, in mapped memory that nobody writes.
        while length < 4096 && unsafe { start.wrapping_add(length).read() } != 0 {
            length += 1;
        }
        // SAFETY: the bytes were just read.
        let bytes = unsafe { slice::from_raw_parts(start, length) };
        core::str::from_utf8(bytes).unwrap_or("")
    }

    /// The RAM behind the guest's own image, below 3 GiB: `(start, end)`.
    pub fn free_ram(&self) -> Option<(u64, u64)> {
        let image = (&raw const image_end).addr() as u64;
        let end = self
            .ram()
            .find(|&(start, end)| start <= image && image < end)?
            .1;
        Some((image, end.min(0xc000_0000)))
    }

    /// The end of all RAM below 4 GiB, which is the start of a hole.
    pub fn low_ram_end(&self) -> u64 {
        self.ram()
            .map(|(_, end)| end)
            .filter(|&end| end <= 1 << 32)
            .max()
            .unwrap_or(0)
    }

    /// The end of all RAM.
    pub fn ram_end(&self) -> u64 {
        self.ram().map(|(_, end)| end).max().unwrap_or(0)
    }

    fn ram(&self) -> impl Iterator<Item = (u64, u64)> {
        let table = self.memory_map as *const MemoryMapEntry;
        (0..self.memory_map_entries as usize)
            // SAFETY: the loader's table has that many rows, in mapped low memory.
            .map(move |row| unsafe { table.wrapping_add(row).read_unaligned() })
            .filter(|entry| entry.kind == RAM)
            .map(|entry| (entry.address, entry.address + entry.size))
    }
}
