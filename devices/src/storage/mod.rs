//! Backends that hold a namespace's bytes, and the engine that each I/O thread drives them with.

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
    /// The range's content is no longer needed; it reads as zeroes afterwards.
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

    /// One line for people, such as `file=/tmp/a.img` or `memory=64M`.
    fn describe(&self) -> String;

    /// Starts a request. Nothing reaches the kernel before [`Engine::kick`].
    fn submit(&self, engine: &mut Engine, request: &Request<'_>) -> Submitted;

    /// Stops a pending request, as far as that can be done.
    fn cancel(&self, engine: &mut Engine, token: Token) -> Cancel;
}

/// To be replaced: the per-thread engine.
#[derive(Debug)]
pub struct Engine;
