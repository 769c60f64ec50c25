//! Log messages that a guest can cause, limited so that it cannot flood the host's log.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

#[doc(hidden)]
pub use tracing;

pub use crate::guest_warn;

/// Messages that one call site may log in one window.
pub const BURST: u64 = 10;

/// Length of a window in milliseconds. It starts with the first message after the last one ended.
pub const WINDOW_MS: u64 = 5_000;

const COUNT_BITS: u32 = 24;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;

/// What one call site has logged. Lock-free, so that an I/O thread never waits for another.
#[derive(Debug, Default)]
pub struct RateLimit {
    /// Start of the window in milliseconds above [`COUNT_BITS`], messages in it below. No message
    /// yet: 0.
    state: AtomicU64,
}

impl RateLimit {
    /// A call site that has logged nothing.
    pub const fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
        }
    }

    /// Whether one more message may be logged now; if so, how many before it were suppressed.
    pub fn admit(&self) -> Option<u64> {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        self.admit_at(u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// [`RateLimit::admit`] at `now`, in milliseconds since an arbitrary start.
    fn admit_at(&self, now: u64) -> Option<u64> {
        let now = now.min(u64::MAX >> COUNT_BITS);
        let next = |state: u64| {
            let (start, count) = (state >> COUNT_BITS, state & COUNT_MAX);
            if count == 0 || now.saturating_sub(start) >= WINDOW_MS {
                return now << COUNT_BITS | 1;
            }
            start << COUNT_BITS | (count + 1).min(COUNT_MAX)
        };
        let mut old = self.state.load(Ordering::Relaxed);
        let new = loop {
            let new = next(old);
            match self
                .state
                .compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => break new,
                Err(now) => old = now,
            }
        };
        match new & COUNT_MAX {
            1 => Some((old & COUNT_MAX).saturating_sub(BURST)),
            count => (count <= BURST).then_some(0),
        }
    }
}

/// `tracing::warn!` for what a guest can cause: each call site logs at most [`BURST`] messages in
/// [`WINDOW_MS`], and says how many it suppressed when it speaks again.
#[macro_export]
macro_rules! guest_warn {
    ($($message:tt)+) => {{
        static LIMIT: $crate::ratelimit::RateLimit = $crate::ratelimit::RateLimit::new();
        if let Some(suppressed) = LIMIT.admit() {
            if suppressed > 0 {
                $crate::ratelimit::tracing::warn!("{suppressed} messages like the next one were suppressed");
            }
            $crate::ratelimit::tracing::warn!($($message)+);
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_rest_is_counted() {
        let limit = RateLimit::new();
        for _ in 0..BURST {
            assert_eq!(limit.admit_at(7), Some(0));
        }
        for now in 0..90 {
            assert_eq!(limit.admit_at(7 + now), None);
        }
        assert_eq!(limit.admit_at(7 + WINDOW_MS - 1), None);
        assert_eq!(limit.admit_at(7 + WINDOW_MS), Some(91));
        assert_eq!(limit.admit_at(7 + WINDOW_MS), Some(0));
    }

    #[test]
    fn a_quiet_site_has_nothing_to_tell() {
        let limit = RateLimit::new();
        for second in 0..100 {
            assert_eq!(limit.admit_at(second * 1_000), Some(0));
        }
    }

    #[test]
    fn counts_saturate() {
        let limit = RateLimit {
            state: AtomicU64::new(COUNT_MAX),
        };
        assert_eq!(limit.admit_at(1), None);
        assert_eq!(limit.state.load(Ordering::Relaxed), COUNT_MAX);
        assert_eq!(limit.admit_at(u64::MAX), Some(COUNT_MAX - BURST));
    }

    #[test]
    fn threads_share_one_burst() {
        let limit = RateLimit::new();
        let admitted: usize = std::thread::scope(|scope| {
            let count = || (0..1_000).filter(|_| limit.admit_at(5).is_some()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(admitted as u64, BURST);
    }

    #[test]
    fn takes_what_tracing_takes() {
        let qid = 3;
        guest_warn!("plain");
        guest_warn!(qid, tail = 7, "queue {qid}: wrong tail");
    }
}
