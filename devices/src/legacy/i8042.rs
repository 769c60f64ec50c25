//! The keyboard controller, of which only the CPU reset command is left.

use std::convert::Infallible;
use std::sync::Arc;

use vm_superio::{I8042Device, Trigger};

use super::MachineEvents;
use crate::bus::BusDevice;

/// First I/O port of [`I8042`].
pub const BASE: u64 = 0x60;
/// Number of ports, data (0x60) to command and status (0x64).
pub const LEN: u64 = 5;

const DATA: u64 = 0;
const COMMAND: u64 = 4;

struct Reset<'a>(&'a dyn MachineEvents);

impl Trigger for Reset<'_> {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.reset();
        Ok(())
    }
}

/// A controller without keyboard: command 0xFE at port 0x64 resets the machine.
///
/// The status reads 0, so that a guest which waits for an empty input buffer goes on. The ports
/// between data and command, and accesses of more than a byte, read all ones.
pub struct I8042 {
    events: Arc<dyn MachineEvents>,
}

impl I8042 {
    /// A controller that reports to `events`.
    #[must_use]
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data) {
            (DATA | COMMAND, [value]) => *value = 0,
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset @ 0..=4), &[value]) = (u8::try_from(offset), data) {
            // The crate's device holds no state, so it need not outlive the access.
            let Ok(()) = I8042Device::new(Reset(self.events.as_ref())).write(offset, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::testing::Events;

    #[test]
    fn resets_on_command_fe_and_nothing_else() {
        let events = Arc::new(Events::default());
        let device = I8042::new(events.clone());
        for offset in [0, 1, 2, 3, 4, 0x104] {
            for value in 0..=u8::MAX {
                if (offset, value) != (COMMAND, 0xfe) {
                    device.write(offset, &[value]);
                }
            }
        }
        device.write(COMMAND, &[0xfe, 0xfe]);
        assert_eq!(events.counts(), [0, 0, 0]);
        device.write(COMMAND, &[0xfe]);
        assert_eq!(events.counts(), [0, 1, 0]);
    }

    #[test]
    fn status_is_idle_and_gaps_float() {
        let device = I8042::new(Arc::new(Events::default()));
        for (offset, expected) in [(0, 0), (1, 0xff), (2, 0xff), (3, 0xff), (4, 0), (5, 0xff)] {
            let mut byte = [0x5a];
            device.read(offset, &mut byte);
            assert_eq!(byte, [expected], "{offset}");
        }
        let mut word = [0; 2];
        device.read(COMMAND, &mut word);
        assert_eq!(word, [0xff; 2]);
    }
}
