//! Registers: enabling, disabling, status, access sizes, shutdown, function-level reset.

use super::fakes::wait_until;
use super::harness::*;
use crate::nvme::ControllerState;
use crate::nvme::spec::{Cap, Status};
use crate::pci::PciDevice;

const CFS: u32 = 2;
const SHST: u32 = 0b1100;
const SHST_COMPLETE: u32 = 0b1000;

#[test]
fn rdy_follows_en_and_identify_works_each_time() {
    let machine = Machine::new();
    let guest = machine.controller("c");
    assert_eq!(guest.csts(), 0);
    for _ in 0..3 {
        guest.enable();
        assert_eq!(guest.csts(), 1);
        assert!(guest.identify(1, 0, 0, 0).is_ok());
        guest.disable();
        assert_eq!(guest.csts(), 0);
    }
}

/// Tries to enable with these values; the controller must fail and work after a reset.
#[track_caller]
fn enable_fails(cc: u32, aqa: u32, asq: u64, acq: u64) {
    let machine = Machine::new();
    let guest = machine.controller("c");
    guest.write32(AQA, aqa);
    guest.write64(ASQ, asq);
    guest.write64(ACQ, acq);
    guest.write32(CC, cc);
    guest.wait_csts("a fatal status", CFS, CFS);
    assert_eq!(guest.csts() & 1, 0, "ready");
    guest.write32(CC, 0);
    guest.wait_csts("the fatal status to go", CFS, 0);
    guest.enable();
    assert!(guest.identify(1, 0, 0, 0).is_ok());
}

const GOOD_AQA: u32 = 31 << 16 | 31;

#[test]
fn a_queue_of_one_entry_is_fatal() {
    enable_fails(CC_ENABLE, 31 << 16, 0x1_0000, 0x2_0000);
    enable_fails(CC_ENABLE, 31, 0x1_0000, 0x2_0000);
}

#[test]
fn queues_outside_of_ram_are_fatal() {
    enable_fails(CC_ENABLE, GOOD_AQA, 0xe000_0000, 0x2_0000);
    enable_fails(CC_ENABLE, GOOD_AQA, 0x1_0000, u64::MAX);
    // Across the end of RAM.
    enable_fails(CC_ENABLE, 0xfff << 16 | 0xfff, (64 << 20) - 4096, 0x2_0000);
}

#[test]
fn what_is_not_offered_in_cc_is_fatal() {
    for bits in [1 << 7, 15 << 7, 1 << 11, 7 << 11, 1 << 4, 7 << 4] {
        enable_fails(CC_ENABLE | bits, GOOD_AQA, 0x1_0000, 0x2_0000);
    }
}

#[test]
fn all_command_sets_can_be_selected() {
    let machine = Machine::new();
    let guest = machine.controller("c");
    guest.set_admin_queues(2, 2);
    guest.write32(CC, CC_ENABLE | 6 << 4);
    guest.wait_csts("ready", 1, 1);
    assert!(guest.identify(0x1c, 0, 0xffff, 0).is_ok());
}

#[test]
fn page_offsets_of_queue_addresses_are_ignored() {
    let machine = Machine::new();
    let guest = machine.controller("c");
    guest.set_admin_queues(32, 32);
    let (asq, acq) = (guest.read64(ASQ), guest.read64(ACQ));
    guest.write64(ASQ, asq | 0xfff);
    guest.write64(ACQ, acq | 0xfff);
    assert_eq!((guest.read64(ASQ), guest.read64(ACQ)), (asq, acq));
    guest.write32(CC, CC_ENABLE);
    guest.wait_csts("ready", 1, 1);
    assert!(guest.identify(1, 0, 0, 0).is_ok());
}

#[test]
fn en_toggled_faster_than_the_controller_looks_is_a_reset() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let (_sq, _cq) = guest.create_pair(1, 4);
    let paused = guest.main_loop.pause();
    guest.write32(CC, CC_ENABLE & !1);
    guest.set_admin_queues(16, 16);
    guest.write32(CC, CC_ENABLE);
    drop(paused);
    // The old queues are gone: the identifier is free.
    wait_until("the new admin queue to be served", || {
        let info = guest.controller.info();
        info.state == ControllerState::Ready && info.queues.len() == 1
    });
    guest.create_pair(1, 4);
    for _ in 0..50 {
        guest.write32(CC, CC_ENABLE & !1);
        guest.write32(CC, CC_ENABLE);
    }
    guest.disable();
    guest.enable();
    assert!(guest.identify(1, 0, 0, 0).is_ok());
}

#[test]
fn capabilities_and_version_are_what_is_implemented() {
    let guest = Machine::new().controller("c");
    let cap = Cap::from_bits(guest.read64(CAP));
    assert_eq!(cap.mqes_z(), 65_535);
    assert!(cap.cqr() && cap.css_nvm() && cap.css_iocs() && cap.to() > 0);
    assert_eq!(
        (cap.dstrd(), cap.mpsmin(), cap.mpsmax(), cap.ams()),
        (0, 0, 0, 0)
    );
    assert!(!cap.nssrs() && !cap.pmrs() && !cap.cmbs() && !cap.bps() && !cap.nsss());
    assert_eq!(guest.read32(8), 0x0002_0000);
}

