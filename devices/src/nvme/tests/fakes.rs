//! The hypervisor's side of a controller, recorded: interrupts and doorbell events.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::{MsiGroup, MsiMessage};
use crate::ioevent::{CoalescedWrites, IoEvents, WriteSink};

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

/// Keeps the registered events and doorbells whose writes are kept, and does what the kernel would.
#[derive(Default)]
pub struct FakeIoEvents {
    state: Mutex<IoState>,
    refuses: AtomicBool,
}

#[derive(Default)]
struct IoState {
    registered: BTreeMap<u64, Registered>,
    kept: VecDeque<(u64, u32)>,
}

enum Registered {
    Event(EventFd),
    Kept(Arc<dyn WriteSink>),
}

/// Kept writes that there is room for.
const MOST_KEPT: usize = 170;

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It left the guest.
    Exit,
    /// It signalled an event.
    Event,
    /// It was kept.
    Kept,
}

impl IoState {
    fn drain(&mut self) {
        for (address, value) in std::mem::take(&mut self.kept) {
            let Some(Registered::Kept(sink)) = self.registered.get(&address) else {
                panic!("a write to {address:#x} was kept for nobody");
            };
            sink.written(value);
        }
    }

    fn add(&mut self, address: u64, registered: Registered) -> io::Result<()> {
        if self.registered.contains_key(&address) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        self.registered.insert(address, registered);
        Ok(())
    }
}

impl FakeIoEvents {
    fn addresses_of(&self, which: fn(&Registered) -> bool) -> Vec<u64> {
        let state = self.state.lock().unwrap();
        let found = state.registered.iter().filter(|(_, it)| which(it));
        found.map(|(address, _)| *address).collect()
    }

    /// Addresses with an event, ascending.
    pub fn addresses(&self) -> Vec<u64> {
        self.addresses_of(|it| matches!(it, Registered::Event(_)))
    }

    /// Addresses whose writes are kept, ascending.
    pub fn kept(&self) -> Vec<u64> {
        self.addresses_of(|it| matches!(it, Registered::Kept(_)))
    }

    /// Does what the kernel does for a write; an exit is left to the caller.
    pub fn write(&self, address: u64, value: u32) -> Write {
        let mut state = self.state.lock().unwrap();
        match state.registered.get(&address) {
            Some(Registered::Event(event)) => {
                event.write(1).unwrap();
                Write::Event
            }
            Some(Registered::Kept(_)) if state.kept.len() < MOST_KEPT => {
                state.kept.push_back((address, value));
                Write::Kept
            }
            Some(Registered::Kept(_)) | None => Write::Exit,
        }
    }

    /// Refuses all registrations from now on.
    pub fn refuse(&self) {
        self.refuses.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> io::Result<()> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }
}

impl IoEvents for FakeIoEvents {
    fn register(&self, event: &EventFd, address: u64) -> io::Result<()> {
        self.check()?;
        let event = Registered::Event(event.try_clone()?);
        self.state.lock().unwrap().add(address, event)
    }

    fn unregister(&self, _event: &EventFd, address: u64) -> io::Result<()> {
        let found = self.state.lock().unwrap().registered.remove(&address);
        found.map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }
}

impl CoalescedWrites for FakeIoEvents {
    fn register(&self, address: u64, sink: Arc<dyn WriteSink>) -> io::Result<()> {
        self.check()?;
        self.state
            .lock()
            .unwrap()
            .add(address, Registered::Kept(sink))
    }

    fn unregister(&self, address: u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.drain();
        let found = state.registered.remove(&address);
        found.map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn drain(&self) {
        self.state.lock().unwrap().drain();
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

/// A hypervisor that does nothing and refuses nothing.
pub struct Nothing;

impl MsiGroup for Nothing {
    fn trigger(&self, _: u16) {}

    fn update(&self, _: &[(u16, Option<MsiMessage>)]) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self) {}
}

impl IoEvents for Nothing {
    fn register(&self, _: &EventFd, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn unregister(&self, _: &EventFd, _: u64) -> io::Result<()> {
        Ok(())
    }
}

impl CoalescedWrites for Nothing {
    fn register(&self, _: u64, _: Arc<dyn WriteSink>) -> io::Result<()> {
        Ok(())
    }

    fn unregister(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn drain(&self) {}
}
