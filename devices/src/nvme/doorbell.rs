//! Doorbells: what the guest last wrote to each, the shadow buffers that replace the writes, and the
//! kernel events that replace the exits (NVMe Base 2.0c, 3.1.3.16, 3.1.3.17 and B.5).

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use vmm_sys_util::eventfd::EventFd;

use crate::ioevent::IoEvents;
use crate::ram::{GuestRam, MappedRange, NotRam};

/// Offset of the doorbells in BAR 0.
pub const DOORBELL_BASE: u64 = 0x1000;

/// Which end of a queue pair a doorbell belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// A submission queue's tail.
    SqTail,
    /// A completion queue's head.
    CqHead,
}

/// A doorbell: a queue's side and identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DoorbellId {
    /// Which end.
    pub side: Side,
    /// Queue identifier, 0 for the admin queues.
    pub qid: u16,
}

impl DoorbellId {
    /// The tail doorbell of submission queue `qid`.
    pub fn sq(qid: u16) -> Self {
        Self {
            side: Side::SqTail,
            qid,
        }
    }

    /// The head doorbell of completion queue `qid`.
    pub fn cq(qid: u16) -> Self {
        Self {
            side: Side::CqHead,
            qid,
        }
    }

    /// From the offset in BAR 0 (CAP.DSTRD = 0), if that is one.
    pub fn at(offset: u64) -> Option<Self> {
        let index = offset.checked_sub(DOORBELL_BASE)? / 4;
        if !offset.is_multiple_of(4) {
            return None;
        }
        let qid = u16::try_from(index / 2).ok()?;
        let side = if index.is_multiple_of(2) {
            Side::SqTail
        } else {
            Side::CqHead
        };
        Some(Self { side, qid })
    }

    /// Byte offset from the first doorbell; the same in the shadow buffers.
    pub fn offset(self) -> usize {
        usize::from(self.qid) * 8 + if self.side == Side::CqHead { 4 } else { 0 }
    }
}

/// One doorbell's state. vCPUs write it, the owner of the queue reads it; no lock.
#[derive(Debug, Default)]
pub struct Doorbell {
    value: AtomicU32,
    // 0 while there is no queue.
    entries: AtomicU32,
    owner: AtomicU32,
    waiting: AtomicBool,
    exits: AtomicU64,
}

/// A doorbell write that names no queue or no entry of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidDoorbell {
    /// No such queue.
    Register,
    /// Not an index into the queue.
    Value,
}

/// Whom a doorbell write concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rung {
    /// Index of the I/O thread; meaningless for the admin queues.
    pub owner: usize,
    /// Whether the owner must be told: always for tails, for heads only when it waits for room.
    pub tell: bool,
}

impl Doorbell {
    /// Stores what a vCPU wrote.
    fn ring(&self, side: Side, value: u32) -> Result<Rung, InvalidDoorbell> {
        let entries = self.entries.load(Ordering::Acquire);
        if entries == 0 {
            return Err(InvalidDoorbell::Register);
        }
        if value >= entries {
            return Err(InvalidDoorbell::Value);
        }
        self.exits.fetch_add(1, Ordering::Relaxed);
        self.value.store(value, Ordering::Release);
        // Orders the value before the look at `waiting`; pairs with `wait_for_room`.
        fence(Ordering::SeqCst);
        let tell = side == Side::SqTail || self.waiting.swap(false, Ordering::Relaxed);
        let owner = self.owner.load(Ordering::Relaxed) as usize;
        Ok(Rung { owner, tell })
    }

    /// What was last written by a doorbell exit.
    pub fn value(&self) -> u32 {
        self.value.load(Ordering::Acquire)
    }

    /// Doorbell exits since the queue was made.
    pub fn exits(&self) -> u64 {
        self.exits.load(Ordering::Relaxed)
    }

    /// Goes on from the value that the guest left in an earlier shadow buffer, if it is one.
    fn take_over(&self, value: u32) {
        if value < self.entries() {
            self.value.store(value, Ordering::Release);
        }
    }

    /// The queue's size; 0 if there is none.
    fn entries(&self) -> u32 {
        self.entries.load(Ordering::Acquire)
    }

