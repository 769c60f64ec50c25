//! Reads on two queue pairs of one controller while another one, whose queues share the I/O threads,
//! is removed: a queue pair moves to the thread that is left idle.
//!
//! The guest says when it begins to read (`READING`), lets a controller go when it is asked to, as ACPI
//! does, and ends with the controller that it reads from.

use super::Machine;
use super::flow::Flow;
use super::hotplug::{let_go, to_remove};
use crate::check::{Outcome, ensure, ensure_eq};
use crate::nvme::{Controller, Pair};
use crate::pci::{self, Function};
use crate::serial::println;
use crate::time::Deadline;

/// Commands read from one pair before the other has its turn.
const READS: u64 = 64;
const DEPTH: usize = 8;
const ENTRIES: u32 = 16;
/// Longest that the host takes to ask for something.
const QUIET_MS: u64 = 60_000;

fn open(function: Function) -> Outcome<Controller> {
    let mut controller = Controller::start(function)?;
    controller.request_queues(2)?;
    Ok(controller)
}

pub fn run(_machine: &Machine) -> Outcome {
    let mut functions = pci::controllers();
    let (Some(first), Some(second)) = (functions.next(), functions.next()) else {
        crate::check::fail!("less than two controllers");
    };
    let (mut idle, mut busy) = (open(first)?, open(second)?);
    // In turn, so that each controller has its queues on a thread of its own.
    let _unused = idle.create_pair(1, ENTRIES)?;
    let one = busy.create_pair(1, ENTRIES)?;
    let _unused = idle.create_pair(2, ENTRIES)?;
    let mut pairs = [one, busy.create_pair(2, ENTRIES)?];
    let namespace = busy.namespace()?;
    let mut flow = Flow::prepare(&busy, &mut pairs[0], namespace)?;
    busy.use_shadow_doorbells(&mut pairs)?;
    println!("READING");
    let mut reads = read_until_removal(&busy, &mut pairs, &mut flow, first)?;
    idle.disable()?;
    let_go(usize::from(first.slot));
    reads += read_until_removal(&busy, &mut pairs, &mut flow, second)?;
    busy.disable()?;
    let_go(usize::from(second.slot));
    ensure!(reads > 0, "nothing was read");
    println!("{reads} reads");
    Ok(())
}

/// Reads from both pairs until the host wants this function back. How many blocks.
fn read_until_removal(
    controller: &Controller,
    pairs: &mut [Pair; 2],
    flow: &mut Flow,
    wanted: Function,
) -> Outcome<u64> {
    let quiet = Deadline::after_ms(QUIET_MS);
    let mut reads = 0;
    loop {
        for pair in &mut *pairs {
            flow.read(controller, pair, READS, DEPTH, |_| ())?;
            reads += READS;
        }
        if let Some(slot) = to_remove().next() {
            ensure_eq!(slot, usize::from(wanted.slot), "the slot to let go");
            return Ok(reads);
        }
        ensure!(!quiet.passed(), "nothing changed for {QUIET_MS} ms");
    }
}
