//! What a controller's registers, admin queue and I/O threads share.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::closed::Closed;
use crate::pci::msix::Msix;
use crate::ram::GuestRam;
use crate::subsystem::AttachmentTable;

use super::attached::Attached;
use super::coalescing::Settings;
use super::doorbell::{Doorbells, InvalidDoorbell};
use super::group::Group;
use super::snapshots::Tables;
use super::spec::Arbitration;

/// What an I/O thread tells the admin queue's owner.
#[derive(Debug)]
pub enum Event {
    /// A submission queue has no command left and is gone.
    SqDeleted {
        /// Its identifier.
        sqid: u16,
    },
    /// A completion queue is gone.
    CqDeleted {
        /// Its identifier.
        cqid: u16,
    },
    /// An Abort command was tried.
    AbortTried {
        /// Identifier of the Abort command.
        cid: u16,
        /// Whether the command to abort was found and stopped.
        aborted: bool,
    },
    /// A completion queue with its submission queues is served by no thread, and has nothing in flight:
    /// it is to move.
    CqGivenUp {
        /// The queues.
        group: Box<Group>,
    },
    /// A completion queue that was to move stays: it has commands in flight for too long.
    CqKept {
        /// Its identifier.
        cqid: u16,
    },
    /// An I/O thread has no queue of the controller left and touches no guest memory for it.
    Quiesced {
        /// Index of the I/O thread.
        thread: usize,
    },
}

/// Errors that guests can cause without bound: kept as bits, so that they take no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoorbellError {
    /// A doorbell of no queue was written.
    Register = 1,
    /// A doorbell was written with no index into its queue.
    Value = 2,
}

/// Controllers so far.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// The PCI command register lets the function reach memory.
const BUS_MASTER: u32 = 1;
/// A function-level reset is going on.
const HALTED: u32 = 2;

/// The shared part of a controller.
pub struct Core {
    /// Name in the device tree.
    pub id: String,
    /// For traces: no other controller of the process has it, however soon it gets the same name.
    pub number: u32,
    /// Guest RAM.
    pub ram: GuestRam,
    /// Doorbells.
    pub doorbells: Doorbells,
    /// Interrupt vectors.
    pub msix: Msix,
    /// Attached namespaces.
    pub namespaces: Arc<Tables>,
    /// Longest data transfer of a command in bytes.
    pub max_transfer: u64,
    /// How long an I/O thread looks for commands before it sleeps.
    pub poll: Duration,
    /// Interrupt coalescing.
    pub coalescing: Settings,
    // Commands fetched from one submission queue before the next has its turn.
    burst: AtomicU32,
    // [`BUS_MASTER`] and [`HALTED`].
    access: AtomicU32,
    // The guest turned the volatile write cache off.
    write_through: AtomicBool,
    attached: Mutex<Attached>,
    // None once there is no owner any more.
    events: Mutex<Option<Vec<Event>>>,
    doorbell_errors: AtomicU32,
    wake: EventFd,
    // The last field: it is dropped behind all that a controller holds of the host.
    closed: Closed,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Core({})", self.id)
    }
}

