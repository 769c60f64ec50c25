//! The rings of an engine: one whose completions interrupt, and one, where an image is on a device
//! that has queues for it, whose completions are looked for.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use super::files::Name;
use super::memory::FixedMemory;
use super::ring::Ring;
use super::slab::{Lane, Slab};
use super::{EngineStats, LockError};
use crate::ram::GuestRam;
use crate::storage::Completion;

pub(super) struct Rings {
    main: Ring,
    polling: Option<Ring>,
}

impl Rings {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            main: Ring::new(Lane::Interrupts)?,
            polling: None,
        })
    }

    /// Registers all memory of a guest; how many bytes.
    pub fn register_memory(&mut self, ram: &GuestRam) -> Result<usize, LockError> {
        let bytes = FixedMemory::of(ram).bytes();
        match self.main.register_memory(ram) {
            Ok(()) => Ok(bytes),
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                Err(LockError::Limit { bytes })
            }
            Err(error) => Err(LockError::Host(error)),
        }
    }

    /// Takes an image in that was added to [`Slab::files`].
    pub fn adopt(&mut self, slab: &mut Slab, index: u32, ram: &GuestRam) {
        let image = slab.files.image(index);
        let fd = image.as_raw_fd();
        let polls = image.can_be_polled() && self.make_polling(ram);
        let polling = self.polling.as_ref().filter(|_| polls);
        if self.main.register_file(index, fd) {
            if polling.is_none_or(|ring| ring.register_file(index, fd)) {
                slab.files.set_registered(index);
            } else {
                // An image goes by one name on both rings; this one would keep it open.
                self.main.unregister_file(index);
            }
        }
        slab.files.set_polls(index, polls);
    }

    /// Makes the ring that polls, if there is none; whether there is one.
    fn make_polling(&mut self, ram: &GuestRam) -> bool {
        if self.polling.is_none() {
            self.polling = Ring::new(Lane::Polling)
                .and_then(|mut ring| {
                    if !self.main.memory().is_empty() {
                        ring.register_memory(ram)?;
                    }
                    Ok(ring)
                })
                .inspect_err(|error| tracing::warn!("I/O cannot be polled: {error}"))
                .ok();
        }
        self.polling.is_some()
    }

    /// Lets go of an image that no request is on.
    pub fn let_go(&self, index: u32, name: Name) {
        if name == Name::Registered {
            let polling = self.polling.iter();
            std::iter::once(&self.main)
                .chain(polling)
                .for_each(|ring| ring.unregister_file(index));
        }
    }

    /// Submits all that is queued; `false` if the kernel could not take it now.
    pub fn submit(&mut self, slab: &mut Slab, stats: &EngineStats) -> bool {
        let polling = self.polling.as_mut();
        let polled = polling.is_none_or(|ring| ring.submit(slab, stats));
        self.main.submit(slab, stats) && polled
    }

    /// Takes completions out of the rings; `true` if some requests are queued again.
    pub fn reap(
        &mut self,
        slab: &mut Slab,
        out: &mut Vec<Completion>,
        stats: &EngineStats,
    ) -> bool {
        let before = out.len();
        let again = match &mut self.polling {
            Some(ring) => ring.reap(slab, out, stats),
            None => false,
        };
        EngineStats::add(&stats.iopolled, out.len() - before);
        self.main.reap(slab, out, stats) || again
    }

    /// Cancels everything and waits for it; `false` if some of it did not end within `limit`.
    pub fn stop(&mut self, slab: &mut Slab, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        slab.cancel_all();
        let stats = EngineStats::default();
        let mut ended = Vec::new();
        loop {
            self.submit(slab, &stats);
            self.reap(slab, &mut ended, &stats);
            if slab.used() == 0 {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            if slab.polling() == 0 {
                self.main.wait(left);
            }
        }
    }
}

impl AsRawFd for Rings {
    /// Readable while the ring that interrupts has completions.
    fn as_raw_fd(&self) -> RawFd {
        self.main.as_raw_fd()
    }
}
