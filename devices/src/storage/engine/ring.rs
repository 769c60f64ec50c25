//! An io_uring behind an engine.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode};

use super::memory::FixedMemory;
use super::slab::{Lane, Queued, Slab};
use super::{Engine, EngineStats};
use crate::ram::GuestRam;
use crate::storage::Completion;

/// Entries of the submission queue: a full engine is submitted at once.
const ENTRIES: u32 = 512;

/// Entries of the completion queue: every request and a cancel for each fit, so it never overflows.
const COMPLETIONS: u32 = 4096;

const _: () = assert!(Engine::CAPACITY <= ENTRIES as usize);
const _: () = assert!(2 * (Engine::CAPACITY + Engine::BURST) <= COMPLETIONS as usize);

/// Places in the table of registered files: as many as a subsystem has namespaces.
const FILES: u32 = 1024;

/// The id of cancel operations, which no request has.
const CANCEL_ID: u64 = u64::MAX;

/// Fruitless attempts to submit before the thread goes back to its other work.
const ATTEMPTS: u32 = 8;

/// Whether a ring has a table of registered files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileTable {
    Registered,
    None,
}

/// Whether the kernel has yet to take entries that are in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backlog {
    None,
    Some,
}

pub(super) struct Ring {
    ring: IoUring,
    backlog: Backlog,
    lane: Lane,
    files: FileTable,
    memory: FixedMemory,
}

impl Ring {
    /// Sets a ring up and checks that the kernel knows the operations.
    pub fn new(lane: Lane) -> io::Result<Self> {
        let ring = build(lane)?;
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
        let files = register_files(&ring);
        Ok(Self {
            ring,
            backlog: Backlog::None,
            lane,
            files,
            memory: FixedMemory::default(),
        })
    }

    /// Registers a file under an index; `false` if it has to go by its descriptor.
    pub fn register_file(&self, index: u32, fd: RawFd) -> bool {
        self.set_file(index, fd).is_ok_and(|count| count == 1)
    }

    /// Lets go of a file, at once if no request is on it.
    pub fn unregister_file(&self, index: u32) {
        if let Err(error) = self.set_file(index, -1) {
            tracing::error!("io_uring does not let go of a file: {error}");
        }
    }

    fn set_file(&self, index: u32, fd: RawFd) -> io::Result<usize> {
        if self.files == FileTable::None || index >= FILES {
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        }
        self.ring.submitter().register_files_update(index, &[fd])
    }

    /// Lets go of all files.
    fn unregister_files(&mut self) {
        if self.files == FileTable::Registered {
            // It may fail if requests do not end, which is told elsewhere.
            let _ = self.ring.submitter().unregister_files();
            self.files = FileTable::None;
        }
    }

    /// Registers all memory of a guest, which stays in memory from now on. Once.
    pub fn register_memory(&mut self, ram: &GuestRam) -> io::Result<()> {
        let memory = FixedMemory::of(ram);
        // SAFETY: the ranges are mapped for as long as the engine keeps the guest's memory; and the
        // kernel keeps the pages, mapped or not.
        unsafe { self.ring.submitter().register_buffers(&memory.vectors())? };
        self.memory = memory;
        Ok(())
    }

    /// The registered memory.
    pub fn memory(&self) -> &FixedMemory {
        &self.memory
    }

    /// Submits all that is queued; `false` if the kernel could not take it now.
    pub fn submit(&mut self, slab: &mut Slab, stats: &EngineStats) -> bool {
        if self.backlog == Backlog::None && slab.queue_of(self.lane).is_empty() {
            return true;
        }
        self.backlog = Backlog::Some;
        if self.submit_all(slab, stats) {
            self.backlog = Backlog::None;
        }
        self.backlog == Backlog::None
    }

    fn submit_all(&mut self, slab: &mut Slab, stats: &EngineStats) -> bool {
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
            let entry = match slab.queue_of(self.lane).pop_front() {
                Some(Queued::Start(index)) => slab.entry(index, &self.memory),
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
    pub fn reap(
        &mut self,
        slab: &mut Slab,
        out: &mut Vec<Completion>,
        stats: &EngineStats,
    ) -> bool {
        if self.lane == Lane::Polling {
            if slab.polling() == 0 {
                return false;
            }
            // Nobody else looks for completions. A failure leaves them for the next time.
            EngineStats::add(&stats.enters, 1);
            let _ = self.ring.submit();
        }
        let queued = slab.queued();
        for entry in self.ring.completion() {
            out.extend(slab.settle(entry.user_data(), entry.result()));
        }
        slab.queued() > queued
    }

    /// Waits for a completion.
    pub fn wait(&self, limit: Duration) {
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

impl Drop for Ring {
    /// A ring that is closed lets go of its files later, on a thread of the kernel's.
    fn drop(&mut self) {
        self.unregister_files();
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

/// Completions of the ring that interrupts are there without a system call, as the kernel interrupts the
/// thread for them. IORING_SETUP_COOP_TASKRUN and IORING_SETUP_DEFER_TASKRUN would spare that, but ask
/// for a call instead while the thread is looking for completions, and brought no speed.
fn build(lane: Lane) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETIONS).dontfork();
    if lane == Lane::Polling {
        builder.setup_iopoll();
    }
    builder.build(ENTRIES)
}

/// Makes an empty table of files, where the kernel lets go of a file as soon as it is taken out and no
/// request is on it. Before Linux 6.13 it did so when it found time, or never while a request on some
/// other file did not end: an image would be in use after it was deleted. 6.15 brought the next
/// feature that says so.
fn register_files(ring: &IoUring) -> FileTable {
    let lets_go = ring.params().is_feature_no_iowait();
    if lets_go && ring.submitter().register_files_sparse(FILES).is_ok() {
        FileTable::Registered
    } else {
        FileTable::None
    }
}

/// Whether io_uring cannot be used in this environment at all.
pub(super) fn is_forbidden(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::ENOMEM | libc::EINVAL)
    )
}
