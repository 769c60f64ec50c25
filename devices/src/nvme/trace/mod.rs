//! Commands as they are fetched and completed, for whoever wants to read them.
//!
//! Each I/O thread, and each controller's admin queue, has a `Recorder`: the writing end of a ring
//! of its own, which takes records of fixed size without a lock, an allocation or a wait. One
//! [`TraceReader`] reads all rings in order of time. A ring that is full loses records; their number
//! is told where they are missing.
//!
//! Tracing costs nothing but a look whether it is on while it is off. It is turned on and off by
//! messages to the I/O threads, so a machine can do that while it runs: commands that were fetched
//! before have no records.

pub(super) mod probes;
mod reader;
mod record;
mod recorder;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rtrb::RingBuffer;
use vmm_sys_util::eventfd::EventFd;

use reader::Lane;
pub use reader::{TraceReader, Traced};
pub use record::{Record, TraceEvent, TracedCommand};
use recorder::Counts;
pub(super) use recorder::{Open, Place, Recorder};

/// Records that an I/O thread's ring holds, at most: 4 MiB.
pub(super) const IO_RECORDS: usize = 1 << 16;
/// Records that an admin queue's ring holds.
pub(super) const ADMIN_RECORDS: usize = 1 << 10;
/// Records that a ring holds at least, however many rings there are.
const FEWEST_RECORDS: usize = 1 << 10;
/// Records that all rings together hold, 64 MiB, but for those of [`FEWEST_RECORDS`].
const ALL_RECORDS: usize = 1 << 20;

/// A controller whose commands are traced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedController {
    /// Name in the device tree.
    pub id: String,
    /// Identifier in its subsystem.
    pub cntlid: u16,
    /// Name of its subsystem.
    pub subsystem: String,
}

#[derive(Debug)]
struct Rings {
    /// Those that the reader has not seen yet.
    new: Vec<Lane>,
    /// Records that new rings may hold.
    free: usize,
    /// Whether somebody reads.
    read: bool,
}

/// A trace that is being recorded.
#[derive(Debug)]
pub struct Tracer {
    start: Instant,
    // Ends the reader's wait.
    wake: Arc<EventFd>,
    rings: Mutex<Rings>,
    // By their numbers.
    controllers: Mutex<BTreeMap<u32, TracedController>>,
}

impl Tracer {
    /// Begins a trace: its time is 0 now.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn begin() -> io::Result<(Arc<Self>, TraceReader)> {
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let tracer = Arc::new(Self {
            start: Instant::now(),
            wake: Arc::new(wake),
            rings: Mutex::new(Rings {
                new: Vec::new(),
                free: ALL_RECORDS,
                read: true,
            }),
            controllers: Mutex::default(),
        });
        let reader = TraceReader::new(&tracer);
        Ok((tracer, reader))
    }

    /// Nanoseconds since the trace began.
    pub fn now(&self) -> u64 {
        recorder::nanoseconds(self.start)
    }

    /// Ends the reader's wait.
    pub fn wake(&self) {
        // It fails only at 2^64 - 1 unread writes.
        let _ = self.wake.write(1);
    }

    /// The controller with this number in records.
    pub fn controller(&self, number: u32) -> Option<TracedController> {
        self.lock_controllers().get(&number).cloned()
    }

    /// Tells who has a number. It stays told: the controller's last records are read behind its end.
    pub fn add_controller(&self, number: u32, controller: TracedController) {
        self.lock_controllers().insert(number, controller);
    }

    /// A recorder for one thread, whose ring holds at most `records`; none if nobody reads any more.
    pub(super) fn recorder(&self, records: usize) -> Option<Recorder> {
        let mut rings = self.lock_rings();
        if !rings.read {
            return None;
        }
        let records = records.min(rings.free / 4).max(FEWEST_RECORDS);
        rings.free = rings.free.saturating_sub(records);
        let (producer, consumer) = RingBuffer::new(records);
        let counts = Arc::<Counts>::default();
        rings.new.push(Lane::new(consumer, Arc::clone(&counts)));
        let wake = Arc::clone(&self.wake);
        Some(Recorder::new(producer, counts, self.start, wake))
    }

    /// How many recorders there are.
    #[cfg(test)]
    pub(super) fn recorders(&self) -> usize {
        Arc::strong_count(&self.wake) - 1
    }

    /// Nobody reads any more.
    fn end(&self) {
        let unread = {
            let mut rings = self.lock_rings();
            rings.read = false;
            std::mem::take(&mut rings.new)
        };
        drop(unread);
    }

    fn new_lanes(&self) -> Vec<Lane> {
        std::mem::take(&mut self.lock_rings().new)
    }

    fn give_back(&self, records: usize) {
        let mut rings = self.lock_rings();
        rings.free = (rings.free + records).min(ALL_RECORDS);
    }

    fn lock_rings(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_controllers(&self) -> MutexGuard<'_, BTreeMap<u32, TracedController>> {
        self.controllers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
