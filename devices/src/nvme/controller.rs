//! The controller: what a subsystem, the PCI root and the main loop hold of it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::MsiGroup;
use crate::ioevent::{CoalescedWrites, IoEvents, WriteSink};
use crate::pci::config::ConfigSpace;
use crate::pci::msix::Msix;
use crate::ram::GuestRam;
use crate::subsystem::{
    AttachmentTable, ControllerLink, Link, Namespace, Subsystem, SubsystemError,
};

use super::admin::Admin;
use super::core::Core;
use super::doorbell::{DoorbellId, Doorbells, Side};
use super::io::{IoThreads, Message};
use super::prp::PAGE;
use super::registers::Registers;
use super::stats::QueueInfo;
use super::trace::{ADMIN_RECORDS, TracedController, Tracer};

/// Most I/O queue pairs of a controller: with the admin pair their doorbells fit a shadow page.
pub const MAX_IO_QUEUE_PAIRS: u16 = 128;
/// Largest MDTS: 2 MiB, which one vectored read or write can hold.
pub const MAX_MDTS: u8 = 9;

/// Longest time that an I/O thread looks for commands before it sleeps, in microseconds.
pub const MAX_POLL_US: u16 = 1000;

/// What a controller is to be.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// Name in the device tree, unique in the machine.
    pub id: String,
    /// Serial number, at most 20 ASCII characters.
    pub serial: String,
    /// Model number, at most 40 ASCII characters.
    pub model: String,
    /// Firmware revision, at most 8 ASCII characters.
    pub firmware: String,
    /// I/O queue pairs, 1 to [`MAX_IO_QUEUE_PAIRS`].
    pub max_ioqpairs: u16,
    /// Largest queue, zero-based (CAP.MQES), 1 to 65,535.
    pub mqes: u16,
    /// Largest data transfer as a power of two of 4 KiB, 1 to [`MAX_MDTS`].
    pub mdts: u8,
    /// How long I/O threads look for commands before they sleep in microseconds, 0 to `MAX_POLL_US`.
    pub poll_us: u16,
    /// Controller identifier; the lowest free one if not given.
    pub cntlid: Option<u16>,
}

/// What a controller is made with.
pub struct ControllerParts {
    /// Guest RAM.
    pub ram: GuestRam,
    /// The subsystem that it belongs to.
    pub subsystem: Arc<Subsystem>,
    /// The machine's I/O threads.
    pub io_threads: Arc<IoThreads>,
    /// One interrupt vector more than I/O queue pairs.
    pub msi: Arc<dyn MsiGroup>,
    /// Where doorbells become events.
    pub io_events: Arc<dyn IoEvents>,
    /// Where completion queue heads are kept.
    pub coalesced: Arc<dyn CoalescedWrites>,
}

impl std::fmt::Debug for ControllerParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ControllerParts({:?})", self.subsystem)
    }
}

/// Why a controller could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The subsystem refused it.
    #[error(transparent)]
    Subsystem(#[from] SubsystemError),
    /// A number is out of its range.
    #[error("{property}={value} is not valid: it must be {allowed}")]
    OutOfRange {
        /// The property.
        property: &'static str,
        /// Its value.
        value: u32,
        /// What is allowed.
        allowed: &'static str,
    },
    /// No file descriptor is left.
    #[error("no event for the controller: {0}")]
    Event(#[from] io::Error),
}

/// An NVMe controller.
pub struct Controller {
    config: ControllerConfig,
    link: Link,
    io_threads: Arc<IoThreads>,
    pub(super) config_space: Mutex<ConfigSpace>,
    registers: Mutex<Registers>,
    admin: Mutex<Admin>,
    changed: Mutex<Vec<u32>>,
    // Pulled: nothing the guest does reaches it.
    stopped: AtomicBool,
    // Whom to tell when nothing touches guest memory any more.
    quiet: Mutex<Option<EventFd>>,
    // The last field: whoever is told by `notify_closed` finds the CNTLID free, too.
    core: Arc<Core>,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Controller({})", self.config.id)
    }
}

impl Drop for Controller {
    /// Takes the controller's events away and has the I/O threads let go of its queues. What they
    /// cannot stop ends in silence.
    fn drop(&mut self) {
        self.core.doorbells.reset();
        self.core.end_events();
        // Commands that cannot be stopped keep their own namespace, not all.
        self.core.set_namespaces(Arc::default(), &[]);
        self.io_threads.send_all(|| Message::Reset {
            core: Arc::clone(&self.core),
        });
    }
}

impl ControllerLink for Controller {
    fn attachments_changed(&self, table: Arc<AttachmentTable>, changed: &[u32]) {
        self.core.set_namespaces(table, changed);
        self.note_changed(changed);
    }

