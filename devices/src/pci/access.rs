//! The two ways to configuration space: ECAM (PCI Express Base 5.0, 7.2.2) and the port pair CF8/CFC
//! (PCI Local Bus 3.0, 3.2.2.3.2).
//!
//! Both take accesses of 1, 2 and 4 bytes that stay within an aligned dword. Everything else, other
//! buses, empty slots and functions 1 to 7 read all ones and ignore writes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use bitfield_struct::bitfield;

use super::root::PciRoot;
use crate::bus::BusDevice;

/// Bytes of the ECAM window: 4 KiB for each of the 8 functions of bus 0's 32 slots.
pub const ECAM_LEN: u64 = 1 << 20;
/// First I/O port of [`ConfigPorts`].
pub const PORTS_BASE: u64 = 0xcf8;
/// Number of ports: CONFIG_ADDRESS and CONFIG_DATA, a dword each.
pub const PORTS_LEN: u64 = 8;

/// The bytes of one configuration access that the root can be asked for.
struct Target {
    slot: u8,
    offset: u16,
}

/// An offset into the ECAM window.
#[bitfield(u64)]
struct EcamAddress {
    #[bits(12)]
    offset: u16,
    #[bits(3)]
    function: u8,
    #[bits(5)]
    slot: u8,
    /// Bus number and more, where the window is larger.
    #[bits(44)]
    beyond: u64,
}

/// Memory-mapped configuration space of bus 0.
pub struct Ecam(Weak<PciRoot>);

impl Ecam {
    /// ECAM of `root`. Put it on the root's own bus, it does not keep the root alive.
    #[must_use]
    pub fn new(root: &Arc<PciRoot>) -> Self {
        Self(Arc::downgrade(root))
    }

    fn target(offset: u64, len: usize) -> Option<Target> {
        let address = EcamAddress::from_bits(offset);
        let present = address.beyond() == 0 && address.function() == 0;
        (present && stays_in_dword(offset, len)).then(|| Target {
            slot: address.slot(),
            offset: address.offset(),
        })
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (Some(target), Some(root)) = (Self::target(offset, data.len()), self.0.upgrade()) {
            root.read_config(target.slot, target.offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Some(target), Some(root)) = (Self::target(offset, data.len()), self.0.upgrade()) {
            root.write_config(target.slot, target.offset, data);
        }
    }
}

/// CONFIG_ADDRESS.
#[bitfield(u32)]
struct ConfigAddress {
    /// The dword; bits 0 and 1 read 0.
    #[bits(8)]
    register: u8,
    #[bits(3)]
    function: u8,
    #[bits(5)]
    slot: u8,
    bus: u8,
    #[bits(7)]
    __: u8,
    enable: bool,
}

/// The bits of [`ConfigAddress`] that hold what was written.
const ADDRESS_WRITABLE: u32 = 0x80ff_fffc;
/// Offset of CONFIG_DATA from CONFIG_ADDRESS.
const DATA: u64 = 4;

/// CONFIG_ADDRESS (0xCF8, dword accesses only) and CONFIG_DATA (0xCFC to 0xCFF): the first 256 bytes
/// of each configuration space.
pub struct ConfigPorts {
    root: Arc<PciRoot>,
    address: AtomicU32,
}

impl ConfigPorts {
    /// The port pair of `root`.
    #[must_use]
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self {
            root,
            address: AtomicU32::new(0),
        }
    }

    /// What an access of CONFIG_DATA at port `port` of the window means now.
    fn target(&self, port: u64, len: usize) -> Option<Target> {
        let byte = u16::try_from(port.checked_sub(DATA)?).ok()?;
        let address = ConfigAddress::from_bits(self.address.load(Ordering::Relaxed));
        let present = address.enable() && address.bus() == 0 && address.function() == 0;
        (present && stays_in_dword(port, len)).then(|| Target {
            slot: address.slot(),
            offset: u16::from(address.register()) + byte,
        })
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
        } else if let Some(target) = self.target(offset, data.len()) {
            self.root.read_config(target.slot, target.offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, &[a, b, c, d]) = (offset, data) {
            let address = u32::from_le_bytes([a, b, c, d]) & ADDRESS_WRITABLE;
            self.address.store(address, Ordering::Relaxed);
        } else if let Some(target) = self.target(offset, data.len()) {
            self.root.write_config(target.slot, target.offset, data);
        }
    }
}

