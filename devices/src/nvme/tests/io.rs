//! The I/O commands: what they do to the medium, and what is refused.

use std::sync::Arc;

use super::harness::*;
use crate::nvme::spec::{Cdw0, NvmOpcode, Sqe, Status};
use crate::storage::testing::{Mode, TestBackend, TestControl};
use crate::storage::{BackendError, Op};
use crate::subsystem::NamespaceConfig;

const BLOCKS: u64 = 2048;

/// A controller with an I/O queue pair and one namespace of [`BLOCKS`] blocks of 512 bytes.
struct Setup {
    machine: Arc<Machine>,
    guest: Guest,
    pair: (Sq, Cq),
    control: TestControl,
}

impl Setup {
    fn new() -> Self {
        let machine = Machine::new();
        let control = machine.test_namespace();
        let guest = machine.enabled("c");
        let pair = guest.create_pair(1, 16);
        Self {
            machine,
            guest,
            pair,
            control,
        }
    }

    fn run(&mut self, sqe: Sqe) -> Status {
        self.guest.io(&mut self.pair, &sqe).status()
    }

    #[track_caller]
    fn refused(&mut self, sqe: Sqe, status: Status) {
        self.control.take_seen();
        let cqe = self.guest.io(&mut self.pair, &sqe);
        assert_eq!((cqe.status(), cqe.dnr()), (status, true), "{sqe:?}");
        assert_eq!(self.control.take_seen(), [], "reached the backend");
    }
}

/// Bytes that differ from place to place.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed)
        .collect()
}

#[test]
fn data_comes_back_as_it_was_written() {
    let mut setup = Setup::new();
    let (from, to) = (setup.machine.alloc(8192), setup.machine.alloc(8192));
    let data = pattern(7, 8192);
    setup.machine.write(from, &data);
    for (slba, blocks) in [(0, 1), (1, 2), (BLOCKS - 16, 16), (100, 9)] {
        let len = blocks as usize * 512;
        let write = transfer(NvmOpcode::WRITE, 1, slba, blocks, (from, from + 4096));
        assert_eq!(setup.run(write), Status::SUCCESS);
        assert_eq!(setup.control.peek(slba as usize * 512, len), data[..len]);
        let read = transfer(NvmOpcode::READ, 2, slba, blocks, (to, to + 4096));
        assert_eq!(setup.run(read), Status::SUCCESS);
        assert_eq!(setup.machine.read(to, len), data[..len]);
    }
}

#[test]
fn every_shape_of_prps_reaches_the_right_memory() {
    let mut setup = Setup::new();
    let content = pattern(3, 1 << 20);
    setup.control.poke(0, &content);
    // Scattered pages, in descending order so that none join.
    let pages: Vec<u64> = (0..32).map(|_| setup.machine.alloc(8192)).rev().collect();
    for offset in [0, 4, 512, 4092] {
        for blocks in [1, 7, 8, 9, 16, 17, 200, 256] {
            let len = blocks as usize * 512;
            let first = len.min(4096 - offset);
            let rest = (len - first).div_ceil(4096);
            if rest > 31 {
                continue;
            }
            // A list that crosses its page after two entries.
            let (list, next) = (setup.machine.alloc(8192), setup.machine.page());
            let list = list + 4096 - 24;
            for (index, page) in pages[1..=rest.max(1)].iter().enumerate() {
                let index = index as u64;
                let at = match index {
                    2.. if rest > 3 => next + (index - 2) * 8,
                    _ => list + index * 8,
                };
                setup.machine.ram.write(at, page).unwrap();
            }
            if rest > 3 {
                setup.machine.ram.write(list + 16, &next).unwrap();
            }
            let prp2 = if rest <= 1 { pages[1] } else { list };
            for page in &pages {
                setup.machine.write(*page, &[0xee; 8192]);
            }
            let prps = (pages[0] + offset as u64, prp2);
            let status = setup.run(transfer(NvmOpcode::READ, 0, 5, blocks, prps));
            assert_eq!(status, Status::SUCCESS, "{blocks} blocks at {offset}");
            let mut got = setup.machine.read(prps.0, first);
            for page in &pages[1..=rest] {
                got.extend(setup.machine.read(*page, 4096));
            }
            assert_eq!(
                got[..len],
                content[2560..2560 + len],
                "{blocks} at {offset}"
            );
            assert!(
                got[len..].iter().all(|byte| *byte == 0xee),
                "too much was written"
            );
        }
    }
}

