//! What `info` shows of controllers and namespaces in use.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::fakes::wait_until;
use super::harness::*;
use crate::nvme::ControllerState;
use crate::nvme::spec::{AdminOpcode, BROADCAST, Cqe, NvmOpcode, Sqe, Status};
use crate::storage::testing::Mode;
use crate::subsystem::Traffic;

fn in_flight(machine: &Arc<Machine>) -> Vec<(u32, u64)> {
    let namespaces = machine.subsystem.info().namespaces;
    let counts = namespaces.iter().map(|info| (info.nsid, info.in_flight));
    counts.collect()
}

#[test]
fn commands_in_flight_are_counted_by_namespace_and_by_controller() {
    let machine = Machine::new();
    let controls = [machine.test_namespace(), machine.test_namespace()];
    let (a, b) = (machine.enabled("a"), machine.enabled("b"));
    let mut pairs = [a.create_pair(1, 8), a.create_pair(2, 8)];
    let mut of_b = b.create_pair(1, 8);
    for control in &controls {
        control.set_mode(Mode::Hold);
    }
    for (pair, nsid) in [(0, 1), (0, 1), (1, 1), (0, 2)] {
        a.submit(&mut pairs[pair].0, &nvm(NvmOpcode::FLUSH, 9, nsid));
    }
    b.submit(&mut of_b.0, &nvm(NvmOpcode::FLUSH, 9, 2));
    // An event request is no I/O, and what fails at once is not in flight.
    let request = a.submit_admin(event_request());
    let failed = a.io(&mut pairs[1], &nvm(NvmOpcode::FLUSH, 8, 7));
    assert_eq!(failed.status(), Status::INVALID_FIELD);
    controls[0].wait_held(3).unwrap();
    controls[1].wait_held(2).unwrap();
    assert_eq!(in_flight(&machine), [(1, 3), (2, 2)]);
    assert_eq!(a.controller.info().in_flight, 4);
    let by_queue = |guest: &Guest| {
        let queues = guest.controller.info().queues;
        let counts = queues.iter().map(|queue| (queue.sqid, queue.in_flight));
        counts.collect::<Vec<_>>()
    };
    assert_eq!(by_queue(&a), [(0, 0), (1, 3), (2, 1)]);
    assert_eq!(by_queue(&b), [(0, 0), (1, 1)]);
    assert_eq!(b.controller.info().in_flight, 1);

    // A table that changes meanwhile loses no count.
    machine.memory_namespace(4096, 512);
    assert_eq!(in_flight(&machine), [(1, 3), (2, 2), (3, 0)]);
    assert!(controls[0].release_one());
    wait_until("one command less", || in_flight(&machine)[0] == (1, 2));
    for control in &controls {
        control.release_all();
    }
    wait_until("no command", || {
        in_flight(&machine) == [(1, 0), (2, 0), (3, 0)]
    });
    assert_eq!(a.controller.info().in_flight, 0);
    assert_eq!(by_queue(&a), [(0, 0), (1, 0), (2, 0)]);
    assert!(a.take_admin(request).is_none());
}

#[test]
fn a_command_for_all_namespaces_is_in_flight_on_each() {
    let machine = Machine::new();
    let controls = [machine.test_namespace(), machine.test_namespace()];
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    for control in &controls {
        control.set_mode(Mode::Hold);
    }
    guest.submit(&mut pair.0, &nvm(NvmOpcode::FLUSH, 1, BROADCAST));
    controls[1].wait_held(1).unwrap();
    assert_eq!(in_flight(&machine), [(1, 1), (2, 1)]);
    assert_eq!(guest.controller.info().in_flight, 1);
    for control in &controls {
        control.wait_held(1).unwrap();
        control.release_all();
    }
    assert_eq!(guest.wait_cqe(&mut pair.1).status(), Status::SUCCESS);
    assert_eq!(in_flight(&machine), [(1, 0), (2, 0)]);
}

#[test]
fn a_namespace_is_not_charged_with_commands_of_the_one_before_it() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    control.set_mode(Mode::Hold);
    guest.submit(&mut pair.0, &flush(1));
    control.wait_held(1).unwrap();
    let old = machine.subsystem.remove_namespace(1).unwrap();
    assert_eq!(machine.memory_namespace(4096, 512).nsid(), 1);
    assert_eq!(in_flight(&machine), [(1, 0)]);
    assert_eq!(machine.subsystem.in_flight(&old), 1);
    assert_eq!(guest.controller.info().in_flight, 1);
    control.release_all();
    guest.wait_cqe(&mut pair.1);
    assert_eq!(machine.subsystem.in_flight(&old), 0);
}

