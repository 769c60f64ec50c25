//! I/O queues: creation and deletion (NVMe Base 2.0c, 5.4 to 5.7).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::controller::Controller;
use super::super::doorbell::{Doorbell, DoorbellId};
use super::super::error::CommandError;
use super::super::io::{Message, Seat};
use super::super::prp::PAGE;
use super::super::queue::{CQE_SIZE, CompletionQueue, SQE_SIZE, SubmissionQueue};
use super::super::spec::{CreateCqCdw11, CreateQueueCdw10, CreateSqCdw11, Sqe, Status};
use super::super::stats::{CqStats, QueueInfo, SqStats};
use super::features::Features;
use super::log::Totals;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Alive,
    Deleting,
}

#[derive(Debug)]
pub(super) struct Sq {
    pub cqid: u16,
    entries: u32,
    stats: Arc<SqStats>,
    pub life: Life,
}

/// Who has a completion queue.
#[derive(Debug)]
pub(super) enum At {
    /// An I/O thread.
    Thread,
    /// It was asked of its thread, or is on its way from there. What is to be told to the thread that
    /// has it in the end waits here.
    Moving(Vec<Message>),
}

#[derive(Debug)]
pub(super) struct Cq {
    /// The I/O thread that serves it, or did last.
    pub thread: usize,
    /// Where it counts: ahead of `thread` while it moves.
    pub seat: Seat,
    pub at: At,
    /// The loads, by their version, with which it could not move.
    pub kept: Option<u64>,
    vector: Option<u16>,
    pub stats: Arc<CqStats>,
    pub life: Life,
}

/// The I/O queues that exist. Each is owned by an I/O thread; here is what the admin queue needs.
#[derive(Debug, Default)]
pub struct IoQueues {
    pub(super) sqs: BTreeMap<u16, Sq>,
    pub(super) cqs: BTreeMap<u16, Cq>,
    // The loads, by their count of changes, with which no queue was to move.
    pub(super) even: Option<u64>,
    // Of queues that are gone.
    totals: Totals,
}

