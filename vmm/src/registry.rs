//! The devices of a machine by their ids, and how a specification becomes one.
//!
//! Both `--device` and `device_add` end here. The registry belongs to the main thread.

mod error;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use devices::interrupt::MsiAllocator;
use devices::ioevent::{CoalescedWrites, IoEvents};
use devices::nvme::trace::Tracer;
use devices::nvme::{Controller, ControllerConfig, ControllerParts, IoThreads};
use devices::pci::root::{PciRoot, bdf};
use devices::ram::GuestRam;
use devices::storage::{self, Backend, BackendConfig, BackendKind, OpenError};
use devices::subsystem::{Namespace, NamespaceConfig, Subsystem, SubsystemConfig};
use uuid::Uuid;

use self::error::host;
pub use self::error::{DeviceError, Problem};
use crate::event_loop::{EventLoop, EventSet, Watch};
use crate::image;
use crate::machine::tell_of_spare;
use crate::spec::{
    BackendSpec, ControllerSpec, DEFAULT_MAX_IOQPAIRS, DEFAULT_MDTS, DEFAULT_MQES, DEFAULT_POLL_US,
    DeviceSpec, DiskSpec, Drives, Format, NamespaceSpec, SubsystemSpec, default_nqn,
};

/// Model number of controllers that are given none.
const MODEL: &str = "berth NVMe Controller";
/// Longest serial number (NVMe Base 2.0c, 5.17.2.1).
const SERIAL_LEN: usize = 20;

/// What devices are made with.
#[derive(Clone)]
pub struct Parts {
    /// Guest memory.
    pub ram: GuestRam,
    /// Where controllers are plugged in.
    pub pci: Arc<PciRoot>,
    /// Their interrupt vectors.
    pub msi: Arc<dyn MsiAllocator>,
    /// Their doorbells.
    pub io_events: Arc<dyn IoEvents>,
    /// Their completion queues' doorbells.
    pub coalesced: Arc<dyn CoalescedWrites>,
    /// The machine's I/O threads.
    pub io_threads: Arc<IoThreads>,
    /// Where controllers' admin work is done.
    pub events: Rc<EventLoop>,
}

/// A device with an id.
#[derive(Clone)]
pub enum Object {
    /// `nvme-subsys`, on the system bus.
    Subsystem(Arc<Subsystem>),
    /// `nvme-ns`, on a subsystem's bus.
    Namespace {
        /// The namespace.
        namespace: Arc<Namespace>,
        /// Whose bus it is on.
        subsystem: Arc<Subsystem>,
    },
    /// `nvme`, on PCI.
    Controller {
        /// The controller.
        controller: Arc<Controller>,
        /// The subsystem that it links to.
        subsystem: Arc<Subsystem>,
        /// Its slot on bus 0.
        slot: u8,
        /// Its admin work in the main loop.
        watch: Watch,
    },
}

impl Object {
    /// The subsystem that the device is in.
    pub fn within(&self) -> Option<&Arc<Subsystem>> {
        match self {
            Self::Subsystem(_) => None,
            Self::Namespace { subsystem, .. } | Self::Controller { subsystem, .. } => {
                Some(subsystem)
            }
        }
    }

    /// The driver's name.
    pub fn driver(&self) -> &'static str {
        match self {
            Self::Subsystem(_) => "nvme-subsys",
            Self::Namespace { .. } => "nvme-ns",
            Self::Controller { .. } => "nvme",
        }
    }
}

/// Where a namespace goes.
struct Place {
    subsystem: Arc<Subsystem>,
    /// The controller that stood for the subsystem.
    controller: Option<String>,
    /// The subsystem was made for it and is not registered yet.
    made: bool,
}

/// All devices with ids, in the order in which they were added.
pub struct Registry {
    parts: Parts,
    objects: Vec<(String, Object)>,
    /// Ids that were given to devices still to come: not for automatic ones.
    reserved: BTreeSet<String>,
    /// Slots, as a mask, that the command line gives to controllers still to come: likewise.
    reserved_slots: u32,
    /// Devices whose removal was begun, by their ids, which are theirs until they are gone.
    leaving: BTreeMap<String, Departure>,
    /// Slots that the guest is still letting go of: not for new controllers.
    releasing: u32,
    /// What `drive=` of a device may name.
    drives: Drives,
}

