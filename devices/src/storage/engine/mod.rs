//! The engine of one I/O thread: it drives file requests with io_uring or a thread pool, and takes
//! completions from other threads.

mod inbox;
mod pool;
mod ring;
mod slab;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use self::inbox::Inbox;
pub use self::inbox::Mailbox;
use self::pool::{Job, Pool};
use self::ring::Ring;
use self::slab::{Queued, Slab, State};
use super::io::{Io, Next, Plan};
use super::{BackendError, Cancel, Completion, Request, Submitted, Token};
use crate::ram::GuestRam;

/// How an engine reaches files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// io_uring; where it is forbidden, threads, with one warning.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// A pool of threads.
    Threads,
}

/// Counters of one engine. Written by its thread, read by any.
#[derive(Debug, Default)]
pub struct EngineStats {
    /// Calls of io_uring_enter, batches handed to the thread pool, or transfers done at once.
    pub enters: AtomicU64,
    /// I/O operations started by them, continuations of short ones and cancellations included.
    pub submissions: AtomicU64,
    /// Completions returned by [`Engine::reap`].
    pub completions: AtomicU64,
}

impl EngineStats {
    /// Adds to a counter that only this thread writes.
    fn add(counter: &AtomicU64, count: usize) {
        let sum = counter.load(Ordering::Relaxed).wrapping_add(count as u64);
        counter.store(sum, Ordering::Relaxed);
    }
}

// One a thread, used with every request: no box.
#[allow(clippy::large_enum_variant)]
enum Driver {
    Ring(Ring),
    Pool(Pool),
}

/// Starts and completes the requests of one I/O thread, which owns it.
///
/// Nothing is allocated per request in steady state. The engine keeps guest memory mapped until the
/// last request is done.
pub struct Engine {
    ram: GuestRam,
    driver: Driver,
    slab: Slab,
    inbox: Arc<Inbox>,
    /// Requests that a [`Mailbox`] completes.
    remote: usize,
    stats: Arc<EngineStats>,
    mail: Vec<Completion>,
    jobs: Vec<Job>,
    /// For [`Engine::run_file`].
    direct: Io,
}

impl Engine {
    /// Requests in flight from which on [`Engine::has_room`] is false.
    pub const CAPACITY: usize = 512;

    /// Requests that may be submitted after [`Engine::has_room`] was last true: one command may
    /// become so many. More end at once with `EAGAIN`.
    pub const BURST: usize = 1024;

    /// How long dropping an engine waits for the kernel to let go of guest memory.
    const DROP_LIMIT: Duration = Duration::from_secs(5);

    /// An engine of kind [`EngineKind::Auto`] for requests with data in `ram`.
    ///
    /// # Errors
    /// No file descriptors, memory or threads left.
    pub fn new(ram: GuestRam) -> Result<Self, io::Error> {
        Self::with_kind(ram, EngineKind::Auto)
    }

    /// An engine of a given kind for requests with data in `ram`.
    ///
    /// # Errors
    /// As [`Engine::new`]; and for [`EngineKind::IoUring`], it is forbidden or too old here.
    pub fn with_kind(ram: GuestRam, kind: EngineKind) -> Result<Self, io::Error> {
        let inbox = Inbox::new()?;
        let pool = || Pool::new(&ram, &inbox).map(Driver::Pool);
        let driver = match kind {
            EngineKind::IoUring => Driver::Ring(Ring::new()?),
            EngineKind::Threads => pool()?,
            EngineKind::Auto => match Ring::new() {
                Ok(ring) => Driver::Ring(ring),
                Err(error) if ring::is_forbidden(&error) => {
                    warn_of_threads(&error);
                    pool()?
                }
                Err(error) => return Err(error),
            },
        };
        Ok(Self {
            ram,
            driver,
            slab: Slab::default(),
            inbox,
            remote: 0,
            stats: Arc::default(),
            mail: Vec::new(),
            jobs: Vec::new(),
            direct: Io::default(),
        })
    }

    /// [`EngineKind::IoUring`] or [`EngineKind::Threads`].
    pub fn kind(&self) -> EngineKind {
        match self.driver {
            Driver::Ring(_) => EngineKind::IoUring,
            Driver::Pool(_) => EngineKind::Threads,
        }
    }

    /// The guest memory that requests point into.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Starts everything queued: one io_uring_enter, or none if nothing is queued.
    ///
    /// To be called before sleeping, also after [`super::Backend::cancel`].
    pub fn kick(&mut self) {
        match &mut self.driver {
            Driver::Ring(ring) => {
                if !ring.submit(&mut self.slab, &self.stats) {
                    // The kernel is short of memory: come back rather than spin here.
                    self.inbox.wake();
                }
            }
            Driver::Pool(pool) => {
                let count = self.slab.queue.len();
                if count > 0 {
                    EngineStats::add(&self.stats.enters, 1);
                    EngineStats::add(&self.stats.submissions, count);
                    pool.send(send_to_pool(&mut self.slab));
                }
            }
        }
    }

