//! The images that an engine has used.
//!
//! A request counts against its image here, with no atomic operation and no clone of the image. An
//! image stays until its backend is gone and its last request has ended: then the engine lets go of
//! it, so that it closes.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use crate::storage::file::Image;
use crate::storage::io::Target;

/// Whose image it is still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A backend's, that may send requests.
    Backend,
    /// Nobody's but those of the requests in flight.
    Nobody,
}

/// How a ring names the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    /// By its place in the table of registered files, which is that in this one.
    Registered,
    /// By its file descriptor.
    Descriptor,
}

struct Entry {
    image: Arc<Image>,
    owner: Owner,
    in_flight: u32,
    name: Name,
    /// Whether its reads and writes go to the ring that polls.
    polls: bool,
}

/// The images, by index.
#[derive(Default)]
pub(super) struct Files {
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_number: HashMap<u64, u32>,
    /// What was looked up last: number and index.
    last: Option<(u64, u32)>,
    /// To be let go of.
    unused: Vec<u32>,
}

impl Files {
    /// The index of an image that was used before.
    pub fn find(&mut self, image: &Image) -> Option<u32> {
        let number = image.number();
        match self.last {
            Some((last, index)) if last == number => Some(index),
            _ => {
                let index = *self.by_number.get(&number)?;
                self.last = Some((number, index));
                Some(index)
            }
        }
    }

    /// Adds an image.
    pub fn insert(&mut self, image: Arc<Image>) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).expect("far fewer images than 2^32 are open")
        });
        self.by_number.insert(image.number(), index);
        self.entries[index as usize] = Some(Entry {
            image,
            owner: Owner::Backend,
            in_flight: 0,
            name: Name::Descriptor,
            polls: false,
        });
        index
    }

    /// The image at an index, one that [`Files::find`] returned and a request counts against.
    pub fn image(&self, index: u32) -> &Arc<Image> {
        &self.entry(index).image
    }

    /// How a ring names the image.
    pub fn target(&self, index: u32) -> Target {
        let entry = self.entry(index);
        match entry.name {
            Name::Registered => Target::Registered(index),
            Name::Descriptor => Target::Descriptor(entry.image.as_raw_fd()),
        }
    }

    /// Says that the rings know the image by its index.
    pub fn set_registered(&mut self, index: u32) {
        self.entry_mut(index).name = Name::Registered;
    }

    /// How many images the rings know by their index.
    pub fn registered(&self) -> usize {
        let known = |entry: &&Entry| entry.name == Name::Registered;
        self.entries.iter().flatten().filter(known).count()
    }

    /// Whether reads and writes go to the ring that polls.
    pub fn polls(&self, index: u32) -> bool {
        self.entry(index).polls
    }

    /// Sends reads and writes to the ring that polls, or no longer.
    pub fn set_polls(&mut self, index: u32, polls: bool) {
        self.entry_mut(index).polls = polls;
    }

    /// Counts a request.
    pub fn begin(&mut self, index: u32) {
        self.entry_mut(index).in_flight += 1;
    }

    /// A request ended.
    pub fn end(&mut self, index: u32) {
        let entry = self.entry_mut(index);
        entry.in_flight -= 1;
        if entry.in_flight == 0 && entry.owner == Owner::Nobody {
            self.unused.push(index);
        }
    }

    /// The backend of an image is gone.
    pub fn disown(&mut self, number: u64) {
        let Some(&index) = self.by_number.get(&number) else {
            return;
        };
        let entry = self.entry_mut(index);
        entry.owner = Owner::Nobody;
        if entry.in_flight == 0 {
            self.unused.push(index);
        }
    }

    /// An image to be let go of with [`Files::remove`], and how the rings name it.
    pub fn unused(&mut self) -> Option<(u32, Name)> {
        let index = self.unused.pop()?;
        Some((index, self.entry(index).name))
    }

    /// Takes an image out: it closes, unless another engine uses it.
    pub fn remove(&mut self, index: u32) {
        if let Some(entry) = self.entries[index as usize].take() {
            self.by_number.remove(&entry.image.number());
            self.last = None;
            self.free.push(index);
        }
    }

    fn entry(&self, index: u32) -> &Entry {
        let entry = self.entries[index as usize].as_ref();
        entry.expect("an image stays while it is in use")
    }

    fn entry_mut(&mut self, index: u32) -> &mut Entry {
        let entry = self.entries[index as usize].as_mut();
        entry.expect("an image stays while it is in use")
    }
}
