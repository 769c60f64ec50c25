//! The end of the guest's console, for when it dies.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that are kept.
const LIMIT: usize = 8 << 10;
/// Lines that are shown.
const LINES: usize = 20;

/// How the line of a kernel panic goes on behind its time.
const PANIC: &str = "Kernel panic - not syncing";

/// Keeps the last 8 KiB that are written to it, on behalf of all its clones.
#[derive(Clone, Default)]
pub struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    /// The last 20 lines, each without what would steer a terminal; before them that of a kernel panic, if
    /// its trace fills them.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let kept: Vec<u8> = self.lock().iter().copied().collect();
        let text = String::from_utf8_lossy(&kept);
        let lines = text.lines().map(printable);
        let lines: Vec<String> = lines.filter(|line| !line.is_empty()).collect();
        let (earlier, last) = lines.split_at(lines.len().saturating_sub(LINES));
        let panic = earlier.iter().rfind(|line| line.contains(PANIC));
        panic.into_iter().chain(last).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text without control characters, which could be anything of a hostile guest's.
#[must_use]
pub fn printable(text: &str) -> String {
    let text = text.trim_end();
    text.chars()
        .filter(|c| !c.is_control() || *c == '\t')
        .collect()
}

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.lock();
        let last = &bytes[bytes.len().saturating_sub(LIMIT)..];
        kept.extend(last);
        let excess = kept.len().saturating_sub(LIMIT);
        kept.drain(..excess);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_without_control_characters() {
        let mut tail = Tail::default();
        for number in 0..2000 {
            write!(tail, "line \x1b[1m{number}\r\n\r\n").unwrap();
        }
        assert!(tail.lock().len() <= LIMIT);
        let lines = tail.lines();
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines[0], "line [1m1980");
        assert_eq!(lines[LINES - 1], "line [1m1999");
        writeln!(tail, "[1.0] Kernel panic - not syncing: x").unwrap();
        for number in 0..LINES {
            assert_eq!(tail.lines().len(), LINES, "{number}");
            writeln!(tail, "trace {number}").unwrap();
        }
        let lines = tail.lines();
        assert_eq!(lines[0], "[1.0] Kernel panic - not syncing: x");
        assert_eq!((lines.len(), lines[1].as_str()), (LINES + 1, "trace 0"));
        tail.write_all(&vec![b'x'; 3 * LIMIT]).unwrap();
        assert_eq!(tail.lines(), ["x".repeat(LIMIT)]);
    }
}
