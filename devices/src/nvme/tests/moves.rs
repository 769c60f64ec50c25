//! Completion queues are spread over the I/O threads, and move when the threads' loads drift apart.

use std::sync::Arc;
use std::time::Duration;

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

use super::fakes::wait_until;
use super::harness::*;
use super::held::{InFlight, remove, stubborn_namespace, wait};
use crate::nvme::spec::{AdminOpcode, NvmOpcode, Status};
use crate::nvme::{ControllerState, IoThreads, IoThreadsConfig};
use crate::ram::GuestRam;
use crate::storage::testing::{Mode, TestBackend, TestControl};
use crate::storage::{Backend, Cancel, Engine, Request, Submitted, Token};
use crate::subsystem::NamespaceConfig;

/// A move that only its test brings to an end.
const NO_LIMIT: Duration = Duration::from_secs(3600);

fn event() -> EventFd {
    EventFd::new(libc::EFD_NONBLOCK).unwrap()
}

/// Queues of each thread: completion and submission queues.
fn loads(machine: &Machine) -> Vec<(u32, u32)> {
    let info = machine.io_threads.info();
    let load =
        |thread: &crate::nvme::IoThreadInfo| (thread.completion_queues, thread.submission_queues);
    info.iter().map(load).collect()
}

/// The thread of each submission queue, ascending.
fn threads(guest: &Guest) -> Vec<usize> {
    let queues = guest.controller.info().queues;
    queues.iter().filter_map(|queue| queue.io_thread).collect()
}

fn moves(guest: &Guest) -> u64 {
    let queues = guest.controller.info().queues;
    queues.iter().map(|queue| queue.moves).sum()
}

fn delete_pair(guest: &Guest, id: u16) {
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, id));
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_CQ, id));
}

#[track_caller]
fn works(guest: &Guest, pair: &mut (Sq, Cq)) {
    for cid in 100..120 {
        let cqe = guest.io(pair, &flush(cid));
        assert_eq!((cqe.cid, cqe.status()), (cid, Status::SUCCESS));
    }
}

/// Two threads: pairs 1 and 3 on the first, pair 2 on the second.
fn three_pairs(guest: &Guest) -> [(Sq, Cq); 3] {
    let pairs = [1, 2, 3].map(|id| guest.create_pair(id, 64));
    assert_eq!(threads(guest), [0, 1, 0]);
    pairs
}

#[test]
fn queues_go_to_the_thread_with_the_fewest_whoever_made_them() {
    let machine = Machine::with(true, 3);
    let (a, b) = (machine.enabled("a"), machine.enabled("b"));
    let _pairs = [
        a.create_pair(1, 8),
        b.create_pair(1, 8),
        a.create_pair(2, 8),
    ];
    assert_eq!((threads(&a), threads(&b)), (vec![0, 2], vec![1]));
    let _feeds_too = a.create_sq(3, 8, 1);
    let _pair = b.create_pair(2, 8);
    let _pair = b.create_pair(3, 8);
    assert_eq!(threads(&b), [1, 1, 2]);
    assert_eq!(loads(&machine), [(1, 2), (2, 2), (2, 2)]);
    // What is refused counts nowhere.
    let again = Cq::new(&machine, 1, 8);
    assert_eq!(
        a.admin(create_cq(&again, None)).status(),
        Status::INVALID_QUEUE_IDENTIFIER
    );
    let nowhere = Sq::new(&machine, 4, 8);
    assert_eq!(
        a.admin(create_sq(&nowhere, 7)).status(),
        Status::INVALID_COMPLETION_QUEUE
    );
    assert_eq!(loads(&machine), [(1, 2), (2, 2), (2, 2)]);
    // A submission queue that is gone counts no more, though its completion queue stays.
    a.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 3));
    assert_eq!(loads(&machine), [(1, 1), (2, 2), (2, 2)]);
}

