//! Devices that come and go, with a guest that the test plays on the hot-plug registers. No KVM.

use devices::bus::{Bus, BusDevice};
use devices::interrupt::{IrqLine, MsiAllocator, MsiGroup, MsiMessage};
use devices::ioevent::{CoalescedWrites, IoEvents, WriteSink};
use devices::legacy::MachineEvents;
use devices::legacy::acpi::AcpiRegisters;
use devices::legacy::pci_hotplug::{EJECT, INSERTED, OST_SOURCE, OST_STATUS, REMOVAL};
use devices::nvme::IoThreads;
use devices::pci::root::{PciRoot, PciWindows};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::control::Ticket;
use crate::registry::{Leaving, Parts};
use crate::spec::Form;
use crate::waits::Condition;

const LIMIT: Duration = Duration::from_secs(20);

struct Nothing;

impl MachineEvents for Nothing {
    fn power_off(&self) {}
    fn reset(&self) {}
    fn panicked(&self) {}
}

impl IrqLine for Nothing {
    fn trigger(&self) {}
}

impl MsiGroup for Nothing {
    fn trigger(&self, _vector: u16) {}
    fn update(&self, _changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self) {}
}

impl MsiAllocator for Nothing {
    fn allocate(&self, _vectors: u16) -> io::Result<Arc<dyn MsiGroup>> {
        Ok(Arc::new(Self))
    }
}

impl IoEvents for Nothing {
    fn register(&self, _event: &EventFd, _address: u64) -> io::Result<()> {
        Ok(())
    }
    fn unregister(&self, _event: &EventFd, _address: u64) -> io::Result<()> {
        Ok(())
    }
}

impl CoalescedWrites for Nothing {
    fn register(&self, _address: u64, _sink: Arc<dyn WriteSink>) -> io::Result<()> {
        Ok(())
    }
    fn unregister(&self, _address: u64) -> io::Result<()> {
        Ok(())
    }
    fn drain(&self) {}
}

/// A machine without vCPUs.
struct Machine {
    live: Rc<Live>,
    hotplug: Arc<PciHotplug>,
    events: Rc<EventLoop>,
    heard: Vec<Announcement>,
}

impl Machine {
    fn new() -> Self {
        let range = [(GuestAddress(0), 1 << 20)];
        let ram = GuestMemoryMmap::from_ranges(&range).unwrap();
        let ram = devices::ram::GuestRam::new(ram);
        let windows = PciWindows {
            mmio32: 0xc000_0000..0xe000_0000,
            mmio64: 0x1_0000_0000..0x2_0000_0000,
        };
        let events = Rc::new(EventLoop::new().unwrap());
        let registry = Registry::new(Parts {
            io_threads: IoThreads::new(1, &ram).unwrap(),
            ram,
            pci: Arc::new(PciRoot::new(Arc::new(Bus::new()), windows)),
            msi: Arc::new(Nothing),
            io_events: Arc::new(Nothing),
            coalesced: Arc::new(Nothing),
            events: Rc::clone(&events),
        });
        let slots = Arc::new(SlotEvents::new().unwrap());
        let acpi = AcpiRegisters::new(Arc::new(Nothing), Arc::new(Nothing));
        let hotplug = Arc::new(PciHotplug::new(slots.clone(), Arc::new(acpi)));
        let live = Live::new(registry, Arc::clone(&hotplug), slots, Rc::clone(&events)).unwrap();
        Self {
            live,
            hotplug,
            events,
            heard: Vec::new(),
        }
    }

    fn add(&self, argument: &str) -> Result<Value, CommandError> {
        let parsed = DeviceSpec::parse(argument, Form::Device).unwrap();
        self.live.add(Form::Device.command(), &parsed)
    }

    /// Serves the main loop until something like this was announced, and takes it.
    #[track_caller]
    fn announced(&mut self, wanted: impl Fn(&Announcement) -> bool) -> Announcement {
        let deadline = timer(LIMIT).unwrap();
        let late = Rc::new(Cell::new(false));
        let flag = Rc::clone(&late);
        let deadline = self
            .events
            .add(&deadline, EventSet::IN, move |_| flag.set(true));
        loop {
            self.heard.extend(self.live.take_announcements());
            if let Some(at) = self.heard.iter().position(&wanted) {
                self.events.remove(deadline.unwrap());
                return self.heard.remove(at);
            }
            assert!(!late.get(), "not within {LIMIT:?}; heard {:?}", self.heard);
            self.events.turn().unwrap();
        }
    }

