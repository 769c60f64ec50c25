use std::fmt;
use std::fs::File;
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::ram::{GuestRam, GuestSlice};
use crate::storage::file::DirectAlign;
use crate::storage::{Op, Token};

fn ram() -> GuestRam {
    GuestRam::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
}

/// A request with its image.
struct Begun {
    io: Io,
    image: Arc<Image>,
}

impl Begun {
    fn advance(&mut self, result: i32) -> Next {
        self.io.advance(&self.image, result)
    }
}

impl Deref for Begun {
    type Target = Io;

    fn deref(&self) -> &Io {
        &self.io
    }
}

fn begin(step: Step, stable: bool, direct: bool, len: u64, data: &[GuestSlice]) -> Begun {
    let align = DirectAlign {
        memory: 512,
        offset: 512,
    };
    let file = File::open("/dev/null").unwrap();
    let image = Image::unchecked(file, direct.then_some(align));
    let plan = Plan { step, stable };
    let request = Request {
        op: Op::Read,
        offset: 4096,
        len,
        data,
        token: Token(0),
    };
    let mut io = Io::default();
    io.start(&image, plan, &request, &mut Bounces::default());
    Begun { io, image }
}

/// Offset of the next transfer, and the places and lengths of its vectors.
fn next(io: &Io) -> (u64, Vec<(usize, usize)>) {
    let place = |vector: &libc::iovec| (vector.iov_base.addr(), vector.iov_len);
    (io.offset, io.current().iter().map(place).collect())
}

#[test]
fn short_and_interrupted_transfers_go_on() {
    let ram = ram();
    let data = [ram.slice(0, 300).unwrap(), ram.slice(1000, 724).unwrap()];
    let [a, b] = data.map(|slice| slice.as_ptr().addr());
    for step in [Step::Read, Step::Write] {
        let mut io = begin(step, true, false, 1024, &data);
        assert_eq!(next(&io), (4096, vec![(a, 300), (b, 724)]));
        assert_eq!(io.advance(-libc::EINTR), Next::Again);
        assert_eq!(io.advance(100), Next::Again);
        assert_eq!(next(&io), (4196, vec![(a + 100, 200), (b, 724)]));
        assert_eq!(io.advance(-libc::EAGAIN), Next::Again);
        assert_eq!(io.advance(201), Next::Again);
        assert_eq!(next(&io), (4397, vec![(b + 1, 723)]));
    }
}

#[test]
fn errors_end_a_request() {
    let ram = ram();
    let data = [ram.slice(0, 1024).unwrap()];
    let after_part = |step, result| {
        let mut io = begin(step, false, false, 1024, &data);
        assert_eq!(io.advance(512), Next::Again);
        io.advance(result)
    };
    let done = |error| Next::Done(Err(error));
    assert_eq!(after_part(Step::Read, 0), done(BackendError::OutOfRange));
    assert_eq!(
        after_part(Step::Write, 0),
        done(BackendError::Io(libc::EIO))
    );
    let table = [
        (libc::ENOSPC, BackendError::NoSpace),
        (libc::EDQUOT, BackendError::NoSpace),
        (libc::EFBIG, BackendError::NoSpace),
        (libc::EROFS, BackendError::ReadOnly),
        (libc::EPERM, BackendError::ReadOnly),
        (libc::ECANCELED, BackendError::Cancelled),
        (libc::EIO, BackendError::Io(libc::EIO)),
        (i32::MAX, BackendError::Io(i32::MAX)),
    ];
    for (errno, error) in table {
        assert_eq!(after_part(Step::Write, -errno), done(error));
    }
    assert_eq!(
        after_part(Step::Read, i32::MIN),
        done(BackendError::Io(i32::MAX))
    );
}

