//! Namespaces and controllers that go while others reset, attach or are in the middle of commands.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use vmm_sys_util::eventfd::EventFd;

use super::fakes::wait_until;
use super::harness::*;
use super::held::{InFlight, look_twice, remove, stubborn_namespace, wait, works_again};
use crate::nvme::ControllerState;
use crate::nvme::spec::{BROADCAST, NvmOpcode, Status};
use crate::storage::testing::{Mode, TestControl};

fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).unwrap()
}

/// Clears EN and does not wait.
fn ask_reset(guest: &Guest) {
    guest.write32(CC, CC_ENABLE & !1);
}

/// NSIDs in the list of active namespaces.
fn active(guest: &Guest) -> Vec<u32> {
    let list = guest.identify(2, 0, 0, 0).unwrap();
    let numbers = list
        .chunks(4)
        .map(|b| u32::from_le_bytes(b.try_into().unwrap()));
    numbers.take_while(|nsid| *nsid != 0).collect()
}

/// A flush that the backend holds.
fn hold_flush(guest: &Guest, pair: &mut (Sq, Cq), control: &TestControl, nsid: u32) {
    let held = control.held().len();
    control.set_mode(Mode::Hold);
    guest.submit(&mut pair.0, &nvm(NvmOpcode::FLUSH, nsid as u16, nsid));
    control.wait_held(held + 1).unwrap();
}

#[test]
fn a_reset_and_a_deletion_in_either_order_wait_for_late_completions_and_drop_them() {
    for deletion_first in [true, false] {
        let machine = Machine::new();
        let (backend, control) = stubborn_namespace(&machine);
        let guest = machine.enabled("c");
        let held = InFlight::start(&guest, &control, 1, 10);
        let delete = || {
            let (closed, namespace) = remove(&machine, 1);
            drop(namespace);
            closed
        };
        let closed = if deletion_first {
            let closed = delete();
            ask_reset(&guest);
            closed
        } else {
            ask_reset(&guest);
            backend.wait_cancels(10);
            delete()
        };
        backend.wait_cancels(10);
        drop(backend);
        for _ in 0..10 {
            assert!(closed.read().is_err(), "commands are in flight");
            assert_eq!(guest.csts() & 1, 1);
            assert_eq!(guest.controller.info().state, ControllerState::Resetting);
            assert!(control.release_one());
        }
        wait(&closed);
        guest.wait_csts("the reset", 1, 0);
        // What a read brings is in the guest's memory before RDY says that nothing will be.
        assert!(!held.pair.1.has_one(), "a completion");
        assert_eq!(guest.msi.count(1), 0);
        guest.enable();
        assert_eq!(active(&guest), [0u32; 0]);
        assert!(!held.pair.1.has_one());
    }
}

#[test]
fn a_reset_and_a_deletion_at_once_cancel_what_can_be_cancelled() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    for _ in 0..30 {
        let mark = machine.mark();
        let control = machine.test_namespace();
        look_twice(&guest);
        let held = InFlight::start(&guest, &control, 1, 10);
        let start = Barrier::new(2);
        let closed = std::thread::scope(|scope| {
            let deletion = scope.spawn(|| {
                start.wait();
                let (closed, namespace) = remove(&machine, 1);
                guest.controller.abort_namespace(&namespace);
                closed
            });
            start.wait();
            guest.disable();
            deletion.join().unwrap()
        });
        wait(&closed);
        assert_eq!(control.release_all(), 0);
        let data = machine.read(held.data, 10 * 4096);
        assert!(data.iter().all(|byte| *byte == 0xee), "data");
        // Those that the deletion aborted before the reset may have told.
        drop(held);
        machine.rewind(mark);
        guest.enable();
    }
}

#[test]
fn a_controller_that_is_pulled_while_it_is_enabled_is_never_ready() {
    let machine = Machine::new();
    let guest = machine.controller("c");
    let quiet = event();
    let paused = guest.main_loop.pause();
    guest.set_admin_queues(32, 32);
    guest.write32(CC, CC_ENABLE);
    guest.controller.stop(quiet.try_clone().unwrap());
    drop(paused);
    wait(&quiet);
    assert!(guest.controller.is_quiet());
    assert_eq!(guest.controller.info().state, ControllerState::Stopped);
    // Nothing answers, and nothing hears.
    assert_eq!((guest.csts(), guest.read32(CC)), (u32::MAX, u32::MAX));
    assert_eq!(guest.read_config(0), [0xff; 4]);
    guest.write32(CC, CC_ENABLE);
    guest.write_config(0x04, &6u16.to_le_bytes());
    guest.controller.service();
    assert!(guest.controller.is_quiet());
    assert_eq!(guest.controller.info().queues.len(), 0);
}