#[test]
fn queues_that_are_gone_count_no_more_however_they_went() {
    let ways: [fn(Guest); 6] = [
        |guest| {
            guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 4));
            (1..=3).for_each(|id| delete_pair(&guest, id));
            assert_eq!(loads(&guest.machine), [(0, 0); 2]);
        },
        |guest| guest.disable(),
        |guest| {
            guest.function_level_reset();
            guest.wait_csts("the reset", 1, 0);
        },
        // A shutdown.
        |guest| {
            guest.write32(CC, CC_ENABLE | 1 << 14);
            guest.wait_csts("the shutdown", 0xc, 8);
        },
        |guest| {
            let quiet = event();
            guest.controller.stop(quiet.try_clone().unwrap());
            wait(&quiet);
        },
        drop,
    ];
    for way in ways {
        let machine = Machine::new();
        machine.test_namespace();
        let guest = machine.enabled("c");
        let _pairs = three_pairs(&guest);
        let _also = guest.create_sq(4, 8, 2);
        assert_eq!(loads(&machine), [(2, 2), (1, 2)]);
        way(guest);
        assert_eq!(loads(&machine), [(0, 0); 2]);
    }
}

#[test]
fn a_queue_of_a_controller_that_goes_with_commands_in_flight_counts_no_more() {
    let machine = Machine::new();
    let (_backend, control) = stubborn_namespace(&machine);
    let guest = machine.enabled("c");
    let held = InFlight::start(&guest, &control, 1, 3);
    drop(guest);
    assert_eq!(loads(&machine), [(0, 0); 2]);
    control.release_all();
    assert!(!held.pair.1.has_one());
}

/// Deletes pair 2 of three: pair 1 or 3 moves, and all goes on.
fn a_queue_moves(guest: &Guest, mut pairs: [(Sq, Cq); 3]) {
    pairs.iter_mut().for_each(|pair| works(guest, pair));
    let before = guest.machine.io_threads.info()[1].moves;
    delete_pair(guest, 2);
    let [mut first, _, mut last] = pairs;
    wait_until("a queue to move", || threads(guest) == [0, 1]);
    assert_eq!((moves(guest), loads(&guest.machine)), (1, vec![(1, 1); 2]));
    assert_eq!(guest.machine.io_threads.info()[1].moves, before + 1);
    for _ in 0..3 {
        works(guest, &mut first);
        works(guest, &mut last);
    }
    guest.disable();
    assert_eq!(loads(&guest.machine), [(0, 0); 2]);
}

#[test]
fn a_queue_moves_when_another_one_is_deleted() {
    let machine = Machine::new();
    machine.test_namespace();
    let guest = machine.enabled("c");
    let pairs = three_pairs(&guest);
    a_queue_moves(&guest, pairs);
}

#[test]
fn a_queue_that_waits_for_room_is_told_on_its_new_thread_too() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    control.set_mode(Mode::Inline);
    let guest = machine.enabled("c");
    let mut pairs = [1, 2, 3].map(|id| {
        let cq = guest.create_cq(id, 4);
        (guest.create_sq(id, 64, id), cq)
    });
    assert_eq!(threads(&guest), [0, 1, 0]);
    for index in [0, 2] {
        for cid in 0..6 {
            guest.push(&mut pairs[index].0, &flush(cid));
        }
        guest.ring_sq(&pairs[index].0);
    }
    wait_until("both queues to wait for room", || {
        guest.io_events.kept().len() == 1
    });
    delete_pair(&guest, 2);
    wait_until("a queue to move", || moves(&guest) == 1);
    wait_until("both queues to wait for room", || {
        guest.io_events.kept().is_empty()
    });
    for index in [0, 2] {
        for cid in 0..6 {
            assert_eq!(guest.wait_cqe(&mut pairs[index].1).cid, cid);
        }
    }
}

#[test]
fn a_queue_with_shadow_doorbells_moves_with_its_events() {
    let machine = Machine::new();
    machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pairs = three_pairs(&guest);
    guest.start_shadow();
    for (sq, cq) in &mut pairs {
        (sq.shadowed, cq.shadowed) = (true, true);
    }
    let exits = guest
        .doorbell_exits
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(guest.controller.info().ioeventfds, 6);
    let before = machine.io_threads.info()[1].doorbell_wakeups;
    a_queue_moves(&guest, pairs);
    let admin_commands = 2 * 2;
    let exits = guest
        .doorbell_exits
        .load(std::sync::atomic::Ordering::Relaxed)
        - exits;
    assert!(exits <= admin_commands, "{exits} exits");
    assert!(machine.io_threads.info()[1].doorbell_wakeups > before);
}

