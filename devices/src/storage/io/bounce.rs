//! Aligned buffers for data that O_DIRECT cannot reach where the guest has it.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::slice;

use crate::storage::file::DirectAlign;

/// Largest buffer: longer requests go through it piece by piece, so that all requests of an engine
/// together take a bounded amount of memory.
const MAX: usize = 256 << 10;

/// Smallest buffer, and the alignment of all that need no more.
const MIN: usize = 4 << 10;

/// Sizes of buffers: the powers of two from [`MIN`] to [`MAX`].
const SIZES: usize = (MAX / MIN).trailing_zeros() as usize + 1;

/// Most bytes of unused buffers that are kept.
const KEPT: usize = 16 << 20;

/// The buffers of one engine. Used ones are kept for the next requests.
#[derive(Debug, Default)]
pub(in crate::storage) struct Bounces {
    unused: [Vec<Bounce>; SIZES],
    unused_bytes: usize,
    taken: u64,
}

impl Bounces {
    /// A buffer for a request of `len` bytes. Its content is that of some earlier request.
    pub(super) fn take(&mut self, len: u64, align: DirectAlign) -> Bounce {
        self.taken += 1;
        let unit = align.offset.max(align.memory) as usize;
        let len = usize::try_from(len).map_or(MAX, |len| len.min(MAX));
        let size = len.max(MIN).next_power_of_two();
        let layout = Layout::from_size_align(size.max(unit), unit.max(MIN));
        let layout = layout.expect("powers of two, and a small size");
        if let Some(place) = place(layout)
            && let Some(bounce) = self.unused[place].pop()
        {
            self.unused_bytes -= size;
            return bounce;
        }
        Bounce::new(layout)
    }

    /// Takes a buffer back.
    pub(super) fn give_back(&mut self, bounce: Bounce) {
        let size = bounce.layout.size();
        if let Some(place) = place(bounce.layout)
            && self.unused_bytes + size <= KEPT
        {
            self.unused_bytes += size;
            self.unused[place].push(bounce);
        }
    }

    /// How many requests needed a buffer so far.
    pub fn taken(&self) -> u64 {
        self.taken
    }
}

/// Where buffers like this are kept; `None` for those with an alignment that is not usual.
fn place(layout: Layout) -> Option<usize> {
    let place = (layout.size() / MIN).trailing_zeros() as usize;
    (layout.align() == MIN && place < SIZES).then_some(place)
}

/// Always the one vector of the next transfer.
#[derive(Debug)]
pub(super) struct Bounce {
    vector: libc::iovec,
    layout: Layout,
}

// SAFETY: it alone has its buffer, which every thread may use and free.
unsafe impl Send for Bounce {}

impl Bounce {
    fn new(layout: Layout) -> Self {
        // SAFETY: the size is not zero, see `Bounces::take`.
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
        // SAFETY: allocated in `new` with this layout; no transfer is in progress, see `Engine`.
        unsafe { dealloc(self.vector.iov_base.cast(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIGN: DirectAlign = DirectAlign {
        memory: 512,
        offset: 512,
    };

    fn address(bounce: &Bounce) -> usize {
        bounce.vector.iov_base.addr()
    }

    #[test]
    fn buffers_are_used_again() {
        let mut bounces = Bounces::default();
        for len in [512, 4096, 8192, 300 << 10] {
            let first = bounces.take(len, ALIGN);
            assert!(address(&first).is_multiple_of(MIN));
            let at = address(&first);
            bounces.give_back(first);
            let second = bounces.take(len, ALIGN);
            assert_eq!(address(&second), at, "{len}");
            assert_eq!(bounces.unused_bytes, 0);
            drop(second);
        }
        assert_eq!(bounces.taken(), 8);
    }

    #[test]
    fn no_more_is_kept_than_the_limit() {
        let mut bounces = Bounces::default();
        let all: Vec<_> = (0..2 * KEPT / MAX)
            .map(|_| bounces.take(MAX as u64, ALIGN))
            .collect();
        all.into_iter().for_each(|bounce| bounces.give_back(bounce));
        assert_eq!(bounces.unused_bytes, KEPT);
        let kept: usize = bounces.unused.iter().map(Vec::len).sum();
        assert_eq!(kept, KEPT / MAX);
    }

    #[test]
    fn unusual_alignments_work() {
        let mut bounces = Bounces::default();
        let align = DirectAlign {
            memory: 64 << 10,
            offset: 4096,
        };
        let bounce = bounces.take(512, align);
        assert!(address(&bounce).is_multiple_of(64 << 10));
        bounces.give_back(bounce);
        assert_eq!(bounces.unused_bytes, 0);
    }
}
