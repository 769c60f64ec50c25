//! QEMU's ISA pvpanic device: how a guest says that its kernel panicked.

use std::sync::Arc;

use super::MachineEvents;
use crate::bus::BusDevice;

/// I/O port of [`PvPanic`], the one QEMU uses.
pub const BASE: u64 = 0x505;
/// Number of ports.
pub const LEN: u64 = 1;

/// Event bit 0, the only one that is offered: the kernel panicked.
const PANICKED: u8 = 1 << 0;

/// One byte: reads the supported events, takes the events that happened.
pub struct PvPanic {
    events: Arc<dyn MachineEvents>,
}

impl PvPanic {
    /// A device that reports to `events`.
    #[must_use]
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        match data {
            [value] => *value = PANICKED,
            data => data.fill(0xff),
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let &[value] = data
            && value & PANICKED != 0
        {
            self.events.panicked();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::testing::Events;

    #[test]
    fn reports_panics_only() {
        let events = Arc::new(Events::default());
        let device = PvPanic::new(events.clone());
        let mut byte = [0];
        device.read(0, &mut byte);
        assert_eq!(byte, [1]);
        let mut word = [0; 2];
        device.read(0, &mut word);
        assert_eq!(word, [0xff; 2]);
        for value in [0, 2, 4, 0xfe] {
            device.write(0, &[value]);
        }
        device.write(0, &[1, 0]);
        assert_eq!(events.counts(), [0, 0, 0]);
        device.write(0, &[3]);
        assert_eq!(events.counts(), [0, 0, 1]);
    }
}
