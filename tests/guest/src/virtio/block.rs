//! The block device (Virtio 1.2, 5.2): what it offers, and reads and writes on its queues.

use super::queue::{DESCRIPTOR_BYTES, Segment, VirtQueue, write_chain};
use super::transport::Transport;
use crate::check::{Outcome, Stop, ensure};
use crate::memory::{self, Dma, PAGE};
use crate::nvme::Buffer;
use crate::pci::{self, Function, register};

/// PCI vendor and device of a block device without legacy interface.
const BLOCK: (u16, u16) = (0x1af4, 0x1042);

/// Feature bits: those of the block device, and those that any device may have (6).
mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const FLUSH: u64 = 1 << 9;
    pub const MQ: u64 = 1 << 12;
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_INDEX: u64 = 1 << 29;
    pub const VERSION_1: u64 = 1 << 32;
}

/// Fields of the device configuration (5.2.4).
mod config {
    pub const CAPACITY: u64 = 0;
    pub const SEG_MAX: u64 = 12;
    pub const NUM_QUEUES: u64 = 34;
}

/// Bytes of a sector, whatever the device's own block size is.
pub const SECTOR: u64 = 512;

/// Largest queue in use.
const MAX_ENTRIES: u16 = 256;

/// Request types and the good status (5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const OK: u8 = 0;
/// What the status byte is until the device writes it.
const UNTOUCHED: u8 = 0xff;

/// A request's header (type, reserved, sector) and status byte, each slot's in 32 bytes.
const HEADER_BYTES: u32 = 16;
const STATUS: u64 = 16;
const SLOT_BYTES: u64 = 32;

/// Every virtio block device on bus 0.
pub fn disks() -> impl Iterator<Item = Function> {
    pci::functions().filter(|it| {
        let id = (it.read16(register::VENDOR), it.read16(register::DEVICE));
        id == BLOCK
    })
}

/// A disk whose features are agreed on.
pub struct Disk {
    transport: Transport,
    features: u64,
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Queues that it has.
    pub queues: u16,
    segments: u64,
}

impl Disk {
    /// Resets the disk and agrees on features; it does nothing before [`Disk::go_live`].
    ///
    /// # Errors
    /// It fails at that, or lacks what this driver needs.
    pub fn attach(function: Function) -> Outcome<Self> {
        let transport = Transport::attach(function)?;
        // A driver that cannot flush gets every write flushed, so this one says it could.
        let wanted = feature::SEG_MAX | feature::FLUSH | feature::MQ | feature::EVENT_INDEX;
        let needed = feature::VERSION_1 | feature::INDIRECT;
        let features = transport.negotiate(needed, wanted)?;
        let low = transport.config32(config::CAPACITY);
        let high = transport.config32(config::CAPACITY + 4);
        let has = |bit: u64| features & bit != 0;
        let queues = if has(feature::MQ) {
            transport.config16(config::NUM_QUEUES)
        } else {
            1
        };
        let segments = if has(feature::SEG_MAX) {
            transport.config32(config::SEG_MAX).into()
        } else {
            1
        };
        Ok(Self {
            features,
            sectors: u64::from(low) | u64::from(high) << 32,
            queues: queues.min(transport.queues()),
            segments,
            transport,
        })
    }

    /// Creates queue `index`, below [`Disk::queues`].
    ///
    /// # Errors
    /// As [`Transport::create_queue`].
    pub fn create_queue(&self, index: u16) -> Outcome<BlockQueue> {
        let event_index = self.features & feature::EVENT_INDEX != 0;
        let ring = self
            .transport
            .create_queue(index, MAX_ENTRIES, event_index)?;
        let slots = memory::allocate(u64::from(ring.size()) * SLOT_BYTES);
        Ok(BlockQueue {
            ring,
            slots,
            tables: None,
            segments: self.segments,
        })
    }

    /// Lets it work, once all queues exist.
    ///
    /// # Errors
    /// As [`Transport::go_live`].
    pub fn go_live(&self) -> Outcome {
        self.transport.go_live()
    }

    /// Resets it: it touches no memory from then on.
    ///
    /// # Errors
    /// As [`Transport::reset`].
    pub fn reset(&self) -> Outcome {
        self.transport.reset()
    }

    /// Whether the device tells by index when it wants doorbells.
    pub fn has_event_index(&self) -> bool {
        self.features & feature::EVENT_INDEX != 0
    }

    /// The failure of a wait.
    pub fn timeout(&self, what: &str) -> Stop {
        self.transport.timeout(what)
    }
}

