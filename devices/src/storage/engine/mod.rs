//! The engine of one I/O thread: it drives file requests with io_uring or a thread pool, and takes
//! completions from other threads.

mod files;
mod inbox;
mod memory;
mod pool;
mod ring;
mod rings;
mod slab;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use serde::Serialize;

pub use self::inbox::Mailbox;
pub(super) use self::inbox::User;
use self::inbox::{Inbox, Taken};
pub(super) use self::memory::FixedMemory;
use self::pool::{Job, Pool};
use self::rings::Rings;
use self::slab::{Queued, Slab, State};
use super::file::Image;
use super::io::{Io, Next, Plan, Step};
use super::{BackendError, Cancel, Completion, Request, Submitted, Token};
use crate::ram::GuestRam;

/// How an engine reaches files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum EngineKind {
    /// io_uring; where it is forbidden, threads, with one warning.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// io_uring or an error.
    #[serde(rename = "io_uring")]
    IoUring,
    /// A pool of threads.
    #[serde(rename = "threads")]
    Threads,
}

/// Why guest memory cannot be registered.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The engine works with threads.
    #[error(
        "guest memory can be locked (mem-lock=on) for io_uring only, which cannot be used here: \
         leave mem-lock=on out"
    )]
    NoRing,
    /// More than the user may lock.
    #[error(
        "{bytes} bytes of guest memory cannot be locked (mem-lock=on) for an I/O thread: raise \
         RLIMIT_MEMLOCK (ulimit -l, or LimitMEMLOCK= of a service) by as much for each I/O thread, \
         or leave mem-lock=on out"
    )]
    Limit {
        /// All guest memory.
        bytes: usize,
    },
    /// The kernel refused for another reason.
    #[error("guest memory cannot be locked (mem-lock=on) for an I/O thread: {0}")]
    Host(io::Error),
}

/// Counters of one engine. Written by its thread, read by any.
#[derive(Debug, Default)]
pub struct EngineStats {
    /// Calls of io_uring_enter, or batches handed to the thread pool.
    pub enters: AtomicU64,
    /// Transfers that the engine's thread did at once, by a system call each: of images in memory, and
    /// of what was in the page cache.
    pub inline: AtomicU64,
    /// I/O operations started by them, continuations of short ones and cancellations included.
    pub submissions: AtomicU64,
    /// Requests that were done, those done at once included.
    pub completions: AtomicU64,
    /// Requests whose data went through a buffer of the engine's, because O_DIRECT could not reach it
    /// where the guest has it.
    pub bounced: AtomicU64,
    /// Requests whose completion was looked for at the device (IORING_SETUP_IOPOLL).
    pub iopolled: AtomicU64,
    /// Images that are registered with the ring now.
    pub registered_files: AtomicU64,
    /// Bytes of guest memory that are registered with the ring.
    pub registered_memory: AtomicU64,
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
    Rings(Rings),
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
    taken: Taken,
    /// For requests that are done at once.
    direct: Io,
    batch: Batch,
}

/// How many requests on files come between two kicks.
#[derive(Debug, Default)]
struct Batch {
    /// Since the last kick.
    now: usize,
    /// Before it, the last time that there were any.
    last: usize,
}

impl Batch {
    fn end(&mut self) {
        if self.now > 0 {
            self.last = std::mem::take(&mut self.now);
        }
    }

    /// Whether it is likely that a request that comes now will be the only one.
    fn is_single(&self) -> bool {
        self.now == 0 && self.last <= 1
    }
}

impl Engine {
    /// Requests in flight from which on [`Engine::has_room`] is false.
    pub const CAPACITY: usize = 512;

    /// Requests that may be submitted after [`Engine::has_room`] was last true: one command may
    /// become so many. More end at once with `EAGAIN`.
    pub const BURST: usize = 1024;

