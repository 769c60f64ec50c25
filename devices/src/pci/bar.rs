//! Base address registers (PCI Express Base 5.0, 7.5.1.2.1): 64-bit, non-prefetchable memory BARs,
//! and how firmware sizes and sets the BARs of any function.

use super::PciDevice;

/// Number of BAR registers of a type 0 function.
pub const COUNT: u8 = 6;

/// Type bits of a memory BAR that may lie anywhere in 64 bits.
pub(super) const TYPE_MEMORY_64: u32 = 0b0100;
/// The bits of a memory BAR's low register that are not address bits.
pub(super) const TYPE_MASK: u32 = 0b1111;

/// Below it are RAM, ROMs and what is left of the PC's memory map; no BAR answers there.
const LOWEST: u64 = 1 << 20;
/// No BAR answers from here on: 64 TiB, above any guest's RAM and windows.
const LIMIT: u64 = 1 << 46;

/// Configuration space offset of BAR register `bar`, which must be below [`COUNT`].
pub(super) fn register(bar: u8) -> u16 {
    debug_assert!(bar < COUNT, "a function has 6 BARs");
    0x10 + 4 * u16::from(bar)
}

/// Whether `size` bytes at `base` are a place where a BAR can answer.
pub(super) fn is_sensible(base: u64, size: u64) -> bool {
    base >= LOWEST && base.checked_add(size).is_some_and(|end| end <= LIMIT)
}

/// The 64-bit memory BARs of `device`: index of the low register and size in bytes.
///
/// Sizes them as software does, by writing all ones, and leaves their addresses as they were.
/// Memory space must be disabled.
pub(super) fn discover(device: &dyn PciDevice) -> Vec<(u8, u64)> {
    let mut found = Vec::new();
    let mut index = 0;
    while index + 1 < COUNT {
        let low = read(device, index);
        if low & TYPE_MASK != TYPE_MEMORY_64 {
            index += 1;
            continue;
        }
        let before = address(device, index);
        set_address(device, index, u64::MAX);
        let address_bits = address(device, index);
        set_address(device, index, before);
        if address_bits != 0 {
            found.push((index, 1 << address_bits.trailing_zeros()));
        }
        index += 2;
    }
    found
}

/// The address in 64-bit memory BAR `index`, decoded or not.
pub(super) fn address(device: &dyn PciDevice, index: u8) -> u64 {
    let low = read(device, index) & !TYPE_MASK;
    u64::from(read(device, index + 1)) << 32 | u64::from(low)
}

/// Writes `address` to 64-bit memory BAR `index`.
pub(super) fn set_address(device: &dyn PciDevice, index: u8, address: u64) {
    let [low @ .., _, _, _, _] = address.to_le_bytes();
    let [_, _, _, _, high @ ..] = address.to_le_bytes();
    device.write_config(register(index), &low);
    device.write_config(register(index + 1), &high);
}

fn read(device: &dyn PciDevice, bar: u8) -> u32 {
    let mut bytes = [0; 4];
    device.read_config(register(bar), &mut bytes);
    u32::from_le_bytes(bytes)
}