    #[track_caller]
    fn event(&mut self, name: &str, id: &str) {
        self.announced(|heard| {
            matches!(heard, Announcement::Event(event)
                if event.name() == name && event.id() == Some(id))
        });
    }

    #[track_caller]
    fn reply(&mut self, ticket: Ticket) -> Result<Value, CommandError> {
        match self.announced(|heard| matches!(heard, Announcement::Reply(of, _) if *of == ticket)) {
            Announcement::Reply(_, result) => result,
            Announcement::Event(event) => panic!("{event:?}"),
        }
    }

    fn wait_for_removal(&self, id: &str) -> Ticket {
        let condition = Condition::Removal(id.into());
        let command = format!("device_del {id} wait=20");
        self.live.later(command, condition, LIMIT).unwrap()
    }

    /// What the guest reads of a register, as slots.
    fn guest_reads(&self, register: u64) -> Vec<u32> {
        let mut mask = [0; 4];
        self.hotplug.read(register, &mut mask);
        let mask = u32::from_le_bytes(mask);
        (0..32).filter(|slot| mask >> slot & 1 != 0).collect()
    }

    fn guest_writes(&self, register: u64, value: u32) {
        self.hotplug.write(register, &value.to_le_bytes());
    }

    fn has(&self, id: &str) -> bool {
        self.live.registry().get(id).is_some()
    }
}

#[track_caller]
fn refused(result: Result<Value, CommandError>, class: ErrorClass, why: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.class, class, "{error}");
    assert!(error.message.contains(why), "{error}");
}

#[test]
fn a_removal_that_is_pending_keeps_the_id_and_the_image() {
    let mut machine = Machine::new();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let add = format!("nvme-ns,id=n,bus=s,file={}", image.path().display());
    machine.add("nvme-subsys,id=s").unwrap();
    machine.add(&add).unwrap();
    // Stands for a command in flight, which keeps the namespace open.
    let user = match machine.live.registry().get("n") {
        Some(Object::Namespace { namespace, .. }) => Arc::clone(namespace),
        _ => panic!("no namespace"),
    };
    let deleted = machine.live.remove("n", false).unwrap();
    assert_eq!(deleted, json!({ "id": "n", "state": "requested" }));
    let waiting = machine.wait_for_removal("n");
    let again = || machine.live.remove("n", false);
    refused(again(), ErrorClass::InUse, "its removal is under way");
    refused(
        machine.live.remove("m", false),
        ErrorClass::NotFound,
        "no device has this id",
    );
    refused(
        machine.live.remove("s", false),
        ErrorClass::InUse,
        "in use by 'n' (being removed): remove these first",
    );
    let taken = "id=n is in use by a device that is being removed";
    refused(machine.add(&add), ErrorClass::Exists, taken);
    let other = add.replace("id=n", "id=m");
    refused(machine.add(&other), ErrorClass::Failed, "in use");
    drop(user);
    machine.event("device_deleted", "n");
    let gone = machine.reply(waiting).unwrap();
    assert_eq!(gone, json!({ "id": "n", "state": "deleted" }));
    refused(
        machine.live.remove("n", false),
        ErrorClass::NotFound,
        "no device has this id",
    );
    // The id, the NSID and the image are free at once.
    assert_eq!(machine.add(&add).unwrap()["nsid"], 1);
}

#[test]
fn a_guest_that_lets_go_frees_id_slot_and_cntlid() {
    let mut machine = Machine::new();
    machine.add("nvme-subsys,id=s").unwrap();
    machine.add("nvme-ns,id=n,bus=s,memory=1M").unwrap();
    for _ in 0..3 {
        let added = machine.add("nvme,id=c,subsys=s,addr=5").unwrap();
        assert_eq!(
            (&added["addr"], &added["cntlid"]),
            (&json!("0000:00:05.0"), &json!(0))
        );
        assert_eq!(machine.guest_reads(INSERTED), [5]);
        machine.live.remove("c", false).unwrap();
        let waiting = machine.wait_for_removal("c");
        assert_eq!(machine.guest_reads(REMOVAL), [5]);
        assert!(machine.has("c"), "the guest still has it");
        machine.guest_writes(EJECT, 1 << 5);
        assert_eq!(machine.reply(waiting).unwrap()["state"], "deleted");
        machine.event("device_deleted", "c");
        assert!(!machine.has("c") && machine.has("n"));
    }
}

