//! PCI: the root with its bus 0, configuration space, BARs and MSI-X.
//!
//! # Lock order
//! 1. [`root::PciRoot`]'s layout lock: held through a configuration write, `add` and `remove`, hence
//!    while [`PciDevice::write_config`], [`PciDevice::bar_window`] and [`PciDevice::bar_moved`] run;
//! 2. the device's own locks, [`msix::Msix`]'s among them;
//! 3. the slot table of the root and the change lock of a [`crate::bus::Bus`], each of which is the
//!    last lock that anyone takes.
//!
//! BAR accesses and configuration reads take none of the root's locks while they are in the device.
//! So a device may wait in `write_config` and `bar_moved` for one of its BAR accesses in flight, but
//! must never call the root from any of its methods.

pub mod access;
pub mod bar;
pub mod capability;
pub mod config;
mod host_bridge;
pub mod msix;
pub mod root;
#[cfg(test)]
mod testing;

/// A PCI function as the root sees it: a single-function device in one slot of bus 0.
pub trait PciDevice: Send + Sync {
    /// Fills `data` (1, 2 or 4 bytes) from configuration space at `offset` (below 4,096).
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Takes a configuration write of exactly these bytes. The root calls it from one thread at a
    /// time.
    ///
    /// The root compares [`PciDevice::bar_window`] before and after and moves what moved.
    fn write_config(&self, offset: u16, data: &[u8]);

    /// The guest physical base and size of BAR `bar` (0 to 5) while memory space is enabled.
    fn bar_window(&self, bar: u8) -> Option<(u64, u64)>;

    /// The guest moved, enabled or disabled BAR `bar`: its window is now at `base`, or nowhere.
    ///
    /// A move is two calls: with `None` after the bus stopped answering at the old base, and with
    /// the new base after it answers there. Accesses that began before can still arrive.
    fn bar_moved(&self, bar: u8, base: Option<u64>);

    /// Fills `data` from BAR `bar`.
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Takes a guest write to BAR `bar`.
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]);
}
