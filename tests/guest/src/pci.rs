//! PCI bus 0: configuration space, BARs, MSI-X and function-level reset.

use crate::check::{Outcome, fail};
use crate::{io, memory, time};

/// Configuration space registers.
pub mod register {
    pub const VENDOR: u16 = 0x00;
    pub const DEVICE: u16 = 0x02;
    pub const COMMAND: u16 = 0x04;
    pub const STATUS: u16 = 0x06;
    pub const CLASS: u16 = 0x08;
    pub const HEADER: u16 = 0x0e;
    pub const BAR0: u16 = 0x10;
    pub const INTERRUPT_LINE: u16 = 0x3c;
    pub const CAPABILITIES: u16 = 0x34;
}

/// Command register: memory space enable.
pub const MEMORY: u16 = 1 << 1;
/// Command register: bus master enable.
pub const MASTER: u16 = 1 << 2;
/// Command register: no legacy interrupts.
pub const NO_INTX: u16 = 1 << 10;

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const NVME_CLASS: u32 = 0x01_08_02;
const CAPABILITY_EXPRESS: u8 = 0x10;
const CAPABILITY_MSIX: u8 = 0x11;

/// A function on bus 0, reached through ports CF8/CFC.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// Slot, 0 to 31.
    pub slot: u8,
    /// Function, 0 to 7.
    pub number: u8,
}

/// Every function on bus 0 that answers.
pub fn functions() -> impl Iterator<Item = Function> {
    (0..32)
        .flat_map(|slot| (0..8).map(move |number| Function { slot, number }))
        .filter(|it| {
            let first = Function { number: 0, ..*it };
            it.number == 0 || first.read8(register::HEADER) & 0x80 != 0
        })
        .filter(|it| it.read16(register::VENDOR) != 0xffff)
}

/// Every NVMe controller on bus 0.
pub fn controllers() -> impl Iterator<Item = Function> {
    functions().filter(|it| it.read32(register::CLASS) >> 8 == NVME_CLASS)
}

/// A memory BAR.
#[derive(Clone, Copy)]
pub struct Bar {
    /// 0 to 5.
    pub index: u8,
    /// Physical address.
    pub base: u64,
    /// Bytes, a power of two.
    pub size: u64,
    /// Whether it takes this register and the next.
    pub wide: bool,
}

impl Function {
    fn select(self, offset: u16) {
        let address = 1 << 31
            | u32::from(self.slot) << 11
            | u32::from(self.number) << 8
            | u32::from(offset & 0xfc);
        io::out32(ADDRESS_PORT, address);
    }

    /// Reads 4 bytes at an offset below 256 that is a multiple of 4.
    pub fn read32(self, offset: u16) -> u32 {
        self.select(offset);
        io::in32(DATA_PORT)
    }

    /// Reads 2 bytes at an even offset below 256.
    pub fn read16(self, offset: u16) -> u16 {
        self.select(offset);
        io::in16(DATA_PORT + (offset & 2))
    }

    /// Reads a byte at an offset below 256.
    pub fn read8(self, offset: u16) -> u8 {
        self.select(offset);
        io::in8(DATA_PORT + (offset & 3))
    }

    /// Writes 4 bytes at an offset below 256 that is a multiple of 4.
    pub fn write32(self, offset: u16, value: u32) {
        self.select(offset);
        io::out32(DATA_PORT, value);
    }

    /// Writes 2 bytes at an even offset below 256.
    pub fn write16(self, offset: u16, value: u16) {
        self.select(offset);
        io::out16(DATA_PORT + (offset & 2), value);
    }

    /// Writes a byte at an offset below 256.
    pub fn write8(self, offset: u16, value: u8) {
        self.select(offset);
        io::out8(DATA_PORT + (offset & 3), value);
    }

    /// Where its configuration space is in the memory-mapped window at `ecam`.
    pub fn ecam(self, ecam: u64) -> u64 {
        ecam + (u64::from(self.slot) << 15 | u64::from(self.number) << 12)
    }

    /// Sets and clears bits of the command register.
    pub fn command(self, set: u16, clear: u16) {
        let value = self.read16(register::COMMAND);
        self.write16(register::COMMAND, value & !clear | set);
    }

    /// The offset of the first capability with this id.
    pub fn capability(self, id: u8) -> Option<u16> {
        self.capabilities(id).next()
    }

    /// The offsets of all capabilities with this id, in the order of the list.
    pub fn capabilities(self, id: u8) -> impl Iterator<Item = u16> {
        let first = if self.read16(register::STATUS) & 0x10 == 0 {
            0
        } else {
            self.read8(register::CAPABILITIES)
        };
        let place = |byte: u8| Some(u16::from(byte & 0xfc)).filter(|it| *it != 0);
        core::iter::successors(place(first), move |at| place(self.read8(at + 1)))
            // A list that loops is cut off.
            .take(48)
            .filter(move |at| self.read8(*at) == id)
    }

