//! The one ACPI table that matters here: MCFG, for the address of configuration space.

use crate::memory::{self, Dma};

/// Where the memory-mapped configuration space of bus 0 starts, if ACPI tells.
pub fn ecam(rsdp: u64) -> Option<u64> {
    // The root pointer, revision 2: signature "RSD PTR ", 8-byte address of the XSDT at 24.
    let root = table(rsdp, 36)?;
    if quad(&root, 0) != u64::from_le_bytes(*b"RSD PTR ") {
        return None;
    }
    // Revision 0 has a 4-byte address of the RSDT at 16 instead.
    let (address, width) = match root.read8(15) {
        0 => (u64::from(root.read32(16)), 4),
        _ => (quad(&root, 24), 8),
    };
    let index = description(address)?;
    (36..index.len())
        .step_by(width)
        .filter(|entry| entry + width as u64 <= index.len())
        .filter_map(|entry| match width {
            4 => description(u64::from(index.read32(entry))),
            _ => description(quad(&index, entry)),
        })
        .find(|it| it.read32(0) == u32::from_le_bytes(*b"MCFG") && it.len() >= 60)
        // The first allocation follows 8 reserved bytes; it is the one of bus 0.
        .map(|it| quad(&it, 44))
}

/// A table with the standard header, whose length is at 4.
fn description(address: u64) -> Option<Dma> {
    let len = u64::from(table(address, 36)?.read32(4));
    table(address, len.clamp(36, 1 << 16))
}

fn table(address: u64, len: u64) -> Option<Dma> {
    (address != 0 && address < 0xc000_0000).then(|| memory::existing(address, len))
}

/// The tables' 8-byte fields are not aligned to 8.
fn quad(table: &Dma, offset: u64) -> u64 {
    u64::from(table.read32(offset)) | u64::from(table.read32(offset + 4)) << 32
}
