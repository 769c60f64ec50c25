//! What control clients hear: events, and the replies of commands that wait for them.

use std::time::Duration;

use serde_json::{Value, json};
use vmm_sys_util::eventfd::EventFd;

use super::{Live, timer};
use crate::control::command::{CommandError, ErrorClass};
use crate::control::{Event, Ticket};
use crate::waits::{Condition, Ended, Wait};

/// How many ids of deleted devices are remembered, for those who wait for them too late.
const REMEMBERED: usize = 256;

/// What control clients are to hear.
#[derive(Debug)]
pub enum Announcement {
    /// All of them.
    Event(Event),
    /// One, whose command has waited.
    Reply(Ticket, Result<Value, CommandError>),
}

impl Live {
    /// Readable while [`Live::take_announcements`] has something.
    pub fn announced(&self) -> &EventFd {
        &self.announced
    }

    /// What control clients are to hear since the last call, in order.
    pub fn take_announcements(&self) -> Vec<Announcement> {
        let _ = self.announced.read();
        std::mem::take(&mut *self.announcements.borrow_mut())
    }

    /// Tells all clients, and answers those that waited for it.
    pub fn announce(&self, event: Event) {
        let ended = self.waits.borrow_mut().happened(&event);
        self.say(Announcement::Event(event));
        self.answer(ended);
    }

    /// Answers all who still wait: the run is over.
    pub fn end_waits(&self) {
        let ended = self.waits.borrow_mut().end();
        self.answer(ended);
    }

    fn say(&self, announcement: Announcement) {
        self.announcements.borrow_mut().push(announcement);
        // It fails only at 2^64 - 1 unread writes.
        let _ = self.announced.write(1);
    }

    fn answer(&self, ended: impl IntoIterator<Item = Ended>) {
        for (wait, result) in ended {
            self.events.remove(wait.timer);
            self.say(Announcement::Reply(wait.ticket, result));
        }
    }

    /// Answers `command` when `condition` holds, or when `limit` is over.
    ///
    /// # Errors
    /// Too many commands wait, or no file descriptor is left.
    pub fn later(
        &self,
        command: String,
        condition: Condition,
        limit: Duration,
    ) -> Result<Ticket, CommandError> {
        let ticket = self.waits.borrow_mut().ticket(&command)?;
        let over = timer(limit).and_then(|timer| {
            self.on(&timer, move |live| {
                let late = live.waits.borrow_mut().late(ticket);
                live.answer(late);
            })
        });
        let timer = over.map_err(|error| {
            CommandError::new(ErrorClass::Failed, format!("{command}: {error}"))
        })?;
        self.waits.borrow_mut().add(Wait {
            ticket,
            command,
            condition,
            limit,
            timer,
        });
        Ok(ticket)
    }

    /// Ends a wait without an answer.
    pub fn forget(&self, ticket: Ticket) {
        let wait = self.waits.borrow_mut().forget(ticket);
        if let Some(wait) = wait {
            self.events.remove(wait.timer);
        }
    }

    /// What `wait` answers at once: `None` if it has to wait for `event` about `id`.
    ///
    /// # Errors
    /// Its deletion is waited for, and there never was such a device.
    pub fn already(&self, event: &str, id: Option<&str>) -> Result<Option<Value>, CommandError> {
        let Some(id) = id else { return Ok(None) };
        let registry = self.registry();
        let there = registry.get(id).is_some();
        let known = there || registry.leaving(id).is_some();
        let happened = match event {
            "device_added" => there,
            "device_deleted" if known => false,
            "device_deleted" if self.deleted.borrow().iter().any(|gone| gone == id) => true,
            "device_deleted" => {
                let why = format!("wait {event} {id}: no device has this id, or had it lately");
                return Err(CommandError::new(ErrorClass::NotFound, why));
            }
            _ => false,
        };
        Ok(happened.then(|| json!({ "event": event, "id": id })))
    }

    pub(super) fn remember(&self, id: &str) {
        let mut deleted = self.deleted.borrow_mut();
        deleted.retain(|gone| gone != id);
        if deleted.len() == REMEMBERED {
            deleted.pop_front();
        }
        deleted.push_back(id.to_owned());
    }
}
