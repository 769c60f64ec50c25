//! Identify, and who sees which namespace.

use std::sync::Arc;

use uuid::Uuid;

use super::harness::*;
use crate::nvme::spec::{AdminOpcode, Sqe, Status};
use crate::nvme::{ControllerConfig, ControllerError};
use crate::storage::{Backend, BackendConfig, BackendKind, open};
use crate::subsystem::{NamespaceConfig, SubsystemError};

fn backend(size: u64, block_size: u32, read_only: bool) -> Arc<dyn Backend> {
    let kind = BackendKind::Null { size };
    open(&BackendConfig {
        kind,
        read_only,
        block_size,
    })
    .unwrap()
}

fn shared(nsid: u32) -> NamespaceConfig {
    NamespaceConfig {
        nsid: Some(nsid),
        shared: true,
        ..NamespaceConfig::default()
    }
}

fn private(nsid: u32, ctrl: &str) -> NamespaceConfig {
    NamespaceConfig {
        nsid: Some(nsid),
        ctrl: Some(ctrl.into()),
        ..NamespaceConfig::default()
    }
}

fn detached(nsid: u32) -> NamespaceConfig {
    NamespaceConfig {
        nsid: Some(nsid),
        detached: true,
        shared: true,
        ..NamespaceConfig::default()
    }
}

/// The NSIDs of a list structure.
fn nsids(page: &[u8]) -> Vec<u32> {
    let numbers = page
        .chunks(4)
        .map(|b| u32::from_le_bytes(b.try_into().unwrap()));
    numbers.take_while(|nsid| *nsid != 0).collect()
}

/// The CNTLIDs of a controller list.
fn cntlids(page: &[u8]) -> Vec<u16> {
    let mut numbers = page
        .chunks(2)
        .map(|b| u16::from_le_bytes(b.try_into().unwrap()));
    let count = numbers.next().unwrap();
    numbers.take(count.into()).collect()
}

#[track_caller]
fn refused(guest: &Guest, (cns, nsid, cntid, csi): (u8, u32, u16, u8), status: Status) {
    let cqe = guest
        .identify(cns, nsid, cntid, csi)
        .expect_err("must be refused");
    assert_eq!(
        (cqe.status(), cqe.dnr()),
        (status, true),
        "CNS {cns:#x} NSID {nsid:#x}"
    );
}

#[test]
fn the_controller_structure_says_what_it_is() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let page = guest.identify(1, 0, 0, 0).unwrap();
    assert_eq!(&page[4..24], b"serial-1            ");
    assert_eq!(&page[24..64], format!("{:40}", "berth test").as_bytes());
    assert_eq!(&page[64..72], b"1.0     ");
    assert_eq!(page[76], 2, "CMIC: several controllers");
    assert_eq!(page[77], 5, "MDTS");
    assert_eq!(page[80..84], [0, 0, 2, 0], "VER");
    assert_eq!(page[92..96], [0, 1, 0, 0], "OAES");
    assert_eq!(page[111], 1, "an I/O controller");
    assert_eq!(page[256..258], [0, 1], "OACS");
    assert_eq!(page[512..514], [0x66, 0x44], "entry sizes");
    assert_eq!(page[516..520], 1024u32.to_le_bytes(), "NN");
    assert_eq!(page[520..522], [0b1_1100, 0], "ONCS");
    assert_eq!(page[525], 7, "VWC");
    let nqn = machine.subsystem.nqn().as_bytes();
    assert_eq!(&page[768..768 + nqn.len()], nqn);
    assert!(page[768 + nqn.len()..1024].iter().all(|byte| *byte == 0));
}

