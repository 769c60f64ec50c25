//! I/O threads: one thread owns a completion queue and every submission queue that feeds it.

mod alarm;
mod balance;
mod command;
#[cfg(test)]
mod leaving;
mod polling;
#[cfg(test)]
mod protocol;
mod slots;
#[cfg(test)]
mod steady;
#[cfg(test)]
mod turns;
mod worker;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use crate::affinity;
use crate::ram::GuestRam;
use crate::storage::{Engine, EngineKind, EngineStats};
use crate::subsystem::Namespace;

use super::core::Core;
use super::doorbell::Shadow;
use super::group::Group;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::stats::{CqStats, SqStats, ThreadStats};
use super::sync::Sleeper;
use super::trace::{IO_RECORDS, Tracer};
use balance::{Balance, Load};
use worker::{Recording, Worker};

pub(super) use balance::Seat;

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
    /// Let go of a completion queue with its submission queues, so that another thread can serve them;
    /// tell `CqGivenUp`, or `CqKept` if commands in flight take too long.
    GiveUp { core: Arc<Core>, cqid: u16 },
    /// Take over a completion queue with its submission queues from another thread.
    Adopt { group: Box<Group> },
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
    /// Record commands from now on, or no more.
    Trace(Option<Box<Recording>>),
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
    // How long a queue that is to move takes no commands.
    move_limit: Duration,
}

impl Shared {
    fn new(index: usize, move_limit: Duration) -> io::Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Self {
            index,
            kick: event()?,
            doorbell: event()?,
            sleeper: Sleeper::default(),
            messages: Mutex::default(),
            mail: AtomicBool::new(false),
            stats: ThreadStats::default(),
            move_limit,
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
    cpus: Vec<usize>,
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

/// How I/O threads are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoThreadsConfig {
    /// How many, at least one.
    pub count: usize,
    /// CPUs that they are bound to, around again if there are more threads; none if they run wherever
    /// the process may.
    pub cpus: Vec<usize>,
    /// Whether guest memory is registered with each.
    pub memory_lock: MemoryLock,
    /// Threads that run beside them, the vCPUs: see [`IoThreads::used`]; 0 if that is of no concern.
    pub vcpus: usize,
}

impl IoThreadsConfig {
    /// So many threads, with nothing special.
    pub fn of(count: usize) -> Self {
        Self {
            count,
            cpus: Vec::new(),
            memory_lock: MemoryLock::Off,
            vcpus: 0,
        }
    }

    /// How many of the threads are to get queues: no more than there are CPUs beside those of the vCPUs, or
    /// half of all if that is more. Threads that take turns on a CPU, with each other or with the vCPU that
    /// waits for them, do less than fewer threads. Those that are bound to CPUs are all used.
    fn used(&self, cpus: usize) -> usize {
        let room = cpus.saturating_sub(self.vcpus).max(cpus / 2).max(1);
        if self.cpus.is_empty() && self.vcpus != 0 {
            self.count.min(room)
        } else {
            self.count
        }
    }
}

/// The I/O threads of a machine, shared by its controllers. They end when the last user is gone.
pub struct IoThreads {
    threads: Vec<Thread>,
    balance: Arc<Balance>,
    used: usize,
    ram: GuestRam,
    memory_lock: MemoryLock,
    vcpus: usize,
    tracer: Mutex<Option<Arc<Tracer>>>,
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
        Self::with(&IoThreadsConfig::of(count), ram)
    }

    /// Starts threads.
    ///
    /// # Errors
    /// As for [`IoThreads::new`]; a thread cannot be bound to its CPU; or guest memory cannot be locked,
    /// see [`LockError`](crate::storage::LockError).
    pub fn with(config: &IoThreadsConfig, ram: &GuestRam) -> io::Result<Arc<Self>> {
        Self::start(config, ram, worker::MOVE_LIMIT)
    }

    /// With another limit for queues that are to move.
    #[cfg(test)]
    pub(super) fn with_move_limit(
        count: usize,
        ram: &GuestRam,
        limit: Duration,
    ) -> io::Result<Arc<Self>> {
        Self::start(&IoThreadsConfig::of(count), ram, limit)
    }

