//! Ways to end the machine, each tried until one works.

use core::arch::asm;

use crate::io;
use crate::time::Deadline;

/// ACPI sleep control register: SLP_TYP 5 and SLP_EN, soft off on hardware-reduced machines.
const SLEEP_CONTROL: (u16, u8) = (0x600, 0x34);
/// PM1a control register of QEMU's PC machines: SLP_TYP 0 and SLP_EN, soft off there.
const PM1_CONTROL: (u16, u16) = (0x604, 0x2000);
/// Keyboard controller command "pulse the reset line".
const KEYBOARD_RESET: (u16, u8) = (0x64, 0xfe);

fn settle() {
    let deadline = Deadline::after_ms(200);
    while !deadline.passed() {
        core::hint::spin_loop();
    }
}

/// Turns the machine off.
pub fn power_off() -> ! {
    io::out8(SLEEP_CONTROL.0, SLEEP_CONTROL.1);
    settle();
    io::out16(PM1_CONTROL.0, PM1_CONTROL.1);
    settle();
    reset();
}

/// Resets the machine.
pub fn reset() -> ! {
    io::out8(KEYBOARD_RESET.0, KEYBOARD_RESET.1);
    settle();
    triple_fault();
}

/// Shuts the processor down: an interrupt table of zeroes makes every exception a triple fault.
pub fn triple_fault() -> ! {
    crate::interrupts::forget();
    loop {
        // SAFETY: the undefined instruction never returns.
        unsafe { asm!("ud2", options(nomem, nostack)) }
    }
}
