//! What every backend does the same way, with every kind of engine.

// Sizes of at most a few MiB.
#![allow(clippy::cast_possible_truncation)]

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::testing::{Mode, TestBackend};
use super::*;
use crate::ram::GuestRam;

const LIMIT: Duration = Duration::from_secs(20);
const RAM: usize = 4 << 20;
const SIZE: u64 = 1 << 20;

/// How an engine under test works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setup {
    /// As a kind of engine does by itself; files are registered where that can be.
    Kind(EngineKind),
    /// With io_uring, and guest memory registered.
    LockedMemory,
}

impl From<EngineKind> for Setup {
    fn from(kind: EngineKind) -> Self {
        Self::Kind(kind)
    }
}

pub(super) const KINDS: [Setup; 3] = [
    Setup::Kind(EngineKind::IoUring),
    Setup::LockedMemory,
    Setup::Kind(EngineKind::Threads),
];

/// An engine with guest memory, and what a test does with them.
pub(super) struct Rig {
    pub engine: Engine,
    pub ram: GuestRam,
    pub done: Vec<Completion>,
    tokens: u64,
}

impl Rig {
    pub fn new(setup: impl Into<Setup>) -> Self {
        let regions = [(GuestAddress(0), RAM)];
        let ram = GuestRam::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
        let engine = |kind| Engine::with_kind(ram.clone(), kind).unwrap();
        let engine = match setup.into() {
            Setup::Kind(kind) => engine(kind),
            Setup::LockedMemory => {
                let mut engine = engine(EngineKind::IoUring);
                match engine.register_memory() {
                    Ok(()) => {}
                    // Users may lock 8 MiB by default, over all tests that run at once.
                    Err(error @ LockError::Limit { .. }) => println!("skipped: {error}"),
                    Err(error) => panic!("{error}"),
                }
                engine
            }
        };
        Self {
            engine,
            ram,
            done: Vec::new(),
            tokens: 0,
        }
    }

    pub fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    /// Submits without a kick.
    pub fn submit(
        &mut self,
        backend: &dyn Backend,
        op: Op,
        offset: u64,
        data: &[GuestSlice],
    ) -> (Token, Submitted) {
        let len = data.iter().map(|slice| slice.len() as u64).sum();
        self.submit_len(backend, op, offset, len, data)
    }

    pub fn submit_len(
        &mut self,
        backend: &dyn Backend,
        op: Op,
        offset: u64,
        len: u64,
        data: &[GuestSlice],
    ) -> (Token, Submitted) {
        let token = self.token();
        let request = Request {
            op,
            offset,
            len,
            data,
            token,
        };
        (token, backend.submit(&mut self.engine, &request))
    }

    /// Waits until `count` completions are there.
    pub fn wait(&mut self, count: usize) {
        let deadline = Instant::now() + LIMIT;
        self.engine.reap(&mut self.done);
        while self.done.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{} of {count} completions",
                self.done.len()
            );
            poll(&self.engine.wake_fds(), left);
            self.engine.kick();
            self.engine.reap(&mut self.done);
        }
        assert_eq!(self.done.len(), count, "{:?}", self.done);
    }

    /// Does one request to its end.
    pub fn run(
        &mut self,
        backend: &dyn Backend,
        op: Op,
        offset: u64,
        len: u64,
        data: &[GuestSlice],
    ) -> Result<(), BackendError> {
        let (token, submitted) = self.submit_len(backend, op, offset, len, data);
        match submitted {
            Submitted::Done(result) => result,
            Submitted::Pending => {
                self.engine.kick();
                self.wait(1);
                let completion = self.done.remove(0);
                assert_eq!(completion.token, token);
                assert_eq!(self.engine.in_flight(), 0);
                completion.result
            }
        }
    }

    pub fn write(&mut self, backend: &dyn Backend, offset: u64, bytes: &[u8]) {
        let slice = self.ram.slice(0, bytes.len()).unwrap();
        slice.copy_from(bytes);
        let op = Op::Write { fua: false };
        let result = self.run(backend, op, offset, bytes.len() as u64, &[slice]);
        assert_eq!(result, Ok(()), "{}", backend.describe());
    }

    pub fn read(&mut self, backend: &dyn Backend, offset: u64, len: usize) -> Vec<u8> {
        let slice = self.ram.slice(0, len).unwrap();
        let result = self.run(backend, Op::Read, offset, len as u64, &[slice]);
        assert_eq!(result, Ok(()), "{}", backend.describe());
        bytes_of(&[slice])
    }
}

