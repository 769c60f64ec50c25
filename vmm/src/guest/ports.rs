//! berth's ports, without the kernel's driver of COM2 between: one exit for many bytes.

use std::arch::asm;
use std::io;

use crate::guest_command::input;

/// COM2's transmit register.
const TRANSMIT: u16 = 0x2f8;
/// How often the same input is asked for.
const ATTEMPTS: u32 = 100;

/// The right to use these ports from user space, which the thread has that made it.
pub struct Ports(());

impl Ports {
    /// Takes the right.
    ///
    /// # Errors
    /// The kernel gives it to nobody.
    pub fn open() -> io::Result<Self> {
        for (first, count) in [(TRANSMIT, 1), (input::PORT, input::LEN)] {
            // SAFETY: changes only which ports this thread may use; it takes no pointers.
            if unsafe { libc::ioperm(first.into(), count.into(), 1) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self(()))
    }

    /// Sends all `bytes` on COM2.
    pub fn write(&self, bytes: &[u8]) {
        // SAFETY: reads the bytes of a live slice, upwards (the ABI has the direction flag clear), and
        // writes them to a port that `open` made accessible. Other threads do not have the right, and this
        // type cannot be sent to them.
        unsafe {
            asm!("rep outsb", in("dx") TRANSMIT, inout("rsi") bytes.as_ptr() => _,
                inout("rcx") bytes.len() => _, options(nostack, preserves_flags, readonly));
        }
    }

    /// Takes so many bytes of the command's input, which berth has announced.
    ///
    /// # Errors
    /// They cannot be had.
    pub fn read(&self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        let start = self.place();
        for _ in 0..ATTEMPTS {
            // KVM would take the bytes of a page that is absent, and lose them.
            bytes.fill(0);
            self.fill(&mut bytes);
            if self.place().wrapping_sub(start) as usize == count {
                return Ok(bytes);
            }
            self.go_back(start);
        }
        Err(io::Error::other("input is lost on its way"))
    }

    fn fill(&self, bytes: &mut [u8]) {
        // SAFETY: writes to the bytes of a live slice, upwards (see `write`), what it reads from a port that
        // `open` made accessible (see `write`).
        unsafe {
            asm!("rep insb", in("dx") input::PORT, inout("rdi") bytes.as_mut_ptr() => _,
                inout("rcx") bytes.len() => _, options(nostack, preserves_flags));
        }
    }

    fn place(&self) -> u32 {
        let place;
        // SAFETY: touches no memory; `open` made the port accessible (see `write`).
        unsafe {
            asm!("in eax, dx", in("dx") input::PORT, out("eax") place,
                options(nomem, nostack, preserves_flags));
        }
        place
    }

    fn go_back(&self, place: u32) {
        // SAFETY: as above.
        unsafe {
            asm!("out dx, eax", in("dx") input::PORT, in("eax") place,
                options(nomem, nostack, preserves_flags));
        }
    }
}