#[test]
fn a_namespace_has_its_size_format_and_attributes() {
    let machine = Machine::new();
    let add = |config, backend| machine.subsystem.add_namespace(config, backend).unwrap();
    add(shared(1), backend(1 << 20, 512, false));
    add(
        NamespaceConfig {
            eui64: Some(0x0102_0304_0506_0708),
            nguid: Some([9; 16]),
            ..private(7, "c")
        },
        backend(1 << 20, 4096, true),
    );
    let guest = machine.enabled("c");
    let page = guest.identify(0, 1, 0, 0).unwrap();
    for at in [0, 8, 16] {
        assert_eq!(page[at..at + 8], 2048u64.to_le_bytes());
    }
    assert_eq!((page[25], page[26], page[30], page[99]), (0, 0, 1, 0));
    assert_eq!(page[128..132], [0, 0, 9, 0], "LBA format 0");
    assert_eq!(page[104..128], [0; 24]);
    let page = guest.identify(0, 7, 0, 0).unwrap();
    assert_eq!(page[..8], 256u64.to_le_bytes());
    assert_eq!((page[30], page[99]), (0, 1), "private, write protected");
    assert_eq!(page[128..132], [0, 0, 12, 0]);
    assert_eq!(page[104..120], [9; 16]);
    assert_eq!(page[120..128], [1, 2, 3, 4, 5, 6, 7, 8]);
    let page = guest.identify(8, 7, 0, 0).unwrap();
    assert_eq!((page[1], page[8], page[14]), (0, 1, 1));
    // Inactive, common, and no namespaces at all.
    assert_eq!(guest.identify(0, 2, 0, 0).unwrap(), [0; 4096]);
    assert_eq!(guest.identify(0, u32::MAX, 0, 0).unwrap()[..8], [0; 8]);
    for nsid in [0, 1025, u32::MAX - 1] {
        refused(&guest, (0, nsid, 0, 0), Status::INVALID_NAMESPACE);
        refused(&guest, (8, nsid, 0, 0), Status::INVALID_NAMESPACE);
    }
}

#[test]
fn namespace_descriptors_name_it() {
    let machine = Machine::new();
    let uuid = Uuid::from_bytes([0x5a; 16]);
    let config = NamespaceConfig {
        uuid: Some(uuid),
        eui64: Some(0x0102_0304_0506_0708),
        nguid: Some([9; 16]),
        ..shared(3)
    };
    machine
        .subsystem
        .add_namespace(config, backend(4096, 512, false))
        .unwrap();
    let plain = machine
        .subsystem
        .add_namespace(shared(4), backend(4096, 512, false))
        .unwrap();
    let guest = machine.enabled("c");
    let page = guest.identify(3, 3, 0, 0).unwrap();
    let mut rest = &page[..];
    let mut found = Vec::new();
    while rest[0] != 0 {
        let (kind, len) = (rest[0], usize::from(rest[1]));
        found.push((kind, rest[4..4 + len].to_vec()));
        rest = &rest[4 + len..];
    }
    assert!(rest.iter().all(|byte| *byte == 0));
    found.sort();
    let expected = [
        (1, vec![1, 2, 3, 4, 5, 6, 7, 8]),
        (2, vec![9; 16]),
        (3, uuid.as_bytes().to_vec()),
        (4, vec![0]),
    ];
    assert_eq!(found, expected);
    // Without identifiers, a UUID that stays the same.
    let page = guest.identify(3, 4, 0, 0).unwrap();
    assert_eq!(page[..2], [3, 16]);
    assert_eq!(page[4..20], *plain.uuid().as_bytes());
    refused(&guest, (3, 5, 0, 0), Status::INVALID_FIELD);
    refused(&guest, (3, 0, 0, 0), Status::INVALID_NAMESPACE);
    refused(&guest, (3, u32::MAX, 0, 0), Status::INVALID_NAMESPACE);
}

