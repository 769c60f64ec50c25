//! How devices raise interrupts without knowing the hypervisor.

use std::io;

/// What an MSI or MSI-X table entry holds (PCI Express Base 5.0, 7.7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Message address, 64 bits.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// The interrupt vectors of one PCI function, each an irqfd with a GSI route behind it.
pub trait MsiGroup: Send + Sync {
    /// Injects the message that `vector` is routed to. Lock-free; called from I/O threads.
    ///
    /// A vector without a route keeps the event until it gets one.
    fn trigger(&self, vector: u16);

    /// Routes each `(vector, message)`, or disconnects it where the message is `None`, in one batch.
    ///
    /// # Errors
    /// What the hypervisor said; vectors changed before it stay changed.
    fn update(&self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()>;

    /// Forgets events of disconnected vectors that have not been injected.
    fn discard(&self);
}

/// Gives PCI functions their vectors.
pub trait MsiAllocator: Send + Sync {
    /// Reserves `vectors` (1 to 2,048) disconnected vectors, freed when the group is dropped.
    ///
    /// # Errors
    /// No GSI or no file descriptor left.
    fn allocate(&self, vectors: u16) -> io::Result<std::sync::Arc<dyn MsiGroup>>;
}

/// A wired, edge-triggered interrupt line (ISA or GSI).
pub trait IrqLine: Send + Sync {
    /// Raises one edge.
    fn trigger(&self);
}
