//! Get Features and Set Features.

use super::harness::*;
use crate::nvme::spec::{AdminOpcode, NvmOpcode, Sqe, Status};
use crate::storage::Op;

const CURRENT: u32 = 0;
const DEFAULT: u32 = 1;
const SAVED: u32 = 2;
const CAPABILITIES: u32 = 3;

/// Feature, selector in dword 11, default, a value that can be set, and what is read back.
const FEATURES: [(u8, u32, u32, u32, u32); 10] = [
    (0x01, 0, 7, 0x0102_0305, 0x0102_0305),
    (0x02, 0, 0, 1 << 5, 1 << 5),
    (0x04, 0, 343, 350, 350),
    (0x04, 1 << 20, 0, 1 << 20 | 200, 200),
    (0x06, 0, 1, 0, 0),
    (0x07, 0, 7 << 16 | 7, 2 << 16 | 3, 2 << 16 | 3),
    (0x08, 0, 0, 0x0a05, 0x0a05),
    (0x09, 1, 1, 1 << 16 | 1, 1 << 16 | 1),
    (0x0a, 0, 0, 1, 1),
    (0x0b, 0, 0, 0xffff_ffff, 0x102),
];

#[test]
fn every_feature_has_its_default_takes_a_value_and_loses_it_in_a_reset() {
    let guest = Machine::new().enabled("c");
    for (fid, selector, default, value, read_back) in FEATURES {
        let get = |select| guest.admin_ok(get_feature(fid, select, selector));
        assert_eq!(get(CURRENT), default, "default of {fid:#x}");
        guest.admin_ok(set_feature(fid, value));
        assert_eq!(get(CURRENT), read_back, "value of {fid:#x}");
        assert_eq!((get(DEFAULT), get(SAVED)), (default, default), "{fid:#x}");
        assert_eq!(get(CAPABILITIES), 0b100, "changeable only: {fid:#x}");
    }
    guest.disable();
    guest.enable();
    for (fid, selector, default, ..) in FEATURES {
        assert_eq!(guest.admin_ok(get_feature(fid, CURRENT, selector)), default);
    }
}

#[test]
fn error_recovery_is_per_namespace() {
    let machine = Machine::new();
    for _ in 0..2 {
        machine.memory_namespace(4096, 512);
    }
    let guest = machine.enabled("c");
    let set = |nsid, cdw11| {
        guest.admin(Sqe {
            nsid,
            ..set_feature(5, cdw11)
        })
    };
    let get = |nsid, select| {
        guest.admin(Sqe {
            nsid,
            ..get_feature(5, select, 0)
        })
    };
    assert_eq!(set(1, 70).status(), Status::SUCCESS);
    assert_eq!((get(1, CURRENT).dw0, get(2, CURRENT).dw0), (70, 0));
    assert_eq!(set(u32::MAX, 80).status(), Status::SUCCESS);
    assert_eq!((get(1, CURRENT).dw0, get(2, CURRENT).dw0), (80, 80));
    assert_eq!(get(1, DEFAULT).dw0, 0);
    assert_eq!(get(1, CAPABILITIES).dw0, 0b110);
    assert_eq!(set(1, 1 << 16).status(), Status::INVALID_FIELD);
    for (nsid, status) in [
        (0, Status::INVALID_NAMESPACE),
        (3, Status::INVALID_FIELD),
        (1025, Status::INVALID_NAMESPACE),
    ] {
        assert_eq!(set(nsid, 1).status(), status);
        assert_eq!(get(nsid, CURRENT).status(), status);
    }
}

