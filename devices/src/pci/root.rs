//! The PCI root: bus 0, what is in its slots, and where their BARs are.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::host_bridge::HostBridge;
use super::{PciDevice, bar};
use crate::bus::{Bus, BusDevice};
use crate::guest_warn;

/// Number of slots on bus 0. The host bridge is in slot 0.
pub const SLOTS: u8 = 32;

/// BARs lie at multiples of this even where they are smaller, so that no two share a guest page.
const PAGE: u64 = 4096;

/// Name of the function in `slot`, such as `0000:00:03.0`.
#[must_use]
pub fn bdf(slot: u8) -> String {
    format!("0000:00:{slot:02x}.0")
}

/// The guest physical addresses that belong to PCI, as ACPI tells the guest. Either may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciWindows {
    /// Below 4 GiB; BARs are assigned from it before boot and when a device is plugged in.
    pub mmio32: Range<u64>,
    /// Above RAM; a guest may move BARs here.
    pub mmio64: Range<u64>,
}

/// Why a device cannot be put into a slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// Bus 0 has no such slot.
    #[error("PCI slot {slot:#x} does not exist, bus 0 has slots 0x1 to 0x1f for devices")]
    NoSuchSlot {
        /// The slot asked for.
        slot: u8,
    },
    /// There is a device already.
    #[error("PCI slot {slot:#x} is in use, choose another or none")]
    SlotInUse {
        /// The slot asked for.
        slot: u8,
    },
    /// All slots have devices.
    #[error("PCI bus 0 is full, all of its 31 slots are in use")]
    Full,
    /// A BAR does not fit.
    #[error("no room for BAR {bar} of {size:#x} bytes between {start:#x} and {end:#x}")]
    NoRoom {
        /// The BAR.
        bar: u8,
        /// Its size in bytes.
        size: u64,
        /// Start of the window it must lie in.
        start: u64,
        /// End of that window, exclusive.
        end: u64,
    },
}

/// One BAR and where it is.
struct Bar {
    index: u8,
    size: u64,
    /// Where the device decodes it, if it does.
    wanted: Option<u64>,
    /// Whether the bus answers there.
    mapped: bool,
}

/// The BARs in each slot.
type Layout = [Vec<Bar>; SLOTS as usize];

/// Bus 0 and its devices. The [`super`] module has the lock order.
pub struct PciRoot {
    mmio: Arc<Bus>,
    windows: PciWindows,
    slots: RwLock<[Option<Arc<dyn PciDevice>>; SLOTS as usize]>,
    layout: Mutex<Layout>,
}

impl PciRoot {
    /// A root whose devices' BARs answer on `mmio`, within `windows`.
    #[must_use]
    pub fn new(mmio: Arc<Bus>, windows: PciWindows) -> Self {
        let mut slots: [Option<Arc<dyn PciDevice>>; SLOTS as usize] = Default::default();
        slots[0] = Some(Arc::new(HostBridge::new()));
        Self {
            mmio,
            windows,
            slots: RwLock::new(slots),
            layout: Mutex::new(Layout::default()),
        }
    }

    /// Puts `device` into `slot`, or else the lowest free one, and returns the slot.
    ///
    /// Assigns addresses to its memory BARs, as firmware does: through configuration space. They
    /// answer once the guest enables memory space.
    ///
    /// # Errors
    /// [`PciError`]: no such slot, none free, or no room for a BAR.
    pub fn add(&self, slot: Option<u8>, device: Arc<dyn PciDevice>) -> Result<u8, PciError> {
        let mut layout = self.layout();
        let slot = self.choose(slot)?;
        layout[usize::from(slot)] = self.assign(&layout, &device)?;
        self.set_device(slot, Some(device));
        self.settle(&mut layout, slot);
        Ok(slot)
    }

    /// Takes the device out of `slot`, if there is one other than the host bridge.
    ///
    /// Afterwards neither configuration space nor BARs reach it, except for accesses that other
    /// vCPUs have begun: such a vCPU may drop the last reference to the device. So what must be
    /// done at its end (stopping queues, say) cannot be left to `Drop`.
    pub fn remove(&self, slot: u8) -> Option<Arc<dyn PciDevice>> {
        if slot == 0 {
            return None;
        }
        let mut layout = self.layout();
        let device = self.set_device(slot, None)?;
        for mut bar in std::mem::take(&mut layout[usize::from(slot)]) {
            self.unmap(&device, &mut bar);
        }
        self.map_all(&mut layout);
        Some(device)
    }

