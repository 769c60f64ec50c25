//! Control of a running machine: one command a line in, one JSON reply a line out.
//!
//! [`ControlServer`] speaks the protocol over a pair of FIFOs and over a socket. Everything in it is
//! non-blocking and lives on the thread that drives it: an outer event loop watches the server's one
//! descriptor for readability and calls [`ControlServer::handle`], the machine is reached through
//! [`CommandSink`]. [`client`] is the other end, `berth ctl`.
//!
//! A line is `[@TOKEN ]COMMAND`, at most 4,096 bytes with its newline. The reply is
//! `{"token":…,"ok":true,"result":…}` or `{"token":…,"ok":false,"error":{"class":…,"message":…}}`,
//! in the order of the commands, but for those that wait (`wait`, `wait=`), whose replies come when
//! they are done; events, `{"event":…,…,"timestamp":…}`, come between replies. An empty line has no
//! reply. A line that is too long has one, and is discarded up to its newline.

pub mod client;
pub mod command;
mod line;
mod outbox;
pub mod pipe;
mod poller;
mod protocol;
pub mod socket;
pub mod sys;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::fs::{File, FileType, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use vmm_sys_util::epoll::EventSet;

pub use command::{Command, CommandError};
use line::Inbound;
use pipe::Pipe;
use poller::Poller;
pub use protocol::Event;
use protocol::{Reply, reply};
use socket::Socket;

/// Names a command whose reply is still to come; unique for the life of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What a command that can be done answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It is done. The value becomes `result` in the reply: a string for text to be shown as it is,
    /// otherwise an object; `Value::Null` where there is nothing to say.
    Done(Value),
    /// It has begun; the reply is that of [`ControlServer::finish`].
    Later(Ticket),
}

/// The machine, as the control protocol sees it.
pub trait CommandSink {
    /// Does a command, or begins to.
    ///
    /// To an object that answers `info status`, the server adds `control`: its clients and the lines
    /// that it had to drop.
    ///
    /// # Errors
    /// The command cannot be done; the reply says why.
    fn execute(&mut self, command: Command) -> Result<Answer, CommandError>;

    /// Nobody waits for the reply to this command any more. What it has begun goes on.
    fn forget(&mut self, ticket: Ticket);
}

/// A transport that cannot be opened. Starts with the option that asked for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{argument}: {problem}")]
pub struct ControlError {
    /// The option and its value.
    pub argument: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// Both transports of one machine.
///
/// Dropping it removes the FIFOs and the socket that it made. `process::exit` and an abort drop
/// nothing: drop it first.
#[derive(Debug)]
pub struct ControlServer {
    poller: Poller,
    pipe: Option<Pipe>,
    socket: Option<Socket>,
    /// Commands that have begun: no more than the machine begins.
    begun: BTreeMap<Ticket, Begun>,
}

/// Who waits for a reply.
#[derive(Debug)]
struct Begun {
    token: Option<String>,
    /// A client of the socket, or the pipe.
    client: Option<u64>,
}

impl ControlServer {
    /// Opens the FIFO pair of base path `pipe` and the socket at `socket`, each if asked for.
    ///
    /// # Errors
    /// A path cannot be used, or another berth uses it.
    pub fn new(pipe: Option<&Path>, socket: Option<&Path>) -> Result<Self, ControlError> {
        let poller = Poller::new().map_err(|error| ControlError {
            argument: "control".to_owned(),
            problem: plain(&error),
        })?;
        let pipe = pipe.map(|base| Pipe::open(base, &poller)).transpose()?;
        let socket = socket.map(|path| Socket::open(path, &poller)).transpose()?;
        Ok(Self {
            poller,
            pipe,
            socket,
            begun: BTreeMap::new(),
        })
    }

    /// Handles what is ready, a bounded part of it: if there is more, the descriptor stays readable.
    /// Never blocks.
    pub fn handle(&mut self, sink: &mut dyn CommandSink) {
        for (key, events) in self.poller.ready() {
            match key {
                Poller::COMMANDS => self.handle_pipe(sink),
                Poller::REPLIES => self.handle_replies(events),
                Poller::LISTENER => {
                    if let Some(socket) = &mut self.socket {
                        socket.accept(&self.poller);
                    }
                }
                client => self.handle_client(client, events, sink),
            }
        }
        self.forget_gone(sink);
    }

