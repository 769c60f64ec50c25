//! Opening an image: the right kind of file, nobody else on it, a usable size and alignment.

use std::fs::{File, FileType, Metadata, OpenOptions, metadata, read_to_string};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Completions, DirectAlign, Image};
use crate::storage::config::READING;
use crate::storage::{CacheMode, Medium, OpenError};

/// How long to wait for an image that is in use. Whoever asks for one that somebody else keeps has to
/// wait so long for the answer.
pub(super) const LOCK_LIMIT: Duration = Duration::from_millis(500);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// An open image and its size in bytes.
pub(super) struct Opened {
    pub image: Image,
    pub size: u64,
    pub medium: Medium,
    /// Its data is in memory: transfers wait for nothing.
    pub in_memory: bool,
}

/// Opens, locks and checks the image at `path`.
pub(super) fn open(
    path: &Path,
    cache: CacheMode,
    read_only: bool,
    block_size: u32,
) -> Result<Opened, OpenError> {
    let failed = |source: io::Error| explain(path, cache, read_only, source);
    // Looked at before it is opened, because opening a FIFO would wait for its other end.
    let is_device = image_type(path, metadata(path).map_err(failed)?.file_type())?;
    let mut flags = if cache.is_direct() { libc::O_DIRECT } else { 0 };
    if is_device && !read_only {
        // Claims a block device against mounts and other users (open(2)).
        flags |= libc::O_EXCL;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(flags)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    image_type(path, metadata.file_type())?;
    lock(&file, path, read_only)?;
    let mut image = Image::new(file, path.into());
    let size = image.size().map_err(failed)?;
    image.known.store(size, Ordering::Relaxed);
    check_size(path, size, block_size)?;
    if cache.is_direct() {
        image.direct = Some(direct_align(&image.file, path, cache, block_size)?);
        // The page cache has nothing to poll.
        image.completions = completions(&metadata);
    }
    let medium = medium(&metadata);
    let in_memory = in_memory(&image.file, &metadata);
    Ok(Opened {
        image,
        size,
        medium,
        in_memory,
    })
}

/// Whether it is a regular file on tmpfs or ramfs. The nodes of devices in `/dev` are on tmpfs, too, but
/// not what is behind them.
pub(super) fn in_memory(file: &File, metadata: &Metadata) -> bool {
    if !metadata.is_file() {
        return false;
    }
    // Not in libc (linux/magic.h).
    const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;
    // SAFETY: a plain structure of numbers.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: an open file and a structure to fill.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut found) };
    result == 0 && [libc::TMPFS_MAGIC, RAMFS_MAGIC].contains(&found.f_type)
}

fn medium(metadata: &Metadata) -> Medium {
    if metadata.file_type().is_block_device() {
        let number = metadata.rdev();
        return Medium::Device { number };
    }
    Medium::File {
        device: metadata.dev(),
        inode: metadata.ino(),
        created: metadata.created().ok(),
    }
}

/// Whether it is a block device; an error if it is not a regular file either.
fn image_type(path: &Path, kind: FileType) -> Result<bool, OpenError> {
    let what = if kind.is_file() || kind.is_block_device() {
        return Ok(kind.is_block_device());
    } else if kind.is_dir() {
        "directory"
    } else if kind.is_fifo() {
        "FIFO"
    } else if kind.is_socket() {
        "socket"
    } else {
        "character device"
    };
    let path = path.into();
    Err(OpenError::WrongType { path, what })
}

pub(super) fn explain(
    path: &Path,
    cache: CacheMode,
    read_only: bool,
    source: io::Error,
) -> OpenError {
    let path = path.to_path_buf();
    match source.raw_os_error() {
        Some(libc::ENOENT) => OpenError::NotFound { path },
        Some(libc::EACCES | libc::EPERM) => {
            let mode = if read_only {
                READING
            } else {
                "reading and writing"
            };
            OpenError::Permission { path, mode }
        }
        Some(libc::EROFS) => OpenError::ReadOnlyMedium { path },
        Some(libc::EBUSY) => OpenError::InUse { path },
        Some(libc::EINVAL) if cache.is_direct() => OpenError::DirectUnsupported { path, cache },
        _ => OpenError::Io { path, source },
    }
}

/// Locks the whole file against every other open of it, in this process too (fcntl(2), "Open file
/// description locks"). QEMU's image locks are bytes of the same kind, so they conflict as well.
fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), OpenError> {
    let kind = if read_only {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    let Err(source) = lock_soon(file, kind, || std::thread::sleep(LOCK_PAUSE)) else {
        return Ok(());
    };
    let path = path.into();
    Err(match source.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => OpenError::InUse { path },
        _ => OpenError::Lock { path, source },
    })
}

