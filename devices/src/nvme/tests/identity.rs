//! An NSID never changes its identity behind the guest's back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use uuid::Uuid;
use vmm_sys_util::eventfd::EventFd;

use super::fakes::wait_until;
use super::harness::*;
use crate::nvme::spec::{NvmOpcode, Status};
use crate::storage::testing::{TestBackend, TestControl};
use crate::storage::{BackendConfig, BackendKind, CacheMode};
use crate::subsystem::{Namespace, NamespaceConfig};

const NAMESPACE_CHANGED: u32 = 0x0004_0002;

fn shared(uuid: Option<Uuid>) -> NamespaceConfig {
    NamespaceConfig {
        shared: true,
        nsid: Some(1),
        uuid,
        ..NamespaceConfig::default()
    }
}

/// Adds NSID 1 with a backend that no other one is; its first bytes are its UUID.
fn add(machine: &Machine, uuid: Option<Uuid>) -> (Arc<Namespace>, TestControl) {
    let (backend, control) = TestBackend::new(64 << 10, 512);
    control.poke(0, uuid.unwrap_or_default().as_bytes());
    let namespace = machine.subsystem.add_namespace(shared(uuid), backend);
    let namespace = namespace.unwrap();
    control.poke(0, namespace.uuid().as_bytes());
    (namespace, control)
}

/// Removes NSID 1 and waits until it is closed.
fn remove(machine: &Machine) {
    let namespace = machine.subsystem.remove_namespace(1).unwrap();
    let closed = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    namespace.notify_closed(closed.try_clone().unwrap());
    drop(namespace);
    wait_until("the namespace to close", || closed.read().is_ok());
}

/// A guest that follows NSID 1 as Linux does.
struct Follower<'a> {
    guest: &'a Guest,
    pair: (Sq, Cq),
    request: u16,
    buffer: u64,
    // The namespace that it last found.
    believes: Option<Uuid>,
    looks: u32,
    // It was told, and hears nothing more until it has read the log.
    owes_look: bool,
}

impl<'a> Follower<'a> {
    fn new(guest: &'a Guest) -> Self {
        guest.admin_ok(set_feature(0x0b, 1 << 8));
        Self {
            guest,
            pair: guest.create_pair(1, 8),
            request: guest.submit_admin(event_request()),
            buffer: guest.machine.page(),
            believes: None,
            looks: 0,
            owes_look: false,
        }
    }

    /// Whether an event came; it is asked for the next one then.
    fn heard(&mut self) -> bool {
        let Some(cqe) = self.guest.take_admin(self.request) else {
            return false;
        };
        assert_eq!(cqe.dw0, NAMESPACE_CHANGED);
        self.request = self.guest.submit_admin(event_request());
        self.owes_look = true;
        true
    }

    fn wait_heard(&mut self) {
        wait_until("an event", || self.heard());
    }

    /// Reads the log, the list of active namespaces and what is in it; what the log told.
    fn look(&mut self) -> Vec<u32> {
        let (guest, page) = (self.guest, self.buffer);
        guest.admin_ok(get_log(4, 0, 4096, page, false));
        let log = guest.machine.read(page, 4096);
        let list = self.identify(2, 0).unwrap();
        self.believes = None;
        // It may go between the two.
        if list[..4] == [1, 0, 0, 0]
            && let Some(descriptors) = self.identify(3, 1)
        {
            assert_eq!(descriptors[..2], [3, 16], "a UUID first");
            self.believes = Uuid::from_slice(&descriptors[4..20]).ok();
        }
        self.looks += 1;
        self.owes_look = false;
        let numbers = log
            .chunks(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()));
        numbers.take_while(|nsid| *nsid != 0).collect()
    }

    fn identify(&self, cns: u32, nsid: u32) -> Option<Vec<u8>> {
        let cqe = self.guest.admin(crate::nvme::spec::Sqe {
            nsid,
            prp1: self.buffer,
            cdw10: cns,
            ..admin(crate::nvme::spec::AdminOpcode::IDENTIFY)
        });
        let found = cqe.status() == Status::SUCCESS;
        found.then(|| self.guest.machine.read(self.buffer, 4096))
    }

    /// Reads from NSID 1: whose bytes came, if any. They must be of the one that it believes in.
    fn read(&mut self) -> Result<Uuid, Status> {
        let read = transfer(NvmOpcode::READ, 1, 0, 1, (self.buffer, 0));
        let status = self.guest.io(&mut self.pair, &read).status();
        if status != Status::SUCCESS {
            return Err(status);
        }
        let bytes = self.guest.machine.read(self.buffer, 16);
        let uuid = Uuid::from_slice(&bytes).unwrap();
        assert_eq!(Some(uuid), self.believes, "the bytes of another namespace");
        Ok(uuid)
    }

    /// Looks whenever an event comes, until it believes in `uuid`.
    fn follow_to(&mut self, uuid: Uuid) {
        while self.believes != Some(uuid) {
            if !self.owes_look {
                self.wait_heard();
            }
            self.look();
        }
        assert_eq!(self.read(), Ok(uuid));
    }
}

