//! The memory backend: anonymous memory that the host gives when it is first written.

use std::io;
use std::ptr::NonNull;

use super::{Backend, BackendError, Cancel, Engine, Op, Request, Submitted, Token};

/// Host memory behind a namespace. Requests are done in `submit`, on whatever thread calls it.
///
/// Several threads may copy at once. No Rust reference into the memory ever exists: like a disk's
/// cache, it is raw bytes, and a guest that races with itself gets some mixture of its own data.
pub(super) struct MemoryBackend {
    start: NonNull<u8>,
    size: usize,
    block_size: u32,
    read_only: bool,
}

// SAFETY: the mapping belongs to this value alone until it is dropped, and is reached only with raw
// copies, see above.
unsafe impl Send for MemoryBackend {}
// SAFETY: as above; the fields never change.
unsafe impl Sync for MemoryBackend {}

impl MemoryBackend {
    /// Maps `size` bytes of zeroes, more than none.
    ///
    /// # Errors
    /// The host has no such address space.
    pub fn new(size: usize, block_size: u32, read_only: bool) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            start,
            size,
            block_size,
            read_only,
        })
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

fn page_size() -> usize {
    // SAFETY: no arguments that could be wrong.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

impl Drop for MemoryBackend {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more: requests are done in `submit`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

impl Backend for MemoryBackend {
    fn size(&self) -> u64 {
        self.size as u64
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
