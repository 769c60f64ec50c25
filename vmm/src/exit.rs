//! How a run ends: the reason, the line for people and the status for scripts.

use std::fmt;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Wrong usage: an option, a file or a value on the command line.
pub const USAGE: u8 = 35;

/// Why the machine stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest entered ACPI S5.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A triple fault, or an instruction that this host cannot run for the guest.
    Crash(String),
    /// The guest's kernel panicked.
    Panic,
    /// The user left: `Ctrl-a x` or the `quit` command.
    Quit,
    /// A signal told berth to end.
    Signal(i32),
    /// berth or KVM failed.
    Failure(String),
    /// The guest's command ended with this status.
    Command(u8),
    /// The guest's command could not be run.
    NotRun {
        /// The exit status that this has.
        status: u8,
        /// What was wrong.
        why: String,
    },
}

impl ExitReason {
    /// The exit status; for a signal 128 plus its number, as a shell reports it.
    pub fn status(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Quit => 0,
            Self::Failure(_) => 1,
            Self::Command(status) | Self::NotRun { status, .. } => *status,
            Self::Reset => 32,
            Self::Crash(_) => 33,
            Self::Panic => 34,
            Self::Signal(number) => u8::try_from(128 + number).unwrap_or(u8::MAX),
        }
    }
}

impl ExitReason {
    /// Name of the event that control clients get, for what the guest did.
    pub fn event(&self) -> Option<&'static str> {
        match self {
            Self::PowerOff => Some("guest_poweroff"),
            Self::Reset => Some("guest_reset"),
            Self::Crash(_) => Some("guest_crashed"),
            Self::Panic => Some("guest_panicked"),
            Self::Command(_) | Self::NotRun { .. } => Some("command_ended"),
            Self::Quit | Self::Signal(_) | Self::Failure(_) => None,
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("guest powered off"),
            Self::Reset => f.write_str("guest reset"),
            Self::Crash(why) => write!(f, "guest crashed: {why}"),
            Self::Panic => f.write_str("guest panicked"),
            Self::Quit => f.write_str("left on request"),
            Self::Signal(number) => write!(f, "ended by signal {number}"),
            Self::Failure(why) | Self::NotRun { why, .. } => f.write_str(why),
            Self::Command(status) => write!(f, "the command ended with status {status}"),
        }
    }
}

/// Where any thread reports that the run is over. The first reason counts.
#[derive(Debug)]
pub struct Outcome {
    reason: OnceLock<ExitReason>,
    event: EventFd,
    panic_seen: AtomicBool,
}

impl Outcome {
    /// A run that goes on.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            reason: OnceLock::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
            panic_seen: AtomicBool::new(false),
        })
    }

    /// Ends the run. After a panic was seen on the console, a reset or crash is that panic's end.
    pub fn end(&self, reason: ExitReason) {
        let after_panic = self.panic_seen.load(Ordering::Acquire);
        let reason = match reason {
            ExitReason::Reset | ExitReason::Crash(_) if after_panic => ExitReason::Panic,
            other => other,
        };
        if self.reason.set(reason).is_ok() {
            // Only a counter that is full can fail, and then the event is readable already.
            let _ = self.event.write(1);
        }
    }

    /// Notes that the console shows a kernel panic; the run ends when the guest resets.
    pub fn panic_seen(&self) {
        self.panic_seen.store(true, Ordering::Release);
    }

    /// The reason, once the run is over.
    pub fn reason(&self) -> Option<&ExitReason> {
        self.reason.get()
    }

    /// Readable once the run is over.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_the_documented_ones() {
        let table = [
            (ExitReason::PowerOff, 0),
            (ExitReason::Quit, 0),
            (ExitReason::Failure("x".into()), 1),
            (ExitReason::Reset, 32),
            (ExitReason::Crash("x".into()), 33),
            (ExitReason::Panic, 34),
            (ExitReason::Signal(libc::SIGTERM), 143),
            (ExitReason::Command(7), 7),
        ];
        for (reason, status) in table {
            assert_eq!(reason.status(), status, "{reason}");
        }
    }

    #[test]
    fn the_first_reason_counts() {
        let outcome = Outcome::new().unwrap();
        assert!(outcome.event().read().is_err());
        outcome.end(ExitReason::PowerOff);
        outcome.end(ExitReason::Reset);
        assert_eq!(outcome.reason(), Some(&ExitReason::PowerOff));
        assert_eq!(outcome.event().read().unwrap(), 1);
    }

    #[test]
    fn a_reset_after_a_panic_is_the_panic() {
        for (reason, expected) in [
            (ExitReason::Reset, ExitReason::Panic),
            (ExitReason::Crash("x".into()), ExitReason::Panic),
            (ExitReason::PowerOff, ExitReason::PowerOff),
        ] {
            let outcome = Outcome::new().unwrap();
            outcome.panic_seen();
            outcome.end(reason);
            assert_eq!(outcome.reason(), Some(&expected));
        }
    }
}
