//! Between the command's pipes and the channel, until the command has ended.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process_group, pidfd_open, wait,
};

use super::link::{Link, PART};
use crate::guest_command::frames::{Piece, Short, Stream};

/// How long output may still come from processes that the command left behind.
const GRACE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// How long processes are heard that print without such a pause.
const HEARD: Duration = Duration::from_secs(2);
/// How long processes may take to end when they are killed.
const END_LIMIT: Duration = Duration::from_secs(2);
/// Orphans that ended are looked for so often.
const REAPING: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// A pipe from the command.
struct Output {
    stream: Stream,
    /// Until its end, or until nobody reads it outside.
    pipe: Option<File>,
    credit: usize,
    /// What was in the pipe when the command ended, and is still.
    left: usize,
}

impl Output {
    /// Notes what is in the pipe.
    fn measure(&mut self) -> io::Result<()> {
        if let Some(pipe) = &self.pipe {
            let bytes = rustix::io::ioctl_fionread(pipe)?;
            self.left = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        Ok(())
    }
}

/// Everything between the two.
pub struct Forwarder {
    link: Link,
    command: Pid,
    /// Readable when the command has ended.
    ended: OwnedFd,
    /// How it ended, and when that was seen.
    status: Option<(u8, Instant)>,
    outputs: [Output; 2],
    /// The command's input, until it ends.
    input: Option<File>,
    waiting: VecDeque<u8>,
    /// Nothing comes behind what waits.
    input_ends: bool,
    buffer: Vec<u8>,
}

/// The command's end, still to be told.
pub struct Status {
    link: Link,
    status: u8,
}

impl Status {
    /// Tells it. This is the last word.
    ///
    /// # Errors
    /// The port failed.
    pub fn report(mut self) -> io::Result<()> {
        self.link.short(&Short::Exit(self.status))
    }
}

/// What there was to wait for.
struct Ready {
    link: bool,
    outputs: [bool; 2],
    input: bool,
    nothing: bool,
}

impl Forwarder {
    /// Takes the pipes of the command.
    ///
    /// # Errors
    /// A pipe cannot be set up.
    pub fn new(link: Link, mut child: Child) -> io::Result<Self> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let command = pid.ok_or(ErrorKind::InvalidInput)?;
        let input = child.stdin.take().map(OwnedFd::from).map(File::from);
        if let Some(input) = &input {
            fcntl_setfl(input, OFlags::NONBLOCK)?;
        }
        let output = |stream, pipe: Option<OwnedFd>| Output {
            stream,
            pipe: pipe.map(File::from),
            credit: Stream::window(stream),
            left: 0,
        };
        Ok(Self {
            link,
            command,
            ended: pidfd_open(command, PidfdFlags::empty())?,
            status: None,
            outputs: [
                output(Stream::Stdout, child.stdout.take().map(Into::into)),
                output(Stream::Stderr, child.stderr.take().map(Into::into)),
            ],
            input,
            waiting: VecDeque::new(),
            input_ends: false,
            buffer: vec![0; PART],
        })
    }

    /// Forwards until the command has ended and its output is out; what it left behind is ended then.
    ///
    /// # Errors
    /// The channel failed.
    pub fn run(mut self) -> io::Result<Status> {
        loop {
            let ready = self.wait()?;
            self.reap()?;
            if ready.link {
                self.receive()?;
            }
            for (index, ready) in ready.outputs.into_iter().enumerate() {
                if ready {
                    self.forward(index)?;
                }
            }
            if ready.input || self.input_ends {
                self.feed()?;
            }
            if let Some((status, since)) = self.status
                && (self.is_done() || self.is_over(since, ready.nothing))
            {
                end_all();
                let link = self.link;
                return Ok(Status { link, status });
            }
        }
    }