/// Whether an access is 1, 2 or 4 bytes of one aligned dword.
fn stays_in_dword(offset: u64, len: usize) -> bool {
    match len {
        1 => true,
        2 => offset % 4 <= 2,
        4 => offset.is_multiple_of(4),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Bus;
    use crate::pci::root::PciWindows;
    use crate::pci::testing::{Device, Random};

    fn root() -> Arc<PciRoot> {
        let windows = PciWindows {
            mmio32: 0xc000_0000..0xe000_0000,
            mmio64: 0..0,
        };
        let root = Arc::new(PciRoot::new(Arc::new(Bus::new()), windows));
        root.add(Some(3), Device::new(3)).unwrap();
        root
    }

    /// CONFIG_ADDRESS for a function's dword.
    fn address(bus: u8, slot: u8, function: u8, offset: u16) -> [u8; 4] {
        let [register, _] = (offset & 0xfc).to_le_bytes();
        [register, slot << 3 | function, bus, 0x80]
    }

    fn ecam_read(ecam: &Ecam, slot: u64, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0x5a; len];
        ecam.read(slot << 15 | offset, &mut data);
        data
    }

    fn ports_read(ports: &ConfigPorts, slot: u8, offset: u16, len: usize) -> Vec<u8> {
        ports.write(0, &address(0, slot, 0, offset));
        let mut data = vec![0x5a; len];
        ports.read(4 + u64::from(offset % 4), &mut data);
        data
    }

    #[test]
    fn both_ways_see_the_same() {
        let (one, other) = (root(), root());
        let (ecam, ports) = (Ecam::new(&one), ConfigPorts::new(other.clone()));
        let other_ecam = Ecam::new(&other);
        let mut random = Random(5);
        for slot in [0, 3, 4] {
            for len in [1, 2, 4] {
                for offset in 0..256_u16 {
                    let data = &random.bytes::<4>()[..len];
                    // No reset, which would only hide differences.
                    let data: Vec<u8> = data.iter().map(|byte| byte & 0x7f).collect();
                    ecam.write(u64::from(slot) << 15 | u64::from(offset), &data);
                    ports.write(0, &address(0, slot, 0, offset));
                    ports.write(4 + u64::from(offset % 4), &data);

                    let expected = ecam_read(&ecam, slot.into(), offset.into(), len);
                    assert_eq!(ports_read(&ports, slot, offset, len), expected);
                    let through_ecam = ecam_read(&other_ecam, slot.into(), offset.into(), len);
                    assert_eq!(through_ecam, expected, "{slot} {offset:#x} {len}");
                }
            }
        }
        assert_eq!(ecam_read(&ecam, 3, 0, 4), [0x34, 0x12, 0x78, 0x56]);
        assert_eq!(ports_read(&ports, 3, 0, 4), [0x34, 0x12, 0x78, 0x56]);
        assert_eq!(ports_read(&ports, 3, 2, 2), [0x78, 0x56]);
        assert_eq!(ports_read(&ports, 3, 1, 2), [0x12, 0x78]);
    }

    #[test]
    fn what_is_not_there_reads_all_ones() {
        let root = root();
        let (ecam, ports) = (Ecam::new(&root), ConfigPorts::new(root));
        for offset in [
            3 << 15 | 1 << 12,
            3 << 15 | 7 << 12,
            4 << 15,
            1 << 20,
            u64::MAX - 3,
        ] {
            let mut data = [0; 4];
            ecam.read(offset, &mut data);
            assert_eq!(data, [0xff; 4], "{offset:#x}");
            ecam.write(offset, &data);
        }
        for (bus, slot, function) in [(1, 3, 0), (255, 0, 0), (0, 3, 1), (0, 3, 7), (0, 31, 0)] {
            ports.write(0, &address(bus, slot, function, 0));
            let mut data = [0; 4];
            ports.read(4, &mut data);
            assert_eq!(data, [0xff; 4], "{bus} {slot} {function}");
        }
        let [a, b, c, _] = address(0, 3, 0, 0);
        ports.write(0, &[a, b, c, 0]);
        let mut data = [0; 4];
        ports.read(4, &mut data);
        assert_eq!(data, [0xff; 4], "not enabled");
    }

    #[test]
    fn config_address_is_a_dword() {
        let ports = ConfigPorts::new(root());
        ports.write(0, &[0xff; 4]);
        let mut dword = [0; 4];
        ports.read(0, &mut dword);
        assert_eq!(u32::from_le_bytes(dword), 0x80ff_fffc);
        for (offset, data) in [
            (0, &[0][..]),
            (3, &[1]),
            (1, &[6]),
            (2, &[0, 0]),
            (0, &[0; 8]),
        ] {
            ports.write(offset, data);
            let mut dword = [0; 4];
            ports.read(0, &mut dword);
            assert_eq!(u32::from_le_bytes(dword), 0x80ff_fffc, "{offset}");
        }
        let mut byte = [0];
        ports.read(1, &mut byte);
        assert_eq!(byte, [0xff]);
    }

    #[test]
    fn no_access_of_any_size_at_any_offset_does_harm() {
        let root = root();
        let (ecam, ports) = (Ecam::new(&root), ConfigPorts::new(root));
        let mut random = Random(3);
        for low in (0..0x110).chain(0xff0..0x1010).chain(0xf_fff0..0x10_0010) {
            for len in 0..=8_usize {
                let offset = 3 << 15 ^ low;
                let mut data = random.bytes::<8>();
                ecam.write(offset, &data[..len]);
                ecam.read(offset, &mut data[..len]);
                let whole = [1, 2, 4].contains(&len) && offset % 4 + len as u64 <= 4;
                assert!(whole || data[..len].iter().all(|&byte| byte == 0xff));
                ports.write(0, &address(0, 3, 0, u16::try_from(low & 0xff).unwrap()));
                ports.write(low % 12, &data[..len]);
                ports.read(low % 12, &mut data[..len]);
            }
        }
    }

    #[test]
    fn ecam_outlives_its_root() {
        let ecam = Ecam::new(&root());
        let mut data = [0; 4];
        ecam.read(0, &mut data);
        assert_eq!(data, [0xff; 4]);
        ecam.write(0, &data);
    }
}
