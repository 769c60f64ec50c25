//! ACPI tables: hardware-reduced ACPI (ACPI 6.5, 4.1) with a generic event
//! device in place of the fixed event hardware of a PC.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout;

mod dsdt;
mod hotplug;
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
/// GED status bit: the registers of PCI hot-plug changed.
pub const GED_PCI_HOTPLUG: u8 = 1 << 1;

/// Ports that the registers of PCI hot-plug take: five of 32 bits. They are the
/// slots that got a function, the slots whose function is to go (both cleared
/// by reading), the slots that the guest let go, and for `_OST` what its status
/// is about (slot in bits 7:0, source event above) and the status.
pub const PCI_HOTPLUG_PORTS: u8 = 20;

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
    /// First of the [`PCI_HOTPLUG_PORTS`].
    pub pci_hotplug_port: u16,
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
            pci_hotplug_port: 0x610,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The table at guest address `address`, after its checksum.
    fn table(image: &[u8], address: u64) -> &[u8] {
        let start = usize::try_from(address - layout::ACPI_START).unwrap();
        let length = u32::from_le_bytes(image[start + 4..start + 8].try_into().unwrap());
        let table = &image[start..][..usize::try_from(length).unwrap()];
        assert_eq!(sum(table), 0, "{:?}", std::str::from_utf8(&table[..4]));
        table
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    /// All tables that the root pointer leads to, the DSDT last.
    fn tables(image: &[u8]) -> Vec<&[u8]> {
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!((sum(&image[..20]), sum(&image[..36])), (0, 0));
        assert_eq!(image[15], 2); // revision
        let xsdt = table(image, u64_at(image, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let mut tables: Vec<_> = xsdt[36..]
            .chunks(8)
            .map(|entry| table(image, u64_at(entry, 0)))
            .collect();
        tables.push(table(image, u64_at(tables[0], 140)));
        tables
    }

    fn contains(bytes: &[u8], part: &[u8]) -> bool {
        bytes.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn root_pointer_leads_to_all_tables() {
        for cpus in [1, MAX_CPUS] {
            let image = build(&Config::new(cpus, 1 << 30)).unwrap();
            let signatures: Vec<_> = tables(&image).iter().map(|table| &table[..4]).collect();
            assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG", b"DSDT"]);
            assert!(image.len() as u64 <= layout::ACPI_END - layout::ACPI_START);
        }
    }

    #[test]
    fn fadt_is_hardware_reduced_and_names_the_registers() {
        let image = build(&Config::new(1, 1 << 30)).unwrap();
        let fadt = tables(&image)[0];
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        let hardware_reduced = 1 << 20;
        let reset_register = 1 << 10;
        let power_and_sleep_buttons = 0b11 << 4;
        for bit in [hardware_reduced, reset_register, power_and_sleep_buttons] {
            assert_eq!(flags & bit, bit, "{flags:#x}");
        }
        // I/O space, 8 bits wide, byte access.
        let register = |port: u8| [1, 8, 0, 1, port, 6, 0, 0, 0, 0, 0, 0];
        assert_eq!(fadt[116..128], register(2));
        assert_eq!(fadt[128], 1);
        assert_eq!(fadt[244..256], register(0));
        assert_eq!(fadt[256..268], register(1));
    }

    #[test]
    fn madt_lists_processors_and_interrupt_wiring() {
        let image = build(&Config::new(3, 1 << 30)).unwrap();
        let madt = tables(&image)[1];
        assert_eq!(madt[36..40], 0xFEE0_0000u32.to_le_bytes());
        let mut entries = Vec::new();
        let mut rest = &madt[44..];
        while let [kind, length, ..] = *rest {
            entries.push((kind, &rest[2..usize::from(length)]));
            rest = &rest[usize::from(length)..];
        }
        let local_apic = |id: u8| (0, [id, id, 1, 0, 0, 0]);
        for (entry, cpu) in entries.iter().zip(0..3) {
            let (kind, body) = local_apic(cpu);
            assert_eq!(*entry, (kind, &body[..]));
        }
        assert_eq!(
            entries[3..],
            [
                (1, &[0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0][..]),
                (2, &[0, 0, 2, 0, 0, 0, 0, 0]),
                (4, &[0xFF, 0, 0, 1]),
            ]
        );
    }

    #[test]
    fn mcfg_has_bus_0_alone() {
        let image = build(&Config::new(1, 1 << 30)).unwrap();
        let mcfg = tables(&image)[2];
        assert_eq!(mcfg.len(), 44 + 16);
        assert_eq!(u64_at(mcfg, 44), layout::ECAM_BASE);
        assert_eq!(mcfg[52..56], [0, 0, 0, 0]);
    }

    #[test]
    fn dsdt_follows_the_configuration() {
        let config = Config {
            pci_window_64: 0x12_4000_0000..0x1A_4000_0000,
            serial_ports: vec![SerialPort {
                port: 0x3E8,
                irq: 0xA5,
            }],
            ged_gsi: 0x5A,
            ged_status_port: 0x777,
            pci_hotplug_port: 0x888,
            ..Config::new(2, 1 << 30)
        };
        let image = build(&config).unwrap();
        let tables = tables(&image);
        let dsdt = tables[3];
        let window: Vec<u8> = [0x12_4000_0000u64, 0x1A_3FFF_FFFF, 0, 0x8_0000_0000]
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect();
        let consumer_edge_high = |gsi: u8| [0x89, 6, 0, 0b0011, 1, gsi, 0, 0, 0];
        for part in [
            &window[..],
            &[0x47, 1, 0xE8, 3, 0xE8, 3, 1, 8],
            &consumer_edge_high(0xA5),
            &consumer_edge_high(0x5A),
            b"GEDR\x01\x0B\x77\x07",
            &[0x47, 1, 0x88, 8, 0x88, 8, 1, PCI_HOTPLUG_PORTS],
            b"PHPR\x01\x0B\x88\x08",
            // Local1 = Local0 & 2; If (Local1) the method that scans the slots
            b"\x7B\x60\x0A\x02\x61\xA0\x11\x61\\\x2F\x03_SB_PCI0PCNT",
            b"COM1",
            b"C001",
            b"_OSC",
            b"\\_S5_\x12\x04\x01\x0A\x05",
        ] {
            assert!(contains(dsdt, part), "{part:x?}");
        }
        for part in [b"COM2", b"C002", b"_PRT"] {
            assert!(!contains(dsdt, part), "{part:x?}");
        }
    }

    #[test]
    fn machines_that_cannot_be_described_are_refused() {
        let good = || Config::new(1, 1 << 30);
        for cpus in [0, MAX_CPUS + 1, u8::MAX] {
            assert_eq!(build(&Config::new(cpus, 1 << 30)), Err(Error::Cpus(cpus)));
        }
        let ports = Config {
            serial_ports: vec![SerialPort { port: 0, irq: 0 }; 5],
            ..good()
        };
        assert_eq!(build(&ports), Err(Error::SerialPorts(5)));
        for config in [
            Config {
                pci_window_32: 0xC000_0000..0x1_0000_1000,
                ..good()
            },
            Config {
                pci_window_64: 5..5,
                ..good()
            },
            Config {
                ecam: 1 << 32..(1 << 32) + (1 << 20),
                ..good()
            },
        ] {
            assert!(matches!(build(&config), Err(Error::Range { .. })));
        }
    }
}