#[test]
fn prps_that_lead_nowhere_are_refused_before_anything_is_done() {
    let mut setup = Setup::new();
    let (page, list) = (setup.machine.page(), setup.machine.page());
    let ram = setup.machine.ram.clone();
    ram.write(list, &0xe000_0000u64).unwrap();
    ram.write(list + 8, &0x1008u64).unwrap();
    for opcode in [NvmOpcode::READ, NvmOpcode::WRITE] {
        for (blocks, prp1, prp2, status) in [
            (1, 0xe000_0000, 0, Status::DATA_TRANSFER_ERROR),
            (1, u64::MAX & !0xfff, 0, Status::DATA_TRANSFER_ERROR),
            (1, page + 2, 0, Status::INVALID_PRP_OFFSET),
            (16, page, page + 8, Status::INVALID_PRP_OFFSET),
            (16, page, 0xe000_0000, Status::DATA_TRANSFER_ERROR),
            (64, page, list + 4, Status::INVALID_PRP_OFFSET),
            (64, page, list, Status::DATA_TRANSFER_ERROR),
            (64, page, list + 8, Status::INVALID_PRP_OFFSET),
            (64, page, 0xe000_0000, Status::DATA_TRANSFER_ERROR),
            (64, page, u64::MAX & !7, Status::DATA_TRANSFER_ERROR),
        ] {
            setup.refused(transfer(opcode, 0, 0, blocks, (prp1, prp2)), status);
        }
    }
    // A list that is one chain pointer after the other, to itself.
    let lone = list + 4088;
    ram.write(lone, &lone).unwrap();
    let sqe = transfer(NvmOpcode::READ, 0, 0, 256, (page, lone));
    setup.refused(sqe, Status::INVALID_PRP_OFFSET);
}

#[test]
fn ranges_end_where_the_namespace_ends() {
    let mut setup = Setup::new();
    let page = setup.machine.page();
    for slba in [BLOCKS, BLOCKS + 1, 1 << 55, u64::MAX - 1, u64::MAX] {
        for opcode in [NvmOpcode::READ, NvmOpcode::WRITE, NvmOpcode::WRITE_ZEROES] {
            let sqe = transfer(opcode, 0, slba, 1, (page, 0));
            setup.refused(sqe, Status::LBA_OUT_OF_RANGE);
        }
    }
    for (slba, blocks) in [
        (BLOCKS - 1, 2),
        (u64::MAX - 0xffff, 0x1_0000),
        (1, 0x1_0000),
    ] {
        let sqe = transfer(NvmOpcode::WRITE_ZEROES, 0, slba, blocks, (0, 0));
        setup.refused(sqe, Status::LBA_OUT_OF_RANGE);
    }
    let zero_all = transfer(NvmOpcode::WRITE_ZEROES, 0, 0, BLOCKS as u32, (0, 0));
    assert_eq!(setup.run(zero_all), Status::SUCCESS);
}

#[test]
fn transfers_are_bounded_by_mdts() {
    let mut setup = Setup::new();
    let page = setup.machine.page();
    for opcode in [NvmOpcode::READ, NvmOpcode::WRITE] {
        for blocks in [257, 2048, 0x1_0000] {
            let sqe = transfer(opcode, 0, 0, blocks, (page, page));
            setup.refused(sqe, Status::INVALID_FIELD);
        }
    }
}

