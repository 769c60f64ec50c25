//! How a device asks the hypervisor to spare the guest the exit of a write: to turn it into an event,
//! or to keep it for later.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// Registers 4-byte MMIO writes as eventfds (KVM_IOEVENTFD, no data match).
pub trait IoEvents: Send + Sync {
    /// From now on a 4-byte guest write to physical address `address` signals `event` and does not
    /// reach the bus.
    ///
    /// # Errors
    /// What the hypervisor said, for example that the address is taken.
    fn register(&self, event: &EventFd, address: u64) -> io::Result<()>;

    /// Undoes [`IoEvents::register`] with the same arguments.
    ///
    /// # Errors
    /// What the hypervisor said, for example that nothing is registered there.
    fn unregister(&self, event: &EventFd, address: u64) -> io::Result<()>;
}

/// Takes writes that were kept.
pub trait WriteSink: Send + Sync {
    /// The guest wrote this some time ago. Called with the machine's lock on kept writes: only stores
    /// it.
    fn written(&self, value: u32);
}

/// Keeps MMIO writes in order instead of leaving the guest for each (KVM_REGISTER_COALESCED_MMIO).
/// Whoever leaves the guest for another access has them handed over before that access is done.
pub trait CoalescedWrites: Send + Sync {
    /// From now on a 4-byte guest write to physical address `address` is kept for `sink` and does not
    /// reach the bus, as long as there is room for it. Narrower writes inside of the 4 bytes have no
    /// effect.
    ///
    /// # Errors
    /// `Unsupported` if the hypervisor keeps no writes, or what it said.
    fn register(&self, address: u64, sink: Arc<dyn WriteSink>) -> io::Result<()>;

    /// Undoes [`CoalescedWrites::register`]. What was kept has been handed over on return; later
    /// writes reach the bus.
    ///
    /// # Errors
    /// What the hypervisor said; the sink may get writes still.
    fn unregister(&self, address: u64) -> io::Result<()>;

    /// Hands over all that was kept before the call. Takes no lock if that is nothing.
    fn drain(&self);
}
