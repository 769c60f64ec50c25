//! The end of a ring that a queue's owner writes to.

use std::sync::Arc;
use std::time::Instant;

use rtrb::Producer;
use vmm_sys_util::eventfd::EventFd;

use super::super::error::CommandError;
use super::super::spec::Sqe;
use super::super::stats::Counter;
use super::record::{Record, TraceEvent, TracedCommand, admin_bytes, io_bytes};

/// A recorder's counters.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Records that found room.
    pub recorded: Counter,
    /// Records that did not.
    pub lost: Counter,
}

/// Where a command was fetched.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Number of the controller.
    pub controller: u32,
    /// Submission queue identifier.
    pub sqid: u16,
    /// Identifier of the completion queue that it feeds.
    pub cqid: u16,
}

/// A command that was recorded as fetched.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    time: u64,
    command: TracedCommand,
}

/// Records the commands of one thread's queues. Never waits and never allocates: what finds no room is
/// counted.
#[derive(Debug)]
pub struct Recorder {
    ring: Producer<Record>,
    counts: Arc<Counts>,
    start: Instant,
    wake: Arc<EventFd>,
    // Since the last record that found room.
    lost: u32,
    // The reader is woken after so many records.
    wake_every: usize,
    since_wake: usize,
}

impl Recorder {
    pub(super) fn new(
        ring: Producer<Record>,
        counts: Arc<Counts>,
        start: Instant,
        wake: Arc<EventFd>,
    ) -> Self {
        Self {
            // The rest has to do until the reader runs.
            wake_every: ring.buffer().capacity() / 4,
            ring,
            counts,
            start,
            wake,
            lost: 0,
            since_wake: 0,
        }
    }

    /// An I/O command was fetched just now, for a namespace with blocks of `1 << block_shift` bytes if
    /// there is one.
    pub fn fetched_io(&mut self, place: Place, sqe: &Sqe, block_shift: Option<u32>) -> Open {
        let bytes = block_shift.map_or(0, |shift| io_bytes(sqe, shift));
        self.fetched(place, sqe, bytes)
    }

    /// An admin command was fetched just now.
    pub fn fetched_admin(&mut self, controller: u32, sqe: &Sqe) -> Open {
        let place = Place {
            controller,
            sqid: 0,
            cqid: 0,
        };
        self.fetched(place, sqe, admin_bytes(sqe))
    }

    fn fetched(&mut self, place: Place, sqe: &Sqe, bytes: u32) -> Open {
        let command = TracedCommand {
            controller: place.controller,
            sqid: place.sqid,
            cqid: place.cqid,
            cid: sqe.cid(),
            opcode: sqe.cdw0.opc(),
            nsid: sqe.nsid,
            bytes,
        };
        let time = self.now();
        let event = TraceEvent::Fetched {
            prp1: sqe.prp1,
            prp2: sqe.prp2,
            cdw: [sqe.cdw10, sqe.cdw11, sqe.cdw12],
        };
        self.push(time, command, event);
        Open { time, command }
    }

    /// The command's completion is about to be posted.
    pub fn completed(&mut self, open: &Open, end: Result<u32, CommandError>) {
        let time = self.now();
        let (status, dnr, dw0) = match end {
            Ok(dw0) => (super::super::spec::Status::SUCCESS, false, dw0),
            Err(error) => (error.status(), error.dnr(), 0),
        };
        let event = TraceEvent::Completed {
            latency: time.saturating_sub(open.time),
            status,
            dnr,
            dw0,
        };
        self.push(time, open.command, event);
    }

    /// The command ends without a completion.
    pub fn abandoned(&mut self, open: &Open) {
        let time = self.now();
        let latency = time.saturating_sub(open.time);
        self.push(time, open.command, TraceEvent::Abandoned { latency });
    }

    /// Whether what is recorded can still be read. It cannot once the trace's file has failed.
    pub fn is_read(&self) -> bool {
        !self.ring.is_abandoned()
    }

    /// Records that its ring holds.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.ring.buffer().capacity()
    }

    fn now(&self) -> u64 {
        nanoseconds(self.start)
    }

    fn push(&mut self, time: u64, command: TracedCommand, event: TraceEvent) {
        let record = Record {
            time,
            command,
            event,
            lost_before: self.lost,
        };
        if self.ring.push(record).is_err() {
            self.lost = self.lost.saturating_add(1);
            self.counts.lost.add(1);
        } else {
            self.lost = 0;
            self.counts.recorded.add(1);
        }
        self.since_wake += 1;
        if self.since_wake >= self.wake_every {
            self.since_wake = 0;
            // It fails only at 2^64 - 1 unread writes.
            let _ = self.wake.write(1);
        }
    }
}

/// Nanoseconds from `start` to now; 584 years fit.
pub(super) fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
