//! Creation and deletion of I/O queues.

use super::harness::*;
use crate::nvme::spec::{AdminOpcode, Sqe, Status};
use crate::storage::testing::Mode;

const CREATE: u32 = 1;

#[track_caller]
fn refused(guest: &Guest, sqe: Sqe, status: Status) {
    let cqe = guest.admin(sqe);
    assert_eq!((cqe.status(), cqe.dnr()), (status, true), "{sqe:?}");
}

#[test]
fn completion_queues_that_cannot_be_created() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let cq = guest.create_cq(1, 4);
    let good = Sqe {
        prp1: machine.page(),
        cdw10: 3 << 16 | 2,
        cdw11: 2 << 16 | 2 | CREATE,
        ..admin(AdminOpcode::CREATE_CQ)
    };
    let with_id = |id: u32| Sqe {
        cdw10: 3 << 16 | id,
        ..good
    };
    for id in [0, u32::from(cq.id), u32::from(PAIRS) + 1, 0xffff] {
        refused(&guest, with_id(id), Status::INVALID_QUEUE_IDENTIFIER);
    }
    refused(&guest, Sqe { cdw10: 2, ..good }, Status::INVALID_QUEUE_SIZE);
    let no_interrupt = 2 << 16 | CREATE;
    for vector in [u32::from(PAIRS) + 1, 0xffff] {
        let sqe = Sqe {
            cdw11: vector << 16 | 2 | CREATE,
            ..good
        };
        refused(&guest, sqe, Status::INVALID_INTERRUPT_VECTOR);
    }
    let not_contiguous = Sqe {
        cdw11: no_interrupt & !CREATE,
        ..good
    };
    refused(&guest, not_contiguous, Status::INVALID_FIELD);
    let misaligned = Sqe {
        prp1: good.prp1 + 8,
        ..good
    };
    refused(&guest, misaligned, Status::INVALID_PRP_OFFSET);
    for prp1 in [0xe000_0000, LAST_PAGE] {
        refused(&guest, Sqe { prp1, ..good }, Status::DATA_TRANSFER_ERROR);
    }
    // 65,536 entries that begin in RAM and end outside.
    let too_long = Sqe {
        prp1: (64 << 20) - 4096,
        cdw10: 0xffff << 16 | 2,
        ..good
    };
    refused(&guest, too_long, Status::DATA_TRANSFER_ERROR);
    // CC.IOCQES asks for entries of 32 bytes.
    guest.write32(CC, CC_ENABLE ^ 1 << 20);
    refused(&guest, good, Status::INVALID_QUEUE_SIZE);
    guest.write32(CC, CC_ENABLE);
    guest.admin_ok(good);
}

#[test]
fn submission_queues_that_cannot_be_created() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let (sq, _cq) = guest.create_pair(1, 4);
    let good = Sqe {
        prp1: machine.page(),
        cdw10: 3 << 16 | 2,
        cdw11: 1 << 16 | CREATE,
        ..admin(AdminOpcode::CREATE_SQ)
    };
    for id in [0, u32::from(sq.id), u32::from(PAIRS) + 1, 0xffff] {
        let sqe = Sqe {
            cdw10: 3 << 16 | id,
            ..good
        };
        refused(&guest, sqe, Status::INVALID_QUEUE_IDENTIFIER);
    }
    let on_cq = |cqid: u32| Sqe {
        cdw11: cqid << 16 | CREATE,
        ..good
    };
    refused(&guest, on_cq(0), Status::INVALID_QUEUE_IDENTIFIER);
    refused(&guest, on_cq(0xffff), Status::INVALID_QUEUE_IDENTIFIER);
    refused(&guest, on_cq(3), Status::INVALID_COMPLETION_QUEUE);
    refused(&guest, Sqe { cdw10: 2, ..good }, Status::INVALID_QUEUE_SIZE);
    refused(
        &guest,
        Sqe {
            cdw11: 1 << 16,
            ..good
        },
        Status::INVALID_FIELD,
    );
    let misaligned = Sqe {
        prp1: good.prp1 + 64,
        ..good
    };
    refused(&guest, misaligned, Status::INVALID_PRP_OFFSET);
    let outside = Sqe {
        prp1: 0xe000_0000,
        ..good
    };
    refused(&guest, outside, Status::DATA_TRANSFER_ERROR);
    guest.admin_ok(good);
}

