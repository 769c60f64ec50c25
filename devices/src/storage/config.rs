//! What a backend is made from, and why that can fail.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::Backend;
use super::file::FileBackend;
use super::memory::MemoryBackend;
use super::null::NullBackend;

/// How a file is cached; names and meaning are QEMU's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheMode {
    /// The host's page cache, with flushes.
    #[default]
    Writeback,
    /// No page cache (O_DIRECT), with flushes.
    None,
    /// The host's page cache; every write is on stable media before it completes.
    Writethrough,
    /// No page cache (O_DIRECT); every write is on stable media before it completes.
    Directsync,
    /// The host's page cache; flushes and forced unit access are ignored.
    Unsafe,
}

impl CacheMode {
    const NAMES: [(Self, &str); 5] = [
        (Self::Writeback, "writeback"),
        (Self::None, "none"),
        (Self::Writethrough, "writethrough"),
        (Self::Directsync, "directsync"),
        (Self::Unsafe, "unsafe"),
    ];

    /// Whether the page cache is passed by.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// Whether every write is on stable media before it completes.
    pub fn is_writethrough(self) -> bool {
        matches!(self, Self::Writethrough | Self::Directsync)
    }
}

impl fmt::Display for CacheMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(mode, _)| mode == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

/// A cache mode that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no cache mode: use writeback, none, writethrough, directsync or unsafe")]
pub struct UnknownCacheMode(pub String);

impl FromStr for CacheMode {
    type Err = UnknownCacheMode;

    fn from_str(name: &str) -> Result<Self, UnknownCacheMode> {
        let found = Self::NAMES.iter().find(|(_, known)| *known == name);
        found
            .map(|(mode, _)| *mode)
            .ok_or_else(|| UnknownCacheMode(name.into()))
    }
}

/// Where a backend's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendKind {
    /// In a raw regular file or block device.
    File {
        /// Its path.
        path: PathBuf,
        /// How it is cached.
        cache: CacheMode,
    },
    /// In host memory, lost at the end.
    Memory {
        /// Size in bytes, at most [`MAX_MEMORY`].
        size: u64,
    },
    /// Nowhere.
    Null {
        /// Size in bytes.
        size: u64,
    },
}

/// All that [`open`] needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendConfig {
    /// Where the bytes are.
    pub kind: BackendKind,
    /// Refuse whatever would change them.
    pub read_only: bool,
    /// Unit of offsets and lengths in bytes: 512 or 4096.
    pub block_size: u32,
}

/// Largest memory backend: 1 TiB.
pub const MAX_MEMORY: u64 = 1 << 40;

/// Largest null backend: 1 PiB.
pub const MAX_NULL: u64 = 1 << 50;

/// Why a backend could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Not 512 or 4096.
    #[error("block size {0} is not supported: use 512 or 4096")]
    BlockSize(u32),
    /// Zero, too large, or not in blocks.
    #[error(
        "size {size} of a {kind} backend is wrong: use a multiple of {block_size}, up to {max}"
    )]
    Size {
        /// `memory` or `null`.
        kind: &'static str,
        /// What was asked for, in bytes.
        size: u64,
        /// Block size in bytes.
        block_size: u32,
        /// Largest size.
        max: String,
    },
    /// The host refused the address space.
    #[error("no {} of memory for a memory backend: {source}", size_text(*.size))]
    Memory {
        /// What was asked for, in bytes.
        size: u64,
        /// The host's reason.
        source: io::Error,
    },
    /// No such file.
    #[error(
        "image '{path}' does not exist: create it first, for example with `truncate -s 1G {path}`"
    )]
    NotFound {
        /// The image.
        path: PathBuf,
    },
    /// A directory, FIFO, socket or character device.
    #[error("image '{path}' is a {what}: use a regular file or a block device")]
    WrongType {
        /// The image.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Permissions of the file or of a directory on the way.
    #[error("no permission to open image '{path}' for {mode}: change its permissions{}", hint(.mode))]
    Permission {
        /// The image.
        path: PathBuf,
        /// `reading` or `reading and writing`.
        mode: &'static str,
    },
    /// The file system or device is read-only.
    #[error("image '{path}' is on a read-only file system or device: open it read-only")]
    ReadOnlyMedium {
        /// The image.
        path: PathBuf,
    },
    /// Locked or claimed by someone else.
    #[error(
        "image '{path}' is in use by another process (or another namespace, or it is mounted): \
         close it there (`fuser -v {path}` tells whose it is), or open it read-only everywhere"
    )]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// Locks do not work there.
    #[error("image '{path}' cannot be locked against other users: {source}")]
    Lock {
        /// The image.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// It has no bytes.
    #[error("image '{path}' is empty: give it a size, for example with `truncate -s 1G {path}`")]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// Its size is not a multiple of the block size.
    #[error(
        "image '{path}' has {size} bytes, which is not a multiple of the block size {block_size}: \
         resize it to a multiple{}",
        smaller_block(*.size, *.block_size)
    )]
    NotInBlocks {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Block size in bytes.
        block_size: u32,
    },
    /// O_DIRECT is refused.
    #[error(
        "image '{path}' is on a file system that cannot do cache={cache} (O_DIRECT): \
         use cache=writeback or cache=writethrough"
    )]
    DirectUnsupported {
        /// The image.
        path: PathBuf,
        /// The cache mode asked for.
        cache: CacheMode,
    },
    /// O_DIRECT needs larger blocks.
    #[error(
        "image '{path}' is on a device with blocks of {needed} bytes, which cache={cache} cannot \
         split into blocks of {block_size}: use a block size of {needed}, or cache=writeback"
    )]
    DirectBlockSize {
        /// The image.
        path: PathBuf,
        /// The cache mode asked for.
        cache: CacheMode,
        /// The device's logical block size in bytes.
        needed: u32,
        /// The block size asked for in bytes.
        block_size: u32,
    },
    /// Anything else.
    #[error("image '{path}' cannot be opened: {source}")]
    Io {
        /// The image.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
}

