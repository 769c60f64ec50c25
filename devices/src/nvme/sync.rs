//! The atomics by which I/O threads follow the attachment table, go to sleep, and take queues over
//! from each other.
//!
//! They are a parameter of [`Tables`](super::snapshots::Tables), [`Sleeper`] and [`Owner`], so that the
//! tests can run this very code in every order that the memory model allows.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use arc_swap::ArcSwap;

/// A kind of atomics.
pub trait Atomics: Debug + 'static {
    /// A number.
    type Number: Debug + Default;
    /// A flag.
    type Flag: Debug + Default;
    /// A place for a shared value.
    type Place<T: Debug + Send + Sync + 'static>: Place<T>;

    /// Loads a number (Acquire).
    fn load(number: &Self::Number) -> u64;
    /// Stores a number (Relaxed).
    fn store(number: &Self::Number, value: u64);
    /// Adds one to a number (Release).
    fn bump(number: &Self::Number);
    /// Loads a flag (Relaxed).
    fn is_set(flag: &Self::Flag) -> bool;
    /// Stores a flag (Relaxed).
    fn set(flag: &Self::Flag, value: bool);
    /// A full barrier (SeqCst).
    fn fence();
}

/// A place where one shared value is replaced by another in one step.
pub trait Place<T>: Debug {
    /// With a first value.
    fn new(value: Arc<T>) -> Self;
    /// Replaces the value.
    fn store(&self, value: Arc<T>);
    /// The value of now.
    fn load_full(&self) -> Arc<T>;
}

impl<T: Debug> Place<T> for ArcSwap<T> {
    fn new(value: Arc<T>) -> Self {
        Self::new(value)
    }

    fn store(&self, value: Arc<T>) {
        self.store(value);
    }

    fn load_full(&self) -> Arc<T> {
        self.load_full()
    }
}

/// Those of the machine.
#[derive(Debug)]
pub struct Native;

impl Atomics for Native {
    type Number = AtomicU64;
    type Flag = AtomicBool;
    type Place<T: Debug + Send + Sync + 'static> = ArcSwap<T>;

    fn load(number: &AtomicU64) -> u64 {
        number.load(Ordering::Acquire)
    }

    fn store(number: &AtomicU64, value: u64) {
        number.store(value, Ordering::Relaxed);
    }

    fn bump(number: &AtomicU64) {
        number.fetch_add(1, Ordering::Release);
    }

    fn is_set(flag: &AtomicBool) -> bool {
        flag.load(Ordering::Relaxed)
    }

    fn set(flag: &AtomicBool, value: bool) {
        flag.store(value, Ordering::Relaxed);
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// How a thread goes to sleep without missing what others have for it.
#[derive(Debug)]
pub struct Sleeper<A: Atomics = Native> {
    sleeping: A::Flag,
}

impl<A: Atomics> Default for Sleeper<A> {
    fn default() -> Self {
        let sleeping = A::Flag::default();
        Self { sleeping }
    }
}

impl<A: Atomics> Sleeper<A> {
    /// Has the thread look at what the caller changed: calls `kick` if it sleeps or is about to.
    pub fn wake(&self, kick: impl FnOnce()) {
        // Orders what the caller changed before the look at `sleeping`; pairs with `sleep`.
        A::fence();
        if A::is_set(&self.sleeping) {
            kick();
        }
    }

    /// Waits for a kick, unless there is work.
    pub fn sleep<T>(
        &self,
        thread: &mut T,
        has_work: impl FnOnce(&mut T) -> bool,
        wait: impl FnOnce(&mut T),
    ) {
        A::set(&self.sleeping, true);
        // Orders `sleeping` before the looks below; pairs with `wake`.
        A::fence();
        if !has_work(thread) {
            wait(thread);
        }
        A::set(&self.sleeping, false);
    }
}

/// Which thread looks after something that others change, and can be taken over by another thread.
#[derive(Debug)]
pub struct Owner<A: Atomics = Native> {
    index: A::Number,
}

impl<A: Atomics> Default for Owner<A> {
    fn default() -> Self {
        let index = A::Number::default();
        Self { index }
    }
}

impl<A: Atomics> Owner<A> {
    /// Index of the thread to tell of what the caller changed. It may be one that has just been
    /// replaced, and then the next one sees the change.
    pub fn to_tell(&self) -> u64 {
        // Orders what the caller changed before the look at the owner; pairs with `replace`.
        A::fence();
        A::load(&self.index)
    }

    /// Thread `index` is the owner from now on. It is told after this, and then looks once at all that
    /// others may have changed.
    pub fn replace(&self, index: u64) {
        A::store(&self.index, index);
        // Orders the new owner before its look; pairs with `to_tell`. Of the two barriers one is first:
        // if it is this one, `to_tell` finds the new owner; if not, the new owner finds the change.
        A::fence();
    }
}
