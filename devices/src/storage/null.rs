//! The null backend: a size and nothing else, to measure all but the storage.

use std::sync::atomic::{AtomicU64, Ordering};

use super::config::MAX_NULL;
use super::{Backend, Cancel, Engine, Request, ResizeError, Submitted, Token, resize};

/// Drops what is written. Reads succeed and leave guest memory as it is, like QEMU's `null-co` with
/// `read-zeroes=off`; so nothing can be said about the content, not even after
/// [`super::Op::WriteZeroes`].
#[derive(Debug)]
pub(super) struct NullBackend {
    pub size: AtomicU64,
    pub block_size: u32,
    pub read_only: bool,
}

impl Backend for NullBackend {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn resize(&self, size: u64) -> Result<(), ResizeError> {
        resize::check(size, self.block_size, MAX_NULL, self.read_only)?;
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn discard_zeroes(&self) -> bool {
        false
    }

    fn describe(&self) -> String {
        format!("null={}", super::config::size_text(self.size()))
    }

    fn submit(&self, _engine: &mut Engine, request: &Request<'_>) -> Submitted {
        Submitted::Done(request.check(self.size(), self.block_size, self.read_only))
    }

    fn cancel(&self, _engine: &mut Engine, _token: Token) -> Cancel {
        // Every request was done in `submit`.
        Cancel::Cancelled
    }
}
