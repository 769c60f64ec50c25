//! I/O threads: one thread owns a completion queue and every submission queue that feeds it.

mod alarm;
mod command;
mod polling;
#[cfg(test)]
mod protocol;
mod slots;
mod worker;

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use crate::ram::GuestRam;
use crate::storage::{Engine, EngineStats};
use crate::subsystem::Namespace;

use super::core::Core;
use super::doorbell::Shadow;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::stats::{CqStats, SqStats, ThreadStats};
use super::sync::Sleeper;
use worker::Worker;

/// What the admin queue's owner tells an I/O thread. Messages are handled in order, and before any
/// doorbell that the guest rang because of them.
#[derive(Debug)]
pub(super) enum Message {
    /// Take over a completion queue.
    AddCq {
        core: Arc<Core>,
        queue: CompletionQueue,
        stats: Arc<CqStats>,
    },
    /// Take over a submission queue that feeds a completion queue of this thread.
    AddSq {
        core: Arc<Core>,
        queue: SubmissionQueue,
        cqid: u16,
        stats: Arc<SqStats>,
    },
    /// Abort or finish the queue's commands, forget it, tell `SqDeleted`.
    DeleteSq { core: Arc<Core>, sqid: u16 },
    /// Forget the queue, which no submission queue feeds any more, tell `CqDeleted`.
    DeleteCq { core: Arc<Core>, cqid: u16 },
    /// Doorbell values are in these buffers from now on.
    StartShadow {
        core: Arc<Core>,
        shadow: Arc<Shadow>,
    },
    /// Stop one command if that can be done, tell `AbortTried` for Abort command `abort_cid`.
    Abort {
        core: Arc<Core>,
        sqid: u16,
        cid: u16,
        abort_cid: u16,
    },
    /// Stop the commands in flight on a namespace that is attached no more, as far as can be.
    AbortNamespace {
        core: Arc<Core>,
        namespace: Weak<Namespace>,
    },
    /// Drop all queues of the controller, tell `Quiesced` once nothing touches guest memory for it.
    Reset { core: Arc<Core> },
    /// End the thread.
    Stop,
}

/// What others see of an I/O thread.
#[derive(Debug)]
pub(super) struct Shared {
    index: usize,
    // Doorbell exits and messages.
    kick: EventFd,
    // Signalled by the kernel for guest doorbell writes (ioeventfd).
    doorbell: EventFd,
    sleeper: Sleeper,
    messages: Mutex<Vec<Message>>,
    stats: ThreadStats,
}

impl Shared {
    fn new(index: usize) -> io::Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Self {
            index,
            kick: event()?,
            doorbell: event()?,
            sleeper: Sleeper::default(),
            messages: Mutex::default(),
            stats: ThreadStats::default(),
        })
    }

    /// Hands a message over.
    pub fn send(&self, message: Message) {
        self.lock_messages().push(message);
        self.wake();
    }

    /// Has the thread look at its doorbells, messages and tables. Costs nothing while it is awake.
    pub fn wake(&self) {
        self.sleeper.wake(|| {
            // It fails only at 2^64 - 1 unread writes.
            let _ = self.kick.write(1);
        });
    }

    /// The event that doorbell writes are to signal.
    pub fn doorbell_event(&self) -> &EventFd {
        &self.doorbell
    }

    fn lock_messages(&self) -> std::sync::MutexGuard<'_, Vec<Message>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Thread {
    shared: Arc<Shared>,
    engine_stats: Arc<EngineStats>,
    handle: Option<JoinHandle<()>>,
}

/// The I/O threads of a machine, shared by its controllers. They end when the last user is gone.
pub struct IoThreads {
    threads: Vec<Thread>,
    next: AtomicUsize,
}

impl std::fmt::Debug for IoThreads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoThreads({})", self.threads.len())
    }
}

impl IoThreads {
    /// Starts `count` threads (at least one).
    ///
    /// # Errors
    /// A thread or its I/O engine cannot be made.
    pub fn new(count: usize, ram: &GuestRam) -> io::Result<Arc<Self>> {
        let threads = (0..count.max(1))
            .map(|index| start(index, ram.clone()))
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(Self {
            threads,
            next: AtomicUsize::new(0),
        }))
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Chooses the thread for a new completion queue.
    pub(super) fn assign(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len()
    }

    /// The thread with this index; the first one if there is none.
    pub(super) fn thread(&self, index: usize) -> &Shared {
        &self.threads.get(index).unwrap_or(&self.threads[0]).shared
    }

    /// Hands each thread a message.
    pub(super) fn send_all(&self, message: impl Fn() -> Message) {
        for thread in &self.threads {
            thread.shared.send(message());
        }
    }

    /// Has every thread look around.
    pub(super) fn wake_all(&self) {
        for thread in &self.threads {
            thread.shared.wake();
        }
    }

    /// The threads' counters.
    pub fn info(&self) -> Vec<IoThreadInfo> {
        self.threads.iter().map(Thread::info).collect()
    }
}

impl Drop for IoThreads {
    fn drop(&mut self) {
        for thread in &self.threads {
            thread.shared.send(Message::Stop);
        }
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take() {
                // It panicked only if there is a bug, and then the process is gone.
                let _ = handle.join();
            }
        }
    }
}

impl Thread {
    fn info(&self) -> IoThreadInfo {
        let stats = &self.shared.stats;
        IoThreadInfo {
            index: self.shared.index,
            sleeps: stats.sleeps.get(),
            doorbell_wakeups: stats.doorbell_wakeups.get(),
            kicks: stats.kicks.get(),
            polled: stats.polled.get(),
            submissions: self.engine_stats.submissions.load(Ordering::Relaxed),
            enters: self.engine_stats.enters.load(Ordering::Relaxed),
            completions: self.engine_stats.completions.load(Ordering::Relaxed),
        }
    }
}

/// An I/O thread's counters.
#[derive(Debug, Clone, Serialize)]
pub struct IoThreadInfo {
    /// Index of the thread.
    pub index: usize,
    /// Times it slept.
    pub sleeps: u64,
    /// Times it was woken by a doorbell's kernel event.
    pub doorbell_wakeups: u64,
    /// Times it was woken by a doorbell exit or a message.
    pub kicks: u64,
    /// Times it found work by looking for it instead of sleeping.
    pub polled: u64,
    /// Requests given to the I/O engine.
    pub submissions: u64,
    /// Calls of the kernel by the I/O engine.
    pub enters: u64,
    /// Completions taken from the I/O engine.
    pub completions: u64,
}

fn start(index: usize, ram: GuestRam) -> io::Result<Thread> {
    let shared = Arc::new(Shared::new(index)?);
    let engine = Engine::new(ram)?;
    let engine_stats = engine.stats();
    let mut worker = Worker::new(Arc::clone(&shared), engine)?;
    let handle = std::thread::Builder::new()
        .name(format!("io{index}"))
        .spawn(move || worker.run())?;
    Ok(Thread {
        shared,
        engine_stats,
        handle: Some(handle),
    })
}
