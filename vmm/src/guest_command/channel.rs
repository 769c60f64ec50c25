//! berth's end of COM2: takes the command's output and its status, sends its input.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use devices::legacy::serial::SerialPort;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::NO_REPORT;
use super::frames::{Decoder, Piece, Short, Stream, VERSION, data_header};
use super::input::InputPort;
use super::streams::Output;
use super::tail::printable;
use crate::console::{Standard, may_go_on, read_stdin};
use crate::exit::{ExitReason, Outcome};
use crate::poll;
use crate::signals::Signals;
use crate::terminal;

/// Input that is sent as data at once; credit for output has to wait so long at most.
const INPUT_PART: usize = 1024;
/// Input that is read at once.
const INPUT_LIMIT: usize = Stream::Stdin.window();

/// What is to be sent to the guest. Bounded: counters, and at most one notice of each kind.
pub struct Outbox {
    state: Mutex<Pending>,
    wake: EventFd,
}

#[derive(Default)]
struct Pending {
    /// For standard output and standard error.
    credit: [u32; 2],
    notices: Vec<u8>,
    input: Input,
}

/// The guest's readiness for standard input.
#[derive(Default)]
enum Input {
    /// It is not up yet.
    #[default]
    Unready,
    /// It takes so much.
    Open(Room),
    /// It wants no more.
    Closed,
}

/// Input that the guest takes.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Room {
    bytes: usize,
    /// At the port for it.
    at_port: bool,
}

impl Outbox {
    /// Nothing to be sent.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::default(),
            wake: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Gives credit for output back.
    pub fn credit(&self, stream: Stream, bytes: usize) {
        let index = usize::from(stream == Stream::Stderr);
        let mut state = self.lock();
        // Never more than a window.
        let bytes = u32::try_from(bytes).unwrap_or(0);
        state.credit[index] = state.credit[index].saturating_add(bytes);
        self.wake();
    }

    /// Sends a notice, of which there are few in the life of a guest.
    pub fn short(&self, frame: &Short) {
        self.lock().notices.extend(frame.encode());
        self.wake();
    }

    /// Takes what is not input.
    pub fn take_control(&self) -> Vec<u8> {
        let mut state = self.lock();
        let mut bytes = std::mem::take(&mut state.notices);
        let credit = std::mem::take(&mut state.credit);
        for (stream, credit) in [Stream::Stdout, Stream::Stderr].into_iter().zip(credit) {
            if credit > 0 {
                bytes.extend(Short::Credit(stream, credit).encode());
            }
        }
        bytes
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Only a counter that is full can fail, and then the event is readable already.
        let _ = self.wake.write(1);
    }

    /// The input that the guest takes now; nothing if it never will again.
    fn input_room(&self) -> Option<Room> {
        match self.lock().input {
            Input::Unready => Some(Room::default()),
            Input::Open(room) => Some(room),
            Input::Closed => None,
        }
    }

    fn used(&self, count: usize) {
        if let Input::Open(room) = &mut self.lock().input {
            room.bytes = room.bytes.saturating_sub(count);
        }
    }
}

/// berth's end of the channel.
pub struct Channel {
    outbox: Arc<Outbox>,
    input: Arc<InputPort>,
    outputs: [Output; 2],
    drained: EventFd,
    outcome: Arc<Outcome>,
}

impl Channel {
    /// Makes the channel, whose output goes to berth's own standard output and standard error, and the sink
    /// for what the guest sends to COM2.
    ///
    /// # Errors
    /// No thread or no file descriptor left.
    pub fn new(outcome: &Arc<Outcome>) -> io::Result<(Self, FromGuest)> {
        Self::with_sinks(outcome, Standard::Output, Standard::Error)
    }

    fn with_sinks(
        outcome: &Arc<Outcome>,
        stdout: impl Write + Send + 'static,
        stderr: impl Write + Send + 'static,
    ) -> io::Result<(Self, FromGuest)> {
        let outbox = Arc::new(Outbox::new()?);
        let input = Arc::new(InputPort::default());
        let drained = EventFd::new(EFD_NONBLOCK)?;
        let outputs = [
            Output::new(
                Stream::Stdout,
                Arc::clone(&outbox),
                drained.try_clone()?,
                stdout,
            )?,
            Output::new(
                Stream::Stderr,
                Arc::clone(&outbox),
                drained.try_clone()?,
                stderr,
            )?,
        ];
        let from_guest = FromGuest {
            decoder: Decoder::default(),
            outbox: Arc::clone(&outbox),
            input: Arc::clone(&input),
            outputs: outputs.clone(),
            outcome: Arc::clone(outcome),
            phase: Phase::Starting,
        };
        let channel = Self {
            outbox,
            input,
            outputs,
            drained,
            outcome: Arc::clone(outcome),
        };
        Ok((channel, from_guest))
    }

