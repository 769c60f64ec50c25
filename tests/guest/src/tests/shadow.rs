//! Shadow doorbells: no wake-up may get lost, at any depth, in any queue size, after any pause.

use super::Machine;
use super::flow::Flow;
use crate::check::{Outcome, ensure, fail, skip};
use crate::nvme::{Controller, Pair};
use crate::random::Random;
use crate::serial::println;
use crate::time;

/// Commands in each of the long runs.
const COMMANDS: u64 = 10_000;

pub fn run(machine: &Machine) -> Outcome {
    let mut controller = machine.controller()?;
    if !controller.has_shadow_doorbells()? {
        skip!("the controller has no Doorbell Buffer Config");
    }
    controller.request_queues(2)?;
    let namespace = controller.namespace()?;
    let mut pairs = [controller.create_pair(1, 64)?];
    let mut flow = Flow::prepare(&controller, &mut pairs[0], namespace)?;

    // Leave the ring at an odd place, so that the controller must carry its own position over.
    report(&controller, &mut pairs[0], &mut flow, 1_000, 5, "before")?;
    if controller.is_qemu() {
        // QEMU does not publish an event index for queues that are in use already.
        controller.delete_pair(1)?;
        pairs = [controller.create_pair(1, 64)?];
    }
    controller.use_shadow_doorbells(&mut pairs)?;
    for depth in [1, 4, 32] {
        report(
            &controller,
            &mut pairs[0],
            &mut flow,
            COMMANDS,
            depth,
            "shadow",
        )?;
    }
    idle_gaps(&controller, &mut pairs[0], &mut flow)?;
    controller.delete_pair(1)?;
    tiny_queues(&mut controller, &mut flow)?;
    repeated_config(&mut controller, &mut flow)?;

    controller.restart()?;
    controller.request_queues(1)?;
    let mut pair = controller.create_pair(1, 64)?;
    report(&controller, &mut pair, &mut flow, 1_000, 4, "after a reset")
}

fn report(
    controller: &Controller,
    pair: &mut Pair,
    flow: &mut Flow,
    count: u64,
    depth: usize,
    what: &str,
) -> Outcome {
    let (start, before) = (time::now(), pair.doorbell_writes());
    flow.read(controller, pair, count, depth, |_| {})?;
    let writes = pair.doorbell_writes() - before;
    println!(
        "{what}: depth {depth}, {count} commands, {writes} doorbell writes, {} ms",
        time::to_ms(time::now() - start)
    );
    if pair.sq.doorbell.shadow.is_none() {
        ensure!(
            writes >= count / depth as u64,
            "{writes} doorbell writes for {count} commands"
        );
    }
    Ok(())
}

/// Pauses from nothing to longer than any polling, so that the device sleeps at every stage.
fn idle_gaps(controller: &Controller, pair: &mut Pair, flow: &mut Flow) -> Outcome {
    let mut random = Random::new(3);
    for depth in [1, 3] {
        flow.read(controller, pair, 1_000, depth, |_| {
            let longest = [0, 5, 50, 500, 2_000][random.below(5) as usize];
            if longest != 0 {
                time::spin_us(random.below(longest));
            }
        })?;
    }
    Ok(())
}

/// Queues that wrap around all the time.
fn tiny_queues(controller: &mut Controller, flow: &mut Flow) -> Outcome {
    for entries in [2, 3, 4, 5, 8] {
        let mark = crate::memory::mark();
        let mut pair = controller.create_pair(2, entries)?;
        println!("queues of {entries} entries");
        ensure!(
            pair.sq.doorbell.shadow.is_some(),
            "no shadow for a queue made later"
        );
        for depth in [1, entries as usize - 1] {
            flow.read(controller, &mut pair, 500, depth, |_| {})?;
        }
        controller.delete_pair(2)?;
        crate::memory::release(mark);
    }
    Ok(())
}

/// Doorbell Buffer Config again and again, with queues in use.
fn repeated_config(controller: &mut Controller, flow: &mut Flow) -> Outcome {
    let mut pairs = [
        controller.create_pair(1, 16)?,
        controller.create_pair(2, 3)?,
    ];
    for round in 0..10 {
        println!("queues in use: configuration {round}");
        for pair in &mut pairs {
            flow.read(controller, pair, 37, 2, |_| {})?;
        }
        if !controller.is_qemu() {
            controller.use_shadow_doorbells(&mut pairs)?;
        }
    }
    let [mut first, mut second] = pairs;
    flow.read(controller, &mut first, 100, 15, |_| {})?;
    flow.read(controller, &mut second, 100, 2, |_| {})?;
    if controller.shadow_pages().is_none() {
        fail!("the shadow doorbells were forgotten");
    }
    Ok(())
}
