//! A program that runs phases of a job file: `guest.sh` in a guest, or on the host.
//!
//! Its output is read by threads and becomes events, so that one loop can wait for it, for signals and
//! for time. It has a process group of its own: Ctrl-C reaches berth alone, which ends the whole group.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use super::sys;

/// Longest line that is taken from a child in bytes.
const MAX_LINE: usize = 16 << 10;
/// Longest file that is taken in bytes.
const MAX_FILE: u64 = 32 << 20;
/// How long a child may take to end when asked.
const GRACE: Duration = Duration::from_secs(5);

/// What a child tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The system that fio runs in: kernel, CPUs, bytes and device.
    System(super::results::System),
    /// It waits to be told to start this phase.
    Ready(usize),
    /// A file of the phase.
    File {
        /// Which.
        name: String,
        /// What is in it.
        content: String,
    },
    /// A phase ended with fio's exit status.
    Ended(usize, i32),
    /// Nothing can run, and why.
    Stopped(String),
    /// A line that fio, the guest or berth said.
    Said(String),
    /// Standard output has ended.
    Closed,
}

/// What the loop waits for.
#[derive(Debug)]
pub enum Event {
    /// Of the child with this serial number.
    Child(u64, Message),
    /// A signal for berth.
    Signal(i32),
}

/// A running child. Dropping it ends its process group.
pub struct Running {
    child: Child,
    stdin: ChildStdin,
    /// Its events have this number.
    pub serial: u64,
}

impl Running {
    /// Starts `command`. Its events go to `events`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(
        mut command: Command,
        serial: u64,
        events: &SyncSender<Event>,
    ) -> io::Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        sys::end_with_this_thread(&mut command);
        let mut child = command.spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
            // All three were asked for.
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let running = Self {
            child,
            stdin,
            serial,
        };
        let tell = |events: SyncSender<Event>| {
            move |message| events.send(Event::Child(serial, message)).is_ok()
        };
        let (out, err) = (tell(events.clone()), tell(events.clone()));
        let name = |name: &str| thread::Builder::new().name(name.into());
        name("stdout").spawn(move || {
            messages(BufReader::new(stdout), &out);
            out(Message::Closed);
        })?;
        name("stderr").spawn(move || said(BufReader::new(stderr), &err))?;
        Ok(running)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it go on.
    pub fn go(&mut self) {
        // If it has ended, that is about to be told.
        let _ = self
            .stdin
            .write_all(b"go\n")
            .and_then(|()| self.stdin.flush());
    }

    /// Its exit status, if it ends within `limit`.
    pub fn status(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            sys::end_group(self.child.id(), libc::SIGTERM);
            self.status(GRACE);
        }
        // Whatever of the group is left has no say any more.
        sys::end_group(self.child.id(), libc::SIGKILL);
        // An error means that it was waited for already.
        let _ = self.child.wait();
    }
}

/// Reads the protocol of `guest.sh`. What does not belong to it is passed on as said.
fn messages(mut output: impl BufRead, tell: &impl Fn(Message) -> bool) {
    while let Some(line) = line(&mut output) {
        let message = match parse(&line) {
            Some(Parsed::Message(message)) => message,
            Some(Parsed::File { name, bytes }) => {
                if bytes > MAX_FILE {
                    let why = format!("the file {name} is longer than {} MiB", MAX_FILE >> 20);
                    tell(Message::Stopped(why));
                    return;
                }
                let mut content = Vec::new();
                if (&mut output).take(bytes).read_to_end(&mut content).is_err() {
                    return;
                }
                let content = String::from_utf8_lossy(&content).into_owned();
                Message::File { name, content }
            }
            None => Message::Said(line),
        };
        if !tell(message) {
            return;
        }
    }
}

/// Passes on each line. fio ends those that it overwrites with a carriage return.
fn said(mut output: impl BufRead, tell: &impl Fn(Message) -> bool) {
    while let Some(line) = until(&mut output, b"\r\n") {
        let line = line.trim_end();
        if !line.is_empty() && !tell(Message::Said(line.to_owned())) {
            return;
        }
    }
}

/// The next line without its end, or a part of a long one.
fn line(output: &mut impl BufRead) -> Option<String> {
    let line = until(output, b"\n")?;
    Some(line.trim_end_matches('\r').to_owned())
}