    /// The device in `slot`.
    #[must_use]
    pub fn device(&self, slot: u8) -> Option<Arc<dyn PciDevice>> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.get(usize::from(slot))?.clone()
    }

    /// Reads configuration space; all ones where there is no device.
    pub(super) fn read_config(&self, slot: u8, offset: u16, data: &mut [u8]) {
        match self.device(slot) {
            Some(device) => device.read_config(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes configuration space, and moves BARs that the write has moved.
    pub(super) fn write_config(&self, slot: u8, offset: u16, data: &[u8]) {
        let mut layout = self.layout();
        if let Some(device) = self.device(slot) {
            device.write_config(offset, data);
            self.settle(&mut layout, slot);
        }
    }

    fn layout(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the device in `slot`, which exists, and returns the former one.
    fn set_device(
        &self,
        slot: u8,
        device: Option<Arc<dyn PciDevice>>,
    ) -> Option<Arc<dyn PciDevice>> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let place = slots.get_mut(usize::from(slot))?;
        std::mem::replace(place, device)
    }

    fn choose(&self, slot: Option<u8>) -> Result<u8, PciError> {
        match slot {
            Some(slot) if slot >= SLOTS => Err(PciError::NoSuchSlot { slot }),
            Some(slot) if self.device(slot).is_some() => Err(PciError::SlotInUse { slot }),
            Some(slot) => Ok(slot),
            None => (0..SLOTS)
                .find(|&slot| self.device(slot).is_none())
                .ok_or(PciError::Full),
        }
    }

    /// Gives each memory BAR of `device` an address of its own.
    fn assign(&self, layout: &Layout, device: &Arc<dyn PciDevice>) -> Result<Vec<Bar>, PciError> {
        let mut taken = self.taken(layout);
        let mut bars = Vec::new();
        for (index, size) in bar::discover(device.as_ref()) {
            let window = &self.windows.mmio32;
            let base = first_fit(&mut taken, window, size).ok_or(PciError::NoRoom {
                bar: index,
                size,
                start: window.start,
                end: window.end,
            })?;
            bar::set_address(device.as_ref(), index, base);
            taken.push((base, size));
            bars.push(Bar {
                index,
                size,
                wanted: None,
                mapped: false,
            });
        }
        Ok(bars)
    }

    /// Base and size of every BAR on the bus, decoded or not.
    fn taken(&self, layout: &Layout) -> Vec<(u64, u64)> {
        let mut taken = Vec::new();
        for (slot, bars) in (0..).zip(layout) {
            if let Some(device) = self.device(slot) {
                let address = |bar: &Bar| bar::address(device.as_ref(), bar.index);
                taken.extend(bars.iter().map(|bar| (address(bar), bar.size)));
            }
        }
        taken
    }

    /// Lets the bus follow where the device in `slot` decodes its BARs now.
    fn settle(&self, layout: &mut Layout, slot: u8) {
        let Some(device) = self.device(slot) else {
            return;
        };
        let mut moved = false;
        for bar in &mut layout[usize::from(slot)] {
            let wanted = device.bar_window(bar.index).map(|(base, _)| base);
            if wanted != bar.wanted {
                self.unmap(&device, bar);
                bar.wanted = wanted;
                moved = true;
            }
        }
        if moved {
            // All slots: what moved may have made room for what found its place taken.
            self.map_all(layout);
        }
    }

    fn unmap(&self, device: &Arc<dyn PciDevice>, bar: &mut Bar) {
        if let Some(base) = bar.wanted.filter(|_| bar.mapped) {
            self.mmio.remove(base);
            bar.mapped = false;
            device.bar_moved(bar.index, None);
        }
    }

    /// Maps every BAR that is decoded and not mapped yet, if its place is free.
    fn map_all(&self, layout: &mut Layout) {
        for (slot, bars) in (0..).zip(layout) {
            if let Some(device) = self.device(slot) {
                for bar in bars.iter_mut().filter(|bar| !bar.mapped) {
                    self.map(slot, &device, bar);
                }
            }
        }
    }

    fn map(&self, slot: u8, device: &Arc<dyn PciDevice>, bar: &mut Bar) {
        let Some(base) = bar.wanted else { return };
        let name = bdf(slot);
        let index = bar.index;
        if !self.windows.hold(base, bar.size) {
            guest_warn!("{name}: BAR {index} at {base:#x} is outside of the PCI windows");
            return;
        }
        let window = Arc::new(BarWindow {
            device: device.clone(),
            index,
        });
        match self.mmio.insert(base, bar.size, window) {
            Ok(()) => {
                bar.mapped = true;
                device.bar_moved(index, Some(base));
            }
            Err(error) => guest_warn!("{name}: BAR {index} does not answer: {error}"),
        }
    }
}

impl PciWindows {
    /// Whether one of the windows holds all `size` bytes at `base`.
    fn hold(&self, base: u64, size: u64) -> bool {
        let inside = |window: &Range<u64>| {
            window.start <= base && base.checked_add(size).is_some_and(|end| end <= window.end)
        };
        inside(&self.mmio32) || inside(&self.mmio64)
    }
}

/// The lowest free place for `size` bytes in `window`; sorts `taken`, which is `(base, size)`.
fn first_fit(taken: &mut [(u64, u64)], window: &Range<u64>, size: u64) -> Option<u64> {
    taken.sort_unstable();
    let align = size.max(PAGE);
    let mut candidate = window.start.checked_next_multiple_of(align)?;
    for &(base, len) in taken.iter() {
        if base >= candidate.checked_add(size)? {
            break;
        }
        let end = base.saturating_add(len);
        if end > candidate {
            candidate = end.checked_next_multiple_of(align)?;
        }
    }
    (candidate.checked_add(size)? <= window.end).then_some(candidate)
}

/// What the bus holds for a mapped BAR.
///
/// A strong reference: upgrading a weak one would have vCPUs contend on its count at each doorbell.
/// The root takes the window off the bus before it lets go of the device.
struct BarWindow {
    device: Arc<dyn PciDevice>,
    index: u8,
}

impl BusDevice for BarWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.device.read_bar(self.index, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.device.write_bar(self.index, offset, data);
    }
}