#[test]
fn write_zeroes_and_deallocate_leave_zeroes_where_asked() {
    let mut setup = Setup::new();
    let content = pattern(1, 1 << 20);
    setup.control.poke(0, &content);
    let zeroes = |deac: u32, slba, blocks| {
        let sqe = transfer(NvmOpcode::WRITE_ZEROES, 0, slba, blocks, (0, 0));
        Sqe {
            cdw12: sqe.cdw12 | deac << 25,
            ..sqe
        }
    };
    assert_eq!(setup.run(zeroes(0, 1, 2)), Status::SUCCESS);
    assert_eq!(setup.run(zeroes(1, 10, 1)), Status::SUCCESS);
    let list = setup.machine.page();
    for (index, (blocks, slba)) in [(4u32, 20u64), (0, 30), (1, 40)].iter().enumerate() {
        let at = list + index as u64 * 16;
        setup.machine.ram.write(at + 4, blocks).unwrap();
        setup.machine.ram.write(at + 8, slba).unwrap();
    }
    let deallocate = Sqe {
        prp1: list,
        cdw10: 2,
        cdw11: 4,
        ..nvm(NvmOpcode::DATASET_MANAGEMENT, 0, 1)
    };
    // Without AD it is a hint.
    assert_eq!(
        setup.run(Sqe {
            cdw11: 3,
            ..deallocate
        }),
        Status::SUCCESS
    );
    assert_eq!(
        setup.control.peek(20 * 512, 512),
        content[20 * 512..21 * 512]
    );
    assert_eq!(setup.run(deallocate), Status::SUCCESS);
    let mut expected = content;
    for (slba, blocks) in [(1, 2), (10, 1), (20, 4), (40, 1)] {
        expected[slba * 512..(slba + blocks) * 512].fill(0);
    }
    assert!(setup.control.peek(0, 1 << 20) == expected);
    let unmap = |seen: &crate::storage::testing::Seen| seen.op;
    let ops: Vec<_> = setup.control.take_seen().iter().map(unmap).collect();
    let zeroes = |unmap| Op::WriteZeroes { unmap, fua: false };
    assert_eq!(ops, [zeroes(false), zeroes(true), Op::Discard, Op::Discard]);
}

#[test]
fn one_bad_range_of_dataset_management_spoils_all() {
    let mut setup = Setup::new();
    let list = setup.machine.page();
    let range = |index: u64, blocks: u32, slba: u64| {
        setup
            .machine
            .ram
            .write(list + index * 16 + 4, &blocks)
            .unwrap();
        setup
            .machine
            .ram
            .write(list + index * 16 + 8, &slba)
            .unwrap();
    };
    range(0, 1, 0);
    range(255, u32::MAX, u64::MAX - 1);
    let sqe = Sqe {
        prp1: list,
        cdw10: 255,
        cdw11: 4,
        ..nvm(NvmOpcode::DATASET_MANAGEMENT, 0, 1)
    };
    setup.refused(sqe, Status::LBA_OUT_OF_RANGE);
    let elsewhere = Sqe {
        prp1: 0xe000_0000,
        ..sqe
    };
    setup.refused(elsewhere, Status::DATA_TRANSFER_ERROR);
    setup.machine.ram.write(list + 255 * 16 + 4, &0u64).unwrap();
    setup.machine.ram.write(list + 255 * 16 + 8, &0u64).unwrap();
    assert_eq!(setup.run(sqe), Status::SUCCESS);
}

#[test]
fn force_unit_access_reaches_the_backend() {
    let mut setup = Setup::new();
    let page = setup.machine.page();
    for fua in [false, true] {
        let write = transfer(NvmOpcode::WRITE, 0, 0, 1, (page, 0));
        let zeroes = transfer(NvmOpcode::WRITE_ZEROES, 0, 0, 1, (0, 0));
        for sqe in [write, zeroes] {
            let cdw12 = sqe.cdw12 | u32::from(fua) << 30;
            assert_eq!(setup.run(Sqe { cdw12, ..sqe }), Status::SUCCESS);
        }
        let ops: Vec<_> = setup
            .control
            .take_seen()
            .iter()
            .map(|seen| seen.op)
            .collect();
        assert_eq!(
            ops,
            [Op::Write { fua }, Op::WriteZeroes { unmap: false, fua }]
        );
    }
}

#[test]
fn a_broadcast_flush_reaches_every_namespace_and_ends_when_all_did() {
    let mut setup = Setup::new();
    let controls = [setup.control.clone(), setup.machine.test_namespace()];
    let broadcast = Sqe {
        nsid: u32::MAX,
        ..flush(9)
    };
    for control in &controls {
        control.set_mode(Mode::Hold);
    }
    setup.guest.submit(&mut setup.pair.0, &broadcast);
    for control in &controls {
        control.wait_held(1).unwrap();
        assert_eq!(control.held()[0].op, Op::Flush);
    }
    controls[0].release_all();
    // A command that comes later ends before it.
    controls[0].set_mode(Mode::Inline);
    assert_eq!(setup.guest.io(&mut setup.pair, &flush(10)).cid, 10);
    controls[1].fail_one(BackendError::Io(5));
    let cqe = setup.guest.wait_cqe(&mut setup.pair.1);
    assert_eq!((cqe.cid, cqe.status()), (9, Status::INTERNAL_ERROR));
    controls[1].set_mode(Mode::Inline);
    assert_eq!(setup.run(broadcast), Status::SUCCESS);
}

