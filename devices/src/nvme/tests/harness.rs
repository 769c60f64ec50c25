//! A machine with subsystems and controllers, and a guest that drives one of them.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::ioevent::CoalescedWrites;
use crate::pci::PciDevice;
use crate::ram::{GuestRam, MappedRange};
use crate::storage::testing::{TestBackend, TestControl};
use crate::storage::{BackendConfig, BackendKind};
use crate::subsystem::{Namespace, NamespaceConfig, Subsystem, SubsystemConfig};

use super::super::spec::{AdminOpcode, Cdw0, Cqe, NvmOpcode, Sqe, Status};
use super::super::{Controller, ControllerConfig, ControllerError, ControllerParts, IoThreads};
use super::fakes::{FakeIoEvents, FakeMsi, MainLoop, Write, wait_until};

/// How long a test waits for something before it fails.
pub const LIMIT: Duration = Duration::from_secs(10);

/// Where the machine puts BAR 0 of its first controller.
pub const BAR: u64 = 0xe000_0000;
/// I/O queue pairs of a controller.
pub const PAIRS: u16 = 8;

/// Where no RAM can be.
pub const LAST_PAGE: u64 = 0u64.wrapping_sub(4096);

const RAM_SIZE: usize = 64 << 20;
const PAGE: u64 = 4096;

pub const CAP: u64 = 0x00;
pub const CC: u64 = 0x14;
pub const CSTS: u64 = 0x1c;
pub const AQA: u64 = 0x24;
pub const ASQ: u64 = 0x28;
pub const ACQ: u64 = 0x30;
/// CC for the NVM command set, with entry sizes and EN.
pub const CC_ENABLE: u32 = 4 << 20 | 6 << 16 | 1;
pub const MSIX_TABLE: u64 = 0x2000;
pub const MSIX_PBA: u64 = 0x3000;

/// RAM, I/O threads and one subsystem.
pub struct Machine {
    pub ram: GuestRam,
    pub subsystem: Arc<Subsystem>,
    pub io_threads: Arc<IoThreads>,
    next_page: AtomicU64,
    next_bar: AtomicU64,
}

impl Machine {
    /// With a shared subsystem and two I/O threads.
    pub fn new() -> Arc<Self> {
        Self::with(true, 2)
    }

    pub fn with(shared: bool, threads: usize) -> Arc<Self> {
        Self::with_threads(shared, |ram| IoThreads::new(threads, ram))
    }

    /// With I/O threads that give up moving a queue after `limit`.
    pub fn with_move_limit(threads: usize, limit: Duration) -> Arc<Self> {
        Self::with_threads(true, |ram| IoThreads::with_move_limit(threads, ram, limit))
    }

    fn with_threads(
        shared: bool,
        threads: impl FnOnce(&GuestRam) -> std::io::Result<Arc<IoThreads>>,
    ) -> Arc<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_SIZE)]).unwrap();
        let ram = GuestRam::new(memory);
        Arc::new(Self {
            subsystem: subsystem("subsys0", shared),
            io_threads: threads(&ram).unwrap(),
            ram,
            next_page: AtomicU64::new(1),
            next_bar: AtomicU64::new(BAR),
        })
    }

    /// Guest physical address of `bytes` fresh zeroed bytes, page aligned.
    pub fn alloc(&self, bytes: u64) -> u64 {
        let pages = bytes.div_ceil(PAGE);
        let address = self.next_page.fetch_add(pages, Ordering::Relaxed) * PAGE;
        assert!(
            address + pages * PAGE <= RAM_SIZE as u64,
            "out of guest memory"
        );
        address
    }

    /// Where allocation is, for tests that go round many times.
    pub fn mark(&self) -> u64 {
        self.next_page.load(Ordering::Relaxed)
    }

    /// Frees what was allocated since [`Machine::mark`]; it is zero again.
    pub fn rewind(&self, mark: u64) {
        let end = self.next_page.swap(mark, Ordering::Relaxed);
        self.write(mark * PAGE, &vec![0; ((end - mark) * PAGE) as usize]);
    }

    pub fn page(&self) -> u64 {
        self.alloc(PAGE)
    }

    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read_bytes(address, &mut bytes).unwrap();
        bytes
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.ram.write_bytes(address, bytes).unwrap();
    }

    /// Adds a shared namespace of zeroes in memory.
    pub fn memory_namespace(&self, size: u64, block_size: u32) -> Arc<Namespace> {
        let config = BackendConfig {
            kind: BackendKind::Memory { size },
            read_only: false,
            block_size,
        };
        let backend = crate::storage::open(&config).unwrap();
        let config = NamespaceConfig {
            shared: true,
            ..NamespaceConfig::default()
        };
        self.subsystem.add_namespace(config, backend).unwrap()
    }

    /// Adds a shared namespace of 1 MiB in 512-byte blocks whose requests the test controls.
    pub fn test_namespace(&self) -> TestControl {
        let (backend, control) = TestBackend::new(1 << 20, 512);
        let config = NamespaceConfig {
            shared: true,
            ..NamespaceConfig::default()
        };
        self.subsystem.add_namespace(config, backend).unwrap();
        control
    }

    /// A controller, plugged in, with MSI-X on and all vectors unmasked, not enabled.
    pub fn controller(self: &Arc<Self>, id: &str) -> Guest {
        Guest::new(self, &self.subsystem, config(id)).unwrap()
    }

    /// A controller that is enabled.
    pub fn enabled(self: &Arc<Self>, id: &str) -> Guest {
        let guest = self.controller(id);
        guest.enable();
        guest
    }
}

