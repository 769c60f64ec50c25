//! What berth and the first process of its guest say to each other over COM2.
//!
//! Each direction is a row of frames: a kind (one byte), a length (two bytes, little endian) and so
//! many bytes. Whoever sends data of a stream needs credit for it: at first the stream's
//! [`window`](Stream::window), then what [`Short::Credit`] gives back as the other side gets rid of what
//! it received. So neither side ever holds more than the windows, and nothing is lost.
//!
//! The decoder trusts nothing: data passes through it in the pieces in which it comes, everything else
//! is at most [`SHORT_LIMIT`] bytes long.

/// Version of the protocol, which [`Short::Ready`] tells.
pub const VERSION: u8 = 2;
/// Bytes of a frame before its contents.
pub const HEADER: usize = 3;
/// Longest contents of a frame without stream data, in bytes.
pub const SHORT_LIMIT: usize = 1024;

/// A standard stream of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stream {
    /// From berth to the guest.
    Stdin = 0,
    /// From the guest.
    Stdout = 1,
    /// From the guest.
    Stderr = 2,
}

impl Stream {
    /// Bytes that may be on their way at once.
    #[must_use]
    pub const fn window(self) -> usize {
        match self {
            // What a terminal's driver holds for certain where it comes through the receive FIFO.
            Self::Stdin => 16 << 10,
            Self::Stdout => 256 << 10,
            Self::Stderr => 64 << 10,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::Stdin, Self::Stdout, Self::Stderr]
            .into_iter()
            .find(|stream| *stream as u8 == number)
    }
}

/// A frame without stream data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Short {
    /// From the guest, first of all: it listens, speaks this version, and whether it takes input at the port
    /// for it (see [`super::input`]); else input comes as data.
    Ready(u8, bool),
    /// To the guest: so many more bytes of input are at the port.
    Input(u16),
    /// To the guest: the end of standard input.
    StdinEnd,
    /// So many more bytes of the stream may be sent.
    Credit(Stream, u32),
    /// Nobody reads the stream any more.
    Closed(Stream),
    /// From the guest, last of all: the command's exit status, 128 + n for signal n.
    Exit(u8),
    /// From the guest, last of all: the command could not be run. An exit status, and why.
    Failed(u8, String),
}

/// Kinds of frames, by number.
mod kind {
    pub const READY: u8 = 1;
    /// The three streams follow each other.
    pub const DATA: u8 = 2;
    pub const STDERR: u8 = 4;
    pub const STDIN_END: u8 = 5;
    pub const CREDIT: u8 = 6;
    pub const CLOSED: u8 = 7;
    pub const EXIT: u8 = 8;
    pub const FAILED: u8 = 9;
    pub const INPUT: u8 = 10;
}

/// The header of `length` bytes of a stream.
#[must_use]
pub fn data_header(stream: Stream, length: u16) -> [u8; HEADER] {
    let [low, high] = length.to_le_bytes();
    [kind::DATA + stream as u8, low, high]
}

impl Short {
    /// The frame's bytes. A reason for failure is cut to the limit.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, contents) = match self {
            Self::Ready(version, port) => (kind::READY, vec![*version, u8::from(*port)]),
            Self::Input(bytes) => (kind::INPUT, bytes.to_le_bytes().into()),
            Self::StdinEnd => (kind::STDIN_END, Vec::new()),
            Self::Credit(stream, bytes) => {
                let mut contents = vec![*stream as u8];
                contents.extend(bytes.to_le_bytes());
                (kind::CREDIT, contents)
            }
            Self::Closed(stream) => (kind::CLOSED, vec![*stream as u8]),
            Self::Exit(status) => (kind::EXIT, vec![*status]),
            Self::Failed(status, why) => {
                let mut contents = vec![*status];
                contents.extend(why.bytes().take(SHORT_LIMIT - 1));
                (kind::FAILED, contents)
            }
        };
        // At most SHORT_LIMIT.
        let length = u16::try_from(contents.len()).unwrap_or(u16::MAX);
        let [low, high] = length.to_le_bytes();
        [&[kind, low, high], contents.as_slice()].concat()
    }

    fn decode(kind: u8, contents: &[u8]) -> Option<Self> {
        Some(match (kind, contents) {
            (kind::READY, &[version, port @ 0..=1]) => Self::Ready(version, port == 1),
            (kind::INPUT, &[low, high]) => Self::Input(u16::from_le_bytes([low, high])),
            (kind::STDIN_END, []) => Self::StdinEnd,
            (kind::CREDIT, &[stream, a, b, c, d]) => Self::Credit(
                Stream::from_number(stream)?,
                u32::from_le_bytes([a, b, c, d]),
            ),
            (kind::CLOSED, &[stream]) => Self::Closed(Stream::from_number(stream)?),
            (kind::EXIT, &[status]) => Self::Exit(status),
            (kind::FAILED, [status, why @ ..]) => {
                Self::Failed(*status, String::from_utf8_lossy(why).into_owned())
            }
            _ => return None,
        })
    }
}