#[test]
fn queues_are_no_larger_than_mqes() {
    let machine = Machine::new();
    let small = crate::nvme::ControllerConfig {
        mqes: 7,
        ..config("c")
    };
    let guest = Guest::new(&machine, &machine.subsystem, small).unwrap();
    guest.enable();
    let cq = Cq::new(&machine, 1, 9);
    refused(&guest, create_cq(&cq, None), Status::INVALID_QUEUE_SIZE);
    guest.create_cq(1, 8);
    let sq = Sq::new(&machine, 1, 9);
    refused(&guest, create_sq(&sq, 1), Status::INVALID_QUEUE_SIZE);
    guest.create_sq(1, 8, 1);
}

#[test]
fn deletion_wants_the_right_order() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let (delete_sq, delete_cq) = (AdminOpcode::DELETE_SQ, AdminOpcode::DELETE_CQ);
    for id in [0, 1, PAIRS + 1, 0xffff] {
        refused(
            &guest,
            delete_queue(delete_sq, id),
            Status::INVALID_QUEUE_IDENTIFIER,
        );
        refused(
            &guest,
            delete_queue(delete_cq, id),
            Status::INVALID_QUEUE_IDENTIFIER,
        );
    }
    let _pair = guest.create_pair(1, 4);
    let _other = guest.create_sq(2, 4, 1);
    refused(
        &guest,
        delete_queue(delete_cq, 1),
        Status::INVALID_QUEUE_DELETION,
    );
    guest.admin_ok(delete_queue(delete_sq, 1));
    refused(
        &guest,
        delete_queue(delete_cq, 1),
        Status::INVALID_QUEUE_DELETION,
    );
    guest.admin_ok(delete_queue(delete_sq, 2));
    guest.admin_ok(delete_queue(delete_cq, 1));
    refused(
        &guest,
        delete_queue(delete_cq, 1),
        Status::INVALID_QUEUE_IDENTIFIER,
    );
}

#[test]
fn a_queue_of_every_size_goes_round_its_end() {
    let machine = Machine::new();
    machine.memory_namespace(1 << 20, 512);
    let guest = machine.enabled("c");
    for entries in [2, 3, 5, 64, 65_536] {
        let mut pair = guest.create_pair(1, entries);
        let mut left = entries + 2;
        let mut cid = 0u16;
        while left > 0 {
            let batch = left.min(entries - 1);
            for index in 0..batch {
                guest.push(&mut pair.0, &flush(cid.wrapping_add(index as u16)));
            }
            guest.ring_sq(&pair.0);
            for _ in 0..batch {
                let cqe = pair.1.wait();
                assert_eq!((cqe.status(), cqe.cid, cqe.sqid), (Status::SUCCESS, cid, 1));
                cid = cid.wrapping_add(1);
            }
            guest.ring_cq(&pair.1);
            left -= batch;
        }
        guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 1));
        guest.admin_ok(delete_queue(AdminOpcode::DELETE_CQ, 1));
    }
}

#[test]
fn several_submission_queues_share_a_completion_queue() {
    let machine = Machine::new();
    machine.memory_namespace(1 << 20, 512);
    let guest = machine.enabled("c");
    let mut cq = guest.create_cq(1, 64);
    let mut sqs: Vec<Sq> = (1..=4).map(|id| guest.create_sq(id, 8, 1)).collect();
    for round in 0..20u16 {
        for sq in &mut sqs {
            guest.submit(sq, &flush(round << 3 | sq.id));
        }
        let mut seen: Vec<(u16, u16)> = (0..4)
            .map(|_| guest.wait_cqe(&mut cq))
            .map(|cqe| (cqe.sqid, cqe.cid))
            .collect();
        seen.sort_unstable();
        let expected: Vec<_> = (1..=4).map(|id| (id, round << 3 | id)).collect();
        assert_eq!(seen, expected);
    }
    // One of them goes; the others stay.
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 2));
    guest.submit(&mut sqs[3], &flush(999));
    assert_eq!(guest.wait_cqe(&mut cq).cid, 999);
}

