//! Legacy PC devices: serial ports, keyboard controller, ACPI power, event and hot-plug registers,
//! pvpanic.

pub mod acpi;
pub mod i8042;
pub mod pci_hotplug;
pub mod pvpanic;
pub mod serial;

/// What a guest can ask of its machine through a legacy device.
///
/// Called on vCPU threads, without locks held, and as often as the guest likes: the machine acts on
/// the first call and ignores the rest.
pub trait MachineEvents: Send + Sync {
    /// The guest switched the machine off (ACPI S5).
    fn power_off(&self);

    /// The guest wants a reset.
    fn reset(&self);

    /// The guest's kernel panicked.
    fn panicked(&self);
}

#[cfg(test)]
pub(crate) mod testing {
    use super::MachineEvents;
    use crate::interrupt::IrqLine;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts what the guest asked for.
    #[derive(Default)]
    pub struct Events {
        pub power_off: AtomicUsize,
        pub reset: AtomicUsize,
        pub panicked: AtomicUsize,
    }

    impl Events {
        /// Calls so far of `power_off`, `reset` and `panicked`.
        pub fn counts(&self) -> [usize; 3] {
            [&self.power_off, &self.reset, &self.panicked].map(|n| n.load(Ordering::Relaxed))
        }
    }

    impl MachineEvents for Events {
        fn power_off(&self) {
            self.power_off.fetch_add(1, Ordering::Relaxed);
        }

        fn reset(&self) {
            self.reset.fetch_add(1, Ordering::Relaxed);
        }

        fn panicked(&self) {
            self.panicked.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts edges.
    #[derive(Default)]
    pub struct Line(pub AtomicUsize);

    impl IrqLine for Line {
        fn trigger(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}
