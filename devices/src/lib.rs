//! What the guest sees: buses, PCI, NVMe controllers, subsystems, storage and legacy devices.
//!
//! Data flows one way: guest → bus → device → queue → backend → completion. Nothing here knows of
//! KVM: interrupts and doorbell events reach the hypervisor through the small traits in
//! [`interrupt`] and [`ioevent`].

pub mod affinity;
pub mod bus;
mod closed;
mod counter;
#[cfg(test)]
mod counting;
pub mod interrupt;
pub mod ioevent;
pub mod legacy;
pub mod nvme;
pub mod pci;
pub mod ram;
pub mod ratelimit;
pub mod storage;
pub mod subsystem;
