//! One file request as the system calls that it takes, one after the other: what to call next, and
//! what its result means. Both engines run this.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::AtomicU64;

use io_uring::{opcode, squeue, types};

use super::engine::FixedMemory;
use super::file::Image;
use super::{BackendError, Request};

mod bounce;

use bounce::Bounce;
pub(super) use bounce::Bounces;

/// Vectors that one system call takes (UIO_MAXIOV).
const MAX_VECTORS: usize = 1024;

/// Results of EINTR and EAGAIN in a row before they count as errors.
const MAX_RETRIES: u32 = 1000;

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// Zeroes to write where the file system cannot make them itself. Atomic, though never written, so
/// that they take no room in the binary.
#[repr(align(4096))]
struct Zeroes([AtomicU64; ZERO_BYTES / 8]);

const ZERO_BYTES: usize = 64 << 10;

static ZEROES: Zeroes = Zeroes([const { AtomicU64::new(0) }; ZERO_BYTES / 8]);

/// Times that the zeroes go into one write.
const ZERO_REPEAT: usize = 16;

/// A kind of system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Step {
    /// Data from the file.
    #[default]
    Read,
    /// Data to the file.
    Write,
    /// Zeroes to the file, from a buffer.
    WriteZeroes,
    /// Zeroes without a buffer, deallocating.
    PunchHole,
    /// Zeroes without a buffer, keeping the allocation.
    ZeroRange,
    /// fdatasync.
    Sync,
}

/// What a backend asks for a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// The first step.
    pub step: Step,
    /// Whether its effect has to be on stable media before it is complete.
    pub stable: bool,
}

/// How a ring names a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// By its index in the ring's table of registered files.
    Registered(u32),
    /// By its file descriptor.
    Descriptor(RawFd),
}

/// What to do after a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Do the next one.
    Again,
    /// The request is complete.
    Done(Result<(), BackendError>),
}

/// A request in progress. Vectors keep their memory for the next request.
///
/// Whoever runs it passes the same image from [`Io::start`] to its end, and keeps it open.
#[derive(Debug, Default)]
pub(super) struct Io {
    step: Step,
    stable: bool,
    /// Of what is left to do.
    offset: u64,
    left: u64,
    /// Guest memory (or zeroes) that is left, from `first` on.
    vectors: Vec<libc::iovec>,
    first: usize,
    /// Stands between the file and the vectors if those are not aligned for O_DIRECT.
    bounce: Option<Bounce>,
    retries: u32,
}

// SAFETY: the vectors point into guest memory or `ZEROES`, which every thread may use; whoever runs
// the request keeps guest memory mapped (`Engine`, or the pool's thread).
unsafe impl Send for Io {}

impl Io {
    /// Begins a request whose range was checked.
    pub fn start(
        &mut self,
        image: &Image,
        plan: Plan,
        request: &Request<'_>,
        bounces: &mut Bounces,
    ) {
        self.step = plan.step;
        self.stable = plan.stable;
        self.offset = request.offset;
        self.left = request.len;
        self.first = 0;
        self.retries = 0;
        self.vectors.clear();
        let slices = request.data.iter().filter(|slice| !slice.is_empty());
        self.vectors.extend(slices.map(|slice| libc::iovec {
            iov_base: slice.as_ptr().cast(),
            iov_len: slice.len(),
        }));
        let moves_data = matches!(self.step, Step::Read | Step::Write);
        self.bounce = match image.direct() {
            Some(align) if moves_data && !align.fits(&self.vectors) => {
                Some(bounces.take(self.left, align))
            }
            _ => None,
        };
        self.load_bounce();
    }

    /// Gives the bounce buffer back.
    pub fn clear(&mut self, bounces: &mut Bounces) {
        if let Some(bounce) = self.bounce.take() {
            bounces.give_back(bounce);
        }
        self.vectors.clear();
    }

    /// Whether the next step can go to a ring that polls: it moves data, and asks for nothing that
    /// only an interrupt tells of.
    pub fn can_be_polled(&self) -> bool {
        match self.step {
            Step::Read => true,
            Step::Write => !self.stable,
            Step::WriteZeroes | Step::PunchHole | Step::ZeroRange | Step::Sync => false,
        }
    }

    /// What the result of the last step (`-errno` for errors) means for the request.
    pub fn advance(&mut self, image: &Image, result: i32) -> Next {
        let Ok(count) = u32::try_from(result) else {
            return self.failed(image, result.saturating_neg());
        };
        self.retries = 0;
        match self.step {
            Step::Sync => Next::Done(Ok(())),
            Step::PunchHole | Step::ZeroRange => self.finish(),
            Step::Read | Step::Write | Step::WriteZeroes => self.transferred(image, count.into()),
        }
    }

