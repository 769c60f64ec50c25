//! Hot-plug of PCI functions by ACPI: the registers behind the slots' `_EJ0` and `_OST` (ACPI 6.5,
//! 6.3) and behind the method that notifies the guest of slots that changed.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::acpi::AcpiRegisters;
use crate::bus::BusDevice;
use crate::pci::root::SLOTS;
use crate::ratelimit::guest_warn;

/// First I/O port of [`PciHotplug`].
pub const BASE: u64 = 0x610;
/// Number of ports.
pub const LEN: u64 = 20;
/// Offset of the mask of slots that got a function. Reading clears it.
pub const INSERTED: u64 = 0;
/// Offset of the mask of slots whose function is to go. Reading clears it.
pub const REMOVAL: u64 = 4;
/// Offset of the eject register: the guest writes a mask of the slots that it let go (`_EJ0`).
pub const EJECT: u64 = 8;
/// Offset of what the next status is about: the slot in bits 7:0, above them `_OST`'s source event.
pub const OST_SOURCE: u64 = 12;
/// Offset of `_OST`'s status code. Writing it completes the report that [`OST_SOURCE`] began.
pub const OST_STATUS: u64 = 16;

/// Slots that can change: all but that of the host bridge.
const PLUGGABLE: u32 = !1;
const OST_SLOT_MASK: u32 = 0xff;
const OST_EVENT_SHIFT: u32 = 8;

/// `_OST` source events (ACPI 6.5, 6.3.5): what was notified, or what the guest began by itself.
mod event {
    pub const BUS_CHECK: u32 = 0;
    pub const DEVICE_CHECK: u32 = 1;
    pub const EJECT_REQUEST: u32 = 3;
    pub const OSPM_EJECT: u32 = 0x103;
}

/// `_OST` status codes (ACPI 6.5, 6.3.5) other than failures.
mod status {
    pub const SUCCESS: u32 = 0;
    pub const INSERTION_IN_PROGRESS: u32 = 0x80;
    pub const EJECTION_IN_PROGRESS: u32 = 0x84;
}

/// Whom [`PciHotplug`] tells what the guest did with a slot, 1 to 31.
///
/// Called on vCPU threads, without locks held, and as often as the guest likes with whatever slot
/// it likes. So an implementation keeps what it heard per slot, as a mask for instance, and never
/// in a queue that grows.
pub trait HotplugSink: Send + Sync {
    /// The guest let go of `slot` (`_EJ0`): it will not touch the function again.
    ///
    /// The sink decides what that means. The guest may eject what nobody asked it to let go (on
    /// Linux by `/sys/bus/pci/slots/N/power`) and slots without a function.
    fn ejected(&self, slot: u8);

    /// The guest will not let go of `slot`, or failed to. `status` is a code of `_OST` for ejection
    /// (ACPI 6.5, 6.3.5), such as 1 (no reason given), 0x80 (not supported) or 0x82 (busy).
    ///
    /// A guest need not report this; Linux can also ignore a request in silence.
    fn refused(&self, slot: u8, status: u32);
}

/// What the guest has not read yet, and the report that it is writing.
#[derive(Default)]
struct State {
    inserted: u32,
    leaving: u32,
    ost_source: u32,
}

/// The hot-plug registers at ports 0x610 to 0x623, 32 bits each, little-endian.
///
/// Only aligned accesses of 4 bytes reach a register: others read all ones and are ignored.
///
/// A change sets a bit in [`INSERTED`] or [`REMOVAL`] and then raises the generic event device,
/// whose method reads both registers and notifies the slots' devices of a device check or an eject
/// request.
pub struct PciHotplug {
    sink: Arc<dyn HotplugSink>,
    acpi: Arc<AcpiRegisters>,
    state: Mutex<State>,
}

impl PciHotplug {
    /// Registers that tell `sink` what the guest did and raise the generic event device of `acpi`.
    #[must_use]
    pub fn new(sink: Arc<dyn HotplugSink>, acpi: Arc<AcpiRegisters>) -> Self {
        Self {
            sink,
            acpi,
            state: Mutex::default(),
        }
    }

