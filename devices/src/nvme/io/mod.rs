//! I/O threads: one thread owns a completion queue and every submission queue that feeds it.

mod command;
mod polling;
#[cfg(test)]
mod protocol;
mod slots;
#[cfg(test)]
mod steady;
mod worker;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use crate::ram::GuestRam;
use crate::storage::{Engine, EngineKind, EngineStats};
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
    // Lets the thread look without the lock.
    mail: AtomicBool,
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
            mail: AtomicBool::new(false),
            stats: ThreadStats::default(),
        })
    }

    /// Hands a message over.
    pub fn send(&self, message: Message) {
        {
            let mut messages = self.lock_messages();
            messages.push(message);
            self.mail.store(true, Ordering::Release);
        }
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

    fn has_messages(&self) -> bool {
        self.mail.load(Ordering::Acquire)
    }

    fn take_messages(&self) -> Vec<Message> {
        let mut messages = self.lock_messages();
        self.mail.store(false, Ordering::Relaxed);
        std::mem::take(&mut *messages)
    }

    fn lock_messages(&self) -> std::sync::MutexGuard<'_, Vec<Message>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Thread {
    shared: Arc<Shared>,
    engine: EngineKind,
    engine_stats: Arc<EngineStats>,
    handle: Option<JoinHandle<()>>,
}

/// What becomes of guest memory that I/O threads move data to and from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryLock {
    /// Its pages are looked up for each request.
    #[default]
    Off,
    /// All of it is registered with each thread's io_uring, and so stays in the host's memory.
    On,
}

/// The I/O threads of a machine, shared by its controllers. They end when the last user is gone.
pub struct IoThreads {
    threads: Vec<Thread>,
    next: AtomicUsize,
    ram: GuestRam,
    memory_lock: MemoryLock,
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
        Self::with_memory(count, ram, MemoryLock::Off)
    }

    /// Starts `count` threads (at least one), with guest memory locked or not.
    ///
    /// # Errors
    /// As [`IoThreads::new`]; and guest memory cannot be locked, see
    /// [`LockError`](crate::storage::LockError).
    pub fn with_memory(
        count: usize,
        ram: &GuestRam,
        memory_lock: MemoryLock,
    ) -> io::Result<Arc<Self>> {
        let threads = (0..count.max(1))
            .map(|index| start(index, ram.clone(), memory_lock))
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(Self {
            threads,
            next: AtomicUsize::new(0),
            ram: ram.clone(),
            memory_lock,
        }))
    }

    /// Starts `count` other threads for the same guest, made like these.
    ///
    /// # Errors
    /// As [`IoThreads::with_memory`].
    pub fn like_these(&self, count: usize) -> io::Result<Arc<Self>> {
        Self::with_memory(count, &self.ram, self.memory_lock)
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
        let engine = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        IoThreadInfo {
            index: self.shared.index,
            sleeps: stats.sleeps.get(),
            doorbell_wakeups: stats.doorbell_wakeups.get(),
            kicks: stats.kicks.get(),
            polled: stats.polled.get(),
            engine: self.engine,
            submissions: engine(&self.engine_stats.submissions),
            enters: engine(&self.engine_stats.enters),
            inline: engine(&self.engine_stats.inline),
            completions: engine(&self.engine_stats.completions),
            bounced: engine(&self.engine_stats.bounced),
            iopolled: engine(&self.engine_stats.iopolled),
            registered_files: engine(&self.engine_stats.registered_files),
            registered_memory: engine(&self.engine_stats.registered_memory),
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
    /// What its I/O engine drives files with.
    pub engine: EngineKind,
    /// Requests given to the I/O engine.
    pub submissions: u64,
    /// Calls of io_uring_enter by the I/O engine, or batches given to its thread pool.
    pub enters: u64,
    /// Transfers of images in memory that the thread did itself, by a system call each.
    pub inline: u64,
    /// Requests that the I/O engine has done.
    pub completions: u64,
    /// Requests whose data was copied, because O_DIRECT could not reach it where the guest has it.
    pub bounced: u64,
    /// Requests whose completion was looked for at the device, which has queues for that.
    pub iopolled: u64,
    /// Images that are registered with io_uring now.
    pub registered_files: u64,
    /// Bytes of guest memory that are registered with io_uring.
    pub registered_memory: u64,
}

fn start(index: usize, ram: GuestRam, memory_lock: MemoryLock) -> io::Result<Thread> {
    let shared = Arc::new(Shared::new(index)?);
    let mut engine = Engine::new(ram)?;
    if memory_lock == MemoryLock::On {
        engine.register_memory().map_err(io::Error::other)?;
    }
    let (kind, engine_stats) = (engine.kind(), engine.stats());
    let mut worker = Worker::new(Arc::clone(&shared), engine)?;
    let handle = std::thread::Builder::new()
        .name(format!("io{index}"))
        .spawn(move || worker.run())?;
    Ok(Thread {
        shared,
        engine: kind,
        engine_stats,
        handle: Some(handle),
    })
}