pub fn subsystem(id: &str, shared: bool) -> Arc<Subsystem> {
    let config = SubsystemConfig {
        id: id.into(),
        nqn: format!("nqn.2024-07.internal.berth:{id}"),
        shared,
    };
    Subsystem::new(config).unwrap()
}

pub fn config(id: &str) -> ControllerConfig {
    ControllerConfig {
        id: id.into(),
        serial: "serial-1".into(),
        model: "berth test".into(),
        firmware: "1.0".into(),
        max_ioqpairs: PAIRS,
        mqes: 65_535,
        mdts: 5,
        poll_us: 50,
        cntlid: None,
    }
}

/// A guest that drives one controller.
pub struct Guest {
    pub machine: Arc<Machine>,
    pub controller: Arc<Controller>,
    pub msi: Arc<FakeMsi>,
    pub io_events: Arc<FakeIoEvents>,
    /// Doorbell writes that reached the controller.
    pub doorbell_exits: AtomicU64,
    /// Doorbell writes that became an event.
    pub doorbell_events: AtomicU64,
    /// Doorbell writes that were kept.
    pub doorbells_kept: AtomicU64,
    pub main_loop: MainLoop,
    admin: Mutex<Admin>,
    shadow: Mutex<Option<Arc<ShadowPages>>>,
}

/// The admin queue pair.
struct Admin {
    sq: Sq,
    cq: Cq,
    next_cid: u16,
    // Completions nobody waited for yet: of events and held commands.
    others: Vec<Cqe>,
}

/// The guest's side of a submission queue.
pub struct Sq {
    pub id: u16,
    pub entries: u32,
    pub address: u64,
    pub tail: u32,
    pub shadowed: bool,
}

/// The guest's side of a completion queue.
pub struct Cq {
    pub id: u16,
    pub entries: u32,
    pub address: u64,
    pub head: u32,
    pub shadowed: bool,
    phase: bool,
    ring: MappedRange,
}

/// The shadow doorbell and event index pages.
pub struct ShadowPages {
    pub values: MappedRange,
    pub event_indices: MappedRange,
    pub address: (u64, u64),
}

/// Whether a doorbell that moved from `old` to `new` must be rung, as Linux decides it.
pub fn need_event(event_index: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event_index).wrapping_sub(1) < new.wrapping_sub(old)
}

impl ShadowPages {
    /// Stores a doorbell's value; whether it must be rung.
    pub fn update(&self, offset: usize, value: u32) -> bool {
        let old = self.values.load_u32(offset, Ordering::Relaxed);
        self.values.store_u32(offset, value, Ordering::Release);
        fence(Ordering::SeqCst);
        let event_index = self.event_indices.load_u32(offset, Ordering::Relaxed);
        need_event(event_index as u16, value as u16, old as u16)
    }
}

