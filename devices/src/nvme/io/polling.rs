//! How an idle I/O thread decides between looking for commands and sleeping.
//!
//! Looking saves the wake-up, which costs more than many a command, and costs the CPU. A thread looks
//! for at most the limit that it is given, and only while its sleeps have been short, at most
//! [`SPARSE`] limits: so looking in vain never takes more than one part in [`SPARSE`] of the time that
//! it could have slept, and an idle machine does not look at all.

use std::time::{Duration, Instant};

/// A sleep as long as so many limits is a long one.
const SPARSE: u32 = 8;

/// Whether commands have been coming closely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Sparse,
    Dense,
}

/// One thread's state.
#[derive(Debug)]
pub struct Polling {
    pace: Pace,
    idle_since: Option<Instant>,
}

impl Default for Polling {
    fn default() -> Self {
        Self {
            pace: Pace::Sparse,
            idle_since: None,
        }
    }
}

impl Polling {
    /// There was work. `true` if it was found by looking for it.
    pub fn work(&mut self) -> bool {
        self.idle_since.take().is_some()
    }

    /// There was none: whether to look once more rather than sleep.
    pub fn look_again(&mut self, limit: Duration) -> bool {
        if limit.is_zero() || self.pace == Pace::Sparse {
            self.idle_since = None;
            return false;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        self.look_until(since.elapsed(), limit)
    }

    fn look_until(&mut self, idle: Duration, limit: Duration) -> bool {
        let more = idle < limit;
        if !more {
            self.idle_since = None;
        }
        more
    }

    /// The thread slept for so long.
    pub fn slept(&mut self, time: Duration, limit: Duration) {
        self.pace = if time < limit.saturating_mul(SPARSE) {
            Pace::Dense
        } else {
            Pace::Sparse
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);

    #[test]
    fn only_short_sleeps_are_worth_looking() {
        let mut polling = Polling::default();
        assert!(!polling.look_again(LIMIT), "nothing is known yet");
        polling.slept(LIMIT * SPARSE, LIMIT);
        assert!(!polling.look_again(LIMIT));
        polling.slept(LIMIT * (SPARSE - 1), LIMIT);
        // The limit is longer than any pause of this test.
        let long = Duration::from_secs(3600);
        assert!(polling.look_again(long));
        assert!(polling.work(), "found by looking");
        assert!(!polling.work(), "there all the time");
        polling.slept(Duration::from_secs(1), LIMIT);
        assert!(!polling.look_again(long));
    }

    #[test]
    fn looking_has_a_limit() {
        let mut polling = Polling::default();
        polling.slept(Duration::ZERO, LIMIT);
        assert!(polling.look_until(LIMIT - Duration::from_nanos(1), LIMIT));
        assert!(!polling.look_until(LIMIT, LIMIT));
        assert!(!polling.work(), "the thread sleeps now");
    }

    #[test]
    fn a_limit_of_zero_never_looks() {
        let mut polling = Polling::default();
        polling.slept(Duration::ZERO, Duration::ZERO);
        polling.slept(Duration::ZERO, LIMIT);
        assert!(!polling.look_again(Duration::ZERO));
    }
}
