//! The load generator: keeps every slot of every queue busy, whatever the device behind it is.

use super::Target;
use crate::check::{Outcome, Stop, ensure, fail};
use crate::random::Random;
use crate::time::Deadline;

/// Most commands out on one queue.
pub const MAX_DEPTH: usize = 256;
/// Most queues.
pub const MAX_PAIRS: usize = 4;

/// Longest time without any completion: hosts are slow and shared.
const STALL_MS: u64 = 20_000;

/// One command.
pub struct Request {
    /// Whether it writes to the device.
    pub write: bool,
    /// Its first block.
    pub block: u64,
}

/// A queue of some device, as the load drives it. Every command in it has a slot, which its driver
/// keeps a buffer for.
pub trait Queue {
    /// Builds `depth` slots for commands of `bytes` bytes.
    ///
    /// # Errors
    /// The device cannot have that.
    fn prepare(&mut self, bytes: u64, depth: usize) -> Outcome;

    /// Puts the command of a free slot into the queue; false if the queue is full.
    fn push(&mut self, slot: u16, request: &Request) -> bool;

    /// Tells the device about everything pushed.
    fn ring(&mut self);

    /// The slot of the next command that is done.
    ///
    /// # Errors
    /// It failed, or the device broke its rules.
    fn take(&mut self) -> Outcome<Option<u16>>;

    /// Ends a batch of [`Queue::take`] that took something.
    fn end_batch(&mut self);

    /// Doorbell registers written so far.
    fn doorbell_writes(&self) -> u64;

    /// The failure of a wait for a completion.
    fn timeout(&self) -> Stop;
}

/// Which commands are sent.
#[derive(Clone, Copy)]
pub struct Mode {
    random: bool,
    /// How many of a hundred commands are reads.
    reads: u64,
}

impl Mode {
    /// Writes in order.
    pub const WRITE: Self = Self {
        random: false,
        reads: 0,
    };

    /// Reads the words `rw` and `mix`, as fio has them.
    ///
    /// # Errors
    /// They are none of those.
    pub fn new(rw: &str, mix: u64) -> Outcome<Self> {
        ensure!(mix <= 100, "mix={mix} is no percentage");
        let (random, reads) = match rw {
            "randread" => (true, 100),
            "randwrite" => (true, 0),
            "randrw" => (true, mix),
            "read" => (false, 100),
            "write" => (false, 0),
            "rw" => (false, mix),
            _ => fail!("rw={rw} is none of randread, randwrite, randrw, read, write, rw"),
        };
        Ok(Self { random, reads })
    }
}

/// Makes the commands of all queues.
struct Source {
    mode: Mode,
    /// Blocks of a command.
    stride: u64,
    /// How many places for commands there are.
    places: u64,
    random: Random,
    next: u64,
}

impl Source {
    fn request(&mut self) -> Request {
        let place = if self.mode.random {
            self.random.below(self.places)
        } else {
            self.next = (self.next + 1) % self.places;
            self.next
        };
        Request {
            write: match self.mode.reads {
                0 => true,
                100 => false,
                reads => self.random.below(100) >= reads,
            },
            block: place * self.stride,
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Default)]
pub struct Done {
    /// Commands.
    pub all: u64,
    /// Those of them that read.
    pub reads: u64,
}

/// A queue and its free slots: the first `frees` of `free`.
struct Lane<'a, Q> {
    queue: &'a mut Q,
    free: [u16; MAX_DEPTH],
    frees: usize,
}

/// All queues under one load.
pub struct Lanes<'a, Q> {
    lanes: [Option<Lane<'a, Q>>; MAX_PAIRS],
    source: Source,
    words: &'static str,
}

impl<'a, Q: Queue> Lanes<'a, Q> {
    /// Prepares commands of `bytes` bytes, `depth` of them on each queue.
    ///
    /// # Errors
    /// As [`Queue::prepare`]; or the device is smaller than a command.
    pub fn new(target: &'a mut Target<Q>, mode: Mode, bytes: u64, depth: usize) -> Outcome<Self> {
        let stride = bytes / target.block;
        let places = target.blocks / stride;
        ensure!(places != 0, "the device is smaller than {bytes} bytes");
        for queue in target.queues.iter_mut().flatten() {
            queue.prepare(bytes, depth)?;
        }
        Ok(Self {
            lanes: target.queues.each_mut().map(|queue| {
                queue.as_mut().map(|queue| Lane {
                    queue,
                    free: core::array::from_fn(|index| index as u16),
                    frees: depth,
                })
            }),
            source: Source {
                mode,
                stride,
                places,
                random: Random::new(9),
                next: 0,
            },
            words: target.words,
        })
    }

    /// What START tells of the driver.
    pub fn words(&self) -> &'static str {
        self.words
    }

    /// Doorbell registers written so far.
    pub fn doorbell_writes(&self) -> u64 {
        let lanes = self.lanes.iter().flatten();
        lanes.map(|lane| lane.queue.doorbell_writes()).sum()
    }

    /// As many commands as it takes to reach every place of the device once, in order.
    ///
    /// # Errors
    /// As [`Lanes::run`].
    pub fn run_once_over(&mut self) -> Outcome<Done> {
        self.run(self.source.places, None)
    }

    /// Keeps all slots busy until `count` commands were sent or `limit` passed, and waits for the
    /// last ones.
    ///
    /// # Errors
    /// A command failed, or none is done any more.
    pub fn run(&mut self, count: u64, limit: Option<Deadline>) -> Outcome<Done> {
        let (mut sent, mut done) = (Done::default(), 0);
        let mut stall = Deadline::after_ms(STALL_MS);
        let (mut sending, mut moved) = (false, true);
        loop {
            // Only what is done makes room to send, so that the clock is not asked in between.
            if moved {
                stall = Deadline::after_ms(STALL_MS);
                sending = sent.all < count && !limit.is_some_and(Deadline::passed);
            } else if stall.passed() {
                return self.stalled();
            } else {
                core::hint::spin_loop();
            }
            if !sending && done == sent.all {
                return Ok(sent);
            }
            let before = done;
            for lane in self.lanes.iter_mut().flatten() {
                done += lane.reap()?;
                if sending {
                    lane.send(&mut self.source, &mut sent, count);
                }
            }
            moved = done != before;
        }
    }

    fn stalled<T>(&self) -> Outcome<T> {
        match self.lanes.iter().flatten().next() {
            Some(lane) => Err(lane.queue.timeout()),
            None => fail!("no queues"),
        }
    }
}

impl<Q: Queue> Lane<'_, Q> {
    /// Sends as many commands as there are free slots, up to `count` in all, with one ring.
    fn send(&mut self, source: &mut Source, sent: &mut Done, count: u64) {
        if self.frees == 0 {
            return;
        }
        while self.frees != 0 && sent.all < count {
            let request = source.request();
            if !self.queue.push(self.free[self.frees - 1], &request) {
                break;
            }
            self.frees -= 1;
            sent.all += 1;
            sent.reads += u64::from(!request.write);
        }
        self.queue.ring();
    }

    /// Takes all completions that there are; how many.
    fn reap(&mut self) -> Outcome<u64> {
        let before = self.frees;
        while let Some(slot) = self.queue.take()? {
            self.free[self.frees] = slot;
            self.frees += 1;
        }
        if self.frees != before {
            self.queue.end_batch();
        }
        Ok((self.frees - before) as u64)
    }
}
