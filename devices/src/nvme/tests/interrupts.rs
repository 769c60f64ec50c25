//! Interrupts: one a batch, masks and pending bits, queues without; and the bus master bit.

use std::sync::{Arc, Condvar, Mutex};

use super::fakes::wait_until;
use super::harness::*;
use crate::nvme::spec::{AdminOpcode, Status};
use crate::storage::testing::Mode;
use crate::storage::{Backend, Cancel, Engine, Request, Submitted, Token};
use crate::subsystem::NamespaceConfig;

/// A backend that keeps its I/O thread in `submit` until the gate opens.
#[derive(Default)]
struct Gate {
    // Threads inside, and whether they may go.
    state: Mutex<(usize, bool)>,
    changed: Condvar,
}

impl Gate {
    fn wait_inside(&self) {
        wait_until("the I/O thread to be at the gate", || {
            self.state.lock().unwrap().0 > 0
        });
    }

    fn open(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

impl Backend for Gate {
    fn size(&self) -> u64 {
        4096
    }

    fn read_only(&self) -> bool {
        false
    }

    fn block_size(&self) -> u32 {
        512
    }

    fn describe(&self) -> String {
        "gate".into()
    }

    fn submit(&self, _engine: &mut Engine, _request: &Request<'_>) -> Submitted {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        let (_state, wait) = self
            .changed
            .wait_timeout_while(state, LIMIT, |state| !state.1)
            .unwrap();
        assert!(!wait.timed_out(), "nobody opened the gate");
        Submitted::Done(Ok(()))
    }

    fn cancel(&self, _engine: &mut Engine, _token: Token) -> Cancel {
        Cancel::Cancelled
    }
}

#[test]
fn a_batch_of_completions_is_one_interrupt() {
    let machine = Machine::with(true, 1);
    let control = machine.test_namespace();
    let gate = Arc::<Gate>::default();
    let config = NamespaceConfig {
        shared: true,
        ..NamespaceConfig::default()
    };
    machine
        .subsystem
        .add_namespace(config, Arc::clone(&gate) as _)
        .unwrap();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 64);
    let mut other = guest.create_pair(2, 4);
    control.set_mode(Mode::Hold);
    for cid in 0..32 {
        guest.submit(&mut pair.0, &flush(cid));
    }
    control.wait_held(32).unwrap();
    // The thread is kept from looking until all have ended.
    guest.submit(
        &mut other.0,
        &nvm(crate::nvme::spec::NvmOpcode::FLUSH, 0, 2),
    );
    gate.wait_inside();
    assert_eq!(control.release_all(), 32);
    gate.open();
    for cid in 0..32 {
        assert_eq!(pair.1.wait().cid, cid);
    }
    guest.msi.wait_count(1, 1);
    other.1.wait();
    guest.msi.wait_count(2, 1);
    assert_eq!((guest.msi.count(1), guest.msi.count(2)), (1, 1));
}

#[test]
fn what_a_backend_in_the_thread_does_at_once_is_one_interrupt() {
    let machine = Machine::new();
    machine.memory_namespace(4096, 512);
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 64);
    for round in 1..=20 {
        for cid in 0..40 {
            guest.push(&mut pair.0, &flush(cid));
        }
        guest.ring_sq(&pair.0);
        for cid in 0..40 {
            assert_eq!(pair.1.wait().cid, cid);
        }
        guest.ring_cq(&pair.1);
        guest.msi.wait_count(1, round);
    }
    // Any interrupt too many of the last round was raised when its queue is gone.
    guest.admin_ok(delete_queue(AdminOpcode::DELETE_SQ, 1));
    assert_eq!(guest.msi.count(1), 20);
}

#[test]
fn every_completion_is_followed_by_an_interrupt() {
    let machine = Machine::new();
    machine.memory_namespace(4096, 512);
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(3, 4);
    for cid in 0..200 {
        let before = guest.msi.count(3);
        guest.submit(&mut pair.0, &flush(cid));
        guest.msi.wait_count(3, before + 1);
        // Whoever is interrupted finds the completion.
        assert_eq!(pair.1.take().expect("a completion").cid, cid);
        guest.ring_cq(&pair.1);
    }
    assert_eq!(guest.msi.count(3), 200);
}

#[test]
fn a_queue_without_interrupts_raises_none() {
    let machine = Machine::new();
    machine.memory_namespace(4096, 512);
    let guest = machine.enabled("c");
    let mut cq = Cq::new(&machine, 1, 16);
    guest.admin_ok(create_cq(&cq, None));
    let mut sq = guest.create_sq(1, 16, 1);
    let before = guest.msi.total() - guest.msi.count(0);
    for cid in 0..50 {
        guest.submit(&mut sq, &flush(cid));
        assert_eq!(guest.wait_cqe(&mut cq).cid, cid);
    }
    guest.admin_ok(get_feature(1, 0, 0));
    assert_eq!(guest.msi.total() - guest.msi.count(0), before);
}

