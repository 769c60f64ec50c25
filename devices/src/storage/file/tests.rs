use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use super::*;
use crate::storage::conformance::{KINDS, Rig, bytes_of, file_config, image};
use crate::storage::{BackendConfig, BackendError, BackendKind, EngineKind, open};

fn config(path: &Path) -> BackendConfig {
    file_config(path, CacheMode::Writeback)
}

fn error(config: &BackendConfig) -> String {
    let BackendKind::File { path, .. } = &config.kind else {
        panic!("not a file");
    };
    let error = open(config).err().expect("must fail").to_string();
    assert!(error.contains(&format!("'{}'", path.display())), "{error}");
    error
}

#[test]
fn wrong_images_are_explained() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let sized = |name: &str, size| {
        fs::File::create(path(name)).unwrap().set_len(size).unwrap();
        config(&path(name))
    };
    let check = |config: &BackendConfig, part: &str| {
        let error = error(config);
        assert!(error.contains(part), "{error}");
    };
    check(&config(&path("missing")), "does not exist: create it first");
    check(&config(directory.path()), "is a directory");
    check(&config(Path::new("/dev/null")), "is a character device");
    check(&sized("empty", 0), "is empty");
    check(
        &sized("odd", 1000),
        "1000 bytes, which is not a multiple of the block size 512",
    );
    let mut large_blocks = sized("half", 4096 + 512);
    assert!(open(&large_blocks).is_ok());
    large_blocks.block_size = 4096;
    check(&large_blocks, "or use a block size of 512");
    let below_file = path("odd").join("x");
    check(&config(&below_file), "cannot be opened: Not a directory");

    let fifo = std::ffi::CString::new(path("fifo").to_str().unwrap()).unwrap();
    // SAFETY: a string that ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    check(&config(&path("fifo")), "is a FIFO");
    let _listener = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
    check(&config(&path("socket")), "is a socket");
}

#[test]
fn missing_permission_names_the_mode() {
    let file = image(None, 4096);
    fs::set_permissions(file.path(), Permissions::from_mode(0o400)).unwrap();
    // SAFETY: no arguments. File permissions do not bind root.
    if unsafe { libc::geteuid() } != 0 {
        let error = error(&config(file.path()));
        assert!(error.contains("for reading and writing"), "{error}");
    }
    for (read_only, mode) in [(true, "for reading:"), (false, "for reading and writing:")] {
        let source = io::Error::from_raw_os_error(libc::EACCES);
        let error = open::explain(file.path(), CacheMode::None, read_only, source).to_string();
        assert!(error.contains(mode), "{error}");
        assert_eq!(error.contains("open it read-only"), !read_only, "{error}");
    }
}

#[test]
fn other_refusals_are_explained() {
    let path = PathBuf::from("/x/disk.img");
    for (errno, part) in [
        (libc::EROFS, "read-only file system"),
        (libc::EBUSY, "in use by another process"),
        (libc::EINVAL, "cannot do cache=none (O_DIRECT)"),
        (libc::EMFILE, "cannot be opened: Too many open files"),
    ] {
        let source = io::Error::from_raw_os_error(errno);
        let error = open::explain(&path, CacheMode::None, false, source).to_string();
        assert!(
            error.contains(part) && error.contains("'/x/disk.img'"),
            "{error}"
        );
    }
}

#[test]
fn a_second_writer_is_refused() {
    let file = image(None, 4096);
    let writer = config(file.path());
    let mut reader = writer.clone();
    reader.read_only = true;
    let refused = |config: &BackendConfig| {
        let error = error(config);
        assert!(
            error.contains("is in use by another process (or another namespace"),
            "{error}"
        );
    };

    let first = open(&writer).unwrap();
    refused(&writer);
    refused(&reader);
    drop(first);
    let first = open(&reader).unwrap();
    let second = open(&reader).unwrap();
    refused(&writer);
    drop(first);
    refused(&writer);
    drop(second);
    drop(open(&writer).unwrap());

    // A hard link is the same file.
    let link = file.path().with_extension("link");
    fs::hard_link(file.path(), &link).unwrap();
    let first = open(&writer).unwrap();
    refused(&config(&link));
    drop(first);
    fs::remove_file(&link).unwrap();
}

#[test]
fn an_image_that_is_let_go_of_soon_is_waited_for() {
    let file = image(None, 4096);
    let mut held = Some(open(&config(file.path())).unwrap());
    let mut pauses = 0;
    // Whoever holds it lets go of it when it was asked for once.
    let pause = || {
        pauses += 1;
        drop(held.take());
    };
    open::lock_soon(file.as_file(), libc::F_WRLCK, pause).unwrap();
    assert_eq!(pauses, 1);
    // Locked by the test now, for longer than anybody waits.
    let start = std::time::Instant::now();
    assert!(error(&config(file.path())).contains("is in use"));
    assert!(start.elapsed() >= open::LOCK_LIMIT);
}

