//! `berth ctl`: sends one command and waits for its reply.
//!
//! On a socket every client has its own stream. On a FIFO pair a reply goes to whoever reads first, so
//! clients take turns by a lock on `PATH.out` while they work; the token tells a client its own reply
//! from events and from what others left. A reader that takes no lock (`cat PATH.out`) can still
//! steal the reply; then the time limit says so.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::command::{self, Line};
use super::line::MAX_LINE;
use super::{kind, lock_until, pipe, plain, sys, watch};

/// Longest reply that is taken in bytes.
const MAX_REPLY: usize = 64 << 20;

/// What `berth ctl` was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CtlConfig {
    /// A socket, or the base of a FIFO pair.
    pub path: PathBuf,
    /// What to do there.
    pub action: Action,
    /// Limit on everything, beyond the command's own `wait=`.
    pub timeout: Duration,
    /// How the reply is printed.
    pub output: Output,
}

/// How replies are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Output {
    /// For people: text as it is, the rest as indented JSON; errors on standard error.
    #[default]
    Text,
    /// For programs: the reply as a line of JSON, errors that berth replied included.
    Json,
}

/// Whether berth did what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It did.
    Yes,
    /// It refused, which is printed.
    Refused,
}

/// What `berth ctl` does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Sends a command, without newlines, and prints the reply.
    Command(String),
    /// Prints what happens, at this interval.
    Watch(Duration),
}

/// Why there is no result. Starts with the path.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct CtlError {
    path: String,
    problem: Problem,
}

/// See [`CtlError`].
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Neither a socket nor a FIFO pair.
    #[error(
        "no berth there: neither a socket nor a FIFO {0}; it has ended, for it takes these away \
         then, or it was given another --control-socket or --control-pipe"
    )]
    NoPath(String),
    /// A command in place of the path.
    #[error("is a command; PATH, that of --control-socket or --control-pipe, stands before it")]
    NoPathGiven,
    /// Something else.
    #[error("is {0}, must be a control socket or the base of a FIFO pair")]
    OtherFile(&'static str),
    /// One of a pair.
    #[error("is one FIFO of a pair; give what both names begin with, {0}")]
    HalfPair(String),
    /// Nobody has the other end.
    #[error(
        "no berth there: nobody listens; it was killed and left the file behind, which the next \
         berth that is given this path takes over"
    )]
    NobodyListens,
    /// The other end went away.
    #[error("berth ended before it answered")]
    Gone,
    /// Other clients kept the pipe.
    #[error(
        "other clients kept the pipe busy for {0} s: it serves one at a time, and who waits holds \
         it; give a longer --timeout, or use the control socket"
    )]
    Busy(u64),
    /// No reply.
    #[error("no reply within {0} s; berth hangs, or something else reads the replies")]
    NoReply(u64),
    /// The command does not fit a line.
    #[error("the command is longer than {MAX_LINE} bytes")]
    TooLong,
    /// The reply is no reply.
    #[error("the reply is longer than {} MiB", MAX_REPLY >> 20)]
    Endless,
    /// berth refused.
    #[error("{message} [{class}]")]
    Refused {
        /// Class of the error.
        class: String,
        /// What berth said.
        message: String,
    },
    /// The system refused.
    #[error("{}", plain(.0))]
    Io(#[from] io::Error),
}

/// Does what was asked for.
///
/// # Errors
/// No berth is there, it did not answer in time, or it refused the command.
pub fn run(config: &CtlConfig) -> Result<Done, CtlError> {
    match (&config.action, config.output) {
        (Action::Command(command), Output::Text) => {
            tell(&printable(&ask(config, command)?))?;
            Ok(Done::Yes)
        }
        (Action::Command(command), Output::Json) => {
            let mut reply = exchange(config, command).map_err(|problem| at(config, problem))?;
            // It is this client's own.
            if let Some(reply) = reply.as_object_mut() {
                reply.remove("token");
            }
            tell(&format!("{reply}\n"))?;
            let done = reply["ok"] == true;
            Ok(if done { Done::Yes } else { Done::Refused })
        }
        (Action::Watch(interval), _) => watch::run(config, *interval).map(|()| Done::Yes),
    }
}

