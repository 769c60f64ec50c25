//! The PCI transport: where the registers are, and the steps from reset to a live device
//! (Virtio 1.2, 3.1 and 4.1).

use super::queue::VirtQueue;
use crate::check::{Outcome, Stop, Text, ensure, fail};
use crate::memory;
use crate::pci::{self, Function};
use crate::time::Deadline;
use crate::{io, time};

/// Capability of the vendor's own, which virtio puts its register blocks into.
const CAPABILITY_VENDOR: u8 = 0x09;

/// Kinds of register blocks (4.1.4).
mod kind {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const DEVICE: u8 = 4;
}

/// Fields of the common configuration (4.1.4.3).
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0;
    pub const DEVICE_FEATURE: u64 = 4;
    pub const DRIVER_FEATURE_SELECT: u64 = 8;
    pub const DRIVER_FEATURE: u64 = 12;
    pub const MSIX_CONFIG: u64 = 16;
    pub const NUM_QUEUES: u64 = 18;
    pub const STATUS: u64 = 20;
    pub const QUEUE_SELECT: u64 = 22;
    pub const QUEUE_SIZE: u64 = 24;
    pub const QUEUE_VECTOR: u64 = 26;
    pub const QUEUE_ENABLE: u64 = 28;
    pub const QUEUE_NOTIFY_OFFSET: u64 = 30;
    pub const QUEUE_DESCRIPTORS: u64 = 32;
    pub const QUEUE_AVAILABLE: u64 = 40;
    pub const QUEUE_USED: u64 = 48;
    pub const BYTES: u64 = 56;
}

/// Bits of the device status (2.1).
mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 1 << 1;
    pub const DRIVER_OK: u8 = 1 << 2;
    pub const FEATURES_OK: u8 = 1 << 3;
    pub const NEEDS_RESET: u8 = 1 << 6;
}

/// No MSI-X vector (4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;
/// Longest wait for a reset.
const RESET_MS: u64 = 10_000;

/// A block of registers in a BAR.
#[derive(Clone, Copy)]
struct Block {
    base: u64,
    len: u64,
}

impl Block {
    /// The first block of a kind, and where its capability is.
    fn find(function: Function, kind: u8, least: u64) -> Outcome<(Self, u16)> {
        let found = function
            .capabilities(CAPABILITY_VENDOR)
            .find(|at| function.read8(at + 3) == kind);
        let Some(at) = found else {
            fail!("no virtio registers of kind {kind}");
        };
        let index = function.read8(at + 4);
        let Some(bar) = function.bars().find(|bar| bar.index == index) else {
            fail!("virtio registers of kind {kind} lie in BAR {index}, which is no memory BAR");
        };
        let offset = u64::from(function.read32(at + 8));
        let len = u64::from(function.read32(at + 12));
        ensure!(
            len >= least && offset + len <= bar.size,
            "virtio registers of kind {kind}: {len:#x} bytes at {offset:#x} of {:#x}",
            bar.size
        );
        memory::map_registers(bar.base, bar.size);
        let base = bar.base + offset;
        Ok((Self { base, len }, at))
    }

    fn at(self, offset: u64, bytes: u64) -> u64 {
        assert!(offset + bytes <= self.len, "register {offset:#x}");
        self.base + offset
    }
}

/// A virtio device.
pub struct Transport {
    common: Block,
    device: Block,
    notify: Block,
    notify_multiplier: u64,
}

impl Transport {
    /// Maps the device's registers and resets it.
    ///
    /// # Errors
    /// A register block is missing or out of its BAR, or the device does not get reset.
    pub fn attach(function: Function) -> Outcome<Self> {
        let (common, _) = Block::find(function, kind::COMMON, common::BYTES)?;
        let (device, _) = Block::find(function, kind::DEVICE, 0)?;
        let (notify, capability) = Block::find(function, kind::NOTIFY, 2)?;
        function.command(pci::MEMORY | pci::MASTER | pci::NO_INTX, 0);
        let transport = Self {
            common,
            device,
            notify,
            notify_multiplier: function.read32(capability + 16).into(),
        };
        transport.reset()?;
        Ok(transport)
    }

    /// Resets the device, which forgets all queues.
    ///
    /// # Errors
    /// Its status does not become zero.
    pub fn reset(&self) -> Outcome {
        self.set_status(0);
        let deadline = Deadline::after_ms(RESET_MS);
        while self.status() != 0 {
            if deadline.passed() {
                return Err(self.timeout("the reset"));
            }
            time::spin_us(1);
        }
        Ok(())
    }

