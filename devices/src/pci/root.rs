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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::testing::{BAR_SIZE, Device};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    const START: u64 = 0xc000_0000;
    const COMMAND: u16 = 4;
    const MEMORY: [u8; 1] = [2];

    fn root() -> (Arc<Bus>, Arc<PciRoot>) {
        let mmio = Arc::new(Bus::new());
        let windows = PciWindows {
            mmio32: START..0xe000_0000,
            mmio64: 1 << 40..1 << 41,
        };
        (mmio.clone(), Arc::new(PciRoot::new(mmio, windows)))
    }

    /// The tag of the device that answers at `address`.
    fn tag(mmio: &Bus, address: u64) -> Option<u8> {
        let mut byte = [0];
        mmio.read(address, &mut byte).then_some(byte[0])
    }

    fn set_bar(root: &PciRoot, slot: u8, address: u64) {
        let bytes = address.to_le_bytes();
        root.write_config(slot, 0x10, &bytes[..4]);
        root.write_config(slot, 0x14, &bytes[4..]);
    }

    #[test]
    fn names_and_slots() {
        assert_eq!(bdf(3), "0000:00:03.0");
        assert_eq!(bdf(31), "0000:00:1f.0");
        let (_, root) = root();
        assert_eq!(root.add(None, Device::new(1)), Ok(1));
        assert_eq!(root.add(Some(3), Device::new(3)), Ok(3));
        assert_eq!(root.add(None, Device::new(2)), Ok(2));
        assert_eq!(root.add(None, Device::new(4)), Ok(4));
        for (slot, error) in [
            (0, PciError::SlotInUse { slot: 0 }),
            (3, PciError::SlotInUse { slot: 3 }),
            (32, PciError::NoSuchSlot { slot: 32 }),
            (255, PciError::NoSuchSlot { slot: 255 }),
        ] {
            assert_eq!(root.add(Some(slot), Device::new(9)), Err(error));
        }
        assert!(root.device(5).is_none() && root.device(255).is_none());
        for slot in 5..32 {
            assert_eq!(root.add(None, Device::new(slot)), Ok(slot));
        }
        assert_eq!(root.add(None, Device::new(9)), Err(PciError::Full));
        assert!(root.remove(0).is_none() && root.device(0).is_some());
        assert!(root.remove(7).is_some() && root.remove(7).is_none());
        assert!(root.remove(255).is_none());
        assert_eq!(root.add(None, Device::new(7)), Ok(7));
    }

    #[test]
    fn host_bridge_looks_like_one() {
        let (_, root) = root();
        let mut dword = [0; 4];
        root.read_config(0, 0, &mut dword);
        assert_eq!(u32::from_le_bytes(dword), 0x0d57_8086);
        root.read_config(0, 8, &mut dword);
        assert_eq!(u32::from_le_bytes(dword), 0x0600_0000);
        root.write_config(0, 0x10, &[0xff; 4]);
        root.read_config(0, 0x10, &mut dword);
        assert_eq!(dword, [0; 4]);
        root.read_config(9, 0, &mut dword);
        assert_eq!(dword, [0xff; 4], "an empty slot");
        root.write_config(9, 0, &dword);
    }

    #[test]
    fn bars_get_places_and_answer_once_enabled() {
        let (mmio, root) = root();
        let (first, second) = (Device::new(1), Device::new(2));
        root.add(None, first.clone()).unwrap();
        root.add(None, second.clone()).unwrap();
        assert_eq!(tag(&mmio, START), None);
        assert!(first.take_moves().is_empty());
        assert!(first.log.lock().unwrap().effects.is_empty());

        root.write_config(1, COMMAND, &MEMORY);
        root.write_config(2, COMMAND, &MEMORY);
        assert_eq!(first.take_moves(), [(0, Some(START))]);
        assert_eq!(second.take_moves(), [(0, Some(START + BAR_SIZE))]);
        assert_eq!(tag(&mmio, START), Some(1));
        assert_eq!(tag(&mmio, START + BAR_SIZE - 1), Some(1));
        assert_eq!(tag(&mmio, START + BAR_SIZE), Some(2));
        assert_eq!(tag(&mmio, START + 2 * BAR_SIZE), None);
        assert!(mmio.write(START + 0x1008, &[7; 4]));
        let written = first.log.lock().unwrap().last_write.take();
        assert_eq!(written, Some((0x1008, vec![7; 4])));

        root.write_config(1, COMMAND, &[0]);
        assert_eq!(first.take_moves(), [(0, None)]);
        assert_eq!(tag(&mmio, START), None);
    }

    #[test]
    fn a_guest_can_move_bars() {
        let (mmio, root) = root();
        let device = Device::new(1);
        root.add(None, device.clone()).unwrap();
        root.write_config(1, COMMAND, &MEMORY);
        device.take_moves();
        let above = (1 << 40) + 0x8000;
        set_bar(&root, 1, above);
        // Between the two halves of the address the BAR was below 1 MiB, nowhere.
        assert_eq!(device.take_moves(), [(0, None), (0, Some(above))]);
        assert_eq!(tag(&mmio, START), None);
        assert_eq!(tag(&mmio, above), Some(1));
        for outside in [0, 0x1000_0000, 0xe000_0000, 1 << 41, 1 << 45, u64::MAX] {
            set_bar(&root, 1, outside);
            assert_eq!(tag(&mmio, outside & !(BAR_SIZE - 1)), None, "{outside:#x}");
        }
        device.take_moves();
        set_bar(&root, 1, 0xdfff_c000);
        assert_eq!(device.take_moves(), [(0, Some(0xdfff_c000))]);
        root.write_config(1, 0x3c, &[5]);
        assert!(device.take_moves().is_empty());
    }

    #[test]
    fn a_taken_place_answers_for_its_owner_until_free() {
        let (mmio, root) = root();
        let (first, second) = (Device::new(1), Device::new(2));
        for device in [first.clone(), second.clone()] {
            let slot = root.add(None, device).unwrap();
            root.write_config(slot, COMMAND, &MEMORY);
        }
        first.take_moves();
        second.take_moves();
        set_bar(&root, 2, START);
        assert_eq!(second.take_moves(), [(0, None)]);
        assert_eq!(tag(&mmio, START), Some(1));
        assert_eq!(tag(&mmio, START + BAR_SIZE), None);

        set_bar(&root, 1, START + BAR_SIZE);
        assert_eq!(first.take_moves(), [(0, None), (0, Some(START + BAR_SIZE))]);
        assert_eq!(second.take_moves(), [(0, Some(START))]);
        assert_eq!(tag(&mmio, START), Some(2));
        assert_eq!(tag(&mmio, START + BAR_SIZE), Some(1));

        set_bar(&root, 1, START);
        root.remove(2).unwrap();
        assert_eq!(tag(&mmio, START), Some(1));
    }

    #[test]
    fn function_level_reset_takes_bars_off_the_bus() {
        let (mmio, root) = root();
        let device = Device::new(1);
        root.add(None, device.clone()).unwrap();
        root.write_config(1, COMMAND, &MEMORY);
        device.take_moves();
        root.write_config(1, 0x48 + 8, &[0, 0x80]);
        assert_eq!(device.take_moves(), [(0, None)]);
        assert_eq!(tag(&mmio, START), None);
        set_bar(&root, 1, START);
        root.write_config(1, COMMAND, &MEMORY);
        assert_eq!(device.take_moves(), [(0, Some(START))]);
    }

    #[test]
    fn removal_lets_go_of_device_and_place() {
        let (mmio, root) = root();
        let device = Device::new(1);
        root.add(None, device.clone()).unwrap();
        root.add(None, Device::new(2)).unwrap();
        root.write_config(1, COMMAND, &MEMORY);
        drop(root.remove(1).unwrap());
        assert_eq!(Arc::strong_count(&device), 1);
        assert_eq!(device.take_moves(), [(0, Some(START)), (0, None)]);
        assert_eq!(tag(&mmio, START), None);
        let mut word = [0; 2];
        root.read_config(1, 0, &mut word);
        assert_eq!(word, [0xff; 2]);

        root.add(Some(9), Device::new(9)).unwrap();
        root.write_config(9, COMMAND, &MEMORY);
        assert_eq!(tag(&mmio, START), Some(9), "the place is used again");
    }

    #[test]
    fn no_room_is_an_error_that_leaves_nothing() {
        let (_, root) = root();
        let large = Device::with_bars(1, &[(0, 1 << 28), (2, 1 << 28)]);
        assert_eq!(root.add(None, large), Ok(1));
        let error = PciError::NoRoom {
            bar: 0,
            size: BAR_SIZE,
            start: START,
            end: 0xe000_0000,
        };
        assert_eq!(root.add(None, Device::new(2)), Err(error));
        assert!(root.device(2).is_none());
        root.remove(1).unwrap();
        assert_eq!(root.add(None, Device::new(2)), Ok(1));
    }

    #[test]
    fn first_fit_fills_gaps_and_survives_any_address() {
        let window = 0x1000..0x10_0000;
        let fit = |taken: &[(u64, u64)], size| first_fit(&mut taken.to_vec(), &window, size);
        assert_eq!(fit(&[], 0x4000), Some(0x4000));
        assert_eq!(fit(&[], 16), Some(0x1000));
        assert_eq!(fit(&[(0x1000, 16)], 16), Some(0x2000));
        assert_eq!(
            fit(&[(0x9000, 0x1000), (0x4000, 0x4000)], 0x4000),
            Some(0xc000)
        );
        assert_eq!(
            fit(&[(0xc000, 0x4000), (0x4000, 0x4000)], 0x4000),
            Some(0x8000)
        );
        assert_eq!(fit(&[(0, u64::MAX)], 16), None);
        assert_eq!(fit(&[(u64::MAX - 5, 16), (0, 16)], 16), Some(0x1000));
        assert_eq!(fit(&[], 0x10_0000), None);
        assert_eq!(fit(&[], 1 << 63), None);
        assert_eq!(first_fit(&mut [], &(0..0), 16), None);
    }

    /// One vCPU moves a BAR while others use it; the device takes a lock in each of its methods.
    #[test]
    fn moves_and_accesses_in_flight_do_not_deadlock() {
        let (done, finished) = mpsc::channel();
        let worker = thread::spawn(move || {
            let (mmio, root) = root();
            for tag in 1..=2 {
                let slot = root.add(None, Device::new(tag)).unwrap();
                root.write_config(slot, COMMAND, &MEMORY);
            }
            thread::scope(|scope| {
                for slot in 1..=2 {
                    let root = &root;
                    scope.spawn(move || {
                        for round in 0..2_000 {
                            set_bar(root, slot, START + round % 3 * BAR_SIZE);
                        }
                    });
                }
                scope.spawn(|| {
                    for round in 0..20_000 {
                        let address = START + round % 3 * BAR_SIZE;
                        mmio.write(address, &[0; 4]);
                        assert!(matches!(tag(&mmio, address), None | Some(1 | 2)));
                    }
                });
            });
            done.send(()).unwrap();
        });
        finished.recv_timeout(Duration::from_secs(60)).unwrap();
        worker.join().unwrap();
    }
}
