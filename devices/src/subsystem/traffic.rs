//! What was read from and written to a namespace.
//!
//! Each queue's owner counts for itself, with no atomic that another one writes. Counts outlive the
//! queues, the attachments and the controllers that they come from.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::counter::Counter;

/// Read and Write commands on a namespace so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Read commands.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// Bytes that Read commands asked for.
    pub read_bytes: u64,
    /// Bytes that Write commands brought.
    pub written_bytes: u64,
}

impl Traffic {
    fn add(&mut self, other: Self) {
        self.reads = self.reads.wrapping_add(other.reads);
        self.writes = self.writes.wrapping_add(other.writes);
        self.read_bytes = self.read_bytes.wrapping_add(other.read_bytes);
        self.written_bytes = self.written_bytes.wrapping_add(other.written_bytes);
    }
}

/// All counts of one namespace.
#[derive(Debug, Default)]
pub(super) struct Meter(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    live: Vec<Arc<Cell>>,
    // Of those that are gone.
    ended: Traffic,
}

impl Meter {
    /// One more that counts.
    pub fn counter(&self) -> TrafficCounter {
        let cell = Arc::<Cell>::default();
        lock(&self.0).live.push(Arc::clone(&cell));
        TrafficCounter {
            cell,
            meter: Arc::clone(&self.0),
        }
    }

    /// All together.
    pub fn total(&self) -> Traffic {
        let counts = lock(&self.0);
        let mut total = counts.ended;
        counts.live.iter().for_each(|cell| total.add(cell.get()));
        total
    }
}

#[derive(Debug, Default)]
struct Cell {
    reads: Counter,
    writes: Counter,
    read_bytes: Counter,
    written_bytes: Counter,
}

impl Cell {
    fn get(&self) -> Traffic {
        Traffic {
            reads: self.reads.get(),
            writes: self.writes.get(),
            read_bytes: self.read_bytes.get(),
            written_bytes: self.written_bytes.get(),
        }
    }
}

/// Counts a namespace's commands for one thread. It does not keep the namespace open; its counts stay when
/// it goes.
#[derive(Debug)]
pub struct TrafficCounter {
    cell: Arc<Cell>,
    meter: Arc<Mutex<Counts>>,
}

impl TrafficCounter {
    /// A read of this many bytes.
    pub fn read(&self, bytes: u64) {
        self.cell.reads.add(1);
        self.cell.read_bytes.add(bytes);
    }

    /// A write of this many bytes.
    pub fn write(&self, bytes: u64) {
        self.cell.writes.add(1);
        self.cell.written_bytes.add(bytes);
    }
}

impl Drop for TrafficCounter {
    fn drop(&mut self) {
        let mut counts = lock(&self.meter);
        counts.live.retain(|live| !Arc::ptr_eq(live, &self.cell));
        counts.ended.add(self.cell.get());
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_stay_when_those_who_counted_go() {
        let meter = Meter::default();
        let (first, second) = (meter.counter(), meter.counter());
        first.read(4096);
        second.read(512);
        second.write(1024);
        let all = Traffic {
            reads: 2,
            writes: 1,
            read_bytes: 4608,
            written_bytes: 1024,
        };
        assert_eq!(meter.total(), all);
        drop(first);
        assert_eq!(meter.total(), all);
        drop(second);
        assert_eq!(meter.total(), all);
        assert!(lock(&meter.0).live.is_empty());
    }
}
