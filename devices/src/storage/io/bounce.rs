//! An aligned buffer for data that O_DIRECT cannot reach where the guest has it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::slice;

use crate::storage::file::DirectAlign;

/// Largest buffer: longer requests go through it piece by piece, so that all requests of an engine
/// together take a bounded amount of memory.
const MAX: usize = 256 << 10;

/// Always the one vector of the next transfer.
pub(super) struct Bounce {
    vector: libc::iovec,
    layout: Layout,
}

impl Bounce {
    /// A buffer for a request of `len` bytes.
    pub fn new(len: u64, align: DirectAlign) -> Self {
        let unit = align.offset.max(align.memory).max(512) as usize;
        let len = usize::try_from(len).map_or(MAX, |len| len.min(MAX));
        let size = len.next_multiple_of(unit);
        let layout = Layout::from_size_align(size, unit).expect("a power of two and a small size");
        // SAFETY: the size is not zero: `DirectAlign::fits` is true for requests without data.
        let buffer = unsafe { alloc_zeroed(layout) };
        if buffer.is_null() {
            handle_alloc_error(layout);
        }
        let vector = libc::iovec {
            iov_base: buffer.cast(),
            iov_len: 0,
        };
        Self { vector, layout }
    }

    /// The whole buffer, or less for the last piece.
    pub fn set_len(&mut self, left: u64) {
        let size = self.layout.size();
        self.vector.iov_len = usize::try_from(left).map_or(size, |left| left.min(size));
    }

    pub fn vectors(&self) -> &[libc::iovec] {
        slice::from_ref(&self.vector)
    }

    /// Fills the buffer from the guest.
    pub fn load(&self, guest: &[libc::iovec]) {
        for (buffer, guest, len) in self.pieces(guest, self.vector.iov_len) {
            // SAFETY: `pieces` keeps `len` inside the buffer and inside a piece of guest memory;
            // they are different mappings.
            unsafe { std::ptr::copy_nonoverlapping(guest, buffer, len) }
        }
    }

    /// Gives the first `count` bytes of the buffer to the guest.
    pub fn store(&self, guest: &[libc::iovec], count: u64) {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        for (buffer, guest, len) in self.pieces(guest, count.min(self.vector.iov_len)) {
            // SAFETY: as in `load`.
            unsafe { std::ptr::copy_nonoverlapping(buffer, guest, len) }
        }
    }

    /// Matching places in the buffer and the guest, `(buffer, guest, len)`, `total` bytes in all.
    fn pieces(
        &self,
        guest: &[libc::iovec],
        total: usize,
    ) -> impl Iterator<Item = (*mut u8, *mut u8, usize)> {
        let mut done = 0;
        guest.iter().map_while(move |vector| {
            let len = vector.iov_len.min(total - done);
            let buffer = self.vector.iov_base.wrapping_byte_add(done);
            done += len;
            (len > 0).then_some((buffer.cast(), vector.iov_base.cast(), len))
        })
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; no transfer is in progress, see `Slab`.
        unsafe { dealloc(self.vector.iov_base.cast(), self.layout) }
    }
}
