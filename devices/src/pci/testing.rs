//! What the tests of this folder share.

use std::io;
use std::sync::{Arc, Mutex};

use super::PciDevice;
use super::config::{ConfigEffects, ConfigSpace, Identity, MsixLayout};
use crate::interrupt::{MsiGroup, MsiMessage};

/// Pseudo-random numbers (xorshift64*), the same in each run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next().to_le_bytes()[7])
    }
}

/// What [`Group`] holds for a vector.
#[derive(Debug, Clone, Copy, Default)]
pub struct Vector {
    pub route: Option<MsiMessage>,
    /// Triggered without a route.
    pub held: bool,
}

#[derive(Default)]
pub struct GroupState {
    pub vectors: Vec<Vector>,
    /// What reached the guest.
    pub delivered: Vec<(u16, MsiMessage)>,
    /// Each call of `update`.
    pub updates: Vec<Vec<(u16, Option<MsiMessage>)>>,
    pub fail_updates: bool,
}

/// Behaves as irqfds do and records what happens.
pub struct Group {
    pub state: Mutex<GroupState>,
    /// Called for each delivery, as the guest's interrupt handler.
    on_delivery: Box<dyn Fn(u16) + Send + Sync>,
}

impl Group {
    pub fn new(vectors: u16) -> Arc<Self> {
        Self::with_handler(vectors, Box::new(|_| {}))
    }

    pub fn with_handler(vectors: u16, on_delivery: Box<dyn Fn(u16) + Send + Sync>) -> Arc<Self> {
        let state = GroupState {
            vectors: vec![Vector::default(); usize::from(vectors)],
            ..GroupState::default()
        };
        Arc::new(Self {
            state: Mutex::new(state),
            on_delivery,
        })
    }

    /// The vectors delivered since the last call.
    pub fn take_delivered(&self) -> Vec<u16> {
        let delivered = std::mem::take(&mut self.state.lock().unwrap().delivered);
        delivered.into_iter().map(|(vector, _)| vector).collect()
    }

    /// The batches since the last call.
    pub fn take_updates(&self) -> Vec<Vec<(u16, Option<MsiMessage>)>> {
        std::mem::take(&mut self.state.lock().unwrap().updates)
    }

    fn deliver(&self, state: &mut GroupState, vector: u16) {
        let slot = &mut state.vectors[usize::from(vector)];
        slot.held = slot.route.is_none();
        if let Some(message) = slot.route {
            state.delivered.push((vector, message));
            (self.on_delivery)(vector);
        }
    }
}

impl MsiGroup for Group {
    fn trigger(&self, vector: u16) {
        self.deliver(&mut self.state.lock().unwrap(), vector);
    }

    fn update(&self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.updates.push(changes.to_vec());
        if state.fail_updates {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        for &(vector, route) in changes {
            state.vectors[usize::from(vector)].route = route;
            if state.vectors[usize::from(vector)].held {
                self.deliver(&mut state, vector);
            }
        }
        Ok(())
    }

    fn discard(&self) {
        for vector in &mut self.state.lock().unwrap().vectors {
            vector.held = false;
        }
    }
}

pub const IDENTITY: Identity = Identity {
    vendor: 0x1234,
    device: 0x5678,
    subsystem_vendor: 0x9abc,
    subsystem: 0xdef0,
    revision: 3,
    class: 0x01_08_02,
};

/// As the NVMe controller has it.
pub const MSIX: MsixLayout = MsixLayout {
    vectors: 129,
    table_bar: 0,
    table_offset: 0x2000,
    pba_bar: 0,
    pba_offset: 0x3000,
};

/// Size of [`Device`]'s BAR 0.
pub const BAR_SIZE: u64 = 0x4000;

#[derive(Default)]
pub struct DeviceLog {
    pub moves: Vec<(u8, Option<u64>)>,
    pub effects: Vec<ConfigEffects>,
    pub last_write: Option<(u64, Vec<u8>)>,
}

/// An endpoint with one BAR that reads its tag.
pub struct Device {
    pub tag: u8,
    pub config: Mutex<ConfigSpace>,
    pub log: Mutex<DeviceLog>,
}

impl Device {
    pub fn new(tag: u8) -> Arc<Self> {
        Self::with_bars(tag, &[(0, BAR_SIZE)])
    }

    pub fn with_bars(tag: u8, bars: &[(u8, u64)]) -> Arc<Self> {
        Arc::new(Self {
            tag,
            config: Mutex::new(ConfigSpace::endpoint(&IDENTITY, bars, &MSIX)),
            log: Mutex::default(),
        })
    }

    /// The calls of `bar_moved` since the last call.
    pub fn take_moves(&self) -> Vec<(u8, Option<u64>)> {
        std::mem::take(&mut self.log.lock().unwrap().moves)
    }
}

impl PciDevice for Device {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.lock().unwrap().read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut config = self.config.lock().unwrap();
        let effects = config.write(offset, data);
        if effects.function_level_reset {
            config.reset();
        }
        if effects != ConfigEffects::default() {
            self.log.lock().unwrap().effects.push(effects);
        }
    }

    fn bar_window(&self, bar: u8) -> Option<(u64, u64)> {
        self.config.lock().unwrap().bar_window(bar)
    }

    fn bar_moved(&self, bar: u8, base: Option<u64>) {
        self.log.lock().unwrap().moves.push((bar, base));
    }

    fn read_bar(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        // Takes the lock that `bar_moved` takes, as a device with state would.
        let _log = self.log.lock().unwrap();
        data.fill(self.tag);
    }

    fn write_bar(&self, _bar: u8, offset: u64, data: &[u8]) {
        self.log.lock().unwrap().last_write = Some((offset, data.to_vec()));
    }
}
