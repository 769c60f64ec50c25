//! Queues that a thread gives up, with the worker in the test's own thread and no time for a move.

use std::sync::Arc;

use super::Message;
use super::steady::Driver;
use super::worker::Turn;
use crate::nvme::core::Event;
use crate::nvme::queue::CompletionQueue;
use crate::nvme::tests::held::Stubborn;
use crate::storage::testing::{Mode, TestBackend};

/// What the owner of the admin queue is told, in short.
fn told(driver: &Driver) -> Vec<String> {
    let events = driver.core.take_events().into_iter();
    let short = |event| match event {
        Event::CqGivenUp { group } => format!("{} given up", group.cq.id()),
        Event::CqKept { cqid } => format!("{cqid} kept"),
        Event::Quiesced { .. } => "quiesced".to_owned(),
        other => panic!("{other:?}"),
    };
    events.map(short).collect()
}

fn give_up(driver: &Driver) {
    let core = Arc::clone(&driver.core);
    driver.shared.send(Message::GiveUp { core, cqid: 1 });
}

#[test]
fn a_queue_is_kept_when_its_time_is_up() {
    let (backend, control) = TestBackend::new(16 << 20, 4096);
    let mut driver = Driver::with(backend);
    control.set_mode(Mode::Hold);
    driver.submit(1);
    driver.worker.turn();
    control.wait_held(1).unwrap();
    give_up(&driver);
    driver.submit(1);
    assert_eq!(driver.worker.turn(), Turn::Worked);
    assert_eq!(told(&driver), ["1 kept"]);
    control.wait_held(2).unwrap();
}

#[test]
fn a_move_does_not_bring_a_queue_back_from_a_reset() {
    let (backend, control) = Stubborn::new(16 << 20, 4096);
    let mut driver = Driver::with(backend);
    control.set_mode(Mode::Hold);
    driver.submit(1);
    driver.worker.turn();
    control.wait_held(1).unwrap();
    give_up(&driver);
    let core = Arc::clone(&driver.core);
    driver.shared.send(Message::Reset { core });
    driver.submit(3);
    assert_eq!(driver.worker.turn(), Turn::Idle);
    assert_eq!(driver.worker.turn(), Turn::Idle);
    assert_eq!(told(&driver), [""; 0]);
    assert!(control.release_one());
    driver.worker.turn();
    assert_eq!(told(&driver), ["quiesced"]);
    assert!(driver.take().is_none(), "a completion behind the reset");
}

#[test]
fn a_move_that_is_over_concerns_no_later_queue() {
    let (backend, _control) = TestBackend::new(16 << 20, 4096);
    let mut driver = Driver::with(backend);
    driver.worker.turn();
    give_up(&driver);
    // It takes the place of the one that goes.
    driver.shared.send(Message::AddCq {
        core: Arc::clone(&driver.core),
        queue: CompletionQueue::new(&driver.ram, 2, 0x6_0000, 8, Some(2)).unwrap(),
        stats: Arc::default(),
    });
    driver.worker.turn();
    driver.worker.turn();
    assert_eq!(told(&driver), ["1 given up"]);
}
