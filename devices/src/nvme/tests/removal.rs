//! Namespaces and controllers that go while they are in use.

use vmm_sys_util::eventfd::EventFd;

use super::harness::*;
use super::held::{remove, wait};
use crate::nvme::spec::{NvmOpcode, Status};
use crate::storage::testing::Mode;
use crate::storage::{BackendConfig, BackendKind, CacheMode, open};
use crate::subsystem::{NamespaceConfig, SubsystemError};

#[test]
fn a_removed_namespace_closes_when_its_last_command_ends() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    control.set_mode(Mode::Hold);
    guest.submit(&mut pair.0, &flush(1));
    control.wait_held(1).unwrap();
    let request = guest.submit_admin(event_request());
    guest.admin_ok(set_feature(0x0b, 1 << 8));

    let (closed, namespace) = remove(&machine, 1);
    drop(namespace);
    assert!(machine.subsystem.remove_namespace(1).is_none());
    assert_eq!(guest.wait_admin(request).dw0 & 0xff, 2, "a notice");
    // The guest may try another path, even if it has looked: it is at letting go then. By the second
    // time it has.
    for cid in 2..4 {
        let late = guest.io(&mut pair, &flush(cid));
        assert_eq!(
            (late.status(), late.dnr()),
            (Status::INTERNAL_PATH_ERROR, false)
        );
        assert_eq!(guest.identify(2, 0, 0, 0).unwrap()[..4], [0; 4]);
    }
    let known = guest.io(&mut pair, &flush(4));
    assert_eq!((known.status(), known.dnr()), (Status::INVALID_FIELD, true));

    assert!(closed.read().is_err(), "a command is in flight");
    assert!(control.release_one());
    let ended = guest.wait_cqe(&mut pair.1);
    assert_eq!((ended.cid, ended.status()), (1, Status::SUCCESS));
    wait(&closed);
}

#[test]
fn what_does_not_end_is_aborted() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let other = machine.memory_namespace(1 << 20, 512);
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    control.set_mode(Mode::Hold);
    guest.submit(&mut pair.0, &flush(1));
    control.wait_held(1).unwrap();
    let (closed, namespace) = remove(&machine, 1);
    guest.controller.abort_namespace(&other);
    guest.controller.abort_namespace(&namespace);
    drop(namespace);
    let ended = guest.wait_cqe(&mut pair.1);
    assert_eq!(
        (ended.cid, ended.status()),
        (1, Status::INTERNAL_PATH_ERROR)
    );
    wait(&closed);
    let sqe = nvm(NvmOpcode::FLUSH, 2, other.nsid());
    assert_eq!(guest.io(&mut pair, &sqe).status(), Status::SUCCESS);
}

#[test]
fn an_nsid_can_be_used_again() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    for round in 0..100u64 {
        let size = (round + 1) * 4096;
        let namespace = machine.memory_namespace(size, 512);
        assert_eq!(namespace.nsid(), 1);
        drop(namespace);
        guest.identify(2, 0, 0, 0).unwrap();
        assert_eq!(guest.io(&mut pair, &flush(1)).status(), Status::SUCCESS);
        let id = guest.identify(0, 1, 0, 0).unwrap();
        assert_eq!(id[..8], (size / 512).to_le_bytes());
        let (closed, namespace) = remove(&machine, 1);
        drop(namespace);
        wait(&closed);
        assert_eq!(guest.identify(0, 1, 0, 0).unwrap()[..8], [0; 8]);
        assert_eq!(guest.identify(2, 0, 0, 0).unwrap()[..4], [0; 4]);
    }
}

#[test]
fn attachments_change_for_one_controller_at_a_time() {
    let machine = Machine::new();
    let nsid = machine.memory_namespace(1 << 20, 512).nsid();
    let (a, b) = (machine.enabled("a"), machine.enabled("b"));
    let sees = |guest: &Guest| guest.identify(2, 0, 0, 0).unwrap()[..4] != [0; 4];
    let subsystem = &machine.subsystem;
    assert!(sees(&a) && sees(&b));
    subsystem.detach(nsid, "a").unwrap();
    assert!(!sees(&a) && sees(&b));
    assert_eq!(subsystem.attached_to(nsid), [b.controller.cntlid()]);
    assert!(matches!(
        subsystem.detach(nsid, "a"),
        Err(SubsystemError::NotAttached { .. })
    ));
    assert!(matches!(
        subsystem.attach(nsid, "b"),
        Err(SubsystemError::Attached { .. })
    ));
    assert!(matches!(
        subsystem.attach(nsid, "x"),
        Err(SubsystemError::NoController { .. })
    ));
    assert!(matches!(
        subsystem.attach(9, "a"),
        Err(SubsystemError::NoNamespace { .. })
    ));
    // A controller's reset changes nothing; a new controller starts as one that was booted.
    a.disable();
    a.enable();
    assert!(!sees(&a));
    drop(a);
    let a = machine.enabled("a");
    assert!(sees(&a));
    subsystem.detach(nsid, "b").unwrap();
    subsystem.attach(nsid, "b").unwrap();
    assert!(sees(&b));
}

#[test]
fn a_stopped_controller_is_quiet_when_its_commands_ended() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    control.set_mode(Mode::Hold);
    guest.submit(&mut pair.0, &flush(1));
    control.wait_held(1).unwrap();
    assert!(!guest.controller.is_quiet());
    let quiet = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    guest.controller.stop(quiet.try_clone().unwrap());
    wait(&quiet);
    assert!(guest.controller.is_quiet());
    control.release_all();
    assert!(!pair.1.has_one());
}

/// I/O threads keep the images that they have used: they let go of them, asleep or not, before anybody
/// hears that the namespace is gone.
#[test]
fn an_image_is_free_when_its_namespace_is_gone() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    // Each on a thread of its own.
    let mut pairs = [1, 2].map(|id| guest.create_pair(id, 8));
    let buffer = machine.page();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let image = BackendConfig {
        kind: BackendKind::File {
            path: file.path().into(),
            cache: CacheMode::Writeback,
        },
        read_only: false,
        block_size: 512,
    };
    for round in 0..20 {
        let backend = open(&image).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let config = NamespaceConfig {
            shared: true,
            nsid: Some(1),
            ..NamespaceConfig::default()
        };
        machine.subsystem.add_namespace(config, backend).unwrap();
        for pair in &mut pairs {
            // The guest has to look first if it had a namespace there before.
            guest.identify(2, 0, 0, 0).unwrap();
            let cqe = guest.io(pair, &transfer(NvmOpcode::READ, 1, 0, 8, (buffer, 0)));
            assert_eq!(cqe.status(), Status::SUCCESS, "round {round}");
        }
        let (closed, namespace) = remove(&machine, 1);
        drop(namespace);
        wait(&closed);
        guest.identify(2, 0, 0, 0).unwrap();
    }
}
