//! Ports and memory-mapped registers, with exactly the access width that is asked for.
//!
//! These functions are safe on purpose: which port or register is touched is the whole point of a
//! hostile guest, and RAM is only reached through [`crate::memory::Dma`]. Callers name device
//! addresses.

use core::arch::asm;

macro_rules! port {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        /// Reads a port.
        pub fn $read(port: u16) -> $type {
            let value;
            // SAFETY: a port access touches no memory.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                    options(nomem, nostack, preserves_flags));
            }
            value
        }

        /// Writes a port.
        pub fn $write(port: u16, value: $type) {
            // SAFETY: a port access touches no memory. Not `nomem`: it may start DMA.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                    options(nostack, preserves_flags));
            }
        }
    };
}

port!(in8, out8, u8, "al");
port!(in16, out16, u16, "ax");
port!(in32, out32, u32, "eax");

/// Writes all bytes to a port of a byte, one after the other.
pub fn out_string(port: u16, bytes: &[u8]) {
    // SAFETY: reads the bytes of a live slice, upwards (the ABI has the direction flag clear).
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _, options(nostack, preserves_flags, readonly));
    }
}

/// Reads all bytes from a port of a byte, one after the other.
pub fn in_string(port: u16, bytes: &mut [u8]) {
    // SAFETY: writes the bytes of a live slice, upwards (the ABI has the direction flag clear).
    unsafe {
        asm!("rep insb", in("dx") port, inout("rdi") bytes.as_mut_ptr() => _,
            inout("rcx") bytes.len() => _, options(nostack, preserves_flags));
    }
}

macro_rules! mmio {
    ($read:ident, $write:ident, $type:ty, $class:ident, $template:literal) => {
        /// Reads a device register at a physical address of any alignment, in one access.
        pub fn $read(address: u64) -> $type {
            let value;
            // SAFETY: callers name device registers, which no Rust object overlaps.
            unsafe {
                asm!(concat!("mov {", $template, "}, [{address}]"), value = out($class) value,
                    address = in(reg) address, options(nostack, preserves_flags, readonly));
            }
            value
        }

        /// Writes a device register at a physical address of any alignment, in one access.
        pub fn $write(address: u64, value: $type) {
            // SAFETY: callers name device registers, which no Rust object overlaps. All earlier
            // memory writes are done first: the default is a compiler barrier, and x86 keeps order.
            unsafe {
                asm!(concat!("mov [{address}], {", $template, "}"), value = in($class) value,
                    address = in(reg) address, options(nostack, preserves_flags));
            }
        }
    };
}

mmio!(read8, write8, u8, reg_byte, "value");
mmio!(read16, write16, u16, reg, "value:x");
mmio!(read32, write32, u32, reg, "value:e");
mmio!(read64, write64, u64, reg, "value:r");
