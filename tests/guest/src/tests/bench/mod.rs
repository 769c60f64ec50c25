//! A polled load for speed comparisons.
//!
//! Words of the command line: `driver=nvme|virtio-blk` (nvme), `rw=randread|randwrite|randrw|read|
//! write|rw` (randread), `mix=` percent of reads in `randrw` and `rw` (50), `bs=` bytes (4K), `pairs=`
//! queues (1), `qd=` commands out on each of them (1), or several numbers with commas, one load after
//! the other, `count=` commands (100,000) or `seconds=` or `ms=`, `shadow=on|off` (on, NVMe only),
//! `warmup=` commands before the clock starts (1,000), `fill` to write the whole device before,
//! `hold` to wait for a byte on the console between START and the load, and between it and END.
//!
//! The guest has one processor, which drives all queues in turn.

mod load;
mod nvme;
mod virtio;

use super::Machine;
use crate::check::{Outcome, ensure, fail};
use crate::cmdline::CommandLine;
use crate::memory;
use crate::serial::{self, println};
use crate::time::{self, Deadline};
use load::{Lanes, MAX_DEPTH, MAX_PAIRS, Mode, Queue};

/// Bytes in a command of `fill`, and how many are out on each queue.
const FILL_BYTES: u64 = 64 << 10;
const FILL_DEPTH: usize = 8;

pub fn run(machine: &Machine) -> Outcome {
    match machine.line.get("driver").unwrap_or("nvme") {
        "nvme" => nvme::run(machine),
        "virtio-blk" => virtio::run(machine.line),
        driver => fail!("driver={driver} is neither nvme nor virtio-blk"),
    }
}

/// What a driver brought up.
struct Target<Q> {
    /// The queues that the load spreads over, the first ones of these.
    queues: [Option<Q>; MAX_PAIRS],
    /// Bytes of the unit that the device counts in, and how many there are.
    block: u64,
    blocks: u64,
    /// What START tells of the driver, with a blank before it.
    words: &'static str,
}

/// How many queues the command line asks for.
fn pairs(line: CommandLine) -> Outcome<u16> {
    let pairs = line.number("pairs").unwrap_or(1);
    ensure!(
        (1..=MAX_PAIRS as u64).contains(&pairs),
        "pairs={pairs} is not in 1..={MAX_PAIRS}"
    );
    Ok(pairs as u16)
}

/// All loads that the command line asks for, one after the other.
fn measure_all<Q: Queue>(line: CommandLine, mut target: Target<Q>) -> Outcome {
    if line.has("fill") {
        let mark = memory::mark();
        let mut lanes = Lanes::new(&mut target, Mode::WRITE, FILL_BYTES, FILL_DEPTH)?;
        lanes.run_once_over()?;
        memory::release(mark);
    }
    for depth in line.get("qd").unwrap_or("1").split(',') {
        let Ok(depth) = depth.parse() else {
            fail!("qd={depth} is no number");
        };
        ensure!(
            (1..=MAX_DEPTH).contains(&depth),
            "qd={depth} is not in 1..={MAX_DEPTH}"
        );
        let mark = memory::mark();
        measure(line, &mut target, depth)?;
        memory::release(mark);
    }
    Ok(())
}

/// One load, between its lines START and END.
fn measure<Q: Queue>(line: CommandLine, target: &mut Target<Q>, depth: usize) -> Outcome {
    let size = line.number("bs").unwrap_or(4096);
    ensure!(
        size != 0 && size.is_multiple_of(target.block) && size <= 1 << 20,
        "bs={size} is no multiple of {} up to 1 MiB",
        target.block
    );
    let rw = line.get("rw").unwrap_or("randread");
    let mix = line.number("mix").unwrap_or(50);
    let mode = Mode::new(rw, mix)?;
    let pairs = target.queues.iter().flatten().count();
    let mut lanes = Lanes::new(target, mode, size, depth)?;
    let warmup = line.number("warmup").unwrap_or(1_000);
    lanes.run(warmup, None)?;
    println!(
        "START bench rw={rw} bs={size} qd={depth} pairs={pairs}{}",
        lanes.words()
    );
    hold(line);
    let limit = line
        .number("ms")
        .or(line.number("seconds").map(|it| it * 1000))
        .map(Deadline::after_ms);
    let all = if limit.is_some() { u64::MAX } else { 100_000 };
    let count = line.number("count").unwrap_or(all);
    let (start, bells) = (time::now(), lanes.doorbell_writes());
    let done = lanes.run(count, limit)?;
    let elapsed = time::to_ns(time::now() - start).max(1);
    hold(line);
    println!(
        "END bench commands={} reads={} us={} iops={} doorbells={}",
        done.all,
        done.reads,
        elapsed / 1000,
        u128::from(done.all) * 1_000_000_000 / u128::from(elapsed),
        lanes.doorbell_writes() - bells
    );
    Ok(())
}

/// With `hold` on the command line, waits for a byte on the console: the host reads counters then.
fn hold(line: CommandLine) {
    if line.has("hold") {
        println!("HOLD");
        serial::read();
    }
}