/// Collects the messages that are logged.
#[derive(Default)]
struct Messages(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Messages {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut |_: &tracing::field::Field, value: &dyn fmt::Debug| {
            self.0.lock().unwrap().push(format!("{value:?}"));
        });
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn a_full_host_is_told_with_the_image() {
    let messages = Messages::default();
    let logged = messages.0.clone();
    tracing::subscriber::with_default(messages, || {
        let data = ram().slice(0, 512).unwrap();
        let mut io = begin(Step::Write, false, false, 512, &[data]);
        let failed = Next::Done(Err(BackendError::NoSpace));
        assert_eq!(io.advance(-libc::ENOSPC), failed);
        io.advance(-libc::ECANCELED);
    });
    assert_eq!(
        *logged.lock().unwrap(),
        ["image 'test.img': Write at byte 4096 failed: No space left on device (os error 28)"]
    );
}

#[test]
fn interruptions_have_an_end() {
    let mut io = begin(Step::Sync, false, false, 0, &[]);
    for _ in 0..MAX_RETRIES {
        assert_eq!(io.advance(-libc::EAGAIN), Next::Again);
    }
    let error = BackendError::Io(libc::EAGAIN);
    assert_eq!(io.advance(-libc::EAGAIN), Next::Done(Err(error)));
}

#[test]
fn zeroes_are_written_where_nothing_else_works() {
    let len = 3 << 20;
    let mut io = begin(Step::PunchHole, true, false, len, &[]);
    assert_eq!(io.advance(-libc::EOPNOTSUPP), Next::Again);
    assert_eq!(io.step, Step::ZeroRange);
    assert_eq!(io.advance(-libc::EOPNOTSUPP), Next::Again);
    let mut written = 0;
    while io.step == Step::WriteZeroes {
        let (offset, vectors) = next(&io);
        assert_eq!(offset, 4096 + written);
        let most: usize = vectors.iter().map(|(_, len)| len).sum();
        assert!(most <= ZERO_BYTES * ZERO_REPEAT);
        let inside =
            |&(at, len): &(usize, usize)| at == ZEROES.0.as_ptr().addr() && len <= ZERO_BYTES;
        assert!(vectors.iter().all(inside));
        // Every second write is short.
        let count = if written % 1024 == 0 {
            most - 512
        } else {
            most
        };
        assert_eq!(io.advance(i32::try_from(count).unwrap()), Next::Again);
        written += count as u64;
    }
    assert_eq!((written, io.step), (len, Step::Sync));
    assert_eq!(io.advance(0), Next::Done(Ok(())));
}

#[test]
fn only_changes_without_dsync_are_synced_behind() {
    let ram = ram();
    let data = [ram.slice(0, 512).unwrap()];
    for (step, stable, result, synced) in [
        (Step::Read, false, 512, false),
        (Step::Write, false, 512, false),
        (Step::Write, true, 512, false),
        (Step::PunchHole, false, 0, false),
        (Step::PunchHole, true, 0, true),
        (Step::ZeroRange, true, 0, true),
    ] {
        let mut io = begin(step, stable, false, 512, &data);
        let dsync = stable && step == Step::Write;
        assert_eq!(io.write_flags() == libc::RWF_DSYNC, dsync);
        let next = io.advance(result);
        assert_eq!(next == Next::Again, synced, "{step:?} {stable}");
        assert_eq!(io.step == Step::Sync, synced);
    }
}

#[test]
fn only_what_is_not_aligned_is_copied() {
    let ram = ram();
    let slice = |at, len| ram.slice(at, len).unwrap();
    let table = [
        (vec![slice(0, 4096)], false),
        (vec![slice(512, 512), slice(4096, 1024)], false),
        (vec![slice(0, 0), slice(512, 512)], false),
        (vec![slice(4, 512)], true),
        (vec![slice(0, 500), slice(512, 12)], true),
        (vec![slice(0, 511), slice(511, 1)], true),
    ];
    for (data, copied) in table {
        let len = data.iter().map(|slice| slice.len() as u64).sum();
        for step in [Step::Read, Step::Write] {
            let io = begin(step, false, true, len, &data);
            assert_eq!(io.bounce.is_some(), copied, "{data:?}");
            let io = begin(step, false, false, len, &data);
            assert!(io.bounce.is_none());
        }
    }
}

#[test]
fn a_bounce_buffer_is_small_and_goes_on() {
    let ram = ram();
    let len = 600 << 10;
    let slice = ram.slice(4, len).unwrap();
    slice.copy_from(&vec![6; len]);
    let mut io = begin(Step::Write, false, true, len as u64, &[slice]);
    let (mut transfers, mut written) = (0, 0);
    loop {
        let (offset, vectors) = next(&io);
        let [(at, count)] = vectors[..] else {
            panic!("{vectors:?}");
        };
        assert_eq!(offset, 4096 + written as u64);
        assert!(at.is_multiple_of(512) && count <= 256 << 10);
        (transfers, written) = (transfers + 1, written + count);
        match io.advance(i32::try_from(count).unwrap()) {
            Next::Again => {}
            Next::Done(result) => break assert_eq!(result, Ok(())),
        }
    }
    assert_eq!((transfers, written), (3, len));
}

#[test]
fn a_direct_read_across_the_end_is_an_error() {
    let ram = ram();
    let slice = ram.slice(0, 4096).unwrap();
    let mut io = begin(Step::Read, false, true, 4096, &[slice]);
    assert_eq!(io.advance(1024), Next::Again);
    let error = BackendError::OutOfRange;
    assert_eq!(io.advance(100), Next::Done(Err(error)));
}