#[test]
fn a_queue_that_waits_for_room_is_told_of_it_by_its_new_thread_too() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    control.set_mode(Mode::Inline);
    let guest = machine.enabled("c");
    let _pairs = [1, 2].map(|id| guest.create_pair(id, 64));
    let mut cq = guest.create_cq(3, 4);
    let mut sq = guest.create_sq(3, 64, 3);
    assert_eq!(threads(&guest), [0, 1, 0]);
    for cid in 0..6 {
        guest.push(&mut sq, &flush(cid));
    }
    guest.ring_sq(&sq);
    let head = |id: u64| BAR + 0x1004 + id * 8;
    wait_until("the thread to wait for room", || {
        guest.io_events.kept() == [head(1), head(2)]
    });
    delete_pair(&guest, 2);
    wait_until("the queue to move", || threads(&guest) == [0, 1]);
    wait_until("the new thread to wait for room", || {
        guest.io_events.kept() == [head(1)]
    });
    // No exit but those of the heads from here on.
    for cid in 0..6 {
        assert_eq!(guest.wait_cqe(&mut cq).cid, cid);
    }
}

#[test]
fn a_completion_queue_moves_with_all_that_feeds_it() {
    let machine = Machine::new();
    machine.test_namespace();
    let guest = machine.enabled("c");
    let mut queues = [1, 2, 3].map(|id| {
        let pair = guest.create_pair(id, 64);
        (pair, guest.create_sq(id + 3, 64, id))
    });
    assert_eq!(threads(&guest), [0, 1, 0, 0, 1, 0]);
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 5));
    delete_pair(&guest, 2);
    wait_until("a queue to move", || moves(&guest) == 2);
    assert_eq!(loads(&machine), [(1, 2); 2]);
    assert_eq!(threads(&guest), [0, 1, 0, 1]);
    for index in [0, 2, 0, 2] {
        let ((sq, cq), also) = &mut queues[index];
        for _ in 0..20 {
            guest.submit(sq, &flush(5));
            guest.submit(also, &flush(6));
            let mut ended = [0; 2]
                .map(|_| guest.wait_cqe(cq))
                .map(|cqe| (cqe.sqid, cqe.cid));
            ended.sort_unstable();
            assert_eq!(ended, [(sq.id, 5), (also.id, 6)]);
        }
    }
}

#[test]
fn a_controller_that_is_unplugged_makes_room_for_the_others() {
    let machine = Machine::new();
    machine.test_namespace();
    let (a, b) = (machine.enabled("a"), machine.enabled("b"));
    let _of_a = a.create_pair(1, 8);
    let mut first = b.create_pair(1, 8);
    let _of_a = a.create_pair(2, 8);
    let mut second = b.create_pair(2, 8);
    assert_eq!((threads(&a), threads(&b)), (vec![0, 0], vec![1, 1]));
    drop(a);
    wait_until("a queue to move", || moves(&b) == 1);
    let mut now = threads(&b);
    now.sort_unstable();
    assert_eq!(now, [0, 1]);
    works(&b, &mut first);
    works(&b, &mut second);
}

/// Holds one flush on a queue; later ones are done at once.
fn hold_one(guest: &Guest, pair: &mut (Sq, Cq), control: &TestControl) {
    control.set_mode(Mode::Hold);
    guest.submit(&mut pair.0, &flush(1));
    control.wait_held(1).unwrap();
    control.set_mode(Mode::Inline);
}

#[test]
fn a_queue_whose_storage_hangs_stays_and_goes_on() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let [mut first, _, mut last] = three_pairs(&guest);
    hold_one(&guest, &mut last, &control);
    delete_pair(&guest, 2);
    // The last queue is asked for and kept, and then the first one moves instead.
    wait_until("a queue to move", || threads(&guest) == [1, 0]);
    works(&guest, &mut first);
    works(&guest, &mut last);
    assert!(control.release_one());
    assert_eq!(guest.wait_cqe(&mut last.1).cid, 1);
}

