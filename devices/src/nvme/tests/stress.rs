//! Two controllers on four I/O threads: queues come, go and move, controllers reset, storage answers
//! late or not at all. Every command completes once, or is covered by a deletion or a reset.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::fakes::wait_until;
use super::harness::*;
use crate::nvme::spec::{AdminOpcode, Cqe, Status};
use crate::pci::PciDevice;
use crate::storage::testing::{Mode, TestControl};

const STEPS: usize = 1500;
const THREADS: usize = 4;
const ENTRIES: u32 = 16;

/// Pseudo-random numbers (splitmix64), the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((bits ^ bits >> 31) % limit as u64).unwrap()
    }
}

/// A queue pair and what is in flight on it.
struct Pair {
    sq: Sq,
    cq: Cq,
    in_flight: BTreeSet<u16>,
    next_cid: u16,
}

/// A guest with its queue pairs.
struct Driver {
    guest: Guest,
    pairs: BTreeMap<u16, Pair>,
    shadowed: bool,
    // Moves of queues that are gone.
    moves: u64,
}

impl Driver {
    fn new(machine: &Arc<Machine>, id: &str) -> Self {
        Self {
            guest: machine.enabled(id),
            pairs: BTreeMap::new(),
            shadowed: false,
            moves: 0,
        }
    }

    fn create(&mut self, id: u16) {
        if self.pairs.contains_key(&id) {
            return;
        }
        let (mut sq, mut cq) = self.guest.create_pair(id, ENTRIES);
        (sq.shadowed, cq.shadowed) = (self.shadowed, self.shadowed);
        let pair = Pair {
            sq,
            cq,
            in_flight: BTreeSet::new(),
            next_cid: 0,
        };
        self.pairs.insert(id, pair);
    }

    fn submit(&mut self, id: u16, count: usize) {
        let Some(pair) = self.pairs.get_mut(&id) else {
            return;
        };
        // A queue holds one less than its entries.
        let room = ENTRIES as usize - 1 - pair.in_flight.len();
        for _ in 0..count.min(room) {
            self.guest.push(&mut pair.sq, &flush(pair.next_cid));
            assert!(pair.in_flight.insert(pair.next_cid));
            pair.next_cid += 1;
        }
        self.guest.ring_sq(&pair.sq);
    }

    /// Takes what has completed.
    fn reap(&mut self) {
        for pair in self.pairs.values_mut() {
            while let Some(cqe) = pair.cq.take() {
                pair.ended(&cqe, &[Status::SUCCESS, Status::ABORT_REQUESTED]);
                self.guest.ring_cq(&pair.cq);
            }
        }
    }

    fn abort(&mut self, id: u16) {
        let Some(pair) = self.pairs.get(&id) else {
            return;
        };
        let cid = pair.in_flight.first().copied().unwrap_or(7);
        self.guest.admin_ok(abort(id, cid));
    }

    fn delete(&mut self, id: u16, control: &TestControl) {
        let Some(mut pair) = self.pairs.remove(&id) else {
            return;
        };
        let deletion = self
            .guest
            .submit_admin(delete_queue(AdminOpcode::DELETE_SQ, id));
        let cqe = wait_released(&self.guest, deletion, control);
        assert_eq!(cqe.status(), Status::SUCCESS);
        while let Some(cqe) = pair.cq.take() {
            let ends = [
                Status::SUCCESS,
                Status::ABORT_REQUESTED,
                Status::ABORTED_SQ_DELETION,
            ];
            pair.ended(&cqe, &ends);
        }
        // What was not fetched is not completed, and nothing comes behind the deletion.
        self.moves += self.queue_moves(id);
        self.guest
            .admin_ok(delete_queue(AdminOpcode::DELETE_CQ, id));
        assert!(!pair.cq.has_one());
    }

    fn queue_moves(&self, id: u16) -> u64 {
        let queues = self.guest.controller.info().queues;
        let own = queues.iter().filter(|queue| queue.cqid == id);
        own.map(|queue| queue.moves).sum()
    }