    fn failed(&mut self, image: &Image, errno: i32) -> Next {
        match (errno, self.step) {
            (libc::EINTR | libc::EAGAIN, _) if self.retries < MAX_RETRIES => self.retries += 1,
            // EINVAL: not in whole blocks of the device below.
            (libc::EOPNOTSUPP | libc::EINVAL, Step::PunchHole) => self.step = Step::ZeroRange,
            (libc::EOPNOTSUPP | libc::EINVAL, Step::ZeroRange) => {
                self.step = Step::WriteZeroes;
                self.load_zeroes();
            }
            _ => return Next::Done(Err(self.report(image, errno))),
        }
        Next::Again
    }

    /// Tells the user, too: the guest learns only that its command failed, not that the host's disk is
    /// full or broken.
    fn report(&self, image: &Image, errno: i32) -> BackendError {
        let error = BackendError::from_errno(errno);
        if error != BackendError::Cancelled {
            crate::guest_warn!(
                "image '{}': {:?} at byte {} failed: {}",
                image.path().display(),
                self.step,
                self.offset,
                io::Error::from_raw_os_error(errno)
            );
        }
        error
    }

    fn transferred(&mut self, image: &Image, count: u64) -> Next {
        // The end of the file, before the end of a range that was inside it: it has shrunk.
        let too_short = Next::Done(Err(match self.step {
            Step::Read => BackendError::OutOfRange,
            _ => BackendError::Io(libc::EIO),
        }));
        if count == 0 {
            return too_short;
        }
        let count = count.min(self.left);
        if let (Some(bounce), Step::Read) = (&self.bounce, self.step) {
            bounce.store(&self.vectors[self.first..], count);
        }
        self.skip(count);
        if let Step::Write | Step::WriteZeroes = self.step {
            image.written(self.offset);
        }
        if self.left == 0 {
            return self.finish();
        }
        if image
            .direct()
            .is_some_and(|align| !self.offset.is_multiple_of(align.offset.into()))
        {
            return too_short;
        }
        self.load_bounce();
        if self.step == Step::WriteZeroes {
            self.load_zeroes();
        }
        Next::Again
    }

    /// The range is done.
    fn finish(&mut self) -> Next {
        if self.stable && self.step != Step::Write {
            self.step = Step::Sync;
            return Next::Again;
        }
        Next::Done(Ok(()))
    }

    fn skip(&mut self, count: u64) {
        self.offset += count;
        self.left -= count;
        // At most `u32::MAX`, see `advance`.
        let mut count = usize::try_from(count).unwrap_or(usize::MAX);
        while let Some(vector) = self.vectors.get_mut(self.first) {
            let part = count.min(vector.iov_len);
            vector.iov_base = vector.iov_base.wrapping_byte_add(part);
            vector.iov_len -= part;
            count -= part;
            if vector.iov_len > 0 {
                break;
            }
            self.first += 1;
        }
    }

    fn load_bounce(&mut self) {
        if let Some(bounce) = &mut self.bounce {
            bounce.set_len(self.left);
            if self.step == Step::Write {
                bounce.load(&self.vectors[self.first..]);
            }
        }
    }

    /// Points the vectors to zeroes for the next write.
    fn load_zeroes(&mut self) {
        self.first = 0;
        self.vectors.clear();
        let mut left = usize::try_from(self.left).unwrap_or(usize::MAX);
        while left > 0 && self.vectors.len() < ZERO_REPEAT {
            let len = left.min(ZERO_BYTES);
            self.vectors.push(libc::iovec {
                iov_base: ZEROES.0.as_ptr().cast_mut().cast(),
                iov_len: len,
            });
            left -= len;
        }
    }

    /// What the next transfer fills or stores.
    fn current(&self) -> &[libc::iovec] {
        match &self.bounce {
            Some(bounce) => bounce.vectors(),
            None => {
                let rest = &self.vectors[self.first..];
                &rest[..rest.len().min(MAX_VECTORS)]
            }
        }
    }

    fn write_flags(&self) -> i32 {
        if self.stable && self.step == Step::Write {
            libc::RWF_DSYNC
        } else {
            0
        }
    }

    fn fallocate_mode(&self) -> i32 {
        if self.step == Step::PunchHole {
            PUNCH
        } else {
            ZERO
        }
    }

