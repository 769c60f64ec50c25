//! Figures of an engine alone: random reads of one image, without a guest.
//!
//! ```sh
//! truncate -s 1G disk.img   # and write it once
//! BERTH_LOAD=disk.img,cache=none cargo test --release -p devices engine::load -- --ignored --nocapture
//! ```
//!
//! `BERTH_LOAD_DEPTHS` (1,32,128), `BERTH_LOAD_MS` (1000), `BERTH_LOAD_ROUNDS` (5), `BERTH_LOAD_WAIT`
//! (`poll`, or `sleep` for a thread that never looks twice) and `BERTH_LOAD_MEMORY` (`lock` to register
//! guest memory) change what is measured.

// Figures for people.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]

use std::str::FromStr;
use std::time::{Duration, Instant};

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::storage::conformance::{Random, file_config, poll};
use crate::storage::{Backend, Op, open};

const BLOCK: u64 = 4096;
const RAM: usize = 64 << 20;

fn setting<T: FromStr>(name: &str, default: T) -> T {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Processor time of this thread so far.
fn processor_time() -> Duration {
    // SAFETY: a plain structure of numbers.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: a structure to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

struct Load {
    engine: Engine,
    backend: Arc<dyn Backend>,
    random: Random,
    sleeps: bool,
}

impl Load {
    /// Starts a request; whether it is done already.
    fn start(&mut self, slot: u64) -> bool {
        let address = slot * BLOCK;
        let slice = self.engine.ram().slice(address, BLOCK as usize).unwrap();
        let offset = self.random.below(self.backend.size() / BLOCK) * BLOCK;
        let request = Request {
            op: Op::Read,
            offset,
            len: BLOCK,
            data: &[slice],
            token: Token(slot),
        };
        match self.backend.submit(&mut self.engine, &request) {
            Submitted::Pending => false,
            Submitted::Done(result) => {
                result.unwrap();
                true
            }
        }
    }

    /// Requests and processor time.
    fn run(&mut self, depth: u64, time: Duration) -> (u64, Duration, Duration) {
        let (begin, used, mut count) = (Instant::now(), processor_time(), 0);
        let mut done = Vec::new();
        let mut ready: Vec<_> = (0..depth).collect();
        loop {
            let more = begin.elapsed() < time;
            // What is done at once is started again with the next batch.
            ready.retain(|&slot| {
                let done = more && self.start(slot);
                count += u64::from(done);
                done
            });
            self.engine.kick();
            if !more && self.engine.in_flight() == 0 {
                break;
            }
            self.engine.reap(&mut done);
            if done.is_empty() && ready.is_empty() && self.sleeps {
                poll(&self.engine.wake_fds(), Duration::from_secs(1));
            }
            count += done.len() as u64;
            for completion in done.drain(..) {
                completion.result.unwrap();
                ready.push(completion.token.0);
            }
        }
        (count, begin.elapsed(), processor_time() - used)
    }
}

#[test]
#[ignore = "prints figures of the image named in BERTH_LOAD"]
fn random_reads() {
    let text = std::env::var("BERTH_LOAD").unwrap();
    let (path, cache) = text.split_once(",cache=").unwrap_or((&text, "writeback"));
    let ram = GuestRam::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap());
    let mut load = Load {
        engine: Engine::new(ram).unwrap(),
        backend: open(&file_config(path.as_ref(), cache.parse().unwrap())).unwrap(),
        random: Random(1),
        sleeps: setting("BERTH_LOAD_WAIT", String::new()) == "sleep",
    };
    if setting("BERTH_LOAD_MEMORY", String::new()) == "lock" {
        load.engine.register_memory().unwrap();
    }
    let depths = setting("BERTH_LOAD_DEPTHS", "1,32,128".to_owned());
    let time = Duration::from_millis(setting("BERTH_LOAD_MS", 1000));
    let stats = load.engine.stats();
    for depth in depths.split(',') {
        let depth = depth.parse().unwrap();
        for _ in 0..setting("BERTH_LOAD_ROUNDS", 5) {
            let enters = stats.enters.load(Ordering::Relaxed);
            let (count, elapsed, used) = load.run(depth, time);
            let enters = stats.enters.load(Ordering::Relaxed) - enters;
            println!(
                "depth {depth:>4}: {:>8.0} a second, {:>6.0} ns of processor time each, {:.3} enters",
                count as f64 / elapsed.as_secs_f64(),
                used.as_nanos() as f64 / count as f64,
                enters as f64 / count as f64
            );
        }
    }
}
