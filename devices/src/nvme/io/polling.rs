//! How an idle I/O thread decides between looking for commands and sleeping.
//!
//! Looking saves the wake-up, which costs more than many a command, and costs the CPU. So it has to
//! pay: a thread looks only while looking has found work often enough of late, which short pauses
//! between commands start and looks in vain end; an idle machine does not look at all. And it looks
//! only where nobody else wants the CPU: a guest that waits for that CPU cannot send the command that
//! is looked for, so a thread that was kept from looking leaves it for a while, each time longer.

use std::time::{Duration, Instant};

/// Looks in vain that a pause shorter than the limit is good for.
const REFILL: u32 = 8;
/// Looks in vain that one that finds work pays for: at least a quarter must find some.
const REWARD: u32 = 3;
/// Most looks in vain in a row.
const MOST: u32 = 32;

/// Looks between two offers of the CPU to others, a few microseconds.
const OFFER: u32 = 64;
/// Who could not look for so long has lost the CPU to somebody else.
const LOST: Duration = Duration::from_micros(200);
/// How long not to look after that, the first time and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(640));

/// A look in progress.
#[derive(Debug, Clone, Copy)]
struct Look {
    since: Instant,
    last: Instant,
    count: u32,
}

/// What a look says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Again,
    InVain,
    Kept,
}

impl Look {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            last: now,
            count: 0,
        }
    }

    fn judge(&mut self, now: Instant, limit: Duration) -> Verdict {
        let gap = now.saturating_duration_since(self.last);
        self.last = now;
        self.count += 1;
        if gap > LOST {
            Verdict::Kept
        } else if now.saturating_duration_since(self.since) >= limit {
            Verdict::InVain
        } else {
            Verdict::Again
        }
    }
}

/// Keeps a thread from looking where others need its CPU.
#[derive(Debug, Default)]
struct Contention {
    pause: Duration,
    until: Option<Instant>,
}

impl Contention {
    fn lost(&mut self, now: Instant) {
        let (first, most) = PAUSE;
        // Again, soon after the last pause: it was too short.
        let again = self.until.is_some_and(|until| now < until + self.pause);
        self.pause = if again {
            (self.pause * 2).min(most)
        } else {
            first
        };
        self.until = Some(now + self.pause);
    }

