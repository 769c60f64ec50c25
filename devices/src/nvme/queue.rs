//! Submission and completion queues in guest memory (NVMe Base 2.0c, 3.3.1 and 4.2).

use std::sync::atomic::Ordering;

use crate::ram::{GuestRam, MappedRange, NotRam};

use super::spec::{Cqe, Sqe};

/// Size of a submission queue entry in bytes (CC.IOSQES = 6).
pub const SQE_SIZE: usize = 64;
/// Size of a completion queue entry in bytes (CC.IOCQES = 4).
pub const CQE_SIZE: usize = 16;

/// The consumer's side of a submission queue.
#[derive(Debug)]
pub struct SubmissionQueue {
    id: u16,
    ring: MappedRange,
    entries: u32,
    head: u32,
}

impl SubmissionQueue {
    /// A queue of `entries` (2 to 65,536) at guest physical `address`.
    ///
    /// # Errors
    /// The ring is not in RAM.
    pub fn new(ram: &GuestRam, id: u16, address: u64, entries: u32) -> Result<Self, NotRam> {
        let ring = ram.map(address, entries as usize * SQE_SIZE)?;
        Ok(Self {
            id,
            ring,
            entries,
            head: 0,
        })
    }

    /// Queue identifier.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Whether `tail` is an index into the queue.
    pub fn has_index(&self, tail: u32) -> bool {
        tail < self.entries
    }

    /// Index of the entry to fetch next.
    pub fn head(&self) -> u32 {
        self.head
    }

    /// The index before [`SubmissionQueue::head`]: the guest's tail passes that only after a lap.
    pub fn head_minus_one(&self) -> u32 {
        self.head.checked_sub(1).unwrap_or(self.entries - 1)
    }

    /// Fetches the next command, unless `tail` (below the queue's size) says there is none.
    pub fn pop(&mut self, tail: u32) -> Option<Sqe> {
        if self.head == tail {
            return None;
        }
        let sqe = self.ring.read(self.head as usize * SQE_SIZE);
        self.head = next(self.head, self.entries);
        Some(sqe)
    }
}

/// A completion queue entry that is set aside for one command, so that its completion always fits.
#[derive(Debug)]
#[must_use = "a reserved entry is lost to its queue until it is posted or given back"]
pub struct Reservation(());

/// The producer's side of a completion queue.
#[derive(Debug)]
pub struct CompletionQueue {
    id: u16,
    ring: MappedRange,
    entries: u32,
    tail: u32,
    phase: bool,
    // The guest's head as last seen.
    head: u32,
    reserved: u32,
    vector: Option<u16>,
}

impl CompletionQueue {
    /// A queue of `entries` (2 to 65,536) at guest physical `address` that raises `vector`, if any.
    ///
    /// # Errors
    /// The ring is not in RAM.
    pub fn new(
        ram: &GuestRam,
        id: u16,
        address: u64,
        entries: u32,
        vector: Option<u16>,
    ) -> Result<Self, NotRam> {
        let ring = ram.map(address, entries as usize * CQE_SIZE)?;
        Ok(Self {
            id,
            ring,
            entries,
            tail: 0,
            phase: true,
            head: 0,
            reserved: 0,
            vector,
        })
    }

    /// Queue identifier.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Interrupt vector, if interrupts are enabled.
    pub fn vector(&self) -> Option<u16> {
        self.vector
    }

    /// The guest's head as last told to [`CompletionQueue::set_head`].
    pub fn head(&self) -> u32 {
        self.head
    }

    /// The index before the guest's head: it passes that only after a lap.
    pub fn head_minus_one(&self) -> u32 {
        if self.head == 0 {
            self.entries - 1
        } else {
            self.head - 1
        }
    }

    /// Takes the guest's head. A head that would free entries never posted is refused with `false`.
    pub fn set_head(&mut self, head: u32) -> bool {
        let distance = |from: u32, to: u32| (to + self.entries - from) % self.entries;
        if head >= self.entries || distance(self.head, head) > distance(self.head, self.tail) {
            return false;
        }
        self.head = head;
        true
    }

    /// Entries that are neither posted and unread nor reserved.
    pub fn free(&self) -> u32 {
        let used = (self.tail + self.entries - self.head) % self.entries;
        self.entries - 1 - used - self.reserved
    }

    /// Completions that the queue can hold: one entry of a full queue is never used.
    pub fn capacity(&self) -> u32 {
        self.entries - 1
    }

    /// Sets an entry aside, if one is free.
    pub fn reserve(&mut self) -> Option<Reservation> {
        if self.free() == 0 {
            return None;
        }
        self.reserved += 1;
        Some(Reservation(()))
    }

    /// Gives back an entry that will not be posted.
    pub fn give_back(&mut self, _: Reservation) {
        self.reserved -= 1;
    }

