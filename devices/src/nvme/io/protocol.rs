//! The protocol between those who change an attachment table and the I/O threads that use it, and that
//! by which a queue goes from one I/O thread to another, run in every order that the memory model
//! allows (loom).
//!
//! Real here: the subsystem with its tables and namespaces, [`Tables`] and [`Snapshots`] (what is
//! current, what commands still use, when a namespace is let go of), [`Sleeper`] (no wake-up is
//! missed), [`Owner`] (no ring is lost) and [`Slots`] (late completions name nothing). Stand-ins: an I/O thread's loop that makes
//! their calls in the order of `Worker` without queues and storage, loom's lock around messages, and
//! loom's notifications for event file descriptors.
//!
//! Not covered: runs in which threads are preempted more often than each scenario says; arc-swap, for
//! which a lock stands in; orders of what `Worker` itself does between these calls, for which the tests of
//! resets, removals and races drive the whole controller.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

use loom::sync::Notify;
use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, fence};
use loom::thread;
use vmm_sys_util::eventfd::EventFd;

use super::super::snapshots::{Epoch, Snapshots, Tables};
use super::super::sync::{Atomics, Owner, Place, Sleeper};
use super::slots::{Key, Slots};
use crate::storage::{Backend, Cancel, Engine, Request, Submitted, Token};
use crate::subsystem::{
    AttachmentTable, ControllerLink, Link, Namespace, NamespaceConfig, Subsystem, SubsystemConfig,
};

const NSID: u32 = 1;

#[derive(Debug)]
struct Loom;

impl Atomics for Loom {
    type Number = AtomicU64;
    type Flag = AtomicBool;
    type Place<T: Debug + Send + Sync + 'static> = LoomPlace<T>;

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

#[derive(Debug)]
struct LoomPlace<T>(loom::sync::Mutex<Arc<T>>);

impl<T: Debug> Place<T> for LoomPlace<T> {
    fn new(value: Arc<T>) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    fn store(&self, value: Arc<T>) {
        let old = std::mem::replace(&mut *self.0.lock().unwrap(), value);
        drop(old);
    }

    fn load_full(&self) -> Arc<T> {
        Arc::clone(&self.0.lock().unwrap())
    }
}

/// What the storages of all namespaces tell.
#[derive(Default)]
struct Told {
    // Commands in flight by storage.
    in_flight: [AtomicU32; 2],
    closed: AtomicU32,
    closes: Notify,
}

impl Told {
    /// Commands in flight on a namespace's storage, which is named by its size.
    fn in_flight(&self, namespace: &Namespace) -> &AtomicU32 {
        &self.in_flight[usize::try_from(namespace.blocks() - 1).unwrap()]
    }

    fn wait_closed(&self, count: u32) {
        // Loom wakes without a reason, too.
        while self.closed.load(Ordering::Relaxed) < count {
            self.closes.wait();
        }
    }
}

/// Storage that must not close while it works on a command, and tells when it closes.
struct Storage {
    index: usize,
    told: Arc<Told>,
}

impl Drop for Storage {
    fn drop(&mut self) {
        let in_flight = self.told.in_flight[self.index].load(Ordering::Relaxed);
        assert_eq!(in_flight, 0, "closed under a command");
        self.told.closed.fetch_add(1, Ordering::Relaxed);
        self.told.closes.notify();
    }
}

impl Backend for Storage {
    fn size(&self) -> u64 {
        512 * (self.index as u64 + 1)
    }

