//! How a device asks the hypervisor to turn a guest write into an event.

use std::io;

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