#[test]
fn namespace_identifiers_are_checked() {
    let mut setup = Setup::new();
    let page = setup.machine.page();
    for opcode in [
        NvmOpcode::READ,
        NvmOpcode::WRITE,
        NvmOpcode::FLUSH,
        NvmOpcode::WRITE_ZEROES,
        NvmOpcode::DATASET_MANAGEMENT,
    ] {
        let with = |nsid| Sqe {
            prp1: page,
            ..nvm(opcode, 0, nsid)
        };
        setup.refused(with(2), Status::INVALID_FIELD);
        setup.refused(with(1024), Status::INVALID_FIELD);
        for nsid in [0, 1025, u32::MAX - 1] {
            setup.refused(with(nsid), Status::INVALID_NAMESPACE);
        }
        if opcode != NvmOpcode::FLUSH {
            setup.refused(with(u32::MAX), Status::INVALID_NAMESPACE);
        }
    }
}

#[test]
fn a_read_only_namespace_can_only_be_read() {
    let mut setup = Setup::new();
    setup.control.set_read_only(true);
    let page = setup.machine.page();
    let read = transfer(NvmOpcode::READ, 0, 0, 1, (page, 0));
    for sqe in [read, flush(0)] {
        assert_eq!(setup.run(sqe), Status::SUCCESS);
    }
    let write = transfer(NvmOpcode::WRITE, 0, 0, 1, (page, 0));
    let zeroes = transfer(NvmOpcode::WRITE_ZEROES, 0, 0, 1, (0, 0));
    let deallocate = Sqe {
        prp1: page,
        cdw11: 4,
        ..nvm(NvmOpcode::DATASET_MANAGEMENT, 0, 1)
    };
    for sqe in [write, zeroes, deallocate] {
        setup.refused(sqe, Status::NAMESPACE_WRITE_PROTECTED);
    }
}

#[test]
fn fused_commands_sgls_and_unknown_opcodes_are_refused() {
    let mut setup = Setup::new();
    for bits in [1 << 8, 2 << 8, 3 << 8, 1 << 14, 2 << 14, 3 << 14] {
        let sqe = flush(0);
        let cdw0 = Cdw0::from_bits(sqe.cdw0.into_bits() | bits);
        setup.refused(Sqe { cdw0, ..sqe }, Status::INVALID_FIELD);
        let sqe = Sqe {
            cdw0: Cdw0::from_bits(6 | bits),
            ..Sqe::default()
        };
        assert_eq!(setup.guest.admin(sqe).status(), Status::INVALID_FIELD);
    }
    for opcode in [0x03, 0x04, 0x05, 0x0c, 0x0d, 0x7f, 0x80, 0xff] {
        setup.refused(nvm(NvmOpcode(opcode), 0, 1), Status::INVALID_OPCODE);
    }
}

#[test]
fn errors_of_the_backend_have_their_status() {
    let mut setup = Setup::new();
    let page = setup.machine.page();
    let read = transfer(NvmOpcode::READ, 0, 0, 1, (page, 0));
    let write = transfer(NvmOpcode::WRITE, 0, 0, 1, (page, 0));
    let zeroes = transfer(NvmOpcode::WRITE_ZEROES, 0, 0, 1, (0, 0));
    let media = BackendError::Io(5);
    for (sqe, error, status, dnr) in [
        (read, media, Status::UNRECOVERED_READ_ERROR, true),
        (write, media, Status::WRITE_FAULT, true),
        (zeroes, media, Status::WRITE_FAULT, true),
        (flush(0), media, Status::INTERNAL_ERROR, false),
        (
            write,
            BackendError::NoSpace,
            Status::CAPACITY_EXCEEDED,
            true,
        ),
        (
            write,
            BackendError::ReadOnly,
            Status::NAMESPACE_WRITE_PROTECTED,
            true,
        ),
        (
            read,
            BackendError::OutOfRange,
            Status::LBA_OUT_OF_RANGE,
            true,
        ),
        (
            zeroes,
            BackendError::Unsupported,
            Status::INVALID_FIELD,
            true,
        ),
        (
            read,
            BackendError::Cancelled,
            Status::ABORT_REQUESTED,
            false,
        ),
    ] {
        for mode in [Mode::Inline, Mode::Hold] {
            setup.control.set_mode(mode);
            setup.control.fail_next(1, error);
            setup.guest.submit(&mut setup.pair.0, &sqe);
            if mode == Mode::Hold {
                setup.control.wait_held(1).unwrap();
                setup.control.release_one();
            }
            let cqe = setup.guest.wait_cqe(&mut setup.pair.1);
            assert_eq!(
                (cqe.status(), cqe.dnr()),
                (status, dnr),
                "{error:?} {mode:?}"
            );
        }
    }
}