#[test]
fn a_queue_that_was_kept_moves_when_the_loads_change_again() {
    let machine = Machine::new();
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let [mut first, _, mut last] = three_pairs(&guest);
    hold_one(&guest, &mut first, &control);
    control.set_mode(Mode::Hold);
    guest.submit(&mut last.0, &flush(1));
    control.wait_held(2).unwrap();
    control.set_mode(Mode::Inline);
    delete_pair(&guest, 2);
    // Both are kept.
    wait_until("the loads to be as they are", || {
        loads(&machine) == [(2, 2), (0, 0)]
    });
    works(&guest, &mut first);
    works(&guest, &mut last);
    assert_eq!(control.release_all(), 2);
    for cq in [&mut first.1, &mut last.1] {
        assert_eq!(guest.wait_cqe(cq).cid, 1);
    }
    let _new = guest.create_pair(4, 8);
    delete_pair(&guest, 4);
    wait_until("a queue to move", || moves(&guest) == 1);
    works(&guest, &mut first);
    works(&guest, &mut last);
}

#[test]
fn a_queue_that_was_kept_leaves_the_move_to_another_controller() {
    // Long enough to see the move begin on a busy host.
    let machine = Machine::with_move_limit(2, Duration::from_secs(1));
    let control = machine.test_namespace();
    let (a, b) = (machine.enabled("a"), machine.enabled("b"));
    let mut of_a = a.create_pair(1, 64);
    let _gone = a.create_pair(2, 64);
    let mut of_b = b.create_pair(1, 64);
    assert_eq!((threads(&a), threads(&b)), (vec![0, 1], vec![0]));
    hold_one(&a, &mut of_a, &control);
    let paused = b.main_loop.pause();
    delete_pair(&a, 2);
    wait_until("a move to begin", || loads(&machine) == [(1, 1); 2]);
    let _ = b.controller.event().read();
    wait(b.controller.event());
    assert_eq!(loads(&machine), [(2, 2), (0, 0)]);
    drop(paused);
    wait_until("the other queue to move", || threads(&b) == [1]);
    assert_eq!(threads(&a), [0]);
    works(&a, &mut of_a);
    works(&b, &mut of_b);
}

/// A machine where pair 3 waits for a command in flight, to move to the second thread.
struct Moving {
    machine: Arc<Machine>,
    guest: Guest,
    control: TestControl,
    first: (Sq, Cq),
    last: (Sq, Cq),
}

impl Moving {
    fn start() -> Self {
        let machine = Machine::with_move_limit(2, NO_LIMIT);
        let control = machine.test_namespace();
        let guest = machine.enabled("c");
        let [first, _, mut last] = three_pairs(&guest);
        hold_one(&guest, &mut last, &control);
        delete_pair(&guest, 2);
        wait_until("a move to begin", || loads(&machine) == [(1, 1); 2]);
        assert_eq!((threads(&guest), moves(&guest)), (vec![0, 0], 0));
        Self {
            machine,
            guest,
            control,
            first,
            last,
        }
    }

    /// Ends the command that pair 3 waits for.
    fn release(&mut self) {
        assert!(self.control.release_one());
        let cqe = self.guest.wait_cqe(&mut self.last.1);
        assert_eq!((cqe.cid, cqe.status()), (1, Status::SUCCESS));
    }

    fn wait_moved(&self) {
        wait_until("the queue to move", || moves(&self.guest) == 1);
    }
}

#[test]
fn what_is_rung_while_a_queue_moves_is_served_then() {
    let mut moving = Moving::start();
    for cid in 2..10 {
        moving.guest.submit(&mut moving.last.0, &flush(cid));
    }
    works(&moving.guest, &mut moving.first);
    assert!(!moving.last.1.has_one());
    moving.release();
    for cid in 2..10 {
        assert_eq!(moving.guest.wait_cqe(&mut moving.last.1).cid, cid);
    }
    moving.wait_moved();
    assert_eq!(threads(&moving.guest), [0, 1]);
}