    /// Asks to be told of the next head; the caller looks at the head once more afterwards.
    pub fn wait_for_room(&self) {
        self.waiting.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

/// The guest's shadow doorbell and event index pages (Doorbell Buffer Config).
#[derive(Debug)]
pub struct Shadow {
    values: MappedRange,
    event_indices: MappedRange,
}

impl Shadow {
    /// Size of each buffer in bytes: one memory page.
    pub const SIZE: usize = 4096;

    /// Maps the two pages.
    ///
    /// # Errors
    /// One of them is not in RAM or not page aligned.
    pub fn new(ram: &GuestRam, values: u64, event_indices: u64) -> Result<Self, NotRam> {
        for address in [values, event_indices] {
            if !address.is_multiple_of(4096) {
                return Err(NotRam {
                    address,
                    len: Self::SIZE,
                });
            }
        }
        Ok(Self {
            values: ram.map(values, Self::SIZE)?,
            event_indices: ram.map(event_indices, Self::SIZE)?,
        })
    }

    /// What the guest last stored; not checked.
    fn value(&self, id: DoorbellId) -> u32 {
        self.values.load_u32(id.offset(), Ordering::Acquire)
    }

    fn set_value(&self, id: DoorbellId, value: u32) {
        self.values.store_u32(id.offset(), value, Ordering::SeqCst);
    }

    /// Asks the guest to ring once its value passes `index`. The caller looks at the value once more
    /// afterwards: only then is it sure to have seen it or to be rung for.
    pub fn set_event_index(&self, id: DoorbellId, index: u32) {
        self.event_indices
            .store_u32(id.offset(), index, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

/// All doorbells of a controller.
pub struct Doorbells {
    sq: Box<[Doorbell]>,
    cq: Box<[Doorbell]>,
    shadow: ArcSwapOption<Shadow>,
    events: Mutex<Events>,
}

impl std::fmt::Debug for Doorbells {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doorbells")
            .field("pairs", &self.sq.len())
            .finish_non_exhaustive()
    }
}

impl Doorbells {
    /// Doorbells for queue identifiers 0 to `max_qid`, with `io_events` to take their exits away.
    pub fn new(max_qid: u16, io_events: Arc<dyn IoEvents>) -> Self {
        let side = || (0..=max_qid).map(|_| Doorbell::default()).collect();
        Self {
            sq: side(),
            cq: side(),
            shadow: ArcSwapOption::empty(),
            events: Mutex::new(Events::new(io_events)),
        }
    }

    /// The doorbell, if its queue identifier is in range.
    pub fn get(&self, id: DoorbellId) -> Option<&Doorbell> {
        let side = match id.side {
            Side::SqTail => &self.sq,
            Side::CqHead => &self.cq,
        };
        side.get(usize::from(id.qid))
    }

    /// A queue of `entries` owned by I/O thread `owner` begins here, with a value of 0.
    pub fn open(&self, id: DoorbellId, entries: u32, owner: usize) {
        let Some(bell) = self.get(id) else { return };
        bell.value.store(0, Ordering::Relaxed);
        bell.waiting.store(false, Ordering::Relaxed);
        bell.exits.store(0, Ordering::Relaxed);
        bell.owner
            .store(u32::try_from(owner).unwrap_or(0), Ordering::Relaxed);
        if let Some(shadow) = &*self.shadow.load() {
            // So that the guest's first submission rings, whatever an earlier queue left there.
            shadow.set_value(id, 0);
            shadow.set_event_index(id, 0);
        }
        bell.entries.store(entries, Ordering::Release);
    }

    /// The queue is gone: writes to its doorbell are errors.
    pub fn close(&self, id: DoorbellId) {
        if let Some(bell) = self.get(id) {
            bell.entries.store(0, Ordering::Release);
        }
    }

    /// Takes a guest write. The shadow value follows, as not every guest shadows every queue.
    pub fn ring(&self, id: DoorbellId, value: u32) -> Result<Rung, InvalidDoorbell> {
        let bell = self.get(id).ok_or(InvalidDoorbell::Register)?;
        let rung = bell.ring(id.side, value)?;
        if let Some(shadow) = &*self.shadow.load() {
            shadow.set_value(id, value);
        }
        Ok(rung)
    }

    /// The newest value of a doorbell from wherever the guest puts it now. The caller checks it
    /// against its queue: nobody checked a shadow value before.
    pub fn value(&self, id: DoorbellId, shadow: Option<&Shadow>) -> u32 {
        match shadow {
            None => self.get(id).map_or(0, Doorbell::value),
            Some(shadow) => shadow.value(id),
        }
    }

    /// The shadow buffers in use.
    pub fn shadow(&self) -> Option<Arc<Shadow>> {
        self.shadow.load_full()
    }

    /// From now on the guest's values are in `shadow`. What it wrote before goes there, so that both
    /// sides start from the same number, and event indices such that the next change rings.
    pub fn start_shadow(&self, shadow: &Arc<Shadow>) {
        let last = self.shadow.swap(Some(Arc::clone(shadow)));
        fence(Ordering::SeqCst);
        let sides = [(Side::SqTail, &self.sq), (Side::CqHead, &self.cq)];
        for (side, bells) in sides {
            for (qid, bell) in (0u16..).zip(bells) {
                let id = DoorbellId { side, qid };
                if bell.entries() == 0 {
                    continue;
                }
                if let Some(last) = &last {
                    bell.take_over(last.value(id));
                }
                start_shadow_of(bell, id, shadow);
            }
        }
    }

    /// Forgets the shadow buffers, all queues and all kernel events (controller reset).
    pub fn reset(&self) {
        self.events().clear();
        self.shadow.store(None);
        for bell in self.sq.iter().chain(&self.cq) {
            bell.entries.store(0, Ordering::Release);
        }
    }

    /// Turns a doorbell's exits into `event` from now on, wherever BAR 0 is.
    pub fn add_event(&self, id: DoorbellId, event: &EventFd) -> io::Result<()> {
        let event = event.try_clone()?;
        self.events().add(id, event);
        Ok(())
    }

    /// Undoes [`Doorbells::add_event`].
    pub fn remove_event(&self, id: DoorbellId) {
        self.events().remove(id);
    }

    /// BAR 0 is at `base` now, or nowhere.
    pub fn bar_moved(&self, base: Option<u64>) {
        self.events().move_to(base);
    }

    /// Number of kernel events registered now.
    pub fn event_count(&self) -> usize {
        self.events().registered()
    }

    fn events(&self) -> std::sync::MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start_shadow_of(bell: &Doorbell, id: DoorbellId, shadow: &Shadow) {
    // A vCPU in `ring` may write between the load and the store here. It found the buffer or its
    // value is seen; the bound is for a guest that does nothing but ring.
    for _ in 0..64 {
        let value = bell.value();
        shadow.set_value(id, value);
        shadow.set_event_index(id, value);
        if bell.value() == value {
            return;
        }
    }
}

/// The kernel events of a controller's doorbells; they follow BAR 0.
struct Events {
    io_events: Arc<dyn IoEvents>,
    base: Option<u64>,
    wanted: BTreeMap<DoorbellId, WantedEvent>,
}

struct WantedEvent {
    event: EventFd,
    // Where it is registered now, if it is.
    address: Option<u64>,
}

impl Events {
    fn new(io_events: Arc<dyn IoEvents>) -> Self {
        Self {
            io_events,
            base: None,
            wanted: BTreeMap::new(),
        }
    }

    fn add(&mut self, id: DoorbellId, event: EventFd) {
        self.remove(id);
        let mut wanted = WantedEvent {
            event,
            address: None,
        };
        wanted.register(&*self.io_events, self.base, id);
        self.wanted.insert(id, wanted);
    }

    fn remove(&mut self, id: DoorbellId) {
        if let Some(mut wanted) = self.wanted.remove(&id) {
            wanted.unregister(&*self.io_events);
        }
    }

    fn clear(&mut self) {
        for wanted in self.wanted.values_mut() {
            wanted.unregister(&*self.io_events);
        }
        self.wanted.clear();
    }

    fn move_to(&mut self, base: Option<u64>) {
        for wanted in self.wanted.values_mut() {
            wanted.unregister(&*self.io_events);
        }
        self.base = base;
        for (&id, wanted) in &mut self.wanted {
            wanted.register(&*self.io_events, base, id);
        }
    }

    fn registered(&self) -> usize {
        let registered = |wanted: &&WantedEvent| wanted.address.is_some();
        self.wanted.values().filter(registered).count()
    }
}

impl WantedEvent {
    fn register(&mut self, io_events: &dyn IoEvents, base: Option<u64>, id: DoorbellId) {
        let Some(base) = base else { return };
        let address = base + DOORBELL_BASE + id.offset() as u64;
        match io_events.register(&self.event, address) {
            Ok(()) => self.address = Some(address),
            // Without the event the write exits to user space, which is slower and as right.
            Err(error) => {
                crate::guest_warn!("no kernel event for the doorbell at {address:#x}: {error}");
            }
        }
    }

    fn unregister(&mut self, io_events: &dyn IoEvents) {
        if let Some(address) = self.address.take()
            && let Err(error) = io_events.unregister(&self.event, address)
        {
            crate::guest_warn!("kernel event for the doorbell at {address:#x} stays: {error}");
        }
    }
}