impl Guest {
    pub fn new(
        machine: &Arc<Machine>,
        subsystem: &Arc<Subsystem>,
        config: ControllerConfig,
    ) -> Result<Self, ControllerError> {
        let msi = Arc::<FakeMsi>::default();
        let io_events = Arc::<FakeIoEvents>::default();
        let parts = ControllerParts {
            ram: machine.ram.clone(),
            subsystem: Arc::clone(subsystem),
            io_threads: Arc::clone(&machine.io_threads),
            msi: Arc::clone(&msi) as _,
            io_events: Arc::clone(&io_events) as _,
            coalesced: Arc::clone(&io_events) as _,
        };
        let vectors = config.max_ioqpairs + 1;
        let controller = Controller::new(config, parts)?;
        let guest = Self {
            machine: Arc::clone(machine),
            main_loop: MainLoop::start(Arc::clone(&controller)),
            controller,
            msi,
            io_events,
            doorbell_exits: AtomicU64::new(0),
            doorbell_events: AtomicU64::new(0),
            doorbells_kept: AtomicU64::new(0),
            admin: Mutex::new(Admin {
                sq: Sq::new(machine, 0, 32),
                cq: Cq::new(machine, 0, 32),
                next_cid: 0,
                others: Vec::new(),
            }),
            shadow: Mutex::default(),
        };
        let bar = machine.next_bar.fetch_add(0x4000, Ordering::Relaxed);
        guest.plug(bar, vectors);
        Ok(guest)
    }

    /// Sets BAR 0, memory space, bus master and MSI-X up.
    pub fn plug(&self, bar: u64, vectors: u16) {
        self.set_bar(bar);
        self.write_config(0x04, &6u16.to_le_bytes());
        for vector in 0..vectors {
            self.unmask(vector);
        }
        let control = self.capability(0x11) + 2;
        self.write_config(control, &0x8000u16.to_le_bytes());
    }

    pub fn set_bar(&self, bar: u64) {
        self.write_config(0x10, &(bar as u32).to_le_bytes());
        self.write_config(0x14, &((bar >> 32) as u32).to_le_bytes());
    }

    pub fn unmask(&self, vector: u16) {
        let entry = MSIX_TABLE + u64::from(vector) * 16;
        self.write32(entry, 0xfee0_0000);
        self.write32(entry + 8, u32::from(vector));
        self.write32(entry + 12, 0);
    }

    pub fn mask(&self, vector: u16) {
        self.write32(MSIX_TABLE + u64::from(vector) * 16 + 12, 1);
    }

    pub fn function_level_reset(&self) {
        let control = self.capability(0x10) + 8;
        self.write_config(control, &0x8000u16.to_le_bytes());
    }

    /// Writes configuration space and moves the BAR as the PCI root does.
    pub fn write_config(&self, offset: u16, data: &[u8]) {
        self.io_events.drain();
        let before = self.controller.bar_window(0);
        self.controller.write_config(offset, data);
        let after = self.controller.bar_window(0);
        if before != after {
            self.controller.bar_moved(0, None);
            if let Some((base, _)) = after {
                self.controller.bar_moved(0, Some(base));
            }
        }
    }