    /// The memory BAR at register `index`, sized with memory decoding off for a moment.
    pub fn bar(self, index: u8) -> Option<Bar> {
        let register = register::BAR0 + u16::from(index) * 4;
        let low = self.read32(register);
        let wide = low & 6 == 4;
        if low & 1 != 0 {
            return None;
        }
        let high = if wide { self.read32(register + 4) } else { 0 };
        let command = self.read16(register::COMMAND);
        self.write16(register::COMMAND, command & !MEMORY);
        self.write32(register, u32::MAX);
        let mut mask = u64::from(self.read32(register) & !0xf) | 0xffff_ffff << 32;
        if wide {
            self.write32(register + 4, u32::MAX);
            mask &= u64::from(self.read32(register + 4)) << 32 | 0xffff_ffff;
            self.write32(register + 4, high);
        }
        self.write32(register, low);
        self.write16(register::COMMAND, command);
        if mask as u32 == 0 && (!wide || mask == 0) {
            return None;
        }
        Some(Bar {
            index,
            base: u64::from(low & !0xf) | u64::from(high) << 32,
            size: 1 << mask.trailing_zeros(),
            wide,
        })
    }

    /// All memory BARs.
    pub fn bars(self) -> impl Iterator<Item = Bar> {
        let mut next = 0;
        core::iter::from_fn(move || {
            while next < 6 {
                let bar = self.bar(next);
                next += 1 + u8::from(bar.is_some_and(|it| it.wide));
                if bar.is_some() {
                    return bar;
                }
            }
            None
        })
    }

    /// Writes a new base into a BAR, as it is: decoding stays on or off.
    pub fn move_bar(self, bar: Bar, base: u64) {
        let register = register::BAR0 + u16::from(bar.index) * 4;
        self.write32(register, base as u32);
        if bar.wide {
            self.write32(register + 4, (base >> 32) as u32);
        }
    }

    /// Whether the function can be reset on its own.
    pub fn can_reset(self) -> bool {
        self.capability(CAPABILITY_EXPRESS)
            .is_some_and(|it| self.read32(it + 4) & 1 << 28 != 0)
    }

    /// Resets the function alone and waits the 100 ms that software owes it.
    pub fn reset(self) {
        if let Some(at) = self.capability(CAPABILITY_EXPRESS) {
            let control = self.read16(at + 8);
            self.write16(at + 8, control | 1 << 15);
            time::spin_us(100_000);
        }
    }

    /// Its MSI-X vectors.
    ///
    /// # Errors
    /// No such capability, or one whose tables lie in no BAR.
    pub fn msix(self) -> Outcome<Msix> {
        let Some(capability) = self.capability(CAPABILITY_MSIX) else {
            fail!("the function has no MSI-X capability");
        };
        let place = |offset| {
            let value = self.read32(capability + offset);
            let bar = self.bar((value & 7) as u8)?;
            memory::map_registers(bar.base, bar.size);
            Some(bar.base + u64::from(value & !7))
        };
        let (Some(table), Some(pending)) = (place(4), place(8)) else {
            fail!("MSI-X tables lie in no memory BAR");
        };
        Ok(Msix {
            function: self,
            capability,
            table,
            pending,
            vectors: (self.read16(capability + 2) & 0x7ff) + 1,
        })
    }
}

/// The MSI-X vectors of a function.
pub struct Msix {
    function: Function,
    capability: u16,
    table: u64,
    pending: u64,
    /// How many there are.
    pub vectors: u16,
}

impl Msix {
    /// Turns MSI-X on or off, with or without the function mask.
    pub fn enable(&self, on: bool, masked: bool) {
        let value = u16::from(on) << 15 | u16::from(masked) << 14;
        self.function.write16(self.capability + 2, value);
    }

    /// Whether MSI-X is on.
    pub fn enabled(&self) -> bool {
        self.function.read16(self.capability + 2) & 1 << 15 != 0
    }

    /// Sets a vector's message, leaving its mask bit set.
    pub fn program(&self, vector: u16, (address, data): (u64, u32)) {
        let entry = self.table + u64::from(vector) * 16;
        self.mask(vector, true);
        io::write32(entry, address as u32);
        io::write32(entry + 4, (address >> 32) as u32);
        io::write32(entry + 8, data);
    }

    /// Masks or unmasks a vector.
    pub fn mask(&self, vector: u16, masked: bool) {
        io::write32(self.table + u64::from(vector) * 16 + 12, u32::from(masked));
    }

    /// Whether a vector is masked, as the table reads.
    pub fn masked(&self, vector: u16) -> bool {
        io::read32(self.table + u64::from(vector) * 16 + 12) & 1 != 0
    }

    /// Whether a vector waits to be unmasked.
    pub fn pending(&self, vector: u16) -> bool {
        let word = io::read64(self.pending + u64::from(vector / 64) * 8);
        word >> (vector % 64) & 1 != 0
    }
}