    /// Lets the machine forget what clients wait for that are gone: others may want to wait.
    fn forget_gone(&mut self, sink: &mut dyn CommandSink) {
        let socket = self.socket.as_ref();
        let gone = |begun: &Begun| {
            begun
                .client
                .is_some_and(|key| !socket.is_some_and(|socket| socket.has(key)))
        };
        for (ticket, _) in self.begun.extract_if(.., |_, begun| gone(begun)) {
            sink.forget(ticket);
        }
    }

    /// Tells all clients. Never blocks.
    pub fn broadcast(&mut self, event: &Event) {
        let line = event.to_line(SystemTime::now());
        if let Some(pipe) = &mut self.pipe {
            pipe.send(&line, &self.poller);
        }
        if let Some(socket) = &mut self.socket {
            socket.broadcast(&line, &self.poller);
        }
    }

    /// Sends the reply to a command that was to be answered later. Never blocks.
    pub fn finish(&mut self, ticket: Ticket, result: Result<Value, CommandError>) {
        let Some(begun) = self.begun.remove(&ticket) else {
            return;
        };
        let line = reply(begun.token.as_deref(), result);
        match begun.client {
            None => self.send_to_pipe(&line),
            Some(key) => {
                if let Some(socket) = &mut self.socket {
                    socket.finish(key, &line);
                    socket.settle(key, &self.poller);
                }
            }
        }
    }

    fn send_to_pipe(&mut self, line: &[u8]) {
        if let Some(pipe) = &mut self.pipe {
            pipe.send(line, &self.poller);
        }
    }

    fn handle_pipe(&mut self, sink: &mut dyn CommandSink) {
        let lines = self.pipe.as_mut().map(Pipe::receive).unwrap_or_default();
        for line in lines {
            match self.answer(&line, sink) {
                Some(Reply::Line(line)) => self.send_to_pipe(&line),
                Some(Reply::Later { ticket, token }) => {
                    let client = None;
                    self.begun.insert(ticket, Begun { token, client });
                }
                None => {}
            }
        }
    }

    fn handle_replies(&mut self, events: EventSet) {
        let Some(pipe) = &mut self.pipe else { return };
        if events.contains(EventSet::ERROR) {
            pipe.reader_gone();
        } else {
            pipe.flush(&self.poller);
        }
    }

    fn handle_client(&mut self, key: u64, events: EventSet, sink: &mut dyn CommandSink) {
        // A hang-up without anything to read is read as the end of the stream.
        let ends = EventSet::HANG_UP | EventSet::ERROR;
        if events.intersects(EventSet::IN | ends) {
            let hung_up = events.intersects(ends);
            let lines = self
                .socket
                .as_mut()
                .map(|socket| socket.receive(key, hung_up))
                .unwrap_or_default();
            for line in lines {
                let reply = self.answer(&line, sink);
                let Some(socket) = &mut self.socket else {
                    return;
                };
                match reply {
                    Some(Reply::Line(line)) => socket.send(key, &line),
                    Some(Reply::Later { ticket, token }) => {
                        socket.begin(key);
                        let client = Some(key);
                        self.begun.insert(ticket, Begun { token, client });
                    }
                    None => {}
                }
            }
        }
        if let Some(socket) = &mut self.socket {
            socket.settle(key, &self.poller);
        }
    }

    fn answer(&self, line: &Inbound, sink: &mut dyn CommandSink) -> Option<Reply> {
        protocol::answer(line, sink, || self.status())
    }

    fn status(&self) -> Value {
        json!({
            "clients": self.socket.as_ref().map_or(0, Socket::clients),
            "dropped_pipe": self.pipe.as_ref().map_or(0, Pipe::dropped),
            "dropped_socket": self.socket.as_ref().map_or(0, Socket::dropped),
        })
    }
}

impl AsRawFd for ControlServer {
    /// Readable whenever [`ControlServer::handle`] has something to do; stays the same.
    fn as_raw_fd(&self) -> RawFd {
        self.poller.as_raw_fd()
    }
}

/// An error of the system in words, without the number.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(chars).collect()
    })
}

/// A kind of file in words.
pub fn kind(found: FileType) -> &'static str {
    if found.is_file() {
        "a regular file"
    } else if found.is_dir() {
        "a directory"
    } else if found.is_fifo() {
        "a FIFO"
    } else if found.is_socket() {
        "a socket"
    } else if found.is_block_device() {
        "a block device"
    } else {
        "a character device"
    }
}

/// The directory that holds `path`.
pub fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Takes an exclusive `flock` on `file` if it becomes free in time.
fn lock_until(file: &File, deadline: Instant) -> io::Result<bool> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return Ok(false),
            // flock has no time limit of its own.
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
