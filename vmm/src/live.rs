//! Devices that come and go while the machine runs.
//!
//! Everything here is on the main thread. What takes time (the guest letting go of a controller, the
//! last command on a namespace) is begun here and goes on when a file descriptor becomes readable;
//! each such wait has a limit.

mod announcements;
mod removal;
mod slots;
#[cfg(test)]
mod tests;

use std::cell::{Cell, Ref, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use devices::legacy::pci_hotplug::PciHotplug;
use devices::pci::root::bdf;
use devices::storage::ResizeError;
use devices::subsystem::Namespace;
use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

pub use self::announcements::Announcement;
pub use self::slots::SlotEvents;
use crate::control::Event;
use crate::control::command::{CommandError, ErrorClass};
use crate::event_loop::{EventLoop, EventSet, Watch};
use crate::grammar::format_size;
use crate::registry::{Object, Registry};
use crate::spec::{DeviceSpec, DriveSpec, Parsed};
use crate::waits::Waits;

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

    /// Calls `then` once, when `fd` is readable.
    fn once(
        &self,
        fd: &impl std::os::fd::AsRawFd,
        then: impl FnOnce(&Self) + 'static,
    ) -> io::Result<Watch> {
        let own = Rc::new(Cell::new(None));
        let (itself, mut then) = (Rc::clone(&own), Some(then));
        let watch = self.on(fd, move |live| {
            if let Some(watch) = itself.take() {
                live.events.remove(watch);
            }
            if let Some(then) = then.take() {
                then(live);
            }
        })?;
        own.set(Some(watch));
        Ok(watch)
    }

    /// Adds a device. A controller is told to the guest.
    ///
    /// # Errors
    /// As for `--device`; nothing is left of the device then.
    pub fn add(&self, command: &str, device: &Parsed<DeviceSpec>) -> Result<Value, CommandError> {
        let spec = &device.spec;
        let added = {
            let mut registry = self.registry.borrow_mut();
            registry.set_releasing(self.still_releasing());
            registry.add(spec)
        };
        let id = added
            .map_err(|error| CommandError::new(error.class(), format!("{command} {error}")))?;
        let registry = self.registry();
        let mut reply = json!({ "id": id, "driver": spec.driver() });
        match registry.get(&id) {
            Some(Object::Controller {
                controller, slot, ..
            }) => {
                self.tell_inserted(*slot);
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
        registry.drives_mut().insert(id, spec);
        Ok(reply)
    }

    /// Forgets the id of an image.
    ///
    /// # Errors
    /// There is no such drive.
    pub fn remove_drive(&self, id: &str) -> Result<Value, CommandError> {
        match self.registry.borrow_mut().drives_mut().remove(id) {
            Some(_) => Ok(json!({ "id": id })),
            None => {
                let why = format!("drive_del {id}: no drive has this id");
                Err(CommandError::new(ErrorClass::NotFound, why))
            }
        }
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
        // No size at all is refused below, whatever is wanted.
        if (1..now).contains(&size) && !shrink {
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
