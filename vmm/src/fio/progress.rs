//! What the user sees while jobs run: one line that changes on a terminal, else a line now and then.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use super::sys;
use crate::guest_command::tail::printable;
use crate::stderr;

/// How often a line is printed where lines stay.
const EVERY: Duration = Duration::from_secs(15);
/// Width of the bar.
const BAR: usize = 20;
/// Columns of a terminal that does not tell.
const COLUMNS: usize = 80;

/// The line.
pub struct Progress {
    terminal: bool,
    total: usize,
    number: usize,
    title: String,
    shown: Option<Instant>,
}

/// What fio's status line says.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Status {
    /// How much of the job is done, in percent.
    pub percent: Option<f64>,
    /// Bandwidth, IOPS and ETA in fio's words.
    pub words: Vec<String>,
}

impl Status {
    /// Reads a line such as `Jobs: 1 (f=1): [r(1)][60.0%][r=200KiB/s][r=50 IOPS][eta 00m:02s]`.
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.trim_start().strip_prefix("Jobs: ")?;
        let mut status = Self::default();
        let groups = rest.split('[').skip(1);
        for group in groups.filter_map(|group| group.split(']').next()) {
            if let Some(percent) = group.strip_suffix('%') {
                status.percent = percent.parse().ok();
            } else if group.contains('=') || group.starts_with("eta ") {
                status.words.push(printable(group));
            }
        }
        Some(status)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if let Some(percent) = self.percent {
            // From 0 to 100.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let full = (percent.clamp(0.0, 100.0) / 100.0 * BAR as f64) as usize;
            text += &format!(
                "[{}{}] {percent:3.0} %",
                "#".repeat(full),
                ".".repeat(BAR - full)
            );
        }
        let bar = Some(text).filter(|bar| !bar.is_empty());
        let words: Vec<String> = bar.into_iter().chain(self.words.clone()).collect();
        words.join("  ")
    }
}

impl Progress {
    /// Of `total` runs.
    pub fn new(total: usize) -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            total,
            number: 0,
            title: String::new(),
            shown: None,
        }
    }

    /// The next run.
    pub fn begin(&mut self, title: &str) {
        self.number += 1;
        title.clone_into(&mut self.title);
        self.shown = None;
        self.show("waits");
        self.shown = None;
    }

    /// What is being done before fio tells anything.
    pub fn state(&mut self, words: &str) {
        if self.terminal {
            self.show(words);
        }
    }

    /// What fio tells.
    pub fn status(&mut self, status: &Status) {
        // At first fio knows nothing.
        if *status == Status::default() {
            return;
        }
        let due = self.shown.is_none_or(|shown| shown.elapsed() >= EVERY);
        if self.terminal || due {
            self.show(&status.text());
        }
    }

    /// The run is over.
    pub fn end(&mut self, words: &str) {
        let line = format!("{} {words}", self.head());
        self.say(&line);
    }

    /// A line that stays.
    pub fn say(&mut self, line: &str) {
        self.clear();
        stderr::say(line);
    }

    /// Leaves the terminal's line empty.
    pub fn clear(&mut self) {
        if self.terminal {
            stderr::put("\r\x1b[K");
        }
    }

    fn head(&self) -> String {
        format!("[{}/{}] {}:", self.number, self.total, self.title)
    }

    fn show(&mut self, words: &str) {
        self.shown = Some(Instant::now());
        let line = format!("{} {words}", self.head());
        if self.terminal {
            let columns = sys::columns().unwrap_or(COLUMNS);
            // A longer one would wrap, and could not be overwritten.
            let line: String = line.chars().take(columns.saturating_sub(1)).collect();
            stderr::put(&format!("\r\x1b[K{line}"));
        } else {
            stderr::say(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fios_status_lines_are_read() {
        let line =
            "Jobs: 4 (f=4): [m(4)][60.0%][r=200KiB/s,w=90KiB/s][r=50,w=22 IOPS][eta 00m:02s]";
        let status = Status::parse(line).unwrap();
        assert_eq!(status.percent, Some(60.0));
        assert_eq!(
            status.words,
            ["r=200KiB/s,w=90KiB/s", "r=50,w=22 IOPS", "eta 00m:02s"]
        );
        assert_eq!(
            status.text(),
            "[############........]  60 %  r=200KiB/s,w=90KiB/s  r=50,w=22 IOPS  eta 00m:02s"
        );
        let early = Status::parse("Jobs: 2 (f=2), 0-1200 IOPS").unwrap();
        assert_eq!(early, Status::default());
        let ramp = Status::parse("Jobs: 1 (f=1): [/(1)][-.-%][eta 00m:30s]").unwrap();
        assert_eq!((ramp.percent, ramp.words.len()), (None, 1));
        assert_eq!(Status::parse("fio: pid=0, err=19"), None);
    }
}
