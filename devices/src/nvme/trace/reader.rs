//! The end of all rings that the trace is read from.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use rtrb::Consumer;

use super::Tracer;
use super::record::Record;
use super::recorder::Counts;

/// What is read from a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traced {
    /// A record.
    Record(Record),
    /// So many records, at least one, of one recorder are missing here.
    Lost(u32),
}

/// A recorder's ring as the reader has it.
#[derive(Debug)]
pub(super) struct Lane {
    pub ring: Consumer<Record>,
    pub counts: Arc<Counts>,
    /// Records that are still to be read in this round.
    due: usize,
    /// Losses that the reader was told of.
    told: u64,
}

impl Lane {
    pub fn new(ring: Consumer<Record>, counts: Arc<Counts>) -> Self {
        Self {
            ring,
            counts,
            due: 0,
            told: 0,
        }
    }

    /// Losses behind the last record.
    fn take_untold(&mut self) -> Option<Traced> {
        let lost = self.counts.lost.get();
        let untold = lost.saturating_sub(self.told);
        self.told = lost;
        (untold > 0).then(|| Traced::Lost(u32::try_from(untold).unwrap_or(u32::MAX)))
    }
}

/// Reads a trace. There is one of it; with it the recorders' rings end.
#[derive(Debug)]
pub struct TraceReader {
    tracer: Arc<Tracer>,
    lanes: Vec<Lane>,
}

impl Drop for TraceReader {
    fn drop(&mut self) {
        self.tracer.end();
    }
}

impl TraceReader {
    pub(super) fn new(tracer: &Arc<Tracer>) -> Self {
        Self {
            tracer: Arc::clone(tracer),
            lanes: Vec::new(),
        }
    }

    /// Waits until a ring fills, [`Tracer::wake`] is called, or `limit` has passed.
    pub fn wait(&self, limit: Duration) {
        let mut poll = libc::pollfd {
            fd: self.tracer.wake.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one valid pollfd. An error is a wake-up too early, which the caller can take.
        unsafe { libc::poll(&raw mut poll, 1, limit) };
        // Nothing to read means that the time is up.
        let _ = self.tracer.wake.read();
    }

    /// Reads what was recorded until now, in order of time, and returns how many records that were. What
    /// is recorded meanwhile is left for the next call, whichever ring it is in: a queue that moves from
    /// one recorder to another stays in order.
    ///
    /// # Errors
    /// Those of `take`; the rest is left for the next call.
    pub fn read(&mut self, mut take: impl FnMut(Traced) -> io::Result<()>) -> io::Result<usize> {
        // Looked at before the rings: what happened before one of its records is in them by now.
        let until = self.tracer.now();
        self.lanes.append(&mut self.tracer.new_lanes());
        let mut count = 0;
        for lane in &mut self.lanes {
            lane.due = lane.ring.slots();
        }
        while let Some(record) = self.next(until, &mut take)? {
            count += 1;
            take(Traced::Record(record))?;
        }
        self.remove_ended(&mut take)?;
        Ok(count)
    }

    /// The oldest record that is due and not behind `until`.
    fn next(
        &mut self,
        until: u64,
        take: &mut impl FnMut(Traced) -> io::Result<()>,
    ) -> io::Result<Option<Record>> {
        let oldest = |lane: &&mut Lane| lane.ring.peek().map_or(u64::MAX, |record| record.time);
        let due = self.lanes.iter_mut().filter(|lane| lane.due > 0);
        let Some(lane) = due.min_by_key(oldest) else {
            return Ok(None);
        };
        if oldest(&lane) > until {
            return Ok(None);
        }
        lane.due -= 1;
        let Ok(record) = lane.ring.pop() else {
            return Ok(None);
        };
        if record.lost_before > 0 {
            lane.told += u64::from(record.lost_before);
            take(Traced::Lost(record.lost_before))?;
        }
        Ok(Some(record))
    }

    /// Lets go of the rings whose recorders are gone.
    fn remove_ended(&mut self, take: &mut impl FnMut(Traced) -> io::Result<()>) -> io::Result<()> {
        let ended = |lane: &mut Lane| lane.ring.is_abandoned() && lane.ring.is_empty();
        for mut lane in self.lanes.extract_if(.., ended) {
            self.tracer.give_back(lane.ring.buffer().capacity());
            if let Some(lost) = lane.take_untold() {
                take(lost)?;
            }
        }
        Ok(())
    }

    /// Whether there is no recorder.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Reads for the last time: what [`TraceReader::read`] does, and the losses behind each recorder's
    /// last record.
    ///
    /// # Errors
    /// Those of `take`.
    pub fn finish(mut self, mut take: impl FnMut(Traced) -> io::Result<()>) -> io::Result<()> {
        self.read(&mut take)?;
        for lane in &mut self.lanes {
            if let Some(lost) = lane.take_untold() {
                take(lost)?;
            }
        }
        Ok(())
    }
}