#[test]
fn namespaces_of_both_block_sizes_keep_apart() {
    let mut setup = Setup::new();
    let (backend, control) = TestBackend::new(1 << 20, 4096);
    let config = NamespaceConfig {
        shared: true,
        ..NamespaceConfig::default()
    };
    setup
        .machine
        .subsystem
        .add_namespace(config, backend)
        .unwrap();
    let page = setup.machine.page();
    let data = pattern(9, 4096);
    setup.machine.write(page, &data);
    let write = transfer(NvmOpcode::WRITE, 0, 3, 1, (page, 0));
    assert_eq!(setup.run(write), Status::SUCCESS);
    assert_eq!(setup.run(Sqe { nsid: 2, ..write }), Status::SUCCESS);
    assert_eq!(setup.control.peek(1536, 512), data[..512]);
    assert_eq!(setup.control.peek(2048, 512), [0; 512]);
    assert_eq!(control.peek(3 * 4096, 4096), data);
    assert_eq!(control.peek(0, 3 * 4096), [0; 3 * 4096]);
    let last = transfer(NvmOpcode::READ, 0, 256, 1, (page, 0));
    assert_eq!(setup.run(Sqe { nsid: 2, ..last }), Status::LBA_OUT_OF_RANGE);
}

#[test]
fn held_commands_can_be_aborted_and_unknown_ones_cannot() {
    let mut setup = Setup::new();
    setup.control.set_mode(Mode::Hold);
    let page = setup.machine.page();
    setup.machine.write(page, &[0xee; 512]);
    let read = transfer(NvmOpcode::READ, 5, 0, 1, (page, 0));
    setup.guest.submit(&mut setup.pair.0, &read);
    setup.guest.submit(&mut setup.pair.0, &flush(6));
    setup.control.wait_held(2).unwrap();
    for (sqid, cid) in [(1, 7), (2, 5), (0, 5), (0xffff, 5)] {
        assert_eq!(setup.guest.admin_ok(abort(sqid, cid)), 1, "{sqid} {cid}");
    }
    assert_eq!(setup.guest.admin_ok(abort(1, 5)), 0);
    let cqe = setup.guest.wait_cqe(&mut setup.pair.1);
    assert_eq!((cqe.cid, cqe.status()), (5, Status::ABORT_REQUESTED));
    assert_eq!(setup.guest.admin_ok(abort(1, 5)), 1, "it ended already");
    assert_eq!(setup.control.release_all(), 1);
    let cqe = setup.guest.wait_cqe(&mut setup.pair.1);
    assert_eq!((cqe.cid, cqe.status()), (6, Status::SUCCESS));
    assert_eq!(setup.machine.read(page, 512), [0xee; 512]);
}

#[test]
fn many_commands_on_many_queues_all_end_once() {
    let machine = Machine::new();
    machine.memory_namespace(1 << 20, 512);
    let guest = machine.enabled("c");
    std::thread::scope(|scope| {
        for id in 1..=PAIRS {
            let mut pair = guest.create_pair(id, 32);
            let guest = &guest;
            scope.spawn(move || {
                for round in 0..100u16 {
                    for index in 0..31 {
                        guest.push(&mut pair.0, &flush(round * 31 + index));
                    }
                    guest.ring_sq(&pair.0);
                    for index in 0..31 {
                        assert_eq!(pair.1.wait().cid, round * 31 + index);
                    }
                    guest.ring_cq(&pair.1);
                }
                assert!(pair.1.take().is_none());
            });
        }
    });
}
