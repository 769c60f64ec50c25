//! Shadow doorbells: event indices, hostile values, ioeventfds.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::fakes::wait_until;
use super::harness::*;
use super::held::{InFlight, stubborn_namespace};
use crate::nvme::spec::{AdminOpcode, NvmOpcode, Sqe, Status};
use crate::pci::PciDevice;
use crate::storage::testing::Mode;

const INVALID_VALUE: u32 = 0x0001_0100;

/// A controller with a namespace in memory.
fn start() -> (Arc<Machine>, Guest) {
    let machine = Machine::new();
    machine.memory_namespace(1 << 20, 512);
    let guest = machine.enabled("c");
    (machine, guest)
}

fn shadowed_pair(guest: &Guest, id: u16, entries: u32) -> (Sq, Cq) {
    let mut pair = guest.create_pair(id, entries);
    pair.0.shadowed = true;
    pair.1.shadowed = true;
    pair
}

/// Runs `count` commands in batches of changing size, ringing only when the event index says so.
fn run(guest: &Guest, pair: &mut (Sq, Cq), count: u32) {
    let (mut submitted, mut completed) = (0u32, 0u32);
    let room = pair.0.entries - 1;
    let mut batch = 1;
    while completed < count {
        let burst = batch
            .min(count - submitted)
            .min(room - (submitted - completed));
        for _ in 0..burst {
            guest.push(&mut pair.0, &flush(submitted as u16));
            submitted += 1;
            guest.ring_sq(&pair.0);
        }
        // Sometimes leave commands in flight, so that the thread is met busy and asleep.
        let leave = if submitted < count { batch % 3 } else { 0 };
        while submitted - completed > leave.min(room - 1) {
            let cqe = pair.1.wait();
            assert_eq!((cqe.cid, cqe.status()), (completed as u16, Status::SUCCESS));
            completed += 1;
            guest.ring_cq(&pair.1);
        }
        batch = batch % 17 + 1;
    }
}

#[test]
fn need_event_is_what_linux_has() {
    for (event_index, new, old, ring) in [
        (0, 1, 0, true),
        (0, 2, 1, false),
        (1, 2, 1, true),
        (5, 4, 3, false),
        (5, 6, 3, true),
        (6, 0, 6, true),
        (3, 0, 6, false),
        (0xffff, 0, 0xffff, true),
    ] {
        assert_eq!(
            need_event(event_index, new, old),
            ring,
            "{event_index} {new} {old}"
        );
    }
}

#[test]
fn no_wakeup_is_lost_at_any_queue_size() {
    for entries in [2, 3, 4, 7, 64, 65_536] {
        let (_machine, guest) = start();
        guest.start_shadow();
        let mut pair = shadowed_pair(&guest, 1, entries);
        run(&guest, &mut pair, 4_000);
    }
}

#[test]
fn no_wakeup_is_lost_while_indices_wrap_at_16_bits() {
    let (_machine, guest) = start();
    guest.start_shadow();
    let mut pair = shadowed_pair(&guest, 1, 65_536);
    run(&guest, &mut pair, 66_000);
}

#[test]
fn no_io_doorbell_reaches_the_controller_any_more() {
    let (_machine, guest) = start();
    let mut pair = guest.create_pair(1, 16);
    for cid in 0..20 {
        guest.io(&mut pair, &flush(cid));
    }
    guest.start_shadow();
    (pair.0.shadowed, pair.1.shadowed) = (true, true);
    let mut later = shadowed_pair(&guest, 2, 16);
    let before = guest.doorbell_exits.load(Ordering::Relaxed);
    let counted = || guest.controller.info().queues[1].doorbell_exits;
    let exits = counted();
    run(&guest, &mut pair, 1_000);
    run(&guest, &mut later, 1_000);
    assert_eq!(guest.doorbell_exits.load(Ordering::Relaxed), before);
    assert_eq!(counted(), exits);
    assert!(guest.controller.info().shadow_doorbells);
}

