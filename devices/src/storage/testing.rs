//! A backend over memory whose completions a test holds, releases, fails, delays or lets through.
//!
//! Guest memory is touched when a request is released, and never after it was cancelled.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{
    Backend, BackendError, Cancel, Completion, Engine, Mailbox, Op, Request, Submitted, Token,
};
use crate::ram::{GuestRam, GuestSlice};

/// How long the waiting methods of [`TestControl`] wait.
pub const WAIT_LIMIT: Duration = Duration::from_secs(10);

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// It is done in `submit`.
    #[default]
    Inline,
    /// It completes through the mailbox when the test says so.
    Hold,
    /// It completes through the mailbox after so long.
    Delay(Duration),
}

/// A request as the backend saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What was asked.
    pub op: Op,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Its name.
    pub token: Token,
}

/// What a test waited for did not happen within [`WAIT_LIMIT`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "waited {WAIT_LIMIT:?} for {wanted}; there are {held} held requests, {seen} were submitted"
)]
pub struct WaitTimeout {
    wanted: String,
    held: usize,
    seen: usize,
}

/// The backend.
pub struct TestBackend {
    shared: Arc<Shared>,
    block_size: u32,
    timer: Option<JoinHandle<()>>,
}

/// The test's side of a [`TestBackend`], for any thread. Clones control the same backend.
#[derive(Clone)]
pub struct TestControl(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    size: u64,
    read_only: bool,
    mode: Mode,
    failures: Vec<BackendError>,
    held: Vec<Held>,
    seen: Vec<Seen>,
    cancelled: Vec<Token>,
    stop: bool,
}

/// A pending request, with all that its release needs.
struct Held {
    seen: Seen,
    data: Vec<GuestSlice>,
    /// Keeps `data` mapped.
    _ram: GuestRam,
    mailbox: Mailbox,
    due: Option<Instant>,
}

impl State {
    /// Does a request on memory, or fails it as the test ordered.
    fn run(&mut self, seen: Seen, data: &[GuestSlice]) -> Result<(), BackendError> {
        if !self.failures.is_empty() {
            return Err(self.failures.remove(0));
        }
        self.access(seen, data)
    }