#[test]
fn another_namespace_at_an_nsid_waits_until_the_guest_found_that_the_old_one_went() {
    let machine = Machine::new();
    let (old, _control) = add(&machine, None);
    let (old, _) = (old.uuid(), drop(old));
    let guest = machine.enabled("c");
    let mut follower = Follower::new(&guest);
    follower.look();
    assert_eq!(follower.read(), Ok(old));

    remove(&machine);
    let (new, _control) = add(&machine, None);
    assert_ne!(new.uuid(), old);
    follower.wait_heard();
    assert_eq!(follower.read(), Err(Status::INTERNAL_PATH_ERROR));
    assert_eq!(follower.identify(0, 1).unwrap()[..8], [0; 8], "inactive");
    assert_eq!(guest.controller.info().namespaces, [0u32; 0]);
    // A list that cannot have the NSID tells nothing of it.
    follower.identify(2, 1);
    assert_eq!((follower.look(), follower.believes), (vec![1], None));
    // It may still be at dropping the old one.
    assert_eq!(follower.read(), Err(Status::INTERNAL_PATH_ERROR));
    follower.wait_heard();
    assert_eq!(follower.look(), [1]);
    assert_eq!(follower.believes, Some(new.uuid()));
    assert_eq!(follower.read(), Ok(new.uuid()));
    // If somebody else read the list meanwhile, this is the look that counts.
    follower.wait_heard();
    assert_eq!(follower.look(), [1]);
    follower.identify(1, 0);
    assert!(!follower.heard(), "nothing is left to tell");
}

#[test]
fn a_namespace_comes_late_if_the_guest_knew_that_the_old_one_went() {
    let machine = Machine::new();
    add(&machine, None);
    let guest = machine.enabled("c");
    let mut follower = Follower::new(&guest);
    follower.look();
    remove(&machine);
    follower.wait_heard();
    assert_eq!((follower.look(), follower.believes), (vec![1], None));
    // Commands of before may still be on their way.
    let (new, _control) = add(&machine, None);
    assert_eq!(follower.read(), Err(Status::INTERNAL_PATH_ERROR));
    follower.wait_heard();
    assert_eq!(follower.look(), [1]);
    assert_eq!(follower.read(), Ok(new.uuid()));
}

#[test]
fn the_same_identity_returns_at_once() {
    let machine = Machine::new();
    let uuid = Uuid::from_u128(7);
    add(&machine, Some(uuid));
    let guest = machine.enabled("c");
    let mut follower = Follower::new(&guest);
    follower.look();
    for _ in 0..3 {
        remove(&machine);
        assert_eq!(follower.read(), Err(Status::INTERNAL_PATH_ERROR));
        add(&machine, Some(uuid));
        assert_eq!(follower.read(), Ok(uuid));
    }
    // It returns past another one that the guest never saw.
    remove(&machine);
    add(&machine, None);
    assert_eq!(follower.read(), Err(Status::INTERNAL_PATH_ERROR));
    remove(&machine);
    add(&machine, Some(uuid));
    assert_eq!(follower.read(), Ok(uuid));
    follower.wait_heard();
    follower.look();
    assert_eq!(follower.believes, Some(uuid));
}

#[test]
fn other_blocks_are_another_namespace_even_if_the_bytes_are_the_same() {
    let machine = Machine::new();
    let uuid = Uuid::from_u128(7);
    add(&machine, Some(uuid));
    let guest = machine.enabled("c");
    let mut follower = Follower::new(&guest);
    follower.look();
    remove(&machine);
    let (backend, control) = TestBackend::new(64 << 10, 4096);
    control.poke(0, uuid.as_bytes());
    let config = shared(Some(uuid));
    machine.subsystem.add_namespace(config, backend).unwrap();
    // What the guest takes for a block of 512 bytes would be one of 4,096.
    assert_eq!(follower.read(), Err(Status::INTERNAL_PATH_ERROR));
    follower.wait_heard();
    follower.look();
    follower.follow_to(uuid);
}