#[test]
fn lists_begin_behind_the_nsid_given() {
    let machine = Machine::new();
    for config in [
        shared(2),
        shared(3),
        private(5, "other"),
        detached(9),
        shared(1024),
    ] {
        machine
            .subsystem
            .add_namespace(config, backend(4096, 512, false))
            .unwrap();
    }
    let guest = machine.enabled("c");
    for (after, active, allocated) in [
        (0, vec![2, 3, 1024], vec![2, 3, 5, 9, 1024]),
        (2, vec![3, 1024], vec![3, 5, 9, 1024]),
        (4, vec![1024], vec![5, 9, 1024]),
        (1023, vec![1024], vec![1024]),
        (1024, vec![], vec![]),
        (u32::MAX - 2, vec![], vec![]),
    ] {
        assert_eq!(nsids(&guest.identify(2, after, 0, 0).unwrap()), active);
        assert_eq!(nsids(&guest.identify(7, after, 0, 0).unwrap()), active);
        assert_eq!(
            nsids(&guest.identify(0x10, after, 0, 0).unwrap()),
            allocated
        );
    }
    for nsid in [u32::MAX - 1, u32::MAX] {
        for cns in [2, 7, 0x10] {
            refused(&guest, (cns, nsid, 0, 0), Status::INVALID_NAMESPACE);
        }
    }
    // Allocated, but not attached here.
    assert_eq!(guest.identify(0, 5, 0, 0).unwrap(), [0; 4096]);
    assert_eq!(
        guest.identify(0x11, 5, 0, 0).unwrap()[..8],
        8u64.to_le_bytes()
    );
    assert_eq!(guest.identify(0x11, 6, 0, 0).unwrap(), [0; 4096]);
    refused(&guest, (0x11, 0, 0, 0), Status::INVALID_NAMESPACE);
    refused(&guest, (0x11, u32::MAX, 0, 0), Status::INVALID_NAMESPACE);
}

#[test]
fn controller_lists_begin_at_the_identifier_given() {
    let machine = Machine::new();
    for config in [shared(1), private(2, "b"), detached(3)] {
        machine
            .subsystem
            .add_namespace(config, backend(4096, 512, false))
            .unwrap();
    }
    let a = machine.enabled("a");
    let with_id = ControllerConfig {
        cntlid: Some(0x30),
        ..config("b")
    };
    let _b = Guest::new(&machine, &machine.subsystem, with_id).unwrap();
    let _c = machine.controller("c");
    let list = |cns, nsid, from| cntlids(&a.identify(cns, nsid, from, 0).unwrap());
    assert_eq!(list(0x13, 0, 0), [0, 1, 0x30]);
    assert_eq!(list(0x13, 0, 1), [1, 0x30]);
    assert_eq!(list(0x13, 0, 0x31), [0u16; 0]);
    assert_eq!(list(0x12, 1, 0), [0, 1, 0x30]);
    assert_eq!(list(0x12, 1, 2), [0x30]);
    assert_eq!(list(0x12, 2, 0), [0x30]);
    assert_eq!(list(0x12, 3, 0), [0u16; 0]);
    assert_eq!(list(0x12, 4, 0), [0u16; 0]);
    refused(&a, (0x12, 0, 0, 0), Status::INVALID_NAMESPACE);
}

#[test]
fn only_the_nvm_command_set_is_there() {
    let machine = Machine::new();
    machine.memory_namespace(4096, 512);
    let guest = machine.enabled("c");
    assert_eq!(guest.identify(5, 1, 0, 0).unwrap(), [0; 4096]);
    assert_eq!(guest.identify(6, 0, 0, 0).unwrap(), [0; 4096]);
    for csi in [1, 2, 0xff] {
        for cns in [5, 6, 7] {
            refused(
                &guest,
                (cns, 1, 0, csi),
                Status::IO_COMMAND_SET_NOT_SUPPORTED,
            );
        }
    }
    let sets = guest.identify(0x1c, 0, 0xffff, 0).unwrap();
    assert_eq!(sets[..8], 1u64.to_le_bytes());
    assert!(sets[8..].iter().all(|byte| *byte == 0));
    assert_eq!(guest.identify(0x1c, 0, 0, 0).unwrap(), sets);
    refused(&guest, (0x1c, 0, 77, 0), Status::INVALID_FIELD);
}

#[test]
fn unknown_structures_are_refused() {
    let guest = Machine::new().enabled("c");
    let known = [0, 1, 2, 3, 5, 6, 7, 8, 0x10, 0x11, 0x12, 0x13, 0x1c];
    for cns in (0..=0xff).filter(|cns| !known.contains(cns)) {
        refused(&guest, (cns, 1, 0, 0), Status::INVALID_FIELD);
    }
}

