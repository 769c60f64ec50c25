//! What can go wrong before the guest runs.

use std::io;
use std::path::PathBuf;

use vm_memory::GuestMemoryError;

/// Why a machine could not be made ready to boot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel file cannot be used.
    #[error("--kernel {}: {problem}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: KernelError,
    },
    /// Guest RAM does not cover an address that it should.
    #[error("guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// What is wrong with a kernel file.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It cannot be opened or read.
    #[error("{0}")]
    Io(#[from] io::Error),
}