fn hint(mode: &str) -> &'static str {
    if mode == READING {
        ""
    } else {
        ", or open it read-only"
    }
}

fn smaller_block(size: u64, block_size: u32) -> &'static str {
    if block_size > 512 && size.is_multiple_of(512) {
        ", or use a block size of 512"
    } else {
        ""
    }
}

/// [`OpenError::Permission`]'s mode of a read-only backend.
pub(super) const READING: &str = "reading";

/// Opens a backend.
///
/// A file is locked until the backend is dropped: exclusively if it may be written, shared if not.
///
/// # Errors
/// See [`OpenError`].
pub fn open(config: &BackendConfig) -> Result<Arc<dyn Backend>, OpenError> {
    let (block_size, read_only) = (config.block_size, config.read_only);
    if !matches!(block_size, 512 | 4096) {
        return Err(OpenError::BlockSize(block_size));
    }
    let check = |kind, size: u64, max: u64| {
        let whole = size.is_multiple_of(block_size.into());
        (size > 0 && size <= max && whole)
            .then_some(())
            .ok_or_else(|| OpenError::Size {
                kind,
                size,
                block_size,
                max: size_text(max),
            })
    };
    match &config.kind {
        BackendKind::File { path, cache } => {
            let backend = FileBackend::open(path, *cache, read_only, block_size)?;
            Ok(Arc::new(backend))
        }
        BackendKind::Memory { size } => {
            check("memory", *size, MAX_MEMORY)?;
            let backend = usize::try_from(*size)
                .map_err(io::Error::other)
                .and_then(|size| MemoryBackend::new(size, block_size, read_only))
                .map_err(|source| OpenError::Memory {
                    size: *size,
                    source,
                })?;
            Ok(Arc::new(backend))
        }
        BackendKind::Null { size } => {
            check("null", *size, MAX_NULL)?;
            Ok(Arc::new(NullBackend {
                size: AtomicU64::new(*size),
                block_size,
                read_only,
            }))
        }
    }
}

/// A size as people write it: `64M`, `1T`, `1536`.
pub(super) fn size_text(size: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    let fits = |(shift, _): &&(u32, &str)| size > 0 && size.is_multiple_of(1 << shift);
    match units.iter().find(fits) {
        Some((shift, unit)) => format!("{}{unit}", size >> shift),
        None => size.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_error(kind: BackendKind, block_size: u32) -> String {
        let config = BackendConfig {
            kind,
            read_only: false,
            block_size,
        };
        open(&config).err().expect("must fail").to_string()
    }

    #[test]
    fn sizes_and_blocks_are_checked() {
        let memory = |size| BackendKind::Memory { size };
        let error = open_error(memory(4096), 1024);
        assert_eq!(error, "block size 1024 is not supported: use 512 or 4096");
        for size in [0, 513, MAX_MEMORY + 512] {
            let error = open_error(memory(size), 512);
            assert!(error.contains("multiple of 512, up to 1T"), "{error}");
        }
        let error = open_error(BackendKind::Null { size: 512 }, 4096);
        assert!(error.contains("multiple of 4096"), "{error}");
    }

    #[test]
    fn sizes_read_well() {
        let texts = [
            (512, "512"),
            (1 << 20, "1M"),
            (1536 << 10, "1536K"),
            (1 << 41, "2T"),
        ];
        for (size, text) in texts {
            assert_eq!(size_text(size), text);
        }
    }

    #[test]
    fn cache_modes_have_their_names() {
        for (mode, name) in CacheMode::NAMES {
            assert_eq!(name.parse(), Ok(mode));
            assert_eq!(mode.to_string(), name);
        }
        let error = "fast".parse::<CacheMode>().unwrap_err().to_string();
        assert!(error.contains("'fast'") && error.contains("writeback"));
    }
}
