//! MSI-X: delivery, masks, pending bits, shared and absent vectors.

use super::Machine;
use crate::check::{Outcome, ensure, ensure_eq};
use crate::interrupts;
use crate::memory::{self, Dma, PAGE};
use crate::nvme::{Command, Controller, Namespace, Pair, admin, io};
use crate::pci::Msix;
use crate::serial::println;
use crate::time::{self, Deadline};

/// How long nothing must happen, where nothing may.
const QUIET_US: u64 = 20_000;
/// Surely less than the longest aggregation time of 25,500 microseconds, though this clock is slow if
/// the host was busy when it was calibrated.
const SOON_US: u64 = 6_000;
/// Round trips that sleep until the interrupt comes.
const ROUNDS: u64 = 2_000;

struct Rig {
    controller: Controller,
    namespace: Namespace,
    msix: Msix,
    page: Dma,
}

pub fn run(machine: &Machine) -> Outcome {
    let function = machine.function()?;
    // Attached once without enabling it, so that the BARs are mapped and decoded.
    Controller::attach(function, 2)?;
    let msix = function.msix()?;
    println!("{} vectors", msix.vectors);
    ensure!(msix.vectors >= 3, "only {} vectors", msix.vectors);
    table(&msix)?;
    for vector in 0..msix.vectors.min(8) {
        msix.program(vector, interrupts::message(vector));
        msix.mask(vector, false);
    }
    // Before the controller is enabled, as drivers do.
    msix.enable(true, false);
    let mut controller = machine.controller()?;
    let namespace = controller.namespace()?;
    controller.request_queues(3)?;
    let mut rig = Rig {
        controller,
        namespace,
        msix,
        page: memory::allocate(2 * PAGE),
    };
    admin_queue(&mut rig)?;
    masks(&mut rig)?;
    shared_and_polled(&mut rig)?;
    if rig.controller.is_qemu() {
        println!("QEMU coalesces no interrupts");
    } else {
        coalescing(&mut rig)?;
    }
    round_trips(&mut rig)?;
    rig.msix.enable(false, false);
    Ok(())
}

/// What is written to the table can be read back.
fn table(msix: &Msix) -> Outcome {
    for vector in [0, 1, msix.vectors - 1] {
        msix.mask(vector, false);
        ensure!(!msix.masked(vector), "vector {vector} stays masked");
        msix.mask(vector, true);
        ensure!(msix.masked(vector), "vector {vector} stays unmasked");
        ensure!(
            !msix.pending(vector),
            "vector {vector} is pending from the start"
        );
    }
    Ok(())
}

fn arrives(rig: &Rig, index: u16, before: u64, what: &str) -> Outcome {
    if interrupts::wait_above(index, before, Controller::command_deadline()) {
        return Ok(());
    }
    Err(rig.controller.timeout(what))
}

/// Does a read and waits for its completion entry by polling, without giving the slot back.
fn read(rig: &Rig, pair: &mut Pair) -> Outcome {
    let command = Command::blocks(io::READ, rig.namespace.id, 0, 1)
        .prp(rig.page.address(0), rig.page.address(PAGE));
    pair.sq.push(command);
    pair.sq.ring();
    let deadline = Controller::command_deadline();
    loop {
        if let Some(completion) = pair.cq.take() {
            pair.sq.note(&completion);
            ensure!(
                completion.success(),
                "Read: status {:#x}",
                completion.status
            );
            return Ok(());
        }
        if deadline.passed() {
            return Err(rig.controller.timeout("a read"));
        }
    }
}

fn pair(rig: &mut Rig, id: u16, vector: Option<u16>) -> Outcome<Pair> {
    let cq = rig.controller.create_cq(id, 16, vector)?;
    let sq = rig.controller.create_sq(id, 16, id)?;
    Ok(Pair { sq, cq })
}

fn admin_queue(rig: &mut Rig) -> Outcome {
    let before = interrupts::count(0);
    let identify = Command::identify(1, 0, rig.page.address(0));
    rig.controller.admin_ok("Identify", identify)?;
    arrives(rig, 0, before, "the admin queue's interrupt")
}

/// A masked vector sets its pending bit and is delivered once unmasked.
fn masks(rig: &mut Rig) -> Outcome {
    let mut pair = pair(rig, 1, Some(1))?;
    for by_function in [false, true, false] {
        let before = interrupts::count(1);
        read(rig, &mut pair)?;
        arrives(rig, 1, before, "an interrupt")?;
        pair.cq.ring();
        time::spin_us(QUIET_US);
        ensure!(!rig.msix.pending(1), "the vector is pending after delivery");

        let before = interrupts::count(1);
        let mask = |on: bool| {
            if by_function {
                rig.msix.enable(true, on);
            } else {
                rig.msix.mask(1, on);
            }
        };
        mask(true);
        read(rig, &mut pair)?;
        let deadline = Deadline::after_ms(5_000);
        while !rig.msix.pending(1) {
            ensure!(
                !deadline.passed(),
                "no pending bit (function mask: {by_function})"
            );
        }
        time::spin_us(QUIET_US);
        ensure_eq!(
            interrupts::count(1),
            before,
            "interrupts while masked ({by_function})"
        );
        mask(false);
        arrives(rig, 1, before, "the interrupt after unmasking")?;
        ensure!(
            !rig.msix.pending(1),
            "the vector is still pending after unmasking"
        );
        pair.cq.ring();
    }
    moved_message(rig, &mut pair)?;
    rig.controller.delete_pair(1)
}

