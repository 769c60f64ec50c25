//! Port and memory-mapped I/O dispatch.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

/// A device that answers guest accesses in a window of a bus.
///
/// Methods take `&self`: two vCPUs may be inside the same device, which locks what it must.
pub trait BusDevice: Send + Sync {
    /// Fills `data` (1 to 8 bytes) with what the guest reads at `offset` bytes into the window.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes the bytes that the guest wrote at `offset` bytes into the window.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a window cannot be put on a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The window has no bytes.
    #[error("the window at {base:#x} is empty, it needs at least one byte")]
    Empty {
        /// First address asked for.
        base: u64,
    },
    /// The window reaches past the last address.
    #[error("the window at {base:#x} of {len:#x} bytes ends beyond the 64-bit address space")]
    WrapsAround {
        /// First address asked for.
        base: u64,
        /// Length asked for in bytes.
        len: u64,
    },
    /// Another window holds some of the addresses.
    #[error(
        "the window at {base:#x} of {len:#x} bytes overlaps the one from {taken_base:#x} to \
         {taken_last:#x}"
    )]
    Overlap {
        /// First address asked for.
        base: u64,
        /// Length asked for in bytes.
        len: u64,
        /// First address of the window in the way.
        taken_base: u64,
        /// Last address of the window in the way.
        taken_last: u64,
    },
}

/// One device's place. `last` instead of a length or an end, so that no sum can overflow.
#[derive(Clone)]
struct Window {
    base: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// Windows of addresses, each answered by a device. The machine has two: port I/O and MMIO.
///
/// Accesses take no lock: they search an immutable snapshot, which changes replace. Hence a device
/// can still be asked by accesses that began before [`Bus::remove`] returned, and the last of them
/// may drop the bus's reference to it. A device may change the bus from within an access.
#[derive(Default)]
pub struct Bus {
    /// Sorted by base, without overlaps.
    windows: ArcSwap<Vec<Window>>,
    /// Held while a new snapshot replaces the old one; innermost of all locks.
    change: Mutex<()>,
}

impl Bus {
    /// A bus on which nothing answers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `device` answer the `len` addresses from `base` on.
    ///
    /// # Errors
    /// [`BusError`]: the window is empty, ends beyond 2^64 or overlaps another one.
    pub fn insert(&self, base: u64, len: u64, device: Arc<dyn BusDevice>) -> Result<(), BusError> {
        let extent = len.checked_sub(1).ok_or(BusError::Empty { base })?;
        let last = base
            .checked_add(extent)
            .ok_or(BusError::WrapsAround { base, len })?;
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut windows = Vec::clone(&self.windows.load());
        let position = windows.partition_point(|window| window.last < base);
        if let Some(taken) = windows.get(position).filter(|window| window.base <= last) {
            return Err(BusError::Overlap {
                base,
                len,
                taken_base: taken.base,
                taken_last: taken.last,
            });
        }
        windows.insert(position, Window { base, last, device });
        self.windows.store(Arc::new(windows));
        Ok(())
    }

    /// Takes away the window that starts at `base` and returns its device, if there is one.
    pub fn remove(&self, base: u64) -> Option<Arc<dyn BusDevice>> {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut windows = Vec::clone(&self.windows.load());
        let position = windows.binary_search_by_key(&base, |w| w.base).ok()?;
        let removed = windows.remove(position);
        self.windows.store(Arc::new(windows));
        Some(removed.device)
    }

