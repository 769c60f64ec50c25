//! Completion queues that are full: nothing is lost, and they go on when there is room.

use super::harness::*;
use crate::nvme::spec::Status;
use crate::storage::testing::Mode;

/// Submits `count` commands at once to a completion queue of `cq_entries`, and takes completions one
/// by one without ever ringing the submission queue again.
fn drains_through(cq_entries: u32, count: u16, shadow: bool, events: bool) {
    let machine = Machine::new();
    machine.memory_namespace(1 << 20, 512);
    let guest = machine.enabled("c");
    if !events {
        guest.io_events.refuse();
    }
    let mut cq = guest.create_cq(1, cq_entries);
    let mut sq = guest.create_sq(1, 256, 1);
    if shadow {
        guest.start_shadow();
        (cq.shadowed, sq.shadowed) = (true, true);
    }
    for round in 0..3 {
        let first = round * count;
        for cid in 0..count {
            guest.push(&mut sq, &flush(first + cid));
        }
        guest.ring_sq(&sq);
        for cid in 0..count {
            let cqe = guest.wait_cqe(&mut cq);
            assert_eq!((cqe.cid, cqe.status()), (first + cid, Status::SUCCESS));
        }
        assert!(!cq.has_one());
    }
}

#[test]
fn a_queue_of_two_entries_passes_every_completion() {
    drains_through(2, 200, false, true);
}

#[test]
fn a_queue_of_two_entries_with_shadow_doorbells() {
    drains_through(2, 200, true, true);
}

#[test]
fn a_queue_of_two_entries_with_shadow_doorbells_that_stay_exits() {
    drains_through(2, 200, true, false);
}

#[test]
fn a_queue_of_three_entries_in_all_ways() {
    for (shadow, events) in [(false, true), (true, true), (true, false)] {
        drains_through(3, 100, shadow, events);
    }
}

#[test]
fn the_last_command_waits_for_room_and_not_for_a_doorbell() {
    for shadow in [false, true] {
        for _ in 0..50 {
            drains_through(2, 2, shadow, true);
        }
    }
}

#[test]
fn several_submission_queues_compete_for_one_entry() {
    for shadow in [false, true] {
        let machine = Machine::new();
        machine.memory_namespace(1 << 20, 512);
        let guest = machine.enabled("c");
        let mut cq = guest.create_cq(1, 2);
        let mut sqs: Vec<Sq> = (1..=3).map(|id| guest.create_sq(id, 64, 1)).collect();
        if shadow {
            guest.start_shadow();
            cq.shadowed = true;
        }
        for sq in &mut sqs {
            sq.shadowed = shadow;
            for cid in 0..50 {
                guest.push(sq, &flush(cid));
            }
            guest.ring_sq(sq);
        }
        let mut next = [0; 3];
        for _ in 0..150 {
            let cqe = guest.wait_cqe(&mut cq);
            let next = &mut next[usize::from(cqe.sqid) - 1];
            assert_eq!(cqe.cid, *next);
            *next += 1;
        }
        assert_eq!(next, [50; 3]);
    }
}

#[test]
fn completions_taken_in_batches_free_as_many_entries() {
    let machine = Machine::new();
    machine.memory_namespace(1 << 20, 512);
    let guest = machine.enabled("c");
    let mut cq = guest.create_cq(1, 8);
    let mut sq = guest.create_sq(1, 256, 1);
    for cid in 0..250 {
        guest.push(&mut sq, &flush(cid));
    }
    guest.ring_sq(&sq);
    let mut cid = 0;
    while cid < 250 {
        // All that fit are there before a doorbell.
        for _ in 0..(250 - cid).min(7) {
            assert_eq!(cq.wait().cid, cid);
            cid += 1;
        }
        guest.ring_cq(&cq);
    }
}

#[test]
fn a_full_admin_queue_goes_on_when_there_is_room() {
    for shadow in [false, true] {
        let machine = Machine::new();
        let guest = machine.controller("c");
        guest.enable_with(64, 2);
        if shadow {
            guest.start_shadow();
        }
        let cids: Vec<u16> = (0..60)
            .map(|_| guest.submit_admin(get_feature(1, 0, 0)))
            .collect();
        for cid in cids {
            assert_eq!(guest.wait_admin(cid).status(), Status::SUCCESS);
        }
    }
}

#[test]
fn a_head_that_passes_the_tail_frees_nothing_and_is_told() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let request = guest.submit_admin(event_request());
    let mut cq = guest.create_cq(1, 4);
    let mut sq = guest.create_sq(1, 16, 1);
    control.set_mode(Mode::Hold);
    for cid in 0..3 {
        guest.submit(&mut sq, &flush(cid));
    }
    control.wait_held(3).unwrap();
    // All entries are set aside and none was posted; the guest says that it took two.
    guest.write32(0x100c, 2);
    guest.submit(&mut sq, &flush(3));
    assert_eq!(guest.wait_admin(request).dw0, 0x0001_0100);
    assert_eq!(control.held().len(), 3, "fetched without room");
    guest.write32(0x100c, 0);
    for cid in 0..4 {
        control.wait_held(1).unwrap();
        control.release_one();
        assert_eq!(guest.wait_cqe(&mut cq).cid, cid);
    }
}
