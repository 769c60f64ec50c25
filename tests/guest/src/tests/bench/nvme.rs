//! The load's NVMe queues.

use super::Machine;
use super::load::{MAX_PAIRS, Queue, Request};
use super::{Target, measure_all, pairs};
use crate::check::{Outcome, Stop, ensure};
use crate::memory::{self, Dma};
use crate::nvme::{Buffer, Command, Controller, Namespace, Pair, io};

/// What `slot_of` has for identifiers of commands that are not out.
const NO_SLOT: u16 = u16::MAX;
/// Bytes of PRP1 and PRP2.
const PRP_BYTES: u64 = 16;

pub fn run(machine: &Machine) -> Outcome {
    let line = machine.line;
    let mut controller = machine.controller()?;
    let namespace = controller.namespace()?;
    let shadow = line.get("shadow") != Some("off");
    let count = pairs(line)?;
    let granted = controller.request_queues(count.into())?;
    ensure!(
        granted >= u32::from(count),
        "{granted} queue pairs; try pairs={granted}"
    );
    let entries = controller.max_entries().min(1024);
    let mut created = [const { None }; MAX_PAIRS];
    for (slot, id) in created.iter_mut().zip(1..=count) {
        *slot = Some(controller.create_pair(id, entries)?);
    }
    if shadow {
        let able = controller.has_shadow_doorbells()?;
        ensure!(able, "no shadow doorbells; try shadow=off");
        controller.use_shadow_doorbells(created.iter_mut().flatten())?;
    }
    let controller = &controller;
    let target = Target {
        queues: created.map(|pair| {
            pair.map(|pair| NvmeQueue {
                controller,
                namespace,
                pair,
                prps: memory::allocate(0),
                blocks: 0,
                slot_of: memory::allocate(2 << 16),
            })
        }),
        block: namespace.block,
        blocks: namespace.blocks,
        words: if shadow {
            " shadow=true"
        } else {
            " shadow=false"
        },
    };
    measure_all(line, target)
}

struct NvmeQueue<'a> {
    controller: &'a Controller,
    namespace: Namespace,
    pair: Pair,
    /// PRP1 and PRP2 of each slot.
    prps: Dma,
    /// Blocks in a command.
    blocks: u32,
    /// The slot of each command identifier, 2 bytes each.
    slot_of: Dma,
}

impl Queue for NvmeQueue<'_> {
    fn prepare(&mut self, bytes: u64, depth: usize) -> Outcome {
        ensure!(
            bytes <= self.namespace.max_transfer,
            "bs={bytes} is more than {}, the controller's limit",
            self.namespace.max_transfer
        );
        ensure!(
            depth < self.pair.sq.entries as usize,
            "{depth} commands in {} entries",
            self.pair.sq.entries
        );
        self.blocks = (bytes / self.namespace.block) as u32;
        self.prps = memory::allocate(depth as u64 * PRP_BYTES);
        for slot in 0..depth as u64 {
            let buffer = Buffer::new(bytes);
            buffer.write_pattern(memory::mark(), 0);
            let command = buffer.attach(Command::new(0));
            for (dword, offset) in command.dwords[6..10].iter().zip((0..).step_by(4)) {
                self.prps.write32(slot * PRP_BYTES + offset, *dword);
            }
        }
        self.slot_of.fill(0, self.slot_of.len(), 0xff);
        Ok(())
    }

    fn push(&mut self, slot: u16, request: &Request) -> bool {
        let opcode = if request.write { io::WRITE } else { io::READ };
        let at = u64::from(slot) * PRP_BYTES;
        let command = Command::blocks(opcode, self.namespace.id, request.block, self.blocks)
            .prp(self.prps.read64(at), self.prps.read64(at + 8));
        let Some(id) = self.pair.sq.push(command) else {
            return false;
        };
        self.slot_of.write16(u64::from(id) * 2, slot);
        true
    }

    fn ring(&mut self) {
        self.pair.sq.ring();
    }

    fn take(&mut self) -> Outcome<Option<u16>> {
        let Some(completion) = self.pair.cq.take() else {
            return Ok(None);
        };
        self.pair.sq.note(&completion);
        ensure!(
            completion.success(),
            "command {}: status {:#x}",
            completion.id,
            completion.status
        );
        let at = u64::from(completion.id) * 2;
        let slot = self.slot_of.read16(at);
        ensure!(
            slot != NO_SLOT,
            "completion of command {}, which is not out",
            completion.id
        );
        self.slot_of.write16(at, NO_SLOT);
        Ok(Some(slot))
    }

    fn end_batch(&mut self) {
        self.pair.cq.ring();
    }

    fn doorbell_writes(&self) -> u64 {
        self.pair.doorbell_writes()
    }

    fn timeout(&self) -> Stop {
        self.controller.timeout("a command of the load")
    }
}