    /// Publishes a completion: two stores, the half with the phase bit last.
    pub fn post(&mut self, _: Reservation, cqe: &Cqe) {
        self.reserved -= 1;
        let mut cqe = *cqe;
        cqe.set_phase(self.phase);
        let [low, high] = cqe.as_halves();
        let offset = self.tail as usize * CQE_SIZE;
        self.ring.store_u64(offset, low, Ordering::Relaxed);
        self.ring.store_u64(offset + 8, high, Ordering::Release);
        self.tail = next(self.tail, self.entries);
        if self.tail == 0 {
            self.phase = !self.phase;
        }
    }
}

fn next(index: u32, entries: u32) -> u32 {
    if index + 1 == entries { 0 } else { index + 1 }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::nvme::spec::Status;

    fn ram() -> GuestRam {
        GuestRam::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap())
    }

    fn entry(ram: &GuestRam, index: u64) -> Cqe {
        ram.read(index * 16).unwrap()
    }

    #[test]
    fn rings_lie_in_ram() {
        let ram = ram();
        assert!(SubmissionQueue::new(&ram, 1, 0x3fc0, 1).is_ok());
        assert!(SubmissionQueue::new(&ram, 1, 0x3fc0, 2).is_err());
        assert!(SubmissionQueue::new(&ram, 1, 0, 65_536).is_err());
        assert!(CompletionQueue::new(&ram, 1, 0, 1024, None).is_ok());
        assert!(CompletionQueue::new(&ram, 1, 0, 1025, None).is_err());
        assert!(CompletionQueue::new(&ram, 1, 0u64.wrapping_sub(4096), 2, None).is_err());
    }

    #[test]
    fn commands_are_fetched_up_to_the_tail_and_round_the_end() {
        let ram = ram();
        let mut queue = SubmissionQueue::new(&ram, 1, 0x1000, 3).unwrap();
        for nsid in 0..3u32 {
            ram.write(0x1004 + u64::from(nsid) * 64, &nsid).unwrap();
        }
        let mut pop = |tail| queue.pop(tail).map(|sqe| sqe.nsid);
        assert_eq!(pop(0), None);
        assert_eq!([pop(2), pop(2), pop(2)], [Some(0), Some(1), None]);
        assert_eq!([pop(1), pop(1), pop(1)], [Some(2), Some(0), None]);
        assert_eq!(queue.head(), 1);
        assert!(queue.has_index(2) && !queue.has_index(3) && !queue.has_index(u32::MAX));
    }

    #[test]
    fn the_phase_changes_with_every_lap() {
        let ram = ram();
        let mut queue = CompletionQueue::new(&ram, 1, 0, 3, Some(4)).unwrap();
        for number in 0..7u16 {
            let room = queue.reserve().unwrap();
            queue.post(room, &Cqe::success(0, 0, 1, number));
            let posted = entry(&ram, u64::from(number) % 3);
            assert_eq!((posted.cid, posted.phase()), (number, number / 3 % 2 == 0));
            assert!(queue.set_head(u32::from(number + 1) % 3));
        }
        let room = queue.reserve().unwrap();
        queue.post(room, &Cqe::error(Status::INVALID_FIELD, true, 9, 1, 77));
        let posted = entry(&ram, 1);
        assert_eq!((posted.status(), posted.sqhd), (Status::INVALID_FIELD, 9));
        assert!(posted.dnr() && posted.phase() == (7 / 3 % 2 == 0));
    }

    #[test]
    fn entries_are_free_reserved_or_posted() {
        let ram = ram();
        let mut queue = CompletionQueue::new(&ram, 1, 0, 4, None).unwrap();
        let [first, second, third] = [0; 3].map(|_| queue.reserve().unwrap());
        assert!(
            queue.reserve().is_none(),
            "one entry of a full queue is never used"
        );
        queue.give_back(second);
        assert_eq!(queue.free(), 1);
        queue.post(first, &Cqe::default());
        assert_eq!(queue.free(), 1);
        // Heads beyond what was posted free nothing.
        for head in [2, 3, 4, u32::MAX] {
            assert!(!queue.set_head(head), "{head}");
        }
        assert!(queue.set_head(1));
        assert_eq!((queue.free(), queue.head()), (2, 1));
        assert!(!queue.set_head(0), "back");
        queue.post(third, &Cqe::default());
        assert_eq!(queue.free(), 2);
    }

    #[test]
    fn the_index_before_the_head_is_one_lap_away() {
        let ram = ram();
        let mut queue = CompletionQueue::new(&ram, 1, 0, 4, None).unwrap();
        assert_eq!(queue.head_minus_one(), 3);
        let room = queue.reserve().unwrap();
        queue.post(room, &Cqe::default());
        assert!(queue.set_head(1));
        assert_eq!(queue.head_minus_one(), 0);
    }
}