#[test]
fn submission_queues_come_and_go_while_their_completion_queue_moves() {
    let mut moving = Moving::start();
    let guest = &moving.guest;
    let mut new = guest.create_sq(5, 8, 3);
    let gone = guest.create_sq(6, 8, 3);
    guest.submit(&mut new, &flush(7));
    let deletion = guest.submit_admin(delete_queue(AdminOpcode::DELETE_SQ, gone.id));
    let of_busy = guest.submit_admin(delete_queue(AdminOpcode::DELETE_SQ, 3));
    let again = guest.admin(delete_queue(AdminOpcode::DELETE_SQ, 3));
    assert_eq!(again.status(), Status::INVALID_QUEUE_IDENTIFIER);
    assert!(guest.take_admin(of_busy).is_none());
    moving.release();
    let guest = &moving.guest;
    for cid in [deletion, of_busy] {
        assert_eq!(guest.wait_admin(cid).status(), Status::SUCCESS);
    }
    let cqe = guest.wait_cqe(&mut moving.last.1);
    assert_eq!((cqe.cid, cqe.sqid), (7, 5));
    moving.wait_moved();
    assert_eq!(threads(guest), [0, 1]);
    // The whole queue goes.
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 5));
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_CQ, 3));
    assert_eq!(loads(&moving.machine), [(1, 1), (0, 0)]);
}

#[test]
fn an_empty_completion_queue_can_be_deleted_while_it_moves() {
    let machine = Machine::new();
    let guest = machine.enabled("c");
    for _ in 0..100 {
        let _cqs = [1, 2, 3, 4].map(|id| guest.create_cq(id, 8));
        // One of 1 and 3 moves to the second thread meanwhile, or both stay: whatever comes first.
        for id in [2, 4, 3, 1] {
            guest.admin_ok(delete_queue(AdminOpcode::DELETE_CQ, id));
        }
        assert_eq!(loads(&machine), [(0, 0); 2]);
    }
}

#[test]
fn what_waits_for_a_queue_that_moves_comes_to_it_if_it_stays() {
    // Long enough for a few admin commands, else there is nothing to see.
    let machine = Machine::with_move_limit(2, Duration::from_millis(300));
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let [_first, _, mut last] = three_pairs(&guest);
    hold_one(&guest, &mut last, &control);
    delete_pair(&guest, 2);
    let mut new = guest.create_sq(5, 8, 3);
    let held = guest.submit_admin(abort(3, 1));
    guest.submit(&mut new, &flush(7));
    let mut ended = [0; 2].map(|_| {
        let cqe = guest.wait_cqe(&mut last.1);
        (cqe.sqid, cqe.cid, cqe.status())
    });
    ended.sort_unstable_by_key(|(sqid, ..)| *sqid);
    let expected = [(3, 1, Status::ABORT_REQUESTED), (5, 7, Status::SUCCESS)];
    assert_eq!(ended, expected);
    assert_eq!(guest.wait_admin(held).dw0, 0);
}

/// A backend whose cancels wait for the test.
struct SlowCancel {
    inner: Arc<TestBackend>,
    begun: EventFd,
    go_on: EventFd,
}

impl Backend for SlowCancel {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn block_size(&self) -> u32 {
        self.inner.block_size()
    }

    fn describe(&self) -> String {
        "slow-cancel".into()
    }

    fn submit(&self, engine: &mut Engine, request: &Request<'_>) -> Submitted {
        self.inner.submit(engine, request)
    }

    fn cancel(&self, engine: &mut Engine, token: Token) -> Cancel {
        self.begun.write(1).unwrap();
        wait(&self.go_on);
        self.inner.cancel(engine, token)
    }
}

