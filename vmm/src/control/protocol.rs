//! What a line of the protocol looks like: `[@TOKEN ]COMMAND` in, replies and events out as JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::CommandSink;
use super::command::{self, Command, CommandError, ErrorClass, Info, Line};
use super::line::{Inbound, MAX_LINE};

/// Longest token in bytes, without its `@`.
pub const MAX_TOKEN: usize = 64;

/// Something that happened, told to every client.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    name: &'static str,
    data: Map<String, Value>,
}

impl Event {
    /// An event such as `device_deleted`.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            data: Map::new(),
        }
    }

    /// Adds a member, such as `"id":"nvme1"`. `event` and `timestamp` are taken.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.data.insert(key.to_owned(), value.into());
        self
    }

    /// The event as a line, with its newline.
    pub(super) fn to_line(&self, now: SystemTime) -> Vec<u8> {
        #[derive(Serialize)]
        struct Timestamp {
            seconds: u64,
            microseconds: u32,
        }
        #[derive(Serialize)]
        struct Stamped<'a> {
            event: &'a str,
            #[serde(flatten)]
            data: &'a Map<String, Value>,
            timestamp: Timestamp,
        }
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = Timestamp {
            seconds: since.as_secs(),
            microseconds: since.subsec_micros(),
        };
        to_line(&Stamped {
            event: self.name,
            data: &self.data,
            timestamp,
        })
    }
}

/// Does what a line asks for and returns the reply, with its newline. An empty line has none.
///
/// `status` is what the server itself adds to `info status`.
pub(super) fn answer(
    inbound: &Inbound,
    sink: &mut dyn CommandSink,
    status: impl FnOnce() -> Value,
) -> Option<Vec<u8>> {
    let (token, result) = match inbound {
        Inbound::Line(line) => {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.trim_ascii().is_empty() {
                return None;
            }
            match split_token(line) {
                Ok((token, rest)) => (token, text(rest).and_then(|line| run(line, sink, status))),
                Err(error) => (None, Err(error)),
            }
        }
        Inbound::TooLong(head) => {
            let message = format!("the line is longer than {MAX_LINE} bytes with its newline");
            (
                split_token(head).ok().and_then(|(token, _)| token),
                Err(protocol(message)),
            )
        }
        Inbound::Unterminated(head) => {
            let message = "the last line has no newline and was not executed";
            (
                split_token(head).ok().and_then(|(token, _)| token),
                Err(protocol(message)),
            )
        }
    };
    Some(reply(token, result))
}

fn run(
    line: &str,
    sink: &mut dyn CommandSink,
    status: impl FnOnce() -> Value,
) -> Result<Value, CommandError> {
    let command = match command::parse(line)? {
        Line::Help(text) => return Ok(Value::String(text)),
        Line::Command(command) => command,
    };
    let is_status = command == Command::Info(Info::Status);
    let mut result = sink.execute(command)?;
    if let (true, Some(members)) = (is_status, result.as_object_mut()) {
        members.insert("control".to_owned(), status());
    }
    Ok(result)
}

fn protocol(message: impl Into<String>) -> CommandError {
    CommandError::new(ErrorClass::Protocol, message)
}

/// Splits `@TOKEN ` off. The token is found even where the rest is no text, so that the client that
/// sent the line knows that the error is its own.
fn split_token(line: &[u8]) -> Result<(Option<&str>, &[u8]), CommandError> {
    let Some(line) = line.strip_prefix(b"@") else {
        return Ok((None, line));
    };
    let end = line
        .iter()
        .position(u8::is_ascii_whitespace)
        .unwrap_or(line.len());
    let (token, rest) = line.split_at(end);
    let token = str::from_utf8(token).ok().filter(|token| is_token(token));
    let rule = || {
        protocol(format!(
            "a token is 1 to {MAX_TOKEN} printable ASCII characters"
        ))
    };
    Ok((Some(token.ok_or_else(rule)?), rest))
}

/// Whether `token` can be sent as `@TOKEN`.
fn is_token(token: &str) -> bool {
    (1..=MAX_TOKEN).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic())
}

fn text(bytes: &[u8]) -> Result<&str, CommandError> {
    let text = str::from_utf8(bytes).map_err(|_| protocol("the line is not UTF-8"))?;
    match text.chars().find(|c| c.is_control() && *c != '\t') {
        Some(c) => Err(protocol(format!(
            "the line has a control character ({})",
            c.escape_unicode()
        ))),
        None if text.trim().is_empty() => Err(protocol("the line has a token but no command")),
        None => Ok(text),
    }
}

/// A reply as a line, with its newline.
pub(super) fn reply(token: Option<&str>, result: Result<Value, CommandError>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Reply<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        token: Option<&'a str>,
        ok: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        result: Option<Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<CommandError>,
    }
    let ok = result.is_ok();
    let (result, error) = match result {
        Ok(value) => (Some(value), None),
        Err(error) => (None, Some(error)),
    };
    to_line(&Reply {
        token,
        ok,
        result,
        error,
    })
}

fn to_line(value: &impl Serialize) -> Vec<u8> {
    // Nothing here has keys that are no strings or a serializer that fails; should one appear, the
    // client still gets its line.
    let mut line = serde_json::to_vec(value).unwrap_or_else(|error| {
        json!({ "ok": false, "error": { "class": "Failed", "message": error.to_string() } })
            .to_string()
            .into_bytes()
    });
    line.push(b'\n');
    line
}