/// What the decoder finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Some bytes of a stream.
    Data(Stream, &'a [u8]),
    /// A whole frame of another kind.
    Short(Short),
}

/// The bytes are no frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such frame: kind {kind}, {length} bytes")]
pub struct Malformed {
    /// The frame's first byte.
    kind: u8,
    /// Its length in bytes.
    length: usize,
}

/// Takes a row of bytes apart, in whatever pieces it comes.
#[derive(Debug, Default)]
pub struct Decoder(State);

#[derive(Debug)]
enum State {
    /// So much of a header.
    Header(Vec<u8>),
    /// In the data of a stream, of which so many bytes are to come.
    Data(Stream, usize),
    /// In another frame: its kind, its length, what there is of it.
    Short(u8, usize, Vec<u8>),
}

impl Default for State {
    fn default() -> Self {
        Self::Header(Vec::new())
    }
}

impl Decoder {
    /// Calls `each` for everything that is complete with `bytes`, and keeps the rest.
    ///
    /// # Errors
    /// The bytes are no frames. Nothing that follows can be understood then.
    pub fn feed<'a>(
        &mut self,
        mut bytes: &'a [u8],
        mut each: impl FnMut(Piece<'a>),
    ) -> Result<(), Malformed> {
        // A frame without contents is complete with its header.
        while !bytes.is_empty() {
            let state = std::mem::take(&mut self.0);
            self.0 = match state {
                State::Header(mut header) => {
                    let rest = HEADER - header.len();
                    header.extend(take(&mut bytes, rest));
                    after_header(header, &mut each)?
                }
                State::Data(stream, left) => {
                    let data = take(&mut bytes, left);
                    each(Piece::Data(stream, data));
                    match left - data.len() {
                        0 => State::default(),
                        left => State::Data(stream, left),
                    }
                }
                State::Short(kind, length, mut contents) => {
                    let rest = length - contents.len();
                    contents.extend(take(&mut bytes, rest));
                    after_contents(kind, length, contents, &mut each)?
                }
            };
        }
        Ok(())
    }
}

fn take<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(most.min(bytes.len()));
    *bytes = rest;
    taken
}

fn after_header<'a>(header: Vec<u8>, each: &mut impl FnMut(Piece<'a>)) -> Result<State, Malformed> {
    let &[kind, low, high] = header.as_slice() else {
        return Ok(State::Header(header));
    };
    let length = usize::from(u16::from_le_bytes([low, high]));
    if let kind::DATA..=kind::STDERR = kind {
        let stream = Stream::from_number(kind - kind::DATA).filter(|_| length > 0);
        return Ok(stream.map_or_else(State::default, |stream| State::Data(stream, length)));
    }
    if length > SHORT_LIMIT {
        return Err(Malformed { kind, length });
    }
    after_contents(kind, length, Vec::new(), each)
}