/// A removal that was begun.
struct Departure {
    state: Leaving,
    /// The subsystem that the device is in until it is gone.
    subsystem: Option<Arc<Subsystem>>,
}

/// How far a removal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// The guest was asked to let go of a controller.
    Asked,
    /// A controller was pulled, or a namespace was taken off its bus.
    Ending,
}

impl Registry {
    /// No devices yet.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            objects: Vec::new(),
            reserved: BTreeSet::new(),
            reserved_slots: 0,
            leaving: BTreeMap::new(),
            releasing: 0,
            drives: Drives::new(),
        }
    }

    /// The drives that devices to come may name.
    pub fn drives(&self) -> &Drives {
        &self.drives
    }

    /// The same, to be changed.
    pub fn drives_mut(&mut self) -> &mut Drives {
        &mut self.drives
    }

    /// Adds what the command line asks for. Its order does not matter: subsystems come first, then
    /// controllers, then namespaces.
    ///
    /// # Errors
    /// The first device that cannot be added.
    pub fn add_all(
        &mut self,
        disks: &[NamespaceSpec],
        objects: &[DeviceSpec],
        devices: &[DeviceSpec],
    ) -> Result<(), DeviceError> {
        let disk_ids = disks.iter().filter_map(|disk| disk.id.as_deref());
        let others = objects.iter().chain(devices);
        let ids = disk_ids.chain(others.filter_map(DeviceSpec::id));
        self.reserved = ids.map(str::to_owned).collect();
        let slots = devices.iter().filter_map(DeviceSpec::slot);
        self.reserved_slots = slots.fold(0, |mask, slot| mask | 1 << slot);
        self.add_disks(disks)?;
        let objects = objects.iter().map(|spec| ("--object", spec));
        let given: Vec<_> = objects
            .chain(devices.iter().map(|spec| ("--device", spec)))
            .collect();
        self.add_in_order(&given)?;
        self.reserved.clear();
        self.reserved_slots = 0;
        self.warn_of_unseen();
        Ok(())
    }

    fn add_in_order(&mut self, given: &[(&str, &DeviceSpec)]) -> Result<(), DeviceError> {
        // What each has been given as an id, in the places of the command line.
        let mut ids: Vec<Option<String>> = vec![None; given.len()];
        let default = self.last_controller();
        for turn in 0..3 {
            for (at, (option, spec)) in given.iter().enumerate() {
                let mut spec = (*spec).clone();
                let its_turn = match &mut spec {
                    DeviceSpec::Subsystem(_) => 0,
                    DeviceSpec::Controller(_) => 1,
                    DeviceSpec::Namespace(namespace) => {
                        if namespace.bus.is_none() {
                            namespace.bus = nearest_controller(given, &ids, at, default.as_deref());
                        }
                        2
                    }
                };
                if its_turn != turn {
                    continue;
                }
                let added = self.add(&spec).map_err(|error| DeviceError {
                    device: format!("{option} {}", error.device),
                    ..error
                })?;
                ids[at] = Some(added);
            }
        }
        Ok(())
    }

    fn last_controller(&self) -> Option<String> {
        let is_one = |(_, object): &&(String, Object)| matches!(object, Object::Controller { .. });
        let last = self.objects.iter().rev().find(is_one)?;
        Some(last.0.clone())
    }

    /// Warns of namespaces that the guest will not see, though nothing says that this is wanted.
    fn warn_of_unseen(&self) {
        for (id, object) in self.iter() {
            let Object::Namespace {
                namespace,
                subsystem,
            } = object
            else {
                continue;
            };
            if namespace.starts_detached() || !subsystem.attached_to(namespace.nsid()).is_empty() {
                continue;
            }
            let subsystem = (subsystem.id(), subsystem.controllers().is_empty());
            let why = match subsystem {
                (name, true) => {
                    format!("no controller is in its subsystem: add nvme,subsys={name}")
                }
                (_, false) => "the controller that it is private to does not exist".into(),
            };
            tracing::warn!("nvme-ns '{id}': the guest does not see it: {why}");
        }
    }

    /// Adds a device and returns its id.
    ///
    /// # Errors
    /// See [`Problem`]; nothing is left of the device then.
    pub fn add(&mut self, spec: &DeviceSpec) -> Result<String, DeviceError> {
        // What is made along with the device must not take its id.
        self.reserved.extend(spec.id().map(str::to_owned));
        let result = match spec {
            DeviceSpec::Subsystem(spec) => self.add_subsystem(spec),
            DeviceSpec::Controller(spec) => self.add_controller(spec),
            DeviceSpec::Namespace(spec) => self.add_namespace(spec),
        };
        if let Some(id) = spec.id() {
            self.reserved.remove(id);
        }
        result.map_err(|problem| DeviceError {
            device: match spec.id() {
                Some(id) => format!("{},id={id}", spec.driver()),
                None => spec.driver().into(),
            },
            problem,
        })
    }

    /// All devices, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Object)> {
        self.objects
            .iter()
            .map(|(id, object)| (id.as_str(), object))
    }

    /// Has every subsystem look at its images' sizes again; controllers hear of what changed.
    pub fn refresh_sizes(&self) -> Vec<Arc<Namespace>> {
        let refresh = |(_, object): (&str, &Object)| match object {
            Object::Subsystem(subsystem) => subsystem.refresh_sizes(),
            _ => Vec::new(),
        };
        self.iter().flat_map(refresh).collect()
    }

    /// The device with this id.
    pub fn get(&self, id: &str) -> Option<&Object> {
        let found = self.objects.iter().find(|(known, _)| known == id)?;
        Some(&found.1)
    }

    /// Removes a device from the list, and its admin work from the main loop.
    pub fn take(&mut self, id: &str) -> Option<Object> {
        let index = self.objects.iter().position(|(known, _)| known == id)?;
        let (_, object) = self.objects.remove(index);
        if let Object::Controller { watch, .. } = &object {
            self.parts.events.remove(*watch);
        }
        Some(object)
    }

    /// How far the removal of this device is, if it was begun.
    pub fn leaving(&self, id: &str) -> Option<Leaving> {
        self.leaving.get(id).map(|departure| departure.state)
    }

    /// The removal of this device, which is still listed, begins or goes on.
    pub fn set_leaving(&mut self, id: &str, state: Leaving) {
        let subsystem = self.get(id).and_then(Object::within).cloned();
        self.leaving
            .insert(id.to_owned(), Departure { state, subsystem });
    }

    /// The device stays, or is gone; `false` if its removal was not begun.
    pub fn end_leaving(&mut self, id: &str) -> bool {
        self.leaving.remove(id).is_some()
    }

    /// Slots, as a mask, that new controllers do not get.
    pub fn set_releasing(&mut self, slots: u32) {
        self.releasing = slots;
    }

    /// The slot for a new controller: the one asked for, or the first free one.
    fn choose_slot(&self, asked: Option<u8>) -> Result<Option<u8>, Problem> {
        let releasing = |slot: u8| self.releasing >> slot & 1 != 0;
        match asked {
            Some(slot) if releasing(slot) => Err(Problem::Releasing(bdf(slot))),
            Some(slot) => Ok(Some(slot)),
            // Where all are taken, the root says so.
            None => {
                let free = |slot: &u8| {
                    !releasing(*slot)
                        && self.reserved_slots >> slot & 1 == 0
                        && self.parts.pci.device(*slot).is_none()
                };
                let leaving =
                    |slot: &u8| releasing(*slot) && self.parts.pci.device(*slot).is_none();
                match ((1..32).find(free), (1..32).find(leaving)) {
                    (None, Some(slot)) => Err(Problem::Releasing(bdf(slot))),
                    (found, _) => Ok(found),
                }
            }
        }
    }

    /// Slot of the controller with this id.
    pub fn slot(&self, id: &str) -> Option<u8> {
        match self.get(id)? {
            Object::Controller { slot, .. } => Some(*slot),
            _ => None,
        }
    }

    /// Id of the controller in a slot; not one that was pulled.
    pub fn in_slot(&self, slot: u8) -> Option<String> {
        let mut ids = self.iter().map(|(id, _)| id);
        let there =
            |id: &&str| self.slot(id) == Some(slot) && self.leaving(id) != Some(Leaving::Ending);
        ids.find(there).map(str::to_owned)
    }

    /// Controllers that link to a subsystem.
    pub fn controllers_of(&self, of: &Arc<Subsystem>) -> Vec<Arc<Controller>> {
        let linked = |(_, object): (&str, &Object)| match object {
            Object::Controller {
                controller,
                subsystem,
                ..
            } if Arc::ptr_eq(subsystem, of) => Some(Arc::clone(controller)),
            _ => None,
        };
        self.iter().filter_map(linked).collect()
    }

    /// Controllers and namespaces in a subsystem, those that are leaving included, for messages.
    pub fn inside(&self, of: &Arc<Subsystem>) -> Vec<String> {
        let is_it = |other: Option<&Arc<Subsystem>>| other.is_some_and(|it| Arc::ptr_eq(it, of));
        let listed = self
            .iter()
            .filter(|(_, object)| is_it(object.within()))
            .map(|(id, object)| format!("{} '{id}'", object.driver()));
        let leaving = self
            .leaving
            .iter()
            .filter(|(id, left)| self.get(id).is_none() && is_it(left.subsystem.as_ref()))
            .map(|(id, _)| format!("'{id}' (being removed)"));
        listed.chain(leaving).collect()
    }

    /// Where controllers are plugged in.
    pub fn pci(&self) -> &PciRoot {
        &self.parts.pci
    }

    /// The machine's I/O threads.
    pub fn io_threads(&self) -> &IoThreads {
        &self.parts.io_threads
    }

    /// Has the commands of all controllers recorded, or no more; those that come later follow.
    pub fn set_trace(&self, tracer: Option<&Arc<Tracer>>) {
        self.parts.io_threads.set_trace(tracer);
        for (_, object) in &self.objects {
            let Object::Controller { controller, .. } = object else {
                continue;
            };
            if !Arc::ptr_eq(controller.io_threads(), &self.parts.io_threads) {
                controller.io_threads().set_trace(tracer);
            }
            controller.set_trace(tracer);
        }
    }

    /// The default subsystem with the default controller, and the disks in it.
    fn add_disks(&mut self, disks: &[NamespaceSpec]) -> Result<(), DeviceError> {
        if disks.is_empty() {
            return Ok(());
        }
        let wrap = |problem| DeviceError {
            device: "--disk".into(),
            problem,
        };
        let controller = ControllerSpec {
            id: None,
            subsys: None,
            addr: None,
            serial: None,
            model: None,
            firmware: None,
            max_ioqpairs: DEFAULT_MAX_IOQPAIRS,
            mqes: DEFAULT_MQES,
            mdts: DEFAULT_MDTS,
            poll_us: DEFAULT_POLL_US,
            io_threads: None,
            cntlid: None,
            disk: None,
        };
        // Without a bus, a namespace goes to the controller defined last: this one.
        self.add_controller(&controller).map_err(wrap)?;
        for disk in disks {
            self.add_namespace(disk).map_err(wrap)?;
        }
        Ok(())
    }

    fn add_subsystem(&mut self, spec: &SubsystemSpec) -> Result<String, Problem> {
        let id = self.choose_id(Some(&spec.id), "")?;
        let subsystem = self.new_subsystem(id.clone(), spec.nqn.clone(), spec.shared)?;
        self.insert(&id, Object::Subsystem(subsystem));
        Ok(id)
    }

    fn add_namespace(&mut self, spec: &NamespaceSpec) -> Result<String, Problem> {
        let id = self.choose_id(spec.id.as_deref(), "ns")?;
        let place = self.place_for(spec)?;
        let ctrl = self.controller_for(spec, &place)?;
        let backend = self.open(&spec.disk)?;
        let config = NamespaceConfig {
            id: id.clone(),
            nsid: spec.nsid,
            shared: spec.shared,
            detached: spec.detached,
            ctrl,
            uuid: spec.uuid.map(Uuid::from_bytes),
            eui64: spec.eui64,
            nguid: spec.nguid,
        };
        let subsystem = place.subsystem;
        let namespace = subsystem.add_namespace(config, backend)?;
        if place.made {
            let made = Object::Subsystem(Arc::clone(&subsystem));
            self.insert(subsystem.id(), made);
        }
        let object = Object::Namespace {
            namespace,
            subsystem,
        };
        self.insert(&id, object);
        Ok(id)
    }

    /// The subsystem of a namespace: that of `bus`, of the controller defined last, or a new one.
    fn place_for(&self, spec: &NamespaceSpec) -> Result<Place, Problem> {
        let Some(bus) = spec.bus.clone().or_else(|| self.last_controller()) else {
            return Ok(Place {
                // Controllers may come, and nothing says that it is only one.
                subsystem: self.make_subsystem(true)?,
                controller: None,
                made: true,
            });
        };
        let object = self.named("bus", &bus)?;
        let (subsystem, controller) = match object {
            Object::Subsystem(subsystem) => (subsystem, None),
            Object::Controller { subsystem, .. } => (subsystem, Some(bus)),
            Object::Namespace { .. } => {
                let needed = "a subsystem or a controller";
                return Err(wrong_kind("bus", &bus, object, needed));
            }
        };
        Ok(Place {
            subsystem: Arc::clone(subsystem),
            controller,
            made: false,
        })
    }

    /// The one controller of a private namespace, as far as it is known.
    fn controller_for(
        &self,
        spec: &NamespaceSpec,
        place: &Place,
    ) -> Result<Option<String>, Problem> {
        if spec.shared {
            return Ok(None);
        }
        let Some(ctrl) = &spec.ctrl else {
            return Ok(place.controller.clone());
        };
        match self.get(ctrl) {
            Some(Object::Controller { subsystem, .. })
                if !Arc::ptr_eq(subsystem, &place.subsystem) =>
            {
                Err(Problem::OtherSubsystem {
                    ctrl: ctrl.clone(),
                    actual: subsystem.id().into(),
                    subsystem: place.subsystem.id().into(),
                })
            }
            // It may come later.
            Some(Object::Controller { .. }) | None => Ok(Some(ctrl.clone())),
            Some(other) => Err(wrong_kind("ctrl", ctrl, other, "a controller")),
        }
    }

    fn add_controller(&mut self, spec: &ControllerSpec) -> Result<String, Problem> {
        let id = self.choose_id(spec.id.as_deref(), "nvme")?;
        // First what is most likely to fail, so that nothing has to be undone.
        let disk = spec.disk.as_ref().map(|disk| self.open(disk)).transpose()?;
        let subsystem = match &spec.subsys {
            Some(name) => match self.named("subsys", name)? {
                Object::Subsystem(subsystem) => Arc::clone(subsystem),
                other => return Err(wrong_kind("subsys", name, other, "a subsystem")),
            },
            // As in QEMU, a controller that names no subsystem does not share it.
            None => self.make_subsystem(false)?,
        };
        let controller = self.make_controller(&id, spec, &subsystem)?;
        let watch = self.watch(&controller)?;
        let plugged = self.plug(&id, spec.addr, &controller, disk);
        let slot = plugged.inspect_err(|_| self.parts.events.remove(watch))?;
        if spec.subsys.is_none() {
            let made = Object::Subsystem(Arc::clone(&subsystem));
            self.insert(subsystem.id(), made);
        }
        let object = Object::Controller {
            controller,
            subsystem,
            slot,
            watch,
        };
        self.insert(&id, object);
        Ok(id)
    }

    /// Puts a controller into a slot, with its own disk if it has one.
    fn plug(
        &mut self,
        id: &str,
        addr: Option<u8>,
        controller: &Arc<Controller>,
        disk: Option<Arc<dyn Backend>>,
    ) -> Result<u8, Problem> {
        let slot = self.choose_slot(addr)?;
        let slot = self.parts.pci.add(slot, controller.clone())?;
        if let Some(backend) = disk
            && let Err(problem) = self.add_own_disk(id, controller.subsystem(), backend)
        {
            self.parts.pci.remove(slot);
            return Err(problem);
        }
        Ok(slot)
    }

    fn make_controller(
        &self,
        id: &str,
        spec: &ControllerSpec,
        subsystem: &Arc<Subsystem>,
    ) -> Result<Arc<Controller>, Problem> {
        let parts = &self.parts;
        let io_threads = match &spec.io_threads {
            Some(own) => parts
                .io_threads
                .like_these(own.count as usize, &own.cpus)
                .map_err(host("the controller's I/O threads"))
                .inspect(|threads| tell_of_spare(threads, "io-threads", "io-affinity"))?,
            None => Arc::clone(&parts.io_threads),
        };
        // One vector for the admin queue and one for each I/O completion queue.
        let msi = parts
            .msi
            .allocate(spec.max_ioqpairs + 1)
            .map_err(host("the controller's interrupt vectors"))?;
        let config = ControllerConfig {
            id: id.into(),
            serial: spec.serial.clone().unwrap_or_else(|| serial(subsystem)),
            model: spec.model.clone().unwrap_or_else(|| MODEL.into()),
            firmware: spec
                .firmware
                .clone()
                .unwrap_or_else(|| env!("CARGO_PKG_VERSION").into()),
            max_ioqpairs: spec.max_ioqpairs,
            mqes: spec.mqes,
            mdts: spec.mdts,
            poll_us: spec.poll_us,
            cntlid: spec.cntlid,
        };
        let parts = ControllerParts {
            ram: parts.ram.clone(),
            subsystem: Arc::clone(subsystem),
            io_threads,
            msi,
            io_events: Arc::clone(&parts.io_events),
            coalesced: Arc::clone(&parts.coalesced),
        };
        Ok(Controller::new(config, parts)?)
    }

    /// The namespace of a one-disk controller: private to it, as in QEMU.
    fn add_own_disk(
        &mut self,
        controller: &str,
        subsystem: &Arc<Subsystem>,
        backend: Arc<dyn Backend>,
    ) -> Result<(), Problem> {
        let id = self.choose_id(None, "ns")?;
        let config = NamespaceConfig {
            id: id.clone(),
            ctrl: Some(controller.into()),
            ..Default::default()
        };
        let object = Object::Namespace {
            namespace: subsystem.add_namespace(config, backend)?,
            subsystem: Arc::clone(subsystem),
        };
        self.insert(&id, object);
        Ok(())
    }

    /// Lets the main loop do the controller's admin work.
    fn watch(&self, controller: &Arc<Controller>) -> Result<Watch, Problem> {
        let served = Arc::clone(controller);
        let handler = move |_| served.service();
        self.parts
            .events
            .add(controller.event(), EventSet::IN, handler)
            .map_err(host("the controller's event"))
    }

    /// A subsystem for who names none; the caller registers it.
    fn make_subsystem(&self, shared: bool) -> Result<Arc<Subsystem>, Problem> {
        let id = self.choose_id(None, "subsys")?;
        let nqn = default_nqn(&id);
        self.new_subsystem(id, nqn, shared)
    }

    fn new_subsystem(
        &self,
        id: String,
        nqn: String,
        shared: bool,
    ) -> Result<Arc<Subsystem>, Problem> {
        let other = self.iter().find_map(|(id, object)| match object {
            Object::Subsystem(other) if other.nqn() == nqn => Some(id.to_owned()),
            _ => None,
        });
        match other {
            Some(id) => Err(Problem::DuplicateNqn { nqn, id }),
            None => Ok(Subsystem::new(SubsystemConfig { id, nqn, shared })?),
        }
    }

    fn named(&self, key: &'static str, id: &str) -> Result<&Object, Problem> {
        self.get(id).ok_or_else(|| Problem::NotFound {
            key,
            id: id.into(),
            known: self.known(),
        })
    }

    /// The subsystems and controllers there are, for messages.
    fn known(&self) -> String {
        let named = |(id, object): (&str, &Object)| match object {
            Object::Namespace { .. } => None,
            other => Some(format!("{id} ({})", other.driver())),
        };
        let known: Vec<_> = self.iter().filter_map(named).collect();
        if known.is_empty() {
            "add it, with --device or device_add".into()
        } else {
            format!("there are: {}", known.join(", "))
        }
    }

    /// The id asked for, if it is free, or else the first free one that starts with `prefix`.
    fn choose_id(&self, asked: Option<&str>, prefix: &str) -> Result<String, Problem> {
        match asked {
            Some(id) if self.get(id).is_some() => Err(Problem::Duplicate(id.into())),
            Some(id) if self.leaving.contains_key(id) => Err(Problem::Leaving(id.into())),
            Some(id) => Ok(id.into()),
            None => {
                let free = |id: &String| {
                    self.get(id).is_none()
                        && !self.reserved.contains(id)
                        && !self.leaving.contains_key(id)
                };
                let mut ids = (0u32..).map(|number| format!("{prefix}{number}"));
                // There are more numbers than objects, so one is free.
                Ok(ids.find(free).unwrap_or_default())
            }
        }
    }

    fn open(&self, disk: &DiskSpec) -> Result<Arc<dyn Backend>, Problem> {
        let mut disk = disk.clone();
        disk.resolve(&self.drives);
        if let (BackendSpec::File { path, .. }, Format::Probed) = (&disk.backend, disk.format) {
            image::check(path)?;
        }
        Ok(open(&disk)?)
    }

    fn insert(&mut self, id: &str, object: Object) {
        self.objects.push((id.into(), object));
    }
}

