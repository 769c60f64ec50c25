//! The NVMe controller (NVMe Base 2.0c, NVM Command Set 1.0c, NVMe over PCIe Transport 1.0c).
//!
//! vCPU threads touch [`pci`](self) → registers and doorbell cells, and nothing else. The main thread
//! owns the admin queue ([`Controller::service`]). I/O threads own the I/O queues ([`IoThreads`]).
//! What they share is small and in one place, the core: doorbells, interrupt vectors, the attachment
//! table, and a mailbox in each direction.
//!
//! Lock order: admin → config space | registers | doorbell events | subsystem → changed list; admin → the
//! I/O threads' loads | messages | events, under which nothing else is locked; and doorbell events → the
//! machine's kept writes. No lock is held while an I/O thread works on a command, and none is shared between
//! queues, but for those whose guest shadows no doorbells: whoever takes kept completion queue heads, a vCPU
//! or a thread that finds no room, takes them for all.
//!
//! Tracing ([`trace`]) adds no lock to that: its own are for who turns it on.
//!
//! A completion queue can move from one I/O thread to another; the admin queue's owner orders that
//! (`admin/moves.rs`).

mod admin;
mod attached;
mod coalescing;
mod controller;
mod core;
mod doorbell;
mod error;
mod group;
mod io;
mod pci;
mod prp;
mod queue;
mod registers;
mod snapshots;
pub mod spec;
mod stats;
mod sync;
#[cfg(test)]
mod tests;
pub mod trace;

pub use controller::{
    Controller, ControllerConfig, ControllerError, ControllerInfo, ControllerParts,
    ControllerState, MAX_IO_QUEUE_PAIRS, MAX_MDTS,
};
pub use io::{IoThreadInfo, IoThreads, IoThreadsConfig, MemoryLock};
pub use stats::QueueInfo;
