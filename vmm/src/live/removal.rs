//! How devices go: at once, when their last command ended, or when the guest lets go.

use std::cell::RefCell;
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

    /// Slots that the guest has in hand. One whose request it never read is free: the next
    /// controller's arrival takes the request back.
    pub(super) fn still_releasing(&self) -> u32 {
        let unread = |slot: &u8| self.hotplug.removal_unread(*slot);
        let unread: u32 = (1..32).filter(unread).map(|slot| 1 << slot).sum();
        self.releasing.get() & !unread
    }
}