#[test]
fn a_queue_that_comes_behind_the_reset_moves_nowhere() {
    let machine = Machine::with_move_limit(2, NO_LIMIT);
    let (inner, control) = TestBackend::new(1 << 20, 512);
    let (begun, go_on) = (event(), event());
    let backend = SlowCancel {
        inner,
        begun: begun.try_clone().unwrap(),
        go_on: go_on.try_clone().unwrap(),
    };
    let config = NamespaceConfig {
        shared: true,
        ..NamespaceConfig::default()
    };
    let namespace = machine
        .subsystem
        .add_namespace(config, Arc::new(backend))
        .unwrap();
    let guest = machine.enabled("c");
    let [_first, _, mut last] = three_pairs(&guest);
    hold_one(&guest, &mut last, &control);
    delete_pair(&guest, 2);
    wait_until("a move to begin", || loads(&machine) == [(1, 1); 2]);
    // The thread is about to end the command that the move waits for.
    guest.controller.abort_namespace(&namespace);
    wait(&begun);
    guest.write32(CC, CC_ENABLE & !1);
    wait_until("the reset to begin", || {
        guest.controller.info().state == ControllerState::Resetting
    });
    go_on.write(1).unwrap();
    guest.wait_csts("the reset", 1, 0);
    control.set_mode(Mode::Inline);
    guest.enable();
    let mut pairs = three_pairs(&guest);
    pairs.iter_mut().for_each(|pair| works(&guest, pair));
    let moves = machine.io_threads.info().into_iter();
    assert_eq!(moves.map(|thread| thread.moves).sum::<u64>(), 0);
}

#[test]
fn an_abort_waits_for_the_queue_that_moves() {
    let mut moving = Moving::start();
    let guest = &moving.guest;
    let of_last = guest.submit_admin(abort(3, 1));
    let of_first = guest.admin_ok(abort(1, 1));
    assert_eq!(of_first, 1, "nothing there");
    moving.release();
    assert_eq!(moving.guest.wait_admin(of_last).dw0, 1, "it was done");
    moving.wait_moved();
    works(&moving.guest, &mut moving.last);
}

#[test]
fn shadow_doorbells_can_begin_while_a_queue_moves() {
    let mut moving = Moving::start();
    moving.guest.submit(&mut moving.last.0, &flush(2));
    moving.guest.start_shadow();
    for (sq, cq) in [&mut moving.first, &mut moving.last] {
        (sq.shadowed, cq.shadowed) = (true, true);
    }
    moving.guest.submit(&mut moving.last.0, &flush(3));
    moving.release();
    for cid in [2, 3] {
        assert_eq!(moving.guest.wait_cqe(&mut moving.last.1).cid, cid);
    }
    moving.wait_moved();
    for _ in 0..20 {
        works(&moving.guest, &mut moving.last);
        works(&moving.guest, &mut moving.first);
    }
    assert_eq!(moving.guest.controller.info().ioeventfds, 4);
}

#[test]
fn a_namespace_that_goes_frees_the_queue_that_moves() {
    let mut moving = Moving::start();
    let other = moving.machine.memory_namespace(1 << 20, 512).nsid();
    let (closed, namespace) = remove(&moving.machine, 1);
    moving.guest.controller.abort_namespace(&namespace);
    drop(namespace);
    let cqe = moving.guest.wait_cqe(&mut moving.last.1);
    assert_eq!((cqe.cid, cqe.status()), (1, Status::INTERNAL_PATH_ERROR));
    wait(&closed);
    moving.wait_moved();
    let sqe = nvm(NvmOpcode::FLUSH, 9, other);
    let cqe = moving.guest.io(&mut moving.last, &sqe);
    assert_eq!(cqe.status(), Status::SUCCESS);
}

#[test]
fn resets_take_a_queue_that_waits_to_move() {
    let resets: [fn(&Guest); 2] = [Guest::disable, |guest| {
        guest.function_level_reset();
        guest.wait_csts("the reset", 1, 0);
        guest.plug(BAR, PAIRS + 1);
    }];
    for reset in resets {
        let mut moving = Moving::start();
        moving.guest.submit(&mut moving.last.0, &flush(2));
        let abort = moving.guest.submit_admin(abort(3, 1));
        reset(&moving.guest);
        assert_eq!(loads(&moving.machine), [(0, 0); 2]);
        assert_eq!(moving.control.release_all(), 0, "cancelled");
        assert!(!moving.last.1.has_one());
        moving.guest.enable();
        let mut pairs = three_pairs(&moving.guest);
        for pair in &mut pairs {
            works(&moving.guest, pair);
        }
        assert!(moving.guest.take_admin(abort).is_none());
        assert!(!moving.last.1.has_one());
        a_queue_moves(&moving.guest, pairs);
    }
}