#[test]
fn a_controller_that_the_guest_keeps_stays() {
    let mut machine = Machine::new();
    machine.add("nvme,id=c,memory=1M,addr=5").unwrap();
    machine.live.remove("c", false).unwrap();
    let waiting = machine.wait_for_removal("c");
    assert_eq!(machine.guest_reads(REMOVAL), [5]);
    // _OST of an eject request: busy.
    machine.guest_writes(OST_SOURCE, 3 << 8 | 5);
    machine.guest_writes(OST_STATUS, 0x82);
    let error = machine.reply(waiting).unwrap_err();
    assert_eq!(error.class, ErrorClass::InUse);
    assert!(
        error.message.contains("the guest refused to let go of it"),
        "{error}"
    );
    machine.event("device_del_refused", "c");
    assert!(machine.has("c"));
    assert_eq!(machine.live.registry().leaving("c"), None);
    // It can be asked again, and does it this time.
    machine.live.remove("c", false).unwrap();
    assert_eq!(machine.live.registry().leaving("c"), Some(Leaving::Asked));
    assert_eq!(machine.guest_reads(REMOVAL), [5]);
    machine.guest_writes(EJECT, 1 << 5);
    machine.event("device_deleted", "c");
}

#[test]
fn a_slot_that_was_pulled_is_free_when_the_guest_let_go() {
    let mut machine = Machine::new();
    machine.add("nvme,id=c,memory=1M,addr=5").unwrap();
    machine.guest_reads(INSERTED);
    machine.live.remove("c", true).unwrap();
    // At once, before anything was waited for.
    let device = machine.live.registry().pci().device(5).unwrap();
    let mut vendor = [0; 4];
    device.read_config(0, &mut vendor);
    assert_eq!(vendor, [0xff; 4]);
    drop(device);
    machine.event("device_deleted", "c");
    // The id is free at once; the slot is when the guest has seen that nothing is there.
    assert_eq!(machine.guest_reads(REMOVAL), [5]);
    let add = "nvme,id=c,subsys=subsys0,addr=5";
    refused(
        machine.add(add),
        ErrorClass::Exists,
        "the guest is still letting go of 0000:00:05.0",
    );
    let other = machine.add("nvme,id=c,subsys=subsys0").unwrap();
    assert_eq!(other["addr"], "0000:00:01.0");
    machine.live.remove("c", true).unwrap();
    machine.event("device_deleted", "c");
    machine.guest_writes(EJECT, 1 << 5);
    machine.live.slots_changed();
    assert_eq!(machine.add(add).unwrap()["addr"], "0000:00:05.0");
    // That the guest ejects late what it was asked for is not about the new one.
    machine.guest_writes(EJECT, 1 << 1);
    machine.live.slots_changed();
    assert!(machine.has("c"));
}

/// A guest that comes up late has not heard of the controller that was pulled before.
#[test]
fn a_slot_that_was_used_again_is_the_new_controllers() {
    let mut machine = Machine::new();
    machine.add("nvme,id=a,memory=1M,addr=5").unwrap();
    machine.live.remove("a", true).unwrap();
    machine.event("device_deleted", "a");
    machine.add("nvme,id=b,memory=1M,addr=5").unwrap();
    assert_eq!(machine.guest_reads(REMOVAL), [0; 0]);
    assert_eq!(machine.guest_reads(INSERTED), [5]);
    machine.live.remove("b", false).unwrap();
    assert_eq!(machine.guest_reads(REMOVAL), [5]);
    machine.guest_writes(EJECT, 1 << 5);
    machine.event("device_deleted", "b");
}

/// The guest may read that it is to let go of a controller just as another one takes the slot.
#[test]
fn a_late_ejection_does_not_take_the_next_controller() {
    let machine = Machine::new();
    machine.add("nvme,id=b,memory=1M,addr=5").unwrap();
    machine.live.releasing.set(1 << 5);
    machine.guest_writes(EJECT, 1 << 5);
    machine.live.slots_changed();
    assert!(machine.has("b"));
    assert_eq!(machine.guest_reads(INSERTED), [5]);
    machine.guest_writes(EJECT, 1 << 5);
    machine.live.slots_changed();
    assert!(!machine.has("b"));
}

