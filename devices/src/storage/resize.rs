//! Changes of a backend's size while it is in use.

use std::io;

use super::config::size_text;

/// Why a backend keeps its size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// It may not be changed at all.
    #[error("it is read-only: delete it and add it without ro")]
    ReadOnly,
    /// Not a size that a backend of this kind can have.
    #[error(
        "{size} bytes is not a valid size: it must be a multiple of the block size {block_size}, at \
         least one block, up to {}", size_text(*.max)
    )]
    Size {
        /// The size asked for.
        size: u64,
        /// Its block size.
        block_size: u32,
        /// Its largest size in bytes.
        max: u64,
    },
    /// Its size is somebody else's to change.
    #[error(
        "{0} is a block device: change its size on the host, and the guest hears of it when berth \
         next looks (info qtree)"
    )]
    BlockDevice(String),
    /// The host refused.
    #[error("the host refused: {0}")]
    Host(#[from] io::Error),
    /// It is fixed.
    #[error("this backend cannot change its size")]
    Fixed,
}

/// What every backend checks first.
///
/// # Errors
/// The backend is read-only, or cannot have this size.
pub(super) fn check(
    size: u64,
    block_size: u32,
    max: u64,
    read_only: bool,
) -> Result<(), ResizeError> {
    if read_only {
        return Err(ResizeError::ReadOnly);
    }
    if size == 0 || size > max || !size.is_multiple_of(block_size.into()) {
        return Err(ResizeError::Size {
            size,
            block_size,
            max,
        });
    }
    Ok(())
}