    fn access(&mut self, seen: Seen, data: &[GuestSlice]) -> Result<(), BackendError> {
        if seen.op == Op::Flush {
            return Ok(());
        }
        let range = usize::try_from(seen.offset)
            .ok()
            .zip(usize::try_from(seen.len).ok())
            .and_then(|(start, len)| Some(start..start.checked_add(len)?))
            .ok_or(BackendError::OutOfRange)?;
        // The test may have made the backend smaller meanwhile.
        let mut bytes = self.bytes.get_mut(range).ok_or(BackendError::OutOfRange)?;
        match seen.op {
            Op::Flush => {}
            Op::WriteZeroes { .. } | Op::Discard => bytes.fill(0),
            Op::Read | Op::Write { .. } => {
                for slice in data {
                    let (part, rest) = bytes.split_at_mut(slice.len());
                    bytes = rest;
                    if seen.op == Op::Read {
                        slice.copy_from(part);
                    } else {
                        slice.copy_to(part);
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends a held request; `error` instead of doing it.
    fn end(&mut self, held: &Held, error: Option<BackendError>) {
        let result = match error {
            Some(error) => Err(error),
            None => self.run(held.seen, &held.data),
        };
        let token = held.seen.token;
        held.mailbox.complete(Completion { token, result });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends requests with a delay when they are due, until the backend is dropped.
    fn run_timer(&self) {
        let mut state = self.lock();
        while !state.stop {
            let now = Instant::now();
            let due = |held: &Held| held.due.is_some_and(|due| due <= now);
            while let Some(at) = state.held.iter().position(due) {
                let held = state.held.remove(at);
                state.end(&held, None);
                self.changed.notify_all();
            }
            let next = state.held.iter().filter_map(|held| held.due).min();
            let wait = next.map_or(WAIT_LIMIT, |next| next.saturating_duration_since(now));
            state = self
                .changed
                .wait_timeout(state, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl TestBackend {
    /// A writable backend of `size` bytes of zeroes in [`Mode::Inline`], and its control.
    pub fn new(size: u64, block_size: u32) -> (Arc<Self>, TestControl) {
        let shared = Arc::<Shared>::default();
        let bytes = usize::try_from(size).expect("a test's size fits memory");
        shared.lock().bytes.resize(bytes, 0);
        shared.lock().size = size;
        let timer = shared.clone();
        let timer = thread::spawn(move || timer.run_timer());
        let backend = Self {
            shared: shared.clone(),
            block_size,
            timer: Some(timer),
        };
        (Arc::new(backend), TestControl(shared))
    }
}

impl Drop for TestBackend {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(timer) = self.timer.take() {
            // A timer that panicked has nothing to say here.
            let _ = timer.join();
        }
    }
}

impl Backend for TestBackend {
    fn size(&self) -> u64 {
        self.shared.lock().size
    }

    fn read_only(&self) -> bool {
        self.shared.lock().read_only
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn refresh_size(&self) -> Option<u64> {
        let mut state = self.shared.lock();
        let size = state.bytes.len() as u64;
        (std::mem::replace(&mut state.size, size) != size).then_some(size)
    }

    fn describe(&self) -> String {
        format!("test={}", super::config::size_text(self.size()))
    }

    fn submit(&self, engine: &mut Engine, request: &Request<'_>) -> Submitted {
        let mut state = self.shared.lock();
        let seen = Seen {
            op: request.op,
            offset: request.offset,
            len: request.len,
            token: request.token,
        };
        state.seen.push(seen);
        let checked = request.check(state.size, self.block_size, state.read_only);
        let submitted = match (checked, state.mode) {
            (Err(error), _) => Submitted::Done(Err(error)),
            (Ok(()), Mode::Inline) => Submitted::Done(state.run(seen, request.data)),
            (Ok(()), mode) => {
                let due = match mode {
                    Mode::Delay(delay) => Some(Instant::now() + delay),
                    Mode::Inline | Mode::Hold => None,
                };
                state.held.push(Held {
                    seen,
                    data: request.data.to_vec(),
                    _ram: engine.ram().clone(),
                    mailbox: engine.begin_remote(),
                    due,
                });
                Submitted::Pending
            }
        };
        self.shared.changed.notify_all();
        submitted
    }

    fn cancel(&self, engine: &mut Engine, token: Token) -> Cancel {
        // Requests are ended under this lock, so none is half done now.
        let mut state = self.shared.lock();
        // Engines name their requests each on its own.
        let mailbox = engine.mailbox();
        let is_it = |held: &Held| held.seen.token == token && held.mailbox.same(&mailbox);
        let found = state.held.iter().position(is_it);
        let Some(at) = found else {
            return Cancel::Pending;
        };
        state.held.remove(at);
        state.cancelled.push(token);
        engine.end_remote();
        self.shared.changed.notify_all();
        Cancel::Cancelled
    }
}

impl TestControl {
    /// What happens to requests from now on.
    pub fn set_mode(&self, mode: Mode) {
        self.0.lock().mode = mode;
    }

    /// Fails the next `count` requests that are done (inline, released or after a delay).
    pub fn fail_next(&self, count: usize, error: BackendError) {
        self.0.lock().failures.extend(vec![error; count]);
    }

    /// The held requests, oldest first.
    pub fn held(&self) -> Vec<Seen> {
        self.0.lock().held.iter().map(|held| held.seen).collect()
    }

    /// All requests submitted since the last call, in order.
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.0.lock().seen)
    }

    /// All requests cancelled since the last call, in order.
    pub fn take_cancelled(&self) -> Vec<Token> {
        std::mem::take(&mut self.0.lock().cancelled)
    }

    /// Does the oldest held request; `false` if there is none.
    pub fn release_one(&self) -> bool {
        self.end_where(|_| true, None)
    }

    /// Does a held request; `false` if it is not held.
    pub fn release(&self, token: Token) -> bool {
        self.end_where(|held| held.seen.token == token, None)
    }

    /// Does all held requests, oldest first; how many.
    pub fn release_all(&self) -> usize {
        std::iter::repeat_with(|| self.release_one())
            .take_while(|&ended| ended)
            .count()
    }

    /// Fails the oldest held request without doing it; `false` if there is none.
    pub fn fail_one(&self, error: BackendError) -> bool {
        self.end_where(|_| true, Some(error))
    }

    /// Fails a held request without doing it; `false` if it is not held.
    pub fn fail(&self, token: Token, error: BackendError) -> bool {
        self.end_where(|held| held.seen.token == token, Some(error))
    }

    fn end_where(&self, which: impl Fn(&Held) -> bool, error: Option<BackendError>) -> bool {
        let mut state = self.0.lock();
        let Some(at) = state.held.iter().position(which) else {
            return false;
        };
        let held = state.held.remove(at);
        state.end(&held, error);
        self.0.changed.notify_all();
        true
    }

    /// Waits until at least `count` requests are held.
    ///
    /// # Errors
    /// They were not within [`WAIT_LIMIT`].
    pub fn wait_held(&self, count: usize) -> Result<(), WaitTimeout> {
        self.wait(&format!("{count} held requests"), |state| {
            state.held.len() >= count
        })
    }

    /// Waits until at least `count` requests were submitted since [`TestControl::take_seen`].
    ///
    /// # Errors
    /// They were not within [`WAIT_LIMIT`].
    pub fn wait_seen(&self, count: usize) -> Result<(), WaitTimeout> {
        self.wait(&format!("{count} submitted requests"), |state| {
            state.seen.len() >= count
        })
    }

    fn wait(&self, wanted: &str, done: impl Fn(&State) -> bool) -> Result<(), WaitTimeout> {
        let (state, wait) = self
            .0
            .changed
            .wait_timeout_while(self.0.lock(), WAIT_LIMIT, |state| !done(state))
            .unwrap_or_else(PoisonError::into_inner);
        if !wait.timed_out() {
            return Ok(());
        }
        Err(WaitTimeout {
            wanted: wanted.into(),
            held: state.held.len(),
            seen: state.seen.len(),
        })
    }

    /// Makes the backend larger (with zeroes) or smaller; seen by [`Backend::refresh_size`].
    pub fn resize(&self, size: u64) {
        let bytes = usize::try_from(size).expect("a test's size fits memory");
        self.0.lock().bytes.resize(bytes, 0);
    }

    /// Refuses changes from now on, or allows them again.
    pub fn set_read_only(&self, read_only: bool) {
        self.0.lock().read_only = read_only;
    }

    /// The content from `offset` on; panics outside of the backend.
    pub fn peek(&self, offset: usize, len: usize) -> Vec<u8> {
        self.0.lock().bytes[offset..offset + len].to_vec()
    }

    /// Changes the content from `offset` on; panics outside of the backend.
    pub fn poke(&self, offset: usize, bytes: &[u8]) {
        self.0.lock().bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}