#[test]
fn a_controller_that_is_pulled_while_it_resets_is_quiet_with_its_last_command() {
    let machine = Machine::new();
    let (backend, control) = stubborn_namespace(&machine);
    let guest = machine.enabled("c");
    let held = InFlight::start(&guest, &control, 1, 3);
    ask_reset(&guest);
    backend.wait_cancels(3);
    let quiet = event();
    guest.controller.stop(quiet.try_clone().unwrap());
    for _ in 0..3 {
        guest.controller.service();
        assert!(quiet.read().is_err(), "commands are in flight");
        assert!(control.release_one());
    }
    wait(&quiet);
    assert!(!held.pair.1.has_one());
    assert_eq!(guest.msi.total(), guest.msi.count(0));
}

#[test]
fn a_controller_that_is_dropped_while_it_resets_ends_with_its_last_command() {
    let machine = Machine::new();
    let (backend, control) = stubborn_namespace(&machine);
    let other = machine.memory_namespace(4096, 512).nsid();
    let guest = machine.enabled("c");
    let held = InFlight::start(&guest, &control, 1, 3);
    ask_reset(&guest);
    backend.wait_cancels(3);
    let ended = event();
    guest.controller.notify_closed(ended.try_clone().unwrap());
    drop(guest);
    assert!(machine.subsystem.controllers().is_empty());
    // Its commands keep their namespace open, and no other one.
    let (closed, namespace) = remove(&machine, other);
    drop(namespace);
    wait(&closed);
    let (closed, namespace) = remove(&machine, 1);
    drop((namespace, backend));
    assert!(closed.read().is_err() && ended.read().is_err());
    assert_eq!(control.release_all(), 3);
    wait(&closed);
    wait(&ended);
    assert!(!held.pair.1.has_one());
}

#[test]
fn a_controller_can_be_pulled_at_any_moment_of_being_enabled_and_reset() {
    let machine = Machine::new();
    for round in 0..60 {
        let mark = machine.mark();
        let guest = machine.controller("c");
        let ended = event();
        guest.controller.notify_closed(ended.try_clone().unwrap());
        let (start, pulled) = (Barrier::new(2), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                guest.set_admin_queues(32, 32);
                start.wait();
                while !pulled.load(Ordering::Acquire) {
                    guest.write32(CC, CC_ENABLE);
                    for _ in 0..round * 4 {
                        guest.csts();
                    }
                    ask_reset(&guest);
                }
            });
            start.wait();
            for _ in 0..round * 10 {
                guest.csts();
            }
            let quiet = event();
            guest.controller.stop(quiet.try_clone().unwrap());
            wait(&quiet);
            pulled.store(true, Ordering::Release);
        });
        assert!(guest.controller.is_quiet());
        drop(guest);
        wait(&ended);
        assert!(machine.subsystem.controllers().is_empty());
        machine.rewind(mark);
    }
}

#[test]
fn a_pulled_controller_is_quiet_when_it_says_so() {
    let machine = Machine::new();
    for _ in 0..200 {
        let guest = machine.controller("c");
        let pulled = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !pulled.load(Ordering::Acquire) {
                    guest.controller.service();
                }
            });
            let quiet = event();
            guest.controller.stop(quiet.try_clone().unwrap());
            wait(&quiet);
            let is_quiet = guest.controller.is_quiet();
            pulled.store(true, Ordering::Release);
            assert!(is_quiet);
        });
    }
}

