//! Completion queues move between I/O threads, so that each thread has about as many queues as any.
//!
//! The admin queue's owner orders it all. It asks the thread that has the queue for it (`GiveUp`); the
//! thread answers with the queue itself (`CqGivenUp`), or that it keeps it (`CqKept`). In between the
//! owner sends the thread nothing that concerns the queue: that waits in [`At::Moving`], for whoever
//! has the queue in the end. What concerns all queues of a controller is sent to all threads as ever,
//! and is either behind the queue, or true already when the owner passes it on:
//!
//! - shadow buffers: the owner gives the queue those that are in use;
//! - a namespace's commands to be aborted: a queue on its way has none in flight;
//! - a reset: each thread answers behind the queues that it gave up before, so the owner knows of all
//!   of them, and drops them, before the reset is done.

use std::sync::Arc;

use super::super::controller::Controller;
use super::super::doorbell::DoorbellId;
use super::super::group::Group;
use super::super::io::Message;
use super::queues::{At, Cq, IoQueues, Life};

impl Cq {
    /// Sends a message to the thread that has the queue, or to the one that will have it.
    pub fn tell(&mut self, controller: &Controller, message: Message) {
        match &mut self.at {
            At::Thread => controller.io_threads().thread(self.thread).send(message),
            At::Moving(waiting) => waiting.push(message),
        }
    }

    /// The queue is with its thread; what waited for that is sent behind `first`.
    fn settle(&mut self, controller: &Controller, first: Option<Message>) {
        let thread = controller.io_threads().thread(self.thread);
        if let Some(first) = first {
            thread.send(first);
        }
        if let At::Moving(waiting) = std::mem::replace(&mut self.at, At::Thread) {
            for message in waiting {
                thread.send(message);
            }
        }
    }
}

impl IoQueues {
    /// Sends a message to the thread that has completion queue `cqid`, or to the one that will.
    pub fn tell_owner(&mut self, controller: &Controller, cqid: u16, message: Message) {
        if let Some(cq) = self.cqs.get_mut(&cqid) {
            cq.tell(controller, message);
        }
    }

    /// Begins to move one completion queue, if the threads' loads are more alike then. One at a time:
    /// whoever hears that it moved looks again.
    pub fn rebalance(&mut self, controller: &Controller) {
        let balance = controller.io_threads().balance();
        let changes = balance.changes();
        if self.even == Some(changes) || self.is_any_moving() {
            return;
        }
        let version = balance.version();
        let can_move = |cqid: u16, cq: &Cq| {
            let going =
                |(_, sq): (&u16, &super::queues::Sq)| sq.cqid == cqid && sq.life == Life::Deleting;
            cq.life == Life::Alive && cq.kept != Some(version) && !self.sqs.iter().any(going)
        };
        let gains = self.cqs.iter().filter(|(cqid, cq)| can_move(**cqid, cq));
        let gains = gains.map(|(cqid, cq)| (cq.seat.gain(), *cqid));
        let Some((_, cqid)) = gains.filter(|(gain, _)| *gain > 0).max() else {
            self.even = Some(changes);
            return;
        };
        let Some(cq) = self.cqs.get_mut(&cqid) else {
            return;
        };
        if cq.seat.advance().is_none() {
            return;
        }
        let core = Arc::clone(controller.core());
        cq.tell(controller, Message::GiveUp { core, cqid });
        cq.at = At::Moving(Vec::new());
    }

    fn is_any_moving(&self) -> bool {
        let moving = |cq: &Cq| matches!(cq.at, At::Moving(_));
        self.cqs.values().any(moving)
    }

    /// The thread gave a queue up: another one gets it.
    pub fn moved(&mut self, controller: &Controller, mut group: Box<Group>) {
        let cqid = group.cq.id();
        let Some(cq) = self.cqs.get_mut(&cqid) else {
            return;
        };
        cq.thread = cq.seat.thread();
        let doorbells = &controller.core().doorbells;
        let sqs = self.sqs.iter().filter(|(_, sq)| sq.cqid == cqid);
        let sqs = sqs.map(|(sqid, sq)| (DoorbellId::sq(*sqid), sq.life));
        for (id, life) in sqs.chain([(DoorbellId::cq(cqid), cq.life)]) {
            doorbells.set_owner(id, cq.thread);
            if life == Life::Alive {
                controller.add_doorbell_event(id, cq.thread);
            }
        }
        group.move_on(doorbells.shadow());
        cq.stats.moves.add(1);
        // Behind the new owner of the doorbells: see `Doorbells::set_owner`.
        cq.settle(controller, Some(Message::Adopt { group }));
    }

    /// The thread keeps a queue. It is not asked for it again before the loads have changed.
    pub fn kept(&mut self, controller: &Controller, cqid: u16) {
        let Some(cq) = self.cqs.get_mut(&cqid) else {
            return;
        };
        cq.kept = Some(controller.io_threads().balance().version());
        cq.seat.go_back(cq.thread);
        cq.settle(controller, None);
    }
}
