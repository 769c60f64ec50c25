//! Backends that hold a namespace's bytes, and the engine that each I/O thread drives them with.
//!
//! [`open`] makes a backend. An I/O thread owns one [`Engine`], passes it to [`Backend::submit`] and
//! [`Backend::cancel`], starts what they queued with [`Engine::kick`], sleeps on
//! [`Engine::wake_fds`], and takes completions with [`Engine::reap`].

mod config;
#[cfg(test)]
mod conformance;
mod engine;
mod file;
mod io;
mod memory;
mod null;
mod resize;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use config::{
    BackendConfig, BackendKind, CacheMode, MAX_MEMORY, MAX_NULL, OpenError, UnknownCacheMode, open,
};
pub use engine::{Engine, EngineKind, EngineStats, LockError, Mailbox};
pub use resize::ResizeError;

use std::sync::Arc;
use std::time::SystemTime;

use crate::closed::Closed;
use crate::ram::GuestSlice;

/// What a request asks of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Fill the slices from `offset`.
    Read,
    /// Store the slices at `offset`; with `fua`, on stable media before completion.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Bring everything completed so far to stable media.
    Flush,
    /// Make the range read as zeroes; with `unmap`, its blocks may be deallocated.
    WriteZeroes {
        /// Deallocation allowed.
        unmap: bool,
        /// Force unit access.
        fua: bool,
    },
    /// The range's content is no longer needed. It reads as zeroes afterwards if
    /// [`Backend::discard_zeroes`]; else it may keep its content.
    Discard,
}

/// Names a request in its completion; the engine never looks inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// One request, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What to do.
    pub op: Op,
    /// First byte of the range in the backend.
    pub offset: u64,
    /// Length of the range; for reads and writes the sum of the slices' lengths.
    pub len: u64,
    /// Where the data is; empty for operations without data. Copied by who keeps it.
    pub data: &'a [GuestSlice],
    /// Comes back in the completion.
    pub token: Token,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The request.
    pub token: Token,
    /// Whether all of it was done.
    pub result: Result<(), BackendError>,
}

/// Why a backend could not do a request. Mapped to an NVMe status in `nvme`, in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The range is not inside the backend (it may have shrunk).
    #[error("the range is outside of the image")]
    OutOfRange,
    /// The backend is read-only.
    #[error("the image is read-only")]
    ReadOnly,
    /// No space left for the write (ENOSPC, EDQUOT, EFBIG).
    #[error("no space left for the image")]
    NoSpace,
    /// The medium failed (errno inside).
    #[error("I/O error (errno {0})")]
    Io(i32),
    /// The backend cannot do this operation.
    #[error("the backend cannot do this")]
    Unsupported,
    /// Cancelled by [`Backend::cancel`].
    #[error("cancelled")]
    Cancelled,
}

impl BackendError {
    /// The error for an `errno` of a data system call.
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::NoSpace,
            libc::EROFS | libc::EACCES | libc::EPERM => Self::ReadOnly,
            libc::EOPNOTSUPP | libc::ENOSYS => Self::Unsupported,
            libc::ECANCELED => Self::Cancelled,
            errno => Self::Io(errno),
        }
    }
}

impl Request<'_> {
    /// What every backend checks first: that the range is inside `size` bytes, in whole blocks, and
    /// as long as its data, and that a read-only backend is not asked to change.
    ///
    /// # Errors
    /// [`BackendError::ReadOnly`], [`BackendError::OutOfRange`], or `EINVAL` for a request that is
    /// not in whole blocks or does not match its data (a mistake of the caller, not of the guest).
    pub(crate) fn check(
        &self,
        size: u64,
        block_size: u32,
        read_only: bool,
    ) -> Result<(), BackendError> {
        let moves_data = matches!(self.op, Op::Read | Op::Write { .. });
        match self.op {
            Op::Flush => return Ok(()),
            Op::Read => {}
            Op::Write { .. } | Op::WriteZeroes { .. } | Op::Discard if read_only => {
                return Err(BackendError::ReadOnly);
            }
            Op::Write { .. } | Op::WriteZeroes { .. } | Op::Discard => {}
        }
        let end = self.offset.checked_add(self.len);
        if end.is_none_or(|end| end > size) {
            return Err(BackendError::OutOfRange);
        }
        let block = u64::from(block_size);
        let whole = self.offset.is_multiple_of(block) && self.len.is_multiple_of(block);
        if !whole || (moves_data && self.data_len() != Some(self.len)) {
            return Err(BackendError::Io(libc::EINVAL));
        }
        Ok(())
    }

    fn data_len(&self) -> Option<u64> {
        let mut lengths = self.data.iter().map(|slice| slice.len() as u64);
        lengths.try_fold(0u64, |sum, len| sum.checked_add(len))
    }
}

/// What [`Backend::submit`] did with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    /// Done already; no completion follows.
    Done(Result<(), BackendError>),
    /// A completion follows from [`Engine::reap`].
    Pending,
}

/// What [`Backend::cancel`] could promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    /// From now on the request touches no guest memory; no completion follows.
    Cancelled,
    /// It cannot be stopped at once; its completion follows as soon as may be.
    Pending,
}

/// A file or device, however it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// A regular file.
    File {
        /// The file system that it is on.
        device: u64,
        /// Its inode.
        inode: u64,
        /// When it was made, where that is known: inodes are used again.
        created: Option<SystemTime>,
    },
    /// A block device.
    Device {
        /// Its major and minor number.
        number: u64,
    },
}

/// The bytes behind a namespace.
///
/// `submit` and `cancel` are called on the I/O thread that owns `engine`; several threads may use one
/// backend at once. A backend checks the range itself and never panics on any offset or length.
pub trait Backend: Send + Sync {
    /// Size in bytes now. It can change while the backend is open.
    fn size(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Smallest unit of offsets and lengths in bytes, a power of two (512 or more).
    fn block_size(&self) -> u32;

    /// Looks at the medium and returns the new size in bytes if it changed. Cheap; called at times.
    fn refresh_size(&self) -> Option<u64> {
        None
    }

    /// Changes the size in bytes. What is behind a smaller size is lost; what a larger one adds reads
    /// as zeroes. Requests in flight behind the new end may still be done, or fail; the size stays.
    ///
    /// # Errors
    /// See [`ResizeError`]; the size is as it was.
    fn resize(&self, size: u64) -> Result<(), ResizeError> {
        let _ = size;
        Err(ResizeError::Fixed)
    }

    /// Whether a range reads as zeroes after [`Op::Discard`].
    fn discard_zeroes(&self) -> bool {
        true
    }

    /// What holds the bytes, if it outlives the backend: the same for every backend that is opened on
    /// it.
    fn medium(&self) -> Option<Medium> {
        None
    }

    /// Has `closed` dropped when the backend is dropped and what is behind it is closed, if that is
    /// later: engines close an image when they find time for it.
    fn tell_closed(&self, closed: Arc<Closed>) {
        drop(closed);
    }

    /// One line for people, such as `file=/tmp/a.img` or `memory=64M`.
    fn describe(&self) -> String;

    /// Starts a request. Nothing reaches the kernel before [`Engine::kick`].
    fn submit(&self, engine: &mut Engine, request: &Request<'_>) -> Submitted;

    /// Stops a pending request, as far as that can be done.
    fn cancel(&self, engine: &mut Engine, token: Token) -> Cancel;
}
