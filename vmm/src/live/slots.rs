//! What the guest does with hot-plug slots, from vCPU threads to the main thread.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use devices::legacy::pci_hotplug::HotplugSink;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What the guest did with slots: masks, as it may do so as often as it likes.
pub struct SlotEvents {
    pub(super) ejected: AtomicU32,
    pub(super) refused: AtomicU32,
    pub(super) event: EventFd,
}

impl SlotEvents {
    /// Nothing yet.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ejected: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    fn note(&self, mask: &AtomicU32, slot: u8) {
        mask.fetch_or(1u32.checked_shl(slot.into()).unwrap_or(0), Ordering::AcqRel);
        // It fails only at 2^64 - 1 unread writes.
        let _ = self.event.write(1);
    }
}

impl HotplugSink for SlotEvents {
    fn ejected(&self, slot: u8) {
        self.note(&self.ejected, slot);
    }

    fn refused(&self, slot: u8, _status: u32) {
        self.note(&self.refused, slot);
    }
}

/// Takes the slots of a mask.
pub(super) fn slots_in(mask: &AtomicU32) -> impl Iterator<Item = u8> + use<> {
    let mask = mask.swap(0, Ordering::AcqRel);
    (0..32).filter(move |slot| mask >> slot & 1 != 0)
}
