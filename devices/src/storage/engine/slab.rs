//! The file requests of an engine: slots that are used again, and the queue for the next kick.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::files::Files;
use super::memory::FixedMemory;
use super::pool::Job;
use crate::storage::io::{Bounces, Io, Next, Plan};
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

/// Which ring runs a request's next step. A pool has but one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// The ring whose completions interrupt.
    Interrupts,
    /// The ring whose completions are looked for.
    Polling,
}

/// One request, and memory that the next one in this slot uses again.
pub(super) struct Slot {
    state: State,
    /// Counts uses, so that a late cancel cannot meet the next request.
    generation: u32,
    token: Token,
    /// Its image's index in [`Slab::files`].
    file: u32,
    lane: Lane,
    io: Io,
    cancel: Arc<AtomicBool>,
}

impl Slot {
    /// The name of its step for the kernel.
    fn id(&self, index: u32) -> u64 {
        u64::from(self.generation) << 32 | u64::from(index)
    }
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
    /// For the ring that interrupts, or the pool, in order of submission.
    pub queue: VecDeque<Queued>,
    /// For the ring that polls, likewise.
    pub polling_queue: VecDeque<Queued>,
    /// Requests whose step is for that ring, queued or sent.
    polling: usize,
    /// The images that requests are on.
    pub files: Files,
    /// For requests that are not aligned.
    pub bounces: Bounces,
}

impl Slab {
    /// Requests that are queued or sent.
    pub fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Requests that the ring that polls runs or is to run.
    pub fn polling(&self) -> usize {
        self.polling
    }

    /// How many operations are queued.
    pub fn queued(&self) -> usize {
        self.queue.len() + self.polling_queue.len()
    }

    /// What is queued for a ring.
    pub fn queue_of(&mut self, lane: Lane) -> &mut VecDeque<Queued> {
        match lane {
            Lane::Interrupts => &mut self.queue,
            Lane::Polling => &mut self.polling_queue,
        }
    }

    /// Queues a request on an image; `false` if `limit` slots are in use.
    pub fn add(&mut self, file: u32, plan: Plan, request: &Request<'_>, limit: usize) -> bool {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < limit => self.grow(),
            None => return false,
        };
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.token = request.token;
        slot.file = file;
        slot.cancel.store(false, Ordering::Relaxed);
        let image = self.files.image(file);
        slot.io.start(image, plan, request, &mut self.bounces);
        self.files.begin(file);
        self.enqueue(index);
        true
    }

    /// Queues the next step of a slot for the ring that it belongs to.
    fn enqueue(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Queued;
        slot.lane = if self.files.polls(slot.file) && slot.io.can_be_polled() {
            self.polling += 1;
            Lane::Polling
        } else {
            Lane::Interrupts
        };
        let lane = slot.lane;
        self.queue_of(lane).push_back(Queued::Start(index));
    }

    /// A slot's step is no ring's any more.
    fn leave_lane(&mut self, index: u32) {
        if self.slots[index as usize].lane == Lane::Polling {
            self.polling -= 1;
        }
    }

    fn grow(&mut self) -> u32 {
        let index = u32::try_from(self.slots.len()).expect("the limit is far below 2^32");
        self.slots.push(Slot {
            state: State::Free,
            generation: 0,
            token: Token(0),
            file: 0,
            lane: Lane::Interrupts,
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
        self.leave_lane(index);
        let slot = &mut self.slots[index as usize];
        slot.state = State::Free;
        slot.io.clear(&mut self.bounces);
        self.files.end(slot.file);
        self.free.push(index);
        slot.token
    }

    /// Takes a queued slot out of the queue and frees it.
    pub fn unqueue(&mut self, index: u32) {
        let lane = self.slots[index as usize].lane;
        self.queue_of(lane)
            .retain(|entry| *entry != Queued::Start(index));
        self.release(index);
    }

    /// Frees all queued slots, marks all sent ones as cancelled, and asks the kernel to stop them.
    pub fn cancel_all(&mut self) {
        self.queue.clear();
        self.polling_queue.clear();
        for index in (0u32..).take(self.slots.len()) {
            match self.slots[index as usize].state {
                State::Free => {}
                State::Queued => {
                    self.release(index);
                }
                State::Sent => self.cancel(index),
            }
        }
    }

    /// Marks a sent request so that it is not continued.
    pub fn mark_cancelled(&self, index: u32) {
        let slot = &self.slots[index as usize];
        slot.cancel.store(true, Ordering::Relaxed);
    }

    /// Marks a sent request, and asks the kernel to stop it. A ring that polls cannot: what it has is
    /// with a device, which ends it.
    pub fn cancel(&mut self, index: u32) {
        self.mark_cancelled(index);
        let slot = &self.slots[index as usize];
        if slot.lane == Lane::Interrupts {
            let id = slot.id(index);
            self.queue.push_back(Queued::Cancel(id));
        }
    }

    /// The ring entry for the next step of a queued slot.
    pub fn entry(&mut self, index: u32, memory: &FixedMemory) -> io_uring::squeue::Entry {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Sent;
        let target = self.files.target(slot.file);
        slot.io.entry(target, memory).user_data(slot.id(index))
    }

    /// The job for a queued slot, which keeps its place here until [`Slab::finish`].
    pub fn job(&mut self, index: u32) -> Job {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Sent;
        Job {
            slot: index,
            image: Arc::clone(self.files.image(slot.file)),
            io: std::mem::take(&mut slot.io),
            cancel: slot.cancel.clone(),
            result: Ok(()),
        }
    }

    /// Takes a job back and frees its slot.
    pub fn finish(&mut self, job: Job) -> Completion {
        self.slots[job.slot as usize].io = job.io;
        drop(job.image);
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
        // The device cannot be polled after all: no harm done.
        let next = if slot.lane == Lane::Polling && result == -libc::EOPNOTSUPP {
            self.files.set_polls(slot.file, false);
            Next::Again
        } else {
            slot.io.advance(self.files.image(slot.file), result)
        };
        let result = match next {
            Next::Done(result) => result,
            Next::Again if slot.cancel.load(Ordering::Relaxed) => Err(BackendError::Cancelled),
            Next::Again => {
                self.leave_lane(index);
                self.enqueue(index);
                return None;
            }
        };
        let token = self.release(index);
        Some(Completion { token, result })
    }
}