#[test]
fn attachments_that_change_during_a_reset_are_what_the_guest_finds() {
    let machine = Machine::new();
    let (backend, control) = stubborn_namespace(&machine);
    let [stays, comes, goes] = [(); 3].map(|()| machine.memory_namespace(4096, 512).nsid());
    let guest = machine.enabled("c");
    machine.subsystem.detach(comes, "c").unwrap();
    assert_eq!(active(&guest), [1, stays, goes]);
    let held = InFlight::start(&guest, &control, 1, 3);
    ask_reset(&guest);
    backend.wait_cancels(3);
    machine.subsystem.attach(comes, "c").unwrap();
    machine.subsystem.detach(goes, "c").unwrap();
    let (closed, namespace) = remove(&machine, 1);
    drop((namespace, backend));
    assert!(closed.read().is_err());
    assert_eq!(control.release_all(), 3);
    wait(&closed);
    guest.wait_csts("the reset", 1, 0);
    guest.enable();
    guest.admin_ok(set_feature(0x0b, 1 << 8));
    let request = guest.submit_admin(event_request());
    assert_eq!(active(&guest), [stays, comes]);
    assert!(
        guest.take_admin(request).is_none(),
        "it learned by enabling"
    );
    let mut pair = guest.create_pair(1, 8);
    let mut status = |nsid| {
        guest
            .io(&mut pair, &nvm(NvmOpcode::FLUSH, 1, nsid))
            .status()
    };
    assert_eq!(status(stays), Status::SUCCESS);
    assert_eq!(status(comes), Status::SUCCESS);
    assert_eq!(status(goes), Status::INTERNAL_PATH_ERROR, "of before");
    assert!(!held.pair.1.has_one());
    // What comes later is told.
    machine.subsystem.attach(goes, "c").unwrap();
    assert_eq!(guest.wait_admin(request).dw0, 0x0004_0002);
    assert_eq!(active(&guest), [stays, comes, goes]);
}

#[test]
fn attachments_and_resets_at_once_end_in_the_right_table() {
    let machine = Machine::new();
    let nsids = [(); 3].map(|()| machine.memory_namespace(4096, 512).nsid());
    let guest = machine.enabled("c");
    for round in 0..40usize {
        let mark = machine.mark();
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                for step in 0..6 {
                    let nsid = nsids[(round + step) % 3];
                    let _ = machine.subsystem.detach(nsid, "c");
                    if (round + step) % 2 == 0 {
                        let _ = machine.subsystem.attach(nsid, "c");
                    }
                }
            });
            start.wait();
            for _ in 0..3 {
                guest.disable();
                guest.enable();
            }
        });
        // Those that changed since the guest began may wait for its second look.
        active(&guest);
        let attached = |nsid: &u32| !machine.subsystem.attached_to(*nsid).is_empty();
        let expected: Vec<u32> = nsids.into_iter().filter(attached).collect();
        assert_eq!(active(&guest), expected);
        for nsid in nsids {
            let _ = machine.subsystem.attach(nsid, "c");
        }
        guest.disable();
        machine.rewind(mark);
        guest.enable();
        assert_eq!(active(&guest), nsids);
    }
}

#[test]
fn a_namespace_deleted_while_two_controllers_reset_closes_behind_both() {
    let machine = Machine::with(true, 1);
    let (backend, control) = stubborn_namespace(&machine);
    let guests = [machine.enabled("a"), machine.enabled("b")];
    let held = guests
        .each_ref()
        .map(|guest| InFlight::start(guest, &control, 1, 4));
    guests.iter().for_each(ask_reset);
    backend.wait_cancels(8);
    let (closed, namespace) = remove(&machine, 1);
    drop((namespace, backend));
    // The first controller's commands come first.
    for _ in 0..4 {
        assert!(control.release_one());
    }
    guests[0].wait_csts("the reset of the first", 1, 0);
    assert_eq!(guests[1].csts() & 1, 1);
    assert!(closed.read().is_err(), "the second is not done");
    assert_eq!(control.release_all(), 4);
    guests[1].wait_csts("the reset of the second", 1, 0);
    wait(&closed);
    let control = machine.test_namespace();
    for (guest, held) in guests.iter().zip(&held) {
        assert!(!held.pair.1.has_one());
        works_again(guest, &control);
    }
}

#[test]
fn a_flush_of_all_namespaces_ends_when_one_of_them_was_deleted() {
    let machine = Machine::new();
    let controls = [machine.test_namespace(), machine.test_namespace()];
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    for control in &controls {
        control.set_mode(Mode::Hold);
    }
    guest.submit(&mut pair.0, &nvm(NvmOpcode::FLUSH, 7, BROADCAST));
    for control in &controls {
        control.wait_held(1).unwrap();
    }
    let (closed, namespace) = remove(&machine, 1);
    // It is two requests, and is not stopped half way.
    guest.controller.abort_namespace(&namespace);
    drop(namespace);
    controls[1].set_mode(Mode::Inline);
    let other = guest.io(&mut pair, &nvm(NvmOpcode::FLUSH, 8, BROADCAST));
    assert_eq!((other.cid, other.status()), (8, Status::SUCCESS));
    assert_eq!(
        controls[0].held().len(),
        1,
        "deleted before the second flush"
    );
    assert!(controls[1].release_one());
    assert!(closed.read().is_err() && !pair.1.has_one());
    assert!(controls[0].release_one());
    let ended = guest.wait_cqe(&mut pair.1);
    assert_eq!((ended.cid, ended.status()), (7, Status::SUCCESS));
    wait(&closed);
}

