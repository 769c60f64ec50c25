//! Tests of the machine around the controller: a sign of life, PCI configuration space, ways to end.

use super::Machine;
use crate::check::{Outcome, ensure, ensure_eq, skip};
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
    let next = function.read8(register::INTERRUPT_LINE + 1);
    for value in [0x5a, 0xa5, saved] {
        function.write8(register::INTERRUPT_LINE, value);
        let word = u16::from(value) | u16::from(next) << 8;
        ensure_eq!(
            function.read16(register::INTERRUPT_LINE),
            word,
            "interrupt line and pin"
        );
    }
    let id = function.read32(register::VENDOR);
    function.write32(register::VENDOR, !id);
    ensure_eq!(function.read32(register::VENDOR), id, "ids after a write");
    for absent in 0..32 {
        let absent = pci::Function {
            slot: absent,
            number: 0,
        };
        if pci::functions().all(|it| it != absent) {
            ensure_eq!(
                absent.read32(0),
                u32::MAX,
                "an empty slot ({})",
                absent.slot
            );
        }
    }
    let Some(ecam) = machine.ecam else {
        skip!("ports work; the machine has no MCFG table, so no ECAM");
    };
    for function in pci::functions() {
        let window = function.ecam(ecam);
        for offset in (0..256).step_by(4) {
            let port = function.read32(offset);
            ensure_eq!(
                io::read32(window + u64::from(offset)),
                port,
                "slot {} offset {offset:#x} through ECAM",
                function.slot
            );
        }
    }
    let window = function.ecam(ecam);
    let line = window + u64::from(register::INTERRUPT_LINE);
    io::write8(line, 0x3c);
    ensure_eq!(
        function.read8(register::INTERRUPT_LINE),
        0x3c,
        "a byte written through ECAM"
    );
    io::write8(line, saved);
    // Extended space, accesses across register borders, and the end of the window.
    for size_and_offset in 0..4096 {
        let _ = io::read32(window + size_and_offset);
    }
    ensure!(
        io::read32(ecam + (31 << 15)) == u32::MAX || pci::functions().any(|it| it.slot == 31),
        "slot 31 is empty but answers through ECAM"
    );
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