/// Nor is it taken when it is the only one that looks free.
#[test]
fn a_full_bus_waits_for_the_guest() {
    let mut machine = Machine::new();
    machine.add("nvme-subsys,id=s").unwrap();
    let add = "nvme,subsys=s,max_ioqpairs=1";
    for slot in 1..32 {
        let added = machine.add(add).unwrap();
        assert_eq!(added["addr"], bdf(slot));
    }
    refused(machine.add(add), ErrorClass::Argument, "PCI bus 0 is full");
    machine.guest_reads(INSERTED);
    machine.live.remove("nvme4", true).unwrap();
    machine.event("device_deleted", "nvme4");
    assert_eq!(machine.guest_reads(REMOVAL), [5]);
    let why = "the guest is still letting go of 0000:00:05.0";
    refused(machine.add(add), ErrorClass::Exists, why);
    machine.guest_writes(EJECT, 1 << 5);
    machine.live.slots_changed();
    assert_eq!(machine.add(add).unwrap()["addr"], bdf(5));
}

#[test]
fn a_guest_may_let_go_by_itself() {
    let mut machine = Machine::new();
    machine.add("nvme,id=c,memory=1M,addr=5").unwrap();
    machine.guest_writes(EJECT, 1 << 5 | 1 << 6);
    machine.event("device_deleted", "c");
    assert!(!machine.has("c") && machine.has("ns0"));
}

/// A private namespace belongs to the id, whichever controller has it.
#[test]
fn a_private_namespace_follows_its_controllers_id() {
    let mut machine = Machine::new();
    machine.add("nvme-subsys,id=s").unwrap();
    machine
        .add("nvme-ns,id=n,bus=s,memory=1M,shared=off,ctrl=c")
        .unwrap();
    let attached = |machine: &Machine| match machine.live.registry().get("n") {
        Some(Object::Namespace { subsystem, .. }) => subsystem.attached_to(1),
        _ => panic!("no namespace"),
    };
    machine.add("nvme,id=other,subsys=s").unwrap();
    assert_eq!(attached(&machine), [0; 0]);
    for cntlid in [7, 9] {
        machine
            .add(&format!("nvme,id=c,subsys=s,cntlid={cntlid}"))
            .unwrap();
        assert_eq!(attached(&machine), [cntlid]);
        machine.live.remove("c", true).unwrap();
        machine.event("device_deleted", "c");
        assert_eq!(attached(&machine), [0; 0]);
    }
}

#[test]
fn a_private_namespace_has_one_controller() {
    let mut machine = Machine::new();
    machine.add("nvme-subsys,id=s").unwrap();
    machine
        .add("nvme-ns,id=n,bus=s,memory=1M,shared=off,ctrl=c")
        .unwrap();
    machine.add("nvme,id=other,subsys=s").unwrap();
    let attach = |machine: &Machine, to: &str| {
        let reply = machine.live.set_attached("ns_attach", "n", to, true);
        reply.map(|reply| reply["attached"].clone())
    };
    assert_eq!(attach(&machine, "other"), Ok(json!([0])));
    // Its own comes while another one has it.
    machine.add("nvme,id=c,subsys=s").unwrap();
    refused(
        attach(&machine, "c"),
        ErrorClass::Argument,
        "is attached to controller 'other'",
    );
    machine.live.remove("other", true).unwrap();
    machine.event("device_deleted", "other");
    assert_eq!(attach(&machine, "c"), Ok(json!([1])));
}

#[test]
fn what_is_made_along_with_a_device_leaves_it_its_id() {
    for (argument, expected) in [
        ("nvme,id=ns0,memory=1M", &["ns1", "subsys0", "ns0"][..]),
        ("nvme,id=subsys0,memory=1M", &["ns0", "subsys1", "subsys0"]),
        ("nvme-ns,id=subsys0,memory=1M", &["subsys1", "subsys0"]),
    ] {
        let machine = Machine::new();
        machine.add(argument).unwrap();
        let registry = machine.live.registry();
        let ids: Vec<&str> = registry.iter().map(|(id, _)| id).collect();
        assert_eq!(ids, expected, "{argument}");
    }
}

