//! Type 0 configuration space (PCI Express Base 5.0, 7.5).

use bitfield_struct::bitfield;

use super::bar;
use super::capability::{
    self, Capability, DEVICE_CONTROL_HIGH, INITIATE_FLR, MSIX_CONTROL, POWER_CONTROL, PowerControl,
};
pub use super::capability::{MsixControl, MsixLayout, PowerState};

/// Bytes of configuration space.
pub const SIZE: usize = 4096;

const VENDOR_ID: u16 = 0x00;
const DEVICE_ID: u16 = 0x02;
const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const REVISION_AND_CLASS: u16 = 0x08;
const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
const SUBSYSTEM_ID: u16 = 0x2e;
const CAPABILITIES_POINTER: u16 = 0x34;
const INTERRUPT_LINE: u16 = 0x3c;
/// First byte behind the header.
const FIRST_CAPABILITY: u16 = 0x40;

/// Who a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class, subclass and programming interface, from bit 23 down.
    pub class: u32,
}

/// Command register.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Command {
    /// I/O BARs answer; there are none, so it reads 0.
    pub io_space: bool,
    /// Memory BARs answer.
    pub memory_space: bool,
    /// The function may reach memory and send MSIs.
    pub bus_master: bool,
    #[bits(3)]
    __: u8,
    /// Parity error response.
    pub parity_error_response: bool,
    __: bool,
    /// System error enable.
    pub serr_enable: bool,
    __: bool,
    /// No INTx; nothing here raises one.
    pub interrupt_disable: bool,
    #[bits(5)]
    __: u8,
}

/// Status register. Its error bits, which software clears by writing 1, are never set here, so the
/// whole register is read-only.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Status {
    #[bits(4)]
    __: u8,
    /// There is a list of capabilities.
    pub capabilities_list: bool,
    #[bits(11)]
    __: u16,
}

/// What a configuration write asks of the function beyond storing bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConfigEffects {
    /// Software initiated a function-level reset. The function resets itself, MSI-X and, with
    /// [`ConfigSpace::reset`], this space; until then nothing has been reset.
    pub function_level_reset: bool,
    /// MSI-X was enabled, disabled, masked or unmasked; the new register.
    pub msix_control: Option<MsixControl>,
    /// The command register changed; its new value.
    pub command: Option<Command>,
    /// The power state changed; the new one, D0 or D3hot.
    pub power_state: Option<PowerState>,
}

/// The configuration space of one function.
///
/// Writes change exactly the bytes they name, and of those only the bits that software may change.
/// All registers are little-endian.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    /// The bits of `bytes` that software can change.
    writable: Vec<u8>,
    /// `bytes` after a reset.
    power_on: Vec<u8>,
    /// Sizes in bytes, at the index of each BAR's low register.
    bar_sizes: [Option<u64>; bar::COUNT as usize],
    power_management: Option<u16>,
    express: Option<u16>,
    msix: Option<u16>,
}

