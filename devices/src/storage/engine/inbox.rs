//! Where other threads leave completions for an engine.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Finished work and the event that tells of it. The event is readable if and only if something is
/// inside or [`Inbox::wake`] was called: both change under the lock.
pub(super) struct Inbox {
    state: Mutex<State>,
    event: EventFd,
    /// Lets the owner look without a lock or system call.
    full: AtomicBool,
}

#[derive(Default)]
struct State {
    mail: Vec<Completion>,
    jobs: Vec<Job>,
    signalled: bool,
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

    /// Leaves a finished job.
    pub fn finish(&self, job: Job) {
        self.post(|state| state.jobs.push(job));
    }

    /// Wakes the owner although nothing is inside.
    pub fn wake(&self) {
        self.post(|_| ());
    }

    /// Moves everything to `mail` and `jobs`; no system call if there is nothing.
    pub fn take(&self, mail: &mut Vec<Completion>, jobs: &mut Vec<Job>) {
        if !self.full.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.lock();
        mail.append(&mut state.mail);
        jobs.append(&mut state.jobs);
        if std::mem::take(&mut state.signalled) {
            // A nonblocking read of a signalled eventfd; there is nothing to do about a failure.
            let _ = self.event.read();
        }
        self.full.store(false, Ordering::Relaxed);
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
