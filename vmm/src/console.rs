//! The guest's console: what it prints to standard output, what the user types to the guest.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use devices::legacy::serial::SerialPort;

use crate::control::plain;
use crate::exit::{ExitReason, Outcome};
use crate::poll;

/// Bytes that wait for a slow reader before the guest waits with them.
const OUTPUT_LIMIT: usize = 256 << 10;
/// How long the guest waits for a reader that takes nothing at all.
const PATIENCE: Duration = Duration::from_secs(5);
/// Typed bytes that wait for a guest that does not read.
const TYPED_LIMIT: usize = 64 << 10;
/// `Ctrl-a`.
const ESCAPE: u8 = 1;

/// Output of a serial port. A thread of its own does the writing.
///
/// A reader that pauses loses nothing as long as it takes something every 5 seconds: first up to
/// 256 KiB wait for it, then the guest does. After 5 seconds without progress new bytes are dropped
/// and counted, so that a reader that is stuck stops only itself; when it goes on, so does the
/// output, and a warning says how much is missing. A reader that closed its end loses the rest,
/// silently; where nothing can be stored any more, on a full disk for example, a warning says so.
#[derive(Clone)]
pub struct Output(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Something to write, or the end.
    filled: Condvar,
    /// Something was written.
    drained: Condvar,
    name: &'static str,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    /// The thread has taken bytes that it has not written yet.
    writing: bool,
    /// The reader took nothing for [`PATIENCE`]; cleared when it does.
    stuck: bool,
    closed: bool,
    dropped: u64,
    /// Counts writes, to tell a slow reader from a stuck one.
    progress: u64,
}