impl ConfigSpace {
    /// A function without BARs or capabilities, such as a host bridge.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: vec![0; SIZE],
            writable: vec![0; SIZE],
            power_on: vec![0; SIZE],
            bar_sizes: [None; bar::COUNT as usize],
            power_management: None,
            express: None,
            msix: None,
        };
        let writable = Command::new()
            .with_memory_space(true)
            .with_bus_master(true)
            .with_parity_error_response(true)
            .with_serr_enable(true)
            .with_interrupt_disable(true);
        let class = identity.class << 8 | u32::from(identity.revision);
        space.define(VENDOR_ID, identity.vendor.to_le_bytes(), [0; 2]);
        space.define(DEVICE_ID, identity.device.to_le_bytes(), [0; 2]);
        space.define(COMMAND, [0; 2], writable.into_bits().to_le_bytes());
        space.define(REVISION_AND_CLASS, class.to_le_bytes(), [0; 4]);
        let subsystem_vendor = identity.subsystem_vendor.to_le_bytes();
        space.define(SUBSYSTEM_VENDOR_ID, subsystem_vendor, [0; 2]);
        space.define(SUBSYSTEM_ID, identity.subsystem.to_le_bytes(), [0; 2]);
        space.define(INTERRUPT_LINE, [0], [0xff]);
        space
    }

    /// An endpoint with 64-bit memory BARs `(index of the low register, size in bytes)`, power
    /// management, function-level reset and MSI-X.
    ///
    /// # Panics
    /// If a size is not a power of two of at least 16, two BARs share a register, or `msix` is out
    /// of its ranges. None of this depends on the guest.
    #[must_use]
    pub fn endpoint(identity: &Identity, bars: &[(u8, u64)], msix: &MsixLayout) -> Self {
        let mut space = Self::new(identity);
        for &(index, size) in bars {
            space.define_bar(index, size);
        }
        let mut next = FIRST_CAPABILITY;
        space.power_management = Some(space.append(&mut next, &capability::power_management()));
        space.express = Some(space.append(&mut next, &capability::express()));
        space.msix = Some(space.append(&mut next, &capability::msix(msix)));
        space
    }

    /// Reads `data.len()` bytes at `offset`; bytes beyond the end of the space read all ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0xff);
        let rest = self.bytes.get(usize::from(offset)..).unwrap_or_default();
        for (byte, value) in data.iter_mut().zip(rest) {
            *byte = *value;
        }
    }

    /// Writes `data` at `offset`; bytes beyond the end of the space are ignored.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> ConfigEffects {
        let before = self.registers();
        for (position, value) in (usize::from(offset)..SIZE).zip(data) {
            let writable = self.writable[position];
            let kept = self.bytes[position] & !writable;
            self.bytes[position] = kept | (value & writable);
        }
        self.keep_supported_power_state(before.power_state);
        let after = self.registers();
        ConfigEffects {
            function_level_reset: self.initiates_reset(offset, data),
            msix_control: changed(before.msix_control, after.msix_control),
            command: changed(before.command, after.command),
            power_state: changed(before.power_state, after.power_state),
        }
    }

    /// Brings every register back to its power-on value, as a function-level reset does: BARs at 0
    /// and not decoded, bus master and MSI-X off, D0.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.power_on);
    }

    /// Guest physical base and size of BAR `bar` while it answers: memory space is enabled, the
    /// function is in D0, and the address lies between 1 MiB and 2^46.
    #[must_use]
    pub fn bar_window(&self, bar: u8) -> Option<(u64, u64)> {
        let size = self.bar_sizes.get(usize::from(bar)).copied().flatten()?;
        let decodes = self.command().memory_space() && self.power_state() == PowerState::D0;
        let register = bar::register(bar);
        let low = u32::from_le_bytes(self.get(register)) & !bar::TYPE_MASK;
        let high = u32::from_le_bytes(self.get(register + 4));
        let base = u64::from(high) << 32 | u64::from(low);
        (decodes && bar::is_sensible(base, size)).then_some((base, size))
    }

    /// Sets the address of BAR `bar`, rounded down to a multiple of its size, as firmware does
    /// before boot. Without such a BAR, does nothing.
    pub fn set_bar(&mut self, bar: u8, address: u64) {
        if let Some(Some(_size)) = self.bar_sizes.get(usize::from(bar)) {
            // The BAR's type bits and the address bits below its size are not writable.
            self.write(bar::register(bar), &address.to_le_bytes());
        }
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> Command {
        Command::from_bits(u16::from_le_bytes(self.get(COMMAND)))
    }

    /// Whether the function may reach memory and send MSIs: bus master is enabled, in D0.
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.command().bus_master() && self.power_state() == PowerState::D0
    }

    /// MSI-X Message Control; off where there is no MSI-X.
    #[must_use]
    pub fn msix_control(&self) -> MsixControl {
        self.msix.map_or(MsixControl::new(), |at| {
            MsixControl::from_bits(u16::from_le_bytes(self.get(at + MSIX_CONTROL)))
        })
    }

    /// The power state, D0 or D3hot.
    #[must_use]
    pub fn power_state(&self) -> PowerState {
        self.power_control().map_or(PowerState::D0, |c| c.state())
    }
}

impl ConfigSpace {
    fn registers(&self) -> Registers {
        Registers {
            command: self.command(),
            msix_control: self.msix_control(),
            power_state: self.power_state(),
        }
    }