    fn read_only(&self) -> bool {
        false
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn describe(&self) -> String {
        "storage".into()
    }

    fn submit(&self, _engine: &mut Engine, _request: &Request<'_>) -> Submitted {
        unreachable!("there is no engine")
    }

    fn cancel(&self, _engine: &mut Engine, _token: Token) -> Cancel {
        unreachable!("there is no engine")
    }
}

enum Message {
    Abort(Weak<Namespace>),
    Reset,
    Stop,
}

/// How a command or a reset began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Began {
    Found(Key),
    Missing,
    /// It is a reset, which ended all before it.
    Anew,
}

/// What others see of the I/O thread.
struct Shared {
    told: Arc<Told>,
    tables: Arc<Tables<Loom>>,
    sleeper: Sleeper<Loom>,
    kick: Notify,
    messages: loom::sync::Mutex<Vec<Message>>,
    completions: Mutex<Vec<Key>>,
    // Commands that the guest rang for, all for [`NSID`].
    tail: AtomicUsize,
    began: Mutex<Vec<Began>>,
    begins: Notify,
}

impl ControllerLink for Shared {
    fn attachments_changed(&self, table: Arc<AttachmentTable>, _changed: &[u32]) {
        self.tables.publish(table);
        self.wake();
    }

    fn in_flight(&self, namespace: &Namespace) -> u64 {
        self.tables.in_flight_on(namespace)
    }
}

impl Shared {
    fn new(told: &Arc<Told>) -> Arc<Self> {
        Arc::new(Self {
            told: Arc::clone(told),
            tables: Arc::default(),
            sleeper: Sleeper::default(),
            kick: Notify::new(),
            messages: loom::sync::Mutex::new(Vec::new()),
            completions: Mutex::new(Vec::new()),
            tail: AtomicUsize::new(0),
            began: Mutex::new(Vec::new()),
            begins: Notify::new(),
        })
    }

    fn wake(&self) {
        self.sleeper.wake(|| self.kick.notify());
    }

    fn send(&self, message: Message) {
        self.messages.lock().unwrap().push(message);
        self.wake();
    }

    /// The guest has one more command.
    fn ring(&self) {
        self.tail.fetch_add(1, Ordering::Release);
        self.wake();
    }

    /// Waits for the beginning `index`.
    fn wait_began(&self, index: usize) -> Began {
        loop {
            if let Some(began) = self.began.lock().unwrap().get(index) {
                return *began;
            }
            self.begins.wait();
        }
    }