#[test]
fn queues_may_share_a_vector() {
    let machine = Machine::new();
    machine.memory_namespace(4096, 512);
    let guest = machine.enabled("c");
    let mut cqs = [1, 2].map(|id| Cq::new(&machine, id, 4));
    for cq in &mut cqs {
        guest.admin_ok(create_cq(cq, Some(5)));
        let mut sq = guest.create_sq(cq.id, 4, cq.id);
        let before = guest.msi.count(5);
        guest.submit(&mut sq, &flush(0));
        guest.msi.wait_count(5, before + 1);
        assert!(cq.has_one());
    }
}

fn pending(guest: &Guest) -> u64 {
    guest.read64(MSIX_PBA)
}

#[test]
fn a_masked_vector_keeps_one_interrupt_pending() {
    let machine = Machine::new();
    machine.memory_namespace(4096, 512);
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 16);
    guest.mask(1);
    for cid in 0..5 {
        guest.io(&mut pair, &flush(cid));
    }
    wait_until("the pending bit", || pending(&guest) == 1 << 1);
    assert_eq!(guest.msi.count(1), 0);
    guest.unmask(1);
    guest.msi.wait_count(1, 1);
    assert_eq!(pending(&guest), 0);
    // The function mask holds all of them.
    let control = guest.capability(0x11) + 2;
    guest.write_config(control, &0xc000u16.to_le_bytes());
    guest.io(&mut pair, &flush(9));
    wait_until("the pending bit", || pending(&guest) & 2 != 0);
    let before = guest.msi.count(1);
    guest.write_config(control, &0x8000u16.to_le_bytes());
    guest.msi.wait_count(1, before + 1);
}

const MEMORY: u16 = 2;
const MASTER: u16 = 4;

/// Rings until the one I/O thread has surely looked and gone to sleep again.
fn have_looked(guest: &Guest, sq: &Sq) {
    let sleeps = || guest.machine.io_threads.info()[0].sleeps;
    for _ in 0..3 {
        let before = sleeps();
        guest.ring_sq(sq);
        wait_until("the I/O thread to have looked", || sleeps() > before);
    }
}

#[test]
fn nothing_is_fetched_while_bus_master_is_off() {
    let machine = Machine::with(true, 1);
    machine.memory_namespace(4096, 512);
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 16);
    guest.write_config(0x04, &MEMORY.to_le_bytes());
    let paused = guest.main_loop.pause();
    let admin = guest.submit_admin(get_feature(1, 0, 0));
    guest.controller.service();
    assert!(guest.take_admin(admin).is_none());
    drop(paused);
    guest.push(&mut pair.0, &flush(1));
    guest.push(&mut pair.0, &flush(2));
    have_looked(&guest, &pair.0);
    assert!(!pair.1.has_one());
    guest.write_config(0x04, &(MEMORY | MASTER).to_le_bytes());
    guest.wait_admin(admin);
    for cid in 1..3 {
        let cqe = guest.wait_cqe(&mut pair.1);
        assert_eq!((cqe.cid, cqe.status()), (cid, Status::SUCCESS));
    }
}

#[test]
fn nothing_is_fetched_in_d3_and_it_goes_on_in_d0() {
    let machine = Machine::new();
    machine.memory_namespace(4096, 512);
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 16);
    let power = guest.capability(0x01) + 4;
    guest.push(&mut pair.0, &flush(1));
    guest.write_config(power, &3u16.to_le_bytes());
    assert!(!guest.controller.core().bus_master());
    guest.write_config(power, &0u16.to_le_bytes());
    assert!(guest.controller.core().bus_master());
    guest.ring_sq(&pair.0);
    assert_eq!(guest.wait_cqe(&mut pair.1).cid, 1);
    // Back in D0, the bit alone does not count, and in D3 neither.
    guest.write_config(power, &3u16.to_le_bytes());
    guest.write_config(0x04, &MEMORY.to_le_bytes());
    guest.write_config(0x04, &(MEMORY | MASTER).to_le_bytes());
    assert!(!guest.controller.core().bus_master());
}

#[test]
fn interrupts_wait_while_bus_master_is_off() {
    let machine = Machine::with(true, 1);
    let control = machine.test_namespace();
    let guest = machine.enabled("c");
    let mut pair = guest.create_pair(1, 16);
    control.set_mode(Mode::Hold);
    guest.submit(&mut pair.0, &flush(1));
    control.wait_held(1).unwrap();
    guest.write_config(0x04, &MEMORY.to_le_bytes());
    control.release_one();
    wait_until("the completion", || pair.1.has_one());
    have_looked(&guest, &pair.0);
    assert_eq!((guest.msi.count(1), pending(&guest)), (0, 0));
    guest.write_config(0x04, &(MEMORY | MASTER).to_le_bytes());
    guest.msi.wait_count(1, 1);
    assert_eq!(guest.wait_cqe(&mut pair.1).cid, 1);
}