#[test]
fn reads_of_every_size_give_the_same_bytes() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let mut bytes = [0; 0x100];
    for (at, byte) in (0u64..).zip(&mut bytes) {
        guest.controller.read_bar(0, at, std::slice::from_mut(byte));
    }
    for size in [1usize, 2, 4, 8] {
        for at in 0..=0x100 - size {
            let mut part = vec![0xaa; size];
            guest.controller.read_bar(0, at as u64, &mut part);
            assert_eq!(part, bytes[at..at + size], "{size} bytes at {at:#x}");
        }
    }
    // CAP is not all zero, reserved registers are.
    assert_ne!(bytes[..8], [0; 8]);
    assert_eq!(bytes[0x70..], [0; 0x90]);
}

#[test]
fn only_aligned_writes_of_4_and_8_bytes_count() {
    let guest = Machine::new().controller("c");
    let registers = || {
        (
            guest.read32(CC),
            guest.read32(AQA),
            guest.read64(ASQ),
            guest.read64(ACQ),
        )
    };
    let before = registers();
    for at in 0..0x40u64 {
        for size in [1usize, 2, 3, 4, 8] {
            if (size == 4 || size == 8) && at.is_multiple_of(size as u64) {
                continue;
            }
            guest.controller.write_bar(0, at, &vec![0xfe; size]);
            assert_eq!(registers(), before, "{size} bytes at {at:#x}");
        }
    }
    // Both halves of a pair at once, and one by one.
    guest.write64(0x20, 0x0011_0022 << 32);
    assert_eq!(guest.read32(AQA), 0x0011_0022);
    guest.write32(ASQ + 4, 0x12);
    guest.write32(ASQ, 0x3456_7000);
    assert_eq!(guest.read64(ASQ), 0x12_3456_7000);
}

#[test]
fn read_only_and_reserved_registers_stay() {
    let guest = Machine::new().controller("c");
    let read = || {
        (0..0x1000u64)
            .step_by(4)
            .map(|at| guest.read32(at))
            .collect::<Vec<_>>()
    };
    let before = read();
    for at in (0..0x1000u64).step_by(4) {
        if ![CC, AQA, ASQ, ASQ + 4, ACQ, ACQ + 4].contains(&at) {
            guest.write32(at, 0xffff_ffff);
        }
    }
    assert_eq!(read(), before);
}

#[test]
fn accesses_anywhere_in_the_bar_are_harmless() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    for at in (0x1000 - 8..0x1100)
        .chain(0x1ff0..0x2010)
        .chain(0x2ff0..0x3020)
        .chain(0x3ff0..0x4000)
    {
        for size in [1usize, 2, 4, 8] {
            let mut data = vec![0xff; size];
            guest.controller.write_bar(0, at, &data);
            guest.controller.read_bar(0, at, &mut data);
        }
    }
    guest.disable();
    guest.enable();
    assert!(guest.identify(1, 0, 0, 0).is_ok());
}

#[test]
fn a_shutdown_completes_and_a_reset_clears_it() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    for notification in [1, 2] {
        guest.write32(CC, CC_ENABLE | notification << 14);
        guest.wait_csts("the shutdown", SHST, SHST_COMPLETE);
        guest.write32(CC, CC_ENABLE & !1);
        guest.wait_csts("the reset", SHST | 1, 0);
        guest.enable();
        assert_eq!(guest.csts() & SHST, 0);
    }
}

/// Linux leaves CC.EN set when a driver goes, and gives the memory of the queues and the shadow
/// doorbells to others. The next driver sets bus master before it disables the controller.
#[test]
fn after_a_shutdown_no_guest_memory_is_touched() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 4);
    for cid in 0..3 {
        assert_eq!(guest.io(&mut pair, &flush(cid)).status(), Status::SUCCESS);
    }
    guest.start_shadow();
    guest.write32(CC, CC_ENABLE | 1 << 14);
    guest.wait_csts("the shutdown", SHST, SHST_COMPLETE);
    control.take_seen();
    let end = machine.mark() * 4096;
    // Every byte is one that would be a command, a tail and an event index.
    let canary = vec![1; (end - 4096) as usize];
    machine.write(4096, &canary);
    for command in [0x02u16, 0x06] {
        guest.write_config(0x04, &command.to_le_bytes());
    }
    for doorbell in 0..4 {
        guest.write32(0x1000 + doorbell * 4, 2);
    }
    guest.write32(CC, CC_ENABLE & !1);
    guest.wait_csts("the reset", SHST | 1, 0);
    assert!(
        machine.read(4096, canary.len()) == canary,
        "memory was written"
    );
    assert!(control.take_seen().is_empty(), "a command was fetched");
    guest.enable();
    assert!(guest.identify(1, 0, 0, 0).is_ok());
}

#[test]
fn a_function_level_reset_brings_back_power_on_state() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let (_sq, _cq) = guest.create_pair(1, 4);
    guest.function_level_reset();
    guest.wait_csts("the reset", 1, 0);
    assert_eq!((guest.read32(CC), guest.read32(AQA)), (0, 0));
    assert_eq!((guest.read64(ASQ), guest.read64(ACQ)), (0, 0));
    assert_eq!(guest.controller.bar_window(0), None);
    assert_eq!(guest.read32(MSIX_TABLE + 12), 1, "vector masked");
    guest.plug(BAR, PAIRS + 1);
    guest.enable();
    assert!(guest.identify(1, 0, 0, 0).is_ok());
    let (sq, cq) = guest.create_pair(1, 4);
    let cqe = guest.io(&mut (sq, cq), &flush(1));
    assert_eq!(cqe.status(), Status::INVALID_FIELD, "there is no namespace");
}
