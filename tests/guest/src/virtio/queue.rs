//! Split virtqueues (Virtio 1.2, 2.7) without interrupts.

use core::sync::atomic::{Ordering, fence};

use crate::check::{Outcome, ensure};
use crate::io;
use crate::memory::{self, Dma};

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 1 << 1;
const INDIRECT: u16 = 1 << 2;
/// Flag of the available ring: no interrupts, please.
const NO_INTERRUPT: u16 = 1;
/// Flag of the used ring: no doorbells, please.
const NO_NOTIFY: u16 = 1;

/// Bytes of a descriptor.
pub const DESCRIPTOR_BYTES: u64 = 16;

/// Where the two rings keep their flags, their index and the first of their entries.
const FLAGS: u64 = 0;
const INDEX: u64 = 2;
const RING: u64 = 4;

/// One buffer of a chain.
pub struct Segment {
    /// Physical address.
    pub address: u64,
    /// Bytes.
    pub bytes: u32,
    /// Whether the device writes it.
    pub device_writes: bool,
}

/// Writes a chain of descriptors, one behind the other, into a table of its own.
pub fn write_chain(table: &Dma, segments: impl IntoIterator<Item = Segment>) -> u32 {
    let mut count = 0;
    for segment in segments {
        let at = u64::from(count) * DESCRIPTOR_BYTES;
        if count != 0 {
            let last = at - DESCRIPTOR_BYTES;
            table.write16(last + 12, table.read16(last + 12) | NEXT);
            table.write16(last + 14, count as u16);
        }
        table.write64(at, segment.address);
        table.write32(at + 8, segment.bytes);
        table.write16(at + 12, if segment.device_writes { WRITE } else { 0 });
        count += 1;
    }
    count
}

/// A queue whose descriptor `n` only ever stands for request `n`, which lies in an indirect table.
pub struct VirtQueue {
    index: u16,
    size: u16,
    descriptors: Dma,
    available: Dma,
    used: Dma,
    doorbell: u64,
    /// Whether both sides say at which index they want to hear (VIRTIO_F_EVENT_IDX).
    event_index: bool,
    /// Which requests the device has, a byte each.
    out: Dma,
    /// The available index, and what of it the device was told.
    next: u16,
    told: u16,
    /// The used index up to which entries were taken.
    taken: u16,
    /// How often the doorbell was rung.
    pub doorbell_writes: u64,
}

impl VirtQueue {
    pub(super) fn new(index: u16, size: u16, doorbell: u64, event_index: bool) -> Self {
        let entries = u64::from(size);
        let queue = Self {
            index,
            size,
            descriptors: memory::allocate(entries * DESCRIPTOR_BYTES),
            available: memory::allocate(RING + entries * 2 + 2),
            used: memory::allocate(RING + entries * 8 + 2),
            doorbell,
            event_index,
            out: memory::allocate(entries),
            next: 0,
            told: 0,
            taken: 0,
            doorbell_writes: 0,
        };
        queue.want_no_interrupt();
        queue
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn descriptors(&self) -> u64 {
        self.descriptors.address(0)
    }

    pub(super) fn available(&self) -> u64 {
        self.available.address(0)
    }

    pub(super) fn used(&self) -> u64 {
        self.used.address(0)
    }

    /// Hands request `id` (below the size, and not out) to the device, which is not told yet: the
    /// first `count` descriptors of `table`.
    pub fn push(&mut self, id: u16, table: u64, count: u32) {
        assert!(self.out.read8(id.into()) == 0, "request {id} is out");
        self.out.write8(id.into(), 1);
        let at = u64::from(id) * DESCRIPTOR_BYTES;
        self.descriptors.write64(at, table);
        let bytes = count * DESCRIPTOR_BYTES as u32;
        self.descriptors.write32(at + 8, bytes);
        self.descriptors.write16(at + 12, INDIRECT);
        let slot = u64::from(self.next % self.size);
        self.available.write16(RING + slot * 2, id);
        self.next = self.next.wrapping_add(1);
    }

    /// Tells the device about everything pushed, with a doorbell only if it wants one.
    pub fn ring(&mut self) {
        if self.next == self.told {
            return;
        }
        let old = self.told;
        self.told = self.next;
        self.available.write16(INDEX, self.next);
        // The device asks for doorbells and then looks at the index again, so the index must be
        // out before its wish is read.
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let event = self.used.read16(RING + u64::from(self.size) * 8);
            self.next.wrapping_sub(event).wrapping_sub(1) < self.next.wrapping_sub(old)
        } else {
            self.used.read16(FLAGS) & NO_NOTIFY == 0
        };
        if wanted {
            self.doorbell_writes += 1;
            io::write16(self.doorbell, self.index);
        }
    }

    /// Takes the next request that the device is done with, and how many bytes it wrote.
    ///
    /// # Errors
    /// The device returned more than it was given, or a request that it did not have.
    pub fn take(&mut self) -> Outcome<Option<(u16, u32)>> {
        let returned = self.used.read16(INDEX).wrapping_sub(self.taken);
        if returned == 0 {
            return Ok(None);
        }
        let given = self.told.wrapping_sub(self.taken);
        ensure!(
            returned <= given,
            "the used index is {returned} ahead, with {given} requests out"
        );
        // The index was read first; x86 keeps loads in order.
        let at = RING + u64::from(self.taken % self.size) * 8;
        let (id, bytes) = (self.used.read32(at), self.used.read32(at + 4));
        ensure!(
            id < u32::from(self.size) && self.out.read8(id.into()) == 1,
            "the device returned request {id}, which it did not have"
        );
        self.out.write8(id.into(), 0);
        self.taken = self.taken.wrapping_add(1);
        Ok(Some((id as u16, bytes)))
    }

    /// Asks for no interrupt for what comes next; to be repeated before 32,768 requests are done.
    pub fn want_no_interrupt(&self) {
        if self.event_index {
            // Flags do not count then; an index that is half the circle away is not passed soon.
            let far = self.taken.wrapping_add(1 << 15);
            self.available.write16(RING + u64::from(self.size) * 2, far);
        } else {
            self.available.write16(FLAGS, NO_INTERRUPT);
        }
    }
}
