//! A stream of checked reads over a prepared area, at any queue depth.

use crate::check::{Outcome, ensure, fail};
use crate::memory::{self, Dma};
use crate::nvme::{Buffer, Command, Controller, Namespace, Pair, io};
use crate::random::Random;

/// Blocks in the prepared area.
pub const AREA: u64 = 512;
/// Most commands out at a time.
pub const MAX_DEPTH: usize = 64;

/// A prepared area and memory to read it into.
pub struct Flow {
    namespace: Namespace,
    slots: Dma,
    random: Random,
}

impl Flow {
    /// Writes the area, in which every word is known.
    ///
    /// # Errors
    /// A write fails.
    pub fn prepare(
        controller: &Controller,
        pair: &mut Pair,
        namespace: Namespace,
    ) -> Outcome<Self> {
        ensure!(
            namespace.blocks >= AREA,
            "the namespace has less than {AREA} blocks"
        );
        let most = namespace.max_transfer.min(64 << 10);
        let mut buffer = Buffer::new(most);
        let per_command = most / namespace.block;
        for lba in (0..AREA).step_by(per_command as usize) {
            let blocks = per_command.min(AREA - lba);
            buffer.shape(0, blocks * namespace.block, 0);
            for at in (0..buffer.len).step_by(8) {
                let page = memory::existing(buffer.address(at), 8);
                page.write64(0, Self::word(lba + at / namespace.block));
            }
            let write = Command::blocks(io::WRITE, namespace.id, lba, blocks as u32);
            controller.io_ok("Write", pair, buffer.attach(write))?;
        }
        Ok(Self {
            namespace,
            slots: memory::allocate(MAX_DEPTH as u64 * namespace.block.max(memory::PAGE)),
            random: Random::new(7),
        })
    }

    /// First word of a prepared block.
    pub fn word(lba: u64) -> u64 {
        crate::random::mix(lba ^ 0x5eed)
    }

    fn slot(&self, index: usize) -> Dma {
        let size = self.namespace.block.max(memory::PAGE);
        self.slots.part(index as u64 * size, size)
    }

    /// A read of one random block into slot `index`.
    fn command(&mut self, index: usize) -> (Command, u64) {
        let lba = self.random.below(AREA);
        let slot = self.slot(index);
        slot.write64(0, 0);
        slot.write64(self.namespace.block - 8, 0);
        // Blocks larger than a page would need lists; two pages do for up to 8 KiB.
        let second = if self.namespace.block > memory::PAGE {
            slot.address(memory::PAGE)
        } else {
            0
        };
        let command = Command::blocks(io::READ, self.namespace.id, lba, 1);
        (command.prp(slot.address(0), second), lba)
    }

    /// Reads `count` random blocks with up to `depth` commands out, checking each.
    ///
    /// All free slots are filled before the doorbell rings. `pause` runs after every completion
    /// with the number of those so far, before more is sent.
    ///
    /// # Errors
    /// A wrong or missing completion, or wrong data.
    pub fn read(
        &mut self,
        controller: &Controller,
        pair: &mut Pair,
        count: u64,
        depth: usize,
        mut pause: impl FnMut(u64),
    ) -> Outcome {
        // Command identifier and block of each slot that is out.
        let mut out: [Option<(u16, u64)>; MAX_DEPTH] = [None; MAX_DEPTH];
        let (mut sent, mut done) = (0, 0);
        while done < count {
            let before = sent;
            for (index, slot) in out.iter_mut().enumerate().take(depth) {
                if sent == count || pair.sq.room() == 0 {
                    break;
                }
                if slot.is_none() {
                    let (command, lba) = self.command(index);
                    *slot = pair.sq.push(command).map(|id| (id, lba));
                    sent += 1;
                }
            }
            if sent != before {
                pair.sq.ring();
            }
            let completion = controller.wait(pair)?;
            let Some((index, lba)) = out.iter().enumerate().find_map(|(index, it)| {
                it.filter(|(id, _)| *id == completion.id)
                    .map(|(_, lba)| (index, lba))
            }) else {
                fail!(
                    "completion {done} is of command {} which is not out; slot {} before it, SQ {} head {}",
                    completion.id,
                    pair.cq.head(),
                    completion.sq_id,
                    completion.sq_head
                );
            };
            ensure!(
                completion.success(),
                "Read of block {lba}: status {:#x}",
                completion.status
            );
            self.check(index, lba)?;
            out[index] = None;
            done += 1;
            pause(done);
        }
        Ok(())
    }

    fn check(&self, index: usize, lba: u64) -> Outcome {
        let (slot, wanted) = (self.slot(index), Self::word(lba));
        for at in [0, self.namespace.block - 8] {
            let found = slot.read64(at);
            ensure!(
                found == wanted,
                "block {lba} byte {at:#x}: {found:#x}, not {wanted:#x}"
            );
        }
        Ok(())
    }
}