#[test]
fn a_file_keeps_its_uuid_whether_read_only_or_not_and_another_file_has_another() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let mut follower = Follower::new(&guest);
    let files = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
    let mut uuids = Vec::new();
    for (file, read_only) in [(0, false), (0, true), (1, false), (0, false), (1, true)] {
        files[file].as_file().set_len(4096).unwrap();
        let config = BackendConfig {
            kind: BackendKind::File {
                path: files[file].path().into(),
                cache: CacheMode::Writeback,
            },
            read_only,
            block_size: 512,
        };
        let backend = crate::storage::open(&config).unwrap();
        let namespace = machine.subsystem.add_namespace(shared(None), backend);
        let uuid = namespace.unwrap().uuid();
        while follower.believes != Some(uuid) {
            follower.wait_heard();
            follower.look();
        }
        assert_eq!(
            follower.identify(0, 1).unwrap()[99] & 1,
            u8::from(read_only)
        );
        uuids.push(uuid);
        remove(&machine);
    }
    assert_ne!(uuids[0], uuids[2]);
    assert_eq!(uuids[0], uuids[1]);
    assert_eq!(uuids[0], uuids[3]);
    assert_eq!(uuids[2], uuids[4]);
}

#[test]
fn a_reset_is_no_look() {
    // The change is before the reset, or while the controller is disabled.
    for disabled in [false, true] {
        let machine = Machine::new();
        let (old, _control) = add(&machine, None);
        drop(old);
        let guest = machine.enabled("c");
        let mut follower = Follower::new(&guest);
        follower.look();
        follower.read().unwrap();
        let (new, _control) = if disabled {
            guest.disable();
            remove(&machine);
            add(&machine, None)
        } else {
            remove(&machine);
            let added = add(&machine, None);
            guest.disable();
            added
        };
        guest.enable();
        // A driver sends again what it had in flight before it looks at what is there.
        let mut follower = Follower::new(&guest);
        assert_eq!(follower.read(), Err(Status::INTERNAL_PATH_ERROR));
        follower.look();
        assert_eq!(follower.believes, None);
        follower.follow_to(new.uuid());
    }
}

#[test]
fn a_look_before_a_reset_does_not_count() {
    let machine = Machine::new();
    add(&machine, None);
    let guest = machine.enabled("c");
    let mut follower = Follower::new(&guest);
    follower.look();
    remove(&machine);
    let (new, _control) = add(&machine, None);
    // The reset may have come before its answer.
    follower.identify(2, 0);
    guest.disable();
    guest.enable();
    let mut follower = Follower::new(&guest);
    assert_eq!(follower.read(), Err(Status::INTERNAL_PATH_ERROR));
    follower.look();
    assert_eq!(follower.believes, None);
    follower.follow_to(new.uuid());
}

#[test]
fn each_controller_waits_for_its_own_guest() {
    let machine = Machine::new();
    let (old, _control) = add(&machine, None);
    let guests = [machine.enabled("a"), machine.enabled("b")];
    let [mut a, mut b] = guests.each_ref().map(Follower::new);
    a.look();
    b.look();
    drop(old);
    remove(&machine);
    let (new, _control) = add(&machine, None);
    a.follow_to(new.uuid());
    assert_eq!(b.read(), Err(Status::INTERNAL_PATH_ERROR));
    b.follow_to(new.uuid());
}

#[test]
fn a_guest_that_looks_now_and_then_never_reaches_a_namespace_that_it_does_not_know() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let mut follower = Follower::new(&guest);
    let (first, _control) = add(&machine, None);
    follower.follow_to(first.uuid());
    drop(first);
    remove(&machine);
    for round in 0..100u32 {
        let (namespace, _control) = add(&machine, None);
        let _ = follower.read();
        match round % 7 {
            0 | 3 => follower.follow_to(namespace.uuid()),
            1 => {
                follower.look();
            }
            4 => {
                follower.heard();
            }
            _ => {}
        }
        let _ = follower.read();
        drop(namespace);
        remove(&machine);
        assert!(follower.read().is_err(), "nobody is there");
        if round % 5 == 0 {
            follower.look();
            assert_eq!(follower.believes, None);
        }
    }
    let (last, _control) = add(&machine, None);
    follower.follow_to(last.uuid());
    assert!(follower.looks >= 30, "it looked {} times", follower.looks);
}

#[test]
fn commands_on_their_way_never_reach_the_next_namespace() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let done = AtomicBool::new(false);
    add(&machine, Some(Uuid::from_u128(1000)));
    let last = std::thread::scope(|scope| {
        let (machine, done) = (&machine, &done);
        let changes = scope.spawn(move || {
            for number in 1..=300 {
                remove(machine);
                add(machine, Some(Uuid::from_u128(number)));
            }
            remove(machine);
            let (last, _control) = add(machine, Some(Uuid::from_u128(2000)));
            done.store(true, Ordering::Release);
            last.uuid()
        });
        let mut follower = Follower::new(&guest);
        follower.look();
        let mut rounds = 0u32;
        while !done.load(Ordering::Acquire) || rounds < 100 {
            let _ = follower.read();
            if follower.heard() || rounds.is_multiple_of(5) {
                follower.look();
            }
            rounds += 1;
        }
        let last = changes.join().unwrap();
        follower.look();
        follower.follow_to(last);
        last
    });
    assert_eq!(machine.subsystem.namespace(1).unwrap().uuid(), last);
}
