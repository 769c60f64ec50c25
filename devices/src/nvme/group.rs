//! A completion queue with the submission queues that feed it.

use std::sync::Arc;
use std::time::Instant;

use super::coalescing::{Due, Limits, Untold};
use super::core::{Core, DoorbellError};
use super::doorbell::{DoorbellId, Shadow};
use super::error::CommandError;
use super::queue::{CompletionQueue, Reservation, SubmissionQueue};
use super::snapshots::Snapshots;
use super::spec::{Cqe, Sqe};
use super::stats::{CqStats, SqStats};

/// Whether queues take commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// They do.
    Running,
    /// No more; what is in flight ends and is completed.
    Deleting,
    /// No more; what is in flight ends in silence.
    Resetting,
    /// Not here: another thread is to serve them once nothing is in flight.
    Leaving,
}

/// How the guest's completion queue heads come when it shadows no doorbells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heads {
    /// They may be kept until somebody asks.
    Kept,
    /// Each leaves the guest, so that the thread can be told of it.
    Told,
}

/// A submission queue and its commands.
#[derive(Debug)]
pub struct Sq {
    pub queue: SubmissionQueue,
    pub stats: Arc<SqStats>,
    pub state: State,
    // The event index last published.
    event_index: Option<u32>,
    // The guest's tail was no index into the queue when last looked at.
    bad_tail: bool,
}

impl Sq {
    /// Commands that were fetched and have not ended.
    pub fn in_flight(&self) -> u32 {
        self.stats.in_flight.get()
    }

    fn publish_event_index(&mut self, shadow: &Shadow, index: u32) {
        if self.event_index.replace(index) != Some(index) {
            shadow.set_event_index(DoorbellId::sq(self.queue.id()), index);
        }
    }
}

/// What keeps a submission queue with commands in it from being served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetch {
    /// A command, with room for its completion.
    Command,
    /// Nothing to fetch.
    Empty,
    /// The completion queue is full.
    NoRoom,
}

/// The queues that one thread serves together.
#[derive(Debug)]
pub struct Group {
    pub core: Arc<Core>,
    pub cq: CompletionQueue,
    pub cq_stats: Arc<CqStats>,
    // Indices are stable: commands in flight name their queue by it.
    pub sqs: Vec<Option<Sq>>,
    pub snapshots: Snapshots,
    pub shadow: Option<Arc<Shadow>>,
    pub state: State,
    // Completions posted since the last interrupt.
    untold: Untold,
    cq_event_index: Option<u32>,
    heads: Heads,
    // The guest's head could not be when last looked at.
    bad_head: bool,
}

impl Group {
    /// A completion queue that nothing feeds yet.
    pub fn new(core: Arc<Core>, cq: CompletionQueue, cq_stats: Arc<CqStats>) -> Self {
        let snapshots = Snapshots::new(&core.namespaces);
        let shadow = core.doorbells.shadow();
        let mut group = Self {
            core,
            cq,
            cq_stats,
            sqs: Vec::new(),
            snapshots,
            shadow,
            state: State::Running,
            untold: Untold::default(),
            cq_event_index: None,
            heads: Heads::Kept,
            bad_head: false,
        };
        group.refresh_head();
        group
    }

