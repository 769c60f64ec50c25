//! Interrupt coalescing: threshold, time, and that no interrupt is lost to either.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fakes::wait_until;
use super::harness::*;
use crate::nvme::spec::{AdminOpcode, NvmOpcode};
use crate::storage::testing::{Mode, TestControl};

const COALESCING: u8 = 8;
const VECTOR: u8 = 9;
/// The longest aggregation time.
const LONGEST: Duration = Duration::from_micros(25_500);
/// The longest time, and more completions than any test here has.
const NEVER: u32 = 0xffff;

struct Rig {
    control: TestControl,
    guest: Guest,
    pair: (Sq, Cq),
    next: u16,
}

/// One I/O thread that looks for commands so long, and a queue pair on vector 1.
fn rig(poll_us: u16) -> Rig {
    let machine = Machine::with(true, 1);
    let control = machine.test_namespace();
    let config = super::super::ControllerConfig {
        poll_us,
        ..config("c")
    };
    let guest = Guest::new(&machine, &Arc::clone(&machine.subsystem), config).unwrap();
    guest.enable();
    let pair = guest.create_pair(1, 64);
    control.set_mode(Mode::Hold);
    Rig {
        control,
        guest,
        pair,
        next: 0,
    }
}

impl Rig {
    fn set(&self, threshold_and_time: u32) {
        self.guest
            .admin_ok(set_feature(COALESCING, threshold_and_time));
    }

    /// Has one command end in a batch of its own, and sees its completion.
    fn complete(&mut self) {
        self.guest.submit(&mut self.pair.0, &flush(self.next));
        self.control.wait_held(1).unwrap();
        assert!(self.control.release_one());
        assert_eq!(self.guest.wait_cqe(&mut self.pair.1).cid, self.next);
        self.next += 1;
    }

    fn interrupts(&self) -> u64 {
        self.guest.msi.count(1)
    }
}

/// Does `what` to a new controller again and again until once it takes less than the longest
/// aggregation time, so that what was seen is not the time's doing.
fn before_time_is_up<T>(what: impl Fn(&mut Rig) -> T) -> T {
    for _ in 0..200 {
        let mut rig = rig(0);
        let start = Instant::now();
        let result = what(&mut rig);
        if start.elapsed() < LONGEST {
            return result;
        }
    }
    panic!("200 times it took {LONGEST:?} and longer");
}

#[test]
fn interrupts_wait_for_the_threshold() {
    let counts = before_time_is_up(|rig| {
        rig.set(0xff00 | 3);
        [(); 7].map(|()| {
            rig.complete();
            rig.interrupts()
        })
    });
    assert_eq!(counts[..3], [0, 0, 0]);
    // The fourth one's interrupt comes behind its completion.
    assert!(counts[3] <= 1);
    assert_eq!(counts[4..], [1, 1, 1]);
}

#[test]
fn the_oldest_completion_waits_no_longer_than_the_time() {
    for (poll_us, time) in [(0, 1), (0, 20), (1000, 1), (1000, 5)] {
        let mut rig = rig(poll_us);
        rig.set(time << 8 | 0xff);
        for round in 0..50 {
            let before = rig.interrupts();
            let start = Instant::now();
            rig.complete();
            rig.guest.msi.wait_count(1, before + 1);
            let least = Duration::from_micros(100) * time;
            assert!(start.elapsed() >= least, "round {round} of {poll_us} µs");
            assert_eq!(rig.interrupts(), before + 1);
        }
    }
}

/// Posts a completion that waits for its interrupt, and does `what`, which must bring it.
fn brings_it(what: impl Fn(&Rig)) {
    before_time_is_up(|rig| {
        rig.set(NEVER);
        rig.complete();
        what(rig);
        rig.guest.msi.wait_count(1, 1);
    });
}

#[test]
fn other_settings_hold_for_what_waits() {
    brings_it(|rig| rig.set(0));
    brings_it(|rig| rig.set(0xff00));
    brings_it(|rig| rig.set(0x00ff));
    brings_it(|rig| {
        rig.guest.admin_ok(set_feature(VECTOR, 1 << 16 | 1));
    });
}

#[test]
fn commands_that_fail_do_not_wait() {
    brings_it(|rig| {
        let mut sq = rig.guest.create_sq(2, 8, 1);
        let nowhere = nvm(NvmOpcode::FLUSH, 7, 99);
        rig.guest.submit(&mut sq, &nowhere);
    });
}

