//! Port and memory-mapped I/O dispatch.

/// A device that answers guest accesses in a window of a bus.
///
/// Methods take `&self`: two vCPUs may be inside the same device, which locks what it must.
pub trait BusDevice: Send + Sync {
    /// Fills `data` (1 to 8 bytes) with what the guest reads at `offset` bytes into the window.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes the bytes that the guest wrote at `offset` bytes into the window.
    fn write(&self, offset: u64, data: &[u8]);
}
