//! What serving commands costs, in allocations and instructions, with the worker in the test's own
//! thread.
//!
//! `cargo xtask test cost` counts the instructions of [`serve`] with callgrind, in a release build.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::worker::{Recording, Turn, Worker};
use super::{Message, Shared};
use crate::counting;
use crate::nvme::core::Core;
use crate::nvme::doorbell::{DoorbellId, Doorbells, Shadow};
use crate::nvme::queue::{CompletionQueue, SubmissionQueue};
use crate::nvme::spec::{Cdw0, Cqe, NvmOpcode, Sqe, Status};
use crate::nvme::tests::fakes::Nothing;
use crate::nvme::tests::held::{subsystem, table_of_subsystem};
use crate::nvme::trace::{IO_RECORDS, Traced, Tracer};
use crate::pci::msix::Msix;
use crate::ram::{GuestRam, MappedRange};
use crate::storage::testing::{Mode, TestBackend};
use crate::storage::{Backend, BackendConfig, BackendKind, CacheMode, Engine, open};
use crate::subsystem::NamespaceConfig;

const SQ: u64 = 0x1_0000;
const CQ: u64 = 0x2_0000;
const VALUES: u64 = 0x3000;
const INDICES: u64 = 0x4000;
const DATA: u64 = 0x10_0000;
const ENTRIES: u32 = 256;
const BLOCK: u64 = 4096;
const BYTES: u64 = 16 << 20;

/// The only place where instructions count.
#[inline(never)]
fn serve(worker: &mut Worker) -> Turn {
    // Not a jump, which callgrind would not take for a call.
    std::hint::black_box(worker.turn())
}

/// A queue pair with shadow doorbells, its worker, and its guest.
pub(super) struct Driver {
    pub ram: GuestRam,
    pub values: MappedRange,
    pub worker: Worker,
    pub core: Arc<Core>,
    pub shared: Arc<Shared>,
    tail: u32,
    head: u32,
    phase: bool,
}

impl Driver {
    pub fn new(kind: BackendKind) -> Self {
        let config = BackendConfig {
            kind,
            read_only: false,
            block_size: 4096,
        };
        Self::with(open(&config).unwrap())
    }

    /// With namespace 1 on `backend`. A queue that is to move may take no time for that.
    pub fn with(backend: Arc<dyn Backend>) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let ram = GuestRam::new(memory);
        let shared = Arc::new(Shared::new(0, Duration::ZERO).unwrap());
        let engine = Engine::new(ram.clone()).unwrap();
        let worker = Worker::new(Arc::clone(&shared), engine).unwrap();
        let core = Self::core(&ram, backend);
        let queue = CompletionQueue::new(&ram, 1, CQ, ENTRIES, Some(1)).unwrap();
        shared.send(Message::AddCq {
            core: Arc::clone(&core),
            queue,
            stats: Arc::default(),
        });
        shared.send(Message::AddSq {
            core: Arc::clone(&core),
            queue: SubmissionQueue::new(&ram, 1, SQ, ENTRIES).unwrap(),
            cqid: 1,
            stats: Arc::default(),
        });
        Self {
            values: ram.map(VALUES, 4096).unwrap(),
            ram,
            worker,
            core,
            shared,
            tail: 0,
            head: 0,
            phase: true,
        }
    }

    fn core(ram: &GuestRam, backend: Arc<dyn Backend>) -> Arc<Core> {
        let doorbells = Doorbells::new(2, Arc::new(Nothing), Arc::new(Nothing));
        doorbells.open(DoorbellId::sq(1), ENTRIES, 0);
        doorbells.open(DoorbellId::cq(1), ENTRIES, 0);
        let shadow = Shadow::new(ram, VALUES, INDICES).unwrap();
        doorbells.start_shadow(&Arc::new(shadow));
        let msix = Msix::new(3, Arc::new(Nothing));
        let most = 1 << 20;
        let core = Core::new(
            "c".into(),
            ram.clone(),
            doorbells,
            msix,
            most,
            Duration::ZERO,
        );
        let core = core.unwrap();
        core.set_bus_master(true);
        let subsystem = subsystem("subsys0", true);
        let namespace = NamespaceConfig {
            shared: true,
            ..NamespaceConfig::default()
        };
        subsystem.add_namespace(namespace, backend).unwrap();
        core.set_namespaces(table_of_subsystem(&subsystem), &[1]);
        Arc::new(core)
    }

    /// Submits reads of `count` blocks.
    pub fn submit(&mut self, count: u32) {
        for slot in 0..u16::try_from(count).unwrap() {
            let sqe = Sqe {
                cdw0: Cdw0::new().with_opc(NvmOpcode::READ.0).with_cid(slot),
                nsid: 1,
                prp1: DATA + u64::from(slot) * BLOCK,
                cdw10: u32::from(slot) * 7,
                ..Sqe::default()
            };
            self.ram
                .write(SQ + u64::from(self.tail) * 64, &sqe)
                .unwrap();
            self.tail = (self.tail + 1) % ENTRIES;
        }
        self.values.store_u32(8, self.tail, Ordering::Release);
    }

    /// Reads `count` blocks, all out at a time.
    fn batch(&mut self, count: u32) {
        self.submit(count);
        let start = Instant::now();
        let mut left = count;
        while left > 0 {
            assert!(start.elapsed() < Duration::from_secs(20), "{left} are left");
            serve(&mut self.worker);
            while let Some(cqe) = self.take() {
                assert_eq!(cqe.status(), Status::SUCCESS, "{cqe:?}");
                left -= 1;
            }
        }
        self.values.store_u32(12, self.head, Ordering::Release);
    }

    /// Takes the next completion, if there is one.
    pub fn take(&mut self) -> Option<Cqe> {
        let cqe: Cqe = self.ram.read(CQ + u64::from(self.head) * 16).unwrap();
        if cqe.phase() != self.phase {
            return None;
        }
        self.head = (self.head + 1) % ENTRIES;
        if self.head == 0 {
            self.phase = !self.phase;
        }
        Some(cqe)
    }
}