    fn forbids(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// One thread's state.
#[derive(Debug, Default)]
pub struct Polling {
    credit: u32,
    look: Option<Look>,
    // Since when there has been nothing to do, as far as it is known.
    idle_since: Option<Instant>,
    contention: Contention,
}

impl Polling {
    /// There was work. `true` if it was found by looking for it.
    pub fn work(&mut self) -> bool {
        self.idle_since = None;
        let found = self.look.take().is_some();
        if found {
            self.credit = (self.credit + REWARD).min(MOST);
        }
        found
    }

    /// There was none: whether to look once more rather than sleep, for `limit` at most.
    pub fn look_again(&mut self, limit: Duration) -> bool {
        if limit.is_zero() || self.credit == 0 {
            self.look = None;
            return false;
        }
        let more = self.look_at(Instant::now(), limit);
        let offer = |look: Look| look.count % OFFER == OFFER - 1;
        if more && self.look.is_some_and(offer) {
            std::thread::yield_now();
            // Before anything else, so that the time others took shows even if they left work.
            return self.look_at(Instant::now(), limit);
        }
        std::hint::spin_loop();
        more
    }

    fn look_at(&mut self, now: Instant, limit: Duration) -> bool {
        let Some(look) = &mut self.look else {
            if self.contention.forbids(now) {
                return false;
            }
            self.look = Some(Look::new(now));
            self.idle_since = Some(now);
            return true;
        };
        let verdict = look.judge(now, limit);
        match verdict {
            Verdict::Again => return true,
            Verdict::InVain => self.credit -= 1,
            Verdict::Kept => self.contention.lost(now),
        }
        self.look = None;
        false
    }

    /// The thread slept from `start` to `end`.
    pub fn slept(&mut self, start: Instant, end: Instant, limit: Duration) {
        // A look in vain before it is part of the pause, which was longer than any look, then.
        let start = self.idle_since.take().unwrap_or(start);
        if end.saturating_duration_since(start) < limit {
            self.credit = self.credit.max(REFILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);
    const TICK: Duration = Duration::from_micros(1);

    /// A thread's time, told by the test.
    struct Thread {
        polling: Polling,
        now: Instant,
    }

    impl Thread {
        fn new() -> Self {
            Self {
                polling: Polling::default(),
                now: Instant::now(),
            }
        }

        /// Nothing to do for `pause`, then something. Whether it was found by looking.
        fn pause(&mut self, pause: Duration) -> bool {
            let end = self.now + pause;
            while self.looks() {
                if self.now >= end {
                    return self.polling.work();
                }
                self.now += TICK;
            }
            let start = self.now;
            self.now = self.now.max(end);
            self.polling.slept(start, self.now, LIMIT);
            self.polling.work()
        }

        fn looks(&mut self) -> bool {
            self.polling.credit > 0 && self.polling.look_at(self.now, LIMIT)
        }
    }

    #[test]
    fn short_pauses_make_it_look_and_long_ones_let_it_sleep() {
        let mut thread = Thread::new();
        assert!(!thread.pause(LIMIT / 2), "nothing is known yet");
        for _ in 0..100 {
            assert!(thread.pause(LIMIT / 2));
        }
        let fruitless = (0..).take_while(|_| {
            let before = thread.polling.credit;
            assert!(!thread.pause(LIMIT * 2));
            before > 0
        });
        assert_eq!(fruitless.count(), MOST as usize);
        assert!(!thread.looks(), "it sleeps at once now");
        assert!(!thread.pause(LIMIT / 2));
        assert!(thread.pause(LIMIT / 2), "and looks again when it pays");
    }

    #[test]
    fn a_pause_that_is_a_bit_too_long_is_never_worth_a_look() {
        let mut thread = Thread::new();
        thread.pause(LIMIT / 2);
        for _ in 0..REFILL {
            assert!(!thread.pause(LIMIT + LIMIT / 5));
        }
        assert_eq!(thread.polling.credit, 0);
        // The short sleep behind a look in vain is no reason to look again.
        thread.pause(LIMIT + LIMIT / 5);
        assert_eq!(thread.polling.credit, 0);
    }

    #[test]
    fn one_find_in_four_is_enough() {
        let mut thread = Thread::new();
        thread.pause(LIMIT / 2);
        for _ in 0..100 {
            assert!(thread.pause(LIMIT / 2));
            for _ in 0..REWARD {
                assert!(thread.looks(), "it looks");
                thread.polling.look = None;
                assert!(!thread.pause(LIMIT * 2));
            }
        }
        assert!(thread.polling.credit > 0);
    }

    #[test]
    fn a_thread_that_lost_the_cpu_does_not_look_for_a_while() {
        let mut thread = Thread::new();
        thread.pause(LIMIT / 2);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            assert!(thread.looks());
            thread.now += LOST + TICK;
            assert!(!thread.looks(), "somebody else had the CPU");
            assert!(thread.polling.credit > 0);
            let pause = thread.polling.contention.pause;
            thread.now += pause - TICK;
            assert!(!thread.looks());
            thread.now += TICK;
            pauses.push(pause);
        }
        assert_eq!(
            (pauses[0], pauses[1], pauses[9]),
            (PAUSE.0, PAUSE.0 * 2, PAUSE.1)
        );
        // After a good while the first pause is short again.
        thread.now += PAUSE.1 * 2;
        assert!(thread.looks());
        thread.now += LOST + TICK;
        assert!(!thread.looks());
        assert_eq!(thread.polling.contention.pause, PAUSE.0);
    }

    #[test]
    fn a_limit_of_zero_never_looks() {
        let mut polling = Polling::default();
        let now = Instant::now();
        polling.slept(now, now, LIMIT);
        assert!(polling.look_again(LIMIT));
        assert!(!polling.look_again(Duration::ZERO));
        assert!(!polling.work());
    }
}
