//! The controller as a guest meets it, without a VM: registers and configuration space through
//! [`PciDevice`](crate::pci::PciDevice), queues and data in guest memory.

// Test code writes out the numbers it casts.
#![allow(clippy::cast_possible_truncation)]

mod coalescing;
pub mod fakes;
mod features;
mod full;
mod fuzz;
mod harness;
pub mod held;
mod identify;
mod identity;
mod info;
mod interrupts;
mod io;
mod kept;
mod logs;
mod moves;
mod namespaces;
mod queues;
mod races;
mod registers;
mod removal;
mod reset;
mod shadow;
mod stress;
mod trace;
