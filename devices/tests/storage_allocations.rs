//! Requests on a file allocate nothing once an engine has warmed up.

#![allow(clippy::unwrap_used)] // All of this file is a test.

#[path = "../src/counting.rs"]
mod counting;

use std::time::{Duration, Instant};

use devices::ram::GuestRam;
use devices::storage::{
    BackendConfig, BackendKind, CacheMode, Completion, Engine, EngineKind, Op, Request, Submitted,
    Token, open,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const BATCH: usize = 64;

/// Does `rounds` batches of vectored reads and writes; the allocations of this thread meanwhile.
fn run(kind: EngineKind, warm_up: usize, rounds: usize) -> usize {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let config = BackendConfig {
        kind: BackendKind::File {
            path: file.path().into(),
            cache: CacheMode::Writeback,
        },
        read_only: false,
        block_size: 512,
    };
    let backend = open(&config).unwrap();
    let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let ram = GuestRam::new(ram);
    let mut engine = Engine::with_kind(ram.clone(), kind).unwrap();
    let slices = [0, 8192, 16384].map(|at| ram.slice(at, 4096).unwrap());
    let mut done: Vec<Completion> = Vec::with_capacity(BATCH);
    let mut before = 0;
    for round in 0..warm_up + rounds {
        if round == warm_up {
            before = counting::allocations();
        }
        for i in 0..BATCH as u64 {
            let write = Op::Write { fua: false };
            let op = if i % 2 == 0 { Op::Read } else { write };
            let request = Request {
                op,
                offset: i * 12288,
                len: 12288,
                data: &slices,
                token: Token(i),
            };
            match backend.submit(&mut engine, &request) {
                Submitted::Pending => {}
                // What is in the page cache may be there at once.
                Submitted::Done(result) => done.push(Completion {
                    token: request.token,
                    result,
                }),
            }
        }
        engine.kick();
        let start = Instant::now();
        while done.len() < BATCH {
            assert!(start.elapsed() < Duration::from_secs(20), "{}", done.len());
            engine.reap(&mut done);
            std::thread::yield_now();
        }
        assert!(done.drain(..).all(|completion| completion.result == Ok(())));
    }
    counting::allocations() - before
}

#[test]
fn io_uring_allocates_nothing_per_request() {
    assert_eq!(run(EngineKind::IoUring, 10, 50), 0);
}

#[test]
fn threads_allocate_next_to_nothing_per_request() {
    // Which lists grow when depends on how the threads share the work.
    let allocations = run(EngineKind::Threads, 20, 100);
    assert!(allocations < 20, "{allocations} for 6,400 requests");
}