    /// Does the next step now; its result, or `-errno`.
    pub fn call(&self, image: &Image) -> i32 {
        let fd = image.as_raw_fd();
        let (offset, vectors) = (self.offset.cast_signed(), self.current());
        let (at, count) = (vectors.as_ptr(), count_of(vectors).cast_signed());
        // SAFETY: the file is open; the vectors point to `count` ranges of guest memory, `ZEROES`
        // (only read from) or the bounce buffer, which live as long as the request, see `Io`.
        let result = unsafe {
            match (self.step, vectors) {
                // One vector needs no copy of the vectors in the kernel.
                (Step::Read, [one]) => libc::pread(fd, one.iov_base, one.iov_len, offset),
                (Step::Read, _) => libc::preadv(fd, at, count, offset),
                (Step::Write, [one]) if self.write_flags() == 0 => {
                    libc::pwrite(fd, one.iov_base, one.iov_len, offset)
                }
                (Step::Write | Step::WriteZeroes, _) => {
                    libc::pwritev2(fd, at, count, offset, self.write_flags())
                }
                (Step::PunchHole | Step::ZeroRange, _) => {
                    let len = self.left.cast_signed();
                    libc::fallocate(fd, self.fallocate_mode(), offset, len) as isize
                }
                (Step::Sync, _) => libc::fdatasync(fd) as isize,
            }
        };
        // A transfer is at most 2 GiB - 4 KiB (MAX_RW_COUNT).
        i32::try_from(result)
            .ok()
            .filter(|&result| result >= 0)
            .unwrap_or_else(last_errno)
    }

    /// Does all of a read now, if its data is in the page cache; else nothing counts.
    pub fn read_cached(&self, image: &Image) -> bool {
        let vectors = self.current();
        let (at, count) = (vectors.as_ptr(), count_of(vectors).cast_signed());
        let offset = self.offset.cast_signed();
        // SAFETY: as in `call`.
        let result =
            unsafe { libc::preadv2(image.as_raw_fd(), at, count, offset, libc::RWF_NOWAIT) };
        if result < 0 && last_errno() == -libc::EOPNOTSUPP {
            image.cannot_be_cached();
        }
        u64::try_from(result).is_ok_and(|result| result == self.left)
    }

    /// The ring entry for the next step. What is in `memory` needs no look-up of its pages.
    pub fn entry(&self, target: Target, memory: &FixedMemory) -> squeue::Entry {
        match target {
            Target::Descriptor(fd) => self.entry_on(types::Fd(fd), memory),
            // The flag makes an index of what is elsewhere a descriptor. Both are small.
            Target::Registered(index) => self
                .entry_on(types::Fd(index.cast_signed()), memory)
                .flags(squeue::Flags::FIXED_FILE),
        }
    }

    fn entry_on(&self, fd: types::Fd, memory: &FixedMemory) -> squeue::Entry {
        let (offset, vectors) = (self.offset, self.current());
        let (at, count) = (vectors.as_ptr(), count_of(vectors));
        // One vector needs no copy of the vectors in the kernel.
        let single = match vectors {
            [one] => u32::try_from(one.iov_len)
                .ok()
                .map(|len| (one.iov_base.cast::<u8>(), len)),
            _ => None,
        };
        let fixed = single.and_then(|(at, len)| memory.find(at.addr(), len as usize));
        let flags = self.write_flags();
        match (self.step, single) {
            (Step::Read, Some((at, len))) if let Some(buffer) = fixed => {
                opcode::ReadFixed::new(fd, at, len, buffer)
                    .offset(offset)
                    .build()
            }
            (Step::Write, Some((at, len))) if let Some(buffer) = fixed => {
                opcode::WriteFixed::new(fd, at, len, buffer)
                    .offset(offset)
                    .rw_flags(flags)
                    .build()
            }
            (Step::Read, Some((at, len))) => opcode::Read::new(fd, at, len).offset(offset).build(),
            (Step::Read, None) => opcode::Readv::new(fd, at, count).offset(offset).build(),
            (Step::Write | Step::WriteZeroes, Some((at, len))) => opcode::Write::new(fd, at, len)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            (Step::Write | Step::WriteZeroes, None) => opcode::Writev::new(fd, at, count)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            (Step::PunchHole | Step::ZeroRange, _) => opcode::Fallocate::new(fd, self.left)
                .offset(offset)
                .mode(self.fallocate_mode())
                .build(),
            (Step::Sync, _) => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        }
    }
}

/// At most [`MAX_VECTORS`].
fn count_of(vectors: &[libc::iovec]) -> u32 {
    u32::try_from(vectors.len()).unwrap_or(u32::MAX)
}

fn last_errno() -> i32 {
    let errno = std::io::Error::last_os_error().raw_os_error();
    -errno.unwrap_or(libc::EIO)
}

#[cfg(test)]
mod tests;
