//! The thread pool that does file requests where io_uring is forbidden.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use super::Engine;
use super::inbox::Inbox;
use crate::ram::GuestRam;
use crate::storage::BackendError;
use crate::storage::file::Image;
use crate::storage::io::{Io, Next};

/// Threads of one pool: so many file requests of an engine run at once.
const THREADS: usize = 4;

/// A request on its way through the pool and back. It owns all that the thread touches, the image
/// too: it may outlive the engine.
#[derive(Debug)]
pub(super) struct Job {
    /// The slot that it came from.
    pub slot: u32,
    /// The image.
    pub image: Arc<Image>,
    /// The request; handed back so that its vectors are used again.
    pub io: Io,
    /// Set by the engine: give up between two system calls.
    pub cancel: Arc<AtomicBool>,
    /// How it ended.
    pub result: Result<(), BackendError>,
}

/// The threads, and what they share with the engine.
pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when a job is queued or the pool stops.
    work: Condvar,
    /// Signalled when a thread has left a job while the pool stops.
    idle: Condvar,
    /// Tells running jobs to give up between two system calls.
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    running: usize,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job, or `None` when the pool stops.
    fn next(&self) -> Option<Job> {
        let mut state = self
            .work
            .wait_while(self.lock(), |state| !state.stop && state.jobs.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        if state.stop {
            return None;
        }
        let job = state.jobs.pop_front();
        state.running += usize::from(job.is_some());
        job
    }

    fn left(&self) {
        let mut state = self.lock();
        state.running -= 1;
        if state.stop {
            self.idle.notify_all();
        }
    }
}

impl Pool {
    /// Starts the threads. Each keeps `ram` mapped while it may touch it.
    pub fn new(ram: &GuestRam, inbox: &Arc<Inbox>) -> io::Result<Self> {
        let mut pool = Self {
            shared: Arc::default(),
            threads: Vec::with_capacity(THREADS),
        };
        for _ in 0..THREADS {
            let (shared, inbox, ram) = (pool.shared.clone(), inbox.clone(), ram.clone());
            let thread = Builder::new().name("berth-file".into()).spawn(move || {
                work(&shared, &inbox);
                drop(ram);
            })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Queues `jobs`, in order.
    pub fn send(&self, jobs: impl Iterator<Item = Job>) {
        self.shared.lock().jobs.extend(jobs);
        self.shared.work.notify_all();
    }

    /// Takes back a job that no thread has begun.
    pub fn take_back(&self, slot: u32) -> Option<Job> {
        let jobs = &mut self.shared.lock().jobs;
        let at = jobs.iter().position(|job| job.slot == slot)?;
        jobs.remove(at)
    }
}

impl Drop for Pool {
    /// Forgets queued jobs and waits for running ones, not forever: they keep all that they use
    /// until they end.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut state = self.shared.lock();
        state.stop = true;
        let forgotten = std::mem::take(&mut state.jobs);
        self.shared.work.notify_all();
        let (state, wait) = self
            .shared
            .idle
            .wait_timeout_while(state, Engine::DROP_LIMIT, |state| state.running > 0)
            .unwrap_or_else(PoisonError::into_inner);
        let running = state.running;
        drop(state);
        drop(forgotten);
        if wait.timed_out() {
            tracing::error!("{running} file requests do not end: their threads stay");
            return;
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing to say here.
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared, inbox: &Inbox) {
    while let Some(mut job) = shared.next() {
        job.result = run(&job.image, &mut job.io, &[&shared.stop, &job.cancel]);
        inbox.finish(job);
        shared.left();
    }
}

fn run(image: &Image, io: &mut Io, stop: &[&AtomicBool]) -> Result<(), BackendError> {
    loop {
        if stop.iter().any(|stop| stop.load(Ordering::Relaxed)) {
            return Err(BackendError::Cancelled);
        }
        if let Next::Done(result) = io.advance(image, io.call(image)) {
            return result;
        }
    }
}