#[test]
fn what_is_refused() {
    let machine = Machine::new();
    machine.memory_namespace(4096, 512);
    let guest = machine.enabled("c");
    let refused = |sqe: Sqe, status| {
        let cqe = guest.admin(sqe);
        assert_eq!((cqe.status(), cqe.dnr()), (status, true), "{sqe:?}");
    };
    for fid in [0x00, 0x03, 0x0c, 0x0d, 0x0e, 0x10, 0x11, 0x16, 0x80, 0xff] {
        refused(set_feature(fid, 0), Status::INVALID_FIELD);
        for select in [CURRENT, DEFAULT, SAVED, CAPABILITIES] {
            refused(get_feature(fid, select, 0), Status::INVALID_FIELD);
        }
    }
    for select in 4..8 {
        refused(get_feature(1, select, 0), Status::INVALID_FIELD);
    }
    for (fid, ..) in FEATURES {
        let save = set_feature(fid, 0);
        let save = Sqe {
            cdw10: save.cdw10 | 1 << 31,
            ..save
        };
        refused(save, Status::FEATURE_NOT_SAVEABLE);
        let for_namespace = Sqe {
            nsid: 1,
            ..set_feature(fid, 0)
        };
        refused(for_namespace, Status::FEATURE_NOT_NAMESPACE_SPECIFIC);
    }
    // A power state, a sensor, a threshold type, a vector and a profile that do not exist.
    refused(set_feature(2, 1), Status::INVALID_FIELD);
    refused(set_feature(4, 1 << 16), Status::INVALID_FIELD);
    refused(set_feature(4, 2 << 20), Status::INVALID_FIELD);
    refused(set_feature(9, u32::from(PAIRS) + 1), Status::INVALID_FIELD);
    refused(get_feature(9, CURRENT, 0xffff), Status::INVALID_FIELD);
    // The admin queue's interrupts are never coalesced.
    refused(set_feature(9, 0), Status::FEATURE_NOT_CHANGEABLE);
    guest.admin_ok(set_feature(9, 1 << 16));
    assert_eq!(guest.admin_ok(get_feature(9, CURRENT, 0)), 1 << 16);
    refused(
        set_feature(0x19, 1),
        Status::IO_COMMAND_SET_COMBINATION_REJECTED,
    );
    guest.admin_ok(set_feature(0x19, 0));
}

#[test]
fn the_number_of_queues_is_granted_once_and_bounds_identifiers() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    assert_eq!(guest.admin_ok(set_feature(7, 99 << 16 | 99)), 7 << 16 | 7);
    assert_eq!(guest.admin_ok(set_feature(7, 1 << 16)), 1 << 16);
    for cdw11 in [0xffff, 0xffff << 16] {
        assert_eq!(
            guest.admin(set_feature(7, cdw11)).status(),
            Status::INVALID_FIELD
        );
    }
    let cq = Cq::new(&machine, 3, 4);
    let too_high = guest.admin(create_cq(&cq, None));
    assert_eq!(too_high.status(), Status::INVALID_QUEUE_IDENTIFIER);
    guest.create_cq(2, 4);
    let too_high = guest.admin(create_sq(&Sq::new(&machine, 2, 4), 2));
    assert_eq!(too_high.status(), Status::INVALID_QUEUE_IDENTIFIER);
    let late = guest.admin(set_feature(7, 1 << 16));
    assert_eq!(late.status(), Status::COMMAND_SEQUENCE_ERROR);
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_CQ, 2));
    guest.admin_ok(set_feature(7, 3 << 16 | 3));
}

#[test]
fn writes_are_stable_when_the_write_cache_is_off() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 4);
    let buffer = machine.page();
    let mut ops = |guest: &Guest| {
        let write = transfer(NvmOpcode::WRITE, 0, 0, 1, (buffer, 0));
        let zeroes = transfer(NvmOpcode::WRITE_ZEROES, 1, 0, 1, (0, 0));
        for sqe in [write, zeroes] {
            assert_eq!(guest.io(&mut pair, &sqe).status(), Status::SUCCESS);
        }
        control
            .take_seen()
            .iter()
            .map(|seen| seen.op)
            .collect::<Vec<_>>()
    };
    let expected = |fua| [Op::Write { fua }, Op::WriteZeroes { unmap: false, fua }];
    assert_eq!(ops(&guest), expected(false));
    guest.admin_ok(set_feature(6, 0));
    assert_eq!(ops(&guest), expected(true));
    guest.admin_ok(set_feature(6, 1));
    assert_eq!(ops(&guest), expected(false));
    // A reset turns the cache on again.
    guest.admin_ok(set_feature(6, 0));
    guest.disable();
    guest.enable();
    let mut pair = guest.create_pair(1, 4);
    let write = transfer(NvmOpcode::WRITE, 0, 0, 1, (buffer, 0));
    guest.io(&mut pair, &write);
    assert_eq!(control.take_seen()[0].op, Op::Write { fua: false });
}