/// Runs `count` commands in bursts of `burst` and takes each completion at once; how often the head's
/// doorbell was rung.
fn heads_rung(guest: &Guest, pair: &mut (Sq, Cq), count: u32, burst: u32) -> u64 {
    let rung = || guest.doorbell_events.load(Ordering::Relaxed);
    let mut heads = 0;
    for first in (0..count).step_by(burst as usize) {
        for cid in first..first + burst {
            guest.push(&mut pair.0, &flush(cid as u16));
        }
        guest.ring_sq(&pair.0);
        for cid in first..first + burst {
            assert_eq!(pair.1.wait().cid, cid as u16);
            let before = rung();
            guest.ring_cq(&pair.1);
            heads += rung() - before;
        }
    }
    heads
}

#[test]
fn a_guest_that_keeps_up_hardly_ever_rings_for_completions() {
    for entries in [2, 3, 4, 7, 64, 1000] {
        for burst in [1, 2, 16] {
            let (_machine, guest) = start();
            let mut before = guest.create_pair(2, 64);
            guest.io(&mut before, &flush(0));
            guest.start_shadow();
            // The submission queue has no room for more than the completion queue could hold.
            let burst = burst.min(entries - 1);
            let mut pair = shadowed_pair(&guest, 1, entries);
            let count = burst * entries * 20;
            let heads = heads_rung(&guest, &mut pair, count, burst);
            // A thread in the middle of a burst may look between the guest's store of a head and its
            // look at the event index, which is then the head before: that doorbell is one too many.
            let laps = u64::from(burst) * 20;
            let most = if burst == 1 { 0 } else { laps / 4 };
            assert!(
                heads <= most,
                "{heads}: {entries} entries, bursts of {burst}"
            );
            // A queue that was there before, too.
            (before.0.shadowed, before.1.shadowed) = (true, true);
            let heads = heads_rung(&guest, &mut before, 64 * 5, 1);
            assert_eq!(heads, 0, "a queue of before");
        }
    }
}

#[test]
fn a_queue_that_was_full_asks_for_no_doorbell_once_it_is_not() {
    let (machine, guest) = start();
    guest.start_shadow();
    let cq = Cq::new(&machine, 1, 4);
    guest.admin_ok(create_cq(&cq, Some(1)));
    let mut pair = (guest.create_sq(1, 16, 1), cq);
    (pair.0.shadowed, pair.1.shadowed) = (true, true);
    for _ in 0..50 {
        // Twelve commands, three at a time: the guest has to ring where the thread waits.
        for cid in 0..12 {
            guest.push(&mut pair.0, &flush(cid));
        }
        guest.ring_sq(&pair.0);
        for cid in 0..12 {
            assert_eq!(guest.wait_cqe(&mut pair.1).cid, cid);
        }
        // The first may come past an index of the time when the queue was full.
        heads_rung(&guest, &mut pair, 1, 1);
        assert_eq!(heads_rung(&guest, &mut pair, 20, 1), 0);
    }
}

#[test]
fn existing_queues_go_on_where_they_are() {
    let (_machine, guest) = start();
    let mut pairs = [16, 5].map(|entries| guest.create_pair(entries as u16 % 8 + 1, entries));
    for pair in &mut pairs {
        for cid in 0..8 {
            guest.io(pair, &flush(cid));
        }
    }
    let pages = guest.start_shadow();
    for pair in &mut pairs {
        let offset = usize::from(pair.0.id) * 8;
        assert_eq!(
            pages.values.load_u32(offset, Ordering::Relaxed),
            pair.0.tail
        );
        assert_eq!(
            pages.values.load_u32(offset + 4, Ordering::Relaxed),
            pair.1.head
        );
        (pair.0.shadowed, pair.1.shadowed) = (true, true);
        run(&guest, pair, 300);
    }
}

#[test]
fn commands_in_flight_end_after_the_change() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    control.set_mode(Mode::Hold);
    for cid in 0..4 {
        guest.submit(&mut pair.0, &flush(cid));
    }
    control.wait_held(4).unwrap();
    guest.start_shadow();
    (pair.0.shadowed, pair.1.shadowed) = (true, true);
    control.set_mode(Mode::Inline);
    assert_eq!(control.release_all(), 4);
    for cid in 0..4 {
        assert_eq!(guest.wait_cqe(&mut pair.1).cid, cid);
    }
    run(&guest, &mut pair, 500);
}

