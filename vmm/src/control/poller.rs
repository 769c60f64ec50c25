//! The server's own epoll: one descriptor for an outer loop, however many clients there are.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// What a descriptor is watched for. Errors and hang-ups are always told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Errors only.
    Errors,
    /// Readability.
    Read,
    /// Writability.
    Write,
    /// Both.
    ReadWrite,
}

impl Interest {
    fn events(self) -> EventSet {
        match self {
            Self::Errors => EventSet::empty(),
            Self::Read => EventSet::IN,
            Self::Write => EventSet::OUT,
            Self::ReadWrite => EventSet::IN | EventSet::OUT,
        }
    }
}

/// Descriptors by key.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
}

impl Poller {
    /// Key of `PATH.in`.
    pub const COMMANDS: u64 = 0;
    /// Key of `PATH.out`.
    pub const REPLIES: u64 = 1;
    /// Key of the listening socket.
    pub const LISTENER: u64 = 2;
    /// First key of a socket's client; they count up from here.
    pub const FIRST_CLIENT: u64 = 3;

    /// # Errors
    /// The host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
        })
    }

    /// Starts to watch `file`. Closing it ends that.
    pub fn add(&self, file: &impl AsRawFd, key: u64, interest: Interest) -> io::Result<()> {
        self.control(ControlOperation::Add, file, key, interest)
    }

    /// Changes what `file` is watched for.
    pub fn modify(&self, file: &impl AsRawFd, key: u64, interest: Interest) -> io::Result<()> {
        self.control(ControlOperation::Modify, file, key, interest)
    }

    fn control(
        &self,
        operation: ControlOperation,
        file: &impl AsRawFd,
        key: u64,
        interest: Interest,
    ) -> io::Result<()> {
        self.epoll.ctl(
            operation,
            file.as_raw_fd(),
            EpollEvent::new(interest.events(), key),
        )
    }

    /// What is ready now, as keys and events; does not wait.
    pub fn ready(&self) -> Vec<(u64, EventSet)> {
        let mut events = [EpollEvent::default(); 32];
        // Fails only when interrupted: what is ready stays so for the next call.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        events[..count]
            .iter()
            .map(|event| (event.data(), event.event_set()))
            .collect()
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}