    fn in_flight(&self, namespace: &Namespace) -> u64 {
        self.core.namespaces.in_flight_on(namespace)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ControllerConfig {
    fn check(&self) -> Result<(), ControllerError> {
        let out_of_range = |property, value, allowed| {
            Err(ControllerError::OutOfRange {
                property,
                value,
                allowed,
            })
        };
        if !(1..=MAX_IO_QUEUE_PAIRS).contains(&self.max_ioqpairs) {
            return out_of_range("max_ioqpairs", self.max_ioqpairs.into(), "1 to 128");
        }
        if self.mqes == 0 {
            return out_of_range("mqes", 0, "1 to 65535");
        }
        if !(1..=MAX_MDTS).contains(&self.mdts) {
            return out_of_range("mdts", self.mdts.into(), "1 to 9");
        }
        if self.poll_us > MAX_POLL_US {
            return out_of_range("poll_us", self.poll_us.into(), "0 to 1000");
        }
        Ok(())
    }
}

impl Controller {
    /// A controller that is linked to its subsystem and not plugged into PCI yet.
    ///
    /// # Errors
    /// A number out of its range, a subsystem that refuses it, or no file descriptor left.
    pub fn new(
        config: ControllerConfig,
        parts: ControllerParts,
    ) -> Result<Arc<Self>, ControllerError> {
        config.check()?;
        let doorbells = Doorbells::new(config.max_ioqpairs, parts.io_events, parts.coalesced);
        let core = Core::new(
            config.id.clone(),
            parts.ram,
            doorbells,
            Msix::new(config.max_ioqpairs + 1, parts.msi),
            PAGE << config.mdts,
            Duration::from_micros(config.poll_us.into()),
        )?;
        let link = parts.subsystem.link(&config.id, config.cntlid)?;
        let controller = Arc::new(Self {
            core: Arc::new(core),
            link,
            io_threads: parts.io_threads,
            config_space: Mutex::new(super::pci::config_space(config.max_ioqpairs + 1)),
            registers: Mutex::new(Registers::new(config.mqes)),
            admin: Mutex::new(Admin::new(config.max_ioqpairs)),
            changed: Mutex::default(),
            stopped: AtomicBool::new(false),
            quiet: Mutex::default(),
            config,
        });
        controller.io_threads.balance().add_user(&controller.core);
        controller.set_trace(controller.io_threads.tracer().as_ref());
        let observer: Arc<dyn ControllerLink> = Arc::clone(&controller) as _;
        controller.link.observe(&observer);
        Ok(controller)
    }

    /// Name in the device tree.
    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// What it was made from.
    pub fn config(&self) -> &ControllerConfig {
        &self.config
    }

    /// The subsystem that it belongs to.
    pub fn subsystem(&self) -> &Arc<Subsystem> {
        self.link.subsystem()
    }

    /// Its identifier in the subsystem.
    pub fn cntlid(&self) -> u16 {
        self.link.cntlid()
    }

    /// Readable when [`Controller::service`] has something to do.
    pub fn event(&self) -> &EventFd {
        self.core.wake_event()
    }

    /// Does the admin work there is. Called on the main thread when [`Controller::event`] is readable;
    /// never waits.
    pub fn service(&self) {
        // Nothing to read means that someone else was faster.
        let _ = self.core.wake_event().read();
        lock(&self.admin).service(self);
        self.tell_quiet();
    }

    /// Has admin commands recorded that are fetched from now on, or no more. I/O commands are up to the
    /// threads, see [`IoThreads::set_trace`].
    pub fn set_trace(&self, tracer: Option<&Arc<Tracer>>) {
        let recorder = tracer.and_then(|tracer| {
            let told = TracedController {
                id: self.config.id.clone(),
                cntlid: self.cntlid(),
                subsystem: self.subsystem().id().to_owned(),
            };
            tracer.add_controller(self.core.number, told);
            tracer.recorder(ADMIN_RECORDS)
        });
        lock(&self.admin).set_trace(recorder);
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The threads that do its I/O.
    pub fn io_threads(&self) -> &Arc<IoThreads> {
        &self.io_threads
    }

    pub(super) fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    pub(super) fn config_space(&self) -> MutexGuard<'_, ConfigSpace> {
        lock(&self.config_space)
    }

    /// Largest queue in entries.
    pub(super) fn max_entries(&self) -> u32 {
        u32::from(self.config.mqes) + 1
    }

    /// The guest reads which NSIDs above `after` are attached.
    pub(super) fn guest_looks(&self, after: u32) {
        let changed = self.core.guest_looks(after);
        if !changed.is_empty() {
            self.note_changed(&changed);
        }
    }

    fn note_changed(&self, changed: &[u32]) {
        lock(&self.changed).extend(changed);
        // Threads that sleep must let go of the old table.
        self.io_threads.wake_all();
        self.core.wake();
    }

    /// NSIDs that changed since the last call.
    pub(super) fn take_changed_namespaces(&self) -> Vec<u32> {
        std::mem::take(&mut *lock(&self.changed))
    }

    /// Has the kernel signal a queue's doorbell to its I/O thread, if the guest shadows doorbells:
    /// without the value in memory the event alone would not do. Without, nobody needs a completion
    /// queue's head at once.
    pub(super) fn add_doorbell_event(&self, id: DoorbellId, thread: usize) {
        if self.core.doorbells.shadow().is_none() {
            if id.side == Side::CqHead {
                let core = Arc::downgrade(&self.core);
                let head = Arc::new(KeptHead { core, id });
                self.core.doorbells.coalesce(id, head);
            }
            return;
        }
        let event = self.io_threads.thread(thread).doorbell_event();
        if let Err(error) = self.core.doorbells.add_event(id, event) {
            crate::guest_warn!("controller '{}': {id:?} stays an exit: {error}", self.id());
        }
    }

    /// Takes a guest's doorbell write on the vCPU's thread: stores the value, kicks the owner.
    pub(super) fn ring(&self, id: DoorbellId, value: u32) {
        match self.core.doorbells.ring(id, value) {
            Err(error) => self.core.doorbell_error(error.into()),
            Ok(rung) if !rung.tell => {}
            Ok(_) if id.qid == 0 => self.core.wake(),
            Ok(rung) => self.io_threads.thread(rung.owner).wake(),
        }
    }

    /// Stops at once and for good, as a function that is pulled: registers and configuration space
    /// read all ones and take no writes, no command is fetched, no interrupt raised. I/O in flight may
    /// still reach guest memory, completions included, until `quiet` is signalled.
    pub fn stop(&self, quiet: EventFd) {
        self.stopped.store(true, Ordering::SeqCst);
        self.function_level_reset();
        // Not before: whoever is in `service` would tell what was quiet until then.
        *lock(&self.quiet) = Some(quiet);
        self.core.wake();
    }

    /// Has `event` signalled when the last reference to the controller is dropped, and nothing of it
    /// is left on I/O threads: its vectors, events and files are free again. Only the first call
    /// counts.
    pub fn notify_closed(&self, event: EventFd) {
        self.core.notify_closed(event);
    }

    /// Whether [`Controller::stop`] was called.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    fn tell_quiet(&self) {
        if self.is_quiet()
            && let Some(quiet) = lock(&self.quiet).take()
        {
            // It fails only at 2^64 - 1 unread writes.
            let _ = quiet.write(1);
        }
    }

    /// Whether nothing of the controller touches guest memory: it is disabled, and was not asked for
    /// anything since.
    pub fn is_quiet(&self) -> bool {
        let admin = lock(&self.admin);
        admin.is_disabled() && !self.registers().is_reset_asked()
    }

    /// Ends commands in flight on a namespace that was removed or detached, as far as the storage lets
    /// go of them. They end as if their path was gone, so that another one is tried.
    pub fn abort_namespace(&self, namespace: &Arc<Namespace>) {
        self.io_threads.send_all(|| Message::AbortNamespace {
            core: Arc::clone(&self.core),
            namespace: Arc::downgrade(namespace),
        });
    }

    /// The controller as `info` shows it.
    pub fn info(&self) -> ControllerInfo {
        // So that they are counted.
        self.core.doorbells.take_all_kept();
        let admin = lock(&self.admin);
        let namespaces = self.core.table();
        ControllerInfo {
            id: self.config.id.clone(),
            subsystem: self.subsystem().id().to_owned(),
            cntlid: self.cntlid(),
            serial: self.config.serial.clone(),
            model: self.config.model.clone(),
            firmware: self.config.firmware.clone(),
            state: admin.controller_state(self),
            in_flight: self.core.namespaces.in_flight(),
            namespaces: namespaces
                .iter()
                .map(|namespace| namespace.nsid())
                .collect(),
            shadow_doorbells: self.core.doorbells.shadow().is_some(),
            ioeventfds: self.core.doorbells.event_count(),
            queues: admin.queue_info(self),
        }
    }
}

/// A completion queue's doorbell whose values are kept.
struct KeptHead {
    core: Weak<Core>,
    id: DoorbellId,
}

impl WriteSink for KeptHead {
    fn written(&self, value: u32) {
        if let Some(core) = self.core.upgrade()
            && let Err(error) = core.doorbells.take_kept(self.id, value)
        {
            core.doorbell_error(error.into());
        }
    }
}

/// What a controller is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControllerState {
    /// CC.EN is 0, and nothing of the guest's is in use.
    Disabled,
    /// CC.EN is 1, and CSTS.RDY soon.
    Starting,
    /// It takes commands.
    Ready,
    /// It waits for commands in flight to let go of guest memory, to be disabled.
    Resetting,
    /// As for a reset, to be shut down.
    ShuttingDown,
    /// Shut down by the guest, until its next reset.
    Shutdown,
    /// It could not be enabled (CSTS.CFS).
    Failed,
    /// Pulled by [`Controller::stop`]: it does nothing any more.
    Stopped,
}

/// A controller as `info` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct ControllerInfo {
    /// Name in the device tree.
    pub id: String,
    /// Name of its subsystem.
    pub subsystem: String,
    /// Its identifier in the subsystem.
    pub cntlid: u16,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// What it is doing.
    pub state: ControllerState,
    /// I/O commands fetched and not completed.
    pub in_flight: u64,
    /// NSIDs of the attached namespaces that the guest may use.
    pub namespaces: Vec<u32>,
    /// Whether the guest shadows its doorbells.
    pub shadow_doorbells: bool,
    /// Doorbells that the kernel turns into events.
    pub ioeventfds: usize,
    /// Its queues.
    pub queues: Vec<QueueInfo>,
}
