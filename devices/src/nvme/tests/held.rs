//! Commands that a test holds, and what waits for their end.

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use super::fakes::wait_until;
pub use super::harness::subsystem;
use super::harness::*;
use crate::nvme::spec::{NvmOpcode, Status};
use crate::storage::testing::{Mode, TestBackend, TestControl};
use crate::storage::{Backend, Cancel, Engine, Request, Submitted, Token};
use crate::subsystem::{AttachmentTable, ControllerLink, Namespace, NamespaceConfig, Subsystem};

/// A backend whose requests cannot be cancelled.
pub struct Stubborn {
    inner: Arc<TestBackend>,
    cancels: Mutex<usize>,
}

impl Stubborn {
    pub fn new(size: u64, block_size: u32) -> (Arc<Self>, TestControl) {
        let (inner, control) = TestBackend::new(size, block_size);
        let cancels = Mutex::default();
        (Arc::new(Self { inner, cancels }), control)
    }

    /// Waits until `count` cancels were tried.
    pub fn wait_cancels(&self, count: usize) {
        wait_until("the cancels to be tried", || {
            *self.cancels.lock().unwrap() == count
        });
    }
}

impl Backend for Stubborn {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn block_size(&self) -> u32 {
        self.inner.block_size()
    }

    fn describe(&self) -> String {
        "stubborn".into()
    }

    fn submit(&self, engine: &mut Engine, request: &Request<'_>) -> Submitted {
        self.inner.submit(engine, request)
    }

    fn cancel(&self, _engine: &mut Engine, _token: Token) -> Cancel {
        *self.cancels.lock().unwrap() += 1;
        Cancel::Pending
    }
}

/// Adds a shared namespace whose requests end only when the test releases them.
pub fn stubborn_namespace(machine: &Machine) -> (Arc<Stubborn>, TestControl) {
    let (backend, control) = Stubborn::new(1 << 20, 512);
    let config = NamespaceConfig {
        shared: true,
        ..NamespaceConfig::default()
    };
    machine
        .subsystem
        .add_namespace(config, Arc::clone(&backend) as _)
        .unwrap();
    (backend, control)
}

/// Reads in flight, on a queue pair, into canaries.
pub struct InFlight {
    pub pair: (Sq, Cq),
    pub data: u64,
    count: u16,
}

impl InFlight {
    /// Submits `count` reads that `control` holds.
    pub fn start(guest: &Guest, control: &TestControl, id: u16, count: u16) -> Self {
        let machine = &guest.machine;
        let mut pair = guest.create_pair(id, 64);
        let data = machine.alloc(u64::from(count) * 4096);
        machine.write(data, &vec![0xee; usize::from(count) * 4096]);
        control.set_mode(Mode::Hold);
        let held = control.held().len();
        for cid in 0..count {
            let page = data + u64::from(cid) * 4096;
            let read = transfer(NvmOpcode::READ, cid, 0, 1, (page, 0));
            guest.submit(&mut pair.0, &read);
        }
        control.wait_held(held + usize::from(count)).unwrap();
        Self { pair, data, count }
    }

    #[track_caller]
    pub fn assert_untouched(&self, machine: &Machine) {
        assert!(!self.pair.1.has_one(), "a completion");
        let data = machine.read(self.data, usize::from(self.count) * 4096);
        assert!(data.iter().all(|byte| *byte == 0xee), "data");
    }
}

/// Reads the list of active namespaces so often that whatever is attached is in it.
pub fn look_twice(guest: &Guest) {
    for _ in 0..2 {
        guest.identify(2, 0, 0, 0).unwrap();
    }
}

/// Enables again and does I/O on fresh queues.
pub fn works_again(guest: &Guest, control: &TestControl) {
    control.set_mode(Mode::Inline);
    guest.enable();
    look_twice(guest);
    let mut pair = guest.create_pair(1, 8);
    for cid in 0..20 {
        let cqe = guest.io(&mut pair, &flush(cid));
        assert_eq!((cqe.cid, cqe.status()), (cid, Status::SUCCESS));
    }
}

/// Waits until `event` was signalled.
#[track_caller]
pub fn wait(event: &EventFd) {
    let mut poll = libc::pollfd {
        fd: std::os::fd::AsRawFd::as_raw_fd(event),
        events: libc::POLLIN,
        revents: 0,
    };
    let limit = i32::try_from(LIMIT.as_millis()).unwrap();
    // SAFETY: one valid pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, limit) };
    assert_eq!(ready, 1, "no event within {LIMIT:?}");
}

/// Removes a namespace; what is returned is signalled when it is closed.
pub fn remove(machine: &Machine, nsid: u32) -> (EventFd, Arc<Namespace>) {
    let namespace = machine.subsystem.remove_namespace(nsid).unwrap();
    let closed = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    namespace.notify_closed(closed.try_clone().unwrap());
    (closed, namespace)
}

/// A table with NSID 1 of this UUID, or with nothing.
pub fn table_of(uuid: Option<u128>) -> Arc<AttachmentTable> {
    let subsystem = subsystem("subsys0", true);
    if let Some(uuid) = uuid {
        let config = NamespaceConfig {
            shared: true,
            uuid: Some(uuid::Uuid::from_u128(uuid)),
            ..NamespaceConfig::default()
        };
        let (backend, _control) = TestBackend::new(4096, 512);
        subsystem.add_namespace(config, backend).unwrap();
    }
    table_of_subsystem(&subsystem)
}

/// A table of all shared namespaces.
pub fn table_of_subsystem(subsystem: &Arc<Subsystem>) -> Arc<AttachmentTable> {
    struct Observer(Mutex<Arc<AttachmentTable>>);
    impl ControllerLink for Observer {
        fn attachments_changed(&self, table: Arc<AttachmentTable>, _changed: &[u32]) {
            *self.0.lock().unwrap() = table;
        }

        fn in_flight(&self, _namespace: &Namespace) -> u64 {
            0
        }
    }
    let observer = Arc::new(Observer(Mutex::default()));
    let link = subsystem.link("c", None).unwrap();
    let as_link: Arc<dyn ControllerLink> = Arc::clone(&observer) as _;
    link.observe(&as_link);
    Arc::clone(&observer.0.lock().unwrap())
}