    pub fn read_config<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.controller.read_config(offset, &mut data);
        data
    }

    /// Offset of the capability with this identifier.
    pub fn capability(&self, id: u8) -> u16 {
        let mut at = self.read_config::<1>(0x34)[0];
        while at != 0 {
            let [found, next] = self.read_config(u16::from(at));
            if found == id {
                return u16::from(at);
            }
            at = next;
        }
        panic!("no capability {id:#x}");
    }

    pub fn read32(&self, offset: u64) -> u32 {
        self.io_events.drain();
        let mut data = [0; 4];
        self.controller.read_bar(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn read64(&self, offset: u64) -> u64 {
        self.io_events.drain();
        let mut data = [0; 8];
        self.controller.read_bar(0, offset, &mut data);
        u64::from_le_bytes(data)
    }

    /// A 4-byte write to BAR 0, which the kernel keeps if there is an event at its address. Exits are
    /// handled as a vCPU does it.
    pub fn write32(&self, offset: u64, value: u32) {
        let doorbell = (0x1000..0x2000).contains(&offset);
        if doorbell && let Some((base, _)) = self.controller.bar_window(0) {
            let write = self.io_events.write(base + offset, value);
            let counter = match write {
                Write::Exit => &self.doorbell_exits,
                Write::Event => &self.doorbell_events,
                Write::Kept => &self.doorbells_kept,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            if write != Write::Exit {
                return;
            }
        }
        self.io_events.drain();
        self.controller.write_bar(0, offset, &value.to_le_bytes());
    }

    pub fn write64(&self, offset: u64, value: u64) {
        self.io_events.drain();
        self.controller.write_bar(0, offset, &value.to_le_bytes());
    }

    /// Fresh admin queues of 32 entries, EN, and RDY.
    pub fn enable(&self) {
        self.enable_with(32, 32);
    }

    pub fn enable_with(&self, sq_entries: u32, cq_entries: u32) {
        self.set_admin_queues(sq_entries, cq_entries);
        self.write32(CC, CC_ENABLE);
        self.wait_csts("the controller to be ready", 1, 1);
    }

    /// Fresh admin queues, told to the registers.
    pub fn set_admin_queues(&self, sq_entries: u32, cq_entries: u32) {
        let mut admin = self.lock_admin();
        admin.sq = Sq::new(&self.machine, 0, sq_entries);
        admin.cq = Cq::new(&self.machine, 0, cq_entries);
        admin.others.clear();
        *self.shadow.lock().unwrap() = None;
        self.write32(AQA, (cq_entries - 1) << 16 | (sq_entries - 1));
        self.write64(ASQ, admin.sq.address);
        self.write64(ACQ, admin.cq.address);
    }

    /// Clears EN and waits until the controller is not ready.
    pub fn disable(&self) {
        self.write32(CC, CC_ENABLE & !1);
        self.wait_csts("the controller to be reset", 1, 0);
    }

    pub fn csts(&self) -> u32 {
        self.read32(CSTS)
    }

    pub fn wait_csts(&self, what: &str, mask: u32, value: u32) {
        wait_until(what, || self.csts() & mask == value);
    }

    fn lock_admin(&self) -> MutexGuard<'_, Admin> {
        self.admin.lock().unwrap()
    }

    /// Submits an admin command; its identifier.
    pub fn submit_admin(&self, mut sqe: Sqe) -> u16 {
        let mut admin = self.lock_admin();
        admin.next_cid = admin.next_cid.wrapping_add(1);
        let cid = admin.next_cid;
        sqe.cdw0 = sqe.cdw0.with_cid(cid);
        self.push(&mut admin.sq, &sqe);
        self.ring_sq(&admin.sq);
        cid
    }

    /// The completion of an admin command, if it is there.
    pub fn take_admin(&self, cid: u16) -> Option<Cqe> {
        let mut admin = self.lock_admin();
        while let Some(cqe) = admin.cq.take() {
            self.ring_cq(&admin.cq);
            admin.others.push(cqe);
        }
        let index = admin.others.iter().position(|cqe| cqe.cid == cid)?;
        Some(admin.others.remove(index))
    }

    pub fn wait_admin(&self, cid: u16) -> Cqe {
        let mut found = None;
        wait_until(&format!("the completion of admin command {cid}"), || {
            found = self.take_admin(cid);
            found.is_some()
        });
        found.unwrap()
    }

    pub fn admin(&self, sqe: Sqe) -> Cqe {
        let cid = self.submit_admin(sqe);
        self.wait_admin(cid)
    }

    /// Does an admin command that must succeed; dword 0 of its completion.
    pub fn admin_ok(&self, sqe: Sqe) -> u32 {
        let cqe = self.admin(sqe);
        assert_eq!(cqe.status(), Status::SUCCESS, "{sqe:?}");
        cqe.dw0
    }

    pub fn identify(&self, cns: u8, nsid: u32, cntid: u16, csi: u8) -> Result<Vec<u8>, Cqe> {
        let buffer = self.machine.page();
        let cqe = self.admin(Sqe {
            nsid,
            prp1: buffer,
            cdw10: u32::from(cntid) << 16 | u32::from(cns),
            cdw11: u32::from(csi) << 24,
            ..admin(AdminOpcode::IDENTIFY)
        });
        if cqe.status() == Status::SUCCESS {
            Ok(self.machine.read(buffer, 4096))
        } else {
            Err(cqe)
        }
    }

    /// Puts a command at the tail, without a doorbell.
    pub fn push(&self, sq: &mut Sq, sqe: &Sqe) {
        let address = sq.address + u64::from(sq.tail) * 64;
        self.machine.ram.write(address, sqe).unwrap();
        sq.tail = (sq.tail + 1) % sq.entries;
    }

    pub fn ring_sq(&self, sq: &Sq) {
        self.ring(usize::from(sq.id) * 8, sq.tail, sq.shadowed);
    }

    pub fn ring_cq(&self, cq: &Cq) {
        self.ring(usize::from(cq.id) * 8 + 4, cq.head, cq.shadowed);
    }

    fn ring(&self, offset: usize, value: u32, shadowed: bool) {
        fence(Ordering::SeqCst);
        if shadowed && !self.shadow().update(offset, value) {
            return;
        }
        self.write32(0x1000 + offset as u64, value);
    }

    pub fn shadow(&self) -> Arc<ShadowPages> {
        self.shadow
            .lock()
            .unwrap()
            .clone()
            .expect("shadow doorbells")
    }

    /// Doorbell Buffer Config with fresh pages.
    pub fn start_shadow(&self) -> Arc<ShadowPages> {
        let address = (self.machine.page(), self.machine.page());
        self.admin_ok(Sqe {
            prp1: address.0,
            prp2: address.1,
            ..admin(AdminOpcode::DOORBELL_BUFFER_CONFIG)
        });
        let map = |address| self.machine.ram.map(address, 4096).unwrap();
        let pages = Arc::new(ShadowPages {
            values: map(address.0),
            event_indices: map(address.1),
            address,
        });
        *self.shadow.lock().unwrap() = Some(Arc::clone(&pages));
        pages
    }

    /// Creates a completion queue with interrupts on the vector of its number.
    pub fn create_cq(&self, id: u16, entries: u32) -> Cq {
        let cq = Cq::new(&self.machine, id, entries);
        self.admin_ok(create_cq(&cq, Some(id)));
        cq
    }

    pub fn create_sq(&self, id: u16, entries: u32, cqid: u16) -> Sq {
        let sq = Sq::new(&self.machine, id, entries);
        self.admin_ok(create_sq(&sq, cqid));
        sq
    }

    pub fn create_pair(&self, id: u16, entries: u32) -> (Sq, Cq) {
        let cq = self.create_cq(id, entries);
        (self.create_sq(id, entries, id), cq)
    }

    /// Submits one command and rings.
    pub fn submit(&self, sq: &mut Sq, sqe: &Sqe) {
        self.push(sq, sqe);
        self.ring_sq(sq);
    }

    /// Waits for the next completion, takes it and rings.
    pub fn wait_cqe(&self, cq: &mut Cq) -> Cqe {
        let cqe = cq.wait();
        self.ring_cq(cq);
        cqe
    }

    pub fn io(&self, (sq, cq): &mut (Sq, Cq), sqe: &Sqe) -> Cqe {
        self.submit(sq, sqe);
        self.wait_cqe(cq)
    }
}

impl Sq {
    pub fn new(machine: &Machine, id: u16, entries: u32) -> Self {
        Self {
            id,
            entries,
            address: machine.alloc(u64::from(entries) * 64),
            tail: 0,
            shadowed: false,
        }
    }
}

impl Cq {
    pub fn new(machine: &Machine, id: u16, entries: u32) -> Self {
        let len = entries as usize * 16;
        let address = machine.alloc(len as u64);
        Self {
            id,
            entries,
            address,
            head: 0,
            shadowed: false,
            phase: true,
            ring: machine.ram.map(address, len).unwrap(),
        }
    }

    /// Whether a completion is there.
    pub fn has_one(&self) -> bool {
        let status = self
            .ring
            .load_u32(self.head as usize * 16 + 12, Ordering::Acquire);
        (status >> 16 & 1 == 1) == self.phase
    }

    /// Takes the next completion, without a doorbell.
    pub fn take(&mut self) -> Option<Cqe> {
        if !self.has_one() {
            return None;
        }
        let cqe = self.ring.read(self.head as usize * 16);
        self.head = (self.head + 1) % self.entries;
        self.phase ^= self.head == 0;
        Some(cqe)
    }

    /// Waits for the next completion and takes it, without a doorbell.
    pub fn wait(&mut self) -> Cqe {
        wait_until(&format!("a completion in queue {}", self.id), || {
            self.has_one()
        });
        self.take().unwrap()
    }
}

/// An admin command without its fields.
pub fn admin(opcode: AdminOpcode) -> Sqe {
    Sqe {
        cdw0: Cdw0::new().with_opc(opcode.0),
        ..Sqe::default()
    }
}

/// An I/O command without its fields.
pub fn nvm(opcode: NvmOpcode, cid: u16, nsid: u32) -> Sqe {
    Sqe {
        cdw0: Cdw0::new().with_opc(opcode.0).with_cid(cid),
        nsid,
        ..Sqe::default()
    }
}

/// A read or write of `blocks` blocks at the PRPs.
pub fn transfer(opcode: NvmOpcode, cid: u16, slba: u64, blocks: u32, prps: (u64, u64)) -> Sqe {
    Sqe {
        prp1: prps.0,
        prp2: prps.1,
        cdw10: slba as u32,
        cdw11: (slba >> 32) as u32,
        cdw12: blocks - 1,
        ..nvm(opcode, cid, 1)
    }
}

pub fn flush(cid: u16) -> Sqe {
    nvm(NvmOpcode::FLUSH, cid, 1)
}

pub fn create_cq(cq: &Cq, vector: Option<u16>) -> Sqe {
    let interrupts = vector.map_or(0, |vector| u32::from(vector) << 16 | 2);
    Sqe {
        prp1: cq.address,
        cdw10: (cq.entries - 1) << 16 | u32::from(cq.id),
        cdw11: interrupts | 1,
        ..admin(AdminOpcode::CREATE_CQ)
    }
}

pub fn create_sq(sq: &Sq, cqid: u16) -> Sqe {
    Sqe {
        prp1: sq.address,
        cdw10: (sq.entries - 1) << 16 | u32::from(sq.id),
        cdw11: u32::from(cqid) << 16 | 1,
        ..admin(AdminOpcode::CREATE_SQ)
    }
}

pub fn delete_queue(opcode: AdminOpcode, id: u16) -> Sqe {
    Sqe {
        cdw10: u32::from(id),
        ..admin(opcode)
    }
}

pub fn abort(sqid: u16, cid: u16) -> Sqe {
    Sqe {
        cdw10: u32::from(cid) << 16 | u32::from(sqid),
        ..admin(AdminOpcode::ABORT)
    }
}

pub fn event_request() -> Sqe {
    admin(AdminOpcode::ASYNC_EVENT_REQUEST)
}

pub fn set_feature(fid: u8, cdw11: u32) -> Sqe {
    Sqe {
        cdw10: u32::from(fid),
        cdw11,
        ..admin(AdminOpcode::SET_FEATURES)
    }
}

pub fn get_feature(fid: u8, select: u32, cdw11: u32) -> Sqe {
    Sqe {
        cdw10: u32::from(fid) | select << 8,
        cdw11,
        ..admin(AdminOpcode::GET_FEATURES)
    }
}

/// Get Log Page of `bytes` bytes at `offset` into `buffer`.
pub fn get_log(lid: u8, offset: u64, bytes: u64, buffer: u64, retain: bool) -> Sqe {
    let dwords_z = (bytes / 4 - 1) as u32;
    Sqe {
        nsid: u32::MAX,
        prp1: buffer,
        cdw10: u32::from(lid) | u32::from(retain) << 15 | dwords_z << 16,
        cdw11: dwords_z >> 16,
        cdw12: offset as u32,
        cdw13: (offset >> 32) as u32,
        ..admin(AdminOpcode::GET_LOG_PAGE)
    }
}