    /// What is to be at the guest's port for input.
    #[must_use]
    pub fn input_port(&self) -> Arc<InputPort> {
        Arc::clone(&self.input)
    }

    /// Starts the thread that sends through `port`, which is COM2: input, and credit for output.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn start(&self, port: Arc<SerialPort>) -> io::Result<()> {
        let sender = Sender {
            outbox: Arc::clone(&self.outbox),
            input: Arc::clone(&self.input),
            port,
            outcome: Arc::clone(&self.outcome),
            sending: Vec::new(),
            sent: 0,
        };
        thread::Builder::new()
            .name("stdin".into())
            .spawn(move || sender.run())?;
        Ok(())
    }

    /// Waits until what the guest sent is written, or a signal comes, which is returned: a reader may take
    /// its time.
    pub fn finish(&self, signals: &Signals) -> Option<i32> {
        while !self.outputs.iter().all(Output::is_drained) {
            let [drained, signalled] =
                poll::readable([Some(self.drained.as_raw_fd()), Some(signals.as_raw_fd())]);
            if drained {
                // A spurious wake-up only means another look.
                let _ = self.drained.read();
            }
            if signalled {
                match signals.next() {
                    Some(libc::SIGTSTP) => terminal::stop_process(),
                    Some(libc::SIGCONT) | None => {}
                    Some(signal) => return Some(signal),
                }
            }
        }
        None
    }
}

/// Where the guest is.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Running,
    /// It said how the command ended, or is not listened to any more.
    Ended,
}

/// Takes what the guest sends. Never waits and never fails: a guest that does not keep to the rules ends
/// the run.
pub struct FromGuest {
    decoder: Decoder,
    outbox: Arc<Outbox>,
    input: Arc<InputPort>,
    outputs: [Output; 2],
    outcome: Arc<Outcome>,
    phase: Phase,
}

