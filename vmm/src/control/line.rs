//! Lines out of a byte stream, with a limit on their length.

/// Longest line in bytes, with its newline. Also `PIPE_BUF`: one `write` of a line this long is atomic,
/// so that lines of several clients of one FIFO never mix.
pub const MAX_LINE: usize = 4096;

/// How much of a line that is too long is kept: enough to find its token.
const HEAD: usize = 128;

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound {
    /// A line without its newline.
    Line(Vec<u8>),
    /// The beginning of a line that was too long. The rest is discarded up to its newline.
    TooLong(Vec<u8>),
    /// The stream ended within a line, which therefore does not count.
    Unterminated(Vec<u8>),
}

/// Assembles lines; never holds more than one of them.
#[derive(Debug, Default)]
pub struct LineReader {
    partial: Vec<u8>,
    discarding: bool,
}

impl LineReader {
    /// Takes what was read and appends the lines that it completes to `lines`.
    pub fn feed(&mut self, mut bytes: &[u8], lines: &mut Vec<Inbound>) {
        while !bytes.is_empty() {
            let newline = bytes.iter().position(|b| *b == b'\n');
            let piece = &bytes[..newline.unwrap_or(bytes.len())];
            bytes = &bytes[newline.map_or(bytes.len(), |at| at + 1)..];
            if self.discarding {
                self.discarding = newline.is_none();
            } else if self.partial.len() + piece.len() >= MAX_LINE {
                self.discarding = newline.is_none();
                let mut head = std::mem::take(&mut self.partial);
                head.extend_from_slice(&piece[..piece.len().min(HEAD)]);
                head.truncate(HEAD);
                lines.push(Inbound::TooLong(head));
            } else {
                self.partial.extend_from_slice(piece);
                if newline.is_some() {
                    lines.push(Inbound::Line(std::mem::take(&mut self.partial)));
                }
            }
        }
    }

    /// The stream has ended.
    pub fn finish(&mut self) -> Option<Inbound> {
        let partial = std::mem::take(&mut self.partial);
        (!partial.is_empty()).then_some(Inbound::Unterminated(partial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed_in_chunks(bytes: &[u8], chunk: usize) -> Vec<Inbound> {
        let mut reader = LineReader::default();
        let mut lines = Vec::new();
        for piece in bytes.chunks(chunk) {
            reader.feed(piece, &mut lines);
            assert!(reader.partial.len() < MAX_LINE);
        }
        lines.extend(reader.finish());
        lines
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_whole_and_one_byte_more_is_not() {
        for chunk in [1, 7, 100, 4095, 4096, 4097, 10_000] {
            let mut bytes = vec![b'x'; MAX_LINE - 1];
            bytes.extend(b"\ny\n");
            let whole = Inbound::Line(vec![b'x'; MAX_LINE - 1]);
            assert_eq!(
                feed_in_chunks(&bytes, chunk),
                [whole, Inbound::Line(b"y".to_vec())]
            );

            bytes.insert(0, b'@');
            let mut head = vec![b'x'; HEAD];
            head[0] = b'@';
            let lines = feed_in_chunks(&bytes, chunk);
            assert_eq!(
                lines,
                [Inbound::TooLong(head), Inbound::Line(b"y".to_vec())]
            );
        }
    }

    #[test]
    fn a_long_line_is_reported_once_and_discarded_to_its_newline() {
        let mut bytes = vec![b'x'; 1 << 20];
        bytes.extend(b"\n\nquit\n");
        for chunk in [3, 4096, 1 << 21] {
            let lines = feed_in_chunks(&bytes, chunk);
            assert!(matches!(lines[0], Inbound::TooLong(_)));
            assert_eq!(
                lines[1..],
                [Inbound::Line(vec![]), Inbound::Line(b"quit".to_vec())]
            );
        }
    }

    #[test]
    fn what_has_no_newline_is_no_line() {
        assert_eq!(
            feed_in_chunks(b"qu", 1),
            [Inbound::Unterminated(b"qu".to_vec())]
        );
        assert_eq!(
            feed_in_chunks(b"quit\n", 1),
            [Inbound::Line(b"quit".to_vec())]
        );
        let lines = feed_in_chunks(&[b'x'; 5000], 5000);
        assert!(matches!(lines[..], [Inbound::TooLong(_)]));
    }
}
