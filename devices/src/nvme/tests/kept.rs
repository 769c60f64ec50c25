//! Completion queue heads that the hypervisor keeps for guests without shadow doorbells.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::fakes::wait_until;
use super::harness::*;
use crate::nvme::spec::{AdminOpcode, Sqe, Status};
use crate::pci::PciDevice;
use crate::storage::testing::Mode;

const INVALID_VALUE: u32 = 0x0001_0100;

fn start() -> (Arc<Machine>, Guest) {
    let machine = Machine::with(true, 1);
    machine.memory_namespace(1 << 20, 512);
    let guest = machine.enabled("c");
    (machine, guest)
}

fn kept(guest: &Guest) -> u64 {
    guest.doorbells_kept.load(Ordering::Relaxed)
}

fn exits(guest: &Guest) -> u64 {
    guest.doorbell_exits.load(Ordering::Relaxed)
}

/// Doorbells of these completion queues with BAR 0 at `base`.
fn heads(base: u64, qids: &[u64]) -> Vec<u64> {
    qids.iter().map(|qid| base + 0x1004 + qid * 8).collect()
}

#[test]
fn a_command_costs_one_exit() {
    for entries in [2, 3, 64] {
        let (_machine, guest) = start();
        let mut pair = guest.create_pair(1, entries);
        let before = exits(&guest);
        for cid in 0..500 {
            assert_eq!(guest.io(&mut pair, &flush(cid)).cid, cid);
        }
        assert_eq!((exits(&guest) - before, kept(&guest)), (500, 500));
        let info = &guest.controller.info().queues[1];
        assert_eq!((info.doorbell_exits, info.coalesced_doorbells), (500, 500));
    }
}

#[test]
fn heads_in_the_ring_are_room() {
    let (_machine, guest) = start();
    // 200 commands are submitted at once, so that nobody drains for the thread but itself.
    let mut cq = guest.create_cq(1, 16);
    let mut sq = guest.create_sq(1, 256, 1);
    for _ in 0..20 {
        for cid in 0..200 {
            guest.push(&mut sq, &flush(cid));
        }
        guest.ring_sq(&sq);
        for cid in 0..200 {
            assert_eq!(guest.wait_cqe(&mut cq).cid, cid);
        }
    }
}

#[test]
fn a_thread_that_waits_for_room_is_told_and_heads_are_kept_again() {
    let machine = Machine::with(true, 1);
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let (base, _) = guest.controller.bar_window(0).unwrap();
    let mut cq = guest.create_cq(1, 4);
    let mut sq = guest.create_sq(1, 64, 1);
    control.set_mode(Mode::Inline);
    for _ in 0..20 {
        assert_eq!(guest.io_events.kept(), heads(base, &[1]));
        for cid in 0..6 {
            guest.push(&mut sq, &flush(cid));
        }
        guest.ring_sq(&sq);
        wait_until("the thread to wait for room", || {
            guest.io_events.kept().is_empty()
        });
        // No exit but those of the heads from here on.
        for cid in 0..6 {
            assert_eq!(guest.wait_cqe(&mut cq).cid, cid);
        }
        guest.submit(&mut sq, &flush(9));
        assert_eq!(guest.wait_cqe(&mut cq).cid, 9);
    }
}

#[test]
fn a_thread_that_waits_for_room_is_told_wherever_the_doorbells_are_then() {
    let machine = Machine::with(true, 1);
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut cq = guest.create_cq(1, 4);
    let mut sq = guest.create_sq(1, 64, 1);
    control.set_mode(Mode::Inline);
    for cid in 0..6 {
        guest.push(&mut sq, &flush(cid));
    }
    guest.ring_sq(&sq);
    wait_until("the thread to wait for room", || {
        guest.io_events.kept().is_empty()
    });
    guest.set_bar(0xd000_0000);
    assert_eq!(guest.io_events.kept(), [0u64; 0]);
    for cid in 0..6 {
        assert_eq!(guest.wait_cqe(&mut cq).cid, cid);
    }
}

