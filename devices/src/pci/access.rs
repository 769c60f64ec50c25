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
