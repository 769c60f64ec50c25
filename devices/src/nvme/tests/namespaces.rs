//! Namespaces that come and change while controllers run.

use std::sync::{Arc, Mutex, mpsc};

use super::harness::*;
use crate::nvme::spec::{NvmOpcode, Status};
use crate::storage::testing::{Mode, TestBackend};
use crate::subsystem::{AttachmentTable, ControllerLink, Link, Namespace, NamespaceConfig};

fn watch(guest: &Guest) -> u16 {
    guest.admin_ok(set_feature(0x0b, 1 << 8));
    guest.submit_admin(event_request())
}

fn changed(guest: &Guest) -> Vec<u8> {
    let buffer = guest.machine.page();
    guest.admin_ok(get_log(4, 0, 4096, buffer, false));
    guest.machine.read(buffer, 8)
}

#[test]
fn all_controllers_hear_of_a_new_namespace_and_can_use_it() {
    let machine = Machine::new();
    let guests = [machine.enabled("a"), machine.enabled("b")];
    let requests = guests.each_ref().map(watch);
    let mut pairs = guests.each_ref().map(|guest| guest.create_pair(1, 4));
    for (guest, pair) in guests.iter().zip(&mut pairs) {
        assert_eq!(guest.io(pair, &flush(0)).status(), Status::INVALID_FIELD);
    }
    machine.memory_namespace(4096, 512);
    for ((guest, request), pair) in guests.iter().zip(requests).zip(&mut pairs) {
        assert_eq!(guest.wait_admin(request).dw0, 0x0004_0002);
        assert_eq!(changed(guest), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(guest.identify(0, 1, 0, 0).unwrap()[0], 8);
        assert_eq!(guest.io(pair, &flush(0)).status(), Status::SUCCESS);
    }
}

#[test]
fn a_private_namespace_is_news_to_its_controller_only() {
    let machine = Machine::new();
    let (a, b) = (machine.enabled("a"), machine.enabled("b"));
    let (of_a, of_b) = (watch(&a), watch(&b));
    let (backend, _control) = TestBackend::new(4096, 512);
    let private = NamespaceConfig {
        ctrl: Some("b".into()),
        ..NamespaceConfig::default()
    };
    machine.subsystem.add_namespace(private, backend).unwrap();
    b.wait_admin(of_b);
    a.identify(1, 0, 0, 0).unwrap();
    assert!(a.take_admin(of_a).is_none());
}

#[test]
fn a_new_size_is_noticed_told_and_usable() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let request = watch(&guest);
    let mut pair = guest.create_pair(1, 4);
    let buffer = machine.page();
    let last = |blocks: u64| transfer(NvmOpcode::READ, 0, blocks - 1, 1, (buffer, 0));
    assert_eq!(
        guest.io(&mut pair, &last(4096)).status(),
        Status::LBA_OUT_OF_RANGE
    );
    assert!(machine.subsystem.refresh_sizes().is_empty());
    control.resize(2 << 20);
    let changed: Vec<u32> = machine
        .subsystem
        .refresh_sizes()
        .iter()
        .map(|ns| ns.nsid())
        .collect();
    assert_eq!(changed, [1]);
    guest.wait_admin(request);
    assert_eq!(
        guest.identify(0, 1, 0, 0).unwrap()[..8],
        4096u64.to_le_bytes()
    );
    assert_eq!(guest.io(&mut pair, &last(4096)).status(), Status::SUCCESS);
    // Smaller, before anybody looked.
    control.resize(1 << 20);
    assert_eq!(
        guest.io(&mut pair, &last(4096)).status(),
        Status::LBA_OUT_OF_RANGE
    );
    // Who asks finds out.
    assert_eq!(
        guest.identify(0, 1, 0, 0).unwrap()[..8],
        2048u64.to_le_bytes()
    );
}

#[test]
fn commands_in_flight_do_not_mind_a_new_namespace() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    control.set_mode(Mode::Hold);
    guest.submit(&mut pair.0, &flush(1));
    control.wait_held(1).unwrap();
    for _ in 0..3 {
        machine.memory_namespace(4096, 512);
        guest.submit(&mut pair.0, &nvm(NvmOpcode::FLUSH, 2, 2));
        assert_eq!(guest.wait_cqe(&mut pair.1).cid, 2);
    }
    assert_eq!(
        guest.admin_ok(abort(1, 1)),
        0,
        "found by the table it started with"
    );
    assert_eq!(guest.wait_cqe(&mut pair.1).cid, 1);
}

/// An observer that goes while it is being told: its last owner elsewhere lets go of it.
struct Leaving {
    _link: Link,
    owner: Arc<Mutex<Option<Arc<Leaving>>>>,
}

impl ControllerLink for Leaving {
    fn attachments_changed(&self, _table: Arc<AttachmentTable>, changed: &[u32]) {
        if !changed.is_empty() {
            self.owner.lock().unwrap().take();
        }
    }

    fn in_flight(&self, _namespace: &Namespace) -> u64 {
        self.owner.lock().unwrap().take();
        0
    }
}

#[test]
fn a_controller_may_go_while_it_is_told_of_a_namespace() {
    let machine = Machine::new();
    let link = machine.subsystem.link("leaving", None).unwrap();
    let owner = Arc::<Mutex<Option<Arc<Leaving>>>>::default();
    let leaving = Arc::new(Leaving {
        _link: link,
        owner: Arc::clone(&owner),
    });
    let observer: Arc<dyn ControllerLink> = Arc::clone(&leaving) as _;
    leaving._link.observe(&observer);
    drop(observer);
    *owner.lock().unwrap() = Some(leaving);
    let (done, wait) = mpsc::channel();
    let adder = Arc::clone(&machine);
    std::thread::spawn(move || {
        adder.memory_namespace(4096, 512);
        done.send(()).unwrap();
    });
    wait.recv_timeout(LIMIT)
        .expect("the subsystem waits for itself");
    assert!(machine.subsystem.controllers().is_empty());
}
