//! The differentiated system description table: what the guest cannot find by
//! itself, in AML.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, BufferData, CreateDWordField, Device, EISAName,
    Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt,
    LessThan, Local, Memory32Fixed, Method, MethodCall, Name, NotEqual, Notify, OpRegion,
    OpRegionSpace, Or, Package, Path, ResourceTemplate, Return, Scope, Store, Uuid,
};
use acpi_tables::{Aml, aml};

use super::{
    Config, GED_PCI_HOTPLUG, GED_POWER_BUTTON, PCI_HOTPLUG_PORTS, S5_SLEEP_TYPE, hotplug, tables,
};

/// `_OSC` of a PCI Express root (PCI Firmware Specification 3.3, 4.5.1).
const OSC_PCIE_UUID: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
/// `_DSM` of PCI devices (PCI Firmware Specification 3.3, 4.6).
const DSM_PCI_UUID: &str = "e5c937d0-3553-4d7a-9117-ea4d19c3434d";

/// First word of `_OSC` on return (ACPI 6.5, table 6.13): it failed.
const OSC_FAILURE: u32 = 1 << 1;
/// First word of `_OSC` on return: unknown UUID.
const OSC_UNKNOWN_UUID: u32 = 1 << 2;
/// First word of `_OSC` on return: unknown revision.
const OSC_UNKNOWN_REVISION: u32 = 1 << 3;
/// First word of `_OSC` on return: some of what was asked for is not granted.
const OSC_CAPABILITIES_MASKED: u32 = 1 << 4;
/// Third word of `_OSC`: control of the PCI Express capability structure. It is
/// all that the guest gets: there is no PCIe hotplug controller (slots are
/// added through ACPI), no PME, no AER, no LTR to control.
const OSC_PCIE_CAPABILITY: u32 = 1 << 4;

/// I/O ports of PCI configuration mechanism 1.
const PCI_CONFIG_PORTS: (u16, u8) = (0xCF8, 8);
/// I/O ports for PCI devices; those below are the machine's own.
const PCI_IO: (u16, u16) = (0x1000, 0xFFFF);

/// The DSDT of the machine.
pub(super) fn dsdt(config: &Config) -> Vec<u8> {
    let mut devices = pci_root(config);
    devices.extend(motherboard(config));
    devices.extend(power_button());
    devices.extend(event_device(config));
    for (index, port) in (1u8..).zip(&config.serial_ports) {
        devices.extend(serial_port(index, port));
    }
    for cpu in 0..config.cpus {
        devices.extend(processor(cpu));
    }
    let mut aml = Scope::raw("\\_SB_".into(), devices);
    let s5 = Package::new(vec![&S5_SLEEP_TYPE]);
    Name::new("\\_S5_".into(), &s5).to_aml_bytes(&mut aml);
    tables::dsdt(&aml)
}

pub(super) fn bytes_of(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

/// The PCI root. There is no `_PRT`: no device has an interrupt pin.
fn pci_root(config: &Config) -> Vec<u8> {
    bytes_of(&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new("_SEG".into(), &aml::ZERO),
            &Name::new("_BBN".into(), &aml::ZERO),
            // DMA is coherent.
            &Name::new("_CCA".into(), &aml::ONE),
            &Name::new("_CRS".into(), &pci_windows(config)),
            &osc(),
            &dsm(),
            &hotplug::slots(config),
        ],
    ))
}

/// AML that was serialized already, so that it can outlive its parts.
pub(super) struct Bytes(pub Vec<u8>);

impl Bytes {
    pub(super) fn new(object: &dyn Aml) -> Self {
        Self(bytes_of(object))
    }
}

impl Aml for Bytes {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

// `Config` was checked: both ends of the narrow window fit.
#[allow(clippy::cast_possible_truncation)]
fn pci_windows(config: &Config) -> Bytes {
    let narrow = &config.pci_window_32;
    let wide = &config.pci_window_64;
    let (ports, count) = PCI_CONFIG_PORTS;
    Bytes::new(&ResourceTemplate::new(vec![
        &AddressSpace::new_bus_number(0u16, 0u16),
        &IO::new(ports, ports, 1, count),
        &AddressSpace::new_io(PCI_IO.0, PCI_IO.1, None),
        &AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            narrow.start as u32,
            (narrow.end - 1) as u32,
            None,
        ),
        &AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            wide.start,
            wide.end - 1,
            None,
        ),
    ]))
}