impl Core {
    /// The shared part of a controller that no guest has seen yet.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new(
        id: String,
        ram: GuestRam,
        doorbells: Doorbells,
        msix: Msix,
        max_transfer: u64,
        poll: Duration,
    ) -> std::io::Result<Self> {
        Ok(Self {
            coalescing: Settings::new(msix.vectors()),
            burst: AtomicU32::new(u32::MAX),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            id,
            ram,
            doorbells,
            msix,
            namespaces: Arc::default(),
            max_transfer,
            poll,
            access: AtomicU32::new(0),
            write_through: AtomicBool::new(false),
            attached: Mutex::default(),
            events: Mutex::new(Some(Vec::new())),
            doorbell_errors: AtomicU32::new(0),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            closed: Closed::default(),
        })
    }

    /// Has `event` signalled when the controller and its last command in flight are gone.
    pub fn notify_closed(&self, event: EventFd) {
        self.closed.notify(event);
    }

    /// Readable when the admin queue's owner has something to do.
    pub fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    /// Has the admin queue's owner look.
    pub fn wake(&self) {
        // It fails only at 2^64 - 1 unread writes.
        let _ = self.wake.write(1);
    }

    /// Tells the admin queue's owner, if there still is one.
    pub fn post(&self, event: Event) {
        if let Some(events) = &mut *self.lock_events() {
            events.push(event);
        } else {
            return;
        }
        self.wake();
    }

    /// What was told since the last call.
    pub fn take_events(&self) -> Vec<Event> {
        let mut events = self.lock_events();
        events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The admin queue's owner goes: nobody takes events any more. A queue in one of them would hold
    /// this for ever.
    pub fn end_events(&self) {
        let left = self.lock_events().take();
        drop(left);
    }

    fn lock_events(&self) -> std::sync::MutexGuard<'_, Option<Vec<Event>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the attached namespaces of now, of which `changed` came, went or changed.
    pub fn set_namespaces(&self, table: Arc<AttachmentTable>, changed: &[u32]) {
        let mut attached = self.attached();
        attached.set(table, changed);
        self.namespaces.publish(attached.visible());
    }

    /// The namespaces that the guest may use, for what it is told of them. I/O threads go by no older
    /// table from then on: publishing one takes two steps, which the lock keeps together.
    pub fn table(&self) -> Arc<AttachmentTable> {
        let _attached = self.attached();
        Arc::clone(&self.namespaces.load())
    }

    /// The guest enabled the controller.
    pub fn begin_use(&self) {
        self.attached().begin_use();
    }

    /// The guest reads which NSIDs above `after` are attached. What is told are NSIDs that are worth
    /// another look.
    pub fn guest_looks(&self, after: u32) -> Vec<u32> {
        let mut attached = self.attached();
        let changed = attached.guest_looks(after);
        if !changed.is_empty() {
            self.namespaces.publish(attached.visible());
        }
        changed
    }

    /// Whether a namespace that is not attached was, as far as the guest can know. Commands for it
    /// took a path that is gone; another one may be there.
    pub fn has_departed(&self, nsid: u32) -> bool {
        self.attached().has_departed(nsid)
    }

    fn attached(&self) -> std::sync::MutexGuard<'_, Attached> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an invalid doorbell write.
    pub fn doorbell_error(&self, error: DoorbellError) {
        let bit = error as u32;
        if self.doorbell_errors.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            self.wake();
        }
    }

    /// Invalid doorbell writes since the last call.
    pub fn take_doorbell_errors(&self) -> impl Iterator<Item = DoorbellError> {
        let bits = self.doorbell_errors.swap(0, Ordering::Relaxed);
        [DoorbellError::Register, DoorbellError::Value]
            .into_iter()
            .filter(move |error| bits & *error as u32 != 0)
    }

    /// Whether the function may reach guest memory: the PCI command register says so, and no
    /// function-level reset is going on.
    pub fn bus_master(&self) -> bool {
        self.access.load(Ordering::Acquire) == BUS_MASTER
    }

    /// The guest changed the bus master bit.
    pub fn set_bus_master(&self, on: bool) {
        if on {
            self.access.fetch_or(BUS_MASTER, Ordering::Release);
        } else {
            self.access.fetch_and(!BUS_MASTER, Ordering::Release);
        }
    }

    /// A function-level reset began: nothing of before is fetched or told, even if the guest sets bus
    /// master before the queues are gone.
    pub fn halt(&self) {
        self.access.store(HALTED, Ordering::Release);
    }

    /// The queues are gone.
    pub fn end_halt(&self) {
        self.access.fetch_and(!HALTED, Ordering::Release);
    }

    /// Whether every write has to be on stable media when it completes (Volatile Write Cache off).
    pub fn write_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed)
    }

    /// The guest turned the volatile write cache on or off.
    pub fn set_write_through(&self, on: bool) {
        self.write_through.store(on, Ordering::Relaxed);
    }

    /// How many commands are fetched from one submission queue before the next has its turn.
    pub fn burst(&self) -> usize {
        self.burst.load(Ordering::Relaxed) as usize
    }

    /// The guest changed the arbitration burst.
    pub fn set_arbitration(&self, arbitration: Arbitration) {
        let burst = match arbitration.ab() {
            Arbitration::NO_LIMIT => u32::MAX,
            power => 1 << power,
        };
        self.burst.store(burst, Ordering::Relaxed);
    }
}

impl From<InvalidDoorbell> for DoorbellError {
    fn from(error: InvalidDoorbell) -> Self {
        match error {
            InvalidDoorbell::Register => Self::Register,
            InvalidDoorbell::Value => Self::Value,
        }
    }
}

/// Whether two handles are of the same controller.
pub fn same(a: &Arc<Core>, b: &Arc<Core>) -> bool {
    Arc::ptr_eq(a, b)
}
