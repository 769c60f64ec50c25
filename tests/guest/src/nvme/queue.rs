//! Submission and completion queues, with or without shadow doorbells.

use core::sync::atomic::{Ordering, fence};

use super::command::{Command, Completion};
use crate::io;
use crate::memory::{self, Dma};

/// A doorbell register and, after Doorbell Buffer Config, its shadow.
#[derive(Clone, Copy)]
pub struct Doorbell {
    /// Physical address of the register.
    pub register: u64,
    /// The 4 bytes of the shadow doorbell and of the event index.
    pub shadow: Option<(Dma, Dma)>,
    /// How often the register was written.
    pub writes: u64,
}

impl Doorbell {
    fn new(register: u64) -> Self {
        Self {
            register,
            shadow: None,
            writes: 0,
        }
    }

    /// Tells the controller `value`, through the register only when the event index asks for it.
    pub fn ring(&mut self, value: u32) {
        if let Some((shadow, event)) = self.shadow {
            let old = shadow.read32(0);
            shadow.write32(0, value);
            // The controller may be about to sleep: it writes the event index and then looks at
            // the shadow again, so the shadow must be out before the event index is read.
            fence(Ordering::SeqCst);
            let event = event.read32(0) as u16;
            let (new, old) = (value as u16, old as u16);
            let passed = new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old);
            if !passed {
                return;
            }
        }
        self.write(value);
    }

    /// Writes the register, whatever the shadow says.
    pub fn write(&mut self, value: u32) {
        self.writes += 1;
        io::write32(self.register, value);
    }
}

/// A submission queue.
pub struct SubmissionQueue {
    /// Queue identifier.
    pub id: u16,
    /// Slots; one less can be in use.
    pub entries: u32,
    /// The ring.
    pub memory: Dma,
    /// Tail doorbell.
    pub doorbell: Doorbell,
    tail: u32,
    head: u32,
    next_command: u16,
}

impl SubmissionQueue {
    pub(super) fn new(id: u16, entries: u32, register: u64) -> Self {
        Self {
            id,
            entries,
            memory: memory::allocate(u64::from(entries) * 64),
            doorbell: Doorbell::new(register),
            tail: 0,
            head: 0,
            next_command: 0,
        }
    }

    /// Free slots, as far as completions told.
    pub fn room(&self) -> u32 {
        (self.head + self.entries - self.tail - 1) % self.entries
    }

    /// Puts a command into the ring without ringing; its identifier, or nothing if the ring is full.
    pub fn push(&mut self, mut command: Command) -> Option<u16> {
        if self.room() == 0 {
            return None;
        }
        let id = self.next_command;
        self.next_command = id.wrapping_add(1);
        command.dwords[0] = command.dwords[0] & 0xffff | u32::from(id) << 16;
        let slot = u64::from(self.tail) * 64;
        let quads = command.dwords.chunks_exact(2);
        for (quad, at) in quads.zip((slot..).step_by(8)) {
            self.memory
                .write64(at, u64::from(quad[0]) | u64::from(quad[1]) << 32);
        }
        self.tail = (self.tail + 1) % self.entries;
        Some(id)
    }

    /// Tells the controller about everything pushed.
    pub fn ring(&mut self) {
        self.doorbell.ring(self.tail);
    }

    /// Takes the queue head that a completion reports.
    pub fn note(&mut self, completion: &Completion) {
        self.head = u32::from(completion.sq_head) % self.entries;
    }

    /// The next free slot.
    pub fn tail(&self) -> u32 {
        self.tail
    }
}

/// A completion queue.
pub struct CompletionQueue {
    /// Queue identifier.
    pub id: u16,
    /// Slots.
    pub entries: u32,
    /// The ring.
    pub memory: Dma,
    /// Head doorbell.
    pub doorbell: Doorbell,
    head: u32,
    phase: u16,
}

impl CompletionQueue {
    pub(super) fn new(id: u16, entries: u32, register: u64) -> Self {
        Self {
            id,
            entries,
            memory: memory::allocate(u64::from(entries) * 16),
            doorbell: Doorbell::new(register),
            head: 0,
            phase: 1,
        }
    }

    /// Takes the next completion if there is one, without ringing.
    pub fn take(&mut self) -> Option<Completion> {
        let slot = u64::from(self.head) * 16;
        let last = self.memory.read32(slot + 12);
        let status = (last >> 16) as u16;
        if status & 1 != self.phase {
            return None;
        }
        // The phase bit was read first; x86 keeps loads in order.
        let ids = self.memory.read32(slot + 8);
        let completion = Completion {
            result: self.memory.read32(slot),
            sq_head: ids as u16,
            sq_id: (ids >> 16) as u16,
            id: last as u16,
            status: status >> 1,
        };
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase ^= 1;
        }
        Some(completion)
    }

    /// Gives everything taken back to the controller.
    pub fn ring(&mut self) {
        self.doorbell.ring(self.head);
    }

    /// The slot that the next completion comes in.
    pub fn head(&self) -> u32 {
        self.head
    }
}

/// A submission queue with a completion queue of its own.
pub struct Pair {
    /// Where commands go.
    pub sq: SubmissionQueue,
    /// Where completions come from.
    pub cq: CompletionQueue,
}

impl Pair {
    /// Takes the next completion, if there is one, and gives its slot back.
    pub fn poll(&mut self) -> Option<Completion> {
        let completion = self.cq.take()?;
        self.sq.note(&completion);
        self.cq.ring();
        Some(completion)
    }

    /// Register writes of both doorbells so far.
    pub fn doorbell_writes(&self) -> u64 {
        self.sq.doorbell.writes + self.cq.doorbell.writes
    }
}
