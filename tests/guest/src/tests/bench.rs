//! A polled load for speed comparisons.
//!
//! Words of the command line: `rw=randread|randwrite|read|write` (randread), `bs=` bytes (4K),
//! `qd=` commands out (1), or several numbers with commas, one load after the other, `count=` commands
//! (100,000) or `seconds=` or `ms=`, `shadow=on|off` (on), `warmup=` commands before the clock starts
//! (1,000), `hold` to wait for a byte on the console before each START and behind each END.

use super::Machine;
use crate::check::{Outcome, ensure, fail};
use crate::memory::{self, Dma};
use crate::nvme::{Buffer, Command, Controller, Namespace, Pair, io};
use crate::random::Random;
use crate::serial::{self, println};
use crate::time::{self, Deadline};

const MAX_DEPTH: usize = 256;

struct Load {
    opcode: u8,
    random: bool,
    blocks: u32,
    namespace: Namespace,
    /// The command of each slot, with its buffer attached.
    slots: [Command; MAX_DEPTH],
    /// The slots that are free: the first `frees` of these.
    free: [u16; MAX_DEPTH],
    frees: usize,
    /// The slot of each command identifier, 2 bytes each.
    slot_of: Dma,
    source: Random,
    next: u64,
}

pub fn run(machine: &Machine) -> Outcome {
    let line = machine.line;
    let mut controller = machine.controller()?;
    let namespace = controller.namespace()?;
    let shadow = line.get("shadow") != Some("off");
    controller.request_queues(1)?;
    let entries = controller.max_entries().min(1024);
    let mut pairs = [controller.create_pair(1, entries)?];
    if shadow {
        let able = controller.has_shadow_doorbells()?;
        ensure!(able, "no shadow doorbells; try shadow=off");
        controller.use_shadow_doorbells(&mut pairs)?;
    }
    let [mut pair] = pairs;
    for depth in line.get("qd").unwrap_or("1").split(',') {
        let Ok(depth) = depth.parse() else {
            fail!("qd={depth} is no number");
        };
        let mark = memory::mark();
        measure(machine, &controller, &mut pair, namespace, depth)?;
        memory::release(mark);
    }
    Ok(())
}

/// One load, between its lines START and END.
fn measure(
    machine: &Machine,
    controller: &Controller,
    pair: &mut Pair,
    namespace: Namespace,
    depth: usize,
) -> Outcome {
    let line = machine.line;
    let size = line.number("bs").unwrap_or(4096);
    let mode = line.get("rw").unwrap_or("randread");
    let shadow = pair.sq.doorbell.shadow.is_some();
    let mut load = Load::new(mode, size, depth, namespace)?;
    let warmup = line.number("warmup").unwrap_or(1_000);
    load.run(controller, pair, warmup, None)?;

    hold(machine);
    println!("START bench rw={mode} bs={size} qd={depth} shadow={shadow}");
    let limit = line
        .number("ms")
        .or(line.number("seconds").map(|it| it * 1000))
        .map(Deadline::after_ms);
    let all = if limit.is_some() { u64::MAX } else { 100_000 };
    let count = line.number("count").unwrap_or(all);
    let (start, bells) = (time::now(), pair.doorbell_writes());
    let done = load.run(controller, pair, count, limit)?;
    let elapsed = time::to_ns(time::now() - start).max(1);
    println!(
        "END bench commands={done} us={} iops={} doorbells={}",
        elapsed / 1000,
        u128::from(done) * 1_000_000_000 / u128::from(elapsed),
        pair.doorbell_writes() - bells
    );
    hold(machine);
    Ok(())
}

/// With `hold` on the command line, waits for a byte on the console: the host reads counters then.
fn hold(machine: &Machine) {
    if machine.line.has("hold") {
        println!("HOLD");
        serial::read();
    }
}

impl Load {
    fn new(mode: &str, size: u64, depth: usize, namespace: Namespace) -> Outcome<Self> {
        let block = namespace.block;
        let (opcode, random) = match mode {
            "randread" => (io::READ, true),
            "randwrite" => (io::WRITE, true),
            "read" => (io::READ, false),
            "write" => (io::WRITE, false),
            _ => fail!("rw={mode} is none of randread, randwrite, read, write"),
        };
        ensure!(
            (1..=MAX_DEPTH).contains(&depth),
            "qd={depth} is not in 1..={MAX_DEPTH}"
        );
        ensure!(
            size.is_multiple_of(block) && (block..=namespace.max_transfer).contains(&size),
            "bs={size} is no multiple of {block} up to {}",
            namespace.max_transfer
        );
        let blocks = (size / block) as u32;
        let mut slots = [Command::new(0); MAX_DEPTH];
        for slot in &mut slots[..depth] {
            let buffer = Buffer::new(size);
            buffer.write_pattern(memory::mark(), 0);
            *slot = buffer.attach(Command::blocks(opcode, namespace.id, 0, blocks));
        }
        Ok(Self {
            opcode,
            random,
            blocks,
            namespace,
            slots,
            free: core::array::from_fn(|index| index as u16),
            frees: depth,
            slot_of: memory::allocate(2 << 16),
            source: Random::new(9),
            next: 0,
        })
    }

    fn command(&mut self, slot: u16) -> Command {
        let places = self.namespace.blocks / u64::from(self.blocks);
        let place = if self.random {
            self.source.below(places)
        } else {
            self.next = (self.next + 1) % places;
            self.next
        };
        self.slots[usize::from(slot)].quad(10, place * u64::from(self.blocks))
    }

    /// Keeps all slots busy until `count` commands were sent or `limit` passed; how many were done.
    fn run(
        &mut self,
        controller: &Controller,
        pair: &mut Pair,
        count: u64,
        limit: Option<Deadline>,
    ) -> Outcome<u64> {
        let (mut sent, mut done) = (0, 0);
        while sent < count && !limit.is_some_and(Deadline::passed) {
            sent += self.send(pair, count - sent);
            done += self.reap(controller, pair)?;
        }
        while done < sent {
            done += self.reap(controller, pair)?;
        }
        Ok(done)
    }

    /// Sends at most `most` commands, as many as there are free slots, with one ring.
    fn send(&mut self, pair: &mut Pair, most: u64) -> u64 {
        let mut sent = 0;
        while self.frees != 0 && sent < most {
            let slot = self.free[self.frees - 1];
            let command = self.command(slot);
            let Some(id) = pair.sq.push(command) else {
                break;
            };
            self.slot_of.write16(u64::from(id) * 2, slot);
            self.frees -= 1;
            sent += 1;
        }
        pair.sq.ring();
        sent
    }

    /// Waits for completions and takes all there are, with one ring.
    fn reap(&mut self, controller: &Controller, pair: &mut Pair) -> Outcome<u64> {
        let mut reaped = 0;
        let deadline = Controller::command_deadline();
        while reaped == 0 {
            while let Some(completion) = pair.cq.take() {
                pair.sq.note(&completion);
                let (opcode, status) = (self.opcode, completion.status);
                ensure!(
                    completion.success(),
                    "opcode {opcode:#x}: status {status:#x}"
                );
                self.free[self.frees] = self.slot_of.read16(u64::from(completion.id) * 2);
                self.frees += 1;
                reaped += 1;
            }
            if reaped == 0 && deadline.passed() {
                return Err(controller.timeout("a command of the load"));
            }
            core::hint::spin_loop();
        }
        pair.cq.ring();
        Ok(reaped)
    }
}
