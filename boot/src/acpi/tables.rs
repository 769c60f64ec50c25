//! All tables but the DSDT.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use zerocopy::IntoBytes;

use super::Config;
use crate::layout;

const OEM_ID: [u8; 6] = *b"BERTH ";
const OEM_TABLE_ID: [u8; 8] = *b"BERTHVMM";
const OEM_REVISION: u32 = 1;

/// Length of the root pointer, revision 2.
pub(super) const RSDP_LENGTH: usize = size_of::<Rsdp>();

/// Header of a system description table (ACPI 6.5, 5.2.6).
const HEADER_LENGTH: u32 = 36;
/// With this revision integers in AML have 64 bits.
const DSDT_REVISION: u8 = 2;
/// ACPI 6.5's.
const MADT_REVISION: u8 = 6;

/// IAPC_BOOT_ARCH (ACPI 6.5, 5.2.9.3): no VGA.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// IAPC_BOOT_ARCH: no CMOS clock.
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// MADT: the processor is enabled.
const CPU_ENABLED: u32 = 1 << 0;
/// MADT: for all processors.
const ALL_CPUS: u8 = 0xFF;
/// GSI that the timer of a PC, ISA interrupt 0, is wired to.
const TIMER_GSI: u32 = 2;

/// A table with a header and a right checksum.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(
        signature,
        HEADER_LENGTH,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(body);
    table.as_slice().to_vec()
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The DSDT around its AML.
pub(super) fn dsdt(aml: &[u8]) -> Vec<u8> {
    table(*b"DSDT", DSDT_REVISION, aml)
}

/// A one-byte register in I/O space.
fn byte_port(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        u64::from(port),
    )
}

/// Fixed ACPI description table (ACPI 6.5, 5.2.9): hardware-reduced, so of the
/// fixed hardware only the reset and sleep registers exist.
pub(super) fn fadt(config: &Config, dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // Set means: not fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = byte_port(config.reset_port);
    fadt.reset_value = config.reset_value;
    fadt.sleep_control_reg = byte_port(config.sleep_control_port);
    fadt.sleep_status_reg = byte_port(config.sleep_status_port);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"BERTH\0\0\0").into();
    bytes_of(&fadt.finalize())
}

/// Multiple APIC description table (ACPI 6.5, 5.2.12).
pub(super) fn madt(config: &Config) -> Vec<u8> {
    let mut body = Vec::new();
    // All addresses in the MADT of a PC have 32 bits.
    #[allow(clippy::cast_possible_truncation)]
    let (lapic, ioapic) = (layout::LAPIC_BASE as u32, layout::IOAPIC_BASE as u32);
    body.extend(lapic.to_le_bytes());
    body.extend(0u32.to_le_bytes()); // flags: no 8259 pair to be masked
    for cpu in 0..config.cpus {
        body.extend(processor(u32::from(cpu), u32::from(cpu)));
    }
    // I/O APIC 0, whose first input is GSI 0.
    body.extend([1, 12, 0, 0]);
    body.extend(ioapic.to_le_bytes());
    body.extend(0u32.to_le_bytes());
    // Interrupt source override: the ISA timer; polarity and trigger as the bus.
    body.extend([2, 10, 0, 0]);
    body.extend(TIMER_GSI.to_le_bytes());
    body.extend(0u16.to_le_bytes());
    // NMI on LINT1 of every processor.
    body.extend([4, 6, ALL_CPUS, 0, 0, 1]);
    table(*b"APIC", MADT_REVISION, &body)
}

/// The MADT entry of one processor: a local APIC where the ids fit, which keep
/// 255 for "all", else a local x2APIC.
fn processor(uid: u32, apic_id: u32) -> Vec<u8> {
    let mut entry = match (u8::try_from(uid), u8::try_from(apic_id)) {
        (Ok(uid), Ok(apic_id)) if uid != ALL_CPUS && apic_id != ALL_CPUS => {
            vec![0, 8, uid, apic_id]
        }
        _ => {
            let mut entry = vec![9, 16, 0, 0];
            entry.extend(apic_id.to_le_bytes());
            entry.extend(CPU_ENABLED.to_le_bytes());
            entry.extend(uid.to_le_bytes());
            return entry;
        }
    };
    entry.extend(CPU_ENABLED.to_le_bytes());
    entry
}

/// Where PCI Express configuration space is: segment 0, bus 0 (PCI Firmware
/// Specification 3.3, 4.1.2).
pub(super) fn mcfg(config: &Config) -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(config.ecam.start, 0, 0, 0);
    bytes_of(&mcfg)
}

/// Extended system description table: the addresses of the other tables.
pub(super) fn xsdt(tables: &[u64]) -> Vec<u8> {
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for &table in tables {
        xsdt.add_entry(table);
    }
    bytes_of(&xsdt)
}

/// Root system description pointer (ACPI 6.5, 5.2.5.3).
pub(super) fn rsdp(xsdt: u64) -> [u8; RSDP_LENGTH] {
    let mut bytes = [0; RSDP_LENGTH];
    bytes.copy_from_slice(Rsdp::new(OEM_ID, xsdt).as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_entries_follow_the_apic_id() {
        assert_eq!(processor(3, 3), [0, 8, 3, 3, 1, 0, 0, 0]);
        assert_eq!(processor(254, 254)[..4], [0, 8, 254, 254]);
        assert_eq!(
            processor(255, 255),
            [9, 16, 0, 0, 255, 0, 0, 0, 1, 0, 0, 0, 255, 0, 0, 0]
        );
        assert_eq!(
            processor(1, 0x1234),
            [9, 16, 0, 0, 0x34, 0x12, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
        );
    }
}
