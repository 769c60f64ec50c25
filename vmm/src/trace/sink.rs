//! Where a trace is written: a file, or a FIFO that somebody reads.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::control::{plain, sys};
use crate::machine::lock;

/// How long a reader that takes nothing keeps the end of a trace waiting.
const PATIENCE: Duration = Duration::from_secs(3);

/// An open file.
#[derive(Debug)]
pub struct Sink {
    file: File,
}

impl Sink {
    /// Opens `path`: a file is made, or emptied; a FIFO needs a reader, which may take `patience` to come.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn open(path: &Path, patience: Duration) -> Result<Self, String> {
        let fifo = fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo());
        let file = if fifo {
            open_fifo(path, patience)?
        } else {
            open_file(path).map_err(|error| plain(&error))?
        };
        Ok(Self { file })
    }

    /// Writes all of `bytes`. A FIFO whose reader pauses is waited for, unless `stopping` says that it
    /// is not worth it.
    ///
    /// # Errors
    /// No space is left, the reader is gone, or it took nothing for a while when the trace ended.
    pub fn write_all(&mut self, mut bytes: &[u8], stopping: impl Fn() -> bool) -> io::Result<()> {
        let mut progress = Instant::now();
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    progress = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if stopping() && progress.elapsed() >= PATIENCE {
                        return Err(io::Error::other("its reader takes nothing"));
                    }
                    let deadline = Instant::now() + Duration::from_millis(100);
                    sys::poll([(self.file.as_fd(), libc::POLLOUT)], deadline)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

pub(super) fn open_file(path: &Path) -> io::Result<File> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        // A line that nobody answers, or a FIFO that was just put here, would be waited for.
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        // Before anything in it is lost: it may be an image, or the trace of another berth.
        lock(&file)?;
        file.set_len(0)?;
    }
    Ok(file)
}

/// Opened for writing alone, so that a reader that goes away is noticed; without a wait, which would have
/// no limit.
fn open_fifo(path: &Path, patience: Duration) -> Result<File, String> {
    let deadline = Instant::now() + patience;
    loop {
        let opened = File::options()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path);
        match opened {
            Ok(file) => return Ok(file),
            Err(error) if error.raw_os_error() != Some(libc::ENXIO) => return Err(plain(&error)),
            Err(_) if Instant::now() >= deadline => {
                let path = path.display();
                return Err(format!(
                    "nobody reads this FIFO; start its reader first, for example: \
                     berth trace summary {path}"
                ));
            }
            // Nothing tells when a reader comes.
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