    fn power_control(&self) -> Option<PowerControl> {
        let at = self.power_management?;
        let bits = u16::from_le_bytes(self.get(at + POWER_CONTROL));
        Some(PowerControl::from_bits(bits))
    }

    /// A write of a state that is not supported completes without effect (Power Management 1.2,
    /// 3.2.4).
    fn keep_supported_power_state(&mut self, before: PowerState) {
        if let (Some(at), Some(control)) = (self.power_management, self.power_control())
            && matches!(control.state(), PowerState::D1 | PowerState::D2)
        {
            let position = usize::from(at + POWER_CONTROL);
            let kept = control.with_state(before).into_bits().to_le_bytes();
            self.bytes[position..position + kept.len()].copy_from_slice(&kept);
        }
    }

    /// Whether writing `data` at `offset` sets Initiate Function Level Reset.
    fn initiates_reset(&self, offset: u16, data: &[u8]) -> bool {
        self.express
            .and_then(|at| (at + DEVICE_CONTROL_HIGH).checked_sub(offset))
            .and_then(|position| data.get(usize::from(position)))
            .is_some_and(|byte| byte & INITIATE_FLR != 0)
    }

    /// The bytes of a register; `offset` is one of this file's, never the guest's.
    fn get<const N: usize>(&self, offset: u16) -> [u8; N] {
        let position = usize::from(offset);
        std::array::from_fn(|i| self.bytes[position + i])
    }

    /// Sets a register, its value after reset and its writable bits.
    fn define<const N: usize>(&mut self, offset: u16, value: [u8; N], writable: [u8; N]) {
        self.define_bytes(offset, &value, &writable);
    }

    fn define_bytes(&mut self, offset: u16, value: &[u8], writable: &[u8]) {
        let start = usize::from(offset);
        self.bytes[start..start + value.len()].copy_from_slice(value);
        self.power_on[start..start + value.len()].copy_from_slice(value);
        self.writable[start..start + writable.len()].copy_from_slice(writable);
    }

    fn define_bar(&mut self, index: u8, size: u64) {
        assert!(index + 1 < bar::COUNT, "a 64-bit BAR takes two registers");
        assert!(
            size >= 16 && size.is_power_of_two(),
            "a BAR's size is a power of two of at least 16 bytes"
        );
        let register = bar::register(index);
        let taken: [u8; 8] = std::array::from_fn(|i| self.writable[usize::from(register) + i]);
        assert_eq!(taken, [0; 8], "two BARs share a register");
        self.define(register, bar::TYPE_MEMORY_64.to_le_bytes(), [0; 4]);
        let address_bits = (!(size - 1)).to_le_bytes();
        self.writable[usize::from(register)..][..8].copy_from_slice(&address_bits);
        self.bar_sizes[usize::from(index)] = Some(size);
    }

    /// Puts `capability` at the end of the list and at `next`, and returns its offset.
    fn append(&mut self, next: &mut u16, capability: &Capability) -> u16 {
        let offset = *next;
        let [low, _] = offset.to_le_bytes();
        self.define(last_pointer(&self.bytes), [low], [0]);
        let status = Status::new().with_capabilities_list(true);
        self.define(STATUS, status.into_bits().to_le_bytes(), [0; 2]);
        self.define(offset, [capability.id, 0], [0; 2]);
        self.define_bytes(offset + 2, &capability.body, &capability.writable);
        // Capabilities have whole dwords, and all of them together fit into 192 bytes.
        *next = offset + 2;
        *next += u16::try_from(capability.body.len()).unwrap_or(u16::MAX);
        offset
    }
}

/// The registers whose changes have effects.
struct Registers {
    command: Command,
    msix_control: MsixControl,
    power_state: PowerState,
}

/// Offset of the capability pointer that ends the list.
fn last_pointer(bytes: &[u8]) -> u16 {
    let mut pointer = CAPABILITIES_POINTER;
    loop {
        match bytes[usize::from(pointer)] {
            0 => return pointer,
            capability => pointer = u16::from(capability) + 1,
        }
    }
}

