//! Devices that come and go while the machine runs.
//!
//! Everything here is on the main thread. What takes time (the guest letting go of a controller, the
//! last command on a namespace) is begun here and goes on when a file descriptor becomes readable;
//! each such wait has a limit.

use std::cell::{Cell, Ref, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use devices::legacy::pci_hotplug::{HotplugSink, PciHotplug};
use devices::nvme::Controller;
use devices::pci::root::bdf;
use devices::storage::ResizeError;
use devices::subsystem::{Namespace, Subsystem};
use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use crate::control::command::{CommandError, ErrorClass};
use crate::control::{Event, Ticket};
use crate::event_loop::{EventLoop, EventSet, Watch};
use crate::grammar::format_size;
use crate::registry::{Leaving, Object, Registry};
use crate::spec::{DeviceSpec, DriveSpec, Parsed};
use crate::waits::{Condition, Ended, Wait, Waits};

/// How long commands in flight may take before a removal aborts or overtakes them.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// What the guest did with slots: masks, as it may do so as often as it likes.
pub struct SlotEvents {
    ejected: AtomicU32,
    refused: AtomicU32,
    event: EventFd,
}

impl SlotEvents {
    /// Nothing yet.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ejected: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    fn note(&self, mask: &AtomicU32, slot: u8) {
        mask.fetch_or(1u32.checked_shl(slot.into()).unwrap_or(0), Ordering::AcqRel);
        // It fails only at 2^64 - 1 unread writes.
        let _ = self.event.write(1);
    }
}

impl HotplugSink for SlotEvents {
    fn ejected(&self, slot: u8) {
        self.note(&self.ejected, slot);
    }

    fn refused(&self, slot: u8, _status: u32) {
        self.note(&self.refused, slot);
    }
}

fn slots_in(mask: &AtomicU32) -> impl Iterator<Item = u8> + use<> {
    let mask = mask.swap(0, Ordering::AcqRel);
    (0..32).filter(move |slot| mask >> slot & 1 != 0)
}

/// How many ids of deleted devices are remembered, for those who wait for them too late.
const REMEMBERED: usize = 256;

/// What control clients are to hear.
#[derive(Debug)]
pub enum Announcement {
    /// All of them.
    Event(Event),
    /// One, whose command has waited.
    Reply(Ticket, Result<Value, CommandError>),
}

/// The devices of a running machine.
pub struct Live {
    registry: RefCell<Registry>,
    hotplug: Arc<PciHotplug>,
    slots: Arc<SlotEvents>,
    /// Slots whose controller was pulled and whose guest has not said `_EJ0` yet: what it says is
    /// about that controller, not about a later one.
    releasing: Cell<u32>,
    events: Rc<EventLoop>,
    announcements: RefCell<Vec<Announcement>>,
    announced: EventFd,
    waits: RefCell<Waits>,
    /// Ids of the devices that were deleted last.
    deleted: RefCell<VecDeque<String>>,
    me: Weak<Self>,
}