    /// Says hello and agrees on features: all of `needed`, and those of `wanted` that the device has.
    ///
    /// # Errors
    /// The device lacks a needed feature or refuses the choice.
    pub fn negotiate(&self, needed: u64, wanted: u64) -> Outcome<u64> {
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        let offered = [0, 1].map(|half| {
            io::write32(self.common.at(common::DEVICE_FEATURE_SELECT, 4), half);
            u64::from(io::read32(self.common.at(common::DEVICE_FEATURE, 4)))
        });
        let offered = offered[0] | offered[1] << 32;
        let missing = needed & !offered;
        ensure!(missing == 0, "virtio features {missing:#x} are missing");
        let chosen = offered & (needed | wanted);
        for (half, bits) in [(0, chosen as u32), (1, (chosen >> 32) as u32)] {
            io::write32(self.common.at(common::DRIVER_FEATURE_SELECT, 4), half);
            io::write32(self.common.at(common::DRIVER_FEATURE, 4), bits);
        }
        self.add_status(status::FEATURES_OK);
        ensure!(
            self.status() & status::FEATURES_OK != 0,
            "the device refuses features {chosen:#x}"
        );
        io::write16(self.common.at(common::MSIX_CONFIG, 2), NO_VECTOR);
        Ok(chosen)
    }

    /// How many queues the device has.
    pub fn queues(&self) -> u16 {
        io::read16(self.common.at(common::NUM_QUEUES, 2))
    }

    /// Enables a queue of at most `most` entries, without interrupts.
    ///
    /// # Errors
    /// There is no such queue, or its doorbell lies out of the registers.
    pub fn create_queue(&self, index: u16, most: u16, event_index: bool) -> Outcome<VirtQueue> {
        let field16 = |field| self.common.at(field, 2);
        io::write16(field16(common::QUEUE_SELECT), index);
        let largest = io::read16(field16(common::QUEUE_SIZE));
        ensure!(
            largest.is_power_of_two() && io::read16(field16(common::QUEUE_ENABLE)) == 0,
            "queue {index}: {largest} entries, or it is enabled already"
        );
        let size = largest.min(most);
        io::write16(field16(common::QUEUE_SIZE), size);
        io::write16(field16(common::QUEUE_VECTOR), NO_VECTOR);
        let offset = u64::from(io::read16(field16(common::QUEUE_NOTIFY_OFFSET)));
        let offset = offset * self.notify_multiplier;
        ensure!(
            offset + 2 <= self.notify.len,
            "queue {index}: its doorbell is at {offset:#x} of {:#x}",
            self.notify.len
        );
        let queue = VirtQueue::new(index, size, self.notify.at(offset, 2), event_index);
        for (field, address) in [
            (common::QUEUE_DESCRIPTORS, queue.descriptors()),
            (common::QUEUE_AVAILABLE, queue.available()),
            (common::QUEUE_USED, queue.used()),
        ] {
            // Two accesses of 4 bytes: no more is promised for these fields (4.1.3.1).
            io::write32(self.common.at(field, 4), address as u32);
            io::write32(self.common.at(field + 4, 4), (address >> 32) as u32);
        }
        io::write16(field16(common::QUEUE_ENABLE), 1);
        Ok(queue)
    }

    /// Lets the device work; all queues exist by now.
    ///
    /// # Errors
    /// It does not take part.
    pub fn go_live(&self) -> Outcome {
        self.add_status(status::DRIVER_OK);
        let found = self.status();
        ensure!(
            found & status::DRIVER_OK != 0 && found & status::NEEDS_RESET == 0,
            "device status {found:#x} after DRIVER_OK"
        );
        Ok(())
    }

    /// A 2-byte field of the device's own configuration.
    pub fn config16(&self, offset: u64) -> u16 {
        io::read16(self.device.at(offset, 2))
    }

    /// A 4-byte field of the device's own configuration.
    pub fn config32(&self, offset: u64) -> u32 {
        io::read32(self.device.at(offset, 4))
    }

    /// The failure of a wait, with what the status says.
    pub fn timeout(&self, what: &str) -> Stop {
        Stop::Failed(Text::new(format_args!(
            "gave up waiting for {what} (device status {:#x})",
            self.status()
        )))
    }

    fn status(&self) -> u8 {
        io::read8(self.common.at(common::STATUS, 1))
    }

    fn set_status(&self, value: u8) {
        io::write8(self.common.at(common::STATUS, 1), value);
    }

    fn add_status(&self, bit: u8) {
        self.set_status(self.status() | bit);
    }
}