/// Slots that [`no_order_of_things_keeps_a_slot`] uses: 1 to this.
const USED: u32 = 3;

fn in_slot(slot: u32) -> (String, String) {
    let add = format!("nvme,id=c{slot},subsys=s,addr={slot},max_ioqpairs=1");
    (format!("c{slot}"), add)
}

/// Serves the main loop once, without waiting.
fn turn(machine: &Machine) {
    let ready = EventFd::new(EFD_NONBLOCK).unwrap();
    ready.write(1).unwrap();
    let busy = machine.live.on(&ready, |_| {}).unwrap();
    machine.events.turn().unwrap();
    machine.events.remove(busy);
}

/// Adds, removes and pulls controllers at random, with a guest that reads and ejects when it likes.
fn any_order(machine: &Machine, mut random: impl FnMut(u32) -> u32) {
    // Slots that the guest has read that it is to let go of.
    let mut asked = 0;
    for _ in 0..60 {
        let (id, add) = in_slot(1 + random(USED));
        // What is refused is refused.
        match random(12) {
            0 | 1 => drop(machine.add(&add)),
            2 => drop(machine.live.remove(&id, false)),
            3 => drop(machine.live.remove(&id, true)),
            4 => {
                let read = machine.guest_reads(REMOVAL).into_iter();
                asked = read.fold(asked, |mask, slot| mask | 1 << slot);
            }
            5 => machine.guest_writes(EJECT, std::mem::take(&mut asked)),
            _ => turn(machine),
        }
    }
    machine.guest_writes(EJECT, asked);
}

/// Whatever is done in whatever order, a guest that does what it is asked for leaves every id and slot
/// free.
#[test]
fn no_order_of_things_keeps_a_slot() {
    let mut state = 1u64;
    let mut random = move |below: u32| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        u32::try_from(state >> 33).unwrap() % below
    };
    for round in 0..100 {
        let mut machine = Machine::new();
        machine.add("nvme-subsys,id=s").unwrap();
        any_order(&machine, &mut random);
        let deadline = std::time::Instant::now() + LIMIT;
        for (id, add) in (1..=USED).map(in_slot) {
            // It is gone, goes, or is to go.
            let _ = machine.live.remove(&id, false);
            while machine.add(&add).is_err() {
                for slot in machine.guest_reads(REMOVAL) {
                    machine.guest_writes(EJECT, 1 << slot);
                }
                turn(&machine);
                assert!(std::time::Instant::now() < deadline, "round {round}: {id}");
            }
            machine.live.take_announcements();
            machine.live.remove(&id, false).unwrap();
            for slot in machine.guest_reads(REMOVAL) {
                machine.guest_writes(EJECT, 1 << slot);
            }
            machine.event("device_deleted", &id);
        }
    }
}

#[test]
fn deleted_devices_are_remembered_up_to_a_limit() {
    let machine = Machine::new();
    for number in 0..300 {
        let id = format!("s{number}");
        machine.add(&format!("nvme-subsys,id={id}")).unwrap();
        machine.live.remove(&id, false).unwrap();
    }
    let late = |id: &str| machine.live.already("device_deleted", Some(id));
    assert!(late("s299").unwrap().is_some());
    assert!(late("s44").unwrap().is_some());
    assert_eq!(late("s43").unwrap_err().class, ErrorClass::NotFound);
}

/// An expired timer stays readable: a main loop that goes on watching it would spin.
#[test]
fn what_is_awaited_once_is_not_watched_any_more() {
    let machine = Machine::new();
    let ready = EventFd::new(EFD_NONBLOCK).unwrap();
    ready.write(1).unwrap();
    let calls = Rc::new(Cell::new(0));
    let counted = Rc::clone(&calls);
    machine
        .live
        .once(&ready, move |_| counted.set(counted.get() + 1))
        .unwrap();
    let limited = Rc::clone(&calls);
    machine
        .live
        .within_limit(&ready, move |_| limited.set(limited.get() + 10))
        .unwrap();
    // Keeps the turns from waiting.
    let busy = machine.live.on(&ready, |_| {}).unwrap();
    for _ in 0..5 {
        machine.events.turn().unwrap();
    }
    machine.events.remove(busy);
    assert_eq!(calls.get(), 11);
}
