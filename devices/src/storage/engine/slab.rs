//! The file requests of an engine: slots that are used again, and the queue for the next kick.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::pool::Job;
use crate::storage::io::{Io, Next, Plan};
use crate::storage::{BackendError, Completion, Request, Token};

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Free,
    /// In [`Slab::queue`]; nobody else has seen it.
    Queued,
    /// With the kernel or the pool.
    Sent,
}

/// One request, and memory that the next one in this slot uses again.
pub(super) struct Slot {
    state: State,
    /// Counts uses, so that a late cancel cannot meet the next request.
    generation: u32,
    token: Token,
    io: Io,
    cancel: Arc<AtomicBool>,
}

/// What the next kick does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queued {
    /// Send the next step of a slot.
    Start(u32),
    /// Ask the kernel to stop the request with this id.
    Cancel(u64),
}

/// Slots and queue. Slots are made when first needed and never freed; the most recently freed one
/// is used first, so that few stay warm.
#[derive(Default)]
pub(super) struct Slab {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// In order of submission.
    pub queue: VecDeque<Queued>,
}

impl Slab {
    /// Requests that are queued or sent.
    pub fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Queues a request; `false` if `limit` slots are in use.
    pub fn add(&mut self, plan: Plan, request: &Request<'_>, limit: usize) -> bool {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < limit => self.grow(),
            None => return false,
        };
        let slot = &mut self.slots[index as usize];
        slot.state = State::Queued;
        slot.generation = slot.generation.wrapping_add(1);
        slot.token = request.token;
        slot.cancel.store(false, Ordering::Relaxed);
        slot.io.start(plan, request);
        self.queue.push_back(Queued::Start(index));
        true
    }

    fn grow(&mut self) -> u32 {
        let index = u32::try_from(self.slots.len()).expect("the limit is far below 2^32");
        self.slots.push(Slot {
            state: State::Free,
            generation: 0,
            token: Token(0),
            io: Io::default(),
            cancel: Arc::default(),
        });
        index
    }

    /// The queued or sent slot that holds `token`.
    pub fn find(&self, token: Token) -> Option<(u32, State)> {
        let used = |slot: &Slot| slot.state != State::Free && slot.token == token;
        let index = self.slots.iter().position(used)?;
        let state = self.slots[index].state;
        Some((u32::try_from(index).ok()?, state))
    }

    /// Frees a slot that nobody else has.
    pub fn release(&mut self, index: u32) -> Token {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Free;
        slot.io.clear();
        self.free.push(index);
        slot.token
    }

    /// Takes a queued slot out of the queue and frees it.
    pub fn unqueue(&mut self, index: u32) {
        self.queue.retain(|entry| *entry != Queued::Start(index));
        self.release(index);
    }

    /// Frees all queued slots and marks all sent ones as cancelled, whose ids are returned.
    pub fn cancel_all(&mut self) -> Vec<u64> {
        self.queue.clear();
        let mut ids = Vec::new();
        for index in (0u32..).take(self.slots.len()) {
            match self.slots[index as usize].state {
                State::Free => {}
                State::Queued => {
                    self.release(index);
                }
                State::Sent => ids.push(self.cancel(index)),
            }
        }
        ids
    }

    /// Marks a sent request so that it is not continued, and names it for the kernel.
    pub fn cancel(&mut self, index: u32) -> u64 {
        let slot = &self.slots[index as usize];
        slot.cancel.store(true, Ordering::Relaxed);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    /// The ring entry for the next step of a queued slot.
    pub fn entry(&mut self, index: u32) -> io_uring::squeue::Entry {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Sent;
        let id = u64::from(slot.generation) << 32 | u64::from(index);
        slot.io.entry().user_data(id)
    }

    /// The job for a queued slot, which keeps its place here until [`Slab::finish`].
    pub fn job(&mut self, index: u32) -> Job {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Sent;
        Job {
            slot: index,
            io: std::mem::take(&mut slot.io),
            cancel: slot.cancel.clone(),
            result: Ok(()),
        }
    }

    /// Takes a job back and frees its slot.
    pub fn finish(&mut self, job: Job) -> Completion {
        self.slots[job.slot as usize].io = job.io;
        Completion {
            token: self.release(job.slot),
            result: job.result,
        }
    }

    /// What the kernel returned for the request `id`: its completion, or `None` if it is queued
    /// again to go on, or if `id` is not the name of a request.
    pub fn settle(&mut self, id: u64, result: i32) -> Option<Completion> {
        let index = u32::try_from(id & u64::from(u32::MAX)).ok()?;
        let slot = self.slots.get_mut(index as usize)?;
        if slot.state != State::Sent || u64::from(slot.generation) != id >> 32 {
            return None;
        }
        let result = match slot.io.advance(result) {
            Next::Done(result) => result,
            Next::Again if slot.cancel.load(Ordering::Relaxed) => Err(BackendError::Cancelled),
            Next::Again => {
                slot.state = State::Queued;
                self.queue.push_back(Queued::Start(index));
                return None;
            }
        };
        let token = self.release(index);
        Some(Completion { token, result })
    }
}
