//! How devices go: at once, when their last command ended, or when the guest lets go.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use devices::nvme::Controller;
use devices::subsystem::{Namespace, Subsystem};
use serde_json::{Value, json};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::slots::slots_in;
use super::{Live, timer};
use crate::control::Event;
use crate::control::command::{CommandError, ErrorClass};
use crate::event_loop::Watch;
use crate::registry::{Leaving, Object};

/// How long commands in flight may take before a removal aborts or overtakes them.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

impl Live {
    /// As [`Live::remove`], for what QEMU's users know as objects.
    ///
    /// # Errors
    /// It is a controller, or as there.
    pub fn remove_object(&self, id: &str) -> Result<Value, CommandError> {
        if let Some(Object::Controller { .. }) = self.registry().get(id) {
            let why = format!("object_del {id}: a controller is a PCI device; use device_del");
            return Err(CommandError::new(ErrorClass::Argument, why));
        }
        self.remove_by("object_del", id, false)
    }

    /// Removes a device, or begins to. The event `device_deleted` says when it is gone.
    ///
    /// # Errors
    /// No such device, or it is in use.
    pub fn remove(&self, id: &str, surprise: bool) -> Result<Value, CommandError> {
        self.remove_by("device_del", id, surprise)
    }

    fn remove_by(&self, command: &str, id: &str, surprise: bool) -> Result<Value, CommandError> {
        let refused =
            |class, why: String| CommandError::new(class, format!("{command} {id}: {why}"));
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
                let begun = self.remove_namespace(id, &namespace, &subsystem);
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

    /// Takes a namespace off its bus; it is gone when its last command is.
    fn remove_namespace(
        &self,
        id: &str,
        namespace: &Arc<Namespace>,
        subsystem: &Arc<Subsystem>,
    ) -> io::Result<()> {
        let closed = EventFd::new(EFD_NONBLOCK)?;
        let teller = closed.try_clone()?;
        let deadline = timer(DRAIN_LIMIT)?;
        let weak = Arc::downgrade(namespace);
        let late = {
            let (subsystem, id) = (Arc::clone(subsystem), id.to_owned());
            self.once(&deadline, move |live| {
                let Some(namespace) = weak.upgrade() else {
                    return;
                };
                tracing::warn!("device_del {id}: aborting the commands that are still in flight");
                for controller in live.registry().controllers_of(&subsystem) {
                    controller.abort_namespace(&namespace);
                }
            })?
        };
        let gone = id.to_owned();
        self.once(&closed, move |live| {
            live.events.remove(late);
            live.gone(&gone);
        })
        .inspect_err(|_| self.events.remove(late))?;
        // Nothing fails from here on: only the first call counts.
        namespace.notify_closed(teller);
        {
            let mut registry = self.registry.borrow_mut();
            registry.set_leaving(id, Leaving::Ending);
            registry.take(id);
        }
        subsystem.remove_namespace(namespace.nsid());
        Ok(())
    }

    /// Surprise removal: nothing answers any more, DMA and interrupts stop, then the guest is told.
    fn pull(&self, id: &str, controller: &Arc<Controller>, slot: u8) -> io::Result<()> {
        let quiet = EventFd::new(EFD_NONBLOCK)?;
        let pulled = id.to_owned();
        self.within_limit(&quiet, move |live| {
            live.unplug(&pulled, slot);
            // The guest finds that nothing answers, and lets go; it may have by itself.
            if live.releasing.get() >> slot & 1 != 0 {
                live.hotplug.ask_removal(slot);
            }
        })?;
        self.registry.borrow_mut().set_leaving(id, Leaving::Ending);
        self.releasing.set(self.releasing.get() | 1 << slot);
        controller.stop(quiet);
        Ok(())
    }

    pub(super) fn slots_changed(&self) {
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
            let id = self.registry().in_slot(slot);
            match id {
                // Ejecting the last controller has hidden from the guest that there is another one.
                Some(_) if pulled >> slot & 1 != 0 => self.tell_inserted(slot),
                Some(id) => self.unplug(&id, slot),
                None => {}
            }
        }
    }

    /// Calls `then` when `event` is readable, or when commands in flight have had their time.
    pub(super) fn within_limit(
        &self,
        event: &EventFd,
        then: impl FnOnce(&Self) + 'static,
    ) -> io::Result<()> {
        let deadline = timer(DRAIN_LIMIT)?;
        let watches: Rc<RefCell<Vec<Watch>>> = Rc::default();
        let then = Rc::new(Cell::new(Some(then)));
        let first = || {
            let (watches, then) = (Rc::clone(&watches), Rc::clone(&then));
            move |live: &Self| {
                let watches = watches.take().into_iter();
                watches.for_each(|watch| live.events.remove(watch));
                if let Some(then) = then.take() {
                    then(live);
                }
            }
        };
        let ended = self.on(event, first())?;
        watches.borrow_mut().push(ended);
        let late = self
            .on(&deadline, first())
            .inspect_err(|_| self.events.remove(ended))?;
        watches.borrow_mut().push(late);
        Ok(())
    }

    /// Takes a controller out of its slot. Its namespaces stay. It is gone when nothing of it is left,
    /// on I/O threads or on vCPUs.
    fn unplug(&self, id: &str, slot: u8) {
        let removed = {
            let mut registry = self.registry.borrow_mut();
            registry.set_leaving(id, Leaving::Ending);
            registry.pci().remove(slot);
            registry.take(id)
        };
        let gone = id.to_owned();
        let told = EventFd::new(EFD_NONBLOCK).and_then(|closed| {
            if let Some(Object::Controller { controller, .. }) = &removed {
                controller.notify_closed(closed.try_clone()?);
            }
            self.within_limit(&closed, move |live| live.gone(&gone))
        });
        drop(removed);
        if let Err(error) = told {
            tracing::warn!("device_del {id}: cannot watch its end: {error}");
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

    /// Tells the guest of a controller in a slot. If the request to let go of the slot's last one is
    /// withdrawn by that, the slot is in nobody's hand: an ejection will be about the new one.
    pub(super) fn tell_inserted(&self, slot: u8) {
        if self.hotplug.insert(slot) {
            self.releasing.set(self.releasing.get() & !(1 << slot));
        }
    }

    /// Slots that the guest has in hand. One whose request it never read is free: the next
    /// controller's arrival takes the request back.
    pub(super) fn still_releasing(&self) -> u32 {
        let unread = |slot: &u8| self.hotplug.removal_unread(*slot);
        let unread: u32 = (1..32).filter(unread).map(|slot| 1 << slot).sum();
        self.releasing.get() & !unread
    }
}
