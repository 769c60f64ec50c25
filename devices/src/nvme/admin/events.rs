//! Asynchronous events (NVMe Base 2.0c, 5.2).

use super::super::group::Group;
use super::super::spec::{AsyncEventConfig, AsyncEventResult, EventType, LogId};
use super::ADMIN;
use super::recording::Recording;

/// Asynchronous Event Request commands that can be outstanding (AERL + 1).
pub const MAX_REQUESTS: u8 = 4;

/// Something the guest may want to hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsyncEvent {
    /// A doorbell of no queue was written.
    InvalidDoorbellRegister,
    /// A doorbell was written with no index into its queue.
    InvalidDoorbellValue,
    /// The temperature crossed a threshold.
    Temperature,
    /// Namespaces came, went or changed.
    NamespaceAttributeChanged,
}

impl AsyncEvent {
    fn result(self) -> AsyncEventResult {
        let (kind, info, log) = match self {
            Self::InvalidDoorbellRegister => (EventType::ERROR, 0x00, LogId::ERROR_INFORMATION),
            Self::InvalidDoorbellValue => (EventType::ERROR, 0x01, LogId::ERROR_INFORMATION),
            Self::Temperature => (EventType::SMART, 0x01, LogId::SMART),
            Self::NamespaceAttributeChanged => (EventType::NOTICE, 0x00, LogId::CHANGED_NAMESPACES),
        };
        AsyncEventResult::new()
            .with_event_type(kind.0)
            .with_info(info)
            .with_lid(log.0)
    }

    fn log(self) -> LogId {
        LogId(self.result().lid())
    }

    fn wanted(self, config: AsyncEventConfig) -> bool {
        match self {
            Self::InvalidDoorbellRegister | Self::InvalidDoorbellValue => true,
            Self::Temperature => config.smart_temperature(),
            Self::NamespaceAttributeChanged => config.namespace_attribute(),
        }
    }
}

/// Outstanding requests, events not yet reported, and the logs to be read before more is reported.
#[derive(Debug, Default)]
pub struct AsyncEvents {
    requests: Vec<u16>,
    pending: Vec<AsyncEvent>,
    masked: Vec<LogId>,
}

impl AsyncEvents {
    /// Takes an Asynchronous Event Request; `false` if there are too many.
    pub fn request(&mut self, cid: u16) -> bool {
        if self.requests.len() >= usize::from(MAX_REQUESTS) {
            return false;
        }
        self.requests.push(cid);
        true
    }

    /// Whether a request with this identifier is outstanding.
    pub fn has_request(&self, cid: u16) -> bool {
        self.requests.contains(&cid)
    }

    /// Takes a request back (Abort).
    pub fn withdraw(&mut self, cid: u16) {
        if let Some(index) = self.requests.iter().position(|request| *request == cid) {
            self.requests.remove(index);
        }
    }

    /// Notes an event; events that the guest did not enable are dropped.
    pub fn raise(&mut self, event: AsyncEvent, config: AsyncEventConfig) {
        if event.wanted(config) && !self.pending.contains(&event) {
            self.pending.push(event);
        }
    }

    /// The guest chose which events it wants: what waits and is not wanted any more is dropped.
    pub fn keep_wanted(&mut self, config: AsyncEventConfig) {
        self.pending.retain(|event| event.wanted(config));
    }

    /// The guest read a log without Retain Asynchronous Event: its events may be reported again. An
    /// event that waited for that is over if the log told all there was to tell.
    pub fn log_read(&mut self, log: LogId) {
        self.masked.retain(|masked| *masked != log);
        // The log of errors does not list doorbell writes.
        if log != LogId::ERROR_INFORMATION {
            self.pending.retain(|event| event.log() != log);
        }
    }

    /// Completes requests for pending events while there are both, and room. What was reported is
    /// not reported again until its log is read.
    pub fn report(&mut self, group: &mut Group, recording: &mut Recording) {
        let mut index = 0;
        while let Some(event) = self.pending.get(index).copied() {
            let log = event.log();
            if self.masked.contains(&log) {
                index += 1;
                continue;
            }
            if self.requests.is_empty() {
                return;
            }
            let Some(room) = group.reserve() else { return };
            let cid = self.requests.remove(0);
            self.pending.remove(index);
            self.masked.push(log);
            let end = Ok(event.result().into_bits());
            recording.completed(&group.core, cid, end);
            group.post(ADMIN, cid, room, end);
        }
    }
}