impl Write for FromGuest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut decoder = std::mem::take(&mut self.decoder);
        let mut problem = None;
        let result = decoder.feed(bytes, |piece| {
            if problem.is_none() && self.phase != Phase::Ended {
                problem = self.take(piece).err();
            }
        });
        self.decoder = decoder;
        let problem = problem.or_else(|| Some(result.err()?.to_string()));
        if let (Some(problem), true) = (problem, self.phase != Phase::Ended) {
            let why = format!("the guest sent nonsense on COM2: {problem}");
            self.end(ExitReason::NotRun {
                status: NO_REPORT,
                why,
            });
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl FromGuest {
    fn end(&mut self, reason: ExitReason) {
        self.phase = Phase::Ended;
        self.outcome.end(reason);
    }

    fn take(&mut self, piece: Piece<'_>) -> Result<(), String> {
        let [stdout, stderr] = &self.outputs;
        let overrun = |_| "more output than it had credit for".to_owned();
        let frame = match piece {
            Piece::Data(_, _) if self.phase == Phase::Starting => {
                return Err("output before it was ready".to_owned());
            }
            Piece::Data(Stream::Stdout, bytes) => return stdout.receive(bytes).map_err(overrun),
            Piece::Data(Stream::Stderr, bytes) => return stderr.receive(bytes).map_err(overrun),
            Piece::Data(Stream::Stdin, _) => return Err("input".to_owned()),
            Piece::Short(frame) => frame,
        };
        match (frame, &self.phase) {
            (Short::Ready(VERSION, at_port), Phase::Starting) => {
                self.phase = Phase::Running;
                let bytes = Stream::Stdin.window();
                self.input(Input::Open(Room { bytes, at_port }));
            }
            (Short::Ready(version, _), Phase::Starting) => {
                return Err(format!("it speaks version {version}"));
            }
            (Short::Failed(status, why), _) => {
                let why = printable(&why);
                self.end(ExitReason::NotRun { status, why });
            }
            (Short::Credit(Stream::Stdin, bytes), Phase::Running) => return self.room(bytes),
            (Short::Closed(Stream::Stdin), Phase::Running) => self.input(Input::Closed),
            (Short::Exit(status), Phase::Running) => self.end(ExitReason::Command(status)),
            (frame, phase) => return Err(format!("{frame:?} while {phase:?}")),
        }
        Ok(())
    }

    fn input(&self, input: Input) {
        self.outbox.lock().input = input;
        self.outbox.wake();
    }

    fn room(&self, bytes: u32) -> Result<(), String> {
        let mut state = self.outbox.lock();
        if let Input::Open(room) = &mut state.input {
            let more = usize::try_from(bytes).unwrap_or(usize::MAX);
            room.bytes = room.bytes.saturating_add(more);
            if room.bytes > Stream::Stdin.window() {
                return Err("more credit than there is".to_owned());
            }
            self.input.release(more);
        }
        self.outbox.wake();
        Ok(())
    }
}

/// Sends to the guest, as fast as it takes it.
struct Sender {
    outbox: Arc<Outbox>,
    input: Arc<InputPort>,
    port: Arc<SerialPort>,
    outcome: Arc<Outcome>,
    sending: Vec<u8>,
    sent: usize,
}

impl Sender {
    fn run(mut self) {
        let terminal = terminal::is_terminal();
        let mut open = true;
        while self.outcome.reason().is_none() {
            self.feed();
            // Also what was told of while the rest of something else was on its way.
            while self.sent == self.sending.len() {
                (self.sending, self.sent) = (self.outbox.take_control(), 0);
                if self.sending.is_empty() {
                    break;
                }
                self.feed();
            }
            let idle = self.sent == self.sending.len();
            let room = self.outbox.input_room();
            open &= room.is_some();
            let room = room.unwrap_or_default();
            let stdin = (open && idle && room.bytes > 0).then_some(libc::STDIN_FILENO);
            let wanted = self.port.wants_input().as_raw_fd();
            let wake = self.outbox.wake.as_raw_fd();
            let [input, space, woken] = poll::readable([stdin, Some(wanted), Some(wake)]);
            // Spurious wake-ups only mean another look.
            if space {
                let _ = self.port.wants_input().read();
            }
            if woken {
                let _ = self.outbox.wake.read();
            }
            if input {
                open = self.read(room, terminal);
            }
        }
    }

    /// Reads input for the guest; false if it ended.
    fn read(&mut self, room: Room, terminal: bool) -> bool {
        let mut buffer = [0; INPUT_LIMIT];
        let limit = if room.at_port {
            INPUT_LIMIT
        } else {
            INPUT_PART
        };
        let most = room.bytes.min(limit);
        let open = match read_stdin(&mut buffer[..most]) {
            Ok(count) if count > 0 => {
                self.send_input(&buffer[..count], room.at_port);
                true
            }
            Ok(_) => false,
            Err(error) => may_go_on(&error, terminal),
        };
        if !open {
            self.sending.extend(Short::StdinEnd.encode());
        }
        open
    }

    fn send_input(&mut self, bytes: &[u8], at_port: bool) {
        // At most INPUT_LIMIT.
        let length = u16::try_from(bytes.len()).unwrap_or(0);
        if at_port {
            self.input.offer(bytes);
            self.sending.extend(Short::Input(length).encode());
        } else {
            self.sending.extend(data_header(Stream::Stdin, length));
            self.sending.extend(bytes);
        }
        self.outbox.used(bytes.len());
    }

    fn feed(&mut self) {
        while self.sent < self.sending.len() {
            let accepted = self.port.enqueue(&self.sending[self.sent..]);
            self.sent += accepted;
            if accepted == 0 {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::bus::BusDevice;

    struct Fixture {
        channel: Channel,
        guest: FromGuest,
        outcome: Arc<Outcome>,
    }

    fn fixture() -> Fixture {
        let outcome = Arc::new(Outcome::new().unwrap());
        let (channel, guest) = Channel::with_sinks(&outcome, io::sink(), io::sink()).unwrap();
        Fixture {
            channel,
            guest,
            outcome,
        }
    }

    fn data(stream: Stream, bytes: &[u8]) -> Vec<u8> {
        let header = data_header(stream, u16::try_from(bytes.len()).unwrap());
        [&header, bytes].concat()
    }

    /// How a guest that sends these frames ends.
    fn ends(frames: &[Vec<u8>]) -> Option<ExitReason> {
        let mut fixture = fixture();
        for frame in frames {
            assert_eq!(fixture.guest.write(frame).unwrap(), frame.len());
        }
        fixture.outcome.reason().cloned()
    }

    fn ready() -> Vec<u8> {
        Short::Ready(VERSION, false).encode()
    }

    #[test]
    fn a_status_ends_the_run() {
        let exit = Short::Exit(7).encode();
        let after = [ready(), exit.clone(), exit.clone(), vec![0; 99]];
        assert_eq!(ends(&after), Some(ExitReason::Command(7)));
        assert_eq!(ends(&[ready(), data(Stream::Stdout, b"x")]), None);
        let failed = Short::Failed(127, "x\x1b[31m: not found\n".into()).encode();
        let expected = ExitReason::NotRun {
            status: 127,
            why: "x[31m: not found".into(),
        };
        assert_eq!(ends(std::slice::from_ref(&failed)), Some(expected.clone()));
        assert_eq!(ends(&[ready(), failed]), Some(expected));
    }

    #[test]
    fn guests_that_break_the_rules_are_ended() {
        let credit = |stream, bytes| Short::Credit(stream, bytes).encode();
        let window = u32::try_from(Stream::Stdin.window()).unwrap();
        for (frames, words) in [
            (vec![vec![99, 0, 0]], "no such frame: kind 99"),
            (vec![data(Stream::Stdout, b"x")], "before it was ready"),
            (vec![Short::Exit(0).encode()], "Exit(0) while Starting"),
            (vec![Short::Ready(9, true).encode()], "version 9"),
            (vec![ready(), ready()], "Ready(2, false) while Running"),
            (vec![ready(), data(Stream::Stdin, b"x")], "input"),
            (vec![ready(), Short::StdinEnd.encode()], "StdinEnd"),
            (vec![ready(), Short::Input(1).encode()], "Input"),
            (vec![ready(), credit(Stream::Stdout, 1)], "Credit"),
            (vec![ready(), credit(Stream::Stdin, 1)], "more credit"),
            (
                vec![ready(), credit(Stream::Stdin, u32::MAX)],
                "more credit",
            ),
            (
                vec![ready(), Short::Closed(Stream::Stderr).encode()],
                "Closed",
            ),
        ] {
            match ends(&frames) {
                Some(ExitReason::NotRun { status: 255, why }) => {
                    assert!(why.contains(words), "{why}");
                }
                other => panic!("{words}: {other:?}"),
            }
        }
        let mut fixture = fixture();
        fixture.guest.write_all(&ready()).unwrap();
        fixture.channel.outbox.used(Stream::Stdin.window());
        fixture
            .guest
            .write_all(&credit(Stream::Stdin, window))
            .unwrap();
        assert_eq!(fixture.outcome.reason(), None);
        let room = fixture.channel.outbox.input_room().unwrap();
        assert_eq!(room.bytes, window as usize);
        let closed = Short::Closed(Stream::Stdin).encode();
        fixture.guest.write_all(&closed).unwrap();
        assert_eq!(fixture.channel.outbox.input_room(), None);
    }

    #[test]
    fn input_that_was_passed_on_is_forgotten() {
        let mut fixture = fixture();
        let ready = Short::Ready(VERSION, true).encode();
        fixture.guest.write_all(&ready).unwrap();
        let room = Room {
            bytes: Stream::Stdin.window(),
            at_port: true,
        };
        assert_eq!(fixture.channel.outbox.input_room(), Some(room));
        let port = fixture.channel.input_port();
        port.offer(b"abc");
        fixture.channel.outbox.used(3);
        let credit = Short::Credit(Stream::Stdin, 2).encode();
        fixture.guest.write_all(&credit).unwrap();
        // The guest cannot go back behind it.
        port.write(0, &[0; 4]);
        let mut place = [0; 4];
        port.read(0, &mut place);
        assert_eq!(u32::from_le_bytes(place), 2);
    }

    /// However much a guest prints, no more than the windows are held; what is too much ends it.
    #[test]
    fn output_is_bounded_by_credit() {
        struct Stuck;
        impl Write for Stuck {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                loop {
                    thread::park();
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let outcome = Arc::new(Outcome::new().unwrap());
        let (_channel, mut guest) = Channel::with_sinks(&outcome, Stuck, io::sink()).unwrap();
        guest.write_all(&ready()).unwrap();
        let part = data(Stream::Stdout, &[0; 16 << 10]);
        for _ in 0..Stream::Stdout.window() / (16 << 10) {
            guest.write_all(&part).unwrap();
            assert_eq!(outcome.reason(), None);
        }
        guest.write_all(&data(Stream::Stdout, b"x")).unwrap();
        assert!(matches!(outcome.reason(), Some(ExitReason::NotRun { .. })));
    }

    #[test]
    fn noise_never_panics() {
        let mut seed = 88_172_645_463_325_252_u64;
        for _ in 0..2000 {
            let mut fixture = fixture_without_threads();
            for _ in 0..30 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let mut bytes = seed.to_le_bytes();
                bytes[0] %= 10;
                bytes[1] %= 8;
                bytes[2] = 0;
                fixture.write_all(&bytes).unwrap();
            }
        }
    }

    thread_local! {
        static SHARED: Fixture = fixture();
    }

    /// The threads of one channel do for all.
    fn fixture_without_threads() -> FromGuest {
        SHARED.with(|fixture| FromGuest {
            decoder: Decoder::default(),
            outbox: Arc::clone(&fixture.channel.outbox),
            input: Arc::clone(&fixture.channel.input),
            outputs: fixture.channel.outputs.clone(),
            outcome: Arc::new(Outcome::new().unwrap()),
            phase: Phase::Running,
        })
    }
}