fn after_contents<'a>(
    kind: u8,
    length: usize,
    contents: Vec<u8>,
    each: &mut impl FnMut(Piece<'a>),
) -> Result<State, Malformed> {
    if contents.len() < length {
        return Ok(State::Short(kind, length, contents));
    }
    let frame = Short::decode(kind, &contents).ok_or(Malformed { kind, length })?;
    each(Piece::Short(frame));
    Ok(State::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that is in `bytes`, fed in parts of `part` bytes; data of a stream joined.
    fn decoded(bytes: &[u8], part: usize) -> Result<Vec<(Option<Stream>, String)>, Malformed> {
        let mut decoder = Decoder::default();
        let mut found: Vec<(Option<Stream>, String)> = Vec::new();
        for bytes in bytes.chunks(part) {
            decoder.feed(bytes, |piece| match piece {
                Piece::Data(stream, bytes) => {
                    let text = String::from_utf8_lossy(bytes);
                    match found.last_mut() {
                        Some((Some(last), before)) if *last == stream => before.push_str(&text),
                        _ => found.push((Some(stream), text.into_owned())),
                    }
                }
                Piece::Short(frame) => found.push((None, format!("{frame:?}"))),
            })?;
        }
        Ok(found)
    }

    #[test]
    fn frames_arrive_as_sent_in_parts_of_any_size() {
        let frames = [
            Short::Ready(VERSION, true),
            Short::Ready(VERSION, false),
            Short::Input(0x1234),
            Short::StdinEnd,
            Short::Credit(Stream::Stdout, 0x1234_5678),
            Short::Closed(Stream::Stderr),
            Short::Exit(137),
            Short::Failed(127, "not found".into()),
        ];
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for (frame, stream) in frames
            .iter()
            .zip([Stream::Stdin, Stream::Stdout].iter().cycle())
        {
            bytes.extend(frame.encode());
            bytes.extend(data_header(*stream, 5));
            bytes.extend(b"hello");
            bytes.extend(data_header(*stream, 0));
            expected.push((None, format!("{frame:?}")));
            expected.push((Some(*stream), "hello".to_owned()));
        }
        for part in 1..=bytes.len() {
            assert_eq!(decoded(&bytes, part).unwrap(), expected, "{part}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [
            [0, 0, 0].as_slice(),
            &[kind::INPUT, 1, 0, 1],
            &[11, 0, 0],
            &[kind::EXIT, 0, 0],
            &[kind::EXIT, 2, 0, 1, 2],
            &[kind::READY, 1, 0, VERSION],
            &[kind::READY, 2, 0, VERSION, 2],
            &[kind::STDIN_END, 1, 0, 0],
            &[kind::CLOSED, 1, 0, 3],
            &[kind::CREDIT, 5, 0, 9, 0, 0, 0, 0],
            &[kind::FAILED, 0, 0],
            // Longer than any frame may be, which is found before its contents come.
            &[kind::FAILED, 1, 4],
        ] {
            assert!(decoded(bytes, 1).is_err(), "{bytes:x?}");
        }
        let long = Short::Failed(1, "x".repeat(5000)).encode();
        assert_eq!(long.len(), HEADER + SHORT_LIMIT);
        assert_eq!(decoded(&long, 7).unwrap().len(), 1);
    }

    /// Whatever comes, the decoder neither panics nor keeps more than a short frame.
    #[test]
    fn noise_is_bounded() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_le_bytes()
        };
        let (mut refused, mut accepted) = (0, 0);
        for _ in 0..20_000 {
            let mut decoder = Decoder::default();
            for _ in 0..20 {
                let mut bytes = random();
                // Mostly kinds that there are, with lengths that are short enough.
                bytes[0] %= 12;
                bytes[2] %= 5;
                let mut length = 0;
                let result = decoder.feed(&bytes, |piece| {
                    accepted += 1;
                    if let Piece::Data(_, data) = piece {
                        length += data.len();
                    }
                });
                assert!(length <= bytes.len());
                if let State::Short(_, limit, contents) = &decoder.0 {
                    assert!(contents.len() < *limit && *limit <= SHORT_LIMIT);
                }
                if result.is_err() {
                    refused += 1;
                    break;
                }
            }
        }
        assert!(refused > 100 && accepted > 100, "{refused} {accepted}");
    }
}
