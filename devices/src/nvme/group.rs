//! A completion queue with the submission queues that feed it.

use std::sync::Arc;

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
}

/// A submission queue and its commands.
#[derive(Debug)]
pub struct Sq {
    pub queue: SubmissionQueue,
    pub stats: Arc<SqStats>,
    pub state: State,
    pub in_flight: u32,
    // The event index last published.
    event_index: Option<u32>,
    // The guest's tail was no index into the queue when last looked at.
    bad_tail: bool,
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
    /// Completions were posted since the last interrupt.
    pub posted: bool,
    cq_event_index: Option<u32>,
    // The guest's head could not be when last looked at.
    bad_head: bool,
}

impl Group {
    /// A completion queue that nothing feeds yet.
    pub fn new(core: Arc<Core>, cq: CompletionQueue, cq_stats: Arc<CqStats>) -> Self {
        let snapshots = Snapshots::new(&core.namespaces);
        let shadow = core.doorbells.shadow();
        Self {
            core,
            cq,
            cq_stats,
            sqs: Vec::new(),
            snapshots,
            shadow,
            state: State::Running,
            posted: false,
            cq_event_index: None,
            bad_head: false,
        }
    }

    /// Adds a submission queue.
    pub fn add_sq(&mut self, queue: SubmissionQueue, stats: Arc<SqStats>) {
        let sq = Some(Sq {
            queue,
            stats,
            state: State::Running,
            in_flight: 0,
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
        self.sqs.iter().flatten().map(|sq| sq.in_flight).sum()
    }

    /// Doorbell values come from `shadow` from now on.
    pub fn start_shadow(&mut self, shadow: Arc<Shadow>) {
        self.shadow = Some(shadow);
        self.cq_event_index = None;
        for sq in self.sqs.iter_mut().flatten() {
            sq.event_index = None;
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
                sq.in_flight += 1;
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
        self.cq.free() > 0
    }

    /// Looks at the guest's head. Its event index is left one lap away: with MSI-X nothing but a full
    /// queue needs the guest's doorbell.
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
            sq.in_flight -= 1;
        }
        self.post(index, cid, room, end);
    }

    /// Ends a command that was fetched, in silence.
    pub fn forget(&mut self, index: usize, room: Reservation) {
        if let Some(sq) = self.sq_mut(index) {
            sq.in_flight -= 1;
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
        let cqe = match end {
            Ok(dw0) => Cqe::success(dw0, sqhd, sqid, cid),
            Err(error) => Cqe::error(error.status(), error.dnr(), sqhd, sqid, cid),
        };
        self.cq.post(room, &cqe);
        self.cq_stats.completions.add(1);
        self.posted = true;
    }

    /// Raises one interrupt for all completions posted since the last.
    pub fn interrupt(&mut self) {
        if std::mem::take(&mut self.posted) && self.cq.vector().is_some() {
            self.core.interrupt(self.cq.vector());
            self.cq_stats.interrupts.add(1);
        }
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

    fn publish_sq_event_index(&mut self, index: usize) {
        let (Some(shadow), Some(sq)) = (&self.shadow, self.sqs[index].as_mut()) else {
            return;
        };
        let head = sq.queue.head();
        if sq.state == State::Running && sq.event_index.replace(head) != Some(head) {
            shadow.set_event_index(DoorbellId::sq(sq.queue.id()), head);
        }
    }

    /// Asks to be told when the guest takes a completion; `true` if it did already.
    fn wait_for_room(&mut self) -> bool {
        let id = DoorbellId::cq(self.cq.id());
        if let Some(bell) = self.core.doorbells.get(id) {
            bell.wait_for_room();
        }
        self.publish_cq_event_index(self.cq.head());
        let head = self.core.doorbells.value(id, self.shadow.as_deref());
        head != self.cq.head() && self.cq.set_head(head) && self.cq.free() > 0
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
