//! The host bridge in slot 0.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::PciDevice;
use super::config::{ConfigSpace, Identity};

/// The PCI side of the root: a class code and an identity, nothing to drive.
///
/// Linux wants a host bridge on bus 0 before it trusts CF8/CFC. The identity is the one that other
/// small VMMs use for a bridge without registers: no Linux quirk matches it, whereas those of real
/// chipsets (8086:29c0, 8086:1237) make Linux look for registers, and 1b36 belongs to QEMU.
pub(super) struct HostBridge(Mutex<ConfigSpace>);

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x0d57,
    subsystem_vendor: 0,
    subsystem: 0,
    revision: 0,
    class: 0x06_00_00,
};

impl HostBridge {
    pub(super) fn new() -> Self {
        Self(Mutex::new(ConfigSpace::new(&IDENTITY)))
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciDevice for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.config().write(offset, data);
    }

    fn bar_window(&self, _bar: u8) -> Option<(u64, u64)> {
        None
    }

    fn bar_moved(&self, _bar: u8, _base: Option<u64>) {}

    fn read_bar(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_bar(&self, _bar: u8, _offset: u64, _data: &[u8]) {}
}
