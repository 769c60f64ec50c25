//! ACPI tables: hardware-reduced ACPI (ACPI 6.5, 4.1) with a generic event
//! device in place of the fixed event hardware of a PC.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout;

mod dsdt;
mod tables;

/// Most processors a machine can have.
pub const MAX_CPUS: u8 = 64;

/// Most serial ports a machine can have.
pub const MAX_SERIAL_PORTS: usize = 4;

/// SLP_TYP value of `\_S5`, soft off.
pub const S5_SLEEP_TYPE: u8 = 5;
/// The byte that a guest writes to the sleep control register to turn the
/// machine off: SLP_TYP in bits 4:2, SLP_EN in bit 5 (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL_S5: u8 = S5_SLEEP_TYPE << 2 | 1 << 5;

/// GED status bit: the power button was pressed.
pub const GED_POWER_BUTTON: u8 = 1 << 0;
/// GED status bit kept for PCI hotplug.
pub const GED_PCI_HOTPLUG: u8 = 1 << 1;

/// The tables cannot describe the machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Too few or too many processors.
    #[error("--cpus {0}: a machine has 1 to {MAX_CPUS} processors")]
    Cpus(u8),
    /// A memory range is empty, upside down or on the wrong side of 4 GiB.
    #[error("{what} {start:#x}..{end:#x} is empty or not below {limit:#x}", start = range.start, end = range.end)]
    Range {
        /// Which range.
        what: &'static str,
        /// Its value.
        range: Range<u64>,
        /// What it must end at or below.
        limit: u64,
    },
    /// More serial ports than the names COM1 to COM4.
    #[error("{0} serial ports; a machine has at most {MAX_SERIAL_PORTS}")]
    SerialPorts(usize),
    /// The tables do not fit.
    #[error("they are {length} bytes long; {} are free for them", layout::ACPI_END - layout::ACPI_START)]
    TooLong {
        /// Length of all tables in bytes.
        length: u64,
    },
}

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
    /// Serial ports, COM1 first; up to [`MAX_SERIAL_PORTS`].
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
/// A machine that cannot be described, or guest RAM that does not cover the
/// area.
pub fn write(ram: &GuestMemoryMmap, config: &Config) -> Result<u64, crate::Error> {
    let bytes = build(config)?;
    ram.write_slice(&bytes, GuestAddress(layout::ACPI_START))?;
    Ok(layout::ACPI_START)
}

/// All tables as they lie in memory from [`layout::ACPI_START`] on, the root
/// pointer first.
fn build(config: &Config) -> Result<Vec<u8>, Error> {
    check(config)?;
    let mut image = Image::new();
    let dsdt = image.push(&dsdt::dsdt(config));
    let entries = [
        image.push(&tables::fadt(config, dsdt)),
        image.push(&tables::madt(config)),
        image.push(&tables::mcfg(config)),
    ];
    let xsdt = image.push(&tables::xsdt(&entries));
    image.finish(&tables::rsdp(xsdt))
}

/// What the table builders rely on.
fn check(config: &Config) -> Result<(), Error> {
    if config.cpus == 0 || config.cpus > MAX_CPUS {
        return Err(Error::Cpus(config.cpus));
    }
    if config.serial_ports.len() > MAX_SERIAL_PORTS {
        return Err(Error::SerialPorts(config.serial_ports.len()));
    }
    let four_gib = 1 << 32;
    for (what, range, limit) in [
        ("32-bit PCI window", &config.pci_window_32, four_gib),
        ("64-bit PCI window", &config.pci_window_64, u64::MAX),
        ("ECAM", &config.ecam, four_gib),
    ] {
        if range.is_empty() || range.end > limit {
            return Err(Error::Range {
                what,
                range: range.clone(),
                limit,
            });
        }
    }
    Ok(())
}

/// Tables one after the other, with the place of the root pointer kept free in
/// front.
struct Image(Vec<u8>);

impl Image {
    /// Every table starts at a multiple of this.
    const ALIGN: usize = 64;

    fn new() -> Self {
        Self(vec![0; tables::RSDP_LENGTH])
    }

    /// Appends a table and returns its guest address.
    fn push(&mut self, table: &[u8]) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(Self::ALIGN), 0);
        let address = layout::ACPI_START + self.0.len() as u64;
        self.0.extend_from_slice(table);
        address
    }

    fn finish(mut self, rsdp: &[u8; tables::RSDP_LENGTH]) -> Result<Vec<u8>, Error> {
        let length = self.0.len() as u64;
        if length > layout::ACPI_END - layout::ACPI_START {
            return Err(Error::TooLong { length });
        }
        self.0[..tables::RSDP_LENGTH].copy_from_slice(rsdp);
        Ok(self.0)
    }
}
