//! COM2's transmit register, without the kernel's driver between: one exit for many bytes.

use std::arch::asm;
use std::io;

/// The transmit register.
const TRANSMIT: u16 = 0x2f8;

/// The right to write to the register from user space, which the thread has that made it.
pub struct Transmitter(());

impl Transmitter {
    /// Takes the right.
    ///
    /// # Errors
    /// The kernel gives it to nobody.
    pub fn open() -> io::Result<Self> {
        // SAFETY: changes only which ports this thread may use; it takes no pointers.
        match unsafe { libc::ioperm(TRANSMIT.into(), 1, 1) } {
            0 => Ok(Self(())),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Writes all `bytes` to the register.
    pub fn write(&self, bytes: &[u8]) {
        // SAFETY: reads the bytes of a live slice, upwards (the ABI has the direction flag clear), and
        // writes them to a port that `open` made accessible. Other threads do not have the right, and this
        // type cannot be sent to them.
        unsafe {
            asm!("rep outsb", in("dx") TRANSMIT, inout("rsi") bytes.as_ptr() => _,
                inout("rcx") bytes.len() => _, options(nostack, preserves_flags, readonly));
        }
    }
}
