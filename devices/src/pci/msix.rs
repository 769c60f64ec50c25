//! MSI-X vectors: table, pending bits and delivery (PCI Express Base 5.0, 6.1.4 and 7.7.2).

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::guest_warn;
use crate::interrupt::{MsiGroup, MsiMessage};

/// The most vectors a function can have.
pub const MAX_VECTORS: u16 = 2048;

/// Bytes of a table entry: address, data, vector control.
const ENTRY: u64 = 16;
/// A table entry as the guest sees it.
type EntryBytes = [u8; 16];
/// Vector control bit 0: the vector is masked. The other bits are reserved and read 0.
const VECTOR_MASKED: u32 = 1;
/// The address bits that are always 0.
const ADDRESS_RESERVED: u64 = 0b11;

/// Vector state: its message reaches the guest.
const ROUTED: u8 = 0;
/// Vector state: held back, with nothing to deliver.
const MASKED: u8 = 1;
/// Vector state: held back, with an interrupt to deliver.
const PENDING: u8 = 2;

/// One table entry.
#[derive(Debug, Clone, Copy)]
struct Entry {
    message: MsiMessage,
    masked: bool,
    /// What the group routes the vector to.
    routed: Option<MsiMessage>,
}

impl Entry {
    /// Masked with a zero message, as after reset.
    const RESET: Self = Self {
        message: MsiMessage {
            address: 0,
            data: 0,
        },
        masked: true,
        routed: None,
    };

    fn bytes(&self) -> EntryBytes {
        let control = u32::from(self.masked) * VECTOR_MASKED;
        let mut bytes = EntryBytes::default();
        bytes[..8].copy_from_slice(&self.message.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.message.data.to_le_bytes());
        bytes[12..].copy_from_slice(&control.to_le_bytes());
        bytes
    }

    /// Takes what the guest would see.
    fn set_bytes(&mut self, bytes: &EntryBytes) {
        let dword =
            |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        let address = u64::from(dword(4)) << 32 | u64::from(dword(0));
        self.message = MsiMessage {
            address: address & !ADDRESS_RESERVED,
            data: dword(8),
        };
        self.masked = dword(12) & VECTOR_MASKED != 0;
    }
}

struct Table {
    entries: Vec<Entry>,
    enable: bool,
    function_mask: bool,
}

impl Table {
    /// Where `vector` should be routed now.
    fn wanted(&self, vector: u16) -> Option<MsiMessage> {
        let entry = &self.entries[usize::from(vector)];
        let delivers = self.enable && !self.function_mask && !entry.masked;
        delivers.then_some(entry.message)
    }
}

/// The MSI-X vectors of one function.
///
/// Interrupts raised while a vector is masked, by itself, by the function mask or because MSI-X is
/// off, are remembered in its pending bit and delivered as one when it is unmasked. An interrupt
/// that meets a concurrent mask counts as either before or after it: it may wait in the group
/// instead of the pending bit, but is never lost.
///
/// Table and pending bit array take aligned accesses of 4 and 8 bytes, as the specification asks
/// of software. Others, and those beyond the end, read all ones and are ignored when they write.
pub struct Msix {
    group: Arc<dyn MsiGroup>,
    /// For each vector one of [`ROUTED`], [`MASKED`] and [`PENDING`]. Only the holder of `table`
    /// leads into and out of `ROUTED`; anyone goes from `MASKED` to `PENDING`.
    states: Box<[AtomicU8]>,
    table: Mutex<Table>,
}

impl Msix {
    /// `vectors` masked vectors (1 to 2,048), delivered through `group`; MSI-X is off.
    #[must_use]
    pub fn new(vectors: u16, group: Arc<dyn MsiGroup>) -> Self {
        let table = Table {
            entries: vec![Entry::RESET; usize::from(vectors)],
            enable: false,
            function_mask: false,
        };
        Self {
            group,
            states: (0..vectors).map(|_| AtomicU8::new(MASKED)).collect(),
            table: Mutex::new(table),
        }
    }

