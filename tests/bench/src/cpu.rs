//! CPU time of a process, as the kernel counts it.

use anyhow::{Context, Result};

/// Microseconds in a clock tick of `/proc`, whose `USER_HZ` is 100 on every x86 Linux.
const TICK_US: f64 = 10_000.0;

/// CPU time of all threads of a process so far, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuTime {
    /// User, guest and kernel mode together.
    pub all: f64,
    /// What of it was in guest mode.
    pub guest: f64,
}

impl CpuTime {
    /// Reads `/proc/PID/stat`; ticks of 10 ms.
    ///
    /// # Errors
    /// There is no such process, or its line is not as proc(5) says.
    pub fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let line = std::fs::read_to_string(&path).context(path)?;
        Self::parse(&line).with_context(|| format!("no CPU times in {line:?}"))
    }

    fn parse(line: &str) -> Option<Self> {
        // The name, in parentheses, may contain anything; the third field follows.
        let (_, rest) = line.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        // Guest time is counted in user time too.
        let (user, system, guest) = (field(14)?, field(15)?, field(43)?);
        Some(Self {
            all: (user + system) * TICK_US,
            guest: guest * TICK_US,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp)] // Small whole numbers.
    fn times_are_found_behind_any_name() {
        let mut fields: Vec<String> = (4..=52).map(|it| it.to_string()).collect();
        fields[43 - 4] = "5".into();
        let line = format!("12 (a b) c) S {}\n", fields.join(" "));
        let time = CpuTime::parse(&line).unwrap();
        assert_eq!(time.all, (14.0 + 15.0) * 10_000.0);
        assert_eq!(time.guest, 50_000.0);
        assert_eq!(CpuTime::parse("12 (a) S 1 2"), None);
    }

    #[test]
    fn own_time_is_counted() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let before = CpuTime::of(pid).unwrap();
        while CpuTime::of(pid).unwrap().all == before.all {}
        assert!(CpuTime::of(1 << 30).is_err());
    }
}
