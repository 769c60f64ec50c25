//! The io_uring behind an engine.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, opcode};

use super::slab::{Queued, Slab};
use super::{Engine, EngineStats};
use crate::storage::Completion;

/// Entries of the submission queue: a full engine is submitted at once.
const ENTRIES: u32 = 512;

/// Entries of the completion queue: every request and a cancel for each fit, so it never overflows.
const COMPLETIONS: u32 = 4096;

const _: () = assert!(Engine::CAPACITY <= ENTRIES as usize);
const _: () = assert!(2 * (Engine::CAPACITY + Engine::BURST) <= COMPLETIONS as usize);

/// The id of cancel operations, which no request has.
const CANCEL_ID: u64 = u64::MAX;

/// Fruitless attempts to submit before the thread goes back to its other work.
const ATTEMPTS: u32 = 8;

pub(super) struct Ring {
    ring: IoUring,
}

impl Ring {
    /// Sets a ring up and checks that the kernel knows the operations.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .dontfork()
            .build(ENTRIES)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let codes = [
            opcode::Read::CODE,
            opcode::Readv::CODE,
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
            opcode::AsyncCancel::CODE,
        ];
        if !codes.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        Ok(Self { ring })
    }

    /// Submits all that is queued; `false` if the kernel could not take it now.
    pub fn submit(&mut self, slab: &mut Slab, stats: &EngineStats) -> bool {
        let mut attempts = 0;
        while self.fill(slab) {
            EngineStats::add(&stats.enters, 1);
            match self.ring.submit() {
                Ok(count) if count > 0 => {
                    EngineStats::add(&stats.submissions, count);
                    attempts = 0;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // EAGAIN or EBUSY: no memory for requests, or completions first.
                _ => attempts += 1,
            }
            if attempts == ATTEMPTS {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// Moves what fits from the queue into the ring; whether there is anything to submit.
    fn fill(&mut self, slab: &mut Slab) -> bool {
        let mut entries = self.ring.submission();
        while !entries.is_full() {
            let entry = match slab.queue.pop_front() {
                Some(Queued::Start(index)) => slab.entry(index),
                Some(Queued::Cancel(id)) => {
                    opcode::AsyncCancel::new(id).build().user_data(CANCEL_ID)
                }
                None => break,
            };
            // SAFETY: the entry points into memory of its slot and into guest memory. Both stay
            // where they are until its completion: see `Slab::settle` and `Engine::drop`.
            let pushed = unsafe { entries.push(&entry) };
            debug_assert!(pushed.is_ok(), "there was room");
        }
        !entries.is_empty()
    }

    /// Takes completions out of the ring; `true` if some were short and are queued again.
    pub fn reap(&mut self, slab: &mut Slab, out: &mut Vec<Completion>) -> bool {
        let queued = slab.queue.len();
        for entry in self.ring.completion() {
            out.extend(slab.settle(entry.user_data(), entry.result()));
        }
        slab.queue.len() > queued
    }

    /// Cancels everything and waits for it; `false` if some of it did not end within `limit`.
    pub fn stop(&mut self, slab: &mut Slab, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        for id in slab.cancel_all() {
            slab.queue.push_back(Queued::Cancel(id));
        }
        let stats = EngineStats::default();
        let mut ended = Vec::new();
        loop {
            self.submit(slab, &stats);
            self.reap(slab, &mut ended);
            if slab.used() == 0 {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.wait(left);
        }
    }

    /// Waits for a completion.
    fn wait(&self, limit: Duration) {
        let mut poll = libc::pollfd {
            fd: self.ring.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // Waiting again after a second is as good, and retries entries that were stuck.
        let limit = limit.min(Duration::from_secs(1)).as_millis();
        let limit = libc::c_int::try_from(limit)
            .unwrap_or(libc::c_int::MAX)
            .max(1);
        // SAFETY: one valid pollfd. An error or early return is fine for the caller's loop.
        unsafe { libc::poll(&raw mut poll, 1, limit) };
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// Whether io_uring cannot be used in this environment at all.
pub(super) fn is_forbidden(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::ENOMEM | libc::EINVAL)
    )
}
