//! A 16550A serial port.

use std::convert::Infallible;
use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::interrupt::IrqLine;

/// First I/O port of COM1, interrupt line 4.
pub const COM1: u64 = 0x3f8;
/// First I/O port of COM2, interrupt line 3.
pub const COM2: u64 = 0x2f8;
/// Number of ports.
pub const LEN: u64 = 8;

/// Offset of the receive and transmit registers.
const DATA: u8 = 0;
/// Offset of the modem control register, which holds the loopback bit.
const MODEM_CONTROL: u8 = 4;

struct Line(Arc<dyn IrqLine>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.trigger();
        Ok(())
    }
}

/// The registers, and what the owner of the input was told.
struct Uart {
    /// Transmits into a buffer that is emptied with each access.
    serial: Serial<Line, NoEvents, Vec<u8>>,
    /// The last [`SerialPort::enqueue`] was cut short and nobody was told to go on yet.
    stalled: bool,
}

/// A serial port that writes to any output and takes input only as fast as the guest reads it.
///
/// Accesses of more than a byte read all ones and are ignored.
///
/// Lock order: `output`, then `uart`. A blocked output holds up the vCPU that transmits, but no
/// other register and not [`SerialPort::enqueue`].
pub struct SerialPort {
    output: Mutex<Box<dyn Write + Send>>,
    uart: Mutex<Uart>,
    /// Free bytes of an empty receive FIFO.
    fifo_size: usize,
    wants_input: EventFd,
}

