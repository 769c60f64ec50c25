//! Commands that are answered later: what each waits for, and for how long.

use std::time::Duration;

use serde_json::{Value, json};

use crate::control::command::{CommandError, ErrorClass};
use crate::control::{Event, Ticket};
use crate::event_loop::Watch;

/// Commands that may wait at once, of all clients together.
const MAX_WAITS: usize = 256;

/// What a command waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The device with this id is gone. That the guest keeps it is an error.
    Removal(String),
    /// The next event of this name, about this id if there is one.
    Event {
        /// Name of the event.
        name: &'static str,
        /// Id that it must be about.
        id: Option<String>,
    },
}

impl Condition {
    /// What to answer after `event`, if it is what was waited for.
    fn outcome(&self, command: &str, event: &Event) -> Option<Result<Value, CommandError>> {
        match (self, event.name()) {
            (Self::Removal(id), "device_deleted") if event.id() == Some(id) => {
                Some(Ok(json!({ "id": id, "state": "deleted" })))
            }
            (Self::Removal(id), "device_del_refused") if event.id() == Some(id) => {
                let why = format!(
                    "{command}: the guest refused to let go of it; device_del {id} surprise pulls it"
                );
                Some(Err(CommandError::new(ErrorClass::InUse, why)))
            }
            (Self::Event { name, id }, happened)
                if *name == happened && (id.is_none() || id.as_deref() == event.id()) =>
            {
                let mut value = Value::Object(event.data().clone());
                value["event"] = happened.into();
                Some(Ok(value))
            }
            _ => None,
        }
    }

    fn late(&self, command: &str, limit: Duration) -> CommandError {
        let seconds = limit.as_secs();
        let why = match self {
            Self::Removal(id) => format!(
                "{command}: not gone within {seconds} s; its removal goes on: wait for its \
                 device_deleted, or pull a controller that the guest keeps with device_del {id} \
                 surprise"
            ),
            Self::Event { .. } => format!("{command}: it did not happen within {seconds} s"),
        };
        CommandError::new(ErrorClass::Timeout, why)
    }
}

/// A command that waits.
#[derive(Debug)]
pub struct Wait {
    /// Names its reply.
    pub ticket: Ticket,
    /// The command as it was given, for messages.
    pub command: String,
    /// What it waits for.
    pub condition: Condition,
    /// For how long.
    pub limit: Duration,
    /// Its timer in the main loop.
    pub timer: Watch,
}

/// An answer, and the timer that is not needed any more.
pub type Ended = (Wait, Result<Value, CommandError>);

/// All commands that wait.
#[derive(Debug, Default)]
pub struct Waits {
    waiting: Vec<Wait>,
    tickets: u64,
}

impl Waits {
    /// A name for one more.
    ///
    /// # Errors
    /// Too many wait.
    pub fn ticket(&mut self, command: &str) -> Result<Ticket, CommandError> {
        if self.waiting.len() >= MAX_WAITS {
            let why = format!("{command}: {MAX_WAITS} commands wait already, which is the limit");
            return Err(CommandError::new(ErrorClass::Failed, why));
        }
        self.tickets += 1;
        Ok(Ticket(self.tickets))
    }

    /// Lets a command wait.
    pub fn add(&mut self, wait: Wait) {
        self.waiting.push(wait);
    }

    /// Takes one whose answer nobody wants.
    pub fn forget(&mut self, ticket: Ticket) -> Option<Wait> {
        let at = self.waiting.iter().position(|wait| wait.ticket == ticket)?;
        Some(self.waiting.remove(at))
    }

    /// Takes those that waited for `event`, with their answers.
    pub fn happened(&mut self, event: &Event) -> Vec<Ended> {
        let mut ended = Vec::new();
        let mut at = 0;
        while let Some(wait) = self.waiting.get(at) {
            match wait.condition.outcome(&wait.command, event) {
                Some(outcome) => ended.push((self.waiting.remove(at), outcome)),
                None => at += 1,
            }
        }
        ended
    }

    /// Takes the one whose time is over.
    pub fn late(&mut self, ticket: Ticket) -> Option<Ended> {
        let wait = self.forget(ticket)?;
        let error = wait.condition.late(&wait.command, wait.limit);
        Some((wait, Err(error)))
    }

