//! Hot-plug of PCI functions, in AML: a device for each slot of bus 0, and the
//! method that tells the guest which of them changed.

use acpi_tables::aml::{
    And, Arg, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If,
    Local, Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace, Or, Path, ShiftLeft, Store,
};
use acpi_tables::{Aml, aml};

use super::dsdt::{Bytes, bytes_of};
use super::{Config, PCI_HOTPLUG_PORTS};

/// The method that notifies the slots that changed since it ran last.
pub(super) const SCAN: &str = "\\_SB_.PCI0.PCNT";

/// Slots that functions can be plugged into. Slot 0 has the host bridge.
const SLOTS: std::ops::Range<u8> = 1..32;

/// `Notify` value (ACPI 6.5, 5.6.6): look whether a device appeared.
const DEVICE_CHECK: u8 = 1;
/// `Notify` value: stop using the device and eject it.
const EJECT_REQUEST: u8 = 3;

/// What the PCI root contains for hot-plug.
pub(super) fn slots(config: &Config) -> Bytes {
    let mut bytes = registers(config);
    bytes.extend(report());
    for slot in SLOTS {
        bytes.extend(device(slot));
    }
    bytes.extend(notify());
    bytes.extend(scan());
    Bytes(bytes)
}

/// The registers, see [`PCI_HOTPLUG_PORTS`].
fn registers(config: &Config) -> Vec<u8> {
    let mut bytes = bytes_of(&OpRegion::new(
        "PHPR".into(),
        OpRegionSpace::SystemIO,
        &config.pci_hotplug_port,
        &PCI_HOTPLUG_PORTS,
    ));
    let register = |name: &[u8; 4]| FieldEntry::Named(*name, 32);
    let fields = Field::new(
        "PHPR".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        [b"PCIU", b"PCID", b"PCEJ", b"OSTE", b"OSTS"]
            .map(register)
            .into(),
    );
    fields.to_aml_bytes(&mut bytes);
    bytes
}

/// `OSTR`, what all `_OST` do. Arguments: slot, source event, status. It is
/// serialized, for it writes two registers that belong together.
fn report() -> Vec<u8> {
    let source = Local(0);
    bytes_of(&Method::new(
        "OSTR".into(),
        3,
        true,
        vec![
            &ShiftLeft::new(&source, &Arg(1), &8u8),
            &Or::new(&source, &source, &Arg(0)),
            &Store::new(&Path::new("OSTE"), &source),
            &Store::new(&Path::new("OSTS"), &Arg(2)),
        ],
    ))
}

/// Name of the device of `slot`, whose digits are those of its PCI address.
fn name(slot: u8) -> Path {
    Path::new(&format!("S{slot:03X}"))
}

/// The device of a slot.
///
/// It has no `_STA`: Linux then looks for a function in configuration space,
/// which also tells that one vanished, and boots without another 31 calls.
/// `_EJ0` needs no lock: it is one write.
fn device(slot: u8) -> Vec<u8> {
    let address = u32::from(slot) << 16;
    bytes_of(&Device::new(
        name(slot),
        vec![
            &Name::new("_ADR".into(), &address),
            &Name::new("_SUN".into(), &slot),
            &Method::new(
                "_EJ0".into(),
                1,
                false,
                vec![&Store::new(&Path::new("PCEJ"), &(1u32 << slot))],
            ),
            &Method::new(
                "_OST".into(),
                3,
                false,
                vec![&MethodCall::new(
                    "OSTR".into(),
                    vec![&slot, &Arg(0), &Arg(1)],
                )],
            ),
        ],
    ))
}

/// `DVNT`, which notifies slots. Arguments: mask of slots, notification.
fn notify() -> Vec<u8> {
    let branches: Vec<Bytes> = SLOTS
        .map(|slot| {
            Bytes::new(&If::new(
                &And::new(&aml::ZERO, &Arg(0), &(1u32 << slot)),
                vec![&Notify::new(&name(slot), &Arg(1))],
            ))
        })
        .collect();
    let branches = branches.iter().map(|branch| branch as &dyn Aml).collect();
    bytes_of(&Method::new("DVNT".into(), 2, true, branches))
}