/// As below, while everything is recorded and read.
fn allocations_of_recording(batches: u32) -> usize {
    let (tracer, mut reader) = Tracer::begin().unwrap();
    let mut driver = Driver::new(BackendKind::Null { size: BYTES });
    let recorder = tracer.recorder(IO_RECORDS).unwrap();
    let recording = Some(Box::new(Recording::new(recorder)));
    driver.shared.send(Message::Trace(recording));
    driver.batch(32);
    let mut count = 0;
    let mut look = |traced| {
        assert!(matches!(traced, Traced::Record(_)), "{traced:?}");
        count += 1;
        Ok(())
    };
    reader.read(&mut look).unwrap();
    let before = counting::allocations();
    for _ in 0..batches {
        driver.batch(32);
        reader.read(&mut look).unwrap();
    }
    let allocations = counting::allocations() - before;
    assert_eq!(count, 2 * 32 * (batches + 1));
    allocations
}

/// Allocations of `batches` batches of `count` reads, once all is warm.
fn allocations(kind: BackendKind, count: u32, batches: u32) -> usize {
    let mut driver = Driver::new(kind);
    for _ in 0..20 {
        driver.batch(count);
    }
    let before = counting::allocations();
    for _ in 0..batches {
        driver.batch(count);
    }
    counting::allocations() - before
}

#[test]
fn nothing_is_allocated_for_a_command() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(BYTES).unwrap();
    let file = || BackendKind::File {
        path: disk.path().into(),
        cache: CacheMode::Writeback,
    };
    assert_eq!(allocations(BackendKind::Null { size: BYTES }, 32, 100), 0);
    assert_eq!(allocations(BackendKind::Memory { size: BYTES }, 32, 100), 0);
    assert_eq!(allocations(file(), 32, 100), 0);
    assert_eq!(allocations(file(), 1, 100), 0);
    assert_eq!(allocations_of_recording(100), 0);
}

/// A guest that answers the completion for which the thread woke rings no doorbell: that would be an exit.
#[test]
fn the_guest_need_not_ring_once_the_thread_is_awake() {
    let (backend, control) = TestBackend::new(BYTES, 4096);
    control.set_mode(Mode::Hold);
    let mut driver = Driver::with(backend);
    let indices = driver.ram.map(INDICES, 4096).unwrap();
    let index = || indices.load_u32(8, Ordering::Relaxed);
    for (tail, lap) in [(1, 0), (2, 1)] {
        driver.submit(1);
        serve(&mut driver.worker);
        // Beside what wakes it already, the thread asks to be rung for.
        assert!(control.release_one());
        driver.worker.has_work();
        assert_eq!(index(), tail);
        driver.worker.sleep();
        assert_eq!(index(), lap);
        assert!(driver.take().is_none(), "the guest saw it before");
        serve(&mut driver.worker);
        assert!(driver.take().is_some());
    }
}

/// As many commands as a queue of 32 has take three calls, so that storage has something to do soon.
#[test]
fn storage_gets_the_start_of_a_batch_early() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(BYTES).unwrap();
    let mut driver = Driver::new(BackendKind::File {
        path: disk.path().into(),
        cache: CacheMode::Writeback,
    });
    let stats = driver.worker.engine_stats();
    driver.submit(32);
    serve(&mut driver.worker);
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(count(&stats.submissions), 32);
    if count(&stats.inline) > 0 {
        println!("skipped: the temporary folder is in memory, where I/O takes no calls");
        return;
    }
    assert_eq!(count(&stats.enters), 3);
}

/// Reads for `cargo xtask test cost`, which knows these numbers from the name of the test.
fn reads(count: u32, batches: u32) {
    let mut driver = Driver::new(BackendKind::Null { size: BYTES });
    for _ in 0..batches {
        driver.batch(count);
    }
}

#[test]
fn cost_of_6400_reads_in_batches_of_1() {
    reads(1, 6400);
}

#[test]
fn cost_of_6400_reads_in_batches_of_32() {
    reads(32, 200);
}