#[test]
fn other_pages_can_take_over_while_queues_run() {
    let (_machine, guest) = start();
    guest.start_shadow();
    let mut pair = shadowed_pair(&guest, 1, 16);
    for _ in 0..5 {
        run(&guest, &mut pair, 21);
        let pages = guest.start_shadow();
        assert_eq!(pages.values.load_u32(8, Ordering::Relaxed), pair.0.tail);
        assert_eq!(pages.values.load_u32(12, Ordering::Relaxed), pair.1.head);
        run(&guest, &mut pair, 40);
        assert!(!pair.1.has_one(), "an old command was executed again");
    }
}

#[test]
fn pages_that_are_none_are_refused() {
    let (machine, guest) = start();
    let page = machine.page();
    for (prp1, prp2, status) in [
        (page + 8, page, Status::INVALID_FIELD),
        (page, page + 8, Status::INVALID_FIELD),
        (0xe000_0000, page, Status::DATA_TRANSFER_ERROR),
        (page, LAST_PAGE, Status::DATA_TRANSFER_ERROR),
    ] {
        let cqe = guest.admin(Sqe {
            prp1,
            prp2,
            ..admin(AdminOpcode::DOORBELL_BUFFER_CONFIG)
        });
        assert_eq!(cqe.status(), status);
    }
    assert!(!guest.controller.info().shadow_doorbells);
    assert!(guest.io_events.addresses().is_empty());
}

/// Times that I/O threads slept.
fn sleeps(machine: &Machine) -> u64 {
    machine
        .io_threads
        .info()
        .iter()
        .map(|thread| thread.sleeps)
        .sum()
}

#[test]
fn values_outside_of_the_queue_neither_hang_nor_spin() {
    let (machine, guest) = start();
    let request = guest.submit_admin(event_request());
    let pages = guest.start_shadow();
    let mut pair = shadowed_pair(&guest, 1, 16);
    for value in [16, 17, 0xffff, 0x1_0000, u32::MAX] {
        pages.values.store_u32(8, value, Ordering::SeqCst);
        pages.values.store_u32(12, value, Ordering::SeqCst);
        // The thread looks, and goes to sleep again.
        let before = sleeps(&machine);
        guest.write32(0x1008, 0);
        guest.write32(0x100c, 0);
        wait_until("the I/O thread to sleep", || sleeps(&machine) > before);
    }
    assert_eq!(guest.wait_admin(request).dw0, INVALID_VALUE);
    pages.values.store_u32(8, 0, Ordering::SeqCst);
    pages.values.store_u32(12, 0, Ordering::SeqCst);
    run(&guest, &mut pair, 100);
}

#[test]
fn an_invalid_admin_tail_does_not_keep_the_main_loop_busy() {
    let (_machine, guest) = start();
    let pages = guest.start_shadow();
    pages.values.store_u32(0, 0x8000_0000, Ordering::SeqCst);
    let paused = guest.main_loop.pause();
    for _ in 0..3 {
        guest.controller.service();
    }
    assert!(
        guest.controller.event().read().is_err(),
        "asks to be served for ever"
    );
    drop(paused);
    pages.values.store_u32(0, 1, Ordering::SeqCst);
    guest.identify(1, 0, 0, 0).unwrap();
}

#[test]
fn deleting_queues_is_no_invalid_value() {
    let (machine, guest) = start();
    let request = guest.submit_admin(event_request());
    guest.start_shadow();
    let mark = machine.mark();
    for round in 0..100 {
        let mut pair = shadowed_pair(&guest, 1, 16);
        let mut busy = shadowed_pair(&guest, 2, 64);
        for cid in 0..20 {
            guest.submit(&mut busy.0, &flush(cid));
        }
        guest.submit(&mut pair.0, &flush(round));
        for id in [1, 2] {
            guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, id));
            guest.admin_ok(delete_queue(AdminOpcode::DELETE_CQ, id));
        }
        machine.rewind(mark);
    }
    assert!(guest.take_admin(request).is_none());
}