    /// Waits for something to do.
    fn wait(&self) -> io::Result<Ready> {
        let mut fds = vec![PollFd::new(&self.link, PollFlags::IN)];
        let mut places = [None; 3];
        for (output, place) in self.outputs.iter().zip(&mut places) {
            if let (Some(pipe), true) = (&output.pipe, output.credit > 0) {
                *place = Some(fds.len());
                fds.push(PollFd::new(pipe, PollFlags::IN));
            }
        }
        if let (Some(pipe), false) = (&self.input, self.waiting.is_empty()) {
            places[2] = Some(fds.len());
            fds.push(PollFd::new(pipe, PollFlags::OUT));
        }
        let timeout = match self.status {
            None => {
                fds.push(PollFd::from_borrowed_fd(self.ended.as_fd(), PollFlags::IN));
                &REAPING
            }
            Some(_) => &GRACE,
        };
        let count = match poll(&mut fds, Some(timeout)) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let is_ready = |place: Option<usize>| place.is_some_and(|at| !fds[at].revents().is_empty());
        Ok(Ready {
            link: is_ready(Some(0)),
            outputs: [is_ready(places[0]), is_ready(places[1])],
            input: is_ready(places[2]),
            nothing: count == 0,
        })
    }

    /// Takes notice of processes that ended: the command, and orphans.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.command => {
                    self.status = Some((exit_status(status), Instant::now()));
                    self.input = None;
                    self.outputs.iter_mut().try_for_each(Output::measure)?;
                }
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes what berth outside sends.
    fn receive(&mut self) -> io::Result<()> {
        let Self {
            link,
            outputs,
            waiting,
            input_ends,
            ..
        } = self;
        link.receive(|piece| match piece {
            Piece::Data(_, bytes) => waiting.extend(bytes),
            Piece::Short(Short::StdinEnd) => *input_ends = true,
            Piece::Short(Short::Credit(stream, bytes)) => {
                let output = outputs.iter_mut().find(|output| output.stream == stream);
                if let Some(output) = output {
                    output.credit += usize::try_from(bytes).unwrap_or(0);
                }
            }
            Piece::Short(Short::Closed(stream)) => {
                let output = outputs.iter_mut().find(|output| output.stream == stream);
                if let Some(output) = output {
                    output.pipe = None;
                }
            }
            Piece::Short(_) => {}
        })
    }

    /// Sends some output.
    fn forward(&mut self, index: usize) -> io::Result<()> {
        let output = &mut self.outputs[index];
        let Some(pipe) = &mut output.pipe else {
            return Ok(());
        };
        let most = output.credit.min(PART);
        match pipe.read(&mut self.buffer[..most]) {
            Ok(0) => output.pipe = None,
            Ok(count) => {
                output.credit -= count;
                output.left = output.left.saturating_sub(count);
                self.link.data(output.stream, &self.buffer[..count])?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Gives the command what waits for it.
    fn feed(&mut self) -> io::Result<()> {
        let mut taken = 0;
        while let (Some(pipe), false) = (&mut self.input, self.waiting.is_empty()) {
            let (front, _) = self.waiting.as_slices();
            match pipe.write(front) {
                Ok(count) => {
                    self.waiting.drain(..count);
                    taken += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It closed its input.
                Err(_) => {
                    self.input = None;
                    self.waiting.clear();
                    self.link.short(&Short::Closed(Stream::Stdin))?;
                }
            }
        }
        if self.input_ends && self.waiting.is_empty() {
            self.input = None;
        }
        match u32::try_from(taken) {
            Ok(taken) if taken > 0 && self.input.is_some() => {
                self.link.short(&Short::Credit(Stream::Stdin, taken))
            }
            _ => Ok(()),
        }
    }

    fn is_done(&self) -> bool {
        self.outputs.iter().all(|output| output.pipe.is_none())
    }

    /// Whether what the command itself printed is passed on, and those that it left behind had their time.
    fn is_over(&self, since: Instant, quiet: bool) -> bool {
        let mut open = self.outputs.iter().filter(|output| output.pipe.is_some());
        // A reader outside may take its time.
        let waits = open.any(|output| output.left > 0 || output.credit == 0);
        !waits && (quiet || since.elapsed() > HEARD)
    }
}

/// The status that a shell would have.
fn exit_status(status: WaitStatus) -> u8 {
    let number = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    u8::try_from(number & 0xff).unwrap_or(255)
}

/// Ends all processes but this one, and waits until they are gone, or cannot be ended.
fn end_all() {
    // To all but this process, as kill(2) has it.
    if kill_process_group(Pid::INIT, Signal::KILL).is_err() {
        return;
    }
    let start = Instant::now();
    while start.elapsed() < END_LIMIT {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => thread::sleep(Duration::from_millis(1)),
            Err(_) => return,
        }
    }
}