    /// Number of vectors.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        // No more than `new` was given.
        u16::try_from(self.states.len()).unwrap_or(u16::MAX)
    }

    /// Raises an interrupt on `vector`, or ignores a vector that does not exist. Takes no lock.
    pub fn trigger(&self, vector: u16) {
        let Some(state) = self.states.get(usize::from(vector)) else {
            return;
        };
        let mut seen = state.load(Ordering::Relaxed);
        while seen != ROUTED {
            // Also from PENDING to PENDING: an unmask that comes later in this variable's order
            // then sees all that the caller did before (the completion that it announces). After
            // a mere load, the guest could be interrupted for the earlier event and not see it.
            match state.compare_exchange(seen, PENDING, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
        // If the vector is being masked just now, the group keeps the event until it has a route.
        self.group.trigger(vector);
    }

    /// Takes over `enable` and `function_mask` of the MSI-X control register.
    pub fn set_control(&self, enable: bool, function_mask: bool) {
        let mut table = self.table();
        table.enable = enable;
        table.function_mask = function_mask;
        self.settle(&mut table, 0..self.vectors());
    }

    /// Fills `data` from `offset` of the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        match locate(offset, data.len(), self.vectors()) {
            Some((vector, position)) => {
                let bytes = self.table().entries[usize::from(vector)].bytes();
                data.copy_from_slice(&bytes[position..position + data.len()]);
            }
            None => data.fill(0xff),
        }
    }

    /// Takes a guest write at `offset` of the table.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let Some((vector, position)) = locate(offset, data.len(), self.vectors()) else {
            return;
        };
        let mut table = self.table();
        let entry = &mut table.entries[usize::from(vector)];
        let mut bytes = entry.bytes();
        bytes[position..position + data.len()].copy_from_slice(data);
        entry.set_bytes(&bytes);
        self.settle(&mut table, vector..vector + 1);
    }

    /// Fills `data` from `offset` of the pending bit array, which is read-only.
    pub fn read_pba(&self, offset: u64, data: &mut [u8]) {
        let qwords = u64::from(self.vectors()).div_ceil(64);
        if !is_aligned(offset, data.len(), qwords * 8) {
            data.fill(0xff);
            return;
        }
        let first = usize::try_from(offset * 8).unwrap_or(usize::MAX);
        let mut states = self.states.get(first..).unwrap_or_default().iter();
        for byte in data {
            *byte = (0..8).fold(0, |bits, bit| {
                let pending = states
                    .next()
                    .is_some_and(|state| state.load(Ordering::Acquire) == PENDING);
                bits | u8::from(pending) << bit
            });
        }
    }

    /// Back to the state after power-on: MSI-X off, vectors masked, pending interrupts forgotten.
    ///
    /// The function must have stopped raising interrupts, or the first one may be a leftover.
    pub fn reset(&self) {
        let mut table = self.table();
        table.enable = false;
        table.function_mask = false;
        self.settle(&mut table, 0..self.vectors());
        table.entries.fill(Entry::RESET);
        for state in &self.states {
            state.store(MASKED, Ordering::Release);
        }
        self.group.discard();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Routes those of `vectors` that are not where the table wants them, in one batch, and
    /// delivers what was pending on those that got a route.
    fn settle(&self, table: &mut Table, vectors: Range<u16>) {
        let changes: Vec<_> = vectors
            .map(|vector| (vector, table.wanted(vector)))
            .filter(|(vector, wanted)| table.entries[usize::from(*vector)].routed != *wanted)
            .collect();
        if changes.is_empty() {
            return;
        }
        for &(vector, wanted) in &changes {
            if wanted.is_none() {
                self.states[usize::from(vector)].store(MASKED, Ordering::Release);
                table.entries[usize::from(vector)].routed = None;
            }
        }
        if let Err(error) = self.group.update(&changes) {
            // The vectors keep their events pending, until the guest's next change tries again.
            guest_warn!("cannot route MSI-X vectors: {error}");
            return;
        }
        for &(vector, wanted) in &changes {
            if wanted.is_some() {
                table.entries[usize::from(vector)].routed = wanted;
                let state = &self.states[usize::from(vector)];
                if state.swap(ROUTED, Ordering::AcqRel) == PENDING {
                    self.group.trigger(vector);
                }
            }
        }
    }
}

/// Whether an access is one that software may make: 4 or 8 bytes, aligned, within `size` bytes.
fn is_aligned(offset: u64, len: usize, size: u64) -> bool {
    let len = match len {
        4 => 4,
        8 => 8,
        _ => return false,
    };
    offset.is_multiple_of(len) && offset.checked_add(len).is_some_and(|end| end <= size)
}

/// The vector at `offset` of the table, and the position of an access of `len` bytes in its entry.
fn locate(offset: u64, len: usize, vectors: u16) -> Option<(u16, usize)> {
    if !is_aligned(offset, len, u64::from(vectors) * ENTRY) {
        return None;
    }
    let vector = u16::try_from(offset / ENTRY).ok()?;
    let position = usize::try_from(offset % ENTRY).ok()?;
    Some((vector, position))
}