#[test]
fn a_reset_forgets_the_pages_and_the_old_queues() {
    let (machine, guest) = start();
    let pages = guest.start_shadow();
    let mut pair = shadowed_pair(&guest, 1, 16);
    run(&guest, &mut pair, 50);
    guest.disable();
    assert!(guest.io_events.addresses().is_empty());
    let old = [
        (pages.address.0, 4096),
        (pages.address.1, 4096),
        (pair.0.address, 16 * 64),
        (pair.1.address, 16 * 16),
    ];
    for (address, len) in old {
        machine.write(address, &vec![0xee; len]);
    }
    guest.enable();
    let mut pair = guest.create_pair(1, 16);
    for cid in 0..100 {
        assert_eq!(guest.io(&mut pair, &flush(cid)).cid, cid);
    }
    for (address, len) in old {
        assert!(
            machine.read(address, len).iter().all(|byte| *byte == 0xee),
            "{address:#x}"
        );
    }
    assert!(!guest.controller.info().shadow_doorbells);
}

/// Addresses of the doorbells of these queues with BAR 0 at `base`.
fn addresses(base: u64, qids: &[u64]) -> Vec<u64> {
    qids.iter()
        .flat_map(|qid| [0, 4].map(|side| base + 0x1000 + qid * 8 + side))
        .collect()
}

#[test]
fn events_are_where_the_doorbells_of_io_queues_are() {
    let (_machine, guest) = start();
    let (base, _) = guest.controller.bar_window(0).unwrap();
    let events = || guest.io_events.addresses();
    let _first = guest.create_pair(1, 4);
    assert_eq!(events(), [0u64; 0], "without the value in memory");
    guest.start_shadow();
    assert_eq!(events(), addresses(base, &[1]));
    let mut pair = shadowed_pair(&guest, 3, 4);
    assert_eq!(events(), addresses(base, &[1, 3]));

    guest.set_bar(0xd000_0000);
    assert_eq!(events(), addresses(0xd000_0000, &[1, 3]));
    run(&guest, &mut pair, 50);
    // Memory space off and on.
    guest.write_config(0x04, &4u16.to_le_bytes());
    assert_eq!(events(), [0u64; 0]);
    guest.write_config(0x04, &6u16.to_le_bytes());
    assert_eq!(events(), addresses(0xd000_0000, &[1, 3]));
    run(&guest, &mut pair, 50);

    guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 3));
    assert_eq!(events().len(), 3);
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_CQ, 3));
    assert_eq!(events(), addresses(0xd000_0000, &[1]));
    guest.function_level_reset();
    guest.wait_csts("the reset", 1, 0);
    assert_eq!(events(), [0u64; 0]);
    guest.plug(BAR, PAIRS + 1);
    assert_eq!(events(), [0u64; 0]);
}

#[test]
fn a_queue_that_is_being_deleted_gets_no_event() {
    let machine = Machine::new();
    let (_backend, control) = stubborn_namespace(&machine);
    let guest = machine.enabled("c");
    let (base, _) = guest.controller.bar_window(0).unwrap();
    let held = InFlight::start(&guest, &control, 1, 1);
    let deletion = guest.submit_admin(delete_queue(AdminOpcode::DELETE_SQ, 1));
    guest.start_shadow();
    control.release_all();
    assert_eq!(guest.wait_admin(deletion).status(), Status::SUCCESS);
    assert_eq!(guest.io_events.addresses(), [base + 0x100c]);
    drop(held);
}

#[test]
fn a_controller_that_goes_takes_its_events_along() {
    let (_machine, guest) = start();
    guest.start_shadow();
    let _pair = guest.create_pair(1, 4);
    let io_events = Arc::clone(&guest.io_events);
    assert_eq!(io_events.addresses().len(), 2);
    drop(guest);
    assert!(io_events.addresses().is_empty());
}

#[test]
fn a_controller_that_goes_leaves_its_commands_unanswered() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    control.set_mode(Mode::Hold);
    let page = machine.page();
    machine.write(page, &[0xee; 512]);
    for cid in 0..3 {
        let read = transfer(NvmOpcode::READ, cid, 0, 1, (page, 0));
        guest.submit(&mut pair.0, &read);
    }
    control.wait_held(3).unwrap();
    drop(guest);
    wait_until("the commands to be cancelled", || control.held().is_empty());
    assert_eq!(machine.read(page, 512), [0xee; 512]);
    assert!(!pair.1.has_one());
}