#[test]
fn commands_that_a_reset_stops_are_in_flight_no_more() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    control.set_mode(Mode::Hold);
    guest.submit(&mut pair.0, &flush(1));
    control.wait_held(1).unwrap();
    assert_eq!(in_flight(&machine), [(1, 1)]);
    guest.disable();
    assert_eq!(in_flight(&machine), [(1, 0)]);
    assert_eq!(guest.controller.info().in_flight, 0);
}

#[test]
fn a_controller_says_what_it_is_doing() {
    let machine = Machine::new();
    let guest = machine.controller("c");
    let state = || guest.controller.info().state;
    assert_eq!(state(), ControllerState::Disabled);
    let paused = guest.main_loop.pause();
    guest.set_admin_queues(32, 32);
    guest.write32(CC, CC_ENABLE);
    assert_eq!(state(), ControllerState::Starting);
    drop(paused);
    wait_until("ready", || state() == ControllerState::Ready);
    guest.write32(CC, CC_ENABLE | 1 << 14);
    wait_until("the shutdown", || state() == ControllerState::Shutdown);
    guest.disable();
    assert_eq!(state(), ControllerState::Disabled);
    // Pages of 8 KiB.
    guest.write32(CC, CC_ENABLE | 1 << 7);
    wait_until("the failure", || state() == ControllerState::Failed);
    guest.write32(CC, 0);
    guest.enable();
    let quiet = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    guest.controller.stop(quiet);
    assert_eq!(state(), ControllerState::Stopped);
    let names = [ControllerState::ShuttingDown, ControllerState::Shutdown];
    assert_eq!(
        names.map(|state| serde_json::to_value(state).unwrap()),
        ["shutting-down", "shutdown"]
    );
}

#[test]
fn traffic_is_counted_by_namespace_and_outlives_queues_and_controllers() {
    let machine = Machine::new();
    machine.memory_namespace(1 << 20, 512);
    machine.memory_namespace(1 << 20, 4096);
    let traffic = || {
        let namespaces = machine.subsystem.info().namespaces;
        let counts = namespaces.iter().map(|info| info.traffic);
        counts.collect::<Vec<_>>()
    };
    let mut expected = [Traffic::default(); 2];
    assert_eq!(traffic(), expected);
    let page = machine.page();
    let (a, b) = (machine.enabled("a"), machine.enabled("b"));
    let mut pairs = [a.create_pair(1, 8), a.create_pair(2, 8)];
    let mut of_b = b.create_pair(1, 8);
    let on = |nsid, opcode, blocks| Sqe {
        nsid,
        ..transfer(opcode, 1, 0, blocks, (page, 0))
    };
    let success = |cqe: Cqe| assert_eq!(cqe.status(), Status::SUCCESS);
    success(a.io(&mut pairs[0], &on(1, NvmOpcode::READ, 8)));
    success(a.io(&mut pairs[1], &on(1, NvmOpcode::READ, 1)));
    success(b.io(&mut of_b, &on(1, NvmOpcode::WRITE, 2)));
    success(b.io(&mut of_b, &on(2, NvmOpcode::READ, 1)));
    // Neither reads nor writes data; is refused; names nothing.
    success(a.io(&mut pairs[0], &flush(1)));
    let beyond = transfer(NvmOpcode::READ, 1, 1 << 40, 1, (page, 0));
    a.io(&mut pairs[0], &beyond);
    a.io(&mut pairs[0], &on(1024, NvmOpcode::READ, 1));
    a.io(&mut pairs[0], &on(u32::MAX, NvmOpcode::READ, 1));
    expected[0] = Traffic {
        reads: 2,
        writes: 1,
        read_bytes: 9 * 512,
        written_bytes: 1024,
    };
    expected[1].reads = 1;
    expected[1].read_bytes = 4096;
    assert_eq!(traffic(), expected);

    a.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 1));
    a.admin_ok(delete_queue(AdminOpcode::DELETE_CQ, 1));
    // Another table for those queues that stay.
    machine.memory_namespace(4096, 512);
    success(a.io(&mut pairs[1], &on(2, NvmOpcode::WRITE, 1)));
    expected[1].writes = 1;
    expected[1].written_bytes = 4096;
    assert_eq!(traffic()[..2], expected);
    a.disable();
    drop(b);
    assert_eq!(traffic()[..2], expected);
}