impl Live {
    /// Takes the devices over once the machine is made.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn new(
        registry: Registry,
        hotplug: Arc<PciHotplug>,
        slots: Arc<SlotEvents>,
        events: Rc<EventLoop>,
    ) -> io::Result<Rc<Self>> {
        let announced = EventFd::new(EFD_NONBLOCK)?;
        let live = Rc::new_cyclic(|me| Self {
            registry: RefCell::new(registry),
            hotplug,
            slots,
            releasing: Cell::new(0),
            events,
            announcements: RefCell::default(),
            announced,
            waits: RefCell::default(),
            deleted: RefCell::default(),
            me: me.clone(),
        });
        live.on(&live.slots.event, |live| {
            // Nothing to read means that it was read with an earlier event.
            let _ = live.slots.event.read();
            live.slots_changed();
        })?;
        Ok(live)
    }

    /// The devices as they are.
    pub fn registry(&self) -> Ref<'_, Registry> {
        self.registry.borrow()
    }

    /// Readable while [`Live::take_announcements`] has something.
    pub fn announced(&self) -> &EventFd {
        &self.announced
    }

    /// What control clients are to hear since the last call, in order.
    pub fn take_announcements(&self) -> Vec<Announcement> {
        let _ = self.announced.read();
        std::mem::take(&mut *self.announcements.borrow_mut())
    }

    /// Tells all clients, and answers those that waited for it.
    pub fn announce(&self, event: Event) {
        let ended = self.waits.borrow_mut().happened(&event);
        self.say(Announcement::Event(event));
        self.answer(ended);
    }

    /// Answers all who still wait: the run is over.
    pub fn end_waits(&self) {
        let ended = self.waits.borrow_mut().end();
        self.answer(ended);
    }

    fn say(&self, announcement: Announcement) {
        self.announcements.borrow_mut().push(announcement);
        // It fails only at 2^64 - 1 unread writes.
        let _ = self.announced.write(1);
    }

    fn answer(&self, ended: impl IntoIterator<Item = Ended>) {
        for (wait, result) in ended {
            self.events.remove(wait.timer);
            self.say(Announcement::Reply(wait.ticket, result));
        }
    }

    /// Answers `command` when `condition` holds, or when `limit` is over.
    ///
    /// # Errors
    /// Too many commands wait, or no file descriptor is left.
    pub fn later(
        &self,
        command: String,
        condition: Condition,
        limit: Duration,
    ) -> Result<Ticket, CommandError> {
        let ticket = self.waits.borrow_mut().ticket(&command)?;
        let over = timer(limit).and_then(|timer| {
            self.on(&timer, move |live| {
                let late = live.waits.borrow_mut().late(ticket);
                live.answer(late);
            })
        });
        let timer = over.map_err(|error| {
            CommandError::new(ErrorClass::Failed, format!("{command}: {error}"))
        })?;
        self.waits.borrow_mut().add(Wait {
            ticket,
            command,
            condition,
            limit,
            timer,
        });
        Ok(ticket)
    }

    /// What `wait` answers at once: `None` if it has to wait for `event` about `id`.
    ///
    /// # Errors
    /// Its deletion is waited for, and there never was such a device.
    pub fn already(&self, event: &str, id: Option<&str>) -> Result<Option<Value>, CommandError> {
        let Some(id) = id else { return Ok(None) };
        let registry = self.registry();
        let there = registry.get(id).is_some();
        let known = there || registry.leaving(id).is_some();
        let happened = match event {
            "device_added" => there,
            "device_deleted" if known => false,
            "device_deleted" if self.deleted.borrow().iter().any(|gone| gone == id) => true,
            "device_deleted" => {
                let why = format!("wait {event} {id}: no device has this id, or had it lately");
                return Err(CommandError::new(ErrorClass::NotFound, why));
            }
            _ => false,
        };
        Ok(happened.then(|| json!({ "event": event, "id": id })))
    }

    /// Calls `handler` whenever `fd` is readable, for as long as the devices live.
    fn on(
        &self,
        fd: &impl std::os::fd::AsRawFd,
        mut handler: impl FnMut(&Self) + 'static,
    ) -> io::Result<Watch> {
        let me = self.me.clone();
        self.events.add(fd, EventSet::IN, move |_| {
            if let Some(live) = me.upgrade() {
                handler(&live);
            }
        })
    }

    /// Adds a device. A controller is told to the guest.
    ///
    /// # Errors
    /// As for `--device`; nothing is left of the device then.
    pub fn add(&self, device: &Parsed<DeviceSpec>) -> Result<Value, CommandError> {
        let spec = &device.spec;
        let added = {
            let mut registry = self.registry.borrow_mut();
            registry.set_releasing(self.still_releasing());
            registry.add(spec)
        };
        let id = added
            .map_err(|error| CommandError::new(error.class(), format!("device_add {error}")))?;
        let registry = self.registry();
        let mut reply = json!({ "id": id, "driver": spec.driver() });
        match registry.get(&id) {
            Some(Object::Controller {
                controller, slot, ..
            }) => {
                self.hotplug.insert(*slot);
                reply["addr"] = bdf(*slot).into();
                reply["cntlid"] = controller.cntlid().into();
            }
            Some(Object::Namespace {
                namespace,
                subsystem,
            }) => {
                reply["nsid"] = namespace.nsid().into();
                reply["subsys"] = subsystem.id().into();
            }
            _ => {}
        }
        warn(&mut reply, &device.ignored);
        self.announce(
            Event::new("device_added")
                .with("id", id)
                .with("driver", spec.driver()),
        );
        Ok(reply)
    }

    /// Makes an image known by an id.
    ///
    /// # Errors
    /// The id is taken.
    pub fn add_drive(&self, drive: Parsed<DriveSpec>) -> Result<Value, CommandError> {
        let Parsed { spec, ignored } = drive;
        let id = spec.id.clone();
        let mut registry = self.registry.borrow_mut();
        if registry.drives().contains_key(&id) {
            let why = format!("drive_add id={id}: is in use by another drive: choose another id");
            return Err(CommandError::new(ErrorClass::Exists, why));
        }
        let mut reply = json!({ "id": id });
        warn(&mut reply, &ignored);
        registry.drives().insert(id, spec);
        Ok(reply)
    }

    /// Forgets the id of an image.
    ///
    /// # Errors
    /// There is no such drive.
    pub fn remove_drive(&self, id: &str) -> Result<Value, CommandError> {
        match self.registry.borrow_mut().drives().remove(id) {
            Some(_) => Ok(json!({ "id": id })),
            None => {
                let why = format!("drive_del {id}: no drive has this id");
                Err(CommandError::new(ErrorClass::NotFound, why))
            }
        }
    }

    /// As [`Live::remove`], for what QEMU's users know as objects.
    ///
    /// # Errors
    /// It is a controller, or as there.
    pub fn remove_object(&self, id: &str) -> Result<Value, CommandError> {
        if let Some(Object::Controller { .. }) = self.registry().get(id) {
            let why = format!("object_del {id}: a controller is a PCI device; use device_del");
            return Err(CommandError::new(ErrorClass::Argument, why));
        }
        self.remove(id, false)
    }

    /// Removes a device, or begins to. The event `device_deleted` says when it is gone.
    ///
    /// # Errors
    /// No such device, or it is in use.
    pub fn remove(&self, id: &str, surprise: bool) -> Result<Value, CommandError> {
        let refused =
            |class, why: String| CommandError::new(class, format!("device_del {id}: {why}"));
        let leaving = self.registry().leaving(id);
        match leaving {
            Some(Leaving::Ending) => {
                let why = "its removal is under way: wait for its device_deleted";
                return Err(refused(ErrorClass::InUse, why.into()));
            }
            Some(Leaving::Asked) if !surprise => return Ok(self.ask_again(id)),
            Some(Leaving::Asked) | None => {}
        }
        let found = self.registry().get(id).cloned();
        let state = match found {
            None => {
                return Err(refused(
                    ErrorClass::NotFound,
                    "no device has this id".into(),
                ));
            }
            Some(Object::Subsystem(subsystem)) => {
                let inside = self.registry().inside(&subsystem);
                if !inside.is_empty() {
                    let why = format!("in use by {}: remove these first", inside.join(", "));
                    return Err(refused(ErrorClass::InUse, why));
                }
                self.gone(id);
                "deleted"
            }
            Some(Object::Namespace {
                namespace,
                subsystem,
            }) => {
                let begun = self.remove_namespace(id, namespace, &subsystem);
                begun.map_err(|error| refused(ErrorClass::Failed, error.to_string()))?;
                "requested"
            }
            Some(Object::Controller {
                controller, slot, ..
            }) => {
                if surprise {
                    let begun = self.pull(id, &controller, slot);
                    begun.map_err(|error| refused(ErrorClass::Failed, error.to_string()))?;
                } else {
                    let mut registry = self.registry.borrow_mut();
                    registry.set_leaving(id, Leaving::Asked);
                    self.hotplug.ask_removal(slot);
                }
                "requested"
            }
        };
        Ok(json!({ "id": id, "state": state }))
    }

    /// A second request for a controller: the first may have come before the guest could hear it.
    fn ask_again(&self, id: &str) -> Value {
        if let Some(slot) = self.registry().slot(id)
            && self.hotplug.removal_unread(slot)
        {
            self.hotplug.ask_removal(slot);
        }
        json!({ "id": id, "state": "requested" })
    }

    /// Slots that the guest has in hand. One whose request it never read is free: the next
    /// controller's arrival takes the request back.
    fn still_releasing(&self) -> u32 {
        let unread = |slot: &u8| self.hotplug.removal_unread(*slot);
        let unread: u32 = (1..32).filter(unread).map(|slot| 1 << slot).sum();
        self.releasing.get() & !unread
    }

    /// Takes a namespace off its bus; it is gone when its last command is.
    fn remove_namespace(
        &self,
        id: &str,
        namespace: Arc<Namespace>,
        subsystem: &Arc<Subsystem>,
    ) -> io::Result<()> {
        let closed = EventFd::new(EFD_NONBLOCK)?;
        let deadline = timer(DRAIN_LIMIT)?;
        namespace.notify_closed(closed.try_clone()?);
        {
            let mut registry = self.registry.borrow_mut();
            registry.take(id);
            registry.set_leaving(id, Leaving::Ending);
        }
        subsystem.remove_namespace(namespace.nsid());
        let weak = Arc::downgrade(&namespace);
        drop(namespace);
        let watches: Rc<RefCell<Vec<Watch>>> = Rc::default();
        let late = {
            let (subsystem, id) = (Arc::clone(subsystem), id.to_owned());
            self.on(&deadline, move |live| {
                let Some(namespace) = weak.upgrade() else {
                    return;
                };
                tracing::warn!("device_del {id}: aborting the commands that are still in flight");
                for controller in live.registry().controllers_of(&subsystem) {
                    controller.abort_namespace(&namespace);
                }
            })?
        };
        let gone = {
            let (watches, id) = (Rc::clone(&watches), id.to_owned());
            self.on(&closed, move |live| {
                watches
                    .take()
                    .into_iter()
                    .for_each(|watch| live.events.remove(watch));
                live.gone(&id);
            })?
        };
        watches.borrow_mut().extend([late, gone]);
        Ok(())
    }

    /// Surprise removal: DMA and interrupts stop, then nothing answers, then the guest is told.
    fn pull(&self, id: &str, controller: &Arc<Controller>, slot: u8) -> io::Result<()> {
        let quiet = EventFd::new(EFD_NONBLOCK)?;
        let deadline = timer(DRAIN_LIMIT)?;
        self.registry.borrow_mut().set_leaving(id, Leaving::Ending);
        let watches: Rc<RefCell<Vec<Watch>>> = Rc::default();
        let finish = |watches: &Rc<RefCell<Vec<Watch>>>| {
            let (watches, id) = (Rc::clone(watches), id.to_owned());
            move |live: &Self| {
                watches
                    .take()
                    .into_iter()
                    .for_each(|watch| live.events.remove(watch));
                live.unplug(&id, slot);
                // The guest finds that nothing answers, and lets go.
                live.releasing.set(live.releasing.get() | 1 << slot);
                live.hotplug.ask_removal(slot);
            }
        };
        let ended = self.on(&quiet, finish(&watches))?;
        let late = self.on(&deadline, finish(&watches))?;
        watches.borrow_mut().extend([ended, late]);
        controller.stop(quiet);
        Ok(())
    }

    fn slots_changed(&self) {
        for slot in slots_in(&self.slots.refused) {
            let id = self.registry().in_slot(slot);
            if let Some(id) = id
                && self.registry.borrow_mut().end_leaving(&id)
            {
                self.announce(Event::new("device_del_refused").with("id", id));
            }
        }
        // The guest may also let go of a controller by itself.
        for slot in slots_in(&self.slots.ejected) {
            let pulled = self.releasing.get();
            self.releasing.set(pulled & !(1 << slot));
            if pulled >> slot & 1 != 0 {
                continue;
            }
            let id = self.registry().in_slot(slot);
            if let Some(id) = id {
                self.unplug(&id, slot);
            }
        }
    }

    /// Takes a controller out of its slot. Its namespaces stay.
    fn unplug(&self, id: &str, slot: u8) {
        if self.registry().slot(id) == Some(slot) {
            self.registry().pci().remove(slot);
            self.gone(id);
        }
    }

    /// The id can be used again.
    fn gone(&self, id: &str) {
        {
            let mut registry = self.registry.borrow_mut();
            registry.take(id);
            registry.end_leaving(id);
        }
        self.remember(id);
        self.announce(Event::new("device_deleted").with("id", id));
    }

    /// Has every subsystem look at its images' sizes again, and tells of those that changed.
    pub fn refresh_sizes(&self) {
        let changed = self.registry().refresh_sizes();
        changed.iter().for_each(|namespace| self.resized(namespace));
    }

    fn resized(&self, namespace: &Namespace) {
        let event = Event::new("ns_changed").with("id", namespace.id());
        self.announce(event.with("size", namespace.bytes()));
    }

    /// Changes the size of a namespace and of its image. The guest and all clients are told.
    ///
    /// # Errors
    /// The id is no namespace's, or the namespace cannot have this size.
    pub fn resize(&self, id: &str, size: u64, shrink: bool) -> Result<Value, CommandError> {
        let refused =
            |class, why: String| CommandError::new(class, format!("ns_resize {id}: {why}"));
        let (namespace, subsystem) = match self.registry().get(id) {
            Some(Object::Namespace {
                namespace,
                subsystem,
            }) => (Arc::clone(namespace), Arc::clone(subsystem)),
            Some(_) => {
                let why = "this is no namespace".into();
                return Err(refused(ErrorClass::Argument, why));
            }
            None => {
                let why = "no device has this id".into();
                return Err(refused(ErrorClass::NotFound, why));
            }
        };
        let now = namespace.bytes();
        if size < now && !shrink {
            let why = format!(
                "{} is less than the {} that it has, and what is behind would be lost; \
                 if that is wanted: ns_resize {id} {size} shrink",
                format_size(size),
                format_size(now)
            );
            return Err(refused(ErrorClass::Argument, why));
        }
        subsystem
            .resize(namespace.nsid(), size)
            .map_err(|error| match error {
                ResizeError::Host(_) => refused(ErrorClass::Failed, error.to_string()),
                _ => refused(ErrorClass::Argument, error.to_string()),
            })?;
        if namespace.bytes() != now {
            self.resized(&namespace);
        }
        Ok(json!({ "id": id, "nsid": namespace.nsid(), "size": namespace.bytes() }))
    }

    fn remember(&self, id: &str) {
        let mut deleted = self.deleted.borrow_mut();
        deleted.retain(|gone| gone != id);
        if deleted.len() == REMEMBERED {
            deleted.pop_front();
        }
        deleted.push_back(id.to_owned());
    }

    /// Attaches a namespace to a controller, or detaches it.
    ///
    /// # Errors
    /// The ids are not of a namespace and a controller of one subsystem, or nothing would change.
    pub fn set_attached(
        &self,
        command: &str,
        namespace: &str,
        controller: &str,
        attached: bool,
    ) -> Result<Value, CommandError> {
        let refused = |class, why: String| CommandError::new(class, format!("{command} {why}"));
        let registry = self.registry();
        let found = match (registry.get(namespace), registry.get(controller)) {
            (
                Some(Object::Namespace {
                    namespace,
                    subsystem,
                }),
                Some(Object::Controller { .. }),
            ) => Ok((namespace.nsid(), subsystem)),
            (Some(Object::Namespace { .. }), None) => {
                Err((ErrorClass::NotFound, controller, "no device has this id"))
            }
            (None, _) => Err((ErrorClass::NotFound, namespace, "no device has this id")),
            (Some(Object::Namespace { .. }), _) => {
                Err((ErrorClass::Argument, controller, "this is no controller"))
            }
            (Some(_), _) => Err((ErrorClass::Argument, namespace, "this is no namespace")),
        };
        let (nsid, subsystem) =
            found.map_err(|(class, id, why)| refused(class, format!("{id}: {why}")))?;
        let done = if attached {
            subsystem.attach(nsid, controller)
        } else {
            subsystem.detach(nsid, controller)
        };
        done.map_err(|error| refused(ErrorClass::Argument, format!("{namespace}: {error}")))?;
        let attached_to = subsystem.attached_to(nsid);
        drop(registry);
        self.announce(
            Event::new("ns_changed")
                .with("id", namespace)
                .with("controller", controller),
        );
        Ok(json!({ "id": namespace, "nsid": nsid, "attached": attached_to }))
    }
}

/// Adds to a reply what of the command was left out.
fn warn(reply: &mut Value, ignored: &[String]) {
    if !ignored.is_empty() {
        reply["warnings"] = ignored.into();
    }
}

fn timer(after: Duration) -> io::Result<TimerFd> {
    let mut timer = TimerFd::new()?;
    timer.reset(after, None)?;
    Ok(timer)
}