pub(super) fn bytes_of(slices: &[GuestSlice]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for slice in slices {
        let start = bytes.len();
        bytes.resize(start + slice.len(), 0);
        slice.copy_to(&mut bytes[start..]);
    }
    bytes
}

/// Waits until one of `fds` is readable; whether one is.
pub(super) fn poll(fds: &[RawFd], limit: Duration) -> bool {
    let entry = |&fd| libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polls: Vec<_> = fds.iter().map(entry).collect();
    let limit = i32::try_from(limit.as_millis()).unwrap();
    // SAFETY: the pointer and count are those of one vector.
    unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, limit) > 0 }
}

/// xorshift64*.
pub(super) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[7]).collect()
    }
}

/// A new image of `size` bytes, in `directory` or where temporary files go.
pub(super) fn image(directory: Option<&str>, size: u64) -> NamedTempFile {
    let file = match directory {
        Some(directory) => NamedTempFile::new_in(directory),
        None => NamedTempFile::new(),
    };
    let file = file.unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

pub(super) fn file_config(path: &std::path::Path, cache: CacheMode) -> BackendConfig {
    let path = path.into();
    BackendConfig {
        kind: BackendKind::File { path, cache },
        read_only: false,
        block_size: 512,
    }
}

/// A backend under test, with the file that it lives on.
struct Subject {
    backend: Arc<dyn Backend>,
    _file: Option<NamedTempFile>,
}

/// Every backend that keeps its content, each way, all zeroes. /dev/shm cannot zero ranges in place,
/// so it takes other paths than a disk's file system.
fn subjects(read_only: bool, block_size: u32) -> Vec<Subject> {
    let memory = BackendConfig {
        kind: BackendKind::Memory { size: SIZE },
        read_only,
        block_size,
    };
    let mut subjects = vec![Subject {
        backend: open(&memory).unwrap(),
        _file: None,
    }];
    for mode in [Mode::Inline, Mode::Delay(Duration::ZERO)] {
        let (backend, control) = TestBackend::new(SIZE, block_size);
        control.set_mode(mode);
        control.set_read_only(read_only);
        let _file = None;
        subjects.push(Subject { backend, _file });
    }
    for directory in [None, Some("/dev/shm")] {
        for cache in ["writeback", "none", "writethrough", "directsync", "unsafe"] {
            let file = image(directory, SIZE);
            let mut config = file_config(file.path(), cache.parse().unwrap());
            (config.read_only, config.block_size) = (read_only, block_size);
            match open(&config) {
                Ok(backend) => subjects.push(Subject {
                    backend,
                    _file: Some(file),
                }),
                // Not every file system can do O_DIRECT.
                Err(OpenError::DirectUnsupported { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
    subjects
}

fn for_each(block_size: u32, test: impl Fn(&mut Rig, &dyn Backend)) {
    for kind in KINDS {
        for subject in subjects(false, block_size) {
            let mut rig = Rig::new(kind);
            test(&mut rig, &*subject.backend);
            assert_eq!(rig.engine.in_flight(), 0);
        }
    }
}

fn null() -> Arc<dyn Backend> {
    let kind = BackendKind::Null { size: SIZE };
    let (read_only, block_size) = (false, 512);
    open(&BackendConfig {
        kind,
        read_only,
        block_size,
    })
    .unwrap()
}

const CHANGES: [Op; 4] = [
    Op::Write { fua: false },
    Op::WriteZeroes {
        unmap: false,
        fua: false,
    },
    Op::WriteZeroes {
        unmap: true,
        fua: true,
    },
    Op::Discard,
];

fn check_ranges(rig: &mut Rig, backend: &dyn Backend) {
    let outside = Err(BackendError::OutOfRange);
    let table = [
        (0, 512, Ok(())),
        (SIZE - 512, 512, Ok(())),
        (SIZE - 512, 1024, outside),
        (SIZE, 512, outside),
        (SIZE, 0, Ok(())),
        (SIZE + 512, 0, outside),
        (0, 0, Ok(())),
        (512, 0, Ok(())),
        (u64::MAX, 0, outside),
        (u64::MAX, 1, outside),
        (u64::MAX - 511, 512, outside),
        (u64::MAX - 511, 1024, outside),
        (i64::MAX as u64, 512, outside),
        (1 << 63, 512, outside),
        (1, 511, Err(BackendError::Io(libc::EINVAL))),
        (0, 511, Err(BackendError::Io(libc::EINVAL))),
        (0, 513, Err(BackendError::Io(libc::EINVAL))),
    ];
    for op in CHANGES.into_iter().chain([Op::Read]) {
        for (offset, len, expected) in table {
            let moves = matches!(op, Op::Read | Op::Write { .. });
            let used = if moves { len as usize } else { 0 };
            let slice = rig.ram.slice(0, used).unwrap();
            let result = rig.run(backend, op, offset, len, &[slice]);
            let name = backend.describe();
            assert_eq!(result, expected, "{name}: {op:?} {offset:#x}+{len:#x}");
        }
    }
    for (offset, len) in [(0, SIZE + 512), (512, u64::MAX - 511), (0, u64::MAX - 511)] {
        assert_eq!(rig.run(backend, Op::Discard, offset, len, &[]), outside);
    }
    // A flush has no range.
    assert_eq!(rig.run(backend, Op::Flush, u64::MAX, u64::MAX, &[]), Ok(()));
}

#[test]
fn ranges_are_checked() {
    for_each(512, check_ranges);
    check_ranges(&mut Rig::new(EngineKind::Auto), &*null());
}

#[test]
fn data_must_match_the_range() {
    for_each(512, |rig, backend| {
        let slice = rig.ram.slice(0, 512).unwrap();
        for (len, data) in [
            (512, vec![]),
            (1024, vec![slice]),
            (512, vec![slice, slice]),
        ] {
            for op in [Op::Read, Op::Write { fua: true }] {
                let result = rig.run(backend, op, 0, len, &data);
                assert_eq!(result, Err(BackendError::Io(libc::EINVAL)));
            }
        }
    });
}

#[test]
fn large_blocks_are_kept_whole() {
    for_each(4096, |rig, backend| {
        assert_eq!(backend.block_size(), 4096);
        let slice = rig.ram.slice(0, 512).unwrap();
        let misaligned = Err(BackendError::Io(libc::EINVAL));
        assert_eq!(rig.run(backend, Op::Read, 0, 512, &[slice]), misaligned);
        let slice = rig.ram.slice(0, 4096).unwrap();
        assert_eq!(rig.run(backend, Op::Read, 512, 4096, &[slice]), misaligned);
        assert_eq!(
            rig.run(backend, Op::Read, SIZE - 4096, 4096, &[slice]),
            Ok(())
        );
    });
}

#[test]
fn read_only_refuses_every_change() {
    for kind in KINDS {
        for subject in subjects(true, 512) {
            let (mut rig, backend) = (Rig::new(kind), &*subject.backend);
            assert!(backend.read_only());
            let slice = rig.ram.slice(0, 512).unwrap();
            for op in CHANGES {
                let result = rig.run(backend, op, 0, 512, &[slice]);
                assert_eq!(result, Err(BackendError::ReadOnly), "{op:?}");
            }
            assert_eq!(rig.run(backend, Op::Read, 0, 512, &[slice]), Ok(()));
            assert_eq!(rig.run(backend, Op::Flush, 0, 0, &[]), Ok(()));
        }
    }
}

/// `len` bytes of guest memory in pieces of odd lengths with gaps.
fn scatter(rig: &Rig, random: &mut Random, len: usize) -> Vec<GuestSlice> {
    let (mut slices, mut left, mut at) = (Vec::new(), len, random.below(4096));
    while left > 0 {
        let longest = if random.below(4) == 0 { 9000 } else { 700 };
        let part = left.min(1 + random.below(longest) as usize);
        slices.push(rig.ram.slice(at, part).unwrap());
        at += part as u64 + random.below(3) * random.below(70);
        left -= part;
    }
    // Empty slices are allowed anywhere.
    let place = random.below(slices.len() as u64 + 1) as usize;
    slices.insert(place, rig.ram.slice(at, 0).unwrap());
    slices
}

/// `len` bytes of guest memory that O_DIRECT can reach, in pages out of order.
fn pages(rig: &Rig, random: &mut Random, len: usize) -> Vec<GuestSlice> {
    let count = len.div_ceil(4096);
    let first = random.below(16);
    let page = |i: usize| {
        let at = (first + (count - i) as u64 * 2) * 4096;
        rig.ram.slice(at, 4096.min(len - i * 4096)).unwrap()
    };
    (0..count).map(page).collect()
}

fn check_against_model(rig: &mut Rig, backend: &dyn Backend, seed: u64) {
    const GUARD: u8 = 0xa5;
    let mut random = Random(seed);
    let mut model = vec![0; SIZE as usize];
    let block = backend.block_size() as usize;
    let all = rig.ram.slice(0, 256 << 10).unwrap();
    for step in 0..60 {
        let offset = random.below((SIZE as usize / block) as u64) as usize * block;
        let most = (SIZE as usize - offset).min(64 << 10) / block;
        let len = (1 + random.below(most as u64) as usize) * block;
        let range = offset..offset + len;
        let slices = match random.below(2) {
            0 => pages(rig, &mut random, len),
            _ => scatter(rig, &mut random, len),
        };
        let context = format!("{} seed {seed} step {step}", backend.describe());
        let (offset, len) = (offset as u64, len as u64);
        let (unmap, fua) = (random.below(2) == 0, random.below(2) == 0);
        let (op, data) = match random.below(8) {
            0..3 => (Op::Read, &slices[..]),
            3..6 => (Op::Write { fua }, &slices[..]),
            6 => (Op::WriteZeroes { unmap, fua }, &[][..]),
            _ if backend.discard_zeroes() => (Op::Discard, &[][..]),
            _ => (Op::Flush, &[][..]),
        };
        all.copy_from(&vec![GUARD; all.len()]);
        if let Op::Write { .. } = op {
            for slice in data {
                slice.copy_from(&random.bytes(slice.len()));
            }
            model[range.clone()].copy_from_slice(&bytes_of(data));
        }
        if let Op::WriteZeroes { .. } | Op::Discard = op {
            model[range.clone()].fill(0);
        }
        let result = rig.run(backend, op, offset, len, data);
        assert_eq!(result, Ok(()), "{context}: {op:?} {range:?}");
        if op == Op::Read {
            assert!(bytes_of(data) == model[range], "{context}: {op:?}");
            data.iter()
                .for_each(|slice| slice.copy_from(&vec![GUARD; slice.len()]));
            let kept = bytes_of(&[all]).iter().all(|&byte| byte == GUARD);
            assert!(kept, "{context}: wrote outside of the slices");
        }
    }
    let content = rig.read(backend, 0, SIZE as usize);
    assert!(content == model, "{}: final content", backend.describe());
}

#[test]
fn random_requests_match_a_model() {
    for (seed, block_size) in [(1, 512), (2, 4096), (3, 512)] {
        for_each(block_size, |rig, backend| {
            check_against_model(rig, backend, seed);
        });
    }
}

#[test]
fn more_vectors_than_the_kernel_takes() {
    for_each(512, |rig, backend| {
        let len = 5120;
        let mut random = Random(9);
        let bytes = random.bytes(len);
        let single = |i| rig.ram.slice(2 * i as u64, 1).unwrap();
        let slices: Vec<_> = (0..len).map(single).collect();
        for (slice, byte) in slices.iter().zip(&bytes) {
            slice.copy_from(&[*byte]);
        }
        let op = Op::Write { fua: false };
        assert_eq!(rig.run(backend, op, 1024, len as u64, &slices), Ok(()));
        slices.iter().for_each(|slice| slice.zero());
        assert_eq!(
            rig.run(backend, Op::Read, 1024, len as u64, &slices),
            Ok(())
        );
        assert!(bytes_of(&slices) == bytes, "{}", backend.describe());
    });
}

#[test]
fn a_batch_keeps_its_requests_apart() {
    for_each(512, |rig, backend| {
        let count = 64u64;
        let slices: Vec<_> = (0..count)
            .map(|i| rig.ram.slice(i * 512, 512).unwrap())
            .collect();
        for write in [true, false] {
            let mut pending = 0;
            for (i, slice) in (0u8..).zip(&slices) {
                slice.copy_from(&[if write { i } else { 0xff }; 512]);
                let op = if write {
                    Op::Write { fua: false }
                } else {
                    Op::Read
                };
                let offset = (count - 1 - u64::from(i)) * 512;
                let (_, submitted) = rig.submit(backend, op, offset, &[*slice]);
                match submitted {
                    Submitted::Done(result) => assert_eq!(result, Ok(())),
                    Submitted::Pending => pending += 1,
                }
            }
            rig.engine.kick();
            rig.wait(pending);
            assert!(
                rig.done
                    .drain(..)
                    .all(|completion| completion.result == Ok(()))
            );
        }
        for (i, slice) in (0u8..).zip(&slices) {
            assert!(
                bytes_of(&[*slice]) == [i; 512],
                "{}: {i}",
                backend.describe()
            );
        }
    });
}

#[test]
fn null_touches_no_guest_memory() {
    let (mut rig, backend) = (Rig::new(EngineKind::Auto), null());
    assert!(!backend.discard_zeroes());
    assert_eq!(backend.describe(), "null=1M");
    let slice = rig.ram.slice(0, 512).unwrap();
    slice.copy_from(&[7; 512]);
    assert_eq!(rig.run(&*backend, Op::Read, 0, 512, &[slice]), Ok(()));
    assert_eq!(bytes_of(&[slice]), [7; 512]);
}

#[test]
fn threads_share_a_backend() {
    for kind in KINDS {
        for subject in subjects(false, 512) {
            let backend = &*subject.backend;
            std::thread::scope(|scope| {
                for i in 0..4 {
                    scope.spawn(move || {
                        let (mut rig, mut random) = (Rig::new(kind), Random(i + 1));
                        let offset = i * 256 * 1024;
                        for _ in 0..10 {
                            let bytes = random.bytes(8192);
                            rig.write(backend, offset, &bytes);
                            assert!(rig.read(backend, offset, 8192) == bytes);
                        }
                    });
                }
            });
        }
    }
}

/// Run with `--ignored` and, for example, a loop device of at least 1 MiB.
#[test]
#[ignore = "overwrites the block device named in BERTH_TEST_BLOCK_DEVICE"]
fn a_block_device_matches_the_model() {
    let path = std::env::var("BERTH_TEST_BLOCK_DEVICE").unwrap();
    match open(&file_config(path.as_ref(), CacheMode::None)).err() {
        None => println!("has blocks of 512 bytes"),
        Some(error @ OpenError::DirectBlockSize { needed: 4096, .. }) => println!("{error}"),
        Some(error) => panic!("{error}"),
    }
    for cache in ["writeback", "none", "writethrough", "directsync", "unsafe"] {
        let mut config = file_config(path.as_ref(), cache.parse().unwrap());
        config.block_size = 4096;
        for kind in KINDS {
            let (mut rig, backend) = (Rig::new(kind), open(&config).unwrap());
            let error = open(&config).err().unwrap();
            assert!(matches!(error, OpenError::InUse { .. }), "{error}");
            println!(
                "{} discard_zeroes={}",
                backend.describe(),
                backend.discard_zeroes()
            );
            let zero = Op::WriteZeroes {
                unmap: false,
                fua: false,
            };
            assert_eq!(rig.run(&*backend, zero, 0, SIZE, &[]), Ok(()));
            check_against_model(&mut rig, &*backend, 4);
        }
    }
}

#[test]
fn sizes_change_while_a_backend_is_in_use() {
    let file = image(None, SIZE);
    let kinds = [
        BackendKind::File {
            path: file.path().into(),
            cache: CacheMode::Writeback,
        },
        BackendKind::Memory { size: SIZE },
        BackendKind::Null { size: SIZE },
    ];
    for kind in kinds {
        let stores = !matches!(kind, BackendKind::Null { .. });
        let config = BackendConfig {
            kind,
            read_only: false,
            block_size: 4096,
        };
        let backend = open(&config).unwrap();
        let mut rig = Rig::new(EngineKind::IoUring);
        let end = SIZE - 4096;
        rig.write(&*backend, end, &[7; 4096]);
        backend.resize(2 * SIZE).unwrap();
        assert_eq!(backend.size(), 2 * SIZE);
        rig.write(&*backend, 2 * SIZE - 4096, &[9; 4096]);
        // What is cut off is gone, and does not come back with the size.
        backend.resize(SIZE / 2).unwrap();
        let data = rig.ram.slice(0, 4096).unwrap();
        let result = rig.run(&*backend, Op::Read, end, 4096, &[data]);
        assert_eq!(result, Err(BackendError::OutOfRange), "{config:?}");
        backend.resize(2 * SIZE).unwrap();
        if stores {
            for offset in [end, 2 * SIZE - 4096] {
                assert_eq!(rig.read(&*backend, offset, 4096), [0; 4096], "{config:?}");
            }
        }
        for wrong in [0, 4095, 512, u64::MAX - 4095] {
            let error = backend.resize(wrong).unwrap_err().to_string();
            assert!(
                error.contains("a multiple of the block size 4096"),
                "{error}"
            );
        }
        assert_eq!(backend.size(), 2 * SIZE);
    }
    assert_eq!(file.as_file().metadata().unwrap().len(), 2 * SIZE);
}

/// A write that was in flight makes the file longer, but not for long.
#[test]
fn a_smaller_size_outlasts_writes_in_flight() {
    for kind in KINDS {
        let file = image(None, SIZE);
        let backend = open(&file_config(file.path(), CacheMode::Writeback)).unwrap();
        let mut rig = Rig::new(kind);
        let slice = rig.ram.slice(0, 4096).unwrap();
        let write = Op::Write { fua: false };
        let mut pending = 0;
        for end in [SIZE, SIZE - 8192] {
            let data = [slice];
            let (_, submitted) = rig.submit_len(&*backend, write, end - 4096, 4096, &data);
            pending += usize::from(submitted == Submitted::Pending);
        }
        backend.resize(SIZE / 2).unwrap();
        rig.engine.kick();
        rig.wait(pending);
        assert_eq!(backend.refresh_size(), None, "{kind:?}");
        assert_eq!(file.as_file().metadata().unwrap().len(), SIZE / 2);
        backend.resize(SIZE).unwrap();
        rig.done.clear();
        assert_eq!(rig.read(&*backend, SIZE - 4096, 4096), [0; 4096]);
    }
}

#[test]
fn a_read_only_backend_keeps_its_size() {
    let config = BackendConfig {
        kind: BackendKind::Memory { size: SIZE },
        read_only: true,
        block_size: 512,
    };
    let backend = open(&config).unwrap();
    assert!(matches!(
        backend.resize(2 * SIZE),
        Err(ResizeError::ReadOnly)
    ));
    assert_eq!(backend.size(), SIZE);
}

#[test]
fn a_memory_backend_grows_as_far_as_was_set_aside() {
    let config = BackendConfig {
        kind: BackendKind::Memory { size: 1 << 30 },
        read_only: false,
        block_size: 512,
    };
    let backend = open(&config).unwrap();
    backend.resize(16 << 30).unwrap();
    let error = backend.resize((16 << 30) + 512).unwrap_err().to_string();
    assert!(error.ends_with("up to 16G"), "{error}");
    assert_eq!(backend.size(), 16 << 30);
}