    /// Adds a submission queue.
    pub fn add_sq(&mut self, queue: SubmissionQueue, stats: Arc<SqStats>) {
        let sq = Some(Sq {
            queue,
            stats,
            state: State::Running,
            event_index: None,
            bad_tail: false,
        });
        match self.sqs.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = sq,
            None => self.sqs.push(sq),
        }
    }

    /// Index of the submission queue with this identifier.
    pub fn find_sq(&self, sqid: u16) -> Option<usize> {
        let is_it = |sq: &Option<Sq>| sq.as_ref().is_some_and(|sq| sq.queue.id() == sqid);
        self.sqs.iter().position(is_it)
    }

    /// The submission queue at an index.
    pub fn sq_mut(&mut self, index: usize) -> Option<&mut Sq> {
        self.sqs.get_mut(index)?.as_mut()
    }

    /// Commands in flight in all queues.
    pub fn in_flight(&self) -> u32 {
        self.sqs.iter().flatten().map(Sq::in_flight).sum()
    }

    /// Doorbell values come from `shadow` from now on.
    pub fn start_shadow(&mut self, shadow: Arc<Shadow>) {
        self.shadow = Some(shadow);
        self.cq_event_index = None;
        for sq in self.sqs.iter_mut().flatten() {
            sq.event_index = None;
        }
        self.refresh_head();
    }

    /// Goes to another thread, with the shadow buffers in use now and its doorbells registered anew.
    pub fn move_on(&mut self, shadow: Option<Arc<Shadow>>) {
        self.state = State::Running;
        // Its next owner pauses them again if it waits for room.
        self.heads = Heads::Kept;
        if let Some(shadow) = shadow
            && !self
                .shadow
                .as_ref()
                .is_some_and(|own| Arc::ptr_eq(own, &shadow))
        {
            self.start_shadow(shadow);
        }
    }

    /// The guest's tail of the queue at `index`, if commands may be taken from it and it has any.
    fn tail(&mut self, index: usize) -> Option<u32> {
        let sq = self.sqs.get_mut(index)?.as_mut()?;
        if sq.state != State::Running || self.state != State::Running || !self.core.bus_master() {
            return None;
        }
        let id = DoorbellId::sq(sq.queue.id());
        let tail = self.core.doorbells.value(id, self.shadow.as_deref());
        let bad = !sq.queue.has_index(tail);
        let was_bad = std::mem::replace(&mut sq.bad_tail, bad);
        if bad {
            // Told once: a value in memory stays, and would be told for ever.
            if !was_bad {
                self.core.doorbell_error(DoorbellError::Value);
            }
            return None;
        }
        (tail != sq.queue.head()).then_some(tail)
    }

    /// Whether the queue at `index` has a command and a place for its completion.
    pub fn poll(&mut self, index: usize) -> Fetch {
        match self.tail(index) {
            None => Fetch::Empty,
            Some(_) if self.has_room() => Fetch::Command,
            Some(_) => Fetch::NoRoom,
        }
    }

    /// Takes the next command of the queue at `index` with room for its completion.
    pub fn fetch(&mut self, index: usize) -> Option<(Sqe, Reservation)> {
        let tail = self.tail(index)?;
        if !self.has_room() {
            return None;
        }
        let reservation = self.cq.reserve()?;
        let sq = self.sqs.get_mut(index)?.as_mut()?;
        match sq.queue.pop(tail) {
            Some(sqe) => {
                sq.stats.in_flight.add(1);
                sq.stats.commands.add(1);
                Some((sqe, reservation))
            }
            None => {
                self.cq.give_back(reservation);
                None
            }
        }
    }

    /// Sets a completion queue entry aside for a command that has none; asks to be told of room if
    /// there is none.
    pub fn reserve(&mut self) -> Option<Reservation> {
        if self.has_room() || self.wait_for_room() {
            self.cq.reserve()
        } else {
            None
        }
    }

    fn has_room(&mut self) -> bool {
        if self.cq.free() == 0 {
            self.refresh_head();
        }
        if self.cq.free() == 0 && self.shadow.is_none() {
            self.core.doorbells.take_all_kept();
            self.refresh_head();
        }
        if self.heads == Heads::Told {
            self.keep_heads();
        }
        self.cq.free() > 0
    }

    /// Lets heads be kept again once the guest has taken half of the queue: the change is costly, and
    /// a queue that was just full will soon be.
    fn keep_heads(&mut self) {
        let free = self.cq.free();
        if free > 0 && free >= self.cq.capacity() / 2 {
            self.heads = Heads::Kept;
            let id = DoorbellId::cq(self.cq.id());
            self.core.doorbells.resume_coalescing(id);
        }
    }

    /// Looks at the guest's head. Its event index is left one lap away: with MSI-X nothing but a full
    /// queue needs the guest's doorbell. The guest cannot pass that index before the next look, for
    /// no completion is posted beyond it.
    fn refresh_head(&mut self) {
        let id = DoorbellId::cq(self.cq.id());
        let head = self.core.doorbells.value(id, self.shadow.as_deref());
        let bad = !self.cq.set_head(head);
        if bad && !std::mem::replace(&mut self.bad_head, bad) {
            self.core.doorbell_error(DoorbellError::Value);
        }
        self.bad_head = bad;
        let lap = self.cq.head_minus_one();
        self.publish_cq_event_index(lap);
    }

    fn publish_cq_event_index(&mut self, index: u32) {
        if let Some(shadow) = &self.shadow
            && self.cq_event_index.replace(index) != Some(index)
        {
            shadow.set_event_index(DoorbellId::cq(self.cq.id()), index);
        }
    }

    /// Ends a command that was fetched: posts its completion.
    pub fn complete(
        &mut self,
        index: usize,
        cid: u16,
        room: Reservation,
        end: Result<u32, CommandError>,
    ) {
        if let Some(sq) = self.sq_mut(index) {
            sq.stats.in_flight.sub(1);
        }
        self.post(index, cid, room, end);
    }

    /// Ends a command that was fetched, in silence.
    pub fn forget(&mut self, index: usize, room: Reservation) {
        if let Some(sq) = self.sq_mut(index) {
            sq.stats.in_flight.sub(1);
        }
        self.cq.give_back(room);
    }

    /// Posts a completion for a command of the queue at `index`.
    pub fn post(
        &mut self,
        index: usize,
        cid: u16,
        room: Reservation,
        end: Result<u32, CommandError>,
    ) {
        let Some(sq) = self.sqs.get(index).and_then(Option::as_ref) else {
            self.cq.give_back(room);
            return;
        };
        // The head is below 65,536, the largest queue.
        #[allow(clippy::cast_possible_truncation)]
        let (sqhd, sqid) = (sq.queue.head() as u16, sq.queue.id());
        let limits = self.limits();
        self.untold.add(end.is_err(), limits);
        let cqe = match end {
            Ok(dw0) => Cqe::success(dw0, sqhd, sqid, cid),
            Err(error) => Cqe::error(error.status(), error.dnr(), sqhd, sqid, cid),
        };
        self.cq.post(room, &cqe);
        self.cq_stats.completions.add(1);
    }

    fn limits(&self) -> Option<Limits> {
        self.core.coalescing.limits(self.cq.vector()?)
    }

    fn interrupt_due(&self) -> Due {
        self.untold.due(self.limits(), self.cq.capacity())
    }

    /// Raises one interrupt for all completions posted since the last, if it is due.
    pub fn interrupt(&mut self) {
        match self.interrupt_due() {
            Due::Never => {}
            Due::At(time) if Instant::now() < time => {}
            Due::Now | Due::At(_) => self.interrupt_now(),
        }
    }

    /// Raises one interrupt for all completions posted since the last, due or not. It is a write to
    /// memory and waits for bus master like any.
    pub fn interrupt_now(&mut self) {
        if !self.untold.any() || !self.core.bus_master() {
            return;
        }
        self.untold.clear();
        if let Some(vector) = self.cq.vector() {
            self.core.msix.trigger(vector);
            self.cq_stats.interrupts.add(1);
        }
    }

    /// Whether [`Group::interrupt`] would raise one now. It looked, but what it looked at may have
    /// changed since.
    pub fn owes_interrupt(&self) -> bool {
        let due = match self.interrupt_due() {
            Due::Never => false,
            Due::Now => true,
            Due::At(time) => Instant::now() >= time,
        };
        due && self.core.bus_master()
    }

    /// When to call [`Group::interrupt`] even if nothing happens. Whoever turns bus master on has the
    /// threads look.
    pub fn alarm(&self) -> Option<Instant> {
        match self.interrupt_due() {
            Due::At(time) if self.core.bus_master() => Some(time),
            // What is due now was raised, unless it waits for bus master.
            _ => None,
        }
    }

    /// Takes no command any more, and ends what is in flight in silence.
    pub fn begin_reset(&mut self) {
        self.state = State::Resetting;
        self.untold.clear();
    }

    /// Before sleep: asks the guest to ring for whatever could be served next, then looks whether
    /// something came in the meantime. `true` means that there is work.
    pub fn prepare_sleep(&mut self) -> bool {
        let mut work = false;
        for index in 0..self.sqs.len() {
            self.publish_sq_event_index(index);
            work |= match self.poll(index) {
                Fetch::Command => true,
                Fetch::Empty => false,
                Fetch::NoRoom => self.wait_for_room(),
            };
        }
        work
    }

    /// After sleep: asks the guest not to ring any more, before it sees the completions that woke the
    /// thread: it will answer them with commands, and the thread looks for those by itself now.
    pub fn end_sleep(&mut self) {
        let Some(shadow) = &self.shadow else { return };
        for sq in self.sqs.iter_mut().flatten() {
            let lap = sq.queue.head_minus_one();
            sq.publish_event_index(shadow, lap);
        }
    }

    fn publish_sq_event_index(&mut self, index: usize) {
        let (Some(shadow), Some(sq)) = (&self.shadow, self.sqs[index].as_mut()) else {
            return;
        };
        if sq.state == State::Running && self.state == State::Running {
            sq.publish_event_index(shadow, sq.queue.head());
        }
    }

    /// Asks to be told when the guest takes a completion; `true` if it did already.
    fn wait_for_room(&mut self) -> bool {
        let id = DoorbellId::cq(self.cq.id());
        if self.shadow.is_none() && self.heads == Heads::Kept {
            // First, or a head that is kept would be told to nobody.
            self.core.doorbells.pause_coalescing(id);
            self.heads = Heads::Told;
        }
        if let Some(bell) = self.core.doorbells.get(id) {
            bell.wait_for_room();
        }
        self.publish_cq_event_index(self.cq.head());
        let head = self.core.doorbells.value(id, self.shadow.as_deref());
        let room = head != self.cq.head() && self.cq.set_head(head) && self.cq.free() > 0;
        if room {
            // Nobody waits: the index must not stay where the guest comes past.
            self.publish_cq_event_index(self.cq.head_minus_one());
        }
        room
    }

    /// Notes for each queue with commands in it that a doorbell's kernel event woke the thread.
    pub fn count_wakeups(&mut self) {
        if self.shadow.is_none() {
            return;
        }
        for index in 0..self.sqs.len() {
            if self.poll(index) == Fetch::Command
                && let Some(sq) = &self.sqs[index]
            {
                sq.stats.wakeups.add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::nvme::core::Event;
    use crate::nvme::doorbell::Doorbells;
    use crate::nvme::spec::Status;
    use crate::nvme::tests::fakes::Nothing;
    use crate::pci::msix::Msix;
    use crate::ram::{GuestRam, MappedRange};

    const SQ: u64 = 0x1000;
    const CQ: u64 = 0x2000;
    const VALUES: u64 = 0x3000;
    const INDICES: u64 = 0x4000;

    struct Setup {
        group: Group,
        values: MappedRange,
        indices: MappedRange,
    }

    /// Queue pair 1 with these entries, with or without shadow doorbells.
    fn setup(sq_entries: u32, cq_entries: u32, shadow: bool) -> Setup {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let ram = GuestRam::new(memory);
        let doorbells = Doorbells::new(2, Arc::new(Nothing), Arc::new(Nothing));
        doorbells.open(DoorbellId::sq(1), sq_entries, 0);
        doorbells.open(DoorbellId::cq(1), cq_entries, 0);
        if shadow {
            let shadow = Shadow::new(&ram, VALUES, INDICES).unwrap();
            doorbells.start_shadow(&Arc::new(shadow));
        }
        let msix = Msix::new(3, Arc::new(Nothing));
        let core = Core::new(
            "c".into(),
            ram.clone(),
            doorbells,
            msix,
            4096,
            Duration::ZERO,
        )
        .unwrap();
        core.set_bus_master(true);
        let sq = SubmissionQueue::new(&ram, 1, SQ, sq_entries).unwrap();
        let cq = CompletionQueue::new(&ram, 1, CQ, cq_entries, Some(1)).unwrap();
        let mut group = Group::new(Arc::new(core), cq, Arc::default());
        group.add_sq(sq, Arc::default());
        Setup {
            group,
            values: ram.map(VALUES, 4096).unwrap(),
            indices: ram.map(INDICES, 4096).unwrap(),
        }
    }

    impl Setup {
        fn set(&self, offset: usize, value: u32) {
            self.values.store_u32(offset, value, Ordering::SeqCst);
        }

        fn index(&self, offset: usize) -> u32 {
            self.indices.load_u32(offset, Ordering::SeqCst)
        }

        /// Fetches and completes a command, if there is one and room.
        fn serve(&mut self) -> bool {
            let Some((sqe, room)) = self.group.fetch(0) else {
                return false;
            };
            self.group.complete(0, sqe.cid(), room, Ok(0));
            true
        }

        fn errors(&self) -> usize {
            self.group.core.take_doorbell_errors().count()
        }
    }

    const TAIL: usize = 8;
    const HEAD: usize = 12;

    #[test]
    fn nothing_is_fetched_without_room_and_the_room_comes_back() {
        let mut setup = setup(8, 2, false);
        setup
            .group
            .core
            .doorbells
            .ring(DoorbellId::sq(1), 3)
            .unwrap();
        let (_sqe, room) = setup.group.fetch(0).unwrap();
        assert_eq!(setup.group.poll(0), Fetch::NoRoom);
        assert!(setup.group.fetch(0).is_none());
        setup.group.forget(0, room);
        assert_eq!(setup.group.poll(0), Fetch::Command);
        assert!(setup.serve() && !setup.serve());
        setup
            .group
            .core
            .doorbells
            .ring(DoorbellId::cq(1), 1)
            .unwrap();
        assert!(setup.serve() && !setup.serve());
        assert_eq!(setup.group.in_flight(), 0);
    }

    #[test]
    fn a_queue_that_is_going_takes_no_commands() {
        let mut setup = setup(8, 8, false);
        setup
            .group
            .core
            .doorbells
            .ring(DoorbellId::sq(1), 3)
            .unwrap();
        assert_eq!(setup.group.poll(0), Fetch::Command);
        setup.group.core.set_bus_master(false);
        assert_eq!(setup.group.poll(0), Fetch::Empty);
        setup.group.core.set_bus_master(true);
        setup.group.sq_mut(0).unwrap().state = State::Deleting;
        assert_eq!(setup.group.poll(0), Fetch::Empty);
        setup.group.sq_mut(0).unwrap().state = State::Running;
        setup.group.state = State::Resetting;
        assert_eq!(setup.group.poll(0), Fetch::Empty);
    }

    #[test]
    fn before_sleep_the_tail_is_asked_for_and_looked_at_again() {
        let mut setup = setup(8, 8, true);
        assert!(!setup.group.prepare_sleep());
        assert_eq!(setup.index(TAIL), 0);
        setup.set(TAIL, 2);
        assert!(setup.group.prepare_sleep(), "it came in the meantime");
        assert!(setup.serve() && setup.serve() && !setup.serve());
        assert!(!setup.group.prepare_sleep());
        assert_eq!(setup.index(TAIL), 2);
        // While a reset is going on, nothing of the guest's is written.
        setup.set(TAIL, 3);
        setup.serve();
        setup.group.state = State::Resetting;
        setup.group.prepare_sleep();
        assert_eq!(setup.index(TAIL), 2);
    }

    #[test]
    fn a_full_queue_asks_for_the_next_head_and_otherwise_for_one_a_lap_away() {
        let mut setup = setup(16, 4, true);
        setup.set(TAIL, 10);
        for _ in 0..3 {
            assert!(setup.serve());
        }
        assert!(!setup.serve());
        assert_eq!(setup.index(HEAD), 3, "one lap from 0");
        assert!(!setup.group.prepare_sleep());
        assert_eq!(setup.index(HEAD), 0, "whatever comes next");
        setup.set(HEAD, 2);
        assert!(setup.group.prepare_sleep(), "there is room");
        assert!(setup.serve() && setup.serve() && !setup.serve());
        assert_eq!(setup.index(HEAD), 1, "one lap from 2");
    }

    #[test]
    fn values_that_are_none_are_told_once_until_they_are_right_again() {
        let mut setup = setup(8, 2, true);
        for _ in 0..2 {
            for value in [8, 9, u32::MAX] {
                setup.set(TAIL, value);
                assert_eq!(setup.group.poll(0), Fetch::Empty);
                assert!(!setup.group.prepare_sleep());
            }
            assert_eq!(setup.errors(), 1);
            assert!(!setup.group.prepare_sleep());
            assert_eq!(setup.errors(), 0);
            setup.set(TAIL, 0);
            assert_eq!(setup.group.poll(0), Fetch::Empty);
        }
        setup.set(TAIL, 2);
        setup.set(HEAD, 2);
        assert!(setup.serve());
        for _ in 0..3 {
            assert!(!setup.serve() && !setup.group.prepare_sleep());
        }
        assert_eq!(setup.errors(), 1);
        setup.set(HEAD, 1);
        assert!(setup.serve());
    }

    #[test]
    fn a_queue_that_moves_goes_on_with_the_shadow_buffers_in_use() {
        let mut setup = setup(8, 8, false);
        setup.group.state = State::Leaving;
        let core = Arc::clone(&setup.group.core);
        core.doorbells.ring(DoorbellId::sq(1), 1).unwrap();
        // Nobody tells a queue that is between two threads.
        let shadow = Arc::new(Shadow::new(&core.ram, VALUES, INDICES).unwrap());
        core.doorbells.start_shadow(&shadow);
        setup.set(TAIL, 3);
        assert_eq!(setup.group.poll(0), Fetch::Empty);
        setup.group.move_on(core.doorbells.shadow());
        assert!(setup.serve() && setup.serve() && setup.serve() && !setup.serve());
        assert!(!setup.group.prepare_sleep());
        assert_eq!(setup.index(TAIL), 3);
        // The same buffers again need no index again.
        setup.indices.store_u32(TAIL, 7, Ordering::SeqCst);
        setup.group.move_on(core.doorbells.shadow());
        assert!(!setup.group.prepare_sleep());
        assert_eq!(setup.index(TAIL), 7);
    }

    #[test]
    fn a_queue_that_is_told_to_nobody_keeps_no_controller() {
        for told_before in [true, false] {
            let setup = setup(8, 8, false);
            let core = Arc::clone(&setup.group.core);
            let left = Arc::downgrade(&core);
            let group = Box::new(setup.group);
            let event = Event::CqGivenUp { group };
            if told_before {
                core.post(event);
                core.end_events();
            } else {
                core.end_events();
                core.post(event);
            }
            assert_eq!(core.take_events().len(), 0);
            drop(core);
            assert!(left.upgrade().is_none());
        }
    }

    #[test]
    fn an_interrupt_that_had_to_wait_is_owed() {
        let mut setup = setup(8, 8, true);
        setup.set(TAIL, 1);
        assert!(setup.serve());
        setup.group.core.set_bus_master(false);
        setup.group.interrupt();
        assert!(!setup.group.owes_interrupt());
        // As if it came back between the look for interrupts and the sleep.
        setup.group.core.set_bus_master(true);
        assert!(setup.group.owes_interrupt());
        setup.group.interrupt();
        assert!(!setup.group.owes_interrupt());
    }

    #[test]
    fn completions_name_queue_and_head() {
        let mut setup = setup(8, 8, false);
        setup
            .group
            .core
            .doorbells
            .ring(DoorbellId::sq(1), 2)
            .unwrap();
        let (_, first) = setup.group.fetch(0).unwrap();
        let (_, second) = setup.group.fetch(0).unwrap();
        setup.group.complete(0, 7, second, Ok(9));
        let busy = CommandError::transient(Status::ABORT_REQUESTED);
        setup.group.complete(0, 8, first, Err(busy));
        let read = |at| setup.group.core.ram.read::<Cqe>(at).unwrap();
        let (good, bad) = (read(CQ), read(CQ + 16));
        assert_eq!((good.dw0, good.sqhd, good.sqid, good.cid), (9, 2, 1, 7));
        assert_eq!(
            (bad.status(), bad.dnr(), bad.cid),
            (Status::ABORT_REQUESTED, false, 8)
        );
        // A queue that is gone gives its entry back.
        let room = setup.group.reserve().unwrap();
        let free = setup.group.cq.free();
        setup.group.post(5, 1, room, Ok(0));
        assert_eq!(setup.group.cq.free(), free + 1);
    }
}
