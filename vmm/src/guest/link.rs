//! This end of COM2: frames from and to berth outside.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::ports::Ports;
use crate::guest_command::frames::{Decoder, HEADER, Piece, Short, Stream, data_header};

/// COM2 as Linux calls it.
const TERMINAL: &str = "/dev/ttyS1";
/// Longest data of a frame that is sent.
pub const PART: usize = 32 << 10;

/// The channel to berth outside.
pub struct Link {
    terminal: File,
    /// Where the kernel gives this right to nobody, the terminal does, byte by byte.
    ports: Option<Ports>,
    decoder: Decoder,
    /// A frame in the making.
    frame: Vec<u8>,
}

impl Link {
    /// Opens the port.
    ///
    /// # Errors
    /// There is no such port, or it cannot be set up.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let terminal = File::from(rustix::fs::open(TERMINAL, flags, Mode::empty())?);
        let mut settings = tcgetattr(&terminal)?;
        settings.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &settings)?;
        let ports = Ports::open();
        if let Err(error) = &ports {
            eprintln!("berth: input and output go byte by byte: {error}");
        }
        Ok(Self {
            terminal,
            ports: ports.ok(),
            decoder: Decoder::default(),
            frame: Vec::with_capacity(HEADER + PART),
        })
    }

    /// Whether input can be taken at its own port.
    pub fn takes_input_at_port(&self) -> bool {
        self.ports.is_some()
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The port failed.
    pub fn short(&mut self, frame: &Short) -> io::Result<()> {
        self.send(&frame.encode())
    }

    /// Sends at most [`PART`] bytes of a stream, for which there must be credit.
    ///
    /// # Errors
    /// The port failed.
    pub fn data(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        frame.extend(data_header(stream, length));
        frame.extend(bytes);
        let result = self.send(&frame);
        self.frame = frame;
        result
    }

    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if let Some(ports) = &self.ports {
            ports.write(bytes);
            return Ok(());
        }
        while !bytes.is_empty() {
            match self.terminal.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.terminal, PollFlags::OUT)], None)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Calls `each` for all that has come, with input as data wherever it came; never waits.
    ///
    /// # Errors
    /// The port failed, or what came are no frames.
    pub fn receive(&mut self, mut each: impl FnMut(Piece<'_>)) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let ports = &self.ports;
        let mut take = |piece: Piece<'_>| -> io::Result<()> {
            match (piece, ports) {
                (Piece::Short(Short::Input(count)), Some(ports)) => {
                    each(Piece::Data(Stream::Stdin, &ports.read(count.into())?));
                }
                (piece, _) => each(piece),
            }
            Ok(())
        };
        loop {
            match self.terminal.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    let mut taken = Ok(());
                    let fed = self.decoder.feed(&buffer[..count], |piece| {
                        if taken.is_ok() {
                            taken = take(piece);
                        }
                    });
                    fed.map_err(io::Error::other)?;
                    taken?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.terminal.as_fd()
    }
}
