//! Formatted output on COM1.

use core::fmt::{self, Write};

use crate::io;
use crate::time::Deadline;

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
const DATA_READY: u8 = 1;
/// Longest wait for a byte from the host.
const INPUT_MS: u64 = 60_000;

/// COM1 as a text sink.
pub struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // Bounded: a port that never gets ready must not hang the report of it.
            for _ in 0..1000 {
                if io::in8(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
                    break;
                }
            }
            io::out8(COM1, byte);
        }
        Ok(())
    }
}

/// Waits for a byte, or until the host has had its time.
pub fn read() -> Option<u8> {
    let deadline = Deadline::after_ms(INPUT_MS);
    while io::in8(LINE_STATUS) & DATA_READY == 0 {
        if deadline.passed() {
            return None;
        }
    }
    Some(io::in8(COM1))
}

/// Writes formatted text.
pub fn print(arguments: fmt::Arguments<'_>) {
    // The sink never fails.
    let _ = Serial.write_fmt(arguments);
}

/// Prints a line on COM1.
macro_rules! println {
    ($($argument:tt)*) => {{
        $crate::serial::print(format_args!($($argument)*));
        $crate::serial::print(format_args!("\n"));
    }};
}
pub(crate) use println;
