//! The file backend: a raw image in a regular file or block device.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Deref;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::engine::User;
use super::io::{Plan, Step};
use super::{
    Backend, CacheMode, Cancel, Engine, Medium, Op, OpenError, Request, ResizeError, Submitted,
    Token, resize,
};
use crate::closed::Closed;

mod open;

/// What O_DIRECT asks of a transfer, in bytes; powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DirectAlign {
    /// Of addresses in memory.
    pub memory: u32,
    /// Of offsets and lengths.
    pub offset: u32,
}

impl DirectAlign {
    /// Whether the kernel can transfer to and from these places without a copy.
    pub fn fits(self, vectors: &[libc::iovec]) -> bool {
        vectors.iter().all(|vector| {
            vector.iov_base.addr().is_multiple_of(self.memory as usize)
                && vector.iov_len.is_multiple_of(self.offset as usize)
        })
    }
}

/// How a file tells that it has done what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completions {
    /// By an interrupt.
    Interrupt,
    /// Its device has queues whose completions can be looked for instead.
    Pollable,
}

/// An open, locked file. Engines that have used it keep it open until its backend is gone and their
/// last request on it has ended.
#[derive(Debug)]
pub(super) struct Image {
    /// No other image of this process has it.
    number: u64,
    file: File,
    /// For messages.
    path: PathBuf,
    direct: Option<DirectAlign>,
    completions: Completions,
    /// Whether reads can be limited to what the page cache has.
    may_be_cached: AtomicBool,
    /// Its size in bytes as the guest has it.
    known: AtomicU64,
    /// The engines that keep it. Locked when one is added, never per request.
    users: Mutex<Vec<User>>,
    /// The last field: dropped when the file is closed.
    closed: OnceLock<Arc<Closed>>,
}

