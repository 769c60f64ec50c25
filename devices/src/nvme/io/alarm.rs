//! Wakes a sleeping I/O thread at a given time.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// A timer in the thread's epoll set, edge-triggered: it needs no read.
pub struct Alarm {
    timer: TimerFd,
    // What it is set to.
    at: Option<Instant>,
}

impl Alarm {
    /// A timer that is not set.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new() -> io::Result<Self> {
        let timer = TimerFd::new()?;
        Ok(Self { timer, at: None })
    }

    /// Sets the time to be woken at, or none. Costs nothing if it is what it was and lies ahead.
    pub fn set(&mut self, at: Option<Instant>) {
        if self.at == at && at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let set = match at {
            // Zero would stop the timer.
            Some(at) => {
                let rest = at.saturating_duration_since(Instant::now());
                self.timer.reset(rest.max(Duration::from_nanos(1)), None)
            }
            None => self.timer.clear(),
        };
        // Only arguments out of range fail, and these are within 26 ms.
        if let Err(error) = set {
            crate::guest_warn!("a timer cannot be set: {error}");
        }
        self.at = at;
    }
}

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the timer rang within so many milliseconds.
    fn rang(alarm: &Alarm, timeout: i32) -> bool {
        let mut poll = libc::pollfd {
            fd: alarm.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one live structure.
        unsafe { libc::poll(&raw mut poll, 1, timeout) == 1 }
    }

    #[test]
    fn it_rings_at_its_time_once_it_is_set_and_not_when_it_is_not() {
        let mut alarm = Alarm::new().unwrap();
        assert!(!rang(&alarm, 0));
        let at = Instant::now() + Duration::from_millis(2);
        alarm.set(Some(at));
        assert!(rang(&alarm, 10_000));
        assert!(Instant::now() >= at, "too early");
        // The same time once more, now in the past.
        alarm.set(Some(at));
        assert!(rang(&alarm, 10_000));
        alarm.set(Some(Instant::now() + Duration::from_secs(3600)));
        assert!(!rang(&alarm, 0));
        alarm.set(None);
        assert!(!rang(&alarm, 0));
    }
}