#[test]
fn a_change_of_size_is_noticed() {
    for kind in KINDS {
        let (mut rig, file) = (Rig::new(kind), image(None, 65536));
        let backend = open(&config(file.path())).unwrap();
        let slice = rig.ram.slice(0, 8192).unwrap();
        assert_eq!(backend.refresh_size(), None);

        file.as_file().set_len(20_000).unwrap();
        let outside = Err(BackendError::OutOfRange);
        for offset in [16384, 20480, 57344] {
            let result = rig.run(&*backend, Op::Read, offset, 8192, &[slice]);
            assert_eq!(result, outside, "{offset}");
        }
        assert_eq!(rig.run(&*backend, Op::Read, 8192, 8192, &[slice]), Ok(()));
        assert_eq!(backend.size(), 65536);
        assert_eq!(backend.refresh_size(), Some(19_968));
        assert_eq!((backend.size(), backend.refresh_size()), (19_968, None));
        let submitted = rig.submit(&*backend, Op::Read, 16384, &[slice]).1;
        assert_eq!(submitted, Submitted::Done(outside));

        file.as_file().set_len(1 << 20).unwrap();
        assert_eq!(backend.refresh_size(), Some(1 << 20));
        let result = rig.run(&*backend, Op::Read, (1 << 20) - 8192, 8192, &[slice]);
        assert_eq!(result, Ok(()));
    }
}

#[test]
fn direct_reads_of_a_truncated_image_fail() {
    for kind in KINDS {
        let (mut rig, file) = (Rig::new(kind), image(None, 65536));
        let backend = match open(&file_config(file.path(), CacheMode::None)) {
            Ok(backend) => backend,
            Err(OpenError::DirectUnsupported { .. }) => continue,
            Err(error) => panic!("{error}"),
        };
        file.as_file().set_len(20_000).unwrap();
        for (address, offset) in [(0, 16384), (3, 16384), (0, 20480), (3, 32768)] {
            let slice = rig.ram.slice(address, 8192).unwrap();
            let result = rig.run(&*backend, Op::Read, offset, 8192, &[slice]);
            assert_eq!(result, Err(BackendError::OutOfRange), "{offset}");
        }
    }
}

#[test]
fn discarded_blocks_go_back() {
    for directory in [None, Some("/dev/shm")] {
        let (mut rig, file) = (Rig::new(EngineKind::Auto), image(directory, 1 << 20));
        let backend = open(&config(file.path())).unwrap();
        let blocks = || file.as_file().metadata().unwrap().blocks();
        for op in [
            Op::Discard,
            Op::WriteZeroes {
                unmap: true,
                fua: true,
            },
        ] {
            rig.write(&*backend, 0, &vec![1; 1 << 20]);
            assert_eq!(rig.run(&*backend, Op::Flush, 0, 0, &[]), Ok(()));
            let full = blocks();
            if backend.discard_zeroes() {
                assert_eq!(rig.run(&*backend, op, 0, 1 << 20, &[]), Ok(()));
                assert!(blocks() < full / 8, "{op:?}: {} of {full}", blocks());
                assert_eq!(rig.read(&*backend, 0, 4096), [0; 4096]);
            }
        }
    }
}

#[test]
fn cache_modes_decide_what_is_stable() {
    let write = |fua| Op::Write { fua };
    let zero = |unmap, fua| Op::WriteZeroes { unmap, fua };
    for (cache, eager, lazy) in [
        (CacheMode::Writeback, false, false),
        (CacheMode::None, false, false),
        (CacheMode::Writethrough, true, false),
        (CacheMode::Directsync, true, false),
        (CacheMode::Unsafe, false, true),
    ] {
        let backend = FileBackend {
            image: Owned(Image::unchecked(fs::File::open("/dev/null").unwrap(), None)),
            path: PathBuf::new(),
            cache,
            read_only: false,
            block_size: 512,
            punches_holes: true,
            in_memory: false,
            medium: Medium::Device { number: 0 },
        };
        assert_eq!(backend.plan(Op::Read), Some((Step::Read, false)));
        assert_eq!(backend.plan(write(false)), Some((Step::Write, eager)));
        assert_eq!(backend.plan(write(true)), Some((Step::Write, !lazy)));
        assert_eq!(
            backend.plan(zero(true, false)),
            Some((Step::PunchHole, eager))
        );
        assert_eq!(
            backend.plan(zero(false, true)),
            Some((Step::ZeroRange, !lazy))
        );
        assert_eq!(backend.plan(Op::Discard), Some((Step::PunchHole, eager)));
        assert_eq!(backend.plan(Op::Flush).is_none(), lazy);
        let keeps = FileBackend {
            punches_holes: false,
            ..backend
        };
        assert_eq!(keeps.plan(Op::Discard), None);
    }
}

