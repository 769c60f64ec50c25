//! Traces, line by line, whatever their length.

use std::borrow::Cow;
use std::io::{self, BufRead};

use serde::Deserialize;
use serde_json::Value;

use super::VERSION;

/// Longest line that is taken, in bytes; only the header of a large machine comes near.
const MAX_LINE: u64 = 4 << 20;
/// How many bad lines are told one by one.
const TOLD: usize = 5;

/// Why a file is no trace.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error("{}", crate::control::plain(.0))]
    Io(#[from] io::Error),
    /// Its first line is no header.
    #[error(
        "is no trace of berth: its first line is {0}, and should begin with {{\"berth_trace\":"
    )]
    NoHeader(&'static str),
    /// A format of later times.
    #[error("has format {0}; this berth reads format {VERSION}")]
    Version(u64),
}

/// The first line.
#[derive(Debug, Clone, Default)]
pub struct Header {
    /// berth's version.
    pub berth: String,
    /// Wall clock when the trace began.
    pub time: String,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A command was fetched.
    Fetch,
    /// It was completed.
    Complete,
    /// It ended without a completion.
    Abandon,
    /// Records are missing.
    Lost,
    /// The trace was ended in order.
    End,
    /// Something that does not matter here.
    #[serde(other)]
    Other,
}

/// A line behind the header.
#[derive(Debug, Deserialize)]
pub struct Event<'a> {
    /// Nanoseconds since the trace began.
    pub t: u64,
    /// What happened.
    pub event: Kind,
    /// Id of the controller.
    #[serde(borrow, default)]
    pub ctrl: Cow<'a, str>,
    /// Submission queue.
    #[serde(default)]
    pub sqid: u16,
    /// Command identifier.
    #[serde(default)]
    pub cid: u16,
    /// Name of the opcode.
    #[serde(borrow, default)]
    pub op: Cow<'a, str>,
    /// Namespace.
    #[serde(default)]
    pub nsid: u32,
    /// First block.
    pub slba: Option<u64>,
    /// Bytes of data.
    #[serde(default)]
    pub bytes: u64,
    /// Nanoseconds since the command was fetched.
    #[serde(default)]
    pub latency: u64,
    /// Name of the status; empty for a command that has none.
    #[serde(borrow, default)]
    pub status: Cow<'a, str>,
    /// Records that are missing.
    #[serde(default)]
    pub lost: u64,
}

impl Event<'_> {
    /// Whether the command ended with an error, or without a completion.
    pub fn is_error(&self) -> bool {
        self.event == Kind::Abandon || self.status != "success"
    }

    /// Whether it is a request for an event, which is meant to take as long as nothing happens: its
    /// latency says nothing of the controller, nor does its end without a completion.
    pub fn waits_for_an_event(&self) -> bool {
        self.sqid == 0 && self.op == "async-event-request"
    }
}

/// What there is to say of a file that was read.
#[derive(Debug, Clone, Default)]
pub struct Condition {
    /// Lines, the header included.
    pub lines: u64,
    /// Lines that could not be understood.
    pub bad: u64,
    /// Number and problem of the first of these.
    pub examples: Vec<String>,
    /// The last line has no end.
    pub truncated: bool,
    /// The trace was ended in order.
    pub ended: bool,
}

impl Condition {
    /// In words, a line each: what a reader should know before believing the figures.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.examples.clone();
        let more = self.bad - self.examples.len() as u64;
        if more > 0 {
            notes.push(format!("{more} more lines could not be understood"));
        }
        if self.truncated {
            notes.push(format!(
                "line {}: is cut off, and was left out: berth was killed, or still writes",
                self.lines
            ));
        } else if !self.ended {
            notes.push(
                "the trace has no end: berth was killed, could not write, or still runs".to_owned(),
            );
        }
        notes
    }

    fn bad(&mut self, problem: &str) {
        self.bad += 1;
        if self.examples.len() < TOLD {
            self.examples
                .push(format!("line {}: {problem}; it was left out", self.lines));
        }
    }
}

/// Reads a trace to its end and hands each event to `take`.
///
/// # Errors
/// See [`ReadError`].
pub fn scan(
    mut input: impl BufRead,
    mut take: impl FnMut(&Event<'_>),
) -> Result<(Header, Condition), ReadError> {
    let mut condition = Condition::default();
    let mut line = Vec::new();
    next_line(&mut input, &mut line)?;
    let header = header(&line)?;
    condition.lines = 1;
    while next_line(&mut input, &mut line)? {
        condition.lines += 1;
        let whole = line.ends_with(b"\n");
        match serde_json::from_slice::<Event<'_>>(&line) {
            Ok(event) => {
                condition.ended |= event.event == Kind::End;
                take(&event);
            }
            Err(_) if !whole && (line.len() as u64) < MAX_LINE => condition.truncated = true,
            Err(_) if !whole => {
                condition.bad("is longer than 4 MiB");
                skip_line(&mut input)?;
            }
            Err(_) if line.trim_ascii().is_empty() => {}
            Err(error) => condition.bad(&format!("is no event ({error})")),
        }
    }
    Ok((header, condition))
}

/// Reads a line with its end, at most [`MAX_LINE`] bytes of it; whether there was one.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut limited = io::Read::take(&mut *input, MAX_LINE);
    Ok(limited.read_until(b'\n', line)? > 0)
}

fn skip_line(input: &mut impl BufRead) -> io::Result<()> {
    loop {
        let part = input.fill_buf()?;
        let end = part.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(part.len(), |end| end + 1);
        let last = end.is_some() || part.is_empty();
        input.consume(count);
        if last {
            return Ok(());
        }
    }
}

fn header(line: &[u8]) -> Result<Header, ReadError> {
    if line.is_empty() {
        return Err(ReadError::NoHeader("missing (the file is empty)"));
    }
    let value: Value = serde_json::from_slice(line).map_err(|_| ReadError::NoHeader("not JSON"))?;
    let version = value["berth_trace"].as_u64();
    let version = version.ok_or(ReadError::NoHeader("something else"))?;
    if version != VERSION {
        return Err(ReadError::Version(version));
    }
    let text = |key: &str| value[key].as_str().unwrap_or("?").to_owned();
    Ok(Header {
        berth: text("berth"),
        time: text("time"),
    })
}
