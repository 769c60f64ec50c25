//! What one host thread reaches by copying alone: the ceiling of a namespace in memory.

use std::hint::black_box;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cpu::CpuTime;
use crate::plan::Plan;
use crate::sample::Sample;

/// How many bytes are copied between two looks at the clock, which must cost nothing beside them.
const CHUNK: usize = 1 << 20;

/// Copies between places in a namespace and a set of buffers, as the guest's load would have it done.
struct Copies {
    namespace: Vec<u8>,
    buffers: Vec<Vec<u8>>,
    block: usize,
    sequential: bool,
    /// Percent of copies out of the namespace.
    reads: u64,
    state: u64,
    done: usize,
}

/// One sample for each depth, with `bytes` bytes of namespace.
///
/// # Errors
/// The CPU time cannot be read.
pub fn measure(plan: &Plan, bytes: u64) -> Result<Vec<Sample>> {
    let pid = i32::try_from(std::process::id())?;
    let mut copies = Copies::new(plan, usize::try_from(bytes)?, usize::try_from(plan.block)?);
    let mut samples = Vec::new();
    for depth in &plan.depths {
        copies.set_depth((depth * plan.pairs) as usize);
        let (start, before) = (Instant::now(), CpuTime::of(pid)?);
        let count = copies.run(Duration::from_millis(plan.ms));
        let seconds = start.elapsed().as_secs_f64();
        let mut sample = Sample::new(count / seconds);
        sample.add_cpu(before, CpuTime::of(pid)?, count);
        samples.push(sample);
    }
    Ok(samples)
}

impl Copies {
    fn new(plan: &Plan, bytes: usize, block: usize) -> Self {
        Self {
            // Written, so that it really is memory.
            namespace: (0..bytes).map(|at| at.to_le_bytes()[0] | 1).collect(),
            buffers: Vec::new(),
            block,
            sequential: plan.is_sequential(),
            reads: match (plan.is_mixed(), plan.only_writes()) {
                (true, _) => plan.mix,
                (_, true) => 0,
                _ => 100,
            },
            state: 9,
            done: 0,
        }
    }

    fn set_depth(&mut self, depth: usize) {
        self.buffers = vec![vec![1; self.block]; depth];
    }

    /// Marsaglia's xorshift64, as in the guest.
    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn place(&mut self) -> Range<usize> {
        let places = self.namespace.len() / self.block;
        let place = if self.sequential {
            self.done % places
        } else {
            // Far below 2^64, so that the remainder is even enough.
            usize::try_from(self.random() % places as u64).unwrap_or(0)
        };
        place * self.block..(place + 1) * self.block
    }

    /// How many copies were made.
    #[allow(clippy::cast_precision_loss)] // Far below 2^52.
    fn run(&mut self, time: Duration) -> f64 {
        let (start, first) = (Instant::now(), self.done);
        let batch = (CHUNK / self.block).max(1);
        while start.elapsed() < time {
            for _ in 0..batch {
                self.copy();
            }
        }
        (self.done - first) as f64
    }

    /// Whether the next copy is out of the namespace.
    fn reads_next(&mut self) -> bool {
        match self.reads {
            0 => false,
            100 => true,
            reads => self.random() % 100 < reads,
        }
    }

    fn copy(&mut self) {
        let place = self.place();
        let read = self.reads_next();
        let slot = self.done % self.buffers.len();
        let (inside, buffer) = (&mut self.namespace[place], &mut self.buffers[slot]);
        if read {
            buffer.copy_from_slice(inside);
            black_box(buffer);
        } else {
            inside.copy_from_slice(buffer);
            black_box(inside);
        }
        self.done += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copies(words: &str) -> Copies {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let mut copies = Copies::new(&Plan::parse(&words).unwrap(), 64 << 10, 4096);
        copies.set_depth(2);
        copies
    }

    fn zeroes(bytes: &[u8]) -> usize {
        bytes.iter().filter(|byte| **byte == 0).count()
    }

    #[test]
    fn reads_fill_all_buffers_in_turn() {
        let mut copies = copies("rw=randread");
        copies.buffers = vec![vec![0; 4096]; 2];
        copies.copy();
        assert_eq!(
            copies.buffers.iter().map(|it| zeroes(it)).sum::<usize>(),
            4096
        );
        copies.copy();
        assert!(copies.buffers.iter().all(|it| zeroes(it) == 0));
    }

    #[test]
    fn writes_in_order_reach_every_place() {
        let mut copies = copies("rw=write");
        copies.buffers = vec![vec![0; 4096]; 2];
        for _ in 0..16 {
            copies.copy();
        }
        assert_eq!(zeroes(&copies.namespace), 64 << 10);
    }

    #[test]
    fn mixed_copies_go_both_ways() {
        let mut copies = copies("rw=randrw mix=70");
        let reads = (0..1000).filter(|_| copies.reads_next()).count();
        assert!((600..800).contains(&reads), "{reads}");
    }

    #[test]
    fn copies_are_made_until_the_time_is_over() {
        let mut copies = copies("rw=randread");
        let (time, start) = (Duration::from_millis(20), Instant::now());
        let count = copies.run(time);
        assert!(start.elapsed() >= time && count >= 256.0, "{count}");
    }
}