    /// Requests from which on [`Engine::kick_early`] starts them: for fewer a call costs more than the
    /// storage's wait.
    const EARLY: usize = 4;

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
            EngineKind::IoUring => Driver::Rings(Rings::new()?),
            EngineKind::Threads => pool()?,
            EngineKind::Auto => match Rings::new() {
                Ok(rings) => Driver::Rings(rings),
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
            taken: Taken::default(),
            direct: Io::default(),
            batch: Batch::default(),
        })
    }

    /// [`EngineKind::IoUring`] or [`EngineKind::Threads`].
    pub fn kind(&self) -> EngineKind {
        match self.driver {
            Driver::Rings(_) => EngineKind::IoUring,
            Driver::Pool(_) => EngineKind::Threads,
        }
    }

    /// Registers all guest memory with the ring: the kernel need not look up the pages of each
    /// request. They stay in memory until the engine is dropped, and are locked as `mlock` would do.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn register_memory(&mut self) -> Result<(), LockError> {
        let Driver::Rings(rings) = &mut self.driver else {
            return Err(LockError::NoRing);
        };
        let bytes = rings.register_memory(&self.ram)?;
        EngineStats::add(&self.stats.registered_memory, bytes);
        Ok(())
    }

    /// The guest memory that requests point into.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Starts everything queued: one io_uring_enter, or none if nothing is queued.
    ///
    /// To be called before sleeping, also after [`super::Backend::cancel`].
    pub fn kick(&mut self) {
        self.batch.end();
        self.send();
    }

    /// Starts what is queued, if there is twice as much of it as the kernel has: storage that has done
    /// all it had would be idle while a large batch comes together, and do it at one go again. To be called
    /// between the requests of a batch. Three calls are made for 32 requests, and one for four.
    pub fn kick_early(&mut self) {
        let queued = self.slab.queued();
        if queued >= Self::EARLY && queued / 2 >= self.slab.used().saturating_sub(queued) {
            self.send();
        }
    }

    fn send(&mut self) {
        match &mut self.driver {
            Driver::Rings(rings) => {
                if !rings.submit(&mut self.slab, &self.stats) {
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
    /// something, a short transfer has to be continued, or [`Engine::must_poll`].
    pub fn reap(&mut self, out: &mut Vec<Completion>) {
        let before = out.len();
        let go_on = match &mut self.driver {
            Driver::Rings(rings) => rings.reap(&mut self.slab, out, &self.stats),
            Driver::Pool(_) => false,
        };
        if self.inbox.take(&mut self.taken) {
            self.take_mail(out);
        }
        self.close_unused();
        if out.len() > before {
            EngineStats::add(&self.stats.completions, out.len() - before);
        }
        if go_on {
            self.kick();
        }
    }

    /// Handles what other threads left.
    fn take_mail(&mut self, out: &mut Vec<Completion>) {
        self.remote = self.remote.saturating_sub(self.taken.mail.len());
        out.append(&mut self.taken.mail);
        for job in self.taken.jobs.drain(..) {
            out.push(self.slab.finish(job));
        }
        for number in self.taken.disowned.drain(..) {
            self.slab.files.disown(number);
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

    /// Whether requests are with a device that tells nobody when it has done them: the thread must
    /// call [`Engine::reap`] again instead of sleeping.
    pub fn must_poll(&self) -> bool {
        self.slab.polling() > 0
    }

    /// Descriptors that are readable while [`Engine::reap`] has something to return, for epoll
    /// (level-triggered), unless [`Engine::must_poll`]. They stay the same for the engine's life.
    pub fn wake_fds(&self) -> Vec<RawFd> {
        let ring = match &self.driver {
            Driver::Rings(rings) => Some(rings.as_raw_fd()),
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

    /// Does a request on an image now, for images whose transfers wait for nothing.
    pub(super) fn run_file(
        &mut self,
        image: &Image,
        plan: Plan,
        request: &Request<'_>,
    ) -> Result<(), BackendError> {
        EngineStats::add(&self.stats.submissions, 1);
        let bounces = &mut self.slab.bounces;
        self.direct.start(image, plan, request, bounces);
        let result = loop {
            EngineStats::add(&self.stats.inline, 1);
            if let Next::Done(result) = self.direct.advance(image, self.direct.call(image)) {
                break result;
            }
        };
        self.direct.clear(bounces);
        self.count_bounced();
        EngineStats::add(&self.stats.completions, 1);
        result
    }

    /// Does a read now if that is likely to be cheaper than asking the kernel for it in a batch, and if
    /// its data is in the page cache; whether it is done.
    pub(super) fn read_cached(&mut self, image: &Image, request: &Request<'_>) -> bool {
        if !self.batch.is_single() || self.slab.used() > 0 || !image.may_be_cached() {
            return false;
        }
        let plan = Plan {
            step: Step::Read,
            stable: false,
        };
        let bounces = &mut self.slab.bounces;
        self.direct.start(image, plan, request, bounces);
        let done = self.direct.read_cached(image);
        self.direct.clear(bounces);
        if done {
            self.batch.now += 1;
            for counter in [
                &self.stats.submissions,
                &self.stats.inline,
                &self.stats.completions,
            ] {
                EngineStats::add(counter, 1);
            }
        }
        done
    }

    /// Queues a request on an image. The engine keeps the image open until its backend says that it is
    /// gone, see [`Image::add_user`].
    pub(super) fn submit_file(
        &mut self,
        image: &Arc<Image>,
        plan: Plan,
        request: &Request<'_>,
    ) -> Submitted {
        let file = match self.slab.files.find(image) {
            Some(file) => file,
            None => self.adopt(image),
        };
        self.batch.now += 1;
        let limit = Self::CAPACITY + Self::BURST;
        if !self.slab.add(file, plan, request, limit) {
            return Submitted::Done(Err(BackendError::Io(libc::EAGAIN)));
        }
        self.count_bounced();
        Submitted::Pending
    }

    /// Takes in an image that it has not used before.
    fn adopt(&mut self, image: &Arc<Image>) -> u32 {
        image.add_user(self.inbox.user());
        let index = self.slab.files.insert(Arc::clone(image));
        if let Driver::Rings(rings) = &mut self.driver {
            rings.adopt(&mut self.slab, index, &self.ram);
        }
        self.count_registered();
        index
    }

    /// Lets go of images whose backends are gone and whose last request has ended.
    fn close_unused(&mut self) {
        while let Some((index, name)) = self.slab.files.unused() {
            if let Driver::Rings(rings) = &self.driver {
                rings.let_go(index, name);
            }
            self.slab.files.remove(index);
            self.count_registered();
        }
    }

    fn count_registered(&self) {
        let count = self.slab.files.registered() as u64;
        let registered = &self.stats.registered_files;
        registered.store(count, Ordering::Relaxed);
    }

    fn count_bounced(&self) {
        let count = self.slab.bounces.taken();
        self.stats.bounced.store(count, Ordering::Relaxed);
    }

    /// Cancels a request that [`Engine::submit_file`] queued.
    pub(super) fn cancel_file(&mut self, token: Token) -> Cancel {
        let cancel = match self.slab.find(token) {
            None | Some((_, State::Free)) => Cancel::Cancelled,
            Some((index, State::Queued)) => {
                self.slab.unqueue(index);
                Cancel::Cancelled
            }
            Some((index, State::Sent)) => self.cancel_sent(index),
        };
        self.close_unused();
        cancel
    }

    fn cancel_sent(&mut self, index: u32) -> Cancel {
        match &self.driver {
            Driver::Rings(_) => self.slab.cancel(index),
            Driver::Pool(pool) => {
                self.slab.mark_cancelled(index);
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
        let Driver::Rings(rings) = &mut self.driver else {
            return;
        };
        if rings.stop(&mut self.slab, Self::DROP_LIMIT) {
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
