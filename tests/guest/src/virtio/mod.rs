//! A polled driver for virtio block devices on PCI (Virtio 1.2, no legacy interface): what a guest
//! of QEMU would use instead of NVMe, and so a second reference for the benchmark.

mod block;
mod queue;
mod transport;

pub use block::{BlockQueue, Disk, SECTOR, disks};
