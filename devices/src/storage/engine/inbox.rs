//! Where other threads leave completions for an engine.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::pool::Job;
use crate::storage::Completion;

/// Completes requests of one engine from any thread. Clones lead to the same engine.
///
/// A backend gets one from [`super::Engine::begin_remote`].
#[derive(Clone)]
pub struct Mailbox(Arc<Inbox>);

impl Mailbox {
    /// Hands a completion to the engine and wakes its thread. Ignored if the engine is gone.
    pub fn complete(&self, completion: Completion) {
        self.0.post(|state| state.mail.push(completion));
    }

    /// Whether both lead to the same engine.
    #[cfg(any(test, feature = "testing"))]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Tells an engine that the backend of an image that it used is gone.
#[derive(Debug)]
pub(in crate::storage) struct User(Weak<Inbox>);

impl User {
    /// Has the engine let go of the image with this number, on its own thread, soon.
    pub fn disown(&self, number: u64) {
        if let Some(inbox) = self.0.upgrade() {
            inbox.post(|state| state.disowned.push(number));
        }
    }

    /// Whether the engine is gone.
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// Finished work and the event that tells of it. The event is readable if and only if something is
/// inside or [`Inbox::wake`] was called: both change under the lock.
#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<State>,
    event: EventFd,
    /// Lets the owner look without a lock or system call.
    full: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    mail: Vec<Completion>,
    jobs: Vec<Job>,
    /// Numbers of images.
    disowned: Vec<u64>,
    signalled: bool,
}

/// What was inside. Kept to be filled again.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Completions of other threads.
    pub mail: Vec<Completion>,
    /// Finished jobs.
    pub jobs: Vec<Job>,
    /// Numbers of images whose backends are gone.
    pub disowned: Vec<u64>,
}

impl Inbox {
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            state: Mutex::default(),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            full: AtomicBool::new(false),
        }))
    }

    pub fn mailbox(self: &Arc<Self>) -> Mailbox {
        Mailbox(self.clone())
    }

    /// What an image tells that its backend is gone.
    pub fn user(self: &Arc<Self>) -> User {
        User(Arc::downgrade(self))
    }

    /// Leaves a finished job.
    pub fn finish(&self, job: Job) {
        self.post(|state| state.jobs.push(job));
    }

    /// Wakes the owner although nothing is inside.
    pub fn wake(&self) {
        self.post(|_| ());
    }

    /// Moves everything behind what is in `taken`; `false`, without a system call, if there is nothing.
    pub fn take(&self, taken: &mut Taken) -> bool {
        if !self.full.load(Ordering::Acquire) {
            return false;
        }
        let mut state = self.lock();
        taken.mail.append(&mut state.mail);
        taken.jobs.append(&mut state.jobs);
        taken.disowned.append(&mut state.disowned);
        if std::mem::take(&mut state.signalled) {
            // A nonblocking read of a signalled eventfd; there is nothing to do about a failure.
            let _ = self.event.read();
        }
        self.full.store(false, Ordering::Relaxed);
        true
    }

    fn post(&self, add: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        add(&mut state);
        self.full.store(true, Ordering::Release);
        if !std::mem::replace(&mut state.signalled, true) {
            // Cannot fail: the counter is at most 1.
            let _ = self.event.write(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRawFd for Inbox {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
