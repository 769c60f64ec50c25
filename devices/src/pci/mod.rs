//! PCI: the root with its bus 0, configuration space, BARs and MSI-X.

/// A PCI function as the root sees it: a single-function device in one slot of bus 0.
pub trait PciDevice: Send + Sync {
    /// Fills `data` (1, 2 or 4 bytes) from configuration space at `offset` (below 4,096).
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Takes a configuration write of exactly these bytes.
    ///
    /// The root compares [`PciDevice::bar_window`] before and after and moves what moved.
    fn write_config(&self, offset: u16, data: &[u8]);

    /// The guest physical base and size of BAR `bar` (0 to 5) while memory space is enabled.
    fn bar_window(&self, bar: u8) -> Option<(u64, u64)>;

    /// The guest moved, enabled or disabled BAR `bar`: its window is now at `base`, or nowhere.
    ///
    /// Called after the bus stopped answering at the old base and before it answers at the new one.
    fn bar_moved(&self, bar: u8, base: Option<u64>);

    /// Fills `data` from BAR `bar`.
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Takes a guest write to BAR `bar`.
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]);
}
