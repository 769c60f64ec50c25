//! The hypervisor's side of a controller, recorded: interrupts and doorbell events.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::{MsiGroup, MsiMessage};
use crate::ioevent::IoEvents;

use super::harness::LIMIT;

/// Counts interrupts by vector; keeps those of disconnected vectors until they are routed.
#[derive(Default)]
pub struct FakeMsi {
    state: Mutex<MsiState>,
    changed: Condvar,
}

#[derive(Default)]
struct MsiState {
    routed: BTreeMap<u16, MsiMessage>,
    waiting: BTreeMap<u16, u64>,
    counts: BTreeMap<u16, u64>,
}

impl FakeMsi {
    /// Interrupts that reached the guest on `vector`.
    pub fn count(&self, vector: u16) -> u64 {
        *self.state.lock().unwrap().counts.get(&vector).unwrap_or(&0)
    }

    /// Interrupts that reached the guest on any vector.
    pub fn total(&self) -> u64 {
        self.state.lock().unwrap().counts.values().sum()
    }

    /// Waits until `vector` had at least `count` interrupts.
    pub fn wait_count(&self, vector: u16, count: u64) {
        let seen = |state: &mut MsiState| *state.counts.get(&vector).unwrap_or(&0) < count;
        let state = self.state.lock().unwrap();
        let (state, wait) = self.changed.wait_timeout_while(state, LIMIT, seen).unwrap();
        assert!(
            !wait.timed_out(),
            "vector {vector}: waited {LIMIT:?} for {count} interrupts; all were {:?}",
            state.counts
        );
    }
}

impl MsiGroup for FakeMsi {
    fn trigger(&self, vector: u16) {
        let mut state = self.state.lock().unwrap();
        let counter = if state.routed.contains_key(&vector) {
            &mut state.counts
        } else {
            &mut state.waiting
        };
        *counter.entry(vector).or_default() += 1;
        self.changed.notify_all();
    }

    fn update(&self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        for &(vector, message) in changes {
            match message {
                Some(message) => {
                    state.routed.insert(vector, message);
                    if state.waiting.remove(&vector).is_some() {
                        *state.counts.entry(vector).or_default() += 1;
                    }
                }
                None => {
                    state.routed.remove(&vector);
                }
            }
        }
        self.changed.notify_all();
        Ok(())
    }

    fn discard(&self) {
        self.state.lock().unwrap().waiting.clear();
    }
}

/// Keeps the registered events, and signals them as the kernel would.
#[derive(Default)]
pub struct FakeIoEvents {
    registered: Mutex<BTreeMap<u64, EventFd>>,
    refuses: AtomicBool,
}

impl FakeIoEvents {
    /// Addresses with an event, ascending.
    pub fn addresses(&self) -> Vec<u64> {
        self.registered.lock().unwrap().keys().copied().collect()
    }

    /// Signals the event of `address`; `false` if there is none and the write is an exit.
    pub fn write(&self, address: u64) -> bool {
        let registered = self.registered.lock().unwrap();
        let event = registered.get(&address);
        if let Some(event) = event {
            event.write(1).unwrap();
        }
        event.is_some()
    }

    /// Refuses all registrations from now on.
    pub fn refuse(&self) {
        self.refuses.store(true, Ordering::Relaxed);
    }
}

impl IoEvents for FakeIoEvents {
    fn register(&self, event: &EventFd, address: u64) -> io::Result<()> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let mut registered = self.registered.lock().unwrap();
        if registered.contains_key(&address) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        registered.insert(address, event.try_clone()?);
        Ok(())
    }

    fn unregister(&self, _event: &EventFd, address: u64) -> io::Result<()> {
        let found = self.registered.lock().unwrap().remove(&address);
        found.map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }
}

/// Waits until `done` holds, looking again and again.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "waited {LIMIT:?} for {what}");
        std::thread::yield_now();
    }
}

/// The main loop's role: serves one controller whenever its event is readable, until dropped.
pub struct MainLoop {
    stop: EventFd,
    // Held while the controller is being served.
    serving: Arc<Mutex<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl MainLoop {
    /// Starts serving.
    pub fn start(controller: Arc<super::super::Controller>) -> Self {
        let stop = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let stopped = stop.try_clone().unwrap();
        let serving = Arc::<Mutex<()>>::default();
        let gate = Arc::clone(&serving);
        let thread = std::thread::spawn(move || {
            while wait_readable(controller.event(), &stopped) {
                let _gate = gate.lock().unwrap_or_else(PoisonError::into_inner);
                controller.service();
            }
        });
        Self {
            stop,
            serving,
            thread: Some(thread),
        }
    }

    /// Keeps the main loop from serving while the result lives.
    pub fn pause(&self) -> std::sync::MutexGuard<'_, ()> {
        self.serving.lock().unwrap()
    }
}

impl Drop for MainLoop {
    fn drop(&mut self) {
        self.stop.write(1).unwrap();
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        let failed = matches!(ended, Some(Err(_)));
        assert!(
            !failed || std::thread::panicking(),
            "the main loop panicked"
        );
    }
}

/// Waits for either event; `false` if it is `stop`.
fn wait_readable(event: &EventFd, stop: &EventFd) -> bool {
    use std::os::fd::AsRawFd;
    let entry = |fd: &EventFd| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut fds = [entry(event), entry(stop)];
    // SAFETY: the array is alive, and its length is given.
    unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
    fds[1].revents == 0
}
