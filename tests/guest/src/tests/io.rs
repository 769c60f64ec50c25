//! Data: every PRP shape and size, and the commands without data.

use super::Machine;
use crate::check::{Outcome, Stop, Text, ensure, ensure_eq, skip};
use crate::memory::{self, PAGE};
use crate::nvme::{Buffer, Command, Controller, Namespace, Pair, io, status};
use crate::random::Random;
use crate::serial::println;

/// The part of the namespace that data tests write to, in bytes.
const AREA: u64 = 4 << 20;

struct Rig {
    controller: Controller,
    namespace: Namespace,
    pair: Pair,
}

fn rig(machine: &Machine) -> Outcome<Rig> {
    let mut controller = machine.controller()?;
    let namespace = controller.namespace()?;
    if namespace.blocks * namespace.block < 2 * AREA {
        skip!("the namespace has less than {} bytes", 2 * AREA);
    }
    controller.request_queues(1)?;
    let pair = controller.create_pair(1, 32)?;
    Ok(Rig {
        controller,
        namespace,
        pair,
    })
}

/// Write, read back, compare: all shapes of PRPs at sizes up to the largest transfer.
pub fn run(machine: &Machine) -> Outcome {
    let mut rig = rig(machine)?;
    let block = rig.namespace.block;
    let largest = rig.namespace.max_transfer.min(AREA / 2);
    let (from, to) = (Buffer::new(largest), Buffer::new(largest));
    let (mut from, mut to) = (from, to);
    println!("block {block}, largest transfer {largest:#x}");
    let mut seed = 0;
    let pages = largest / PAGE;
    for len in [1, 2, 3, pages / 2, pages - 1, pages]
        .map(|it| it * PAGE)
        .into_iter()
        .chain([
            block,
            2 * block,
            PAGE - block,
            PAGE + block,
            2 * PAGE - block,
            largest - block,
        ])
        .filter(|len| (block..=largest).contains(len) && len.is_multiple_of(block))
    {
        for offset in [0, 4, 0x204, 0x800, PAGE - block.min(2048), PAGE - 4] {
            // The list at the start of a page, in the middle, and with one or two slots left.
            for list_offset in [0, 0x800, PAGE - 16, PAGE - 8] {
                seed += 1;
                from.shape(offset, len, list_offset);
                // Read back into another shape, so that the same mistake cannot cancel itself out.
                let other = (PAGE - offset) & (PAGE - 4);
                to.shape(other, len, 0);
                let result = round_trip(&mut rig, &from, &to, seed);
                result.map_err(|stop| place(&stop, len, offset, list_offset))?;
                if len + offset <= 2 * PAGE {
                    break;
                }
            }
        }
    }
    random_shapes(&mut rig, &mut from, &mut to, largest)?;
    println!("{seed} shapes and 300 random ones");
    Ok(())
}

fn place(stop: &Stop, len: u64, offset: u64, list: u64) -> Stop {
    match stop {
        Stop::Failed(why) => Stop::Failed(Text::new(format_args!(
            "length {len:#x}, offset {offset:#x}, list at {list:#x}: {why}"
        ))),
        Stop::Skipped(why) => Stop::Skipped(*why),
    }
}

fn random_shapes(rig: &mut Rig, from: &mut Buffer, to: &mut Buffer, largest: u64) -> Outcome {
    let mut random = Random::new(1);
    let block = rig.namespace.block;
    for seed in 0..300 {
        let most = if seed % 8 == 0 {
            largest
        } else {
            largest.min(64 << 10)
        };
        let len = (random.below(most / block) + 1) * block;
        let shape = |random: &mut Random| {
            let offset = random.below(PAGE / 4) * 4;
            (offset, random.below(PAGE / 8) * 8)
        };
        let (offset, list) = shape(&mut random);
        from.shape(offset, len, list);
        let (other, other_list) = shape(&mut random);
        to.shape(other, len, other_list);
        round_trip(rig, from, to, 1000 + seed).map_err(|stop| place(&stop, len, offset, list))?;
    }
    Ok(())
}

fn round_trip(rig: &mut Rig, from: &Buffer, to: &Buffer, seed: u64) -> Outcome {
    let Rig {
        controller,
        namespace,
        pair,
    } = rig;
    let blocks = (from.len / namespace.block) as u32;
    let lba = seed * 13 % (AREA / namespace.block);
    from.clear();
    from.write_pattern(seed, lba);
    let write = Command::blocks(io::WRITE, namespace.id, lba, blocks);
    controller.io_ok("Write", pair, from.attach(write))?;
    from.check_pattern(seed, lba)?;
    to.clear();
    let read = Command::blocks(io::READ, namespace.id, lba, blocks);
    controller.io_ok("Read", pair, to.attach(read))?;
    to.check_pattern(seed, lba)?;
    to.check_surroundings()
}

