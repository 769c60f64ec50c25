use std::fs::File;
use std::io::{self, PipeWriter, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::closed::Closed;
use crate::counting;
use crate::ram::GuestSlice;
use crate::storage::conformance::{KINDS, Rig, Setup, bytes_of, file_config, image, poll};
use crate::storage::file::{DirectAlign, Image, Owned};
use crate::storage::io::Step;
use crate::storage::testing::{Mode, TestBackend};
use crate::storage::{Backend, BackendConfig, BackendError, CacheMode, Op, OpenError, open};

const NOTHING: Duration = Duration::ZERO;

const WRITE: Op = Op::Write { fua: false };

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// A read from a pipe, which lasts until the other end writes or closes. Only the request keeps the
/// pipe open.
fn read_pipe(rig: &mut Rig, file: OwnedFd, slice: GuestSlice) -> Token {
    read_image(rig, Image::unchecked(File::from(file), None), slice)
}

/// A read from the start of an image whose backend is gone then.
fn read_image(rig: &mut Rig, image: Arc<Image>, slice: GuestSlice) -> Token {
    let token = rig.token();
    let image = Owned(image);
    let plan = Plan {
        step: Step::Read,
        stable: false,
    };
    let request = Request {
        op: Op::Read,
        offset: 0,
        len: slice.len() as u64,
        data: &[slice],
        token,
    };
    let submitted = rig.engine.submit_file(&image, plan, &request);
    assert_eq!(submitted, Submitted::Pending);
    token
}

/// The reading end of a pipe is closed, or soon is, by everybody.
fn assert_no_reader(writer: &mut PipeWriter) {
    assert!(poll(&[writer.as_raw_fd()], Duration::from_secs(10)));
    let error = writer.write_all(b"late").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

fn is_locked(file: &tempfile::NamedTempFile) -> bool {
    let error = open(&file_config(file.path(), CacheMode::Writeback)).err();
    match error {
        None => false,
        Some(OpenError::InUse { .. }) => true,
        Some(error) => panic!("{error}"),
    }
}

fn open_image(file: &tempfile::NamedTempFile) -> Arc<dyn Backend> {
    open(&file_config(file.path(), CacheMode::Writeback)).unwrap()
}

#[test]
fn a_batch_takes_one_enter() {
    for kind in KINDS {
        let (mut rig, file) = (Rig::new(kind), image(None, 1 << 20));
        let (backend, stats) = (open_image(&file), rig.engine.stats());
        let slice = rig.ram.slice(0, 512).unwrap();
        for i in 0..200 {
            let (_, submitted) = rig.submit(&*backend, WRITE, i * 512, &[slice]);
            assert_eq!(submitted, Submitted::Pending);
        }
        assert_eq!((count(&stats.enters), rig.engine.in_flight()), (0, 200));
        rig.engine.kick();
        assert_eq!((count(&stats.enters), count(&stats.submissions)), (1, 200));
        rig.engine.kick();
        rig.wait(200);
        assert!(
            rig.done
                .iter()
                .all(|completion| completion.result == Ok(()))
        );
        rig.engine.kick();
        assert_eq!(count(&stats.enters), 1, "an enter with nothing to submit");
        assert_eq!(
            (count(&stats.completions), rig.engine.in_flight()),
            (200, 0)
        );
        assert!(!poll(&rig.engine.wake_fds(), NOTHING), "woken for nothing");
    }
}

/// Storage does not wait for the end of a large batch; nor does a small one take more calls.
#[test]
fn idle_storage_gets_the_start_of_a_batch_early() {
    for (requests, calls) in [(3, &[][..]), (4, &[4]), (31, &[4, 12]), (36, &[4, 12, 36])] {
        for kind in KINDS {
            let (mut rig, file) = (Rig::new(kind), image(None, 1 << 20));
            let (backend, stats) = (open_image(&file), rig.engine.stats());
            let slice = rig.ram.slice(0, 512).unwrap();
            let mut sent = Vec::new();
            for i in 0..requests {
                let (_, submitted) = rig.submit(&*backend, WRITE, i * 512, &[slice]);
                assert_eq!(submitted, Submitted::Pending);
                let before = count(&stats.enters);
                rig.engine.kick_early();
                if count(&stats.enters) > before {
                    sent.push(count(&stats.submissions));
                }
            }
            assert_eq!(sent, calls, "{requests} requests, {kind:?}");
            rig.engine.kick();
            rig.wait(usize::try_from(requests).unwrap());
        }
    }
}

/// One read at a time from the page cache needs no ring; several take one call together.
#[test]
fn cached_reads_that_come_alone_are_done_at_once() {
    for kind in KINDS {
        let (mut rig, file) = (Rig::new(kind), image(None, 1 << 20));
        let (backend, stats) = (open_image(&file), rig.engine.stats());
        rig.write(&*backend, 0, &[5; 8192]);
        assert_eq!(rig.read(&*backend, 0, 8192), [5; 8192]);
        rig.engine.kick();
        if count(&stats.inline) == 0 {
            println!("skipped: this file system cannot read from its cache alone");
            return;
        }
        let slice = rig.ram.slice(0, 4096).unwrap();
        for _ in 0..10 {
            let (_, submitted) = rig.submit(&*backend, Op::Read, 4096, &[slice]);
            assert_eq!(submitted, Submitted::Done(Ok(())), "{kind:?}");
            rig.engine.kick();
        }
        assert_eq!((count(&stats.inline), count(&stats.enters)), (11, 1));
        assert_eq!(count(&stats.submissions), count(&stats.completions));

        for round in 0..3 {
            let submitted: Vec<_> = (0..8)
                .map(|_| rig.submit(&*backend, Op::Read, 4096, &[slice]).1)
                .collect();
            let pending = submitted.iter().filter(|it| **it == Submitted::Pending);
            let pending = pending.count();
            assert_eq!(pending, if round == 0 { 7 } else { 8 }, "{kind:?}");
            rig.engine.kick();
            rig.wait(pending);
            rig.done.clear();
        }
        assert_eq!(count(&stats.enters), 4);
    }
}

#[test]
fn a_full_engine_says_so_and_loses_nothing() {
    for kind in KINDS {
        let (mut rig, file) = (Rig::new(kind), image(None, 1 << 20));
        let backend = open_image(&file);
        let slice = rig.ram.slice(0, 512).unwrap();
        let all = Engine::CAPACITY + Engine::BURST;
        for round in 0..3 {
            for i in 0..all {
                assert_eq!(rig.engine.has_room(), i < Engine::CAPACITY);
                let (_, submitted) = rig.submit(&*backend, WRITE, 0, &[slice]);
                assert_eq!(submitted, Submitted::Pending, "round {round}: {i}");
            }
            let (_, submitted) = rig.submit(&*backend, WRITE, 0, &[slice]);
            assert_eq!(
                submitted,
                Submitted::Done(Err(BackendError::Io(libc::EAGAIN)))
            );
            rig.engine.kick();
            rig.wait(all);
            rig.done.sort_by_key(|completion| completion.token.0);
            rig.done.dedup();
            assert_eq!(rig.done.drain(..).len(), all, "a token came twice");
        }
    }
}

#[test]
fn mail_comes_from_other_threads() {
    for kind in KINDS {
        let mut rig = Rig::new(kind);
        let boxes: Vec<_> = (0..4).map(|_| rig.engine.begin_remote()).collect();
        (0..396).for_each(|_| drop(rig.engine.begin_remote()));
        assert_eq!(rig.engine.in_flight(), 400);
        assert!(!poll(&rig.engine.wake_fds(), NOTHING));
        std::thread::scope(|scope| {
            for (mailbox, first) in boxes.into_iter().zip([0u64, 100, 200, 300]) {
                scope.spawn(move || {
                    for i in first..first + 100 {
                        let result = Err(BackendError::Io(5));
                        mailbox.complete(Completion {
                            token: Token(i),
                            result,
                        });
                    }
                });
            }
            rig.wait(400);
        });
        let mut tokens: Vec<_> = rig.done.iter().map(|done| done.token.0).collect();
        tokens.sort_unstable();
        assert!(tokens.into_iter().eq(0..400));
        assert_eq!(rig.engine.in_flight(), 0);
        assert!(!poll(&rig.engine.wake_fds(), NOTHING), "still signalled");
    }
}

#[test]
fn mail_for_a_dropped_engine_is_ignored() {
    for kind in KINDS {
        let mut rig = Rig::new(kind);
        let mailbox = rig.engine.begin_remote();
        drop(rig);
        mailbox.complete(Completion {
            token: Token(1),
            result: Ok(()),
        });
    }
}

#[test]
fn a_queued_request_is_cancelled_without_a_trace() {
    for kind in KINDS {
        let (mut rig, file) = (Rig::new(kind), image(None, 4096));
        let backend = open_image(&file);
        let (a, b) = (
            rig.ram.slice(0, 512).unwrap(),
            rig.ram.slice(512, 512).unwrap(),
        );
        a.copy_from(&[7; 512]);
        b.copy_from(&[7; 512]);
        let (gone, _) = rig.submit(&*backend, WRITE, 0, &[a]);
        let (kept, _) = rig.submit(&*backend, WRITE, 512, &[b]);
        assert_eq!(backend.cancel(&mut rig.engine, gone), Cancel::Cancelled);
        assert_eq!(rig.engine.in_flight(), 1);
        rig.engine.kick();
        rig.wait(1);
        assert_eq!(
            rig.done[0],
            Completion {
                token: kept,
                result: Ok(())
            }
        );
        // Done long ago: there is nothing left to stop.
        assert_eq!(backend.cancel(&mut rig.engine, kept), Cancel::Cancelled);
        rig.done.clear();
        assert_eq!(rig.read(&*backend, 0, 1024), [[0; 512], [7; 512]].concat());
    }
}

#[test]
fn cancelling_sent_requests_completes_each_once() {
    for kind in KINDS {
        let (mut rig, file) = (Rig::new(kind), image(None, 1 << 20));
        let backend = open_image(&file);
        let slice = rig.ram.slice(0, 65536).unwrap();
        let tokens: Vec<_> = (0..100)
            .map(|_| {
                rig.submit(&*backend, Op::Write { fua: true }, 0, &[slice])
                    .0
            })
            .collect();
        rig.engine.kick();
        let mut pending = 100;
        for token in &tokens {
            if backend.cancel(&mut rig.engine, *token) == Cancel::Cancelled {
                pending -= 1;
            }
        }
        rig.engine.kick();
        rig.wait(pending);
        for completion in &rig.done {
            let allowed = [Ok(()), Err(BackendError::Cancelled)];
            assert!(allowed.contains(&completion.result), "{completion:?}");
        }
        assert_eq!(rig.engine.in_flight(), 0);
    }
}

#[test]
fn the_kernel_stops_a_waiting_read() {
    let mut rig = Rig::new(EngineKind::IoUring);
    let slice = rig.ram.slice(0, 64).unwrap();
    let (reader, mut writer) = pipe().unwrap();
    let token = read_pipe(&mut rig, reader.into(), slice);
    rig.engine.kick();
    assert_eq!(rig.engine.cancel_file(token), Cancel::Pending);
    rig.engine.kick();
    rig.wait(1);
    let result = Err(BackendError::Cancelled);
    assert_eq!(rig.done[0], Completion { token, result });
    assert_no_reader(&mut writer);
}

#[test]
fn a_short_read_does_not_go_on_once_it_is_cancelled() {
    let mut rig = Rig::new(EngineKind::IoUring);
    let slice = rig.ram.slice(0, 64).unwrap();
    let (reader, mut writer) = pipe().unwrap();
    let token = read_pipe(&mut rig, reader.into(), slice);
    rig.engine.kick();
    // The engine hears that the backend is gone, so that only the ring can wake it.
    rig.engine.reap(&mut rig.done);
    writer.write_all(&[3; 32]).unwrap();
    assert!(poll(&rig.engine.wake_fds(), Duration::from_secs(10)));
    assert_eq!(rig.engine.cancel_file(token), Cancel::Pending);
    rig.engine.kick();
    rig.wait(1);
    let result = Err(BackendError::Cancelled);
    assert_eq!(rig.done[0], Completion { token, result });
    assert_no_reader(&mut writer);
}

/// A sleeping engine is woken to let go of an image, and whoever waits for its end hears of it then.
#[test]
fn an_image_closes_when_its_backend_is_gone() {
    for kind in KINDS {
        let mut rigs = [Rig::new(kind), Rig::new(kind)];
        let (file, closed) = (
            image(None, 1 << 20),
            EventFd::new(libc::EFD_NONBLOCK).unwrap(),
        );
        let backend = open_image(&file);
        let teller = Arc::<Closed>::default();
        teller.notify(closed.try_clone().unwrap());
        backend.tell_closed(teller);
        for rig in &mut rigs {
            rig.write(&*backend, 0, &[1; 4096]);
            assert!(!poll(&rig.engine.wake_fds(), NOTHING));
        }
        drop(backend);
        for rig in &mut rigs {
            assert!(is_locked(&file) && closed.read().is_err(), "{kind:?}");
            assert!(poll(&rig.engine.wake_fds(), NOTHING), "not woken");
            rig.engine.reap(&mut rig.done);
            assert_eq!(count(&rig.engine.stats().registered_files), 0);
            assert!(!poll(&rig.engine.wake_fds(), NOTHING));
        }
        assert_eq!(closed.read().unwrap(), 1);
        assert!(!is_locked(&file), "{kind:?}");
    }
}

#[test]
fn an_image_stays_open_for_the_requests_in_flight() {
    let mut rig = Rig::new(EngineKind::IoUring);
    let slice = rig.ram.slice(0, 64).unwrap();
    let (reader, mut writer) = pipe().unwrap();
    let token = read_pipe(&mut rig, reader.into(), slice);
    rig.engine.kick();
    // It hears that the backend is gone.
    rig.engine.reap(&mut rig.done);
    assert_eq!((rig.engine.in_flight(), rig.done.len()), (1, 0));
    writer.write_all(&[3; 64]).unwrap();
    rig.wait(1);
    let result = Ok(());
    assert_eq!(rig.done[0], Completion { token, result });
    assert_eq!(bytes_of(&[slice]), [3; 64]);
    assert_no_reader(&mut writer);
}

#[test]
fn images_are_registered_while_they_are_used_and_their_places_are_used_again() {
    let mut rig = Rig::new(EngineKind::IoUring);
    let stats = rig.engine.stats();
    let mut expected = 0;
    for round in 0..3u8 {
        let files: Vec<_> = (0..20).map(|_| image(None, 1 << 20)).collect();
        let backends: Vec<_> = files.iter().map(open_image).collect();
        for (i, backend) in (0..).zip(&backends) {
            rig.write(&**backend, 512, &[round + i; 512]);
        }
        for (i, backend) in (0..).zip(&backends) {
            assert_eq!(rig.read(&**backend, 512, 512), [round + i; 512]);
        }
        let registered = count(&stats.registered_files);
        if registered == 0 {
            println!("skipped: this kernel does not let go of registered files at once");
        } else {
            expected = 20;
        }
        assert_eq!(registered, expected);
        drop(backends);
        rig.engine.reap(&mut rig.done);
        assert_eq!(count(&stats.registered_files), 0);
        assert!(!files.iter().any(is_locked));
    }
}

/// More images than a ring's table has places.
#[test]
fn images_without_a_place_go_by_their_descriptors() {
    let mut rig = Rig::new(EngineKind::IoUring);
    let file = image(None, 1 << 20);
    let mut config = file_config(file.path(), CacheMode::Writeback);
    config.read_only = true;
    // As many descriptors as may be open are too few on some hosts.
    let opened: Vec<_> = (0..1100).map_while(|_| open(&config).ok()).collect();
    if opened.len() < 1100 {
        println!("skipped: only {} files may be open", opened.len());
        return;
    }
    for backend in &opened {
        assert_eq!(rig.read(&**backend, 0, 512), [0; 512]);
    }
    assert!(count(&rig.engine.stats().registered_files) <= 1024);
    drop(opened);
    rig.engine.reap(&mut rig.done);
    assert!(!is_locked(&file));
}

#[test]
fn locked_memory_is_read_and_written_across_buffers() {
    let mut rig = Rig::new(Setup::LockedMemory);
    let file = image(None, 1 << 20);
    let backend = open_image(&file);
    let locked = count(&rig.engine.stats().registered_memory);
    assert!(locked == 4 << 20 || locked == 0, "{locked}");
    for (address, len) in [(0, 512), (4096, 8192), ((4 << 20) - 512, 512), (3, 1024)] {
        let slice = rig.ram.slice(address, len).unwrap();
        slice.copy_from(&vec![7; len]);
        let op = Op::Write { fua: true };
        assert_eq!(rig.run(&*backend, op, 512, len as u64, &[slice]), Ok(()));
        slice.zero();
        let result = rig.run(&*backend, Op::Read, 512, len as u64, &[slice]);
        assert_eq!((result, bytes_of(&[slice])), (Ok(()), vec![7; len]));
    }
}

/// Not even for requests that are copied, and on several images in turn.
#[test]
fn nothing_is_allocated_for_a_request() {
    let files = [(); 2].map(|()| image(None, 1 << 20));
    let open_direct =
        |file: &tempfile::NamedTempFile| match open(&file_config(file.path(), CacheMode::None)) {
            Ok(backend) => Some(backend),
            Err(OpenError::DirectUnsupported { .. }) => None,
            Err(error) => panic!("{error}"),
        };
    for setup in [Setup::Kind(EngineKind::IoUring), Setup::LockedMemory] {
        let backends = files.each_ref().map(open_direct);
        let [Some(one), Some(two)] = &backends else {
            println!("skipped: no O_DIRECT here");
            return;
        };
        let mut rig = Rig::new(setup);
        let slices = [0, 4098, 16384].map(|address| rig.ram.slice(address, 4096).unwrap());
        let mut batch = || {
            for (i, slice) in (0..).zip(&slices) {
                for backend in [one, two] {
                    for op in [Op::Read, WRITE] {
                        let (_, submitted) = rig.submit(&**backend, op, i * 4096, &[*slice]);
                        assert_eq!(submitted, Submitted::Pending);
                    }
                }
            }
            rig.engine.kick();
            let deadline = Instant::now() + Duration::from_secs(20);
            while rig.done.len() < 12 && Instant::now() < deadline {
                rig.engine.reap(&mut rig.done);
            }
            assert!(rig.done.iter().all(|done| done.result == Ok(())));
            assert_eq!(rig.done.drain(..).len(), 12);
        };
        batch();
        let before = counting::allocations();
        (0..20).for_each(|_| batch());
        assert_eq!(counting::allocations() - before, 0, "{setup:?}");
        assert_eq!(count(&rig.engine.stats().bounced), 21 * 4);
    }
}

#[test]
fn only_io_uring_locks_memory() {
    let mut rig = Rig::new(EngineKind::Threads);
    let error = rig.engine.register_memory().unwrap_err();
    assert!(matches!(error, LockError::NoRing), "{error}");
    assert!(error.to_string().contains("mem-lock=on"), "{error}");
}

/// A device said that it can be polled, but what the kernel answers counts.
#[test]
fn images_that_cannot_be_polled_are_interrupted_for() {
    for directory in [None, Some("/dev/shm")] {
        let (mut rig, file) = (Rig::new(EngineKind::IoUring), image(directory, 1 << 20));
        let backend = match open(&file_config(file.path(), CacheMode::None)) {
            Ok(backend) => backend,
            Err(OpenError::DirectUnsupported { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        drop(backend);
        let options = File::options().read(true).write(true).clone();
        let opened = options
            .clone()
            .custom_flags(libc::O_DIRECT)
            .open(file.path());
        let direct = DirectAlign {
            memory: 512,
            offset: 512,
        };
        let image = Owned(Image::pollable(opened.unwrap(), direct));
        let slices: Vec<_> = (0..64)
            .map(|i| rig.ram.slice(i * 4096, 4096).unwrap())
            .collect();
        for step in [Step::Write, Step::Read] {
            for (i, slice) in (0u8..).zip(&slices) {
                slice.copy_from(&[if step == Step::Write { i } else { 0xff }; 4096]);
                let request = Request {
                    op: Op::Read,
                    offset: u64::from(i) * 4096,
                    len: 4096,
                    data: &[*slice],
                    token: rig.token(),
                };
                let plan = Plan {
                    step,
                    stable: false,
                };
                let submitted = rig.engine.submit_file(&image, plan, &request);
                assert_eq!(submitted, Submitted::Pending);
            }
            rig.engine.kick();
            let deadline = Instant::now() + Duration::from_secs(20);
            while rig.engine.must_poll() && Instant::now() < deadline {
                rig.engine.reap(&mut rig.done);
            }
            assert!(!rig.engine.must_poll());
            rig.wait(slices.len());
            assert!(rig.done.drain(..).all(|done| done.result == Ok(())));
        }
        for (i, slice) in (0u8..).zip(&slices) {
            assert_eq!(bytes_of(&[*slice]), [i; 4096]);
        }
        drop(image);
        rig.engine.reap(&mut rig.done);
        assert!(!is_locked(&file));
    }
}

#[test]
fn both_rings_let_go_of_an_image() {
    let mut rig = Rig::new(EngineKind::IoUring);
    let slice = rig.ram.slice(0, 512).unwrap();
    let (reader, mut writer) = pipe().unwrap();
    let direct = DirectAlign {
        memory: 512,
        offset: 512,
    };
    let file = File::from(OwnedFd::from(reader));
    let token = read_image(&mut rig, Image::pollable(file, direct), slice);
    assert!(rig.engine.must_poll());
    rig.engine.kick();
    writer.write_all(&[3; 512]).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while rig.engine.must_poll() && Instant::now() < deadline {
        rig.engine.reap(&mut rig.done);
    }
    rig.wait(1);
    let result = Ok(());
    assert_eq!(rig.done[0], Completion { token, result });
    assert_eq!(bytes_of(&[slice]), [3; 512]);
    assert_no_reader(&mut writer);
}

#[test]
fn short_reads_go_on() {
    let mut rig = Rig::new(EngineKind::IoUring);
    let slice = rig.ram.slice(0, 300).unwrap();
    let (reader, mut writer) = pipe().unwrap();
    let token = read_pipe(&mut rig, reader.into(), slice);
    rig.engine.kick();
    for part in [[1u8; 100], [2; 100], [3; 100]] {
        assert!(rig.done.is_empty());
        writer.write_all(&part).unwrap();
        assert!(poll(&rig.engine.wake_fds(), Duration::from_secs(10)));
        rig.engine.reap(&mut rig.done);
    }
    rig.wait(1);
    let result = Ok(());
    assert_eq!(rig.done, [Completion { token, result }]);
    let expected = [[1u8; 100], [2; 100], [3; 100]].concat();
    assert_eq!(bytes_of(&[slice]), expected);
}

#[test]
fn the_end_of_a_file_is_an_error() {
    let mut rig = Rig::new(EngineKind::IoUring);
    let slice = rig.ram.slice(0, 300).unwrap();
    let (reader, mut writer) = pipe().unwrap();
    read_pipe(&mut rig, reader.into(), slice);
    rig.engine.kick();
    writer.write_all(&[1; 100]).unwrap();
    drop(writer);
    rig.wait(1);
    assert_eq!(rig.done[0].result, Err(BackendError::OutOfRange));
}

#[test]
fn dropping_an_engine_stops_waiting_reads() {
    let mut rig = Rig::new(EngineKind::IoUring);
    let (ram, slice) = (rig.ram.clone(), rig.ram.slice(0, 64).unwrap());
    let (reader, mut writer) = pipe().unwrap();
    let second = reader.try_clone().unwrap();
    read_pipe(&mut rig, reader.into(), slice);
    rig.engine.kick();
    read_pipe(&mut rig, second.into(), slice);
    let start = Instant::now();
    drop(rig);
    assert!(start.elapsed() < Engine::DROP_LIMIT, "waited to the limit");
    assert_no_reader(&mut writer);
    assert_eq!(ram.read::<u32>(0).unwrap(), 0);
}

#[test]
fn dropping_an_engine_ends_its_requests() {
    for kind in KINDS {
        let (mut rig, file) = (Rig::new(kind), image(None, 8 << 20));
        let backend = open_image(&file);
        let (ram, slice) = (rig.ram.clone(), rig.ram.slice(0, 1 << 20).unwrap());
        for i in 0..300 {
            rig.submit(&*backend, Op::Read, (i % 8) << 20, &[slice]);
        }
        rig.engine.kick();
        for i in 0..100 {
            rig.submit(&*backend, Op::Read, (i % 8) << 20, &[slice]);
        }
        drop(rig);
        slice.copy_from(&[9; 1 << 20]);
        // Only this test and the engine had the file.
        drop(backend);
        open_image(&file);
        assert!(bytes_of(&[slice]).iter().all(|&byte| byte == 9));
        drop(ram);
    }
}

#[test]
fn a_test_holds_releases_and_fails() {
    for kind in KINDS {
        let mut rig = Rig::new(kind);
        let (backend, control) = TestBackend::new(4096, 512);
        control.set_mode(Mode::Hold);
        control.poke(0, &[5; 512]);
        let slice = rig.ram.slice(0, 512).unwrap();
        let tokens: Vec<_> = (0..5)
            .map(|_| rig.submit(&*backend, Op::Read, 0, &[slice]).0)
            .collect();
        control.wait_held(5).unwrap();
        assert_eq!((rig.engine.in_flight(), control.held().len()), (5, 5));
        assert_eq!(bytes_of(&[slice]), [0; 512], "touched while held");

        assert_eq!(
            backend.cancel(&mut rig.engine, tokens[0]),
            Cancel::Cancelled
        );
        assert!(!control.release(tokens[0]), "released after its cancel");
        assert_eq!(control.take_cancelled(), [tokens[0]]);
        assert!(control.fail(tokens[2], BackendError::NoSpace));
        assert_eq!(bytes_of(&[slice]), [0; 512], "touched by a failure");
        assert!(control.release_one());
        assert_eq!(bytes_of(&[slice]), [5; 512]);
        assert_eq!(backend.cancel(&mut rig.engine, tokens[1]), Cancel::Pending);
        control.fail_next(1, BackendError::Io(5));
        assert_eq!(control.release_all(), 2);
        rig.wait(4);
        let results: Vec<_> = rig
            .done
            .iter()
            .map(|done| (done.token, done.result))
            .collect();
        let expected = [
            (tokens[2], Err(BackendError::NoSpace)),
            (tokens[1], Ok(())),
            (tokens[3], Err(BackendError::Io(5))),
            (tokens[4], Ok(())),
        ];
        assert_eq!(results, expected);
        assert_eq!(rig.engine.in_flight(), 0);
    }
}

#[test]
fn held_requests_outlive_their_engine() {
    let mut rig = Rig::new(EngineKind::Auto);
    let (backend, control) = TestBackend::new(4096, 512);
    control.set_mode(Mode::Hold);
    let slice = rig.ram.slice(0, 512).unwrap();
    rig.submit(&*backend, Op::Write { fua: false }, 0, &[slice]);
    drop(rig);
    assert!(control.release_one());
}

/// Makes `io_uring_setup` fail for this thread, as container runtimes do.
fn forbid_io_uring() {
    let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let code = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        code(0x20, 0, 0, 0),
        code(0x15, 0, 1, setup),
        code(0x06, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        code(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: numbers, and a filter that lives until the call returns.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program),
            0
        );
    }
}

#[test]
fn threads_stand_in_where_io_uring_is_forbidden() {
    let test = || {
        forbid_io_uring();
        let mut rig = Rig::new(EngineKind::Auto);
        assert_eq!(rig.engine.kind(), EngineKind::Threads);
        let ram = rig.ram.clone();
        let error = Engine::with_kind(ram, EngineKind::IoUring).err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        let file = image(None, 4096);
        let backend = open_image(&file);
        rig.write(&*backend, 512, &[3; 512]);
        assert_eq!(rig.read(&*backend, 512, 512), [3; 512]);
    };
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn read_only_images_flush() {
    let (mut rig, file) = (Rig::new(EngineKind::Auto), image(None, 4096));
    let mut config: BackendConfig = file_config(file.path(), CacheMode::Writethrough);
    config.read_only = true;
    let backend = open(&config).unwrap();
    assert_eq!(rig.run(&*backend, Op::Flush, 0, 0, &[]), Ok(()));
}
