//! fio's log of completions (`write_lat_log`): a line for each, beginning with
//! its time in ms.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// What a log tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completions {
    /// How many there were.
    pub count: usize,
    /// From fio's start to the last one.
    pub span: Duration,
    /// Longest time without one, the time before the first included.
    pub longest_gap: Duration,
    /// When that ended.
    pub gap_end: Duration,
}

impl Completions {
    /// Reads a log. Zeroes after its end, up to the end of a disk, are no part of it.
    ///
    /// # Errors
    /// When it is empty, or a line is none of fio's.
    pub fn parse(log: &[u8]) -> Result<Self> {
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        let text = std::str::from_utf8(&log[..end]).context("fio's log is no text")?;
        let (mut count, mut last, mut longest, mut gap_end) = (0, 0, 0, 0);
        for line in text.lines() {
            let fields: Vec<&str> = line.split(", ").collect();
            ensure!(fields.len() >= 5, "this is no line of fio's log: {line:?}");
            let time: u64 = fields[0]
                .parse()
                .with_context(|| format!("no time: {line:?}"))?;
            // Completions that are reaped together may be logged in any order.
            let gap = time.saturating_sub(last);
            if gap > longest {
                (longest, gap_end) = (gap, time);
            }
            last = last.max(time);
            count += 1;
        }
        ensure!(count > 0, "fio's log is empty");
        Ok(Self {
            count,
            span: Duration::from_millis(last),
            longest_gap: Duration::from_millis(longest),
            gap_end: Duration::from_millis(gap_end),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(times: &[u64]) -> Vec<u8> {
        let line = |time| format!("{time}, 1203456, 1, 4096, 40960, 0\n");
        times.iter().map(line).collect::<String>().into_bytes()
    }

    fn gap(times: &[u64]) -> u128 {
        let completions = Completions::parse(&log(times)).unwrap();
        assert_eq!(completions.count, times.len());
        completions.longest_gap.as_millis()
    }

    #[test]
    fn the_longest_gap_is_found_wherever_it_is() {
        assert_eq!(gap(&[3, 5, 9, 10]), 4);
        assert_eq!(gap(&[1500, 1501, 1502]), 1500);
        assert_eq!(gap(&[1, 1002, 1003]), 1001);
        assert_eq!(gap(&[1, 2, 3, 2500]), 2497);
        // Logged out of order: the gap is between 100 and 700.
        assert_eq!(gap(&[100, 700, 699, 701]), 600);
    }

    #[test]
    fn zeroes_after_the_end_do_not_count() {
        let mut bytes = log(&[10, 30]);
        bytes.resize(4096, 0);
        let completions = Completions::parse(&bytes).unwrap();
        let expected = Completions {
            count: 2,
            span: Duration::from_millis(30),
            longest_gap: Duration::from_millis(20),
            gap_end: Duration::from_millis(30),
        };
        assert_eq!(completions, expected);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        for bad in [
            &b""[..],
            b"\0\0",
            b"fio: error\n",
            b"x, 1, 1, 1, 1\n",
            b"1, 2\n",
            b"\xff\n",
        ] {
            assert!(Completions::parse(bad).is_err(), "{bad:?}");
        }
    }
}
