//! A 16550A serial port.

use std::convert::Infallible;
use std::io::{self, Write};
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
    /// Transmits into a buffer that never outlives one access (at most one byte).
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

    fn transmit(&self, value: u8) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = {
            let mut uart = self.uart();
            let _ = uart.serial.write(DATA, value);
            // Nothing if this was the divisor latch, or looped back.
            uart.serial.writer_mut().pop()
        };
        if let Some(byte) = sent {
            let _ = output.write_all(&[byte]).and_then(|()| output.flush());
        }
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
            (Ok(DATA), &[value]) => self.transmit(value),
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