    fn reset(&mut self, by_function: bool) {
        if by_function {
            let bar = self.guest.controller.bar_window(0).unwrap().0;
            self.guest.function_level_reset();
            self.guest.wait_csts("the function's reset", 1, 0);
            self.guest.plug(bar, PAIRS + 1);
        } else {
            self.guest.disable();
        }
        // What was in flight has ended by now, or never will.
        for pair in std::mem::take(&mut self.pairs).values_mut() {
            while let Some(cqe) = pair.cq.take() {
                pair.ended(&cqe, &[Status::SUCCESS, Status::ABORT_REQUESTED]);
            }
        }
        self.shadowed = false;
        self.guest.enable();
    }

    fn start_shadow(&mut self) {
        self.guest.start_shadow();
        self.shadowed = true;
        for pair in self.pairs.values_mut() {
            (pair.sq.shadowed, pair.cq.shadowed) = (true, true);
            // What was rung before stays rung; what comes is in the new pages.
            self.guest.ring_sq(&pair.sq);
            self.guest.ring_cq(&pair.cq);
        }
    }

    /// Every command has ended.
    fn drain(&mut self, control: &TestControl) {
        wait_until("the last commands", || {
            control.release_all();
            self.reap();
            self.pairs.values().all(|pair| pair.in_flight.is_empty())
        });
    }
}

impl Pair {
    #[track_caller]
    fn ended(&mut self, cqe: &Cqe, allowed: &[Status]) {
        assert_eq!(cqe.sqid, self.sq.id);
        assert!(self.in_flight.remove(&cqe.cid), "not in flight: {cqe:?}");
        assert!(allowed.contains(&cqe.status()), "{cqe:?}");
    }
}

/// Waits for an admin command that may wait for what the storage holds.
fn wait_released(guest: &Guest, cid: u16, control: &TestControl) -> Cqe {
    let mut found = None;
    wait_until("an admin command", || {
        control.release_all();
        found = guest.take_admin(cid);
        found.is_some()
    });
    found.unwrap()
}

fn step(random: &mut Random, drivers: &mut [Driver; 2], control: &TestControl) {
    let driver = &mut drivers[random.below(2)];
    let id = u16::try_from(random.below(6) + 1).unwrap();
    match random.below(40) {
        0..8 => driver.create(id),
        8..13 => driver.delete(id, control),
        13..27 => driver.submit(id, random.below(8)),
        27..32 => driver.reap(),
        32 => driver.abort(id),
        33 => control.set_mode(Mode::Inline),
        34 => control.set_mode(Mode::Hold),
        35 => control.set_mode(Mode::Delay(Duration::from_micros(300))),
        36 => {
            control.release_all();
        }
        37 => driver.start_shadow(),
        38 => driver.reset(false),
        _ => driver.reset(true),
    }
}

fn loads(machine: &Machine) -> (u32, u32) {
    let info = machine.io_threads.info();
    let cqs = info.iter().map(|thread| thread.completion_queues).sum();
    (
        cqs,
        info.iter().map(|thread| thread.submission_queues).sum(),
    )
}

#[test]
fn commands_end_once_while_queues_come_go_and_move() {
    for seed in 0..4 {
        let mut random = Random(seed);
        // Short, so that held commands keep queues now and then.
        let machine = Machine::with_move_limit(THREADS, Duration::from_micros(500));
        let control = machine.test_namespace();
        let mut drivers = ["a", "b"].map(|id| Driver::new(&machine, id));
        for _ in 0..STEPS {
            step(&mut random, &mut drivers, &control);
            let pairs: usize = drivers.iter().map(|driver| driver.pairs.len()).sum();
            let pairs = u32::try_from(pairs).unwrap();
            assert_eq!(loads(&machine), (pairs, pairs), "seed {seed}");
        }
        control.set_mode(Mode::Inline);
        drivers.iter_mut().for_each(|driver| driver.drain(&control));
        let moves: u64 = machine.io_threads.info().iter().map(|it| it.moves).sum();
        assert!(moves > 0, "nothing moved with seed {seed}");
        drop(drivers);
        assert_eq!(loads(&machine), (0, 0));
    }
}