/// A new message takes effect: the same vector arrives elsewhere.
fn moved_message(rig: &Rig, pair: &mut Pair) -> Outcome {
    const ELSEWHERE: u16 = 20;
    rig.msix.program(1, interrupts::message(ELSEWHERE));
    rig.msix.mask(1, false);
    let (old, new) = (interrupts::count(1), interrupts::count(ELSEWHERE));
    read(rig, pair)?;
    arrives(rig, ELSEWHERE, new, "the moved interrupt")?;
    ensure_eq!(interrupts::count(1), old, "interrupts by the old message");
    pair.cq.ring();
    rig.msix.program(1, interrupts::message(1));
    rig.msix.mask(1, false);
    Ok(())
}

/// Two queues on one vector, and one that raises none.
fn shared_and_polled(rig: &mut Rig) -> Outcome {
    let mut shared = [pair(rig, 1, Some(2))?, pair(rig, 2, Some(2))?];
    for pair in &mut shared {
        let before = interrupts::count(2);
        read(rig, pair)?;
        arrives(rig, 2, before, "the shared interrupt")?;
        pair.cq.ring();
    }
    let mut polled = pair(rig, 3, None)?;
    time::spin_us(QUIET_US);
    let before = [0, 1, 2, 3].map(interrupts::count);
    for _ in 0..10 {
        read(rig, &mut polled)?;
        polled.cq.ring();
    }
    time::spin_us(QUIET_US);
    ensure_eq!(
        [0, 1, 2, 3].map(interrupts::count),
        before,
        "interrupts with a polled queue"
    );
    for id in 1..=3 {
        rig.controller.delete_pair(id)?;
    }
    Ok(())
}

fn set_coalescing(rig: &mut Rig, completions: u32, units: u32) -> Outcome {
    const COALESCING: u32 = 8;
    let set = Command::new(admin::SET_FEATURES)
        .dword(10, COALESCING)
        .dword(11, units << 8 | (completions - 1));
    rig.controller.admin_ok("Interrupt Coalescing", set)?;
    Ok(())
}

/// Interrupts wait for a number of completions or for a time.
fn coalescing(rig: &mut Rig) -> Outcome {
    set_coalescing(rig, FEW as u32, 255)?;
    by_threshold(rig)?;
    set_coalescing(rig, 256, 255)?;
    for _ in 0..10 {
        by_time(rig)?;
    }
    set_coalescing(rig, 1, 0)
}

/// Completions of a round.
const FEW: u64 = 4;

/// Reads [`FEW`] times; how many interrupts came by then, and the microseconds that it took.
fn few_reads(rig: &Rig, pair: &mut Pair) -> Outcome<(u64, u64)> {
    let (before, start) = (interrupts::count(1), time::now());
    for _ in 0..FEW {
        read(rig, pair)?;
        pair.cq.ring();
    }
    let by_then = interrupts::count(1) - before;
    Ok((by_then, time::to_ns(time::now() - start) / 1_000))
}

/// So many completions are one interrupt, wherever the time did not run out.
fn by_threshold(rig: &mut Rig) -> Outcome {
    const ROUNDS: u64 = 50;
    let mut quick = 0;
    for _ in 0..ROUNDS {
        // A queue of its own: none of a round before is owed an interrupt.
        let mut pair = pair(rig, 1, Some(1))?;
        let before = interrupts::count(1);
        let (_, took) = few_reads(rig, &mut pair)?;
        if took < SOON_US {
            arrives(rig, 1, before, "the interrupt of enough completions")?;
            let count = interrupts::count(1) - before;
            ensure_eq!(count, 1, "interrupts of one round");
            quick += 1;
        }
        rig.controller.delete_pair(1)?;
    }
    println!("{FEW} completions an interrupt: {quick} of {ROUNDS} rounds in time");
    if quick == 0 {
        println!("skipped: the host is too busy for a round of less than {SOON_US} us");
    }
    Ok(())
}

/// Fewer completions than the threshold are one interrupt when the time is over.
fn by_time(rig: &mut Rig) -> Outcome {
    let mut pair = pair(rig, 1, Some(1))?;
    let (before, start) = (interrupts::count(1), time::now());
    let (by_then, took) = few_reads(rig, &mut pair)?;
    ensure!(
        by_then == 0 || took >= SOON_US,
        "{by_then} interrupts after {took} us"
    );
    arrives(rig, 1, before, "the interrupt when the time is over")?;
    let waited = time::to_ns(time::now() - start) / 1_000;
    ensure!(waited >= SOON_US, "an interrupt after {waited} us");
    // Deletion tells of what is left.
    rig.controller.delete_pair(1)?;
    let count = interrupts::count(1) - before;
    ensure!(
        count == 1 || took >= SOON_US,
        "{count} interrupts of one batch"
    );
    Ok(())
}

/// Sleeps for every completion: each must bring an interrupt.
fn round_trips(rig: &mut Rig) -> Outcome {
    let mut pair = pair(rig, 1, Some(1))?;
    let command = Command::blocks(io::READ, rig.namespace.id, 0, 1)
        .prp(rig.page.address(0), rig.page.address(PAGE));
    let first = interrupts::count(1);
    for round in 0..ROUNDS {
        let before = interrupts::count(1);
        pair.sq.push(command);
        pair.sq.ring();
        arrives(rig, 1, before, "an interrupt to sleep for")?;
        let completion = pair.poll();
        ensure!(
            completion.is_some(),
            "round {round}: an interrupt without a completion"
        );
    }
    println!(
        "{ROUNDS} round trips, {} interrupts",
        interrupts::count(1) - first
    );
    rig.controller.delete_pair(1)
}
