//! Whose turn it is when commands end at once, with the worker in the test's own thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Message;
use super::steady::Driver;
use super::worker::Turn;
use crate::nvme::doorbell::DoorbellId;
use crate::nvme::queue::SubmissionQueue;
use crate::nvme::spec::{Arbitration, Cdw0, NvmOpcode, Sqe, Status};
use crate::storage::BackendKind;

/// The submission queues that feed completion queue 1.
const SQS: [u64; 2] = [0x1_0000, 0x5_0000];
const ENTRIES: u32 = 256;
const LIST: u64 = 0x5000;
const DATA: u64 = 0x10_0000;
const PAGE: u64 = 4096;
const MIB: u32 = 256;

/// Two submission queues that share a completion queue, on a namespace in memory.
struct Two {
    driver: Driver,
    tails: [u32; 2],
}

impl Two {
    fn new() -> Self {
        let driver = Driver::new(BackendKind::Memory { size: 16 << 20 });
        let core = Arc::clone(&driver.core);
        core.doorbells.open(DoorbellId::sq(2), ENTRIES, 0);
        driver.shared.send(Message::AddSq {
            queue: SubmissionQueue::new(&driver.ram, 2, SQS[1], ENTRIES).unwrap(),
            core,
            cqid: 1,
            stats: Arc::default(),
        });
        // All commands move the same 1 MiB of guest memory.
        for page in 1..u64::from(MIB) {
            let entry = LIST + (page - 1) * 8;
            driver.ram.write(entry, &(DATA + page * PAGE)).unwrap();
        }
        Self {
            driver,
            tails: [0; 2],
        }
    }

    /// Gives queue `sq` (0 or 1) `count` commands for so many blocks of 4 KiB each.
    fn give(&mut self, sq: usize, opcode: NvmOpcode, blocks: u32, count: u32) {
        for _ in 0..count {
            let tail = self.tails[sq];
            let cid = u16::try_from(tail).unwrap();
            let sqe = Sqe {
                cdw0: Cdw0::new().with_opc(opcode.0).with_cid(cid),
                nsid: 1,
                prp1: DATA,
                prp2: if blocks == 2 { DATA + PAGE } else { LIST },
                cdw12: blocks - 1,
                ..Sqe::default()
            };
            let address = SQS[sq] + u64::from(tail) * 64;
            self.driver.ram.write(address, &sqe).unwrap();
            self.tails[sq] = tail + 1;
        }
        let values = &self.driver.values;
        values.store_u32(8 * (sq + 1), self.tails[sq], Ordering::Release);
    }

    /// Has the worker look at everything once: queue and identifier of the commands that it ended.
    fn turn(&mut self) -> Vec<(u16, u16)> {
        let turn = self.driver.worker.turn();
        let mut ended = Vec::new();
        while let Some(cqe) = self.driver.take() {
            assert_eq!(cqe.status(), Status::SUCCESS, "{cqe:?}");
            ended.push((cqe.sqid, cqe.cid));
        }
        assert_eq!(turn == Turn::Worked, !ended.is_empty());
        ended
    }
}

#[test]
fn large_commands_that_end_at_once_keep_no_other_queue_waiting() {
    for opcode in [NvmOpcode::READ, NvmOpcode::WRITE, NvmOpcode::WRITE_ZEROES] {
        let mut two = Two::new();
        two.give(0, opcode, MIB, 3);
        two.give(1, opcode, 1, 2);
        assert_eq!(two.turn(), [(1, 0), (2, 0), (2, 1)], "{opcode:?}");
        two.give(1, opcode, MIB, 2);
        assert_eq!(two.turn(), [(1, 1), (2, 2)]);
        assert_eq!(two.turn(), [(1, 2), (2, 3)]);
        assert_eq!(two.turn(), []);
    }
}

#[test]
fn what_is_discarded_counts_as_well() {
    let mut two = Two::new();
    // One range of 1 MiB: attributes, blocks, first block.
    two.driver.ram.write(DATA, &[0, MIB, 0, 0]).unwrap();
    for sq in [0, 1] {
        two.give(sq, NvmOpcode::DATASET_MANAGEMENT, 1, 2);
        // Deallocate.
        for slot in 0..2 {
            let cdw11 = SQS[sq] + slot * 64 + 44;
            two.driver.ram.write(cdw11, &4u32).unwrap();
        }
    }
    assert_eq!(two.turn(), [(1, 0), (2, 0)]);
    assert_eq!(two.turn(), [(1, 1), (2, 1)]);
}

#[test]
fn many_turns_in_a_row_are_no_longer_than_one() {
    let mut two = Two::new();
    let arbitration = Arbitration::new().with_ab(0);
    two.driver.core.set_arbitration(arbitration);
    for sq in [0, 1] {
        two.give(sq, NvmOpcode::READ, MIB / 2, 3);
    }
    // One command each in turn, until 1 MiB was moved.
    assert_eq!(two.turn(), [(1, 0), (2, 0)]);
    assert_eq!(two.turn(), [(1, 1), (2, 1)]);
    assert_eq!(two.turn(), [(1, 2), (2, 2)]);
}

#[test]
fn small_commands_are_served_in_one_batch() {
    let mut two = Two::new();
    two.give(0, NvmOpcode::READ, 2, 64);
    two.give(1, NvmOpcode::READ, 2, 64);
    assert_eq!(two.turn().len(), 128);
}