    /// Reads `data.len()` bytes at `address`; returns whether a device answered.
    ///
    /// If none did, `data` holds all ones, as on hardware. An access that is not wholly inside of
    /// one window reaches no device.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let windows = self.windows.load();
        match find(&windows, address, data.len()) {
            Some((device, offset)) => {
                device.read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes `data` at `address`; returns whether a device took it.
    ///
    /// An access that is not wholly inside of one window reaches no device.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let windows = self.windows.load();
        match find(&windows, address, data.len()) {
            Some((device, offset)) => {
                device.write(offset, data);
                true
            }
            None => false,
        }
    }
}

/// The device whose window holds all `len` bytes at `address`, and the offset into the window.
///
/// Borrowed from the snapshot: a clone would have vCPUs contend on the reference count.
fn find(windows: &[Window], address: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
    let extent = u64::try_from(len).ok()?.checked_sub(1)?;
    let last = address.checked_add(extent)?;
    let window = windows.get(windows.partition_point(|window| window.last < address))?;
    (window.base <= address && last <= window.last)
        .then(|| (window.device.as_ref(), address - window.base))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Weak;

    /// Answers its tag plus the offset and records what was written.
    struct Tagged(u8, Mutex<Vec<(u64, Vec<u8>)>>);

    impl Tagged {
        fn new(tag: u8) -> Arc<Self> {
            Arc::new(Self(tag, Mutex::new(Vec::new())))
        }
    }

    impl BusDevice for Tagged {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0.wrapping_add(u8::try_from(offset).unwrap()));
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.1.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn finds_windows_and_their_edges() {
        let bus = Bus::new();
        let low = Tagged::new(0x10);
        bus.insert(0x100, 4, low.clone()).unwrap();
        bus.insert(0x104, 4, Tagged::new(0x20)).unwrap();
        bus.insert(u64::MAX, 1, Tagged::new(0x30)).unwrap();

        let mut byte = [0];
        for (address, value) in [(0x100, 0x10), (0x103, 0x13), (0x104, 0x20), (0x107, 0x23)] {
            assert!(bus.read(address, &mut byte), "{address:#x}");
            assert_eq!(byte, [value]);
        }
        assert!(bus.read(u64::MAX, &mut byte));
        assert_eq!(byte, [0x30]);
        for address in [0, 0xff, 0x108, u64::MAX - 1] {
            assert!(!bus.read(address, &mut byte), "{address:#x}");
            assert_eq!(byte, [0xff]);
            assert!(!bus.write(address, &[1]));
        }
        assert!(bus.write(0x102, &[7, 8]));
        assert_eq!(*low.1.lock().unwrap(), [(2, vec![7, 8])]);
    }

    #[test]
    fn accesses_across_an_edge_reach_nobody() {
        let bus = Bus::new();
        let device = Tagged::new(1);
        bus.insert(0x100, 4, device.clone()).unwrap();
        bus.insert(0x104, 4, device.clone()).unwrap();
        bus.insert(u64::MAX - 1, 2, device.clone()).unwrap();
        for address in [0xff, 0x103, 0x107, u64::MAX] {
            let mut data = [0; 2];
            assert!(!bus.read(address, &mut data), "{address:#x}");
            assert_eq!(data, [0xff; 2]);
            assert!(!bus.write(address, &data));
        }
        assert!(!bus.read(0x100, &mut []));
        assert!(device.1.lock().unwrap().is_empty());
    }

    #[test]
    fn refuses_overlap_wrap_around_and_nothing() {
        let bus = Bus::new();
        bus.insert(0x1000, 0x1000, Tagged::new(0)).unwrap();
        for (base, len) in [
            (0x1000, 0x1000),
            (0xfff, 2),
            (0x1fff, 1),
            (0x1800, 0x10),
            (0, u64::MAX),
        ] {
            assert_eq!(
                bus.insert(base, len, Tagged::new(1)),
                Err(BusError::Overlap {
                    base,
                    len,
                    taken_base: 0x1000,
                    taken_last: 0x1fff
                })
            );
        }
        let base = u64::MAX - 3;
        assert_eq!(
            bus.insert(base, 5, Tagged::new(1)),
            Err(BusError::WrapsAround { base, len: 5 })
        );
        assert_eq!(
            bus.insert(5, 0, Tagged::new(1)),
            Err(BusError::Empty { base: 5 })
        );
        bus.insert(0xfff, 1, Tagged::new(2)).unwrap();
        bus.insert(0x2000, 1, Tagged::new(3)).unwrap();
    }

    #[test]
    fn removal_frees_the_place_and_the_device() {
        let bus = Bus::new();
        let device = Tagged::new(9);
        bus.insert(0x10, 0x10, device.clone()).unwrap();
        assert!(bus.remove(0x11).is_none());
        assert!(bus.remove(0x10).is_some());
        assert!(bus.remove(0x10).is_none());
        assert_eq!(Arc::strong_count(&device), 1);
        assert!(!bus.write(0x10, &[0]));
        bus.insert(0x18, 0x10, device).unwrap();
    }

    /// Moves itself from within an access.
    struct Mover(Weak<Bus>, Weak<Mover>);

    impl BusDevice for Mover {
        fn read(&self, _offset: u64, _data: &mut [u8]) {}

        fn write(&self, _offset: u64, data: &[u8]) {
            let bus = self.0.upgrade().unwrap();
            let removed = bus.remove(u64::from(data[0])).unwrap();
            drop(removed);
            let me = self.1.upgrade().unwrap();
            bus.insert(u64::from(data[1]), 2, me).unwrap();
        }
    }

    #[test]
    fn a_device_can_move_itself_while_others_read() {
        let bus = Arc::new(Bus::new());
        let mover = Arc::new_cyclic(|me| Mover(Arc::downgrade(&bus), me.clone()));
        bus.insert(0x10, 2, mover).unwrap();
        bus.insert(100, 1, Tagged::new(5)).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..500 {
                    assert!(bus.write(0x10, &[0x10, 0x20]));
                    assert!(bus.write(0x20, &[0x20, 0x10]));
                }
            });
            while !writer.is_finished() {
                let mut byte = [0];
                assert!(bus.read(100, &mut byte));
                assert_eq!(byte, [5]);
            }
        });
    }
}
