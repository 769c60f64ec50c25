//! The load's virtio queues.

use super::load::{MAX_PAIRS, Queue, Request};
use super::{Target, measure_all, pairs};
use crate::check::{Outcome, Stop, ensure, skip};
use crate::cmdline::CommandLine;
use crate::virtio::{self, BlockQueue, Disk, SECTOR};

pub fn run(line: CommandLine) -> Outcome {
    let Some(function) = virtio::disks().next() else {
        skip!("no virtio block device without legacy interface");
    };
    let disk = Disk::attach(function)?;
    let count = pairs(line)?;
    ensure!(
        disk.queues >= count,
        "{} queues; try pairs={}",
        disk.queues,
        disk.queues
    );
    let mut queues = [const { None }; MAX_PAIRS];
    for (slot, index) in queues.iter_mut().zip(0..count) {
        let queue = disk.create_queue(index)?;
        *slot = Some(VirtioQueue { disk: &disk, queue });
    }
    disk.go_live()?;
    let words = if disk.has_event_index() {
        " event-index=true"
    } else {
        " event-index=false"
    };
    let target = Target {
        queues,
        block: SECTOR,
        blocks: disk.sectors,
        words,
    };
    let result = measure_all(line, target);
    let reset = disk.reset();
    result.and(reset)
}

struct VirtioQueue<'a> {
    disk: &'a Disk,
    queue: BlockQueue,
}

impl Queue for VirtioQueue<'_> {
    fn prepare(&mut self, bytes: u64, depth: usize) -> Outcome {
        self.queue.prepare(bytes, depth)
    }

    fn push(&mut self, slot: u16, request: &Request) -> bool {
        // There are no more slots than entries.
        self.queue.push(slot, request.write, request.block);
        true
    }

    fn ring(&mut self) {
        self.queue.ring();
    }

    fn take(&mut self) -> Outcome<Option<u16>> {
        self.queue.take()
    }

    fn end_batch(&mut self) {
        self.queue.end_batch();
    }

    fn doorbell_writes(&self) -> u64 {
        self.queue.doorbell_writes()
    }

    fn timeout(&self) -> Stop {
        self.disk.timeout("a request of the load")
    }
}
