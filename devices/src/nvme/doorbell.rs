//! Doorbells: what the guest last wrote to each, the shadow buffers that replace the writes, and the
//! kernel events that replace the exits (NVMe Base 2.0c, 3.1.3.16, 3.1.3.17 and B.5).

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use vmm_sys_util::eventfd::EventFd;

use crate::ioevent::{CoalescedWrites, IoEvents, WriteSink};
use crate::ram::{GuestRam, MappedRange, NotRam};

use super::sync::Owner;

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
    owner: Owner,
    waiting: AtomicBool,
    exits: AtomicU64,
    coalesced: AtomicU64,
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
    fn store(&self, value: u32) -> Result<(), InvalidDoorbell> {
        let entries = self.entries.load(Ordering::Acquire);
        if entries == 0 {
            return Err(InvalidDoorbell::Register);
        }
        if value >= entries {
            return Err(InvalidDoorbell::Value);
        }
        self.value.store(value, Ordering::Release);
        // Orders the value before looks at the shadow buffer in use; pairs with `start_shadow`.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Whom to tell, once the value is wherever the owner may look for it.
    fn rung(&self, side: Side) -> Rung {
        // Its barrier orders the value before the look at `waiting`, too; pairs with `wait_for_room`.
        let owner = self.owner.to_tell();
        let tell = side == Side::SqTail || self.waiting.swap(false, Ordering::Relaxed);
        // Of a few threads.
        let owner = usize::try_from(owner).unwrap_or(0);
        Rung { owner, tell }
    }

    /// What was last written by a doorbell exit.
    pub fn value(&self) -> u32 {
        self.value.load(Ordering::Acquire)
    }

    /// Doorbell exits since the queue was made.
    pub fn exits(&self) -> u64 {
        self.exits.load(Ordering::Relaxed)
    }

    /// Doorbell writes since the queue was made that were kept by the hypervisor instead of leaving the
    /// guest.
    pub fn coalesced(&self) -> u64 {
        self.coalesced.load(Ordering::Relaxed)
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
    writes: Arc<dyn CoalescedWrites>,
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
    /// `writes` keeps completion queue heads until they are asked for.
    pub fn new(
        max_qid: u16,
        io_events: Arc<dyn IoEvents>,
        writes: Arc<dyn CoalescedWrites>,
    ) -> Self {
        let side = || (0..=max_qid).map(|_| Doorbell::default()).collect();
        Self {
            sq: side(),
            cq: side(),
            shadow: ArcSwapOption::empty(),
            writes: Arc::clone(&writes),
            events: Mutex::new(Events::new(io_events, writes)),
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
        bell.owner.replace(owner as u64);
        bell.coalesced.store(0, Ordering::Relaxed);
        if let Some(shadow) = &*self.shadow.load() {
            // So that the guest's first submission rings, whatever an earlier queue left there.
            shadow.set_value(id, 0);
            shadow.set_event_index(id, 0);
        }
        bell.entries.store(entries, Ordering::Release);
    }

    /// Another I/O thread owns the queue from now on. It must be told after this, and then look at the
    /// doorbell once: a vCPU that rings meanwhile may still find the old owner, who ignores it.
    pub fn set_owner(&self, id: DoorbellId, owner: usize) {
        if let Some(bell) = self.get(id) {
            bell.owner.replace(owner as u64);
        }
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
        bell.store(value)?;
        bell.exits.fetch_add(1, Ordering::Relaxed);
        if let Some(shadow) = &*self.shadow.load() {
            shadow.set_value(id, value);
        }
        Ok(bell.rung(id.side))
    }

    /// Takes a completion queue head that was kept. Nobody is told: an owner that waits for one has
    /// none kept ([`Doorbells::pause_coalescing`]).
    pub fn take_kept(&self, id: DoorbellId, value: u32) -> Result<(), InvalidDoorbell> {
        let bell = self.get(id).ok_or(InvalidDoorbell::Register)?;
        bell.store(value)?;
        bell.coalesced.fetch_add(1, Ordering::Relaxed);
        Ok(())
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
        // Kept heads are older than any in the buffer.
        self.events().end_coalescing();
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
        self.events().add(id, Spared::Event(event));
        Ok(())
    }

    /// Has writes to a completion queue's doorbell kept for `sink` from now on, wherever BAR 0 is, if
    /// the hypervisor can do that.
    pub fn coalesce(&self, id: DoorbellId, sink: Arc<dyn WriteSink>) {
        self.events().add(
            id,
            Spared::Kept {
                sink,
                paused: false,
            },
        );
    }

    /// Has writes to a doorbell leave the guest for now, so that the owner can be told of the next.
    /// Those that were kept are taken on return.
    pub fn pause_coalescing(&self, id: DoorbellId) {
        self.events().pause(id, true);
    }

    /// Undoes [`Doorbells::pause_coalescing`].
    pub fn resume_coalescing(&self, id: DoorbellId) {
        self.events().pause(id, false);
    }

    /// Takes all values that were kept. Costs little if there are none.
    pub fn take_all_kept(&self) {
        self.writes.drain();
    }

    /// Undoes [`Doorbells::add_event`] and [`Doorbells::coalesce`].
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

/// The doorbells of a controller that spare the guest an exit; they follow BAR 0.
struct Events {
    io_events: Arc<dyn IoEvents>,
    writes: Arc<dyn CoalescedWrites>,
    base: Option<u64>,
    wanted: BTreeMap<DoorbellId, Wanted>,
}

/// What becomes of a write.
enum Spared {
    /// It signals this.
    Event(EventFd),
    /// It is kept for later.
    Kept {
        sink: Arc<dyn WriteSink>,
        paused: bool,
    },
}

struct Wanted {
    how: Spared,
    // Where it is registered now, if it is.
    address: Option<u64>,
}

impl Events {
    fn new(io_events: Arc<dyn IoEvents>, writes: Arc<dyn CoalescedWrites>) -> Self {
        Self {
            io_events,
            writes,
            base: None,
            wanted: BTreeMap::new(),
        }
    }

    fn add(&mut self, id: DoorbellId, how: Spared) {
        // First: of two at one address, the hypervisor lets the older one have the write.
        self.remove(id);
        let address = None;
        self.wanted.insert(id, Wanted { how, address });
        self.register(id);
    }

    fn remove(&mut self, id: DoorbellId) {
        self.unregister(id);
        self.wanted.remove(&id);
    }

    fn clear(&mut self) {
        self.ids().into_iter().for_each(|id| self.remove(id));
    }

    fn end_coalescing(&mut self) {
        let kept = |id: &DoorbellId| matches!(self.wanted[id].how, Spared::Kept { .. });
        let ids: Vec<_> = self.ids().into_iter().filter(kept).collect();
        ids.into_iter().for_each(|id| self.remove(id));
    }

    fn pause(&mut self, id: DoorbellId, pause: bool) {
        if let Some(Wanted {
            how: Spared::Kept { paused, .. },
            ..
        }) = self.wanted.get_mut(&id)
            && std::mem::replace(paused, pause) != pause
        {
            if pause {
                self.unregister(id);
            } else {
                self.register(id);
            }
        }
    }

    fn move_to(&mut self, base: Option<u64>) {
        let ids = self.ids();
        ids.iter().for_each(|&id| self.unregister(id));
        self.base = base;
        ids.into_iter().for_each(|id| self.register(id));
    }

    fn ids(&self) -> Vec<DoorbellId> {
        self.wanted.keys().copied().collect()
    }

    /// Number of doorbells that signal events.
    fn registered(&self) -> usize {
        let event = |wanted: &&Wanted| matches!(wanted.how, Spared::Event(_));
        let registered = |wanted: &&Wanted| wanted.address.is_some();
        let events = self.wanted.values().filter(event);
        events.filter(registered).count()
    }

    fn register(&mut self, id: DoorbellId) {
        let (Some(base), Some(wanted)) = (self.base, self.wanted.get_mut(&id)) else {
            return;
        };
        let address = base + DOORBELL_BASE + id.offset() as u64;
        let registered = match &wanted.how {
            Spared::Event(event) => self.io_events.register(event, address),
            Spared::Kept { paused: true, .. } => return,
            Spared::Kept { sink, .. } => self.writes.register(address, Arc::clone(sink)),
        };
        // Without, the write exits to user space, which is slower and as right.
        match registered {
            Ok(()) => wanted.address = Some(address),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(error) => {
                crate::guest_warn!("the doorbell at {address:#x} stays an exit: {error}");
            }
        }
    }

    fn unregister(&mut self, id: DoorbellId) {
        let Some(wanted) = self.wanted.get_mut(&id) else {
            return;
        };
        let Some(address) = wanted.address.take() else {
            return;
        };
        let unregistered = match &wanted.how {
            Spared::Event(event) => self.io_events.unregister(event, address),
            Spared::Kept { .. } => self.writes.unregister(address),
        };
        if let Err(error) = unregistered {
            crate::guest_warn!("the doorbell at {address:#x} stays without exits: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    struct NoEvents;

    impl IoEvents for NoEvents {
        fn register(&self, _: &EventFd, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn unregister(&self, _: &EventFd, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    impl CoalescedWrites for NoEvents {
        fn register(&self, _: u64, _: Arc<dyn WriteSink>) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn unregister(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn drain(&self) {}
    }

    fn doorbells() -> Doorbells {
        Doorbells::new(4, Arc::new(NoEvents), Arc::new(NoEvents))
    }

    fn shadow() -> Arc<Shadow> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
        Arc::new(Shadow::new(&GuestRam::new(memory), 0x1000, 0x2000).unwrap())
    }

    #[test]
    fn doorbells_are_where_the_specification_has_them() {
        assert_eq!(DoorbellId::at(0x1000), Some(DoorbellId::sq(0)));
        assert_eq!(DoorbellId::at(0x1004), Some(DoorbellId::cq(0)));
        assert_eq!(DoorbellId::at(0x100c), Some(DoorbellId::cq(1)));
        assert_eq!(DoorbellId::at(0x1ffc), Some(DoorbellId::cq(511)));
        for offset in [0, 0xffc, 0x1001, 0x1002, 0x1006, u64::MAX] {
            assert_eq!(DoorbellId::at(offset), None, "{offset:#x}");
        }
        assert_eq!(DoorbellId::cq(511).offset(), 0xffc);
    }

    #[test]
    fn only_indices_into_an_open_queue_are_taken() {
        let doorbells = doorbells();
        let id = DoorbellId::sq(1);
        assert_eq!(doorbells.ring(id, 0), Err(InvalidDoorbell::Register));
        doorbells.open(id, 4, 7);
        for value in [4, 5, 0xffff, 0x1_0000, u32::MAX] {
            assert_eq!(doorbells.ring(id, value), Err(InvalidDoorbell::Value));
        }
        let rung = doorbells.ring(id, 3).unwrap();
        assert_eq!((rung.owner, rung.tell), (7, true));
        assert_eq!(doorbells.value(id, None), 3);
        assert_eq!(
            doorbells.ring(DoorbellId::cq(1), 0),
            Err(InvalidDoorbell::Register)
        );
        assert_eq!(
            doorbells.ring(DoorbellId::sq(5), 0),
            Err(InvalidDoorbell::Register)
        );
        doorbells.close(id);
        assert_eq!(doorbells.ring(id, 1), Err(InvalidDoorbell::Register));
        doorbells.open(id, 2, 0);
        assert_eq!(doorbells.value(id, None), 0, "a value of the queue before");
        doorbells.reset();
        assert_eq!(doorbells.ring(id, 1), Err(InvalidDoorbell::Register));
    }

    #[test]
    fn heads_are_told_of_only_when_waited_for() {
        let doorbells = doorbells();
        let id = DoorbellId::cq(1);
        doorbells.open(id, 4, 0);
        assert!(!doorbells.ring(id, 1).unwrap().tell);
        doorbells.get(id).unwrap().wait_for_room();
        assert!(doorbells.ring(id, 2).unwrap().tell);
        assert!(!doorbells.ring(id, 3).unwrap().tell);
    }

    /// Lets two threads go on at nearly the same moment, again and again.
    #[derive(Default)]
    struct Steps(AtomicU32);

    impl Steps {
        /// Waits until both threads are at `step`, which counts from 1.
        fn meet(&self, step: u32) {
            self.0.fetch_add(1, Ordering::SeqCst);
            let mut spins = 0u32;
            while self.0.load(Ordering::SeqCst) < 2 * step {
                spins += 1;
                if spins.is_multiple_of(1_000) {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
        }
    }

    #[test]
    fn a_head_is_told_of_or_seen() {
        const ROUNDS: u32 = 20_000;
        for shadow in [None, Some(shadow())] {
            let doorbells = doorbells();
            let id = DoorbellId::cq(1);
            doorbells.open(id, 1 << 16, 0);
            if let Some(shadow) = &shadow {
                doorbells.start_shadow(shadow);
            }
            let steps = Steps::default();
            std::thread::scope(|scope| {
                let vcpu = scope.spawn(|| {
                    let ring = |value| {
                        steps.meet(2 * value - 1);
                        let tell = doorbells.ring(id, value).unwrap().tell;
                        steps.meet(2 * value);
                        tell
                    };
                    (1..=ROUNDS).map(ring).collect::<Vec<_>>()
                });
                let look = |value| {
                    steps.meet(2 * value - 1);
                    doorbells.get(id).unwrap().wait_for_room();
                    let seen = doorbells.value(id, shadow.as_deref()) == value;
                    steps.meet(2 * value);
                    seen
                };
                let seen: Vec<_> = (1..=ROUNDS).map(look).collect();
                let told = vcpu.join().unwrap();
                let lost = seen
                    .iter()
                    .zip(&told)
                    .filter(|(seen, told)| !**seen && !**told);
                assert_eq!(lost.count(), 0, "with shadow: {}", shadow.is_some());
            });
        }
    }

    /// Keeps one head of completion queue 1 until it is taken back or asked for.
    struct OneKept {
        doorbells: Mutex<Option<Arc<Doorbells>>>,
        head: AtomicU32,
    }

    impl OneKept {
        fn take(&self) {
            let doorbells = self.doorbells.lock().unwrap().clone().unwrap();
            let head = self.head.load(Ordering::Relaxed);
            doorbells.take_kept(DoorbellId::cq(1), head).unwrap();
        }
    }

    impl WriteSink for OneKept {
        fn written(&self, _: u32) {}
    }

    impl CoalescedWrites for OneKept {
        fn register(&self, _: u64, _: Arc<dyn WriteSink>) -> io::Result<()> {
            Ok(())
        }

        fn unregister(&self, _: u64) -> io::Result<()> {
            self.take();
            Ok(())
        }

        fn drain(&self) {
            self.take();
        }
    }

    #[test]
    fn shadow_buffers_start_with_a_head_that_is_kept() {
        let kept = Arc::new(OneKept {
            doorbells: Mutex::default(),
            head: AtomicU32::new(5),
        });
        let doorbells = Doorbells::new(4, Arc::new(NoEvents), Arc::clone(&kept) as _);
        let doorbells = Arc::new(doorbells);
        *kept.doorbells.lock().unwrap() = Some(Arc::clone(&doorbells));
        doorbells.bar_moved(Some(0));
        let id = DoorbellId::cq(1);
        doorbells.open(id, 8, 0);
        doorbells.coalesce(id, Arc::clone(&kept) as _);
        let shadow = shadow();
        doorbells.start_shadow(&shadow);
        assert_eq!(shadow.value(id), 5);
        // The two hold each other.
        *kept.doorbells.lock().unwrap() = None;
    }

    #[test]
    fn shadow_buffers_start_with_the_values_of_before() {
        let (doorbells, shadow, later) = (doorbells(), shadow(), shadow());
        let (sq, cq) = (DoorbellId::sq(2), DoorbellId::cq(2));
        doorbells.open(sq, 8, 0);
        doorbells.open(cq, 8, 0);
        doorbells.ring(sq, 5).unwrap();
        doorbells.ring(cq, 3).unwrap();
        doorbells.start_shadow(&shadow);
        let index = |shadow: &Shadow, id: DoorbellId| {
            shadow
                .event_indices
                .load_u32(id.offset(), Ordering::Relaxed)
        };
        assert_eq!((shadow.value(sq), shadow.value(cq)), (5, 3));
        assert_eq!((index(&shadow, sq), index(&shadow, cq)), (5, 3));
        // The guest goes on in memory; one value is nonsense.
        shadow.set_value(sq, 7);
        shadow.set_value(cq, 8);
        doorbells.start_shadow(&later);
        assert_eq!((later.value(sq), later.value(cq)), (7, 3));
        // A queue made later starts at 0, whatever is in the buffer.
        let new = DoorbellId::sq(3);
        later.set_value(new, 6);
        doorbells.open(new, 8, 0);
        assert_eq!((later.value(new), index(&later, new)), (0, 0));
        // A write that exits is in the buffer, too.
        doorbells.ring(new, 2).unwrap();
        assert_eq!(doorbells.value(new, Some(&later)), 2);
        doorbells.reset();
        assert!(doorbells.shadow().is_none());
    }
}