impl SerialPort {
    /// A port that interrupts through `line` and transmits to `output`, flushed after each byte.
    ///
    /// Bytes that `output` refuses are lost, as on a line with nobody at the other end.
    ///
    /// # Errors
    /// No file descriptor left for the event.
    pub fn new(line: Arc<dyn IrqLine>, output: Box<dyn Write + Send>) -> io::Result<Self> {
        let serial = Serial::new(Line(line), Vec::new());
        Ok(Self {
            output: Mutex::new(output),
            fifo_size: serial.fifo_capacity(),
            uart: Mutex::new(Uart {
                serial,
                stalled: false,
            }),
            wants_input: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Puts as much of `bytes` as fits into the receive FIFO (64 bytes) and returns how many that
    /// were.
    ///
    /// After a short count the caller keeps the rest, stops reading its source and goes on when
    /// [`SerialPort::wants_input`] is signalled. Nothing is accepted in loopback mode.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut uart = self.uart();
        // The error cases are a full FIFO and a failed interrupt, which cannot fail.
        let accepted = uart.serial.enqueue_raw_bytes(bytes).unwrap_or(0);
        uart.stalled = accepted < bytes.len();
        accepted
    }

    /// Signalled (non-blocking) when the guest has emptied the FIFO after a short
    /// [`SerialPort::enqueue`].
    #[must_use]
    pub fn wants_input(&self) -> &EventFd {
        &self.wants_input
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the owner of the input to go on, once for each stall.
    fn resume_input(&self, uart: &mut Uart) {
        if uart.stalled && uart.serial.fifo_capacity() == self.fifo_size {
            uart.stalled = false;
            // Fails only when the counter is at its limit, and then the event is signalled already.
            let _ = self.wants_input.write(1);
        }
    }

    /// Writes `bytes` to the transmit register one after the other, as string output does; the output gets
    /// them in one piece.
    pub fn transmit(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sent = {
            let mut uart = self.uart();
            for byte in bytes {
                let _ = uart.serial.write(DATA, *byte);
            }
            // Nothing if this was the divisor latch, or looped back.
            mem::take(uart.serial.writer_mut())
        };
        if !sent.is_empty() {
            let _ = output.write_all(&sent).and_then(|()| output.flush());
        }
        // The next one needs no allocation.
        sent.clear();
        *self.uart().serial.writer_mut() = sent;
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (u8::try_from(offset), data) {
            (Ok(offset), [value]) => {
                let mut uart = self.uart();
                *value = uart.serial.read(offset);
                if offset == DATA {
                    self.resume_input(&mut uart);
                }
            }
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (u8::try_from(offset), data) {
            (Ok(DATA), [_]) => self.transmit(data),
            (Ok(offset), &[value]) => {
                let mut uart = self.uart();
                let _ = uart.serial.write(offset, value);
                // Input refused in loopback mode is welcome again after it.
                if offset == MODEM_CONTROL {
                    self.resume_input(&mut uart);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::testing::Line as TestLine;
    use std::sync::atomic::Ordering;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_CONTROL: u64 = 3;
    const LINE_STATUS: u64 = 5;
    const LOOPBACK: u8 = 0x10;
    const DATA_READY: u8 = 1;

    /// An output whose bytes the test sees.
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn port() -> (Arc<TestLine>, Output, SerialPort) {
        let (line, output) = (Arc::new(TestLine::default()), Output::default());
        let port = SerialPort::new(line.clone(), Box::new(output.clone())).unwrap();
        (line, output, port)
    }

    fn read(port: &SerialPort, offset: u64) -> u8 {
        let mut byte = [0];
        port.read(offset, &mut byte);
        byte[0]
    }

    /// Whether `wants_input` was signalled since the last call.
    fn wants_input(port: &SerialPort) -> bool {
        port.wants_input().read().is_ok()
    }

    #[test]
    fn transmits_and_keeps_nothing() {
        let (_, output, port) = port();
        for byte in b"hello" {
            port.write(0, &[*byte]);
        }
        port.write(LINE_CONTROL, &[0x80]);
        port.write(0, &[0x55]);
        assert_eq!(read(&port, 0), 0x55, "the divisor latch");
        port.write(LINE_CONTROL, &[3]);
        assert_eq!(*output.0.lock().unwrap(), b"hello");
        assert!(port.uart().serial.writer().is_empty());
    }

    #[test]
    fn strings_are_transmitted_in_one_piece() {
        /// Notes the length of each piece.
        struct Pieces(Arc<Mutex<Vec<usize>>>);
        impl Write for Pieces {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().push(bytes.len());
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (line, pieces) = (Arc::new(TestLine::default()), Arc::default());
        let output = Box::new(Pieces(Arc::clone(&pieces)));
        let port = SerialPort::new(line.clone(), output).unwrap();
        port.transmit(&[b'x'; 4096]);
        port.transmit(&[]);
        port.transmit(b"y");
        assert_eq!(*pieces.lock().unwrap(), [4096, 1]);
        // What is written in loopback mode is received, as far as the FIFO goes, and not sent.
        port.write(MODEM_CONTROL.into(), &[LOOPBACK]);
        port.transmit(&[b'z'; 100]);
        assert_eq!(read(&port, 0), b'z');
        port.write(MODEM_CONTROL.into(), &[0]);
        // As with single bytes, the guest is told that the register is empty again.
        port.write(INTERRUPT_ENABLE, &[2]);
        let before = line.0.load(Ordering::Relaxed);
        assert_eq!(read(&port, 2) & 0xf, 2);
        port.transmit(b"ab");
        assert!(line.0.load(Ordering::Relaxed) > before);
        assert_eq!(*pieces.lock().unwrap(), [4096, 1, 2]);
    }

    #[test]
    fn receives_with_interrupt() {
        let (line, _, port) = port();
        port.write(INTERRUPT_ENABLE, &[1]);
        assert_eq!(port.enqueue(b"ab"), 2);
        assert_eq!(line.0.load(Ordering::Relaxed), 1);
        assert_eq!(read(&port, LINE_STATUS) & DATA_READY, DATA_READY);
        assert_eq!([read(&port, 0), read(&port, 0)], *b"ab");
        assert_eq!(read(&port, LINE_STATUS) & DATA_READY, 0);
        assert!(!wants_input(&port), "nothing was refused");
    }

    #[test]
    fn input_waits_for_a_guest_that_does_not_read() {
        let (_, _, port) = port();
        let input: Vec<u8> = (0..100).collect();
        assert_eq!(port.enqueue(&input), 64);
        for _ in 0..1_000 {
            assert_eq!(port.enqueue(&[0; 4096]), 0);
        }
        for expected in 0..64 {
            assert!(!wants_input(&port), "{expected}");
            assert_eq!(read(&port, 0), expected);
        }
        assert!(wants_input(&port));
        assert_eq!(read(&port, 0), 0);
        assert!(!wants_input(&port), "said once");
        assert_eq!(port.enqueue(&input[64..]), 36);
        assert_eq!(read(&port, 0), 64);
    }

    #[test]
    fn loopback_refuses_input_until_it_ends() {
        let (_, output, port) = port();
        port.write(MODEM_CONTROL.into(), &[LOOPBACK]);
        port.write(0, b"x");
        assert_eq!(read(&port, 0), b'x');
        assert!(output.0.lock().unwrap().is_empty());
        assert_eq!(port.enqueue(b"abc"), 0);
        assert!(!wants_input(&port));
        port.write(MODEM_CONTROL.into(), &[0]);
        assert!(wants_input(&port));
        assert_eq!(port.enqueue(b"abc"), 3);
        for _ in 0..10_000 {
            port.write(MODEM_CONTROL.into(), &[LOOPBACK]);
            port.write(0, b"x");
        }
        assert_eq!(port.uart().serial.fifo_capacity(), 0, "never grows");
    }

    /// An output that waits for the test.
    struct Blocked(mpsc::Sender<()>, mpsc::Receiver<()>);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(()).unwrap();
            self.1.recv_timeout(Duration::from_secs(60)).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_output_does_not_block_the_input() {
        let (entered, wait_entered) = mpsc::channel();
        let (release, wait_release) = mpsc::channel();
        let output = Box::new(Blocked(entered, wait_release));
        let port = SerialPort::new(Arc::new(TestLine::default()), output).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| port.write(0, b"x"));
            wait_entered.recv_timeout(Duration::from_secs(60)).unwrap();
            assert_eq!(port.enqueue(b"abc"), 3);
            assert_eq!(read(&port, 0), b'a');
            release.send(()).unwrap();
        });
    }

    /// An output that is gone.
    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_broken_output_still_interrupts() {
        let line = Arc::new(TestLine::default());
        let port = SerialPort::new(line.clone(), Box::new(Broken)).unwrap();
        port.write(INTERRUPT_ENABLE, &[2]);
        let before = line.0.load(Ordering::Relaxed);
        assert_eq!(read(&port, 2) & 0xf, 2);
        port.write(0, b"x");
        assert_eq!(line.0.load(Ordering::Relaxed), before + 1);
    }

    #[test]
    fn no_access_of_any_size_at_any_offset_does_harm() {
        let (_, output, port) = port();
        for offset in (0..16).chain([0x100, u64::MAX]) {
            for size in 0..=8 {
                for value in [0, 0x10, 0x55, 0x80, 0xff] {
                    port.write(offset, &vec![value; size]);
                    let mut data = vec![0; size];
                    port.read(offset, &mut data);
                    assert!(size < 2 || data == vec![0xff; size]);
                }
            }
        }
        assert!(output.0.lock().unwrap().len() <= 5);
    }
}
