//! berth's own lines on standard error.
//!
//! `eprintln!` panics where it cannot write and waits without limit for a reader that does not read.
//! Either would let whoever reads the log end or stop the guest: here it costs lines of the log only.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a line that says how berth ends may wait for a reader.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// How long a line of the log may wait. Once one has waited in vain, the next ones do not.
const LOG_PATIENCE: Duration = Duration::from_millis(100);
/// A pipe that is writable has room for so many bytes (pipe(7), `PIPE_BUF`).
const PART: usize = libc::PIPE_BUF;

static STATE: Mutex<State> = Mutex::new(State {
    stuck: false,
    dropped: 0,
});

struct State {
    /// The last line found no room.
    stuck: bool,
    /// Lines of the log that were dropped since.
    dropped: u64,
}

/// Prints a line, which may be the last one.
pub fn say(line: impl Display) {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.put(format!("{line}\n").as_bytes(), LAST_PATIENCE);
}

/// Prints text as it is, for a line that is still to change.
pub fn put(text: &str) {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.put(text.as_bytes(), LOG_PATIENCE);
}

/// Where the log goes. A write is one event; it never fails.
pub struct Log;

impl Write for Log {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
        let patience = if state.stuck {
            Duration::ZERO
        } else {
            LOG_PATIENCE
        };
        state.put(event, patience);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl State {
    /// Writes `bytes` if they find room in time.
    fn put(&mut self, bytes: &[u8], patience: Duration) {
        if self.dropped > 0 && writable(patience) {
            let note = format!("berth: {} lines of the log were dropped\n", self.dropped);
            self.dropped = 0;
            write_part(note.as_bytes());
        }
        for part in bytes.chunks(PART) {
            self.stuck = !writable(patience);
            if self.stuck {
                self.dropped = self.dropped.saturating_add(1);
                return;
            }
            write_part(part);
        }
    }
}

/// Whether standard error takes bytes, or says at once that it does not.
fn writable(patience: Duration) -> bool {
    let mut fd = libc::pollfd {
        fd: libc::STDERR_FILENO,
        events: libc::POLLOUT,
        revents: 0,
    };
    let millis = libc::c_int::try_from(patience.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer is to one live structure.
    unsafe { libc::poll(&raw mut fd, 1, millis) > 0 }
}

/// Writes a part that finds room. Nobody is left to tell should it fail.
fn write_part(mut part: &[u8]) {
    while !part.is_empty() {
        // SAFETY: the pointer and the length are of one live slice.
        let count = unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
        match usize::try_from(count) {
            Ok(count) if count > 0 => part = &part[count..],
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}