/// `_OSC`: grants control of the PCI Express capability structure and masks
/// everything else.
///
/// Arguments: UUID, revision, count of words, buffer of words. The words are
/// status, what the guest supports, and what it wants to control.
fn osc() -> Bytes {
    let status = Path::new("CDW1");
    let control = Path::new("CDW3");
    let granted = Local(0);
    let set_status = |bit: u32| Bytes::new(&Or::new(&Path::new("CDW1"), &Path::new("CDW1"), &bit));
    Bytes::new(&Method::new(
        "_OSC".into(),
        4,
        true,
        vec![
            &CreateDWordField::new(&status, &Arg(3), &aml::ZERO),
            &If::new(
                &NotEqual::new(&Arg(0), &Uuid::new(OSC_PCIE_UUID)),
                vec![&set_status(OSC_UNKNOWN_UUID), &Return::new(&Arg(3))],
            ),
            &If::new(
                &NotEqual::new(&Arg(1), &aml::ONE),
                vec![&set_status(OSC_UNKNOWN_REVISION), &Return::new(&Arg(3))],
            ),
            &If::new(
                &LessThan::new(&Arg(2), &3u8),
                vec![&set_status(OSC_FAILURE), &Return::new(&Arg(3))],
            ),
            &CreateDWordField::new(&control, &Arg(3), &8u8),
            &And::new(&granted, &control, &OSC_PCIE_CAPABILITY),
            &If::new(
                &NotEqual::new(&granted, &control),
                vec![
                    &set_status(OSC_CAPABILITIES_MASKED),
                    &Store::new(&control, &granted),
                ],
            ),
            &Return::new(&Arg(3)),
        ],
    ))
}

/// `_DSM`, of which there is function 5: the guest may ignore what firmware put
/// into the BARs and place them itself.
fn dsm() -> Bytes {
    let functions_0_and_5 = BufferData::new(vec![1 << 0 | 1 << 5]);
    Bytes::new(&Method::new(
        "_DSM".into(),
        4,
        false,
        vec![
            &If::new(
                &Equal::new(&Arg(0), &Uuid::new(DSM_PCI_UUID)),
                vec![
                    &If::new(
                        &Equal::new(&Arg(2), &aml::ZERO),
                        vec![&Return::new(&functions_0_and_5)],
                    ),
                    &If::new(&Equal::new(&Arg(2), &5u8), vec![&Return::new(&aml::ONE)]),
                ],
            ),
            &Return::new(&BufferData::new(vec![0])),
        ],
    ))
}

/// Resources of the board itself. Linux uses ECAM only if it is claimed here.
// `Config` was checked: ECAM is below 4 GiB.
#[allow(clippy::cast_possible_truncation)]
fn motherboard(config: &Config) -> Vec<u8> {
    let ecam = &config.ecam;
    let port = |port| IO::new(port, port, 1, 1);
    let hotplug = config.pci_hotplug_port;
    bytes_of(&Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, ecam.start as u32, (ecam.end - ecam.start) as u32),
                    &port(config.sleep_control_port),
                    &port(config.sleep_status_port),
                    &port(config.reset_port),
                    &port(config.ged_status_port),
                    &IO::new(hotplug, hotplug, 1, PCI_HOTPLUG_PORTS),
                ]),
            ),
        ],
    ))
}

/// The power button, a control-method device.
fn power_button() -> Vec<u8> {
    bytes_of(&Device::new(
        "PWRB".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
            &Name::new("_UID".into(), &aml::ZERO),
        ],
    ))
}

/// The generic event device (ACPI 6.5, 5.6.9): its interrupt says that bits of
/// the status port are set, reading the port clears them.
fn event_device(config: &Config) -> Vec<u8> {
    bytes_of(&Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Interrupt::new(
                    true,
                    true,
                    false,
                    false,
                    config.ged_gsi,
                )]),
            ),
            &OpRegion::new(
                "GEDR".into(),
                OpRegionSpace::SystemIO,
                &config.ged_status_port,
                &aml::ONE,
            ),
            &Field::new(
                "GEDR".into(),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"GSTA", 8)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    &Store::new(&Local(0), &Path::new("GSTA")),
                    &And::new(&Local(1), &Local(0), &GED_POWER_BUTTON),
                    &If::new(
                        &Local(1),
                        vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &0x80u8)],
                    ),
                    &And::new(&Local(1), &Local(0), &GED_PCI_HOTPLUG),
                    &If::new(
                        &Local(1),
                        vec![&MethodCall::new(hotplug::SCAN.into(), vec![])],
                    ),
                ],
            ),
        ],
    ))
}

/// A 16550. Its interrupt is named as a GSI: hardware-reduced ACPI has no ISA
/// interrupts.
fn serial_port(index: u8, port: &super::SerialPort) -> Vec<u8> {
    bytes_of(&Device::new(
        Path::new(&format!("COM{index:X}")),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &index),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(port.port, port.port, 1, 8),
                    &Interrupt::new(true, true, false, false, port.irq),
                ]),
            ),
        ],
    ))
}

/// The device of a processor, whose `_UID` is that of its MADT entry (ACPI 6.5,
/// 8.4).
fn processor(cpu: u8) -> Vec<u8> {
    bytes_of(&Device::new(
        Path::new(&format!("C{cpu:03X}")),
        vec![
            &Name::new("_HID".into(), &"ACPI0007"),
            &Name::new("_UID".into(), &cpu),
        ],
    ))
}