    /// The storage is done with a command; its event wakes the thread, however late.
    fn complete(&self, key: Key) {
        self.completions.lock().unwrap().push(key);
        self.kick.notify();
    }
}

struct InFlight {
    epoch: Epoch,
    nsid: u32,
}

/// The loop of `Worker`.
struct Thread {
    shared: Arc<Shared>,
    snapshots: Snapshots<Loom>,
    in_flight: Slots<InFlight>,
    head: usize,
}

impl Thread {
    fn start(shared: &Arc<Shared>) -> thread::JoinHandle<()> {
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let mut thread = Self {
                snapshots: Snapshots::new(&shared.tables),
                shared,
                in_flight: Slots::default(),
                head: 0,
            };
            thread.run();
        })
    }

    fn run(&mut self) {
        loop {
            let messages = std::mem::take(&mut *self.shared.messages.lock().unwrap());
            for message in messages {
                match message {
                    Message::Abort(namespace) => self.abort(&namespace),
                    Message::Reset => {
                        self.end_where(|_, _| true);
                        self.began(Began::Anew);
                    }
                    Message::Stop => {
                        self.reap();
                        return;
                    }
                }
            }
            let reaped = self.reap();
            let fetched = self.serve();
            if !reaped && !fetched {
                let shared = Arc::clone(&self.shared);
                let wait = |thread: &mut Self| thread.shared.kick.wait();
                shared.sleeper.sleep(self, Self::has_work, wait);
            }
        }
    }

    fn has_work(&mut self) -> bool {
        let rung = self.shared.tail.load(Ordering::Acquire) != self.head;
        let messages = !self.shared.messages.lock().unwrap().is_empty();
        self.snapshots.refresh();
        messages || rung
    }

    fn serve(&mut self) -> bool {
        self.snapshots.refresh();
        let mut any = false;
        while self.shared.tail.load(Ordering::Acquire) != self.head {
            self.head += 1;
            self.begin();
            any = true;
        }
        any
    }

    fn begin(&mut self) {
        self.snapshots.refresh();
        let (epoch, nsid) = (self.snapshots.enter(NSID), NSID);
        let key = self.in_flight.insert(InFlight { epoch, nsid });
        let began = match self.snapshots.current().get(NSID) {
            Some(namespace) => {
                self.shared
                    .told
                    .in_flight(namespace)
                    .fetch_add(1, Ordering::Relaxed);
                Began::Found(key)
            }
            None => {
                self.in_flight.remove(key);
                self.snapshots.leave(epoch, nsid);
                Began::Missing
            }
        };
        self.began(began);
    }

    fn began(&self, began: Began) {
        self.shared.began.lock().unwrap().push(began);
        self.shared.begins.notify();
    }

    fn reap(&mut self) -> bool {
        let completions = std::mem::take(&mut *self.shared.completions.lock().unwrap());
        let any = !completions.is_empty();
        for key in completions {
            self.finish(key);
        }
        any
    }

    /// Ends a command, unless it was ended before.
    fn finish(&mut self, key: Key) {
        let Some(command) = self.in_flight.remove(key) else {
            return;
        };
        let table = self.snapshots.get(command.epoch).expect("its table");
        let namespace = table.get(command.nsid).expect("its namespace");
        self.shared
            .told
            .in_flight(namespace)
            .fetch_sub(1, Ordering::Relaxed);
        self.snapshots.leave(command.epoch, command.nsid);
    }

    fn abort(&mut self, namespace: &Weak<Namespace>) {
        let aborted = namespace.as_ptr();
        self.end_where(|snapshots, command| {
            let table = snapshots.get(command.epoch).expect("its table");
            let found = table.get(command.nsid).expect("its namespace");
            std::ptr::eq(Arc::as_ptr(found), aborted)
        });
    }

    fn end_where(&mut self, which: impl Fn(&Snapshots<Loom>, &InFlight) -> bool) {
        let commands = self.in_flight.iter();
        let chosen = commands.filter(|(_, command)| which(&self.snapshots, command));
        let keys: Vec<Key> = chosen.map(|(key, _)| key).collect();
        for key in keys {
            self.finish(key);
        }
    }
}

/// A subsystem whose controllers each have one I/O thread.
struct Machine {
    subsystem: Arc<Subsystem>,
    links: Vec<Link>,
    threads: Vec<Arc<Shared>>,
    handles: Vec<thread::JoinHandle<()>>,
    told: Arc<Told>,
}

impl Machine {
    fn new(controllers: usize) -> Self {
        let config = SubsystemConfig {
            id: "subsys0".into(),
            nqn: "nqn".into(),
            shared: true,
        };
        let subsystem = Subsystem::new(config).unwrap();
        let told = Arc::<Told>::default();
        let threads: Vec<_> = (0..controllers).map(|_| Shared::new(&told)).collect();
        let link = |(index, shared): (usize, &Arc<Shared>)| {
            let link = subsystem.link(&index.to_string(), None).unwrap();
            let observer: Arc<dyn ControllerLink> = Arc::clone(shared) as _;
            link.observe(&observer);
            link
        };
        Self {
            links: threads.iter().enumerate().map(link).collect(),
            subsystem,
            threads,
            handles: Vec::new(),
            told,
        }
    }

    fn start(&mut self) {
        self.handles = self.threads.iter().map(Thread::start).collect();
    }

    fn thread(&self) -> &Arc<Shared> {
        &self.threads[0]
    }

    fn add(&self, index: usize) -> Weak<Namespace> {
        let config = NamespaceConfig {
            shared: true,
            nsid: Some(NSID),
            ..NamespaceConfig::default()
        };
        let backend = Arc::new(Storage {
            index,
            told: Arc::clone(&self.told),
        });
        let namespace = self.subsystem.add_namespace(config, backend).unwrap();
        Arc::downgrade(&namespace)
    }

