//! The memory backend: anonymous memory that the host gives when it is first written.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::config::MAX_MEMORY;
use super::{
    Backend, BackendError, Cancel, Engine, Op, Request, ResizeError, Submitted, Token, resize,
};

/// How much larger than at first it can become: so much address space is set aside, which costs
/// nothing, as the mapping cannot move under requests of other threads.
const GROWTH: usize = 16;

/// Less than this is never set aside, in bytes.
const LEAST_RESERVED: usize = 1 << 30;

/// Host memory behind a namespace. Requests are done in `submit`, on whatever thread calls it.
///
/// Several threads may copy at once. No Rust reference into the memory ever exists: like a disk's
/// cache, it is raw bytes, and a guest that races with itself gets some mixture of its own data.
pub(super) struct MemoryBackend {
    start: NonNull<u8>,
    /// Length of the mapping, the largest size.
    reserved: usize,
    /// Changes only in `resize`; everything below it may be accessed.
    size: AtomicUsize,
    block_size: u32,
    read_only: bool,
}

// SAFETY: the mapping belongs to this value alone until it is dropped, and is reached only with raw
// copies, see above.
unsafe impl Send for MemoryBackend {}
// SAFETY: as above; no field changes but the size, which is atomic.
unsafe impl Sync for MemoryBackend {}

impl MemoryBackend {
    /// Maps `size` bytes of zeroes, more than none.
    ///
    /// # Errors
    /// The host has no such address space.
    pub fn new(size: usize, block_size: u32, read_only: bool) -> io::Result<Self> {
        let most = usize::try_from(MAX_MEMORY).unwrap_or(usize::MAX);
        let wanted = size
            .saturating_mul(GROWTH)
            .clamp(LEAST_RESERVED, most)
            .max(size);
        // A host that limits address space still has it as large as it is.
        let (start, reserved) = match reserve(wanted) {
            Ok(start) => (start, wanted),
            Err(_) => (reserve(size)?, size),
        };
        let backend = Self {
            start,
            reserved,
            size: AtomicUsize::new(size),
            block_size,
            read_only,
        };
        backend.make_accessible(size)?;
        Ok(backend)
    }

    /// Lets the first `size` bytes of the mapping be accessed.
    fn make_accessible(&self, size: usize) -> io::Result<()> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the start of our own mapping, which is at least this long.
        let result = unsafe { libc::mprotect(self.start.as_ptr().cast(), size, protection) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn bytes(&self) -> usize {
        self.size.load(Ordering::Acquire)
    }

    /// The address of `offset`, and the length of a range from there, of a checked request.
    fn range(&self, request: &Request<'_>) -> Result<(*mut u8, usize), BackendError> {
        let offset = usize::try_from(request.offset).map_err(|_| BackendError::OutOfRange)?;
        let len = usize::try_from(request.len).map_err(|_| BackendError::OutOfRange)?;
        Ok((self.start.as_ptr().wrapping_add(offset), len))
    }

    fn run(&self, request: &Request<'_>) -> Result<(), BackendError> {
        request.check(self.size(), self.block_size, self.read_only)?;
        if request.op == Op::Flush {
            return Ok(());
        }
        let (mut at, len) = self.range(request)?;
        match request.op {
            Op::Flush => {}
            Op::Read => {
                for slice in request.data {
                    // SAFETY: `check` made sure that the slices' lengths sum up to `len` and that
                    // `offset + len` is inside the mapping; the slice lies in guest memory, which
                    // is another mapping; see the type for races.
                    unsafe { std::ptr::copy_nonoverlapping(at, slice.as_ptr(), slice.len()) }
                    at = at.wrapping_add(slice.len());
                }
            }
            Op::Write { .. } => {
                for slice in request.data {
                    // SAFETY: as for reads, in the other direction.
                    unsafe { std::ptr::copy_nonoverlapping(slice.as_ptr(), at, slice.len()) }
                    at = at.wrapping_add(slice.len());
                }
            }
            Op::WriteZeroes { unmap: false, .. } => {
                // SAFETY: `check` made sure that the range is inside the mapping.
                unsafe { std::ptr::write_bytes(at, 0, len) }
            }
            Op::WriteZeroes { unmap: true, .. } | Op::Discard => self.give_back(at, len),
        }
        Ok(())
    }

    /// Makes a range inside the mapping zero; whole pages go back to the host.
    fn give_back(&self, at: *mut u8, len: usize) {
        let head = at.align_offset(page_size()).min(len);
        let pages = (len - head) / page_size() * page_size();
        let inner = at.wrapping_add(head);
        // SAFETY: whole pages inside our private anonymous mapping, which read as zeroes afterwards.
        let given =
            pages == 0 || unsafe { libc::madvise(inner.cast(), pages, libc::MADV_DONTNEED) } == 0;
        let kept = if given { pages } else { 0 };
        let tail = inner.wrapping_add(kept);
        // SAFETY: what is left of the range before and behind those pages.
        unsafe {
            std::ptr::write_bytes(at, 0, head);
            std::ptr::write_bytes(tail, 0, len - head - kept);
        }
    }
}

/// A mapping at an address of the kernel's choice that nothing may access yet.
fn reserve(size: usize) -> io::Result<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_NONE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // Random blocks are found with fewer walks of page tables. Advice only: where the host has no huge
    // pages, small ones do.
    // SAFETY: our own mapping.
    unsafe { libc::madvise(start, size, libc::MADV_HUGEPAGE) };
    NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

fn page_size() -> usize {
    // SAFETY: no arguments that could be wrong.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

impl Drop for MemoryBackend {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more: requests are done in `submit`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.reserved) };
    }
}

impl Backend for MemoryBackend {
    fn size(&self) -> u64 {
        self.bytes() as u64
    }

    fn resize(&self, size: u64) -> Result<(), ResizeError> {
        resize::check(size, self.block_size, self.reserved as u64, self.read_only)?;
        // Not more than `reserved`, so it fits.
        let size = usize::try_from(size).unwrap_or(self.reserved);
        let old = self.bytes();
        if size > old {
            self.make_accessible(size)?;
            // Requests that were in flight when it shrank may have written there.
            self.give_back(self.start.as_ptr().wrapping_add(old), size - old);
        }
        self.size.store(size, Ordering::Release);
        if size < old {
            self.give_back(self.start.as_ptr().wrapping_add(size), old - size);
        }
        Ok(())
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn describe(&self) -> String {
        format!("memory={}", super::config::size_text(self.size()))
    }

    fn submit(&self, _engine: &mut Engine, request: &Request<'_>) -> Submitted {
        Submitted::Done(self.run(request))
    }

    fn cancel(&self, _engine: &mut Engine, _token: Token) -> Cancel {
        // Every request was done in `submit`.
        Cancel::Cancelled
    }
}
