//! Interrupt coalescing (NVMe Base 2.0c, 5.27.1.6 and 5.27.1.7): the settings, which the admin queue
//! writes and I/O threads read, and what a completion queue has not told its guest yet.
//!
//! The specification counts by vector. Here each completion queue counts for itself, also where
//! several share a vector: they may belong to different threads, and a count that these share would be
//! written for every completion. No delay gets longer by that, as the time runs for each queue. Shared
//! vectors are raised later by the threshold than with a common count, which is a recommendation, and
//! never later than the time says. The specification leaves it to the controller whether the time is
//! one of a vector or of all.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::spec::InterruptCoalescing;

/// Unit of the aggregation time.
const TIME_UNIT: Duration = Duration::from_micros(100);
/// The admin completion queue's vector, for which there is no coalescing.
const ADMIN_VECTOR: u16 = 0;

/// When completions are enough for an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// So many were posted; at least 2.
    pub threshold: u32,
    /// The oldest of them is so old; not zero.
    pub time: Duration,
}

impl Limits {
    /// `None` if a zero in either field turns coalescing off.
    fn new(settings: InterruptCoalescing) -> Option<Self> {
        let (threshold_z, time) = (settings.thr_z(), settings.time());
        (threshold_z != 0 && time != 0).then(|| Self {
            threshold: u32::from(threshold_z) + 1,
            time: TIME_UNIT * u32::from(time),
        })
    }
}

/// A controller's settings. Whoever changes them has the I/O threads look, so that what waits is
/// judged anew.
#[derive(Debug)]
pub struct Settings {
    // An [`InterruptCoalescing`].
    coalescing: AtomicU32,
    // By vector: coalescing disabled.
    disabled: Box<[AtomicBool]>,
}

impl Settings {
    /// The defaults for so many vectors: no coalescing.
    pub fn new(vectors: u16) -> Self {
        Self {
            coalescing: AtomicU32::new(0),
            disabled: (0..vectors).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Takes the threshold and the time.
    pub fn set(&self, coalescing: InterruptCoalescing) {
        self.coalescing
            .store(coalescing.into_bits(), Ordering::Relaxed);
    }

    /// Turns coalescing off or on for a vector, if there is one of this number.
    pub fn set_disabled(&self, vector: u16, disabled: bool) {
        if let Some(flag) = self.disabled.get(usize::from(vector)) {
            flag.store(disabled, Ordering::Relaxed);
        }
    }

    /// What is in force for a vector; `None` if its interrupts are not coalesced.
    pub fn limits(&self, vector: u16) -> Option<Limits> {
        let bits = self.coalescing.load(Ordering::Relaxed);
        if bits == 0 || vector == ADMIN_VECTOR {
            return None;
        }
        let disabled = self.disabled.get(usize::from(vector))?;
        if disabled.load(Ordering::Relaxed) {
            return None;
        }
        Limits::new(InterruptCoalescing::from_bits(bits))
    }
}

/// Completions posted to a queue since its last interrupt.
#[derive(Debug, Default)]
pub struct Untold {
    count: u32,
    // Known if interrupts were coalesced when the first was posted.
    since: Option<Instant>,
    urgent: bool,
}

/// Whether an interrupt is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing was posted.
    Never,
    /// At once.
    Now,
    /// At this time, unless more comes before.
    At(Instant),
}

impl Untold {
    /// One more was posted, with these limits in force. Commands that failed are told at once, as the
    /// specification recommends.
    pub fn add(&mut self, failed: bool, limits: Option<Limits>) {
        if self.count == 0 && limits.is_some() {
            self.since = Some(Instant::now());
        }
        self.count = self.count.saturating_add(1);
        self.urgent |= failed;
    }

    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.count > 0
    }

    /// They are told, or nobody is there to be told.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// When to interrupt, with these limits in force. A queue that can take no more than `room`
    /// completions has nothing to wait for once these are posted.
    pub fn due(&self, limits: Option<Limits>, room: u32) -> Due {
        if !self.any() {
            return Due::Never;
        }
        // Without a time, coalescing began after the first was posted: it counts from the next on.
        let (Some(limits), Some(since), false) = (limits, self.since, self.urgent) else {
            return Due::Now;
        };
        if self.count >= limits.threshold.min(room) {
            return Due::Now;
        }
        Due::At(since + limits.time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(settings: &Settings, threshold_z: u8, time: u8) {
        let coalescing = InterruptCoalescing::new()
            .with_thr_z(threshold_z)
            .with_time(time);
        settings.set(coalescing);
    }

    #[test]
    fn a_zero_in_either_field_turns_it_off() {
        let settings = Settings::new(3);
        assert_eq!(settings.limits(1), None, "the default");
        for (threshold_z, time) in [(0, 0), (0, 9), (9, 0)] {
            set(&settings, threshold_z, time);
            assert_eq!(settings.limits(1), None, "{threshold_z} {time}");
        }
        set(&settings, 255, 255);
        let limits = Limits {
            threshold: 256,
            time: Duration::from_micros(25_500),
        };
        assert_eq!(settings.limits(1), Some(limits));
    }

    #[test]
    fn the_admin_vector_and_disabled_ones_are_not_coalesced() {
        let settings = Settings::new(3);
        set(&settings, 1, 1);
        settings.set_disabled(2, true);
        settings.set_disabled(3, true);
        let coalesced = [0, 1, 2, 3, u16::MAX].map(|vector| settings.limits(vector).is_some());
        assert_eq!(coalesced, [false, true, false, false, false]);
        settings.set_disabled(2, false);
        assert!(settings.limits(2).is_some());
    }

    const LIMITS: Option<Limits> = Some(Limits {
        threshold: 3,
        time: Duration::from_secs(3600),
    });
    const ROOM: u32 = 63;

    #[test]
    fn the_threshold_or_the_age_of_the_oldest_is_waited_for() {
        let mut untold = Untold::default();
        assert_eq!(untold.due(LIMITS, ROOM), Due::Never);
        let before = Instant::now();
        untold.add(false, LIMITS);
        let Due::At(due) = untold.due(LIMITS, ROOM) else {
            panic!("{untold:?}");
        };
        let hour = Duration::from_secs(3600);
        assert!((before + hour..=Instant::now() + hour).contains(&due));
        untold.add(false, LIMITS);
        assert_eq!(untold.due(LIMITS, ROOM), Due::At(due), "the oldest counts");
        untold.add(false, LIMITS);
        assert_eq!(untold.due(LIMITS, ROOM), Due::Now);
        untold.clear();
        assert_eq!(untold.due(LIMITS, ROOM), Due::Never);
        untold.add(false, LIMITS);
        assert!(matches!(untold.due(LIMITS, ROOM), Due::At(_)));
    }

    #[test]
    fn errors_full_queues_and_changed_settings_wait_for_nothing() {
        let mut untold = Untold::default();
        untold.add(false, LIMITS);
        assert_eq!(untold.due(LIMITS, 1), Due::Now, "the queue is full");
        assert_eq!(untold.due(None, ROOM), Due::Now, "turned off");
        untold.add(true, LIMITS);
        assert_eq!(untold.due(LIMITS, ROOM), Due::Now, "an error");
        untold.clear();
        untold.add(false, None);
        assert_eq!(untold.due(LIMITS, ROOM), Due::Now, "turned on later");
    }
}
