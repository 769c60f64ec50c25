//! Lines on their way to a reader that may be slow, gone or not there yet.

use std::io::{self, ErrorKind, Write};

/// Bytes that may wait for one reader. A single longer line is taken when nothing else waits.
pub const MAX_WAITING: usize = 256 * 1024;

/// A bounded queue of whole lines.
#[derive(Debug)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// Bytes at the front of `bytes` that are written already.
    sent: usize,
    /// The last byte written. Anything but a newline while nothing waits means that a line was cut.
    last: u8,
    dropped: u64,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            sent: 0,
            last: b'\n',
            dropped: 0,
        }
    }
}

impl Outbox {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Lines that were dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Counts a line that had nowhere to go.
    pub fn count_dropped(&mut self) {
        self.dropped = self.dropped.saturating_add(1);
    }

    /// Queues a line that ends with its newline, or drops all of it.
    pub fn push(&mut self, line: &[u8]) {
        if self.is_empty() {
            if self.last != b'\n' {
                self.bytes.push(b'\n');
            }
        } else if self.bytes.len() - self.sent + line.len() > MAX_WAITING {
            self.count_dropped();
            return;
        }
        self.bytes.extend_from_slice(line);
    }

    /// Writes what `writer` takes without blocking.
    ///
    /// # Errors
    /// The writer's, other than `WouldBlock` and `Interrupted`.
    pub fn write_to(&mut self, writer: &mut impl Write) -> io::Result<()> {
        while !self.is_empty() {
            match writer.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.sent += count;
                    self.last = self.bytes[self.sent - 1];
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        // Moving the rest to the front is paid for by the bytes that have just gone.
        if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
            self.bytes.shrink_to(MAX_WAITING);
        }
        Ok(())
    }

    /// Drops what waits: its reader is gone. If a line was cut, the next reader gets a newline first.
    pub fn clear(&mut self) {
        let rest = &self.bytes[self.sent..];
        let newlines = rest.iter().filter(|b| **b == b'\n').count() as u64;
        // A newline in front ends what was cut; no line is empty.
        let ended = u64::from(rest.first() == Some(&b'\n'));
        self.dropped = self.dropped.saturating_add(newlines - ended);
        self.bytes.clear();
        self.sent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes, then would block.
    struct Narrow {
        room: usize,
        got: Vec<u8>,
    }

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.room -= count;
            self.got.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_arrive_whole_through_a_narrow_writer() {
        let mut outbox = Outbox::default();
        let mut writer = Narrow {
            room: 0,
            got: Vec::new(),
        };
        let mut expected = Vec::<u8>::new();
        for number in 0..1000 {
            let line = format!("line {number}\n");
            outbox.push(line.as_bytes());
            expected.extend(line.as_bytes());
            writer.room = 3;
            outbox.write_to(&mut writer).unwrap();
        }
        writer.room = usize::MAX;
        outbox.write_to(&mut writer).unwrap();
        assert!(outbox.is_empty());
        assert_eq!(writer.got, expected);
        assert_eq!(outbox.dropped(), 0);
    }

    #[test]
    fn what_does_not_fit_is_dropped_whole_and_counted() {
        let mut outbox = Outbox::default();
        let line = [&[b'x'; 999][..], b"\n"].concat();
        for _ in 0..100_000 {
            outbox.push(&line);
        }
        let kept = MAX_WAITING / line.len();
        assert_eq!(outbox.dropped(), 100_000 - kept as u64);
        assert!(outbox.bytes.capacity() <= 2 * MAX_WAITING);
        let mut writer = Narrow {
            room: usize::MAX,
            got: Vec::new(),
        };
        outbox.write_to(&mut writer).unwrap();
        assert_eq!(writer.got, line.repeat(kept));
    }

    #[test]
    fn a_line_longer_than_the_limit_passes_alone_and_its_memory_is_returned() {
        let mut outbox = Outbox::default();
        let line = [&vec![b'x'; 3 * MAX_WAITING][..], b"\n"].concat();
        outbox.push(&line);
        outbox.push(b"dropped\n");
        let mut writer = Narrow {
            room: usize::MAX,
            got: Vec::new(),
        };
        outbox.write_to(&mut writer).unwrap();
        assert_eq!(writer.got, line);
        assert_eq!(outbox.dropped(), 1);
        assert!(outbox.bytes.capacity() <= MAX_WAITING);
    }

    #[test]
    fn a_cut_line_ends_before_the_next_one_begins() {
        let mut outbox = Outbox::default();
        let mut writer = Narrow {
            room: 6,
            got: Vec::new(),
        };
        outbox.push(b"one\n");
        outbox.push(b"two\n");
        outbox.push(b"three\n");
        outbox.write_to(&mut writer).unwrap();
        outbox.clear();
        assert_eq!(outbox.dropped(), 2);
        // A second reader goes before it could read anything.
        outbox.push(b"four\n");
        outbox.clear();
        assert_eq!(outbox.dropped(), 3);
        outbox.push(b"five\n");
        outbox.push(b"six\n");
        writer.room = usize::MAX;
        outbox.write_to(&mut writer).unwrap();
        assert_eq!(writer.got, b"one\ntw\nfive\nsix\n");
        outbox.clear();
        assert_eq!(outbox.dropped(), 3);
    }
}
