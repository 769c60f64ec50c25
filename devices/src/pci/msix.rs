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
/// Vector state: MSI-X is off, and interrupts go nowhere.
const OFF: u8 = 3;

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
/// Interrupts raised while a vector is masked, by itself or by the function mask, are remembered in
/// its pending bit and delivered as one when it is unmasked. While MSI-X is off they are dropped: the
/// function may not use it and has nothing to remember it for (6.1.4). An interrupt that meets a concurrent mask counts as either before or after it: it may wait in the group
/// instead of the pending bit, but is never lost.
///
/// Table and pending bit array take aligned accesses of 4 and 8 bytes, as the specification asks
/// of software. Others, and those beyond the end, read all ones and are ignored when they write.
pub struct Msix {
    group: Arc<dyn MsiGroup>,
    /// For each vector one of [`ROUTED`], [`MASKED`], [`PENDING`] and [`OFF`]. Only the holder of
    /// `table` leads into and out of `ROUTED` and `OFF`; anyone goes from `MASKED` to `PENDING`.
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
            states: (0..vectors).map(|_| AtomicU8::new(OFF)).collect(),
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
            if seen == OFF {
                return;
            }
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
        self.settle_unrouted(&table);
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
            state.store(OFF, Ordering::Release);
        }
        self.group.discard();
    }

    /// Has the vectors without a route drop interrupts while MSI-X is off, and hold them back else.
    fn settle_unrouted(&self, table: &Table) {
        for (state, entry) in self.states.iter().zip(&table.entries) {
            if !table.enable && entry.routed.is_none() {
                state.store(OFF, Ordering::Release);
            } else if table.enable {
                // A failure means that the vector is routed or held back already.
                let _ = state.compare_exchange(OFF, MASKED, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::testing::{Group, Random};
    use std::sync::atomic::AtomicU64;
    use std::time::{Duration, Instant};

    fn msix(vectors: u16) -> (Arc<Group>, Msix) {
        let group = Group::new(vectors);
        (group.clone(), Msix::new(vectors, group))
    }

    /// Offset of the vector control of `vector`.
    fn control(vector: u16) -> u64 {
        u64::from(vector) * ENTRY + 12
    }

    fn set_mask(msix: &Msix, vector: u16, masked: bool) {
        msix.write_table(control(vector), &u32::from(masked).to_le_bytes());
    }

    fn is_pending(msix: &Msix, vector: u16) -> bool {
        let mut qword = [0; 8];
        msix.read_pba(u64::from(vector / 64) * 8, &mut qword);
        u64::from_le_bytes(qword) >> (vector % 64) & 1 == 1
    }

    #[test]
    fn masks_hold_back_and_deliver_once() {
        for case in 0..8 {
            let [enable, function_mask, masked] = [1, 2, 4].map(|bit| case & bit != 0);
            let (group, msix) = msix(2);
            msix.set_control(enable, function_mask);
            set_mask(&msix, 1, masked);
            for _ in 0..3 {
                msix.trigger(1);
            }
            let delivers = enable && !function_mask && !masked;
            let expected = if delivers { vec![1; 3] } else { vec![] };
            assert_eq!(group.take_delivered(), expected, "case {case}");
            let held = enable && !delivers;
            assert_eq!(is_pending(&msix, 1), held, "case {case}");

            msix.set_control(true, false);
            set_mask(&msix, 1, false);
            let expected = if held { vec![1] } else { vec![] };
            assert_eq!(group.take_delivered(), expected, "case {case}");
            assert!(!is_pending(&msix, 1), "case {case}");
            msix.trigger(1);
            assert_eq!(group.take_delivered(), [1], "case {case}");
        }
    }

    #[test]
    fn each_mask_alone_holds_back_what_was_routed() {
        let hold: [fn(&Msix); 2] = [
            |msix| msix.set_control(true, true),
            |msix| set_mask(msix, 0, true),
        ];
        for (case, hold) in hold.into_iter().enumerate() {
            let (group, msix) = msix(1);
            set_mask(&msix, 0, false);
            msix.set_control(true, false);
            hold(&msix);
            assert_eq!(group.state.lock().unwrap().vectors[0].route, None, "{case}");
            msix.trigger(0);
            assert!(is_pending(&msix, 0), "{case}");
            assert!(group.take_delivered().is_empty(), "{case}");
            msix.set_control(true, false);
            set_mask(&msix, 0, false);
            assert_eq!(group.take_delivered(), [0], "{case}");
        }
    }

    #[test]
    fn messages_reach_the_group_as_written() {
        let (group, msix) = msix(3);
        msix.set_control(true, false);
        msix.write_table(16, &0x1_fee0_1007_u64.to_le_bytes());
        msix.write_table(24, &0x4041_u64.to_le_bytes());
        msix.trigger(1);
        let message = MsiMessage {
            address: 0x1_fee0_1004,
            data: 0x4041,
        };
        assert_eq!(group.state.lock().unwrap().delivered, [(1, message)]);
        let mut entry = [0; 8];
        msix.read_table(16, &mut entry);
        assert_eq!(u64::from_le_bytes(entry), 0x1_fee0_1004);
        let mut data = [0; 4];
        msix.read_table(24, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x4041);
    }

    #[test]
    fn changes_come_in_one_batch() {
        let (group, msix) = msix(100);
        for vector in 0..100 {
            msix.write_table(u64::from(vector) * ENTRY, &[0; 8]);
            msix.write_table(
                u64::from(vector) * ENTRY + 8,
                &u32::from(vector).to_le_bytes(),
            );
            if vector < 90 {
                set_mask(&msix, vector, false);
            }
        }
        assert!(group.take_updates().is_empty(), "MSI-X is off");

        let sizes = || -> Vec<usize> { group.take_updates().iter().map(Vec::len).collect() };
        msix.set_control(true, true);
        assert!(sizes().is_empty());
        msix.set_control(true, false);
        assert_eq!(sizes(), [90]);
        msix.set_control(true, false);
        assert!(sizes().is_empty());
        set_mask(&msix, 95, false);
        assert_eq!(sizes(), [1]);
        msix.write_table(99 * ENTRY + 8, &7_u32.to_le_bytes());
        assert!(sizes().is_empty(), "vector 99 is masked");
        msix.write_table(5 * ENTRY + 8, &7_u32.to_le_bytes());
        assert_eq!(sizes(), [1], "vector 5 is not");
        msix.write_table(5 * ENTRY + 8, &7_u32.to_le_bytes());
        assert!(sizes().is_empty(), "the same message");
        msix.set_control(true, true);
        assert_eq!(sizes(), [91]);
        msix.set_control(false, false);
        assert!(sizes().is_empty());
    }

    #[test]
    fn a_failed_route_keeps_the_event() {
        let (group, msix) = msix(1);
        set_mask(&msix, 0, false);
        group.state.lock().unwrap().fail_updates = true;
        msix.set_control(true, false);
        msix.trigger(0);
        assert!(is_pending(&msix, 0));
        group.state.lock().unwrap().fail_updates = false;
        msix.set_control(true, false);
        assert_eq!(group.take_delivered(), [0]);
        assert!(!is_pending(&msix, 0));
    }

    #[test]
    fn reset_forgets_everything() {
        let (group, msix) = msix(2);
        for vector in 0..2_u16 {
            msix.write_table(u64::from(vector) * ENTRY, &[0xff; 8]);
        }
        set_mask(&msix, 0, false);
        msix.trigger(1);
        msix.set_control(true, false);
        group.take_updates();
        msix.reset();
        assert_eq!(group.take_updates(), [vec![(0, None)]]);
        assert!(!is_pending(&msix, 1));
        let mut entry = [0xff; 8];
        msix.read_table(16, &mut entry);
        assert_eq!(entry, [0; 8]);
        msix.read_table(24, &mut entry);
        assert_eq!(entry, [0, 0, 0, 0, 1, 0, 0, 0]);

        msix.set_control(true, false);
        set_mask(&msix, 0, false);
        set_mask(&msix, 1, false);
        assert!(group.take_delivered().is_empty());
    }

    #[test]
    fn reset_forgets_what_the_group_holds() {
        let (group, msix) = msix(1);
        // As a trigger that read "routed" just before a mask would.
        group.trigger(0);
        msix.reset();
        msix.set_control(true, false);
        set_mask(&msix, 0, false);
        assert!(group.take_delivered().is_empty());
    }

    #[test]
    fn while_off_interrupts_go_nowhere() {
        let (group, msix) = msix(1);
        msix.trigger(0);
        set_mask(&msix, 0, false);
        msix.set_control(true, false);
        msix.set_control(false, false);
        msix.trigger(0);
        assert!(!is_pending(&msix, 0));
        msix.set_control(true, false);
        assert!(group.take_delivered().is_empty());
        msix.trigger(0);
        assert_eq!(group.take_delivered(), [0]);
    }

    #[test]
    fn pending_bits_of_2048_vectors() {
        let (_, msix) = msix(MAX_VECTORS);
        msix.set_control(true, true);
        let pending = [0, 1, 7, 8, 63, 64, 1000, 2047];
        for vector in pending {
            msix.trigger(vector);
        }
        for vector in [2048, u16::MAX] {
            msix.trigger(vector);
        }
        for vector in 0..MAX_VECTORS {
            assert_eq!(
                is_pending(&msix, vector),
                pending.contains(&vector),
                "{vector}"
            );
        }
        let mut dword = [0; 4];
        msix.read_pba(4, &mut dword);
        assert_eq!(dword, [0, 0, 0, 0x80]);
        msix.read_pba(256, &mut dword);
        assert_eq!(dword, [0xff; 4], "beyond the end");
        msix.read_table(2047 * ENTRY + 12, &mut dword);
        assert_eq!(dword, [1, 0, 0, 0]);
    }

    #[test]
    fn no_access_of_any_size_at_any_offset_does_harm() {
        let (_, msix) = msix(5);
        msix.set_control(true, false);
        let mut random = Random(1);
        let near = 0..5 * ENTRY + 32;
        for offset in near.chain(u64::MAX - 16..=u64::MAX) {
            for size in 0..=16 {
                let valid = |end| {
                    [4, 8].contains(&size)
                        && offset % size as u64 == 0
                        && offset
                            .checked_add(size as u64)
                            .is_some_and(|last| last <= end)
                };
                let before = whole_table(&msix);
                let data = random.bytes::<16>();
                msix.write_table(offset, &data[..size]);
                if !valid(5 * ENTRY) {
                    assert_eq!(whole_table(&msix), before, "{offset:#x} {size}");
                }
                let mut read = [0x5a; 16];
                msix.read_table(offset, &mut read[..size]);
                if !valid(5 * ENTRY) {
                    assert!(read[..size].iter().all(|&b| b == 0xff));
                }
                read.fill(0);
                msix.read_pba(offset, &mut read[..size]);
                let expected = if valid(8) { 0 } else { 0xff };
                assert!(read[..size].iter().all(|&b| b == expected));
            }
        }
    }

    fn whole_table(msix: &Msix) -> Vec<[u8; 8]> {
        let qwords = u64::from(msix.vectors()) * ENTRY / 8;
        (0..qwords)
            .map(|i| {
                let mut qword = [0; 8];
                msix.read_table(i * 8, &mut qword);
                qword
            })
            .collect()
    }

    /// Devices post an event, trigger and wait until the guest's interrupt handler has seen it,
    /// while the guest masks in every way: one lost interrupt and a device waits in vain.
    #[test]
    fn concurrent_masks_lose_no_interrupt() {
        const VECTORS: usize = 3;
        const EVENTS: u64 = 50_000;
        let posted: Arc<[AtomicU64; VECTORS]> = Arc::default();
        let seen: Arc<[AtomicU64; VECTORS]> = Arc::default();
        let handler = {
            let (posted, seen) = (posted.clone(), seen.clone());
            move |vector: u16| {
                let vector = usize::from(vector);
                seen[vector].store(posted[vector].load(Ordering::Relaxed), Ordering::Relaxed);
            }
        };
        let vectors = u16::try_from(VECTORS).unwrap();
        let msix = Msix::new(vectors, Group::with_handler(vectors, Box::new(handler)));
        msix.set_control(true, false);
        let deadline = Instant::now() + Duration::from_secs(120);
        let device = |vector: u16| {
            for event in 1..=EVENTS {
                posted[usize::from(vector)].store(event, Ordering::Relaxed);
                msix.trigger(vector);
                while seen[usize::from(vector)].load(Ordering::Relaxed) < event {
                    assert!(
                        Instant::now() < deadline,
                        "event {event} of {vector} is lost"
                    );
                    std::thread::yield_now();
                }
            }
        };
        std::thread::scope(|scope| {
            let device = &device;
            let start = |vector| scope.spawn(move || device(vector));
            let devices: Vec<_> = (0..vectors).map(start).collect();
            let mut random = Random(7);
            while !devices.iter().all(|device| device.is_finished()) {
                let roll = random.next() >> 32;
                let vector = u16::try_from(roll % 3).unwrap();
                match roll / 3 % 4 {
                    0 => msix.set_control(true, roll & 128 != 0),
                    1 => msix.set_control(true, false),
                    _ => set_mask(&msix, vector, roll & 64 != 0),
                }
            }
        });
    }
}
