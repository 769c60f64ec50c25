//! Resets while commands are in flight: afterwards nothing given before is touched.

use super::fakes::wait_until;
use super::harness::*;
use super::held::{InFlight, stubborn_namespace, works_again};
use crate::nvme::ControllerState;

#[test]
fn a_reset_cancels_what_is_held_and_no_completion_comes_later() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let held = InFlight::start(&guest, &control, 1, 20);
    let interrupts = guest.msi.count(1);
    guest.disable();
    assert_eq!(control.take_cancelled().len(), 20);
    assert_eq!(control.release_all(), 0);
    works_again(&guest, &control);
    held.assert_untouched(&machine);
    assert!(guest.msi.count(1) >= interrupts);
}

#[test]
fn a_reset_waits_for_what_cannot_be_cancelled() {
    let machine = Machine::new();
    let (backend, control) = stubborn_namespace(&machine);
    let guest = machine.enabled("c");
    let held = InFlight::start(&guest, &control, 1, 20);
    guest.write32(CC, CC_ENABLE & !1);
    backend.wait_cancels(20);
    for left in (1..=20).rev() {
        assert_eq!(
            guest.csts() & 1,
            1,
            "ready is the sign that memory is in use"
        );
        assert_eq!(control.held().len(), left);
        assert!(control.release_one());
    }
    guest.wait_csts("the reset", 1, 0);
    assert_eq!(guest.msi.count(1), 0);
    assert!(!held.pair.1.has_one());
    works_again(&guest, &control);
    assert!(!held.pair.1.has_one());
}

#[test]
fn a_function_level_reset_cancels_what_is_held() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let held = InFlight::start(&guest, &control, 1, 20);
    guest.function_level_reset();
    guest.wait_csts("the reset", 1, 0);
    assert_eq!(control.take_cancelled().len(), 20);
    guest.plug(BAR, PAIRS + 1);
    works_again(&guest, &control);
    held.assert_untouched(&machine);
}

#[test]
fn a_function_level_reset_says_with_rdy_that_memory_is_in_use() {
    let machine = Machine::new();
    let (backend, control) = stubborn_namespace(&machine);
    let guest = machine.enabled("c");
    let held = InFlight::start(&guest, &control, 1, 5);
    guest.function_level_reset();
    backend.wait_cancels(5);
    assert_eq!(guest.csts() & 1, 1);
    assert_eq!(guest.read32(CC), 0);
    // The driver sets the function up meanwhile; nothing of before may reach it.
    guest.plug(BAR, PAIRS + 1);
    assert_eq!(control.release_all(), 5);
    guest.wait_csts("the reset", 1, 0);
    assert_eq!(guest.msi.total(), guest.msi.count(0));
    assert!(!held.pair.1.has_one());
    works_again(&guest, &control);
}

#[test]
fn commands_of_before_a_function_level_reset_are_not_fetched_after_it() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    // They wait for bus master, which comes back before the main loop looks.
    guest.write_config(0x04, &2u16.to_le_bytes());
    let paused = guest.main_loop.pause();
    for cid in 0..3 {
        guest.submit(&mut pair.0, &flush(cid));
    }
    guest.function_level_reset();
    guest.plug(BAR, PAIRS + 1);
    assert!(!guest.controller.core().bus_master());
    drop(paused);
    guest.wait_csts("the reset", 1, 0);
    assert_eq!(control.take_seen(), []);
    assert!(!pair.1.has_one());
    works_again(&guest, &control);
}

#[test]
fn en_set_again_before_the_reset_is_over_waits_for_it() {
    let machine = Machine::new();
    let (backend, control) = stubborn_namespace(&machine);
    let guest = machine.enabled("c");
    let _held = InFlight::start(&guest, &control, 1, 3);
    guest.write32(CC, CC_ENABLE & !1);
    backend.wait_cancels(3);
    guest.set_admin_queues(32, 32);
    guest.write32(CC, CC_ENABLE);
    assert_eq!(guest.controller.info().state, ControllerState::Resetting);
    assert_eq!(control.release_all(), 3);
    wait_until("the controller to be enabled", || {
        guest.controller.info().state == ControllerState::Ready
    });
    guest.wait_csts("ready", 1, 1);
    assert!(guest.identify(1, 0, 0, 0).is_ok());
}

#[test]
fn two_controllers_reset_at_once() {
    let machine = Machine::with(true, 1);
    let (backend, control) = stubborn_namespace(&machine);
    let guests = [machine.enabled("a"), machine.enabled("b")];
    let held = guests
        .each_ref()
        .map(|guest| InFlight::start(guest, &control, 1, 4));
    for guest in &guests {
        guest.write32(CC, CC_ENABLE & !1);
    }
    backend.wait_cancels(8);
    // The first controller's commands come first.
    for _ in 0..4 {
        assert!(control.release_one());
    }
    guests[0].wait_csts("the reset of the first", 1, 0);
    assert_eq!(guests[1].csts() & 1, 1);
    works_again(&guests[0], &control);
    assert_eq!(control.release_all(), 4);
    guests[1].wait_csts("the reset of the second", 1, 0);
    for held in &held {
        assert!(!held.pair.1.has_one());
    }
    works_again(&guests[1], &control);
}

#[test]
fn a_reset_of_one_controller_leaves_the_other_alone() {
    let machine = Machine::with(true, 1);
    let control = machine.test_namespace();
    let (a, b) = (machine.enabled("a"), machine.enabled("b"));
    let _of_a = InFlight::start(&a, &control, 1, 4);
    let mut of_b = InFlight::start(&b, &control, 1, 4);
    a.disable();
    assert_eq!(control.release_all(), 4);
    for cid in 0..4 {
        assert_eq!(b.wait_cqe(&mut of_b.pair.1).cid, cid);
    }
    assert_eq!(machine.read(of_b.data, 512), [0; 512]);
}

#[test]
fn a_deletion_and_an_abort_in_progress_end_with_the_reset() {
    let machine = Machine::new();
    let (backend, control) = stubborn_namespace(&machine);
    let guest = machine.enabled("c");
    let held = InFlight::start(&guest, &control, 1, 4);
    let deletion = guest.submit_admin(delete_queue(crate::nvme::spec::AdminOpcode::DELETE_SQ, 1));
    backend.wait_cancels(4);
    assert_eq!(guest.admin_ok(abort(1, 0)), 1, "cannot be stopped");
    assert!(guest.take_admin(deletion).is_none());
    guest.write32(CC, CC_ENABLE & !1);
    assert_eq!(control.release_all(), 4);
    guest.wait_csts("the reset", 1, 0);
    works_again(&guest, &control);
    assert!(guest.take_admin(deletion).is_none());
    drop(held);
}

#[test]
fn resets_in_the_middle_of_io_leave_a_working_controller() {
    let machine = Machine::new();
    machine.memory_namespace(1 << 20, 512);
    let guest = machine.enabled("c");
    let mark = machine.mark();
    for round in 0..60u16 {
        let mut pair = guest.create_pair(1 + round % PAIRS, 64);
        for cid in 0..60 {
            guest.submit(&mut pair.0, &flush(cid));
        }
        if round % 3 == 0 {
            guest.start_shadow();
        }
        let first = pair.1.wait();
        assert_eq!(first.cid, 0);
        guest.disable();
        // Everything of before can be used for something else from now on.
        machine.rewind(mark);
        guest.enable();
        assert!(guest.identify(1, 0, 0, 0).is_ok());
    }
}