/// Flush, Write Zeroes, Dataset Management, FUA, and the limits of the address range.
pub fn commands(machine: &Machine) -> Outcome {
    let Rig {
        mut controller,
        namespace,
        mut pair,
    } = rig(machine)?;
    let page = memory::allocate(PAGE);
    controller.admin_ok("Identify", Command::identify(1, 0, page.address(0)))?;
    let supported = page.read16(520);
    let id = namespace.id;
    let len = (16 << 10).min(namespace.max_transfer).max(namespace.block);
    let buffer = Buffer::new(len);
    let blocks = (len / namespace.block) as u32;
    let read = buffer.attach(Command::blocks(io::READ, id, 8, blocks));

    let flush = Command::new(io::FLUSH);
    controller.io_ok("Flush", &mut pair, flush.namespace(id))?;
    let broadcast = controller.io(&mut pair, flush.namespace(u32::MAX))?;
    ensure!(
        broadcast.success() || broadcast.code() == status::INVALID_NAMESPACE,
        "broadcast Flush: status {:#x}",
        broadcast.status
    );

    buffer.write_pattern(7, 0);
    let fua = buffer.attach(Command::blocks(io::WRITE, id, 8, blocks));
    let fua = fua.dword(12, fua.dwords[12] | 1 << 30);
    controller.io_ok("Write with FUA", &mut pair, fua)?;
    buffer.clear();
    controller.io_ok("Read", &mut pair, read)?;
    buffer.check_pattern(7, 0)?;

    if supported & 1 << 3 != 0 {
        let command = Command::blocks(io::WRITE_ZEROES, id, 8, blocks);
        controller.io_ok("Write Zeroes", &mut pair, command)?;
        buffer.clear();
        controller.io_ok("Read", &mut pair, read)?;
        buffer.check_bytes(0)?;
    }
    if supported & 1 << 2 != 0 {
        controller.io_ok("Dataset Management", &mut pair, deallocate(id, blocks))?;
        controller.io_ok("Read of a deallocated range", &mut pair, read)?;
    }
    check_range(&controller, &mut pair, namespace, &buffer)
}

/// Dataset Management that deallocates two ranges of `blocks` blocks, from block 8 on.
fn deallocate(nsid: u32, blocks: u32) -> Command {
    let ranges = memory::allocate(PAGE);
    for (range, lba) in [(0, 8), (1, 8 + u64::from(blocks))] {
        // Context attributes stay 0; length in blocks; start.
        ranges.write32(range * 16 + 4, blocks);
        ranges.write64(range * 16 + 8, lba);
    }
    Command::new(io::DATASET_MANAGEMENT)
        .namespace(nsid)
        .prp(ranges.address(0), 0)
        .dword(10, 1)
        .dword(11, 1 << 2)
}

fn check_range(
    controller: &Controller,
    pair: &mut Pair,
    namespace: Namespace,
    buffer: &Buffer,
) -> Outcome {
    let last = namespace.blocks - 1;
    let one = Command::blocks(io::READ, namespace.id, last, 1);
    controller.io_ok("Read of the last block", pair, buffer.attach(one))?;
    for (lba, blocks) in [
        (last, 2),
        (last + 1, 1),
        (1 << 55, 1),
        (1 << 63, 1),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 1, 4),
        (0u64.wrapping_sub(namespace.blocks), 8),
    ] {
        for opcode in [io::READ, io::WRITE, io::WRITE_ZEROES] {
            let command = Command::blocks(opcode, namespace.id, lba, blocks);
            let completion = controller.io(pair, buffer.attach(command))?;
            ensure_eq!(
                completion.code(),
                status::LBA_OUT_OF_RANGE,
                "opcode {opcode:#x}, LBA {lba:#x}, {blocks} blocks"
            );
        }
    }
    for nsid in [0, u32::MAX, u32::MAX - 1] {
        let command = Command::blocks(io::READ, nsid, 0, 1);
        let completion = controller.io(pair, buffer.attach(command))?;
        // The broadcast value may be called a wrong field instead.
        ensure!(
            completion.code() == status::INVALID_NAMESPACE
                || nsid == u32::MAX && completion.code() == status::INVALID_FIELD,
            "Read of namespace {nsid:#x}: status {:#x}",
            completion.status
        );
    }
    Ok(())
}
