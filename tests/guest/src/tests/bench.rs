//! A polled load for speed comparisons.
//!
//! Words of the command line: `rw=randread|randwrite|read|write` (randread), `bs=` bytes (4K),
//! `qd=` commands out (1), `count=` commands (100,000) or `seconds=`, `shadow=on|off` (on),
//! `warmup=` commands before the clock starts (1,000).

use super::Machine;
use crate::check::{Outcome, ensure, fail};
use crate::memory;
use crate::nvme::{Buffer, Command, Controller, Namespace, Pair, io};
use crate::random::Random;
use crate::serial::println;
use crate::time::{self, Deadline};

const MAX_DEPTH: usize = 256;

struct Load {
    opcode: u8,
    random: bool,
    blocks: u32,
    depth: usize,
    namespace: Namespace,
    /// The command of each slot, with its buffer attached.
    slots: [Command; MAX_DEPTH],
    source: Random,
    next: u64,
}

pub fn run(machine: &Machine) -> Outcome {
    let line = machine.line;
    let mut controller = machine.controller()?;
    let namespace = controller.namespace()?;
    let size = line.number("bs").unwrap_or(4096);
    let depth = line.number("qd").unwrap_or(1) as usize;
    let mode = line.get("rw").unwrap_or("randread");
    let shadow = line.get("shadow") != Some("off");
    ensure!(
        (1..=MAX_DEPTH).contains(&depth),
        "qd={depth} is not in 1..={MAX_DEPTH}"
    );
    ensure!(
        size.is_multiple_of(namespace.block)
            && (namespace.block..=namespace.max_transfer).contains(&size),
        "bs={size} is no multiple of {} up to {}",
        namespace.block,
        namespace.max_transfer
    );
    let (opcode, random) = match mode {
        "randread" => (io::READ, true),
        "randwrite" => (io::WRITE, true),
        "read" => (io::READ, false),
        "write" => (io::WRITE, false),
        _ => fail!("rw={mode} is none of randread, randwrite, read, write"),
    };
    controller.request_queues(1)?;
    let entries = controller.max_entries().min(1024);
    let mut pairs = [controller.create_pair(1, entries)?];
    if shadow {
        ensure!(
            controller.has_shadow_doorbells()?,
            "no shadow doorbells; try shadow=off"
        );
        controller.use_shadow_doorbells(&mut pairs)?;
    }
    let [mut pair] = pairs;
    let mut load = Load::new(opcode, random, size, depth, namespace);
    load.run(
        &controller,
        &mut pair,
        line.number("warmup").unwrap_or(1_000),
        None,
    )?;

    println!("START bench rw={mode} bs={size} qd={depth} shadow={shadow}");
    let (start, bells) = (time::now(), pair.doorbell_writes());
    let limit = line
        .number("seconds")
        .map(|it| Deadline::after_ms(it * 1000));
    let count = line
        .number("count")
        .unwrap_or(if limit.is_some() { u64::MAX } else { 100_000 });
    let done = load.run(&controller, &mut pair, count, limit)?;
    let elapsed = time::to_ns(time::now() - start).max(1);
    println!(
        "END bench commands={done} us={} iops={} doorbells={}",
        elapsed / 1000,
        u128::from(done) * 1_000_000_000 / u128::from(elapsed),
        pair.doorbell_writes() - bells
    );
    Ok(())
}

impl Load {
    fn new(opcode: u8, random: bool, size: u64, depth: usize, namespace: Namespace) -> Self {
        let blocks = (size / namespace.block) as u32;
        let mut slots = [Command::new(0); MAX_DEPTH];
        for slot in &mut slots[..depth] {
            let buffer = Buffer::new(size);
            buffer.write_pattern(memory::mark(), 0);
            *slot = buffer.attach(Command::blocks(opcode, namespace.id, 0, blocks));
        }
        Self {
            opcode,
            random,
            blocks,
            depth,
            namespace,
            slots,
            source: Random::new(9),
            next: 0,
        }
    }

    fn command(&mut self, slot: usize) -> Command {
        let places = self.namespace.blocks / u64::from(self.blocks);
        let place = if self.random {
            self.source.below(places)
        } else {
            self.next = (self.next + 1) % places;
            self.next
        };
        self.slots[slot].quad(10, place * u64::from(self.blocks))
    }

    /// Keeps `depth` commands out until `count` were sent or `limit` passed; how many were done.
    fn run(
        &mut self,
        controller: &Controller,
        pair: &mut Pair,
        count: u64,
        limit: Option<Deadline>,
    ) -> Outcome<u64> {
        let mut slot_of = [0u16; 1 << 16 >> 4];
        let mask = slot_of.len() - 1;
        let (mut sent, mut done) = (0, 0);
        let mut free = [0u16; MAX_DEPTH];
        for (index, slot) in free.iter_mut().enumerate() {
            *slot = index as u16;
        }
        let mut frees = self.depth;
        let mut stop = false;
        while done < sent || (!stop && sent < count) {
            let before = sent;
            while frees != 0 && sent < count && !stop {
                let slot = free[frees - 1];
                let command = self.command(usize::from(slot));
                let Some(id) = pair.sq.push(command) else {
                    break;
                };
                slot_of[usize::from(id) & mask] = slot;
                frees -= 1;
                sent += 1;
            }
            if sent != before {
                pair.sq.ring();
            }
            let deadline = Controller::command_deadline();
            let mut reaped = 0;
            while reaped == 0 {
                while let Some(completion) = pair.cq.take() {
                    pair.sq.note(&completion);
                    ensure!(
                        completion.success(),
                        "opcode {:#x}: status {:#x}",
                        self.opcode,
                        completion.status
                    );
                    free[frees] = slot_of[usize::from(completion.id) & mask];
                    frees += 1;
                    reaped += 1;
                }
                if reaped == 0 && deadline.passed() {
                    return Err(controller.timeout("a command of the load"));
                }
                core::hint::spin_loop();
            }
            pair.cq.ring();
            done += reaped;
            stop = limit.is_some_and(Deadline::passed);
        }
        Ok(done)
    }
}