    /// Tells the guest that `slot` (1 to 31) got a function, which must be there already. A request
    /// to let go of the slot that the guest has not read is withdrawn: it was not for this function.
    /// Says whether there was one.
    pub fn insert(&self, slot: u8) -> bool {
        let bit = bit(slot);
        let withdrawn = {
            let mut state = self.state();
            let withdrawn = state.leaving & bit != 0;
            state.inserted |= bit;
            state.leaving &= !bit;
            withdrawn
        };
        self.acpi.pci_hotplug();
        withdrawn
    }

    /// Asks the guest to let go of `slot` (1 to 31), whether its function is still there or not. An
    /// insertion that the guest has not read is withdrawn.
    ///
    /// Asking again while [`PciHotplug::removal_unread`] only raises the interrupt again, which
    /// helps if the first came before the guest had a handler. Later it is another request: should
    /// the slot have a new function by the time that Linux gets to it, that one is ejected.
    pub fn ask_removal(&self, slot: u8) {
        let bit = bit(slot);
        {
            let mut state = self.state();
            state.leaving |= bit;
            state.inserted &= !bit;
        }
        self.acpi.pci_hotplug();
    }

    /// Whether the guest has yet to read that it is asked to let go of `slot`.
    #[must_use]
    pub fn removal_unread(&self, slot: u8) -> bool {
        self.state().leaving & bit(slot) != 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn eject(&self, slots: u32) {
        {
            // Not read yet, but about the function that goes now: the next one is another.
            let mut state = self.state();
            state.inserted &= !slots;
            state.leaving &= !slots;
        }
        for slot in 1..SLOTS {
            if slots & bit(slot) != 0 {
                self.sink.ejected(slot);
            }
        }
    }

    fn report(&self, source: u32, status: u32) {
        let slot = u8::try_from(source & OST_SLOT_MASK).unwrap_or(u8::MAX);
        if bit(slot) == 0 {
            return;
        }
        match (source >> OST_EVENT_SHIFT, status) {
            // Success adds nothing to `_EJ0`, which Linux calls before it reports.
            (_, status::SUCCESS)
            | (event::EJECT_REQUEST | event::OSPM_EJECT, status::EJECTION_IN_PROGRESS)
            | (event::BUS_CHECK | event::DEVICE_CHECK, status::INSERTION_IN_PROGRESS) => {}
            (event::EJECT_REQUEST | event::OSPM_EJECT, _) => self.sink.refused(slot, status),
            (event::BUS_CHECK | event::DEVICE_CHECK, _) => {
                guest_warn!(
                    slot,
                    status,
                    "the guest failed to take the device into service"
                );
            }
            _ => {}
        }
    }
}

/// The mask of `slot`; empty if nothing can be plugged there.
fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0) & PLUGGABLE
}

