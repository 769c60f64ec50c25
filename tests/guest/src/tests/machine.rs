//! Tests of the machine around the controller: a sign of life, PCI configuration space, ways to end.

use super::Machine;
use crate::check::{Outcome, ensure_eq, skip};
use crate::pci::{self, register};
use crate::serial::println;
use crate::{exit, io};

/// A sign of life: the text that smoke tests look for, and what is on the bus.
#[allow(clippy::unnecessary_wraps)]
pub fn hello(machine: &Machine) -> Outcome {
    println!("hello from CPL 3, RAM ends at {:#x}", machine.ram_end);
    for function in pci::functions() {
        println!(
            "pci {:02x}.{} {:04x}:{:04x} class {:06x}",
            function.slot,
            function.number,
            function.read16(register::VENDOR),
            function.read16(register::DEVICE),
            function.read32(register::CLASS) >> 8
        );
    }
    Ok(())
}

/// Configuration space: both ways in agree, and narrow writes change what they name alone.
pub fn pci(machine: &Machine) -> Outcome {
    let function = machine.function()?;
    let saved = function.read8(register::INTERRUPT_LINE);
    let pin = function.read8(register::INTERRUPT_LINE + 1);
    for value in [0x5a, 0xa5, saved] {
        function.write8(register::INTERRUPT_LINE, value);
        let now = function.read16(register::INTERRUPT_LINE);
        ensure_eq!(
            now,
            u16::from_le_bytes([value, pin]),
            "interrupt line and pin"
        );
    }
    let id = function.read32(register::VENDOR);
    function.write32(register::VENDOR, !id);
    ensure_eq!(function.read32(register::VENDOR), id, "ids after a write");
    for slot in 0..32 {
        let absent = pci::Function { slot, number: 0 };
        if pci::functions().all(|it| it != absent) {
            ensure_eq!(absent.read32(0), u32::MAX, "the empty slot {slot}");
        }
    }
    let Some(ecam) = machine.ecam else {
        skip!("ports work; the machine has no MCFG table, so no ECAM");
    };
    mapped_configuration(ecam)?;
    let line = function.ecam(ecam) + u64::from(register::INTERRUPT_LINE);
    io::write8(line, 0x3c);
    let now = function.read8(register::INTERRUPT_LINE);
    ensure_eq!(now, 0x3c, "a byte written through ECAM");
    io::write8(line, saved);
    // Extended space too, and across the borders of registers: any answer will do.
    for offset in 0..4096 {
        let _ = io::read32(function.ecam(ecam) + offset);
    }
    Ok(())
}

/// What ports read, the memory-mapped window reads.
fn mapped_configuration(ecam: u64) -> Outcome {
    for function in pci::functions() {
        for offset in (0..256).step_by(4) {
            let port = function.read32(offset);
            let mapped = io::read32(function.ecam(ecam) + u64::from(offset));
            ensure_eq!(mapped, port, "slot {} at {offset:#x}", function.slot);
        }
    }
    let empty = (0..32).find(|&slot| pci::functions().all(|it| it.slot != slot));
    if let Some(slot) = empty {
        let absent = pci::Function { slot, number: 0 };
        ensure_eq!(
            io::read32(absent.ecam(ecam)),
            u32::MAX,
            "the empty slot {slot}"
        );
    }
    Ok(())
}

/// Ends the machine with a reset.
pub fn reboot(_machine: &Machine) -> Outcome {
    exit::reset()
}

/// Ends the machine with a triple fault.
pub fn triple_fault(_machine: &Machine) -> Outcome {
    exit::triple_fault()
}

/// Reads unmapped memory: the guest reports the page fault and ends as failed.
pub fn page_fault(_machine: &Machine) -> Outcome {
    let _ = io::read8(0x7fff_ffff_f000);
    Ok(())
}

/// Never ends, at full load.
pub fn spin(_machine: &Machine) -> Outcome {
    loop {
        core::hint::spin_loop();
    }
}

/// Never ends, without load.
pub fn idle(_machine: &Machine) -> Outcome {
    loop {
        crate::interrupts::halt();
    }
}