impl IoQueues {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.sqs.is_empty() && self.cqs.is_empty()
    }

    /// I/O of all queues, those that are gone included.
    pub fn totals(&self) -> Totals {
        let mut totals = self.totals;
        for sq in self.sqs.values() {
            totals.add(&sq.stats);
        }
        totals
    }

    /// Forgets all queues (controller reset); what they did still counts.
    pub fn clear(&mut self) {
        self.totals = self.totals();
        self.sqs.clear();
        self.cqs.clear();
        self.even = None;
    }

    /// Create I/O Completion Queue.
    ///
    /// # Errors
    /// An identifier that is taken or too high, a bad size, vector or address.
    pub fn create_cq(
        &mut self,
        controller: &Controller,
        features: &Features,
        sqe: &Sqe,
    ) -> Result<(), CommandError> {
        let cdw10 = CreateQueueCdw10::from_bits(sqe.cdw10);
        let cdw11 = CreateCqCdw11::from_bits(sqe.cdw11);
        let qid = cdw10.qid();
        if !(1..=features.max_cqid()).contains(&qid) || self.cqs.contains_key(&qid) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.into());
        }
        let entries = check_ring(controller, sqe, cdw10, cdw11.pc())?;
        check_entry_size(controller.registers().cc.iocqes(), CQE_SIZE)?;
        if cdw11.iv() > controller.config().max_ioqpairs {
            return Err(Status::INVALID_INTERRUPT_VECTOR.into());
        }
        let core = controller.core();
        let vector = cdw11.ien().then_some(cdw11.iv());
        let queue = CompletionQueue::new(&core.ram, qid, sqe.prp1, entries, vector)?;
        let seat = controller.io_threads().balance().seat();
        let thread = seat.thread();
        let stats = Arc::new(CqStats::default());
        core.doorbells.open(DoorbellId::cq(qid), entries, thread);
        controller.io_threads().thread(thread).send(Message::AddCq {
            core: Arc::clone(core),
            queue,
            stats: Arc::clone(&stats),
        });
        controller.add_doorbell_event(DoorbellId::cq(qid), thread);
        let life = Life::Alive;
        self.cqs.insert(
            qid,
            Cq {
                thread,
                seat,
                at: At::Thread,
                kept: None,
                vector,
                stats,
                life,
            },
        );
        Ok(())
    }

    /// Create I/O Submission Queue.
    ///
    /// # Errors
    /// As for a completion queue, or no such completion queue.
    pub fn create_sq(
        &mut self,
        controller: &Controller,
        features: &Features,
        sqe: &Sqe,
    ) -> Result<(), CommandError> {
        let cdw10 = CreateQueueCdw10::from_bits(sqe.cdw10);
        let cdw11 = CreateSqCdw11::from_bits(sqe.cdw11);
        let qid = cdw10.qid();
        let cqid = cdw11.cqid();
        if cqid == 0 || cqid > features.max_cqid() {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.into());
        }
        let cq = self.cqs.get_mut(&cqid).filter(|cq| cq.life == Life::Alive);
        let cq = cq.ok_or(Status::INVALID_COMPLETION_QUEUE)?;
        if !(1..=features.max_sqid()).contains(&qid) || self.sqs.contains_key(&qid) {
            return Err(Status::INVALID_QUEUE_IDENTIFIER.into());
        }
        let entries = check_ring(controller, sqe, cdw10, cdw11.pc())?;
        check_entry_size(controller.registers().cc.iosqes(), SQE_SIZE)?;
        let core = controller.core();
        let queue = SubmissionQueue::new(&core.ram, qid, sqe.prp1, entries)?;
        let stats = Arc::new(SqStats::default());
        core.doorbells.open(DoorbellId::sq(qid), entries, cq.thread);
        cq.seat.add_sq();
        let message = Message::AddSq {
            core: Arc::clone(core),
            queue,
            cqid,
            stats: Arc::clone(&stats),
        };
        cq.tell(controller, message);
        controller.add_doorbell_event(DoorbellId::sq(qid), cq.thread);
        let life = Life::Alive;
        self.sqs.insert(
            qid,
            Sq {
                cqid,
                entries,
                stats,
                life,
            },
        );
        Ok(())
    }

    /// Delete I/O Submission Queue: begins it. Its identifier is told back by
    /// [`IoQueues::sq_deleted`].
    ///
    /// # Errors
    /// No such queue.
    pub fn delete_sq(&mut self, controller: &Controller, sqe: &Sqe) -> Result<u16, CommandError> {
        let sqid = CreateQueueCdw10::from_bits(sqe.cdw10).qid();
        let sq = self.sqs.get_mut(&sqid).filter(|sq| sq.life == Life::Alive);
        let sq = sq.ok_or(Status::INVALID_QUEUE_IDENTIFIER)?;
        sq.life = Life::Deleting;
        let cqid = sq.cqid;
        let core = controller.core();
        core.doorbells.remove_event(DoorbellId::sq(sqid));
        core.doorbells.close(DoorbellId::sq(sqid));
        let message = Message::DeleteSq {
            core: Arc::clone(core),
            sqid,
        };
        self.tell_owner(controller, cqid, message);
        Ok(sqid)
    }

    /// The I/O thread let go of a submission queue.
    pub fn sq_deleted(&mut self, sqid: u16) {
        if let Some(sq) = self.sqs.remove(&sqid) {
            self.totals.add(&sq.stats);
            if let Some(cq) = self.cqs.get_mut(&sq.cqid) {
                cq.seat.remove_sq();
            }
        }
    }

    /// Delete I/O Completion Queue: begins it, as [`IoQueues::delete_sq`] does.
    ///
    /// # Errors
    /// No such queue, or a submission queue feeds it.
    pub fn delete_cq(&mut self, controller: &Controller, sqe: &Sqe) -> Result<u16, CommandError> {
        let cqid = CreateQueueCdw10::from_bits(sqe.cdw10).qid();
        let cq = self.cqs.get_mut(&cqid).filter(|cq| cq.life == Life::Alive);
        let cq = cq.ok_or(Status::INVALID_QUEUE_IDENTIFIER)?;
        if self.sqs.values().any(|sq| sq.cqid == cqid) {
            return Err(Status::INVALID_QUEUE_DELETION.into());
        }
        cq.life = Life::Deleting;
        let core = controller.core();
        core.doorbells.remove_event(DoorbellId::cq(cqid));
        core.doorbells.close(DoorbellId::cq(cqid));
        let message = Message::DeleteCq {
            core: Arc::clone(core),
            cqid,
        };
        cq.tell(controller, message);
        Ok(cqid)
    }

    /// The I/O thread let go of a completion queue.
    pub fn cq_deleted(&mut self, cqid: u16) {
        self.cqs.remove(&cqid);
    }

    /// Identifier of the completion queue that a submission queue feeds.
    pub fn cq_of_sq(&self, sqid: u16) -> Option<u16> {
        Some(self.sqs.get(&sqid)?.cqid)
    }

    /// Has the kernel signal all doorbells from now on, but those of queues that are being deleted.
    pub fn add_doorbell_events(&self, controller: &Controller) {
        let cqs = self.cqs.iter().filter(|(_, cq)| cq.life == Life::Alive);
        for (&qid, cq) in cqs {
            controller.add_doorbell_event(DoorbellId::cq(qid), cq.thread);
        }
        let sqs = self.sqs.iter().filter(|(_, sq)| sq.life == Life::Alive);
        for (&qid, sq) in sqs {
            if let Some(cq) = self.cqs.get(&sq.cqid) {
                controller.add_doorbell_event(DoorbellId::sq(qid), cq.thread);
            }
        }
    }

    /// The queues' counters.
    pub fn info(&self, controller: &Controller) -> Vec<QueueInfo> {
        let exits = |id| {
            controller
                .core()
                .doorbells
                .get(id)
                .map_or(0, |bell| bell.exits())
        };
        let kept = |cqid| {
            let bell = controller.core().doorbells.get(DoorbellId::cq(cqid));
            bell.map_or(0, Doorbell::coalesced)
        };
        let info = |(&sqid, sq): (&u16, &Sq)| {
            let cq = self.cqs.get(&sq.cqid)?;
            Some(QueueInfo {
                sqid,
                cqid: sq.cqid,
                entries: sq.entries,
                io_thread: Some(cq.thread),
                vector: cq.vector,
                doorbell_exits: exits(DoorbellId::sq(sqid)) + exits(DoorbellId::cq(sq.cqid)),
                coalesced_doorbells: kept(sq.cqid),
                ioeventfd_wakeups: sq.stats.wakeups.get(),
                commands: sq.stats.commands.get(),
                in_flight: sq.stats.in_flight.get(),
                read_bytes: sq.stats.read_bytes.get(),
                written_bytes: sq.stats.written_bytes.get(),
                completions: cq.stats.completions.get(),
                interrupts: cq.stats.interrupts.get(),
                moves: cq.stats.moves.get(),
            })
        };
        self.sqs.iter().filter_map(info).collect()
    }
}

/// Refuses queues of entries whose size in CC, a power of two, is not the one there is.
fn check_entry_size(power: u8, size: usize) -> Result<(), CommandError> {
    if 1 << power == size {
        Ok(())
    } else {
        Err(Status::INVALID_QUEUE_SIZE.into())
    }
}

/// Size in entries of a queue that is to be created.
fn check_ring(
    controller: &Controller,
    sqe: &Sqe,
    cdw10: CreateQueueCdw10,
    contiguous: bool,
) -> Result<u32, CommandError> {
    let entries = u32::from(cdw10.qsize_z()) + 1;
    if !(2..=controller.max_entries()).contains(&entries) {
        return Err(Status::INVALID_QUEUE_SIZE.into());
    }
    if !contiguous {
        return Err(Status::INVALID_FIELD.into());
    }
    if !sqe.prp1.is_multiple_of(PAGE) {
        return Err(Status::INVALID_PRP_OFFSET.into());
    }
    Ok(entries)
}