#[test]
fn a_queue_that_can_hold_no_more_does_not_wait() {
    let early = before_time_is_up(|rig| {
        rig.pair = rig.guest.create_pair(2, 4);
        rig.set(NEVER);
        rig.complete();
        rig.complete();
        let early = rig.guest.msi.count(2);
        rig.complete();
        rig.guest.msi.wait_count(2, 1);
        early
    });
    assert_eq!(early, 0);
}

#[test]
fn the_queue_that_is_due_first_wakes_the_thread() {
    let early = before_time_is_up(|rig| {
        let other = rig.guest.machine.enabled("other");
        let mut pair = other.create_pair(1, 8);
        other.admin_ok(set_feature(COALESCING, 50 << 8 | 0xff));
        rig.set(NEVER);
        rig.complete();
        rig.control.set_mode(Mode::Inline);
        other.io(&mut pair, &flush(1));
        other.msi.wait_count(1, 1);
        rig.interrupts()
    });
    assert_eq!(early, 0);
}

#[test]
fn a_queue_that_is_deleted_tells_before() {
    before_time_is_up(|rig| {
        rig.set(NEVER);
        rig.complete();
        let delete = delete_queue(AdminOpcode::DELETE_SQ, 1);
        rig.guest.admin_ok(delete);
        assert_eq!(rig.interrupts(), 1);
    });
}

#[test]
fn vectors_with_coalescing_disabled_and_the_admin_vector_do_not_wait() {
    before_time_is_up(|rig| {
        rig.set(NEVER);
        rig.guest.admin_ok(set_feature(VECTOR, 1 << 16 | 1));
        rig.complete();
        rig.guest.msi.wait_count(1, 1);
        let before = rig.guest.msi.count(0);
        rig.guest.admin_ok(get_feature(1, 0, 0));
        rig.guest.admin_ok(get_feature(1, 0, 0));
        rig.guest.msi.wait_count(0, before + 1);
    });
}

#[test]
fn a_reset_turns_it_off() {
    before_time_is_up(|rig| {
        rig.set(NEVER);
        rig.guest.admin_ok(set_feature(VECTOR, 1 << 16 | 2));
        rig.guest.disable();
        rig.guest.enable();
        assert_eq!(rig.guest.admin_ok(get_feature(COALESCING, 0, 0)), 0);
        assert_eq!(rig.guest.admin_ok(get_feature(VECTOR, 0, 2)), 2);
        rig.pair = rig.guest.create_pair(1, 64);
        rig.complete();
        rig.guest.msi.wait_count(1, 1);
    });
}

#[test]
fn bus_master_and_masks_hold_it_back_and_do_not_lose_it() {
    const MEMORY: u16 = 2;
    const MASTER: u16 = 4;
    let mut rig = rig(0);
    rig.set(10 << 8 | 0xff);
    rig.guest.mask(1);
    rig.complete();
    wait_until("the pending bit", || rig.guest.read64(MSIX_PBA) == 1 << 1);
    assert_eq!(rig.interrupts(), 0);
    rig.guest.unmask(1);
    rig.guest.msi.wait_count(1, 1);

    rig.guest.submit(&mut rig.pair.0, &flush(99));
    rig.control.wait_held(1).unwrap();
    rig.guest.write_config(0x04, &MEMORY.to_le_bytes());
    rig.control.release_one();
    wait_until("the completion", || rig.pair.1.has_one());
    // It is due long before this is over, and does not keep the thread awake.
    let sleeps = || rig.guest.machine.io_threads.info()[0].sleeps;
    let start = sleeps();
    std::thread::sleep(LONGEST);
    assert!(sleeps() < start + 10, "the thread is kept awake");
    assert_eq!(rig.interrupts(), 1);
    rig.guest
        .write_config(0x04, &(MEMORY | MASTER).to_le_bytes());
    rig.guest.msi.wait_count(1, 2);
}

#[test]
fn queues_that_share_a_vector_are_each_told_in_time() {
    let machine = Machine::new();
    machine.memory_namespace(4096, 512);
    let guest = machine.enabled("c");
    let mut cqs = [1, 2].map(|id| Cq::new(&machine, id, 16));
    let mut sqs = Vec::new();
    for cq in &cqs {
        guest.admin_ok(create_cq(cq, Some(5)));
        sqs.push(guest.create_sq(cq.id, 16, cq.id));
    }
    guest.admin_ok(set_feature(COALESCING, 5 << 8 | 0xff));
    for round in 0..20 {
        let before = guest.msi.count(5);
        for sq in &mut sqs {
            guest.submit(sq, &flush(round));
        }
        // One each: they count for themselves.
        guest.msi.wait_count(5, before + 2);
        for cq in &mut cqs {
            assert_eq!(guest.wait_cqe(cq).cid, round);
        }
    }
}