/// `after`, if it differs from `before`.
fn changed<T: Copy + PartialEq>(before: T, after: T) -> Option<T> {
    (before != after).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::testing::{BAR_SIZE, IDENTITY, MSIX, Random};

    const MEMORY: u8 = 1 << 1;
    const BUS_MASTER: u8 = 1 << 2;

    fn endpoint() -> ConfigSpace {
        ConfigSpace::endpoint(&IDENTITY, &[(0, BAR_SIZE)], &MSIX)
    }

    fn read32(space: &ConfigSpace, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        space.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn write32(space: &mut ConfigSpace, offset: u16, value: u32) -> ConfigEffects {
        space.write(offset, &value.to_le_bytes())
    }

    /// Offset of the capability `id`, found as software does.
    fn capability(space: &ConfigSpace, id: u8) -> u16 {
        let mut header = [0; 2];
        let mut next = read32(space, CAPABILITIES_POINTER) & 0xff;
        while next != 0 {
            let offset = u16::try_from(next).unwrap();
            space.read(offset, &mut header);
            if header[0] == id {
                return offset;
            }
            next = u32::from(header[1]);
        }
        panic!("no capability {id:#x}");
    }

    #[test]
    fn says_who_it_is() {
        let space = endpoint();
        assert_eq!(read32(&space, 0x00), 0x5678_1234);
        assert_eq!(read32(&space, 0x04), 0x0010_0000);
        assert_eq!(read32(&space, 0x08), 0x0108_0203);
        assert_eq!(read32(&space, 0x0c), 0);
        assert_eq!(read32(&space, 0x2c), 0xdef0_9abc);
        assert_eq!(read32(&space, 0x3c), 0);
        assert_eq!(read32(&space, 0x100), 0, "no extended capabilities");

        let bridge = ConfigSpace::new(&IDENTITY);
        assert_eq!(read32(&bridge, 0x04), 0);
        assert_eq!(read32(&bridge, 0x34), 0);
        assert_eq!(bridge.msix_control(), MsixControl::new());
        assert_eq!(bridge.power_state(), PowerState::D0);
    }

    #[test]
    fn lists_its_capabilities() {
        let space = endpoint();
        let power = capability(&space, 0x01);
        assert_eq!(read32(&space, power) >> 16, 0x0003);
        assert_eq!(read32(&space, power + 4), 0x0008, "D0, no soft reset");
        let express = capability(&space, 0x10);
        assert_eq!(read32(&space, express) >> 16, 0x0092, "v2, type 9");
        assert_eq!(read32(&space, express + 4), 1 << 28 | 1 << 15);
        assert_eq!(read32(&space, express + 8), 0x2810);
        let msix = capability(&space, 0x11);
        assert_eq!(read32(&space, msix) >> 16, 128);
        assert_eq!(read32(&space, msix + 4), 0x2000);
        assert_eq!(read32(&space, msix + 8), 0x3000);
    }

    #[test]
    fn two_msix_places_in_other_bars() {
        let layout = MsixLayout {
            vectors: 2048,
            table_bar: 2,
            table_offset: 8,
            pba_bar: 4,
            pba_offset: 0x1_0000,
        };
        let space = ConfigSpace::endpoint(&IDENTITY, &[(2, 16), (4, 1 << 33)], &layout);
        let msix = capability(&space, 0x11);
        assert_eq!(read32(&space, msix) >> 16, 2047);
        assert_eq!(read32(&space, msix + 4), 8 | 2);
        assert_eq!(read32(&space, msix + 8), 0x1_0000 | 4);
    }

    #[test]
    #[should_panic(expected = "share a register")]
    fn bars_have_two_registers_each() {
        let _ = ConfigSpace::endpoint(&IDENTITY, &[(0, 1 << 40), (1, 16)], &MSIX);
    }

    #[test]
    fn sizes_bars() {
        for size in [16, 4096, BAR_SIZE, 1 << 32, 1 << 33] {
            let mut space = ConfigSpace::endpoint(&IDENTITY, &[(2, size)], &MSIX);
            write32(&mut space, 0x18, u32::MAX);
            write32(&mut space, 0x1c, u32::MAX);
            let low = read32(&space, 0x18);
            let high = read32(&space, 0x1c);
            assert_eq!(low & 0xf, 4, "64-bit, not prefetchable");
            let bits = u64::from(high) << 32 | u64::from(low & !0xf);
            assert_eq!(bits, !(size - 1), "{size:#x}");
            for absent in [0x10, 0x14, 0x20, 0x24] {
                write32(&mut space, absent, u32::MAX);
                assert_eq!(read32(&space, absent), 0);
            }
        }
    }

    #[test]
    fn bars_take_single_bytes() {
        let mut space = endpoint();
        space.write(COMMAND, &[MEMORY]);
        for (i, byte) in (0..).zip(0x0000_1234_5678_8000_u64.to_le_bytes()) {
            space.write(0x10 + i, &[byte]);
        }
        assert_eq!(space.bar_window(0), Some((0x1234_5678_8000, BAR_SIZE)));
        space.write(0x13, &[0x99]);
        assert_eq!(space.bar_window(0), Some((0x1234_9978_8000, BAR_SIZE)));
        space.write(0x11, &[0xff, 0]);
        assert_eq!(space.bar_window(0), Some((0x1234_9900_c000, BAR_SIZE)));
    }

    #[test]
    fn bars_answer_only_where_and_when_they_can() {
        let mut space = endpoint();
        let power = capability(&space, 0x01) + 4;
        space.set_bar(0, 0xd000_1234);
        space.set_bar(1, u64::MAX);
        space.set_bar(200, u64::MAX);
        assert_eq!(space.bar_window(0), None, "memory space is off");
        space.write(COMMAND, &[MEMORY]);
        assert_eq!(space.bar_window(0), Some((0xd000_0000, BAR_SIZE)));
        for bar in [1, 2, 5, 6, 255] {
            assert_eq!(space.bar_window(bar), None, "{bar}");
        }
        space.write(power, &[3]);
        assert_eq!(space.bar_window(0), None, "D3hot");
        space.write(power, &[0]);

        let top = 1 << 46;
        for (base, answers) in [
            (0, false),
            (0xa_0000, false),
            (0xf_c000, false),
            (0x10_0000, true),
            (top - BAR_SIZE, true),
            (top, false),
            (1 << 63, false),
            (u64::MAX, false),
        ] {
            space.set_bar(0, base);
            assert_eq!(space.bar_window(0).is_some(), answers, "{base:#x}");
        }
    }

    #[test]
    fn command_bits_and_their_effects() {
        let mut space = endpoint();
        let effects = write32(&mut space, COMMAND, u32::MAX);
        assert_eq!(read32(&space, COMMAND), 0x0010_0546);
        let command = effects.command.unwrap();
        assert!(command.memory_space() && command.bus_master() && !command.io_space());
        assert!(space.bus_master());
        let effects = space.write(COMMAND, &[0xff, 0xff]);
        assert_eq!(effects, ConfigEffects::default(), "nothing changed");
        let effects = space.write(COMMAND, &[BUS_MASTER]);
        let command = effects.command.unwrap();
        assert!(!command.memory_space() && command.bus_master());
        assert_eq!(
            read32(&space, COMMAND),
            0x0010_0504,
            "the high byte is kept"
        );
        let effects = space.write(COMMAND + 1, &[0]);
        assert_eq!(effects.command, Some(space.command()));
        space.write(STATUS, &[0xff, 0xff]);
        assert_eq!(read32(&space, COMMAND), 0x0010_0004);
    }

    #[test]
    fn msix_control_effects() {
        let mut space = endpoint();
        let control = capability(&space, 0x11) + 2;
        let effects = space.write(control, &[0xff, 0xff]);
        let value = effects.msix_control.unwrap();
        assert!(value.enable() && value.function_mask());
        assert_eq!(value.table_size(), 128);
        assert_eq!(space.msix_control(), value);
        assert_eq!(space.write(control, &[0]), ConfigEffects::default());
        let effects = space.write(control + 1, &[0x80]);
        let value = effects.msix_control.unwrap();
        assert!(value.enable() && !value.function_mask());
        // The dword that Linux writes, with the identifier and pointer in its low half.
        let effects = write32(&mut space, control - 2, 0);
        assert!(!effects.msix_control.unwrap().enable());
        assert_eq!(capability(&space, 0x11) + 2, control);
    }

    #[test]
    fn power_states() {
        let mut space = endpoint();
        let control = capability(&space, 0x01) + 4;
        space.write(COMMAND, &[BUS_MASTER]);
        for unsupported in [1, 2] {
            assert_eq!(
                space.write(control, &[unsupported]),
                ConfigEffects::default()
            );
            assert_eq!(read32(&space, control), 8);
        }
        let effects = write32(&mut space, control, u32::MAX);
        assert_eq!(effects.power_state, Some(PowerState::D3Hot));
        assert_eq!(read32(&space, control), 0xb);
        assert!(!space.bus_master());
        space.write(control, &[1]);
        assert_eq!(space.power_state(), PowerState::D3Hot);
        let effects = space.write(control, &[0]);
        assert_eq!(effects.power_state, Some(PowerState::D0));
        assert!(space.bus_master());
    }

    #[test]
    fn function_level_reset() {
        let mut space = endpoint();
        let power_on = space.clone();
        let control = capability(&space, 0x10) + 8;
        for (offset, data) in [
            (control, &[0, 0x80][..]),
            (control + 1, &[0x80]),
            (control, &[0, 0x80, 0, 0]),
            (control - 4, &[0, 0, 0, 0, 0, 0xff, 0, 0]),
        ] {
            assert!(space.write(offset, data).function_level_reset);
        }
        for (offset, data) in [
            (control, &[0x80][..]),
            (control, &[0xff, 0x7f]),
            (control + 2, &[0xff; 8]),
            (control + 1, &[]),
        ] {
            assert!(!space.write(offset, data).function_level_reset);
        }
        let mut value = [0; 2];
        space.read(control, &mut value);
        assert_eq!(value[1] & 0x80, 0, "reads 0");

        space.write(COMMAND, &[0xff, 0xff]);
        space.set_bar(0, 0xd000_0000);
        space.write(capability(&space, 0x11) + 2, &[0xff, 0xff]);
        space.write(capability(&space, 0x01) + 4, &[3]);
        space.reset();
        assert_eq!(space.bytes, power_on.bytes);
        assert_eq!(space.bar_window(0), None);
    }

    /// The registers of an endpoint that software can change at all.
    fn is_changeable(space: &ConfigSpace, position: usize) -> bool {
        let [power, express, msix] = [0x01, 0x10, 0x11].map(|id| capability(space, id));
        let position = u16::try_from(position).unwrap();
        matches!(position, 0x04 | 0x05 | 0x11..=0x17 | 0x3c)
            || [
                power + 4,
                express + 8,
                express + 9,
                express + 0x28,
                msix + 3,
            ]
            .contains(&position)
    }

    #[test]
    fn no_access_of_any_size_at_any_offset_does_harm() {
        let mut space = endpoint();
        let power_on = space.clone();
        let mut random = Random(99);
        let size = u16::try_from(SIZE).unwrap();
        for offset in (0..size + 16).chain(u16::MAX - 16..=u16::MAX) {
            for len in 0..=9 {
                let before = space.bytes.clone();
                space.write(offset, &random.bytes::<9>()[..len]);
                let written = usize::from(offset)..usize::from(offset) + len;
                let start = written.start.min(SIZE);
                let end = written.end.min(SIZE);
                assert_eq!(space.bytes[..start], before[..start], "{offset:#x} {len}");
                assert_eq!(space.bytes[end..], before[end..], "{offset:#x} {len}");
                for position in (start..end).filter(|p| !is_changeable(&space, *p)) {
                    assert_eq!(space.bytes[position], before[position], "{position:#x}");
                }
                let mut data = [0x5a; 9];
                space.read(offset, &mut data[..len]);
                for (position, byte) in written.zip(data) {
                    assert_eq!(byte, space.bytes.get(position).copied().unwrap_or(0xff));
                }
                let _ = (
                    space.bar_window(0),
                    space.msix_control(),
                    space.bus_master(),
                );
            }
        }
        space.reset();
        assert_eq!(space.bytes, power_on.bytes);
    }
}
