//! I/O threads: one thread owns a completion queue and every submission queue that feeds it.

mod balance;
mod command;
mod polling;
#[cfg(test)]
mod protocol;
mod slots;
mod worker;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use crate::affinity;
use crate::ram::GuestRam;
use crate::storage::{Engine, EngineStats};
use crate::subsystem::Namespace;

use super::core::Core;
use super::doorbell::Shadow;
use super::group::Group;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::stats::{CqStats, SqStats, ThreadStats};
use super::sync::Sleeper;
use balance::{Balance, Load};
use worker::Worker;

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
            stats: ThreadStats::default(),
            move_limit,
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
    cpus: Vec<usize>,
    handle: Option<JoinHandle<()>>,
}

/// The I/O threads of a machine, shared by its controllers. They end when the last user is gone.
pub struct IoThreads {
    threads: Vec<Thread>,
    balance: Arc<Balance>,
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
        Self::on_cpus(count, ram, &[])
    }

    /// Starts `count` threads (at least one), each bound to the next CPU in the list, around again if
    /// there are more threads. With an empty list they run wherever the process may.
    ///
    /// # Errors
    /// As for [`IoThreads::new`], or a thread cannot be bound to its CPU.
    pub fn on_cpus(count: usize, ram: &GuestRam, cpus: &[usize]) -> io::Result<Arc<Self>> {
        Self::start(count, ram, cpus, worker::MOVE_LIMIT)
    }

    /// With another limit for queues that are to move.
    #[cfg(test)]
    pub(super) fn with_move_limit(
        count: usize,
        ram: &GuestRam,
        limit: Duration,
    ) -> io::Result<Arc<Self>> {
        Self::start(count, ram, &[], limit)
    }

    fn start(
        count: usize,
        ram: &GuestRam,
        cpus: &[usize],
        move_limit: Duration,
    ) -> io::Result<Arc<Self>> {
        let count = count.max(1);
        let mut cpus = cpus.iter().copied().cycle();
        let threads = (0..count)
            .map(|index| start(index, ram.clone(), cpus.next(), move_limit))
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(Self {
            threads,
            balance: Arc::new(Balance::new(count)),
        }))
    }

    /// Number of threads.
    pub fn count(&self) -> usize {
        self.threads.len()
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
    fn info(&self, load: Load) -> IoThreadInfo {
        let stats = &self.shared.stats;
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
    /// Requests given to the I/O engine.
    pub submissions: u64,
    /// Calls of the kernel by the I/O engine.
    pub enters: u64,
    /// Completions taken from the I/O engine.
    pub completions: u64,
}

fn start(
    index: usize,
    ram: GuestRam,
    cpu: Option<usize>,
    move_limit: Duration,
) -> io::Result<Thread> {
    let shared = Arc::new(Shared::new(index, move_limit)?);
    let engine = Engine::new(ram)?;
    let engine_stats = engine.stats();
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