#[test]
fn a_pulled_or_dropped_controller_takes_a_queue_that_waits_to_move() {
    for pulled in [true, false] {
        let moving = Moving::start();
        let ended = event();
        let controller = &moving.guest.controller;
        controller.notify_closed(ended.try_clone().unwrap());
        if pulled {
            let quiet = event();
            controller.stop(quiet.try_clone().unwrap());
            wait(&quiet);
        }
        drop(moving.guest);
        wait(&ended);
        assert_eq!(loads(&moving.machine), [(0, 0); 2]);
        assert_eq!(moving.control.release_all(), 0);
        assert!(!moving.last.1.has_one());
    }
}

/// Brings pair 3 into the hands of the admin queue's owner, has `meanwhile` run, and lets the owner go
/// on.
fn in_between(moving: &mut Moving, meanwhile: impl FnOnce(&Guest, &mut (Sq, Cq))) {
    let guest = &moving.guest;
    let paused = guest.main_loop.pause();
    let _ = guest.controller.event().read();
    assert!(moving.control.release_one());
    // The thread tells the owner of nothing else.
    wait(guest.controller.event());
    let cqe = guest.wait_cqe(&mut moving.last.1);
    assert_eq!((cqe.cid, cqe.status()), (1, Status::SUCCESS));
    meanwhile(guest, &mut moving.last);
    drop(paused);
}

#[test]
fn what_is_rung_between_two_threads_is_served_by_the_second() {
    for shadowed in [false, true] {
        let mut moving = Moving::start();
        if shadowed {
            moving.guest.start_shadow();
            for (sq, cq) in [&mut moving.first, &mut moving.last] {
                (sq.shadowed, cq.shadowed) = (true, true);
            }
        }
        in_between(&mut moving, |guest, last| {
            for cid in 2..6 {
                guest.submit(&mut last.0, &flush(cid));
            }
            assert!(!last.1.has_one());
        });
        for cid in 2..6 {
            assert_eq!(moving.guest.wait_cqe(&mut moving.last.1).cid, cid);
        }
        assert_eq!(
            (threads(&moving.guest), moves(&moving.guest)),
            (vec![0, 1], 1)
        );
    }
}

#[test]
fn a_namespace_that_goes_between_two_threads_closes() {
    let mut moving = Moving::start();
    let machine = Arc::clone(&moving.machine);
    let mut closed = None;
    in_between(&mut moving, |guest, _| {
        let (event, namespace) = remove(&machine, 1);
        guest.controller.abort_namespace(&namespace);
        closed = Some(event);
    });
    wait(&closed.unwrap());
}

#[test]
fn resets_take_a_queue_between_two_threads() {
    let resets: [fn(&Guest); 3] = [
        |guest| guest.write32(CC, CC_ENABLE & !1),
        |guest| {
            guest.function_level_reset();
            guest.plug(BAR, PAIRS + 1);
        },
        |guest| guest.write_config(0x04, &2u16.to_le_bytes()),
    ];
    for reset in resets {
        let mut moving = Moving::start();
        let data = moving.machine.page();
        moving.machine.write(data, &[0xee; 4096]);
        in_between(&mut moving, |guest, last| {
            // Nothing that needs the storage is begun on an old queue.
            reset(guest);
            let read = transfer(NvmOpcode::READ, 2, 0, 1, (data, 0));
            guest.push(&mut last.0, &read);
        });
        if moving.guest.read_config::<1>(0x04)[0] & 4 == 0 {
            // Bus master is off, and nothing else: the queue has moved, and works once it is on.
            moving.wait_moved();
            moving.guest.ring_sq(&moving.last.0);
            moving.guest.write_config(0x04, &6u16.to_le_bytes());
            assert_eq!(moving.guest.wait_cqe(&mut moving.last.1).cid, 2);
            continue;
        }
        moving.guest.wait_csts("the reset", 1, 0);
        assert_eq!(loads(&moving.machine), [(0, 0); 2]);
        moving.guest.enable();
        let pairs = three_pairs(&moving.guest);
        a_queue_moves(&moving.guest, pairs);
        assert!(!moving.last.1.has_one());
        assert_eq!(moving.machine.read(data, 4096), [0xee; 4096]);
    }
}

