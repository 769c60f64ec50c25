//! Counters. Each is written by one thread and read by any.

use std::sync::atomic::{AtomicU32, Ordering};

use serde::Serialize;

pub use crate::counter::Counter;

/// How many of something there are now, with one writer: as cheap as a [`Counter`].
#[derive(Debug, Default)]
pub struct Gauge(AtomicU32);

impl Gauge {
    /// There are `count` more.
    pub fn add(&self, count: u32) {
        self.0.store(self.get() + count, Ordering::Relaxed);
    }

    /// There are `count` less.
    pub fn sub(&self, count: u32) {
        self.0.store(self.get() - count, Ordering::Relaxed);
    }

    /// How many there are.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of a submission queue.
#[derive(Debug, Default)]
pub struct SqStats {
    /// Commands fetched.
    pub commands: Counter,
    /// Commands fetched that have not ended.
    pub in_flight: Gauge,
    /// Times that the I/O thread was woken by the kernel for a doorbell and found commands here.
    pub wakeups: Counter,
    /// Read commands.
    pub reads: Counter,
    /// Write commands.
    pub writes: Counter,
    /// Bytes read.
    pub read_bytes: Counter,
    /// Bytes written.
    pub written_bytes: Counter,
}

/// Counters of a completion queue.
#[derive(Debug, Default)]
pub struct CqStats {
    /// Completions posted.
    pub completions: Counter,
    /// Interrupts raised.
    pub interrupts: Counter,
    /// Times that it moved to another I/O thread; counted by the admin queue's owner.
    pub moves: Counter,
}

/// Counters of an I/O thread.
#[derive(Debug, Default)]
pub struct ThreadStats {
    /// Times the thread slept.
    pub sleeps: Counter,
    /// Times it was woken by a doorbell's kernel event.
    pub doorbell_wakeups: Counter,
    /// Times it was woken by a doorbell exit or a message.
    pub kicks: Counter,
    /// Times it found work by looking for it instead of sleeping.
    pub polled: Counter,
    /// Completion queues that came from another thread.
    pub moves: Counter,
}

/// A queue pair's counters as `info` shows them; a submission queue with its completion queue.
#[derive(Debug, Clone, Serialize)]
pub struct QueueInfo {
    /// Submission queue identifier.
    pub sqid: u16,
    /// Identifier of the completion queue that it feeds.
    pub cqid: u16,
    /// Entries of the submission queue.
    pub entries: u32,
    /// Index of the I/O thread that owns it; none for the admin queue.
    pub io_thread: Option<usize>,
    /// Interrupt vector of the completion queue, if interrupts are enabled.
    pub vector: Option<u16>,
    /// Doorbell writes that left the guest for berth, both ends.
    pub doorbell_exits: u64,
    /// Writes to the completion queue's doorbell that were kept by KVM instead of leaving the guest.
    pub coalesced_doorbells: u64,
    /// Times the I/O thread was woken by the kernel for a doorbell and found commands here.
    pub ioeventfd_wakeups: u64,
    /// Commands fetched.
    pub commands: u64,
    /// Commands fetched and not ended.
    pub in_flight: u32,
    /// Bytes that Read commands asked for; those of an admin queue do not count.
    pub read_bytes: u64,
    /// Bytes that Write commands brought; likewise.
    pub written_bytes: u64,
    /// Completions posted to the completion queue.
    pub completions: u64,
    /// Interrupts raised for the completion queue.
    pub interrupts: u64,
    /// Times that the completion queue moved to another I/O thread.
    pub moves: u64,
}