impl Image {
    fn new(file: File, path: PathBuf) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            file,
            path,
            direct: None,
            completions: Completions::Interrupt,
            may_be_cached: AtomicBool::new(true),
            known: AtomicU64::new(u64::MAX),
            users: Mutex::default(),
            closed: OnceLock::new(),
        }
    }

    /// Tells it from all other images of this process.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Has an engine told when the backend is gone.
    pub fn add_user(&self, user: User) {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.retain(|user| !user.is_gone());
        users.push(user);
    }

    /// Tells the engines that the backend is gone.
    fn disown(&self) {
        let users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.iter().for_each(|user| user.disown(self.number));
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What O_DIRECT asks for, if it is used.
    pub fn direct(&self) -> Option<DirectAlign> {
        self.direct
    }

    /// Whether completions of reads and writes can be looked for.
    pub fn can_be_polled(&self) -> bool {
        self.completions == Completions::Pollable
    }

    /// Whether it makes sense to look for data in the page cache.
    pub fn may_be_cached(&self) -> bool {
        self.direct.is_none() && self.may_be_cached.load(Ordering::Relaxed)
    }

    /// The file system cannot read from its cache without waiting for more.
    pub fn cannot_be_cached(&self) {
        self.may_be_cached.store(false, Ordering::Relaxed);
    }

    /// Any file that can be read, without the checks of an image.
    #[cfg(test)]
    pub fn unchecked(file: File, direct: Option<DirectAlign>) -> Arc<Self> {
        let mut image = Self::new(file, "test.img".into());
        image.direct = direct;
        Arc::new(image)
    }

    /// One that says that it can be polled, true or not.
    #[cfg(test)]
    pub fn pollable(file: File, direct: DirectAlign) -> Arc<Self> {
        let mut image = Self::new(file, "test.img".into());
        image.direct = Some(direct);
        image.completions = Completions::Pollable;
        Arc::new(image)
    }

    /// Size now in bytes, of a file or block device. Its file position is not used otherwise.
    fn size(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// A write was done up to `end`. If it was in flight when the image was made smaller, it has made
    /// the image longer again, which is undone here.
    pub fn written(&self, end: u64) {
        let known = self.known.load(Ordering::Relaxed);
        // Longer still, it is so by somebody else: another request, or whoever the file belongs to.
        if end <= known || !self.size().is_ok_and(|now| now == end) {
            return;
        }
        if let Err(error) = self.file.set_len(known) {
            let path = self.path.display();
            crate::guest_warn!("image '{path}': cannot be cut to {known} bytes again: {error}");
        }
    }
}

impl AsRawFd for Image {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Drop for Image {
    /// Unlocks it: the kernel may look after the open file a moment longer, on behalf of a request
    /// that has just ended.
    fn drop(&mut self) {
        open::unlock(&self.file);
    }
}

/// A backend's own hold of its image.
#[derive(Debug)]
pub(super) struct Owned(pub Arc<Image>);

impl Deref for Owned {
    type Target = Arc<Image>;

    fn deref(&self) -> &Arc<Image> {
        &self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.disown();
    }
}

/// A raw image.
///
/// - With [`CacheMode::Writethrough`] and [`CacheMode::Directsync`], a change is on stable media when
///   it completes; with [`CacheMode::Unsafe`], flushes and forced unit access do nothing.
/// - Where the file is in memory (tmpfs, ramfs), reads and writes are done in `submit`, as a memory
///   backend's are.
/// - A read that comes alone is done in `submit`, too, if the page cache has its data: that takes a
///   system call less. More at a time are faster through a ring.
/// - Discard punches a hole. Where that is not possible, it does nothing and
///   [`Backend::discard_zeroes`] says so: writing zeroes instead would fill a sparse image.
/// - Write Zeroes punches a hole (`unmap`) or zeroes the range in place, and writes zeroes where the
///   file system can do neither.
/// - A range past the end of an image that was truncated by someone else is
///   [`super::BackendError::OutOfRange`] for reads; writes make the image longer again until
///   [`Backend::refresh_size`] has seen the new size. A write that is in flight while
///   [`Backend::resize`] cuts it off does so, too, until its end is noticed and undoes it.
#[derive(Debug)]
pub(super) struct FileBackend {
    image: Owned,
    path: PathBuf,
    cache: CacheMode,
    read_only: bool,
    block_size: u32,
    punches_holes: bool,
    in_memory: bool,
    medium: Medium,
}

impl FileBackend {
    /// Opens and locks the image at `path`.
    pub fn open(
        path: &Path,
        cache: CacheMode,
        read_only: bool,
        block_size: u32,
    ) -> Result<Self, OpenError> {
        let opened = open::open(path, cache, read_only, block_size)?;
        Ok(Self {
            punches_holes: !read_only && open::punches_holes(&opened.image.file, opened.size),
            image: Owned(Arc::new(opened.image)),
            medium: opened.medium,
            in_memory: opened.in_memory,
            path: path.into(),
            cache,
            read_only,
            block_size,
        })
    }

    /// The first step of a request, or `None` if there is nothing to do.
    fn plan(&self, op: Op) -> Option<(Step, bool)> {
        let lazy = self.cache == CacheMode::Unsafe;
        let eager = self.cache.is_writethrough();
        let stable = |fua| eager || (fua && !lazy);
        match op {
            Op::Read => Some((Step::Read, false)),
            Op::Write { fua } => Some((Step::Write, stable(fua))),
            Op::Flush => (!lazy).then_some((Step::Sync, false)),
            Op::WriteZeroes { unmap: true, fua } => Some((Step::PunchHole, stable(fua))),
            Op::WriteZeroes { unmap: false, fua } => Some((Step::ZeroRange, stable(fua))),
            Op::Discard => self.punches_holes.then_some((Step::PunchHole, eager)),
        }
    }
}

impl Backend for FileBackend {
    fn size(&self) -> u64 {
        self.image.known.load(Ordering::Relaxed)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn refresh_size(&self) -> Option<u64> {
        let size = self.image.size().ok()?;
        let size = size - size % u64::from(self.block_size);
        (self.image.known.swap(size, Ordering::Relaxed) != size).then_some(size)
    }

    fn resize(&self, size: u64) -> Result<(), ResizeError> {
        let max = i64::MAX.unsigned_abs();
        resize::check(size, self.block_size, max, self.read_only)?;
        let Image { file, known, .. } = &**self.image;
        if !file.metadata()?.is_file() {
            return Err(ResizeError::BlockDevice(self.path.display().to_string()));
        }
        // A smaller size first: no request that comes now may make the file longer again.
        let old = known.load(Ordering::Relaxed);
        known.store(size.min(old), Ordering::Relaxed);
        let result = file.set_len(size);
        let now = if result.is_ok() { size } else { old };
        known.store(now, Ordering::Relaxed);
        Ok(result?)
    }

    fn discard_zeroes(&self) -> bool {
        self.punches_holes
    }

    fn medium(&self) -> Option<Medium> {
        Some(self.medium)
    }

    fn tell_closed(&self, closed: Arc<Closed>) {
        // A second one is of a second namespace, which cannot be.
        let _ = self.image.closed.set(closed);
    }

    fn describe(&self) -> String {
        format!("file={},cache={}", self.path.display(), self.cache)
    }

    fn submit(&self, engine: &mut Engine, request: &Request<'_>) -> Submitted {
        if let Err(error) = request.check(self.size(), self.block_size, self.read_only) {
            return Submitted::Done(Err(error));
        }
        let empty = request.len == 0 && request.op != Op::Flush;
        match self.plan(request.op) {
            Some((step, stable)) if !empty => {
                let plan = Plan { step, stable };
                // A ring would give it to a kernel worker, as tmpfs has no reads that never wait: two
                // threads more for a copy of memory. Holes may be large, and take long.
                let copies = matches!(step, Step::Read | Step::Write | Step::Sync);
                if self.in_memory && copies {
                    return Submitted::Done(engine.run_file(&self.image, plan, request));
                }
                if step == Step::Read && engine.read_cached(&self.image, request) {
                    return Submitted::Done(Ok(()));
                }
                engine.submit_file(&self.image, plan, request)
            }
            _ => Submitted::Done(Ok(())),
        }
    }

    fn cancel(&self, engine: &mut Engine, token: Token) -> Cancel {
        engine.cancel_file(token)
    }
}

#[cfg(test)]
mod tests;