#[test]
fn data_pointers_that_lead_nowhere_are_refused() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    for (prp1, prp2, status) in [
        (0xe000_0000, 0, Status::DATA_TRANSFER_ERROR),
        (u64::MAX & !3, 0, Status::DATA_TRANSFER_ERROR),
        (0x1002, 0, Status::INVALID_PRP_OFFSET),
        (0x1800, 0x2004, Status::INVALID_PRP_OFFSET),
        (0x1800, 0xe000_0000, Status::DATA_TRANSFER_ERROR),
    ] {
        let cqe = guest.admin(Sqe {
            prp1,
            prp2,
            cdw10: 1,
            ..admin(AdminOpcode::IDENTIFY)
        });
        assert_eq!(
            (cqe.status(), cqe.dnr()),
            (status, true),
            "{prp1:#x} {prp2:#x}"
        );
    }
    // In two parts.
    let (first, second) = (machine.alloc(8192), machine.page());
    guest.admin_ok(Sqe {
        prp1: first + 0xffc,
        prp2: second,
        cdw10: 1,
        ..admin(AdminOpcode::IDENTIFY)
    });
    assert_eq!(machine.read(second, 4), b"seri");
}

#[test]
fn controllers_of_one_subsystem_share_its_name_and_not_their_identifier() {
    let machine = Machine::new();
    let other = subsystem("subsys1", true);
    let guests = [machine.enabled("a"), machine.enabled("b")];
    let stranger = Guest::new(&machine, &other, config("a")).unwrap();
    stranger.enable();
    let [a, b] = guests
        .each_ref()
        .map(|guest| guest.identify(1, 0, 0, 0).unwrap());
    let stranger = stranger.identify(1, 0, 0, 0).unwrap();
    assert_eq!(a[768..1024], b[768..1024]);
    assert_ne!(a[768..1024], stranger[768..1024]);
    assert_ne!(a[78..80], b[78..80]);
    assert_eq!(a[78..80], stranger[78..80]);
}

#[test]
fn private_namespaces_are_seen_by_their_controller_only() {
    let machine = Machine::new();
    for config in [shared(1), private(2, "a"), private(3, "b"), detached(4)] {
        machine
            .subsystem
            .add_namespace(config, backend(4096, 512, false))
            .unwrap();
    }
    let (a, b) = (machine.enabled("a"), machine.enabled("b"));
    assert_eq!(nsids(&a.identify(2, 0, 0, 0).unwrap()), [1, 2]);
    assert_eq!(nsids(&b.identify(2, 0, 0, 0).unwrap()), [1, 3]);
    let mut pair = b.create_pair(1, 4);
    for (nsid, status) in [
        (1, Status::SUCCESS),
        (2, Status::INVALID_FIELD),
        (3, Status::SUCCESS),
        (4, Status::INVALID_FIELD),
    ] {
        let sqe = Sqe { nsid, ..flush(0) };
        assert_eq!(b.io(&mut pair, &sqe).status(), status, "NSID {nsid}");
    }
}

#[test]
fn a_subsystem_that_is_not_shared_takes_one_controller_at_a_time() {
    let machine = Machine::with(false, 1);
    let first = machine.enabled("a");
    assert_eq!(first.identify(1, 0, 0, 0).unwrap()[76], 0, "CMIC");
    let second = || Guest::new(&machine, &machine.subsystem, config("b"));
    let refused = second().err().expect("refused");
    assert!(matches!(
        refused,
        ControllerError::Subsystem(SubsystemError::NotShared { .. })
    ));
    drop(first);
    assert_eq!(second().unwrap().controller.cntlid(), 0);
}

#[test]
fn a_controller_that_goes_frees_its_cntlid_and_keeps_the_namespaces() {
    let machine = Machine::new();
    machine.memory_namespace(4096, 512);
    let a = machine.enabled("a");
    let _b = machine.controller("b");
    let with_id = |cntlid| {
        let config = ControllerConfig {
            cntlid,
            ..config("c")
        };
        Guest::new(&machine, &machine.subsystem, config)
    };
    assert!(with_id(Some(0)).is_err());
    assert!(with_id(Some(0xfff0)).is_err());
    drop(a);
    assert_eq!(machine.subsystem.controllers(), [1]);
    assert_eq!(machine.subsystem.allocated(), [1]);
    let c = with_id(None).unwrap();
    assert_eq!(c.controller.cntlid(), 0);
}
