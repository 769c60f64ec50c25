use std::fs::File;
use std::io::{self, PipeWriter, Write, pipe};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::*;
use crate::ram::GuestSlice;
use crate::storage::conformance::{KINDS, Rig, bytes_of, file_config, image, poll};
use crate::storage::file::{Image, Owned};
use crate::storage::io::Step;
use crate::storage::testing::{Mode, TestBackend};
use crate::storage::{Backend, BackendConfig, BackendError, CacheMode, Op, open};

const NOTHING: Duration = Duration::ZERO;

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// A read from a pipe, which lasts until the other end writes or closes. Only the request keeps the
/// pipe open.
fn read_pipe(rig: &mut Rig, file: OwnedFd, slice: GuestSlice) -> Token {
    let token = rig.token();
    let image = Owned(Image::unchecked(File::from(file), None));
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
            let (_, submitted) = rig.submit(&*backend, Op::Read, i * 512, &[slice]);
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
                let (_, submitted) = rig.submit(&*backend, Op::Read, 0, &[slice]);
                assert_eq!(submitted, Submitted::Pending, "round {round}: {i}");
            }
            let (_, submitted) = rig.submit(&*backend, Op::Read, 0, &[slice]);
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
        let (gone, _) = rig.submit(&*backend, Op::Read, 0, &[a]);
        let (kept, _) = rig.submit(&*backend, Op::Read, 0, &[b]);
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
        assert_eq!(
            (bytes_of(&[a]), bytes_of(&[b])),
            (vec![7; 512], vec![0; 512])
        );
        // Done long ago: there is nothing left to stop.
        assert_eq!(backend.cancel(&mut rig.engine, kept), Cancel::Cancelled);
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