#[test]
fn a_medium_is_a_file_by_any_name_and_not_the_next_one_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let make = |name: &str| fs::File::create(path(name)).unwrap().set_len(4096).unwrap();
    let medium = |config: &BackendConfig| open(config).unwrap().medium().unwrap();
    make("a");
    make("b");
    fs::hard_link(path("a"), path("link")).unwrap();
    let first = medium(&config(&path("a")));
    let read_only = BackendConfig {
        read_only: true,
        ..config(&path("link"))
    };
    assert_eq!(medium(&read_only), first);
    assert_ne!(medium(&config(&path("b"))), first);
    let knows_age = matches!(
        first,
        Medium::File {
            created: Some(_),
            ..
        }
    );
    assert!(knows_age, "{first:?}: the inode alone can be used again");
    for name in ["a", "link"] {
        fs::remove_file(path(name)).unwrap();
    }
    make("a");
    assert_ne!(medium(&config(&path("a"))), first);
}

#[test]
fn an_unlinked_image_stays_usable() {
    let (mut rig, file) = (Rig::new(EngineKind::Auto), image(None, 4096));
    let backend = open(&config(file.path())).unwrap();
    drop(file);
    rig.write(&*backend, 0, &[2; 4096]);
    let slice = rig.ram.slice(8192, 4096).unwrap();
    assert_eq!(rig.run(&*backend, Op::Read, 0, 4096, &[slice]), Ok(()));
    assert_eq!(bytes_of(&[slice]), [2; 4096]);
}

#[test]
fn a_device_with_queues_for_it_is_polled() {
    let directory = tempfile::tempdir().unwrap();
    let device = |name: &str, io_poll: &str| {
        let device = directory.path().join(name);
        fs::create_dir_all(device.join("queue")).unwrap();
        fs::write(device.join("queue/io_poll"), io_poll).unwrap();
        device
    };
    let polled = device("nvme0n1", "1\n");
    let partition = polled.join("nvme0n1p1");
    fs::create_dir(&partition).unwrap();
    for (device, expected) in [
        (polled, Completions::Pollable),
        (partition, Completions::Pollable),
        (device("sda", "0\n"), Completions::Interrupt),
        (device("odd", "on\n"), Completions::Interrupt),
        (directory.path().join("none"), Completions::Interrupt),
    ] {
        assert_eq!(open::completions_of(&device), expected, "{device:?}");
    }
}

#[test]
fn only_what_is_not_aligned_counts_as_copied() {
    for kind in KINDS {
        let (mut rig, file) = (Rig::new(kind), image(None, 1 << 20));
        let backend = match open(&file_config(file.path(), CacheMode::None)) {
            Ok(backend) => backend,
            Err(OpenError::DirectUnsupported { .. }) => return,
            Err(error) => panic!("{error}"),
        };
        let bounced = |rig: &Rig| rig.engine.stats().bounced.load(Ordering::Relaxed);
        let slice = |rig: &Rig, at, len| rig.ram.slice(at, len).unwrap();
        let whole = [slice(&rig, 0, 4096), slice(&rig, 12288, 4096)];
        let parts = [slice(&rig, 1, 4096), slice(&rig, 12289, 4096)];
        for op in [Op::Read, Op::Write { fua: false }, Op::Write { fua: true }] {
            let before = bounced(&rig);
            assert_eq!(rig.run(&*backend, op, 0, 8192, &whole), Ok(()));
            assert_eq!(bounced(&rig), before, "{kind:?} {op:?}");
            assert_eq!(rig.run(&*backend, op, 0, 8192, &parts), Ok(()));
            assert_eq!(bounced(&rig), before + 1, "{kind:?} {op:?}");
        }
        assert_eq!(rig.run(&*backend, Op::Flush, 0, 0, &[]), Ok(()));
        assert_eq!(bounced(&rig), 3);
    }
}

/// PRPs are aligned to 4 bytes, which is all that NVMe devices of the host ask for, too.
#[test]
fn places_that_a_device_can_reach_fit() {
    let fits = |memory, vectors: &[(usize, usize)]| {
        let align = DirectAlign {
            memory,
            offset: 512,
        };
        let vector = |&(at, iov_len): &(usize, usize)| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(at),
            iov_len,
        };
        align.fits(&vectors.iter().map(vector).collect::<Vec<_>>())
    };
    for (memory, vectors, expected) in [
        (4, &[(0x1004, 512)][..], true),
        (4, &[(0x1004, 0xffc + 4)], true),
        (4, &[(0x1200, 3584), (0x4000, 512)], true),
        (4, &[(0x1002, 512)], false),
        // A block that is in two places: kernels take whole blocks in each.
        (4, &[(0x1f04, 252), (0x4000, 260)], false),
        (512, &[(0x1200, 512)], true),
        (512, &[(0x1004, 512)], false),
        (4096, &[(0x1200, 512)], false),
        (4096, &[], true),
    ] {
        assert_eq!(fits(memory, vectors), expected, "{memory} {vectors:x?}");
    }
}

/// The node of a block device is on the tmpfs of `/dev`; its data is not, and waits for the device.
#[test]
fn devices_are_not_in_memory_though_their_nodes_are() {
    let memory = std::path::Path::new("/dev/shm");
    let file = tempfile::tempfile_in(memory).unwrap();
    assert!(open::in_memory(&file, &file.metadata().unwrap()));
    let node = fs::File::open("/dev/null").unwrap();
    assert!(!open::in_memory(&node, &node.metadata().unwrap()));
}
