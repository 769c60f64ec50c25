//! The fixed registers of a hardware-reduced ACPI machine and the status byte of its generic event
//! device (ACPI 6.5, 4.8.3.7 and 5.6.9).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::MachineEvents;
use crate::bus::BusDevice;
use crate::interrupt::IrqLine;

/// First I/O port of [`AcpiRegisters`].
pub const BASE: u64 = 0x600;
/// Number of ports.
pub const LEN: u64 = 4;
/// Offset of the sleep control register (FADT `SLEEP_CONTROL_REG`).
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register (FADT `SLEEP_STATUS_REG`).
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register (FADT `RESET_REG`).
pub const RESET: u64 = 2;
/// Offset of the generic event status: which events happened since it was read last.
pub const EVENT_STATUS: u64 = 3;

/// What the guest writes to the reset register (FADT `RESET_VALUE`).
pub const RESET_VALUE: u8 = 1;
/// The sleep type of S5, to be returned by `\_S5`.
pub const SLEEP_TYPE_S5: u8 = 5;
/// Event status bit: the power button was pressed.
pub const EVENT_POWER_BUTTON: u8 = 1 << 0;
/// Event status bit: the registers of PCI hot-plug changed.
pub const EVENT_PCI_HOTPLUG: u8 = 1 << 1;

const SLP_EN: u8 = 1 << 5;
const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 0b111;
const WAK_STS: u8 = 1 << 7;

/// Sleep, reset and event registers, one byte each, at ports 0x600 to 0x603.
///
/// Only byte accesses reach a register: others read all ones and are ignored.
pub struct AcpiRegisters {
    events: Arc<dyn MachineEvents>,
    event_line: Arc<dyn IrqLine>,
    sleep_status: AtomicU8,
    event_status: AtomicU8,
}

impl AcpiRegisters {
    /// Registers that report to `events` and raise `event_line`, the generic event device's.
    #[must_use]
    pub fn new(events: Arc<dyn MachineEvents>, event_line: Arc<dyn IrqLine>) -> Self {
        Self {
            events,
            event_line,
            sleep_status: AtomicU8::new(0),
            event_status: AtomicU8::new(0),
        }
    }

    /// Tells the guest that its power button was pressed.
    pub fn power_button(&self) {
        self.raise(EVENT_POWER_BUTTON);
    }

    /// Tells the guest to read the registers of PCI hot-plug.
    pub(super) fn pci_hotplug(&self) {
        self.raise(EVENT_PCI_HOTPLUG);
    }

    fn raise(&self, event: u8) {
        self.event_status.fetch_or(event, Ordering::SeqCst);
        self.event_line.trigger();
    }
}

impl BusDevice for AcpiRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let [value] = data else { return };
        *value = match offset {
            SLEEP_CONTROL | RESET => 0,
            SLEEP_STATUS => self.sleep_status.load(Ordering::SeqCst),
            EVENT_STATUS => self.event_status.swap(0, Ordering::SeqCst),
            _ => return,
        };
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        match offset {
            SLEEP_CONTROL => {
                let sleep_type = (value >> SLP_TYP_SHIFT) & SLP_TYP_MASK;
                if value & SLP_EN != 0 && sleep_type == SLEEP_TYPE_S5 {
                    self.events.power_off();
                }
            }
            SLEEP_STATUS => {
                self.sleep_status
                    .fetch_and(!(value & WAK_STS), Ordering::SeqCst);
            }
            RESET if value == RESET_VALUE => self.events.reset(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::testing::{Events, Line};

    fn machine() -> (Arc<Events>, Arc<Line>, AcpiRegisters) {
        let events = Arc::new(Events::default());
        let line = Arc::new(Line::default());
        let acpi = AcpiRegisters::new(events.clone(), line.clone());
        (events, line, acpi)
    }

    fn read(acpi: &AcpiRegisters, offset: u64) -> u8 {
        let mut byte = [0x5a];
        acpi.read(offset, &mut byte);
        byte[0]
    }

    #[test]
    fn only_s5_with_enable_powers_off() {
        let (events, _, acpi) = machine();
        for value in 0..=u8::MAX {
            let before = events.counts()[0];
            acpi.write(SLEEP_CONTROL, &[value]);
            let expected = usize::from(value & 0b0011_1100 == 0b0011_0100);
            assert_eq!(events.counts()[0] - before, expected, "{value:#x}");
        }
        assert_eq!(events.counts(), [16, 0, 0]);
    }

    #[test]
    fn only_the_reset_value_resets() {
        let (events, _, acpi) = machine();
        for value in 0..=u8::MAX {
            acpi.write(RESET, &[value]);
        }
        assert_eq!(events.counts(), [0, 1, 0]);
        acpi.write(RESET, &[1, 0]);
        assert_eq!(events.counts(), [0, 1, 0]);
    }

    #[test]
    fn wake_status_is_write_one_to_clear() {
        let (_, _, acpi) = machine();
        assert_eq!(read(&acpi, SLEEP_STATUS), 0);
        acpi.sleep_status.store(WAK_STS, Ordering::SeqCst);
        acpi.write(SLEEP_STATUS, &[0x7f]);
        assert_eq!(read(&acpi, SLEEP_STATUS), WAK_STS);
        acpi.write(SLEEP_STATUS, &[WAK_STS]);
        assert_eq!(read(&acpi, SLEEP_STATUS), 0);
    }

    #[test]
    fn the_power_button_is_an_event_until_read() {
        let (_, line, acpi) = machine();
        assert_eq!(read(&acpi, EVENT_STATUS), 0);
        acpi.power_button();
        assert_eq!(line.0.load(Ordering::Relaxed), 1);
        acpi.write(EVENT_STATUS, &[0xff]);
        assert_eq!(read(&acpi, EVENT_STATUS), EVENT_POWER_BUTTON);
        assert_eq!(read(&acpi, EVENT_STATUS), 0);
        acpi.power_button();
        acpi.power_button();
        assert_eq!(line.0.load(Ordering::Relaxed), 3);
        assert_eq!(read(&acpi, EVENT_STATUS), EVENT_POWER_BUTTON);
    }

    #[test]
    fn events_that_come_together_are_read_together() {
        let (_, line, acpi) = machine();
        acpi.pci_hotplug();
        acpi.power_button();
        assert_eq!(line.0.load(Ordering::Relaxed), 2);
        let both = EVENT_POWER_BUTTON | EVENT_PCI_HOTPLUG;
        assert_eq!(read(&acpi, EVENT_STATUS), both);
        assert_eq!(read(&acpi, EVENT_STATUS), 0);
    }

    #[test]
    fn other_sizes_and_offsets_reach_no_register() {
        let (events, _, acpi) = machine();
        acpi.power_button();
        for offset in [0, 1, 2, 3, 4, u64::MAX] {
            for size in 2..=8 {
                let mut data = vec![0; size];
                acpi.read(offset, &mut data);
                assert_eq!(data, vec![0xff; size]);
                acpi.write(offset, &vec![0x34; size]);
            }
        }
        assert_eq!(read(&acpi, 4), 0xff);
        assert_eq!(events.counts(), [0, 0, 0]);
        assert_eq!(read(&acpi, EVENT_STATUS), EVENT_POWER_BUTTON);
    }
}
