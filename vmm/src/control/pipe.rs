//! The FIFO pair `PATH.in` and `PATH.out`, QEMU's pipe convention.
//!
//! * `PATH.in` is opened for reading *and* writing: with a writer that is ourselves, the last client
//!   to close it leaves no end-of-file that would be readable for ever. It is also the lock of the
//!   pair (`flock`), which the kernel releases however berth ends.
//! * `PATH.out` is opened when there is something to say, and closed as soon as its last reader is
//!   gone. So a reader that is not there costs one failed `open` a line, and what a reader left unread
//!   is gone with it. The standard library ignores `SIGPIPE` at start.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::line::{Inbound, LineReader};
use super::outbox::Outbox;
use super::poller::{Interest, Poller};
use super::{ControlError, directory, kind, plain, sys};

/// How often a FIFO that vanishes while it is opened is tried again.
const ATTEMPTS: usize = 8;

/// Bytes read at once: bounds the commands done before others have their turn.
const READ_SIZE: usize = 4096;

/// `PATH.in` and `PATH.out` of a base path.
pub fn paths(base: &Path) -> (PathBuf, PathBuf) {
    let end = |suffix: &str| {
        let mut path = OsString::from(base);
        path.push(suffix);
        PathBuf::from(path)
    };
    (end(".in"), end(".out"))
}

/// Whether the pair can be made or accepted, as far as that can be told without touching it.
///
/// # Errors
/// One end is there and is no FIFO, or may not be used, or the directory is not there.
pub fn check(base: &Path) -> Result<(), ControlError> {
    let (input, output) = paths(base);
    for path in [&input, &output] {
        exists(path).map_err(|problem| error(base, problem))?;
    }
    Ok(())
}

fn error(base: &Path, problem: String) -> ControlError {
    ControlError {
        argument: format!("--control-pipe {}", base.display()),
        problem,
    }
}

/// Whether there is a FIFO that may be used; says what else is there.
fn exists(path: &Path) -> Result<bool, String> {
    let problem = |error: io::Error| format!("{}: {}", path.display(), plain(&error));
    match fs::metadata(path) {
        Ok(found) if found.file_type().is_fifo() => {
            sys::access(path, libc::R_OK | libc::W_OK).map_err(problem)?;
            Ok(true)
        }
        Ok(found) => Err(format!(
            "{} is {}, not a FIFO; remove it or choose another path",
            path.display(),
            kind(found.file_type())
        )),
        Err(missing) if missing.kind() == ErrorKind::NotFound => {
            let directory = directory(path);
            sys::access(directory, libc::W_OK | libc::X_OK)
                .map_err(|error| format!("{}: {}", directory.display(), plain(&error)))?;
            Ok(false)
        }
        Err(other) => Err(problem(other)),
    }
}

/// A FIFO file that disappears with berth if berth made it.
#[derive(Debug)]
struct Fifo {
    path: PathBuf,
    /// The file that berth made. Held (`O_PATH`), so that its inode number is nobody else's.
    made: Option<File>,
}