#[test]
fn a_controller_can_go_at_any_moment_of_a_move() {
    let machine = Machine::new();
    machine.test_namespace();
    for round in 0..100u32 {
        let mark = machine.mark();
        let guest = machine.enabled("c");
        let ended = event();
        guest.controller.notify_closed(ended.try_clone().unwrap());
        let _pairs = three_pairs(&guest);
        guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 2));
        guest.submit_admin(delete_queue(AdminOpcode::DELETE_CQ, 2));
        for _ in 0..round * 2 {
            guest.csts();
        }
        if round % 2 == 0 {
            let quiet = event();
            guest.controller.stop(quiet.try_clone().unwrap());
            wait(&quiet);
        }
        drop(guest);
        wait(&ended);
        assert_eq!(loads(&machine), [(0, 0); 2]);
        machine.rewind(mark);
    }
}

#[test]
fn a_machine_can_end_at_any_moment_of_a_move() {
    for round in 0..20u32 {
        let machine = Machine::new();
        machine.test_namespace();
        let guest = machine.enabled("c");
        let ended = event();
        guest.controller.notify_closed(ended.try_clone().unwrap());
        let [mut first, ..] = three_pairs(&guest);
        guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 2));
        guest.submit_admin(delete_queue(AdminOpcode::DELETE_CQ, 2));
        guest.submit(&mut first.0, &flush(1));
        for _ in 0..round * 5 {
            guest.csts();
        }
        // The last user of the threads ends them.
        drop((guest, machine));
        wait(&ended);
    }
}

#[test]
fn threads_run_on_the_cpus_they_are_given_in_turn() {
    let allowed = crate::affinity::allowed().unwrap();
    let (first, last) = (allowed[0], allowed[allowed.len() - 1]);
    let machine = Machine::new();
    let cpus = |cpus: &[usize]| {
        let threads = machine.io_threads.like_these(3, cpus).unwrap();
        let info = threads.info().into_iter();
        info.map(|thread| thread.cpus).collect::<Vec<_>>()
    };
    assert_eq!(cpus(&[last, first]), [[last], [first], [last]]);
    assert_eq!(cpus(&[]), [&allowed[..]; 3]);
    assert!(machine.io_threads.like_these(1, &[1023]).is_err());
    assert!(machine.io_threads.like_these(1, &[5000]).is_err());
}

#[test]
fn queues_go_to_as_many_threads_as_there_are_cpus_for() {
    let cpus = crate::affinity::allowed().unwrap().len();
    let ram = Machine::new().ram.clone();
    for (vcpus, used) in [
        (0, cpus + 1),
        (1, (cpus - 1).max(cpus / 2).max(1)),
        (cpus, (cpus / 2).max(1)),
    ] {
        let config = IoThreadsConfig {
            vcpus,
            ..IoThreadsConfig::of(cpus + 1)
        };
        let threads = IoThreads::with(&config, &ram).unwrap();
        assert_eq!((threads.count(), threads.used()), (cpus + 1, used));
        // A controller's own threads are beside the same vCPUs; those that are bound are all used.
        let own = threads.like_these(cpus + 2, &[]).unwrap();
        assert_eq!(own.used(), if vcpus == 0 { cpus + 2 } else { used });
        let first = crate::affinity::allowed().unwrap()[0];
        assert_eq!(
            threads.like_these(cpus + 2, &[first]).unwrap().used(),
            cpus + 2
        );
    }
}

#[test]
fn threads_that_cannot_all_start_end() {
    let region = GuestRegionMmap::from_range(GuestAddress(0), 4096, None).unwrap();
    let region = Arc::new(region);
    let left = Arc::downgrade(&region);
    let ram = GuestRam::new(GuestMemoryMmap::from_arc_regions(vec![region]).unwrap());
    let config = IoThreadsConfig {
        cpus: vec![crate::affinity::allowed().unwrap()[0], 1023],
        ..IoThreadsConfig::of(2)
    };
    assert!(IoThreads::with(&config, &ram).is_err());
    drop(ram);
    wait_until("all threads to end", || left.upgrade().is_none());
}