    /// Takes all: nothing will happen any more.
    pub fn end(&mut self) -> Vec<Ended> {
        let over = |wait: Wait| {
            let why = format!("{}: the run ended first", wait.command);
            (wait, Err(CommandError::new(ErrorClass::Failed, why)))
        };
        self.waiting.drain(..).map(over).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_loop::{EventLoop, EventSet};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    fn timer() -> Watch {
        let fd = EventFd::new(EFD_NONBLOCK).unwrap();
        let events = EventLoop::new().unwrap();
        events.add(&fd, EventSet::IN, |_| {}).unwrap()
    }

    fn wait(waits: &mut Waits, command: &str, condition: Condition) -> Ticket {
        let ticket = waits.ticket(command).unwrap();
        waits.add(Wait {
            ticket,
            command: command.into(),
            condition,
            limit: Duration::from_secs(10),
            timer: timer(),
        });
        ticket
    }

    fn about(name: &'static str, id: &str) -> Event {
        Event::new(name).with("id", id)
    }

    fn tickets(ended: &[Ended]) -> Vec<Ticket> {
        ended.iter().map(|(wait, _)| wait.ticket).collect()
    }

    #[test]
    fn only_what_is_waited_for_ends_a_wait() {
        let mut waits = Waits::default();
        let removal = Condition::Removal("c".into());
        let first = wait(&mut waits, "device_del c wait=10", removal.clone());
        let second = wait(&mut waits, "device_del c wait=10", removal);
        let any = Condition::Event {
            name: "ns_changed",
            id: None,
        };
        let any = wait(&mut waits, "wait ns_changed", any);
        for other in [
            about("device_deleted", "d"),
            about("device_added", "c"),
            about("device_del_refused", "d"),
        ] {
            assert!(waits.happened(&other).is_empty(), "{other:?}");
        }
        let ended = waits.happened(&about("ns_changed", "n").with("size", 5));
        assert_eq!(tickets(&ended), [any]);
        let expected = json!({ "event": "ns_changed", "id": "n", "size": 5 });
        assert_eq!(ended[0].1, Ok(expected));
        let ended = waits.happened(&about("device_deleted", "c"));
        assert_eq!(tickets(&ended), [first, second]);
        assert_eq!(ended[0].1, Ok(json!({ "id": "c", "state": "deleted" })));
        assert!(waits.happened(&about("device_deleted", "c")).is_empty());
    }

    #[test]
    fn refusals_lateness_and_the_end_are_told() {
        let mut waits = Waits::default();
        let mut begin = |id: &str| {
            let command = format!("device_del {id} wait=10");
            wait(&mut waits, &command, Condition::Removal(id.into()))
        };
        let (_, late, _) = (begin("a"), begin("b"), begin("c"));
        let message = |ended: &[Ended]| match &ended[0].1 {
            Err(error) => (error.class, error.message.clone()),
            Ok(value) => panic!("{value}"),
        };
        let (class, text) = message(&waits.happened(&about("device_del_refused", "a")));
        assert_eq!(class, ErrorClass::InUse);
        assert!(text.contains("device_del a surprise pulls it"), "{text}");
        let (class, text) = message(&[waits.late(late).unwrap()]);
        assert_eq!(class, ErrorClass::Timeout);
        assert!(
            text.starts_with("device_del b wait=10: not gone within 10 s"),
            "{text}"
        );
        assert!(waits.late(late).is_none());
        let (class, text) = message(&waits.end());
        assert_eq!(class, ErrorClass::Failed);
        assert_eq!(text, "device_del c wait=10: the run ended first");
    }

    #[test]
    fn there_is_a_limit() {
        let mut waits = Waits::default();
        for _ in 0..MAX_WAITS {
            wait(&mut waits, "w", Condition::Removal("a".into()));
        }
        let error = waits.ticket("wait device_deleted a").unwrap_err();
        let expected = "wait device_deleted a: 256 commands wait already, which is the limit";
        assert_eq!(error.message, expected);
        assert_eq!(waits.happened(&about("device_deleted", "a")).len(), 256);
        waits.ticket("w").unwrap();
    }
}