/// Tries for [`LOCK_LIMIT`]: a process that has just ended still holds its lock while the kernel takes
/// its io_uring apart. Between two tries it calls `pause`.
pub(super) fn lock_soon(file: &File, kind: libc::c_int, mut pause: impl FnMut()) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match set_lock(file, kind) {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES))
                    && Instant::now() < deadline =>
            {
                pause();
            }
            result => return result,
        }
    }
}

/// Takes the lock away again, before the last user of the open file has closed it.
pub(super) fn unlock(file: &File) {
    // A file that could be locked can be unlocked; there is nothing to do about a failure.
    let _ = set_lock(file, libc::F_UNLCK);
}

fn set_lock(file: &File, kind: libc::c_int) -> io::Result<()> {
    let lock = libc::flock {
        // All kinds are small.
        l_type: i16::try_from(kind).unwrap_or(i16::MAX),
        l_whence: 0, // SEEK_SET
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: an open file and a valid structure that the kernel only reads.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn check_size(path: &Path, size: u64, block_size: u32) -> Result<(), OpenError> {
    let path = path.to_path_buf();
    if size == 0 {
        return Err(OpenError::Empty { path });
    }
    if !size.is_multiple_of(block_size.into()) {
        return Err(OpenError::NotInBlocks {
            path,
            size,
            block_size,
        });
    }
    Ok(())
}

/// What O_DIRECT asks for: from the kernel (statx, Linux 6.1), else found by trying.
fn direct_align(
    file: &File,
    path: &Path,
    cache: CacheMode,
    block_size: u32,
) -> Result<DirectAlign, OpenError> {
    let align = statx_align(file).or_else(|| probe_align(file));
    let Some(align) = align.filter(|align| align.offset > 0) else {
        let path = path.into();
        return Err(OpenError::DirectUnsupported { path, cache });
    };
    if align.offset > block_size {
        return Err(OpenError::DirectBlockSize {
            path: path.into(),
            cache,
            needed: align.offset,
            block_size,
        });
    }
    Ok(align)
}

/// The kernel's word; 0 where the file cannot do O_DIRECT, `None` where the kernel is too old.
fn statx_align(file: &File) -> Option<DirectAlign> {
    // SAFETY: a plain structure of numbers.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an open file, an empty path that says so, and a structure to fill.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut stat,
        )
    };
    (result == 0 && stat.stx_mask & libc::STATX_DIOALIGN != 0).then_some(DirectAlign {
        memory: stat.stx_dio_mem_align.max(1),
        offset: stat.stx_dio_offset_align,
    })
}

/// The smallest aligned read that works.
fn probe_align(file: &File) -> Option<DirectAlign> {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let mut page = Box::new(Page([0; 4096]));
    let works = |len: &u32| file.read_at(&mut page.0[..*len as usize], 0).is_ok();
    let offset = [512, 1024, 2048, 4096].into_iter().find(works)?;
    let memory = offset;
    Some(DirectAlign { memory, offset })
}

/// Whether a hole can be punched, found out without changing the image.
pub(super) fn punches_holes(file: &File, size: u64) -> bool {
    let Ok(metadata) = file.metadata() else {
        return false;
    };
    if metadata.file_type().is_block_device() {
        return device_zeroes(&metadata);
    }
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: an open file; the range is behind its end, where nothing is.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, size.cast_signed(), 4096) == 0 }
}

/// Whether a block device can zero without data.
fn device_zeroes(metadata: &Metadata) -> bool {
    let limit = queue_attribute(&device_directory(metadata), "write_zeroes_max_bytes");
    limit.is_some_and(|bytes| bytes > 0)
}

/// A block device whose driver was given queues to be polled (`nvme.poll_queues=`) offers them; a
/// regular file goes through its file system.
fn completions(metadata: &Metadata) -> Completions {
    if metadata.file_type().is_block_device() {
        completions_of(&device_directory(metadata))
    } else {
        Completions::Interrupt
    }
}

pub(super) fn completions_of(device: &Path) -> Completions {
    match queue_attribute(device, "io_poll") {
        Some(1) => Completions::Pollable,
        _ => Completions::Interrupt,
    }
}

/// Where the kernel tells about a block device.
fn device_directory(metadata: &Metadata) -> PathBuf {
    let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
    format!("/sys/dev/block/{major}:{minor}").into()
}

/// A number that a block device's queue has. A partition asks the disk that it is on.
fn queue_attribute(device: &Path, name: &str) -> Option<u64> {
    let read = |queue| {
        let text = read_to_string(device.join(queue).join(name)).ok()?;
        text.trim().parse().ok()
    };
    read("queue").or_else(|| read("../queue"))
}