/// The two indirect tables of each slot, one for reads and one for writes.
struct Tables {
    memory: Dma,
    /// Descriptors in a table.
    count: u32,
    /// Bytes of data in a request.
    bytes: u32,
}

/// A queue, and requests of one size that each have a slot with a buffer.
pub struct BlockQueue {
    ring: VirtQueue,
    slots: Dma,
    tables: Option<Tables>,
    /// Most segments of data in a request.
    segments: u64,
}

impl BlockQueue {
    /// Builds `depth` requests of `bytes` bytes in scattered pages. The memory is the caller's to
    /// release, once no request is out any more.
    ///
    /// # Errors
    /// There are too many requests for the queue, or they are too large for the device.
    pub fn prepare(&mut self, bytes: u64, depth: usize) -> Outcome {
        let pages = bytes.div_ceil(PAGE);
        let count = pages + 2;
        let size = self.ring.size();
        ensure!(
            depth <= usize::from(size),
            "{depth} requests in {size} entries"
        );
        ensure!(
            pages <= self.segments && count <= size.into(),
            "{pages} pages in a request; the device takes {}, the queue {size}",
            self.segments
        );
        let tables = Tables {
            memory: memory::allocate(depth as u64 * 2 * count * DESCRIPTOR_BYTES),
            count: count as u32,
            bytes: bytes as u32,
        };
        for slot in 0..depth as u64 {
            let buffer = Buffer::new(bytes);
            buffer.write_pattern(memory::mark(), 0);
            for write in [false, true] {
                let chain = self.chain(&buffer, slot, write);
                let built = write_chain(&tables.table(slot, write), chain);
                assert!(built == tables.count);
            }
        }
        self.tables = Some(tables);
        Ok(())
    }

    /// Header, data and status of one slot's request.
    fn chain(&self, buffer: &Buffer, slot: u64, write: bool) -> impl Iterator<Item = Segment> {
        let header = Segment {
            address: self.slots.address(slot * SLOT_BYTES),
            bytes: HEADER_BYTES,
            device_writes: false,
        };
        let status = Segment {
            address: self.slots.address(slot * SLOT_BYTES + STATUS),
            bytes: 1,
            device_writes: true,
        };
        let data = (0..buffer.len)
            .step_by(PAGE as usize)
            .map(move |at| Segment {
                address: buffer.address(at),
                bytes: (buffer.len - at).min(PAGE) as u32,
                device_writes: !write,
            });
        core::iter::once(header)
            .chain(data)
            .chain(core::iter::once(status))
    }

    /// Hands a slot's request to the device, which is not told yet.
    pub fn push(&mut self, slot: u16, write: bool, sector: u64) {
        let Some(tables) = &self.tables else {
            panic!("no requests are prepared");
        };
        let at = u64::from(slot) * SLOT_BYTES;
        self.slots.write32(at, if write { OUT } else { IN });
        self.slots.write64(at + 8, sector);
        self.slots.write8(at + STATUS, UNTOUCHED);
        let table = tables.table(slot.into(), write);
        self.ring.push(slot, table.address(0), tables.count);
    }

    /// Tells the device about everything pushed.
    pub fn ring(&mut self) {
        self.ring.ring();
    }

    /// The slot of the next request that is done.
    ///
    /// # Errors
    /// As [`VirtQueue::take`]; or the request failed, or the device wrote another number of bytes
    /// than the request asks for.
    pub fn take(&mut self) -> Outcome<Option<u16>> {
        let Some((slot, written)) = self.ring.take()? else {
            return Ok(None);
        };
        let at = u64::from(slot) * SLOT_BYTES;
        let status = self.slots.read8(at + STATUS);
        let kind = self.slots.read32(at);
        ensure!(status == OK, "request type {kind}: status {status:#x}");
        let data = self.tables.as_ref().map_or(0, |it| it.bytes);
        let asked = if kind == IN { data + 1 } else { 1 };
        ensure!(
            written == asked,
            "request type {kind}: {written} bytes written, not {asked}"
        );
        Ok(Some(slot))
    }

    /// Ends a batch of [`BlockQueue::take`]: no interrupt for what comes next either.
    pub fn end_batch(&mut self) {
        self.ring.want_no_interrupt();
    }

    /// Doorbells rung so far.
    pub fn doorbell_writes(&self) -> u64 {
        self.ring.doorbell_writes
    }
}

impl Tables {
    /// A slot's table.
    fn table(&self, slot: u64, write: bool) -> Dma {
        let bytes = u64::from(self.count) * DESCRIPTOR_BYTES;
        let index = slot * 2 + u64::from(write);
        self.memory.part(index * bytes, bytes)
    }
}