/// The controller whose subsystem a namespace without `bus` goes to: the last one before it on the
/// command line, the default one, or the first one behind it.
fn nearest_controller(
    given: &[(&str, &DeviceSpec)],
    ids: &[Option<String>],
    at: usize,
    default: Option<&str>,
) -> Option<String> {
    let controller = |index: &usize| matches!(given[*index].1, DeviceSpec::Controller(_));
    let before = (0..at).rev().find(controller);
    let behind = (at..given.len()).find(controller);
    let id = |index: usize| ids[index].as_deref();
    before
        .and_then(id)
        .or(default)
        .or_else(|| behind.and_then(id))
        .map(str::to_owned)
}

fn wrong_kind(key: &'static str, id: &str, found: &Object, needed: &'static str) -> Problem {
    Problem::WrongKind {
        key,
        id: id.into(),
        found: found.driver(),
        needed,
    }
}

/// The serial number is the subsystem's, so all its controllers have the same.
fn serial(subsystem: &Subsystem) -> String {
    let id = subsystem.id();
    if id.len() <= SERIAL_LEN {
        return id.into();
    }
    let digest = Uuid::new_v5(&Uuid::NAMESPACE_OID, subsystem.nqn().as_bytes());
    let mut digits = digest.simple().to_string();
    digits.truncate(SERIAL_LEN);
    digits
}

fn open(disk: &DiskSpec) -> Result<Arc<dyn Backend>, OpenError> {
    let kind = match &disk.backend {
        BackendSpec::File { path, cache } => BackendKind::File {
            path: path.clone(),
            cache: *cache,
        },
        BackendSpec::Drive { drive, cache } => BackendKind::File {
            path: drive.into(),
            cache: cache.unwrap_or_default(),
        },
        BackendSpec::Memory(size) => BackendKind::Memory { size: *size },
        BackendSpec::Null(size) => BackendKind::Null { size: *size },
    };
    storage::open(&BackendConfig {
        kind,
        read_only: disk.ro,
        block_size: disk.logical_block_size,
    })
}