fn at(config: &CtlConfig, problem: Problem) -> CtlError {
    CtlError {
        path: config.path.display().to_string(),
        problem,
    }
}

fn tell(text: &str) -> Result<(), CtlError> {
    crate::cli::print(text).map_err(|error| CtlError {
        path: "standard output".to_owned(),
        problem: error.into(),
    })
}

/// Sends a command and waits for its reply.
///
/// # Errors
/// As [`run`].
pub fn ask(config: &CtlConfig, command: &str) -> Result<Value, CtlError> {
    let mut reply = exchange(config, command).map_err(|problem| at(config, problem))?;
    if reply["ok"] == true {
        Ok(reply["result"].take())
    } else {
        Err(at(config, problem(&reply)))
    }
}

/// Text as it is, nothing for nothing, everything else as indented JSON; ends with a newline.
pub(super) fn printable(result: &Value) -> String {
    let mut text = match result {
        Value::Null => return String::new(),
        Value::String(text) => text.clone(),
        other => format!("{other:#}"),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// The whole reply, which may be a refusal.
fn exchange(config: &CtlConfig, command: &str) -> Result<Value, Problem> {
    let limit = config.timeout.saturating_add(own_wait(command));
    let token = token();
    let line = format!("@{token} {command}\n");
    if line.len() > MAX_LINE {
        return Err(Problem::TooLong);
    }
    let mut link = Link::open(&config.path, limit)?;
    match link.send(line.as_bytes()) {
        // What berth said before it hung up is there to be read.
        Err(Problem::Gone) if link.replies.is_none() => {}
        sent => sent?,
    }
    link.receive(&token)
}

/// How long the command itself may wait. What is no command is refused at once.
fn own_wait(command: &str) -> Duration {
    match command::parse(command) {
        Ok(Line::Command(command)) => command.own_wait(),
        Ok(Line::Help(_)) | Err(_) => Duration::ZERO,
    }
}

/// Unique among the clients of one machine.
fn token() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let thread = std::thread::current().id();
    let thread: String = format!("{thread:?}")
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    format!("ctl-{}-{thread}-{:x}", std::process::id(), now.as_nanos())
}

/// A way to one berth.
struct Link {
    /// Where commands go; on a socket also where replies come from.
    commands: File,
    /// `PATH.out`, locked.
    replies: Option<File>,
    limit: Duration,
    deadline: Instant,
}

impl Link {
    fn open(path: &Path, limit: Duration) -> Result<Self, Problem> {
        let deadline = Instant::now() + limit;
        let (commands, replies) = if fs::metadata(path).is_ok_and(|it| it.file_type().is_socket()) {
            (connect(path, deadline)?, None)
        } else {
            let (commands, replies) = open_pair(path)?;
            if !lock_until(&replies, deadline)? {
                return Err(Problem::Busy(limit.as_secs()));
            }
            (commands, Some(replies))
        };
        Ok(Self {
            commands,
            replies,
            limit,
            deadline,
        })
    }

    fn send(&mut self, mut line: &[u8]) -> Result<(), Problem> {
        while !line.is_empty() {
            match self.commands.write(line) {
                Ok(count) => line = &line[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Err(Problem::Gone),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let ready = sys::poll([(self.commands.as_fd(), libc::POLLOUT)], self.deadline)?;
                    if ready == [0] {
                        return Err(Problem::NoReply(self.limit.as_secs()));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads lines until the one that has `token`.
    fn receive(&mut self, token: &str) -> Result<Value, Problem> {
        let mut received = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        // A berth that has no place for this client says so without having read its token.
        let mut refusal = None;
        loop {
            let count = match self.read(&mut chunk) {
                Err(Problem::Gone) if self.replies.is_none() => {
                    return Err(refusal.unwrap_or(Problem::Gone));
                }
                other => other?,
            };
            received.extend_from_slice(&chunk[..count]);
            while let Some(end) = received.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = received.drain(..=end).collect();
                if let Some(reply) = own_reply(&line, token) {
                    return Ok(reply);
                }
                refusal = refusal.or_else(|| refused(&line));
            }
            if received.len() > MAX_REPLY {
                return Err(Problem::Endless);
            }
        }
    }

    /// Reads at least a byte.
    fn read(&mut self, chunk: &mut [u8]) -> Result<usize, Problem> {
        loop {
            let replies = self.replies.as_mut().unwrap_or(&mut self.commands);
            match replies.read(chunk) {
                Ok(0) => return Err(Problem::Gone),
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Err(Problem::Gone);
                }
                Err(error) => return Err(error.into()),
            }
            // A FIFO says by an error on `PATH.in` that berth has gone; what it said before stays.
            match sys::poll(self.interests(), self.deadline)? {
                [0, 0] => return Err(Problem::NoReply(self.limit.as_secs())),
                [0, errors] if errors & libc::POLLERR != 0 => return Err(Problem::Gone),
                _ => {}
            }
        }
    }

    fn interests(&self) -> [(BorrowedFd<'_>, libc::c_short); 2] {
        let replies = self.replies.as_ref().unwrap_or(&self.commands);
        [(replies.as_fd(), libc::POLLIN), (self.commands.as_fd(), 0)]
    }
}

/// Connects, waiting for a place where many others want to.
fn connect(path: &Path, deadline: Instant) -> Result<File, Problem> {
    loop {
        match sys::connect(path) {
            Ok(stream) => return Ok(File::from(std::os::fd::OwnedFd::from(stream))),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                return Err(Problem::NobodyListens);
            }
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error.into()),
            Err(_) if Instant::now() >= deadline => return Err(Problem::NobodyListens),
            // A full backlog cannot be polled for.
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Why a path that is there is no base of a FIFO pair; such a base is a name only, or anything that has
/// the pair beside it.
fn no_base(path: &Path) -> Option<Problem> {
    let found = fs::metadata(path).ok()?.file_type();
    let (input, _) = pipe::paths(path);
    if input.exists() {
        return None;
    }
    let half = path.extension().is_some_and(|it| it == "in" || it == "out");
    if found.is_fifo() && half {
        let base = path.with_extension("").display().to_string();
        return Some(Problem::HalfPair(base));
    }
    Some(Problem::OtherFile(kind(found)))
}

/// Opens both FIFOs. `PATH.out` is opened for writing too, so that berth's closing it is not an end.
fn open_pair(base: &Path) -> Result<(File, File), Problem> {
    let (input, output) = pipe::paths(base);
    if let Some(problem) = no_base(base) {
        return Err(problem);
    }
    let fifo = |path: &Path, read: bool| {
        if !fs::metadata(path).is_ok_and(|it| it.file_type().is_fifo()) {
            let name = path
                .file_name()
                .unwrap_or(OsStr::new(""))
                .to_string_lossy()
                .into_owned();
            return Err(match base.to_str() {
                Some(word) if command::explanations().any(|(command, _)| command == word) => {
                    Problem::NoPathGiven
                }
                _ => Problem::NoPath(name),
            });
        }
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        match OpenOptions::new()
            .read(read)
            .write(true)
            .custom_flags(flags)
            .open(path)
        {
            Ok(file) => Ok(file),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Err(Problem::NobodyListens),
            Err(error) => Err(error.into()),
        }
    };
    Ok((fifo(&input, false)?, fifo(&output, true)?))
}

/// The line if it is the reply with `token`.
fn own_reply(line: &[u8], token: &str) -> Option<Value> {
    let reply: Value = serde_json::from_slice(line).ok()?;
    let own = reply.get("token")?.as_str()? == token && reply.get("ok")?.is_boolean();
    own.then_some(reply)
}

/// What the line says if it is an error that answers nobody in particular.
fn refused(line: &[u8]) -> Option<Problem> {
    let reply: Value = serde_json::from_slice(line).ok()?;
    let own = reply.get("token").is_none() && !reply.get("ok")?.as_bool()?;
    own.then(|| problem(&reply))
}

fn problem(reply: &Value) -> Problem {
    let text = |key: &str| reply["error"][key].as_str().unwrap_or("unknown").to_owned();
    Problem::Refused {
        class: text("class"),
        message: text("message"),
    }
}