/// [`SCAN`].
fn scan() -> Vec<u8> {
    let notify = |register: &str, value: u8| {
        Bytes::new(&MethodCall::new(
            "DVNT".into(),
            vec![&Path::new(register), &value],
        ))
    };
    bytes_of(&Method::new(
        "PCNT".into(),
        0,
        true,
        vec![
            &notify("PCIU", DEVICE_CHECK),
            &notify("PCID", EJECT_REQUEST),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_device_has_address_number_and_methods() {
        let expected = [
            &b"\x5B\x82\x36S01F"[..],                        // Device
            b"\x08_ADR\x0C\x00\x00\x1F\x00",                 // Name
            b"\x08_SUN\x0A\x1F",                             // Name
            b"\x14\x10_EJ0\x01\x70\x0C\x00\x00\x00\x80PCEJ", // Method, Store
            b"\x14\x0E_OST\x03OSTR\x0A\x1F\x68\x69",         // Method, call
        ]
        .concat();
        assert_eq!(
            device(31).escape_ascii().to_string(),
            expected.escape_ascii().to_string()
        );
    }

    #[test]
    fn there_is_a_device_and_a_notification_for_every_slot_but_the_bridges() {
        let all = slots(&Config::new(1, 1 << 30)).0;
        let count = |part: &[u8]| all.windows(part.len()).filter(|w| *w == part).count();
        for slot in 1..=31u8 {
            let name = format!("S{slot:03X}");
            assert_eq!(count(name.as_bytes()), 2, "{name}");
            let notify = [b"\x86", name.as_bytes(), b"\x69"].concat();
            assert_eq!(count(&notify), 1, "{name}");
        }
        for name in ["S000", "S020", "_STA"] {
            assert_eq!(count(name.as_bytes()), 0, "{name}");
        }
    }

    #[test]
    fn notification_tests_the_bit_of_the_slot() {
        let all = notify();
        let contains = |part: &[u8]| all.windows(part.len()).any(|w| w == part);
        // If (Arg0 & mask) Notify (device, Arg1)
        assert!(contains(b"\xA0\x0C\x7B\x68\x0A\x02\x00\x86S001\x69"));
        assert!(contains(b"\xA0\x0D\x7B\x68\x0B\x00\x80\x00\x86S00F\x69"));
        assert!(contains(
            b"\xA0\x0F\x7B\x68\x0C\x00\x00\x00\x80\x00\x86S01F\x69"
        ));
    }

    #[test]
    fn scan_reads_each_register_once() {
        assert_eq!(scan(), b"\x14\x19PCNT\x08DVNTPCIU\x01DVNTPCID\x0A\x03");
    }

    #[test]
    fn registers_are_words_at_the_configured_port() {
        let config = Config {
            pci_hotplug_port: 0x777,
            ..Config::new(1, 1 << 30)
        };
        let expected = [
            &b"\x5B\x80PHPR\x01\x0B\x77\x07\x0A\x14"[..], // I/O, 20 ports
            b"\x5B\x81\x1FPHPR\x43",                      // double words, write as zeros
            b"PCIU\x20PCID\x20PCEJ\x20OSTE\x20OSTS\x20",
        ]
        .concat();
        assert_eq!(registers(&config), expected);
    }

    #[test]
    fn reports_write_the_status_last() {
        // Local0 = Arg1 << 8; Local0 |= Arg0; OSTE = Local0; OSTS = Arg2
        assert_eq!(
            report(),
            b"\x14\x1BOSTR\x0B\x79\x69\x0A\x08\x60\x7D\x60\x68\x60\x70\x60OSTE\x70\x6AOSTS"
        );
    }
}