impl BusDevice for PciHotplug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Ok(register) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        let mut state = self.state();
        let value = match offset {
            INSERTED => mem::take(&mut state.inserted),
            REMOVAL => mem::take(&mut state.leaving),
            OST_SOURCE => state.ost_source,
            EJECT | OST_STATUS => 0,
            _ => return,
        };
        *register = value.to_le_bytes();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(register) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(register);
        match offset {
            EJECT => self.eject(value & PLUGGABLE),
            OST_SOURCE => self.state().ost_source = value,
            OST_STATUS => {
                let source = self.state().ost_source;
                self.report(source, value);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::acpi;
    use crate::legacy::testing::{Events, Line};
    use std::sync::atomic::Ordering;

    /// What the sink heard: the slot, and the status of a refusal.
    #[derive(Default)]
    struct Heard(Mutex<Vec<(u8, Option<u32>)>>);

    impl Heard {
        fn take(&self) -> Vec<(u8, Option<u32>)> {
            mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl HotplugSink for Heard {
        fn ejected(&self, slot: u8) {
            self.0.lock().unwrap().push((slot, None));
        }

        fn refused(&self, slot: u8, status: u32) {
            self.0.lock().unwrap().push((slot, Some(status)));
        }
    }

    struct Machine {
        heard: Arc<Heard>,
        line: Arc<Line>,
        acpi: Arc<AcpiRegisters>,
        hotplug: PciHotplug,
    }

    impl Machine {
        fn new() -> Self {
            let heard = Arc::new(Heard::default());
            let line = Arc::new(Line::default());
            let events = Arc::new(Events::default());
            let acpi = Arc::new(AcpiRegisters::new(events, line.clone()));
            let hotplug = PciHotplug::new(heard.clone(), acpi.clone());
            Self {
                heard,
                line,
                acpi,
                hotplug,
            }
        }

        fn edges(&self) -> usize {
            self.line.0.load(Ordering::Relaxed)
        }

        fn event(&self) -> u8 {
            let mut byte = [0];
            self.acpi.read(acpi::EVENT_STATUS, &mut byte);
            byte[0]
        }

        fn read(&self, offset: u64) -> u32 {
            let mut data = [0x5a; 4];
            self.hotplug.read(offset, &mut data);
            u32::from_le_bytes(data)
        }

        fn write(&self, offset: u64, value: u32) {
            self.hotplug.write(offset, &value.to_le_bytes());
        }

        fn report(&self, slot: u32, event: u32, status: u32) {
            self.write(OST_SOURCE, event << 8 | slot);
            self.write(OST_STATUS, status);
        }
    }

    #[test]
    fn insertions_are_read_once_and_raise_the_event_device() {
        let machine = Machine::new();
        assert_eq!((machine.read(INSERTED), machine.edges()), (0, 0));
        machine.hotplug.insert(1);
        machine.hotplug.insert(31);
        assert_eq!(machine.edges(), 2);
        assert_eq!(machine.event(), acpi::EVENT_PCI_HOTPLUG);
        assert_eq!(machine.read(REMOVAL), 0);
        assert_eq!(machine.read(INSERTED), 1 << 31 | 1 << 1);
        assert_eq!(machine.read(INSERTED), 0);
        assert_eq!(machine.heard.take(), []);
    }

    #[test]
    fn removals_are_read_once_and_can_be_repeated() {
        let machine = Machine::new();
        assert!(!machine.hotplug.removal_unread(7));
        machine.hotplug.ask_removal(7);
        machine.hotplug.ask_removal(7);
        assert_eq!(machine.edges(), 2);
        assert!(machine.hotplug.removal_unread(7));
        assert!(!machine.hotplug.removal_unread(8));
        assert_eq!(machine.event(), acpi::EVENT_PCI_HOTPLUG);
        assert_eq!(machine.read(INSERTED), 0);
        assert_eq!(machine.read(REMOVAL), 1 << 7);
        assert!(!machine.hotplug.removal_unread(7));
        assert_eq!(machine.read(REMOVAL), 0);
        machine.hotplug.ask_removal(7);
        assert_eq!(machine.read(REMOVAL), 1 << 7);
    }

    #[test]
    fn the_last_of_insertion_and_removal_holds() {
        let machine = Machine::new();
        for slot in [2, 3] {
            machine.hotplug.ask_removal(slot);
            machine.hotplug.insert(slot);
        }
        machine.hotplug.ask_removal(3);
        assert_eq!(machine.read(INSERTED), 1 << 2);
        assert_eq!(machine.read(REMOVAL), 1 << 3);
    }

    #[test]
    fn impossible_slots_reach_no_register() {
        let machine = Machine::new();
        for slot in [0, 32, 33, 64, u8::MAX] {
            machine.hotplug.insert(slot);
            machine.hotplug.ask_removal(slot);
            assert!(!machine.hotplug.removal_unread(slot));
        }
        assert_eq!((machine.read(INSERTED), machine.read(REMOVAL)), (0, 0));
    }

    #[test]
    fn ejections_are_heard_slot_by_slot_and_asked_for_or_not() {
        let machine = Machine::new();
        machine.hotplug.ask_removal(4);
        machine.write(EJECT, 1 << 4 | 1 << 9);
        assert_eq!(machine.heard.take(), [(4, None), (9, None)]);
        machine.write(EJECT, 1 << 4);
        assert_eq!(machine.heard.take(), [(4, None)]);
        machine.write(EJECT, u32::MAX);
        let all: Vec<_> = (1..32).map(|slot| (slot, None)).collect();
        assert_eq!(machine.heard.take(), all);
        for nothing in [0, 1] {
            machine.write(EJECT, nothing);
        }
        assert_eq!(machine.heard.take(), []);
        assert_eq!(machine.read(EJECT), 0);
    }

    #[test]
    fn an_ejected_slot_has_nothing_left_to_be_read() {
        let machine = Machine::new();
        machine.hotplug.insert(5);
        machine.hotplug.insert(6);
        machine.hotplug.ask_removal(7);
        machine.hotplug.ask_removal(8);
        machine.write(EJECT, 1 << 5 | 1 << 7);
        assert!(!machine.hotplug.removal_unread(7));
        assert_eq!(machine.read(INSERTED), 1 << 6);
        assert_eq!(machine.read(REMOVAL), 1 << 8);
    }

    #[test]
    fn failures_to_eject_are_refusals() {
        let machine = Machine::new();
        for event in [3, 0x103] {
            for status in [1, 2, 0x80, 0x81, 0x82, 0x83, 0xff, u32::MAX] {
                machine.report(31, event, status);
                assert_eq!(machine.heard.take(), [(31, Some(status))]);
            }
        }
    }

    #[test]
    fn other_reports_are_no_refusals() {
        let machine = Machine::new();
        for (event, status) in [
            (3, 0),
            (3, 0x84),
            (0x103, 0),
            (0x103, 0x84),
            (0, 0),
            (0, 0x81),
            (1, 0),
            (1, 0x80),
            (1, 1),
            (2, 1),
            (0xff_ffff, 1),
        ] {
            machine.report(1, event, status);
        }
        for slot in [0, 32, 64, 0xff] {
            machine.report(slot, 3, 1);
        }
        assert_eq!(machine.heard.take(), []);
    }

    #[test]
    fn a_status_is_about_the_source_written_last() {
        let machine = Machine::new();
        machine.write(OST_STATUS, 1);
        assert_eq!(machine.heard.take(), []);
        machine.write(OST_SOURCE, 3 << 8 | 1);
        machine.write(OST_SOURCE, 3 << 8 | 2);
        assert_eq!(machine.read(OST_SOURCE), 3 << 8 | 2);
        machine.write(OST_STATUS, 1);
        assert_eq!(machine.heard.take(), [(2, Some(1))]);
    }

    #[test]
    fn other_sizes_and_offsets_reach_no_register() {
        let machine = Machine::new();
        machine.hotplug.insert(1);
        machine.hotplug.ask_removal(2);
        let offsets = (0..LEN + 8).chain([u64::MAX - 3, u64::MAX]);
        for (offset, size) in offsets.flat_map(|o| (1..=8).map(move |size| (o, size))) {
            if size == 4 && offset % 4 == 0 && offset < LEN {
                continue;
            }
            machine.hotplug.write(offset, &vec![0xff; size]);
            let mut data = vec![0; size];
            machine.hotplug.read(offset, &mut data);
            assert_eq!(data, vec![0xff; size], "{offset:#x} {size}");
        }
        for read_only in [INSERTED, REMOVAL] {
            machine.write(read_only, 0);
        }
        assert_eq!(machine.heard.take(), []);
        assert_eq!(machine.read(INSERTED), 1 << 1);
        assert_eq!(machine.read(REMOVAL), 1 << 2);
    }
}
