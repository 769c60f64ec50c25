//! What a line of the protocol looks like: `[@TOKEN ]COMMAND` in, replies and events out as JSON.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::command::{self, Command, CommandError, ErrorClass, Info, Line};
use super::line::{Inbound, MAX_LINE};
use super::{Answer, CommandSink, Ticket};

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

    /// What happened.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its members.
    pub fn data(&self) -> &Map<String, Value> {
        &self.data
    }

    /// The id of what it happened to, if it has one.
    pub fn id(&self) -> Option<&str> {
        self.data.get("id")?.as_str()
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

/// What there is to say to a line.
#[derive(Debug)]
pub(super) enum Reply {
    /// The reply, with its newline.
    Line(Vec<u8>),
    /// It comes when the machine has done the command.
    Later {
        /// Names it.
        ticket: Ticket,
        /// For the reply.
        token: Option<String>,
    },
}

/// Does what a line asks for and returns the reply. An empty line has none.
///
/// `status` is what the server itself adds to `info status`.
pub(super) fn answer(
    inbound: &Inbound,
    sink: &mut dyn CommandSink,
    status: impl FnOnce() -> Value,
) -> Option<Reply> {
    let (token, result) = match inbound {
        Inbound::Line(line) => {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.trim_ascii().is_empty() {
                return None;
            }
            match split_token(line) {
                Ok((token, rest)) => match text(rest).and_then(|line| run(line, sink, status)) {
                    Ok(Answer::Done(value)) => (token, Ok(value)),
                    Ok(Answer::Later(ticket)) => {
                        let token = token.map(str::to_owned);
                        return Some(Reply::Later { ticket, token });
                    }
                    Err(error) => (token, Err(error)),
                },
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
    Some(Reply::Line(reply(token, result)))
}

fn run(
    line: &str,
    sink: &mut dyn CommandSink,
    status: impl FnOnce() -> Value,
) -> Result<Answer, CommandError> {
    let command = match command::parse(line)? {
        Line::Help(text) => return Ok(Answer::Done(Value::String(text))),
        Line::Command(command) => command,
    };
    let is_status = command == Command::Info(Info::Status);
    let mut answer = sink.execute(command)?;
    if let (true, Answer::Done(Value::Object(members))) = (is_status, &mut answer) {
        members.insert("control".to_owned(), status());
    }
    Ok(answer)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Answers every command with its debug form, and refuses `system_reset`.
    struct Echo;

    impl CommandSink for Echo {
        fn execute(&mut self, command: Command) -> Result<Answer, CommandError> {
            Ok(Answer::Done(match command {
                Command::SystemReset => {
                    return Err(CommandError::new(ErrorClass::Failed, "no \"reset\""));
                }
                Command::SystemPowerdown => Value::Null,
                Command::Info(Info::Status) => json!({ "running": true }),
                other => format!("{other:?}").into(),
            }))
        }

        fn forget(&mut self, ticket: Ticket) {
            panic!("{ticket:?}: nothing waits here");
        }
    }

    fn answer_to(inbound: &Inbound) -> Option<String> {
        let reply = match answer(inbound, &mut Echo, || json!({ "clients": 1 }))? {
            Reply::Line(line) => line,
            later @ Reply::Later { .. } => panic!("{later:?}"),
        };
        let text = String::from_utf8(reply).unwrap();
        assert_eq!(text.find('\n'), Some(text.len() - 1));
        Some(text.trim_end().to_owned())
    }

    fn line(bytes: &[u8]) -> Option<String> {
        answer_to(&Inbound::Line(bytes.to_vec()))
    }

    #[test]
    fn replies_are_one_line_of_json() {
        let longest = format!("@{} quit", "t".repeat(MAX_TOKEN));
        let longest_reply = format!(
            r#"{{"token":"{}","ok":true,"result":"Quit"}}"#,
            "t".repeat(MAX_TOKEN)
        );
        for (command, expected) in [
            (&b"quit"[..], r#"{"ok":true,"result":"Quit"}"#),
            (b"quit\r", r#"{"ok":true,"result":"Quit"}"#),
            (b" \tquit ", r#"{"ok":true,"result":"Quit"}"#),
            (b"@t1 quit", r#"{"token":"t1","ok":true,"result":"Quit"}"#),
            (
                b"@\"\\ \t quit\r",
                r#"{"token":"\"\\","ok":true,"result":"Quit"}"#,
            ),
            (longest.as_bytes(), &longest_reply),
            (b"system_powerdown", r#"{"ok":true,"result":null}"#),
            (
                b"@a info status",
                r#"{"token":"a","ok":true,"result":{"control":{"clients":1},"running":true}}"#,
            ),
            (
                b"@a system_reset",
                r#"{"token":"a","ok":false,"error":{"class":"Failed","message":"no \"reset\""}}"#,
            ),
        ] {
            assert_eq!(line(command).as_deref(), Some(expected));
        }
    }

    #[test]
    fn empty_lines_have_no_reply() {
        for empty in [&b""[..], b"\r", b" ", b"\t \r"] {
            assert_eq!(line(empty), None);
        }
    }

    #[test]
    fn what_is_no_line_of_the_protocol_is_refused() {
        let long = format!("@{} quit", "t".repeat(MAX_TOKEN + 1));
        let rule = "a token is 1 to 64 printable ASCII characters";
        for (bytes, token, message) in [
            (
                &b"qu\0it"[..],
                None,
                "the line has a control character (\\u{0})",
            ),
            (b"\0", None, "the line has a control character (\\u{0})"),
            (
                b"@t qu\0it",
                Some("t"),
                "the line has a control character (\\u{0})",
            ),
            (
                b"info\rstatus",
                None,
                "the line has a control character (\\u{d})",
            ),
            (
                b"quit \x1b[2J",
                None,
                "the line has a control character (\\u{1b})",
            ),
            (b"\xff\xfe", None, "the line is not UTF-8"),
            (b"@t \xc3", Some("t"), "the line is not UTF-8"),
            (b"@t", Some("t"), "the line has a token but no command"),
            (b"@t  ", Some("t"), "the line has a token but no command"),
            (b"@", None, rule),
            (b"@ quit", None, rule),
            (b"@\xff quit", None, rule),
            (b"@\0 quit", None, rule),
            (long.as_bytes(), None, rule),
        ] {
            let reply: Value = serde_json::from_str(&line(bytes).unwrap()).unwrap();
            assert_eq!(reply["ok"], false);
            assert_eq!(
                reply.get("token").and_then(Value::as_str),
                token,
                "{bytes:?}"
            );
            assert_eq!(
                reply["error"],
                json!({ "class": "Protocol", "message": message })
            );
        }
    }

    #[test]
    fn what_is_cut_keeps_its_token() {
        let expected = r#"{"token":"t","ok":false,"error":{"class":"Protocol","message":"the line is longer than 4096 bytes with its newline"}}"#;
        let head = Inbound::TooLong(b"@t device_add nvme".to_vec());
        assert_eq!(answer_to(&head).as_deref(), Some(expected));
        let expected = r#"{"ok":false,"error":{"class":"Protocol","message":"the last line has no newline and was not executed"}}"#;
        assert_eq!(
            answer_to(&Inbound::Unterminated(b"quit".to_vec())).as_deref(),
            Some(expected)
        );
    }

    #[test]
    fn events_carry_their_time() {
        let event = Event::new("device_deleted")
            .with("id", "nvme1")
            .with("nsid", 3);
        let line = event.to_line(UNIX_EPOCH + Duration::from_micros(5_000_007));
        let expected = "{\"event\":\"device_deleted\",\"id\":\"nvme1\",\"nsid\":3,\
                        \"timestamp\":{\"seconds\":5,\"microseconds\":7}}\n";
        assert_eq!(String::from_utf8(line).unwrap(), expected);
    }
}