impl Output {
    /// Starts the thread that writes to `sink`; `name` is for warnings.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn new(name: &'static str, sink: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
            name,
        });
        let writer = Arc::clone(&shared);
        thread::Builder::new()
            .name(name.into())
            .spawn(move || writer.run(sink))?;
        Ok(Self(shared))
    }

    /// Waits until everything is written, or the reader is stuck.
    pub fn finish(&self) {
        let mut state = self.0.lock();
        while (state.writing || !state.waiting.is_empty()) && !state.closed {
            state = match self.0.wait_for_progress(state) {
                (state, true) => state,
                (_, false) => return,
            };
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        while state.waiting.len() + bytes.len() > OUTPUT_LIMIT && !state.stuck && !state.closed {
            state = match self.0.wait_for_progress(state) {
                (state, true) => state,
                (mut state, false) => {
                    state.stuck = true;
                    state
                }
            };
        }
        if state.stuck {
            state.dropped += bytes.len() as u64;
        } else if !state.closed {
            state.waiting.extend(bytes);
            self.0.filled.notify_one();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for one write, and tells whether it came within [`PATIENCE`].
    fn wait_for_progress<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
    ) -> (MutexGuard<'a, State>, bool) {
        let seen = state.progress;
        let (state, timeout) = self
            .drained
            .wait_timeout_while(state, PATIENCE, |state| state.progress == seen)
            .unwrap_or_else(PoisonError::into_inner);
        (state, !timeout.timed_out())
    }

    fn run(&self, mut sink: impl Write) {
        let mut batch = VecDeque::new();
        let mut state = self.lock();
        loop {
            state = self
                .filled
                .wait_while(state, |state| state.waiting.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            mem::swap(&mut batch, &mut state.waiting);
            state.writing = true;
            drop(state);
            let result = self.write_all(&mut sink, &mut batch);
            state = self.lock();
            state.writing = false;
            state.progress += 1;
            self.drained.notify_all();
            if let Err(error) = result {
                if error.kind() != io::ErrorKind::BrokenPipe {
                    tracing::warn!(
                        "{}: {}; what the guest prints from now on is lost",
                        self.name,
                        plain(&error)
                    );
                }
                state.closed = true;
                state.waiting = VecDeque::new();
                return;
            }
            // A burst must not cost memory for ever.
            batch.shrink_to(4096);
        }
    }

    fn write_all(&self, sink: &mut impl Write, batch: &mut VecDeque<u8>) -> io::Result<()> {
        while !batch.is_empty() {
            // In parts, so that a slow reader counts as one that makes progress.
            let (front, _) = batch.as_slices();
            let part = front.len().min(4096);
            let count = write_some(sink, &front[..part])?;
            batch.drain(..count);
            if batch.is_empty() {
                sink.flush()?;
            }
            self.progressed();
        }
        Ok(())
    }

    fn progressed(&self) {
        let mut state = self.lock();
        state.progress += 1;
        if mem::take(&mut state.stuck) {
            let dropped = mem::take(&mut state.dropped);
            tracing::warn!(
                "{}: {dropped} bytes of guest output were dropped while nobody read them",
                self.name
            );
        }
        self.drained.notify_all();
    }
}

/// Writes a part of `bytes`, which is not empty; waits until that can be done.
///
/// # Errors
/// Those of the sink.
pub fn write_some(sink: &mut impl Write, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match sink.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            // Somebody else made the descriptor non-blocking: wait for it ourselves.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// berth's own streams, unbuffered: Rust's handle of standard output holds back incomplete lines.
pub enum Standard {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

impl Write for Standard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self {
            Self::Output => rustix::io::write(io::stdout(), bytes),
            Self::Error => rustix::io::write(io::stderr(), bytes),
        };
        Ok(written?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Passes console output on and watches it for a kernel panic.
///
/// Stock kernels have the pvpanic driver only as a module, so most panics are seen here.
pub struct PanicWatch<W> {
    inner: W,
    outcome: Arc<Outcome>,
    line: PanicLine,
}

impl<W> PanicWatch<W> {
    /// Watches what goes to `inner` and tells `outcome`.
    pub fn new(inner: W, outcome: Arc<Outcome>) -> Self {
        Self {
            inner,
            outcome,
            line: PanicLine::Start { matched: 0 },
        }
    }
}

impl<W: Write> Write for PanicWatch<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.line = self.line.next(byte);
            if self.line == PanicLine::Found {
                self.outcome.panic_seen();
            }
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// How much of a panic line was seen, with any `[...] ` prefixes (time, CPU or thread) before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PanicLine {
    /// So many bytes of the text matched, from the start of the line or behind prefixes.
    Start { matched: usize },
    /// Inside of a bracketed prefix.
    Prefix,
    /// Behind a bracketed prefix.
    Gap,
    /// All of the text matched.
    Found,
    /// Some other line.
    Other,
}

impl PanicLine {
    const TEXT: &'static [u8] = b"Kernel panic - not syncing";

    fn next(self, byte: u8) -> Self {
        match (self, byte) {
            (_, b'\n' | b'\r') => Self::Start { matched: 0 },
            (Self::Start { matched: 0 } | Self::Gap, b'[') => Self::Prefix,
            (Self::Prefix, b']') => Self::Gap,
            (Self::Prefix, _) => Self::Prefix,
            (Self::Gap, b' ') => Self::Gap,
            (Self::Gap, _) => Self::Start { matched: 0 }.next(byte),
            (Self::Start { matched }, _) if Self::TEXT.get(matched) == Some(&byte) => {
                if matched + 1 == Self::TEXT.len() {
                    Self::Found
                } else {
                    Self::Start {
                        matched: matched + 1,
                    }
                }
            }
            _ => Self::Other,
        }
    }
}

/// Starts the thread that feeds standard input to `port`.
///
/// From a terminal, `Ctrl-a x` ends the run and `Ctrl-a Ctrl-a` sends `Ctrl-a`; these must work even
/// if the guest does not read, so typed bytes beyond 64 KiB are dropped then. Anything else is passed
/// as it is and read only as fast as the guest takes it. The end of the input ends the thread only.
///
/// # Errors
/// No thread could be made.
pub fn start_input(port: Arc<SerialPort>, outcome: Arc<Outcome>, terminal: bool) -> io::Result<()> {
    let input = Input {
        port,
        outcome,
        escape: terminal.then(Escape::default),
        waiting: VecDeque::new(),
    };
    thread::Builder::new()
        .name("stdin".into())
        .spawn(move || input.run())?;
    Ok(())
}

struct Input {
    port: Arc<SerialPort>,
    outcome: Arc<Outcome>,
    /// Only a terminal has escapes.
    escape: Option<Escape>,
    waiting: VecDeque<u8>,
}

impl Input {
    fn run(mut self) {
        let mut open = true;
        while open || !self.waiting.is_empty() {
            let reading = open && (self.escape.is_some() || self.waiting.is_empty());
            let stdin = reading.then_some(libc::STDIN_FILENO);
            let wanted = self.port.wants_input().as_raw_fd();
            let [input, space] = poll::readable([stdin, Some(wanted)]);
            if space {
                // A spurious wake-up only means that nothing is accepted.
                let _ = self.port.wants_input().read();
            }
            if input {
                open = self.read();
            }
            self.feed();
            if self.outcome.reason().is_some() {
                return;
            }
        }
    }

    /// Reads what is there; false at the end of the input.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 1024];
        let count = match read_stdin(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return may_go_on(&error, self.escape.is_some()),
        };
        let Some(escape) = &mut self.escape else {
            self.waiting.extend(&buffer[..count]);
            return true;
        };
        for &byte in &buffer[..count] {
            match escape.next(byte) {
                Typed::Byte(byte) if self.waiting.len() < TYPED_LIMIT => {
                    self.waiting.push_back(byte);
                }
                Typed::Leave => self.outcome.end(ExitReason::Quit),
                Typed::Byte(_) | Typed::Nothing => {}
            }
        }
        true
    }

    fn feed(&mut self) {
        while !self.waiting.is_empty() {
            let (front, _) = self.waiting.as_slices();
            let accepted = self.port.enqueue(front);
            self.waiting.drain(..accepted);
            if accepted == 0 {
                break;
            }
        }
        if self.waiting.is_empty() {
            self.waiting.shrink_to(1024);
        }
    }
}

/// Whether standard input can be read again after this error.
pub fn may_go_on(error: &io::Error, terminal: bool) -> bool {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => true,
        // In the background a terminal cannot be read; it can again after `fg`.
        _ if terminal && error.raw_os_error() == Some(libc::EIO) => {
            thread::sleep(Duration::from_millis(200));
            true
        }
        _ => {
            tracing::warn!("standard input cannot be read: {error}");
            false
        }
    }
}

/// Reads standard input. Unbuffered: what Rust's own handle had read ahead, `poll` would not see.
///
/// # Errors
/// Those of read(2).
pub fn read_stdin(buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are of one live slice.
    let count = unsafe { libc::read(libc::STDIN_FILENO, buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// The `Ctrl-a` state of a terminal.
#[derive(Default)]
struct Escape {
    pending: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Typed {
    Byte(u8),
    Leave,
    Nothing,
}

impl Escape {
    fn next(&mut self, byte: u8) -> Typed {
        match (mem::take(&mut self.pending), byte) {
            (false, ESCAPE) => {
                self.pending = true;
                Typed::Nothing
            }
            (true, b'x') => Typed::Leave,
            (true, ESCAPE) | (false, _) => Typed::Byte(byte),
            (true, _) => Typed::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Instant;

    fn wait_until(limit: Duration, done: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        while !done() {
            if start.elapsed() > limit {
                return false;
            }
            thread::yield_now();
        }
        true
    }

    fn panic_in(text: &str) -> bool {
        let mut line = PanicLine::Start { matched: 0 };
        text.bytes().any(|byte| {
            line = line.next(byte);
            line == PanicLine::Found
        })
    }

    #[test]
    fn panics_are_seen_at_the_start_of_a_line_only() {
        for text in [
            "Kernel panic - not syncing: x",
            "foo\r\n[    1.234567] Kernel panic - not syncing",
            "\n[    1.2][    T1] Kernel panic - not syncing: VFS",
        ] {
            assert!(panic_in(text), "{text}");
        }
        for text in [
            "echo Kernel panic - not syncing",
            "Kernel panic",
            "KKernel panic - not syncing",
            "---[ end Kernel panic - not syncing ]---",
            "[ 1.0] x: Kernel panic - not syncing",
        ] {
            assert!(!panic_in(text), "{text}");
        }
    }

    #[test]
    fn only_ctrl_a_x_leaves() {
        let typed = |text: &[u8]| {
            let mut escape = Escape::default();
            text.iter()
                .map(|&byte| escape.next(byte))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            typed(b"x\x01x"),
            [Typed::Byte(b'x'), Typed::Nothing, Typed::Leave]
        );
        assert_eq!(typed(b"\x01\x01"), [Typed::Nothing, Typed::Byte(1)]);
        assert_eq!(
            typed(b"\x01qx"),
            [Typed::Nothing, Typed::Nothing, Typed::Byte(b'x')]
        );
    }

    /// Takes a message before each write, or fails when the sender is gone.
    struct Gated(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.1.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_reader_gets_everything() {
        let (open, gate) = mpsc::channel();
        let sink = Arc::default();
        let mut output = Output::new("test", Gated(gate, Arc::clone(&sink))).unwrap();
        let text = vec![7; OUTPUT_LIMIT];
        output.write_all(&text).unwrap();
        let reader = thread::spawn(move || while open.send(()).is_ok() {});
        output.write_all(&text).unwrap();
        output.finish();
        assert_eq!(sink.lock().unwrap().len(), 2 * OUTPUT_LIMIT);
        drop(reader);
    }

    #[test]
    fn a_closed_reader_neither_blocks_nor_fails_the_guest() {
        let (open, gate) = mpsc::channel();
        drop(open);
        let mut output = Output::new("test", Gated(gate, Arc::default())).unwrap();
        for _ in 0..4 {
            output.write_all(&vec![7; OUTPUT_LIMIT]).unwrap();
        }
        output.finish();
        assert!(output.0.lock().closed);
    }

    #[test]
    fn a_stuck_reader_holds_the_guest_for_a_limited_time() {
        let (open, gate) = mpsc::channel();
        let sink: Arc<Mutex<Vec<u8>>> = Arc::default();
        let mut output = Output::new("test", Gated(gate, Arc::clone(&sink))).unwrap();
        let start = Instant::now();
        for _ in 0..4 {
            output.write_all(&vec![7; OUTPUT_LIMIT]).unwrap();
        }
        assert!(start.elapsed() >= PATIENCE);
        assert!(start.elapsed() < PATIENCE * 3);
        assert!(output.0.lock().dropped > 0);
        // It goes on with the reader.
        drop(thread::spawn(move || while open.send(()).is_ok() {}));
        assert!(wait_until(PATIENCE, || !output.0.lock().stuck));
        output.write_all(b"x").unwrap();
        output.finish();
        assert_eq!(sink.lock().unwrap().last(), Some(&b'x'));
    }
}