#[test]
fn held_commands_are_aborted_before_the_deletion_completes() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 16);
    control.set_mode(Mode::Hold);
    for cid in 0..8 {
        guest.submit(&mut pair.0, &flush(cid));
    }
    control.wait_held(8).unwrap();
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 1));
    for cid in 0..8 {
        let cqe = pair
            .1
            .take()
            .expect("there before the deletion's completion");
        assert_eq!((cqe.status(), cqe.cid), (Status::ABORTED_SQ_DELETION, cid));
    }
    assert!(pair.1.take().is_none());
    assert_eq!(control.take_cancelled().len(), 8);
    guest.ring_cq(&pair.1);
    // The identifier can be used again, and the old doorbell value is forgotten.
    control.set_mode(Mode::Inline);
    pair.0 = guest.create_sq(1, 4, 1);
    assert_eq!(guest.io(&mut pair, &flush(77)).cid, 77);
}

#[test]
fn a_queue_can_be_deleted_while_its_completion_queue_is_full() {
    let machine = Machine::new();
    machine.memory_namespace(1 << 20, 512);
    let guest = machine.enabled("c");
    let mut cq = guest.create_cq(1, 2);
    let mut sq = guest.create_sq(1, 16, 1);
    for cid in 0..10 {
        guest.push(&mut sq, &flush(cid));
    }
    guest.ring_sq(&sq);
    assert_eq!(cq.wait().cid, 0);
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 1));
    // What was not fetched is gone, and room in the queue brings nothing more.
    guest.ring_cq(&cq);
    let sq = guest.create_sq(1, 16, 1);
    let mut pair = (sq, cq);
    assert_eq!(guest.io(&mut pair, &flush(500)).cid, 500);
}

#[test]
fn a_doorbell_of_no_queue_and_a_bad_value_change_nothing() {
    let machine = Machine::new();
    machine.memory_namespace(1 << 20, 512);
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 4);
    guest.write32(0x1008, 4);
    guest.write32(0x1008, u32::MAX);
    guest.write32(0x100c, 4);
    for qid in [2, u64::from(PAIRS), u64::from(PAIRS) + 1, 511] {
        guest.write32(0x1000 + qid * 8, 1);
        guest.write32(0x1004 + qid * 8, 1);
    }
    for cid in 0..9 {
        assert_eq!(guest.io(&mut pair, &flush(cid)).cid, cid);
    }
}

#[test]
fn the_arbitration_burst_bounds_what_one_queue_gets_before_the_next() {
    // Burst as a power of two, and how many commands of the first queue come before the second's.
    for (power, first) in [(0, 1), (2, 4), (3, 8), (7, 20)] {
        let machine = Machine::with(true, 1);
        let control = machine.test_namespace();
        let guest = machine.enabled("c");
        guest.admin_ok(set_feature(1, power));
        let mut cq = guest.create_cq(1, 128);
        let mut sqs = [1, 2].map(|id| guest.create_sq(id, 32, 1));
        // While bus master is off, commands gather.
        guest.write_config(0x04, &2u16.to_le_bytes());
        for sq in &mut sqs {
            for cid in 0..20 {
                guest.submit(sq, &flush(cid));
            }
        }
        control.set_mode(Mode::Inline);
        guest.write_config(0x04, &6u16.to_le_bytes());
        let order: Vec<u16> = (0..40).map(|_| guest.wait_cqe(&mut cq).sqid).collect();
        // A thread that was looking finds bus master on at either queue first.
        let begin = order[0];
        let mut expected = Vec::new();
        for turn in 0..20usize.div_ceil(first) {
            let length = first.min(20 - turn * first);
            expected.extend(std::iter::repeat_n(begin, length));
            expected.extend(std::iter::repeat_n(3 - begin, length));
        }
        assert_eq!(order, expected, "AB = {power}");
    }
}