    /// Removes the namespace. What is returned counts how often it said that it closed.
    fn remove(&self) -> EventFd {
        let namespace = self.subsystem.remove_namespace(NSID).unwrap();
        let closed = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        namespace.notify_closed(closed.try_clone().unwrap());
        closed
    }

    fn stop(self) {
        for shared in &self.threads {
            shared.send(Message::Stop);
        }
        for handle in self.handles {
            handle.join().unwrap();
        }
        drop(self.links);
    }

    /// Waits until the namespace closes, and stops. Loom finds it if that never comes.
    fn end(self, closed: &EventFd) {
        self.told.wait_closed(1);
        self.stop();
        assert_eq!(closed.read().ok(), Some(1), "closed once");
    }
}

/// Runs a scenario in every order in which threads are stopped in the middle at most so often; where
/// they wait they are stopped as often as there are others.
fn explore(preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(scenario);
}

/// Counts what all runs of a scenario saw, to tell whether they differed.
#[derive(Default)]
struct Seen {
    found: AtomicU32,
    missing: AtomicU32,
}

impl Seen {
    fn note(&self, began: Began) {
        let count = match began {
            Began::Found(_) => &self.found,
            _ => &self.missing,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn assert_both(&self) {
        let counts = [&self.found, &self.missing].map(|count| count.load(Ordering::Relaxed));
        assert!(counts[0] > 0 && counts[1] > 0, "{counts:?}");
    }
}

#[test]
fn idle_threads_let_go_of_a_removed_namespace() {
    for (controllers, preemptions) in [(1, 3), (2, 2)] {
        explore(preemptions, move || {
            let mut machine = Machine::new(controllers);
            machine.add(0);
            machine.start();
            let closed = machine.remove();
            machine.end(&closed);
        });
    }
}

#[test]
fn a_removed_namespace_closes_behind_its_last_command() {
    let seen = Arc::<Seen>::default();
    let all = Arc::clone(&seen);
    explore(2, move || {
        let mut machine = Machine::new(1);
        machine.add(0);
        machine.start();
        machine.thread().ring();
        let (shared, seen) = (Arc::clone(machine.thread()), Arc::clone(&seen));
        let storage = thread::spawn(move || {
            let began = shared.wait_began(0);
            seen.note(began);
            if let Began::Found(key) = began {
                shared.complete(key);
            }
        });
        let closed = machine.remove();
        storage.join().unwrap();
        machine.end(&closed);
    });
    all.assert_both();
}

#[test]
fn a_guest_that_knows_of_a_namespace_when_it_rings_is_served_with_it() {
    explore(3, || {
        let mut machine = Machine::new(1);
        machine.start();
        let shared = Arc::clone(machine.thread());
        machine.add(0);
        shared.ring();
        let Began::Found(key) = shared.wait_began(0) else {
            panic!("the guest has found it");
        };
        shared.complete(key);
        machine.stop();
    });
}

#[test]
fn the_last_of_two_changes_is_the_one_that_counts() {
    explore(2, || {
        let mut machine = Machine::new(1);
        machine.add(0);
        machine.start();
        let closed = machine.remove();
        machine.add(1);
        machine.thread().ring();
        let Began::Found(key) = machine.thread().wait_began(0) else {
            panic!("the guest has found it");
        };
        assert_eq!(machine.told.in_flight[1].load(Ordering::Relaxed), 1);
        machine.thread().complete(key);
        machine.end(&closed);
    });
}

#[test]
fn a_command_that_is_rung_for_after_a_removal_never_reaches_the_namespace() {
    explore(3, || {
        let mut machine = Machine::new(1);
        machine.add(0);
        machine.start();
        let closed = machine.remove();
        machine.thread().ring();
        assert_eq!(machine.thread().wait_began(0), Began::Missing);
        machine.end(&closed);
    });
}

#[test]
fn an_abort_ends_what_began_before_the_removal() {
    let seen = Arc::<Seen>::default();
    let all = Arc::clone(&seen);
    explore(3, move || {
        let mut machine = Machine::new(1);
        let namespace = machine.add(0);
        machine.start();
        machine.thread().ring();
        let closed = machine.remove();
        // The storage never ends it.
        machine.thread().send(Message::Abort(namespace));
        seen.note(machine.thread().wait_began(0));
        machine.end(&closed);
    });
    all.assert_both();
}

#[test]
fn late_completions_of_before_a_reset_end_nothing() {
    explore(1, || {
        let mut machine = Machine::new(1);
        machine.add(0);
        machine.start();
        let shared = Arc::clone(machine.thread());
        shared.ring();
        let Began::Found(key) = shared.wait_began(0) else {
            panic!("nothing was removed");
        };
        shared.send(Message::Reset);
        shared.complete(key);
        assert_eq!(shared.wait_began(1), Began::Anew);
        // The next command has the place of the first, and its own name.
        shared.complete(key);
        shared.ring();
        let Began::Found(second) = shared.wait_began(2) else {
            panic!("nothing was removed");
        };
        shared.complete(key);
        let closed = machine.remove();
        assert_eq!(machine.told.closed.load(Ordering::Relaxed), 0);
        shared.complete(second);
        machine.end(&closed);
    });
}

#[test]
fn the_next_namespace_has_nothing_of_the_one_before_it() {
    explore(2, || {
        let mut machine = Machine::new(1);
        machine.add(0);
        machine.start();
        let shared = Arc::clone(machine.thread());
        shared.ring();
        let closed = machine.remove();
        let next = machine.add(1);
        let Began::Found(key) = shared.wait_began(0) else {
            // It came in between.
            machine.end(&closed);
            return;
        };
        // Only one of the two is in use, and stays open.
        let used: Vec<u32> = machine
            .told
            .in_flight
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        assert!(used == [1, 0] || used == [0, 1], "{used:?}");
        if used == [0, 1] {
            let on_it = next
                .upgrade()
                .map(|next| machine.subsystem.in_flight(&next));
            assert_eq!(on_it, Some(1));
        }
        shared.complete(key);
        machine.end(&closed);
    });
}

/// A queue's doorbell, and the message by which an I/O thread gets the queue.
#[derive(Default)]
struct Move {
    owner: Owner<Loom>,
    value: AtomicUsize,
    adopted: loom::sync::Mutex<bool>,
}

const NEW_OWNER: u64 = 1;

impl Move {
    /// A vCPU rings. Whether it found the new owner; the old one ignores it.
    fn ring(&self) -> bool {
        self.value.store(1, Ordering::Relaxed);
        self.owner.to_tell() == NEW_OWNER
    }

    /// The admin queue's owner passes the queue on.
    fn hand_over(&self) {
        self.owner.replace(NEW_OWNER);
        *self.adopted.lock().unwrap() = true;
    }

    /// The new owner's one look at the doorbell, if it has got the queue by now. Whether it was rung.
    fn look(&self) -> Option<bool> {
        let adopted = *self.adopted.lock().unwrap();
        adopted.then(|| self.value.load(Ordering::Relaxed) == 1)
    }
}

#[test]
fn a_ring_while_a_queue_moves_is_told_to_its_new_owner_or_seen_by_it() {
    // By how many of the two it was noticed.
    let ends = Arc::new([(); 3].map(|()| AtomicU32::new(0)));
    let all = Arc::clone(&ends);
    explore(4, move || {
        let queue = Arc::new(Move::default());
        let (adopting, ringing) = (Arc::clone(&queue), Arc::clone(&queue));
        let thread = thread::spawn(move || adopting.look());
        let vcpu = thread::spawn(move || ringing.ring());
        queue.hand_over();
        let told = vcpu.join().unwrap();
        let Some(seen) = thread.join().unwrap() else {
            return;
        };
        assert!(told || seen, "lost");
        ends[usize::from(told) + usize::from(seen)].fetch_add(1, Ordering::Relaxed);
    });
    let [_, one, both] = &*all;
    for count in [one, both] {
        assert!(count.load(Ordering::Relaxed) > 0);
    }
}