#[test]
fn namespaces_deleted_at_once_close_each_with_its_own_last_command() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    for round in 0..30 {
        let controls = [machine.test_namespace(), machine.test_namespace()];
        active(&guest);
        for (nsid, control) in (1..).zip(&controls) {
            hold_flush(&guest, &mut pair, control, nsid);
        }
        let start = Barrier::new(2);
        let closed = std::thread::scope(|scope| {
            let threads = [1, 2].map(|nsid| {
                let (start, machine) = (&start, &machine);
                scope.spawn(move || {
                    start.wait();
                    let (closed, namespace) = remove(machine, nsid);
                    drop(namespace);
                    closed
                })
            });
            threads.map(|thread| thread.join().unwrap())
        });
        let first = round % 2;
        for index in [first, 1 - first] {
            assert!(closed[index].read().is_err(), "its command is in flight");
            assert!(controls[index].release_one());
            let ended = guest.wait_cqe(&mut pair.1);
            assert_eq!(usize::from(ended.cid), index + 1);
            wait(&closed[index]);
        }
        assert_eq!(active(&guest), [0u32; 0]);
    }
}

#[test]
fn a_namespace_closes_whatever_hangs_on_another_one() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 8);
    hold_flush(&guest, &mut pair, &control, 1);
    for _ in 0..3 {
        assert_eq!(machine.memory_namespace(4096, 512).nsid(), 2);
        active(&guest);
        hold_flush(&guest, &mut pair, &control, 1);
        let (closed, namespace) = remove(&machine, 2);
        drop(namespace);
        wait(&closed);
        active(&guest);
    }
    assert_eq!(guest.controller.info().in_flight, 4);
    assert_eq!(control.release_all(), 4);
    for _ in 0..4 {
        assert_eq!(guest.wait_cqe(&mut pair.1).status(), Status::SUCCESS);
    }
}

/// Submits a queue full of flushes of NSIDs 1 and 2, and takes their completions.
fn flush_both(guest: &Guest, (sq, cq): &mut (Sq, Cq)) -> u32 {
    for cid in 0..32 {
        guest.push(sq, &nvm(NvmOpcode::FLUSH, cid, u32::from(cid % 2) + 1));
    }
    guest.ring_sq(sq);
    let mut gone = 0;
    for _ in 0..32 {
        let cqe = guest.wait_cqe(cq);
        let expected = match (cqe.cid % 2, cqe.status()) {
            (_, Status::SUCCESS) => true,
            (0, Status::INTERNAL_PATH_ERROR | Status::INVALID_FIELD) => {
                gone += 1;
                true
            }
            _ => false,
        };
        assert!(expected, "{cqe:?}");
    }
    gone
}

#[test]
fn namespaces_come_and_go_under_continuous_io() {
    let machine = Machine::new();
    machine.memory_namespace(4096, 512);
    machine.memory_namespace(4096, 512);
    let guest = Arc::new(machine.enabled("c"));
    let done = Arc::new(AtomicBool::new(false));
    let threads = [1, 2].map(|id| {
        let (guest, done) = (Arc::clone(&guest), Arc::clone(&done));
        let mut pair = guest.create_pair(id, 64);
        std::thread::spawn(move || {
            let (mut rounds, mut gone) = (0u32, 0);
            while !done.load(Ordering::Acquire) || rounds < 20 {
                gone += flush_both(&guest, &mut pair);
                rounds += 1;
            }
            gone
        })
    });
    for _ in 0..100 {
        let (closed, namespace) = remove(&machine, 1);
        drop(namespace);
        wait(&closed);
        assert_eq!(machine.memory_namespace(4096, 512).nsid(), 1);
    }
    done.store(true, Ordering::Release);
    let gone: u32 = threads.map(|thread| thread.join().unwrap()).iter().sum();
    assert!(gone > 0, "no command met the gap");
    active(&guest);
    assert_eq!(active(&guest), [1, 2]);
    wait_until("the last command to be counted", || {
        guest.controller.info().in_flight == 0
    });
}