/// What is before the next of the bytes `ends`, or a part of it if that is long.
fn until(output: &mut impl BufRead, ends: &[u8]) -> Option<String> {
    let mut text = Vec::new();
    loop {
        let ready = match output.fill_buf() {
            Ok(ready) => ready,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // An error is an end, too.
            Err(_) => &[],
        };
        if ready.is_empty() && text.is_empty() {
            return None;
        }
        let room = ready.len().min(MAX_LINE - text.len());
        let end = ready[..room].iter().position(|byte| ends.contains(byte));
        text.extend_from_slice(&ready[..end.unwrap_or(room)]);
        let over = ready.is_empty() || end.is_some() || text.len() == MAX_LINE;
        output.consume(end.map_or(room, |end| end + 1));
        if over {
            return Some(String::from_utf8_lossy(&text).into_owned());
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Message(Message),
    File { name: String, bytes: u64 },
}

fn parse(line: &str) -> Option<Parsed> {
    let (word, rest) = line.split_once(' ')?;
    let message = match word {
        "system" => {
            let mut words = rest.splitn(4, ' ');
            let mut next = || words.next();
            Message::System(super::results::System {
                kernel: next()?.to_owned(),
                cpus: next()?.parse().ok()?,
                bytes: next()?.parse().ok()?,
                device: next()?.to_owned(),
            })
        }
        "ready" => Message::Ready(rest.parse().ok()?),
        "ended" => {
            let (number, status) = rest.split_once(' ')?;
            Message::Ended(number.parse().ok()?, status.parse().ok()?)
        }
        "stopped" => Message::Stopped(rest.to_owned()),
        "file" => {
            let (name, bytes) = rest.split_once(' ')?;
            return Some(Parsed::File {
                name: name.to_owned(),
                bytes: bytes.parse().ok()?,
            });
        }
        _ => return None,
    };
    Some(Parsed::Message(message))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::mpsc;

    use super::*;
    use crate::fio::results::System;

    fn all(output: &str) -> Vec<Message> {
        let seen = RefCell::new(Vec::new());
        messages(output.as_bytes(), &|message| {
            seen.borrow_mut().push(message);
            true
        });
        seen.into_inner()
    }

    #[test]
    fn the_protocol_is_read_and_files_whole() {
        let output = "noise\nsystem 6.1.0 2 4096 /dev/nvme0n1\r\nready 0\nfile fio.json 8\n{\nended \
                      0file empty 0\nended 0 3\nready x\nstopped no disk\nfile half 9\nabc";
        let system = System {
            kernel: "6.1.0".into(),
            cpus: 2,
            bytes: 4096,
            device: "/dev/nvme0n1".into(),
        };
        let file = |name: &str, content: &str| Message::File {
            name: name.into(),
            content: content.into(),
        };
        assert_eq!(
            all(output),
            [
                Message::Said("noise".into()),
                Message::System(system),
                Message::Ready(0),
                file("fio.json", "{\nended "),
                Message::Said("0file empty 0".into()),
                Message::Ended(0, 3),
                Message::Said("ready x".into()),
                Message::Stopped("no disk".into()),
                file("half", "abc"),
            ]
        );
    }

    #[test]
    fn endless_files_and_lines_are_not_taken() {
        let why = "the file log is longer than 32 MiB".to_owned();
        assert_eq!(all("file log 99999999999\nabc"), [Message::Stopped(why)]);
        let long = "x".repeat(40 << 10);
        assert_eq!(all(&long).len(), 3);
    }

    #[test]
    fn overwritten_lines_are_lines() {
        let seen = RefCell::new(Vec::new());
        said("a\rb \r\nc\n\n".as_bytes(), &|message| {
            seen.borrow_mut().push(message);
            true
        });
        let said = ["a", "b", "c"].map(|text| Message::Said(text.into()));
        assert_eq!(seen.into_inner(), said);
    }

    #[test]
    fn a_child_and_what_it_started_end_when_dropped() {
        let (sender, events) = mpsc::sync_channel(8);
        let mut command = Command::new("sh");
        // The one behind ignores the request to end.
        command.args([
            "-c",
            "sh -c 'trap \"\" TERM; echo ready 7; sleep 1000' & wait",
        ]);
        let child = Running::start(command, 3, &sender).unwrap();
        let limit = Duration::from_secs(10);
        let Ok(Event::Child(3, Message::Ready(7))) = events.recv_timeout(limit) else {
            panic!("it does not start");
        };
        drop(child);
        // Standard output ends when nobody has it any more.
        let Ok(Event::Child(3, Message::Closed)) = events.recv_timeout(limit) else {
            panic!("something is left");
        };
    }

    #[test]
    fn a_child_waits_for_its_go_and_tells_its_status() {
        let (sender, events) = mpsc::sync_channel(8);
        let mut command = Command::new("sh");
        command.args(["-c", "read -r word; echo \"ended 1 0\"; exit 5"]);
        let mut child = Running::start(command, 1, &sender).unwrap();
        child.go();
        let limit = Duration::from_secs(10);
        assert!(matches!(
            events.recv_timeout(limit),
            Ok(Event::Child(1, Message::Ended(1, 0)))
        ));
        assert_eq!(child.status(limit).unwrap().code(), Some(5));
    }
}