    fn start(
        config: &IoThreadsConfig,
        ram: &GuestRam,
        move_limit: Duration,
    ) -> io::Result<Arc<Self>> {
        let count = config.count.max(1);
        let lock = config.memory_lock;
        let used = config.used(affinity::allowed()?.len());
        let mut cpus = config.cpus.iter().copied().cycle();
        let threads = (0..count)
            .map(|index| {
                let engine = engine(ram.clone(), lock)?;
                start(index, engine, cpus.next(), move_limit)
            })
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(Self {
            threads,
            balance: Arc::new(Balance::new(count, used)),
            used,
            ram: ram.clone(),
            memory_lock: lock,
            vcpus: config.vcpus,
            tracer: Mutex::default(),
        }))
    }

    /// Starts `count` other threads for the same guest, with its memory locked if that of these is, bound
    /// to `cpus` in turn; their commands are recorded if those of these are.
    ///
    /// # Errors
    /// As [`IoThreads::with`].
    pub fn like_these(&self, count: usize, cpus: &[usize]) -> io::Result<Arc<Self>> {
        let config = IoThreadsConfig {
            count,
            cpus: cpus.to_vec(),
            memory_lock: self.memory_lock,
            vcpus: self.vcpus,
        };
        let threads = Self::with(&config, &self.ram)?;
        threads.set_trace(self.tracer().as_ref());
        Ok(threads)
    }

    /// Has commands recorded that are fetched from now on, or no more. The admin queues of controllers
    /// that are made later follow; for those that there are see
    /// [`Controller::set_trace`](super::Controller::set_trace).
    pub fn set_trace(&self, tracer: Option<&Arc<Tracer>>) {
        *self.lock_tracer() = tracer.cloned();
        for thread in &self.threads {
            let recorder = tracer.and_then(|tracer| tracer.recorder(IO_RECORDS));
            let recording = recorder.map(|recorder| Box::new(Recording::new(recorder)));
            thread.shared.send(Message::Trace(recording));
        }
    }

    /// Where commands are recorded, if they are.
    pub(super) fn tracer(&self) -> Option<Arc<Tracer>> {
        self.lock_tracer().clone()
    }

    fn lock_tracer(&self) -> std::sync::MutexGuard<'_, Option<Arc<Tracer>>> {
        self.tracer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// How many of them get queues: fewer than all where the CPUs do not suffice for them and the vCPUs, if
    /// they are not bound.
    pub fn used(&self) -> usize {
        self.used
    }

    /// How the queues are spread over the threads.
    pub(super) fn balance(&self) -> &Arc<Balance> {
        &self.balance
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
        let loads = self.balance.loads();
        let threads = self.threads.iter().zip(loads);
        threads.map(|(thread, load)| thread.info(load)).collect()
    }
}

impl Drop for IoThreads {
    /// Has all threads end before the first is waited for.
    fn drop(&mut self) {
        for thread in &self.threads {
            thread.shared.send(Message::Stop);
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.shared.send(Message::Stop);
        if let Some(handle) = self.handle.take() {
            // It panicked only if there is a bug, and then the process is gone.
            let _ = handle.join();
        }
    }
}

impl Thread {
    fn info(&self, load: Load) -> IoThreadInfo {
        let stats = &self.shared.stats;
        let engine = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        IoThreadInfo {
            index: self.shared.index,
            cpus: self.cpus.clone(),
            completion_queues: load.cqs,
            submission_queues: load.sqs,
            moves: stats.moves.get(),
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
    /// CPUs that it may run on, as of its start.
    pub cpus: Vec<usize>,
    /// I/O completion queues that it has or is about to get, over all controllers.
    pub completion_queues: u32,
    /// I/O submission queues that feed these.
    pub submission_queues: u32,
    /// Completion queues that came from another thread so far.
    pub moves: u64,
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

fn engine(ram: GuestRam, memory_lock: MemoryLock) -> io::Result<Engine> {
    let mut engine = Engine::new(ram)?;
    if memory_lock == MemoryLock::On {
        engine.register_memory().map_err(io::Error::other)?;
    }
    Ok(engine)
}

fn start(
    index: usize,
    engine: Engine,
    cpu: Option<usize>,
    move_limit: Duration,
) -> io::Result<Thread> {
    let shared = Arc::new(Shared::new(index, move_limit)?);
    let (kind, engine_stats) = (engine.kind(), engine.stats());
    let mut worker = Worker::new(Arc::clone(&shared), engine)?;
    let (tell, told) = mpsc::sync_channel(1);
    let handle = std::thread::Builder::new()
        .name(format!("io{index}"))
        .spawn(move || {
            let bound = bind(cpu);
            let starts = bound.is_ok();
            // Whoever starts the thread waits for it.
            let _ = tell.send(bound);
            if starts {
                worker.run();
            }
        })?;
    // The thread tells before anything can go wrong with it.
    let cpus = told.recv().map_err(io::Error::other)??;
    Ok(Thread {
        shared,
        engine: kind,
        engine_stats,
        cpus,
        handle: Some(handle),
    })
}

/// Binds the calling thread to a CPU, if one is given. What it may run on then.
fn bind(cpu: Option<usize>) -> io::Result<Vec<usize>> {
    if let Some(cpu) = cpu {
        affinity::pin(cpu)?;
    }
    affinity::allowed()
}