impl Fifo {
    /// Accepts the FIFO at `path`, or makes it.
    fn ensure(path: &Path) -> Result<Self, String> {
        if exists(path)? {
            return Ok(Self {
                path: path.to_owned(),
                made: None,
            });
        }
        match sys::mkfifo(path) {
            Ok(()) => {
                let options = libc::O_PATH | libc::O_NOFOLLOW;
                let made = OpenOptions::new()
                    .read(true)
                    .custom_flags(options)
                    .open(path)
                    .ok();
                Ok(Self {
                    path: path.to_owned(),
                    made,
                })
            }
            // Somebody was faster.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => exists(path).map(|_| Self {
                path: path.to_owned(),
                made: None,
            }),
            Err(error) => Err(format!("{}: {}", path.display(), plain(&error))),
        }
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        let made = self.made.as_ref().and_then(|made| made.metadata().ok());
        let Some(made) = made else { return };
        if fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == identity(&made)) {
            // Nobody is left to tell should this fail.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(found: &fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// Both ends, at most one reader for all replies.
#[derive(Debug)]
pub struct Pipe {
    // Dropped in this order: the files are removed while the lock is still held.
    _input: Fifo,
    output: Fifo,
    commands: File,
    replies: Option<File>,
    lines: LineReader,
    outbox: Outbox,
}

impl Pipe {
    /// Makes or accepts the pair and locks it.
    ///
    /// # Errors
    /// The pair cannot be used, or another berth uses it.
    pub fn open(base: &Path, poller: &Poller) -> Result<Self, ControlError> {
        let (input, output) = paths(base);
        let (input, commands) = open_input(&input).map_err(|problem| error(base, problem))?;
        let output = Fifo::ensure(&output).map_err(|problem| error(base, problem))?;
        poller
            .add(&commands, Poller::COMMANDS, Interest::Read)
            .map_err(|failed| error(base, plain(&failed)))?;
        Ok(Self {
            _input: input,
            output,
            commands,
            replies: None,
            lines: LineReader::default(),
            outbox: Outbox::default(),
        })
    }

    /// Lines that had no reader or no room.
    pub fn dropped(&self) -> u64 {
        self.outbox.dropped()
    }

    /// Reads what fits one turn.
    pub fn receive(&mut self) -> Vec<Inbound> {
        let mut buffer = [0; READ_SIZE];
        let mut lines = Vec::new();
        match self.commands.read(&mut buffer) {
            Ok(count) => self.lines.feed(&buffer[..count], &mut lines),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => tracing::warn!("control pipe: cannot read: {error}"),
        }
        lines
    }

    /// Sends a line, or counts it as dropped.
    pub fn send(&mut self, line: &[u8], poller: &Poller) {
        if self.replies.is_none() {
            self.replies = self.open_output(poller);
        }
        if self.replies.is_none() {
            self.outbox.count_dropped();
            return;
        }
        self.outbox.push(line);
        self.flush(poller);
    }

    /// Writes what waits, as far as there is room.
    pub fn flush(&mut self, poller: &Poller) {
        let Some(replies) = &mut self.replies else {
            return;
        };
        let written = self.outbox.write_to(replies);
        let interest = if self.outbox.is_empty() {
            Interest::Errors
        } else {
            Interest::Write
        };
        if written
            .and_then(|()| poller.modify(&*replies, Poller::REPLIES, interest))
            .is_err()
        {
            self.reader_gone();
        }
    }

    /// The last reader has closed `PATH.out`. Closing it too makes the kernel forget what is in it.
    pub fn reader_gone(&mut self) {
        self.replies = None;
        self.outbox.clear();
    }

    /// Opens `PATH.out` if it has a reader.
    fn open_output(&self, poller: &Poller) -> Option<File> {
        let options = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(options)
            .open(&self.output.path);
        let checked = file.and_then(|file| {
            // Somebody may have put another file there.
            if !file.metadata()?.file_type().is_fifo() {
                return Err(io::Error::from_raw_os_error(libc::ENOSTR));
            }
            poller.add(&file, Poller::REPLIES, Interest::Errors)?;
            Ok(file)
        });
        match checked {
            Ok(file) => Some(file),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => None,
            Err(error) => {
                tracing::debug!("{}: {error}", self.output.path.display());
                None
            }
        }
    }
}

/// Opens and locks `PATH.in`.
fn open_input(path: &Path) -> Result<(Fifo, File), String> {
    let problem = |error: io::Error| format!("{}: {}", path.display(), plain(&error));
    for _ in 0..ATTEMPTS {
        let mut fifo = Fifo::ensure(path)?;
        let options = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(options)
            .open(path);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(problem(error)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                // Whoever made it, it is theirs now.
                fifo.made = None;
                return Err(format!("{} is in use by another berth", path.display()));
            }
            Err(fs::TryLockError::Error(error)) => return Err(problem(error)),
        }
        // The berth that had it may have removed it between our open and our lock.
        let opened = file.metadata().map_err(problem)?;
        let still = fs::metadata(path).is_ok_and(|found| identity(&found) == identity(&opened));
        if still && opened.file_type().is_fifo() {
            return Ok((fifo, file));
        }
    }
    Err(format!(
        "{} keeps changing; does something else use that path?",
        path.display()
    ))
}