#[test]
fn kept_heads_are_where_the_doorbells_of_completion_queues_are() {
    let (_machine, guest) = start();
    let (base, _) = guest.controller.bar_window(0).unwrap();
    let kept = || guest.io_events.kept();
    let mut pair = guest.create_pair(1, 8);
    let _third = guest.create_pair(3, 4);
    assert_eq!(kept(), heads(base, &[1, 3]));
    guest.io(&mut pair, &flush(1));
    guest.set_bar(0xd000_0000);
    assert_eq!(kept(), heads(0xd000_0000, &[1, 3]));
    for cid in 0..20 {
        guest.io(&mut pair, &flush(cid));
    }
    guest.write_config(0x04, &4u16.to_le_bytes());
    assert_eq!(kept(), [0u64; 0]);
    guest.write_config(0x04, &6u16.to_le_bytes());
    assert_eq!(kept(), heads(0xd000_0000, &[1, 3]));
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 3));
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_CQ, 3));
    assert_eq!(kept(), heads(0xd000_0000, &[1]));
    guest.disable();
    assert_eq!(kept(), [0u64; 0]);
    guest.enable();
    let _pair = guest.create_pair(1, 8);
    assert_eq!(kept(), heads(0xd000_0000, &[1]));
    guest.function_level_reset();
    guest.wait_csts("the reset", 1, 0);
    assert_eq!(kept(), [0u64; 0]);
    guest.plug(BAR, PAIRS + 1);
    guest.enable();
    let _pair = guest.create_pair(1, 8);
    let io_events = Arc::clone(&guest.io_events);
    assert_eq!(io_events.kept(), heads(BAR, &[1]));
    drop(guest);
    assert!(io_events.kept().is_empty());
}

#[test]
fn shadow_doorbells_start_with_what_was_kept() {
    let (_machine, guest) = start();
    let mut pair = guest.create_pair(1, 8);
    for cid in 0..5 {
        guest.io(&mut pair, &flush(cid));
    }
    // The controller's own look at the head, not the guest's exits, must bring it.
    let pages = guest.start_shadow();
    assert_eq!(pages.values.load_u32(12, Ordering::Relaxed), 5);
    assert!(guest.io_events.kept().is_empty());
    assert_eq!(guest.io_events.addresses().len(), 2);
    (pair.0.shadowed, pair.1.shadowed) = (true, true);
    for cid in 0..50 {
        assert_eq!(guest.io(&mut pair, &flush(cid)).cid, cid);
    }
}

#[test]
fn a_head_that_is_kept_behind_the_command_starts_shadow_doorbells_too() {
    let (machine, guest) = start();
    let mut pair = guest.create_pair(1, 8);
    guest.submit(&mut pair.0, &flush(1));
    pair.1.wait();
    let pages = [machine.page(), machine.page()];
    let paused = guest.main_loop.pause();
    let command = guest.submit_admin(Sqe {
        prp1: pages[0],
        prp2: pages[1],
        ..admin(AdminOpcode::DOORBELL_BUFFER_CONFIG)
    });
    // Another vCPU's write, which nobody takes before the controller does.
    guest.ring_cq(&pair.1);
    drop(paused);
    assert_eq!(guest.wait_admin(command).status(), Status::SUCCESS);
    assert_eq!(machine.ram.read::<u32>(pages[0] + 12).unwrap(), 1);
}

#[test]
fn invalid_heads_are_told_when_they_are_taken() {
    let (_machine, guest) = start();
    let request = guest.submit_admin(event_request());
    let mut pair = guest.create_pair(1, 8);
    for value in [8, 9, u32::MAX] {
        guest.write32(0x100c, value);
    }
    guest.read32(CSTS);
    assert_eq!(guest.wait_admin(request).dw0, INVALID_VALUE);
    for cid in 0..20 {
        let cqe = guest.io(&mut pair, &flush(cid));
        assert_eq!((cqe.cid, cqe.status()), (cid, Status::SUCCESS));
    }
    // More than there is room for.
    for _ in 0..1_000 {
        guest.write32(0x100c, pair.1.head);
    }
    assert_eq!(guest.io(&mut pair, &flush(7)).cid, 7);
}

#[test]
fn a_hypervisor_that_keeps_nothing_is_as_right() {
    let (_machine, guest) = start();
    guest.io_events.refuse();
    let mut pair = guest.create_pair(1, 8);
    for cid in 0..50 {
        assert_eq!(guest.io(&mut pair, &flush(cid)).cid, cid);
    }
    assert_eq!(kept(&guest), 0);
    let info = &guest.controller.info().queues[1];
    assert_eq!((info.doorbell_exits, info.coalesced_doorbells), (100, 0));
}