    /// Appends what has completed to `out`, without a system call unless another thread completed
    /// something or a short transfer has to be continued.
    pub fn reap(&mut self, out: &mut Vec<Completion>) {
        let before = out.len();
        let go_on = match &mut self.driver {
            Driver::Ring(ring) => ring.reap(&mut self.slab, out),
            Driver::Pool(_) => false,
        };
        self.inbox.take(&mut self.mail, &mut self.jobs);
        self.remote = self.remote.saturating_sub(self.mail.len());
        out.append(&mut self.mail);
        for job in self.jobs.drain(..) {
            out.push(self.slab.finish(job));
        }
        if out.len() > before {
            EngineStats::add(&self.stats.completions, out.len() - before);
        }
        if go_on {
            self.kick();
        }
    }

    /// Whether the caller may take one more command (of up to [`Engine::BURST`] requests).
    pub fn has_room(&self) -> bool {
        self.in_flight() < Self::CAPACITY
    }

    /// Requests whose completion has not been reaped.
    pub fn in_flight(&self) -> usize {
        self.slab.used() + self.remote
    }

    /// Descriptors that are readable while [`Engine::reap`] has something to return, for epoll
    /// (level-triggered). They stay the same for the engine's life.
    pub fn wake_fds(&self) -> Vec<RawFd> {
        let ring = match &self.driver {
            Driver::Ring(ring) => Some(ring.as_raw_fd()),
            Driver::Pool(_) => None,
        };
        ring.into_iter().chain([self.inbox.as_raw_fd()]).collect()
    }

    /// By which other threads complete requests counted by [`Engine::begin_remote`].
    pub fn mailbox(&self) -> Mailbox {
        self.inbox.mailbox()
    }

    /// Counts a request that its backend will complete through the returned mailbox, exactly once.
    pub fn begin_remote(&mut self) -> Mailbox {
        self.remote += 1;
        self.mailbox()
    }

    /// Takes back one [`Engine::begin_remote`]: the request was cancelled, no completion follows.
    pub fn end_remote(&mut self) {
        self.remote = self.remote.saturating_sub(1);
    }

    /// The engine's counters.
    pub fn stats(&self) -> Arc<EngineStats> {
        self.stats.clone()
    }

    /// Does a request on a file now, for files whose transfers wait for nothing.
    pub(super) fn run_file(
        &mut self,
        plan: Plan,
        request: &Request<'_>,
    ) -> Result<(), BackendError> {
        EngineStats::add(&self.stats.submissions, 1);
        self.direct.start(plan, request);
        let result = loop {
            EngineStats::add(&self.stats.enters, 1);
            if let Next::Done(result) = self.direct.advance(self.direct.call()) {
                break result;
            }
        };
        self.direct.clear();
        EngineStats::add(&self.stats.completions, 1);
        result
    }

    /// Queues a request on a file.
    pub(super) fn submit_file(&mut self, plan: Plan, request: &Request<'_>) -> Submitted {
        if self.slab.add(plan, request, Self::CAPACITY + Self::BURST) {
            Submitted::Pending
        } else {
            Submitted::Done(Err(BackendError::Io(libc::EAGAIN)))
        }
    }

    /// Cancels a request that [`Engine::submit_file`] queued.
    pub(super) fn cancel_file(&mut self, token: Token) -> Cancel {
        match self.slab.find(token) {
            None | Some((_, State::Free)) => Cancel::Cancelled,
            Some((index, State::Queued)) => {
                self.slab.unqueue(index);
                Cancel::Cancelled
            }
            Some((index, State::Sent)) => self.cancel_sent(index),
        }
    }

    fn cancel_sent(&mut self, index: u32) -> Cancel {
        let id = self.slab.cancel(index);
        match &self.driver {
            Driver::Ring(_) => self.slab.queue.push_back(Queued::Cancel(id)),
            Driver::Pool(pool) => {
                if let Some(job) = pool.take_back(index) {
                    self.slab.finish(job);
                    return Cancel::Cancelled;
                }
            }
        }
        Cancel::Pending
    }
}

/// Turns queued slots into jobs.
fn send_to_pool(slab: &mut Slab) -> impl Iterator<Item = Job> {
    std::iter::from_fn(|| {
        loop {
            match slab.queue.pop_front()? {
                Queued::Start(index) => return Some(slab.job(index)),
                // Never queued for a pool.
                Queued::Cancel(_) => {}
            }
        }
    })
}

fn warn_of_threads(error: &io::Error) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing::warn!("io_uring cannot be used here ({error}); using slower threads for files");
    });
}

impl Drop for Engine {
    /// Cancels what is in flight. Memory that the kernel may still write is leaked, not freed.
    fn drop(&mut self) {
        // The threads of a pool own what they use, and the pool stops them.
        let Driver::Ring(ring) = &mut self.driver else {
            return;
        };
        if ring.stop(&mut self.slab, Self::DROP_LIMIT) {
            return;
        }
        let left = self.slab.used();
        tracing::error!("{left} file requests do not end: their memory stays allocated");
        std::mem::forget(std::mem::take(&mut self.slab));
        std::mem::forget(self.ram.clone());
    }
}

#[cfg(test)]
mod load;
#[cfg(test)]
mod tests;
