//! What the command prints, on its way to berth's own standard output and standard error.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use vmm_sys_util::eventfd::EventFd;

use super::channel::Outbox;
use super::frames::{Short, Stream};
use crate::console::write_some;

/// Written at once, so that a slow reader gives credit back in parts.
const PART: usize = 64 << 10;

/// One of the two streams. A thread of its own writes; nothing is dropped as long as somebody reads.
///
/// The guest sends no more than it has credit for, and gets that back as bytes are written: a reader that
/// is slow stops the command, and nothing else.
#[derive(Clone)]
pub struct Output(Arc<Shared>);

struct Shared {
    stream: Stream,
    state: Mutex<State>,
    filled: Condvar,
    outbox: Arc<Outbox>,
    /// Signalled when everything is written.
    drained: EventFd,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    /// The thread has taken bytes that it has not written yet.
    writing: bool,
    /// Bytes of the guest's credit that it has not got back.
    held: usize,
    /// Nobody reads any more.
    closed: bool,
}

/// The guest sent more than it had credit for.
#[derive(Debug, PartialEq, Eq)]
pub struct Overrun;

impl Output {
    /// Starts the thread that writes `stream` to `sink`.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn new(
        stream: Stream,
        outbox: Arc<Outbox>,
        drained: EventFd,
        sink: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            stream,
            state: Mutex::default(),
            filled: Condvar::new(),
            outbox,
            drained,
        });
        let writer = Arc::clone(&shared);
        let name = format!("{stream:?}").to_lowercase();
        thread::Builder::new()
            .name(name)
            .spawn(move || writer.run(sink))?;
        Ok(Self(shared))
    }

    /// Takes bytes from the guest. Never waits.
    ///
    /// # Errors
    /// They are more than the guest had credit for.
    pub fn receive(&self, bytes: &[u8]) -> Result<(), Overrun> {
        let mut state = self.0.lock();
        if state.closed {
            return Ok(());
        }
        if bytes.len() > self.0.stream.window() - state.held {
            return Err(Overrun);
        }
        state.held += bytes.len();
        state.waiting.extend(bytes);
        self.0.filled.notify_one();
        Ok(())
    }

    /// Whether all that was received is written, or will never be.
    pub fn is_drained(&self) -> bool {
        let state = self.0.lock();
        state.closed || state.waiting.is_empty() && !state.writing
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
            if let Err(error) = result {
                // What is left goes nowhere.
                (state.closed, state.waiting) = (true, VecDeque::new());
                drop(state);
                self.closed(&error);
                return;
            }
            if state.waiting.is_empty() {
                self.tell_drained();
            }
        }
    }

    fn write_all(&self, sink: &mut impl Write, batch: &mut VecDeque<u8>) -> io::Result<()> {
        while !batch.is_empty() {
            let (front, _) = batch.as_slices();
            let part = front.len().min(PART);
            let count = write_some(sink, &front[..part])?;
            batch.drain(..count);
            self.lock().held -= count;
            self.outbox.credit(self.stream, count);
        }
        Ok(())
    }

    /// The guest learns that nobody reads, so that whoever writes there gets the signal or the error that
    /// it would get here.
    fn closed(&self, error: &io::Error) {
        if error.kind() != ErrorKind::BrokenPipe {
            tracing::warn!("{:?} of the command: {error}", self.stream);
        }
        self.outbox.short(&Short::Closed(self.stream));
        self.tell_drained();
    }

    fn tell_drained(&self) {
        // Only a counter that is full can fail, and then the event is readable already.
        let _ = self.drained.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    const LIMIT: Duration = Duration::from_secs(60);

    /// A sink that takes a part whenever the test lets it.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(|_| ErrorKind::BrokenPipe)?;
            self.1.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Fixture {
        output: Output,
        outbox: Arc<Outbox>,
        drained: EventFd,
        go: mpsc::Sender<()>,
        written: mpsc::Receiver<Vec<u8>>,
    }

    fn fixture(stream: Stream) -> Fixture {
        let outbox = Arc::new(Outbox::new().unwrap());
        let drained = EventFd::new(EFD_NONBLOCK).unwrap();
        let (go, may) = mpsc::channel();
        let (report, written) = mpsc::channel();
        let sink = Slow(may, report);
        let output = Output::new(
            stream,
            Arc::clone(&outbox),
            drained.try_clone().unwrap(),
            sink,
        );
        Fixture {
            output: output.unwrap(),
            outbox,
            drained,
            go,
            written,
        }
    }

    /// Waits until the stream has nothing left to write.
    fn wait_drained(fixture: &Fixture) {
        use std::os::fd::AsRawFd;
        while !fixture.output.is_drained() {
            crate::poll::readable([Some(fixture.drained.as_raw_fd())]);
        }
    }

    #[test]
    fn no_more_than_a_window_is_held_and_credit_returns_with_writing() {
        let fixture = fixture(Stream::Stderr);
        let window = Stream::Stderr.window();
        fixture.output.receive(&vec![1; window - 1]).unwrap();
        fixture.output.receive(&[2]).unwrap();
        assert_eq!(fixture.output.receive(&[3]), Err(Overrun));
        assert!(!fixture.output.is_drained());
        let mut written = Vec::new();
        while written.len() < window {
            fixture.go.send(()).unwrap();
            written.extend(fixture.written.recv_timeout(LIMIT).unwrap());
        }
        assert_eq!(written[..window - 1], vec![1; window - 1]);
        assert_eq!(written[window - 1..], [2]);
        wait_drained(&fixture);
        let credit = Short::Credit(Stream::Stderr, u32::try_from(window).unwrap());
        assert_eq!(fixture.outbox.take_control(), credit.encode());
        fixture.output.receive(&vec![4; window]).unwrap();
    }

    #[test]
    fn a_reader_that_is_gone_is_told_to_the_guest_once() {
        let Fixture {
            output,
            outbox,
            drained,
            go,
            written,
        } = fixture(Stream::Stdout);
        drop(go);
        output.receive(b"x").unwrap();
        while !output.is_drained() {
            use std::os::fd::AsRawFd;
            crate::poll::readable([Some(drained.as_raw_fd())]);
        }
        assert!(written.recv_timeout(LIMIT).is_err(), "nothing was written");
        assert_eq!(
            outbox.take_control(),
            Short::Closed(Stream::Stdout).encode()
        );
        // What was on its way is no offence, however much it is.
        output.receive(&vec![0; Stream::Stdout.window()]).unwrap();
        output.receive(&vec![0; Stream::Stdout.window()]).unwrap();
        assert!(output.is_drained());
    }
}
