//! Data buffers in scattered pages, the PRPs that describe them, and patterns to know them by.

use super::command::Command;
use crate::check::{Outcome, ensure};
use crate::memory::{self, Dma, PAGE};
use crate::random::mix;

/// Fills memory that nobody may write.
pub const CANARY: u8 = 0xc5;

/// Bytes of a list page, less the slot that links to the next one.
const LAST_SLOT: u64 = PAGE - 8;

/// A data buffer whose pages lie in memory in reverse order, so that no two of them join.
pub struct Buffer {
    pages: Dma,
    lists: Dma,
    /// Where the data starts in the first page, a multiple of 4.
    pub offset: u64,
    /// Bytes of data, a multiple of 4.
    pub len: u64,
    /// Where the PRP list starts in its first page, a multiple of 8.
    pub list_offset: u64,
}

impl Buffer {
    /// A buffer for up to `capacity` bytes at any offset, for now all of it from offset 0.
    pub fn new(capacity: u64) -> Self {
        let pages = memory::allocate(capacity + PAGE);
        // Two pages more than needed: the list may start at the end of its first page.
        let lists = memory::allocate((pages.len() / PAGE / 511 + 3) * PAGE);
        Self {
            pages,
            lists,
            offset: 0,
            len: capacity,
            list_offset: 0,
        }
    }

    /// The same memory for another shape.
    pub fn shape(&mut self, offset: u64, len: u64, list_offset: u64) {
        assert!(offset < PAGE && offset + len <= self.pages.len());
        self.offset = offset;
        self.len = len;
        self.list_offset = list_offset;
    }

    /// How many pages the data touches.
    fn touched(&self) -> u64 {
        (self.offset + self.len).div_ceil(PAGE)
    }

    /// Physical address of page `index` of the data.
    fn page(&self, index: u64) -> u64 {
        self.pages.address(self.pages.len() - (index + 1) * PAGE)
    }

    /// Offset in `pages` of byte `at` of the data.
    fn place(&self, at: u64) -> u64 {
        let at = at + self.offset;
        self.pages.len() - (at / PAGE + 1) * PAGE + at % PAGE
    }

    /// Physical address of byte `at` of the data.
    pub fn address(&self, at: u64) -> u64 {
        self.pages.address(self.place(at))
    }

    /// Adds PRP entries for the data to a command, building a list where one is needed.
    pub fn attach(&self, command: Command) -> Command {
        let first = self.page(0) + self.offset;
        match self.touched() {
            1 => command.prp(first, 0),
            2 => command.prp(first, self.page(1)),
            _ => command.prp(first, self.build_list()),
        }
    }

    /// Writes the PRP list, list pages in reverse order, and returns where it starts.
    fn build_list(&self) -> u64 {
        let list_pages = self.lists.len() / PAGE;
        let list_base = |index: u64| (list_pages - 1 - index) * PAGE;
        let (mut list, mut slot) = (0, self.list_offset);
        for index in 1..self.touched() {
            if slot == LAST_SLOT && index + 1 < self.touched() {
                let next = self.lists.address(list_base(list + 1));
                self.lists.write64(list_base(list) + slot, next);
                list += 1;
                slot = 0;
            }
            self.lists.write64(list_base(list) + slot, self.page(index));
            slot += 8;
        }
        self.lists.address(list_base(0) + self.list_offset)
    }

    /// Fills all pages, the parts outside of the data too, with the canary.
    pub fn clear(&self) {
        self.pages.fill(0, self.pages.len(), CANARY);
    }

    /// Fills the data with the pattern that `seed` makes for the bytes from `position` on.
    pub fn write_pattern(&self, seed: u64, position: u64) {
        for at in (0..self.len).step_by(4) {
            self.pages
                .write32(self.place(at), word(seed, position + at));
        }
    }

    /// Checks that the data is what [`Buffer::write_pattern`] makes.
    ///
    /// # Errors
    /// The first word that differs.
    pub fn check_pattern(&self, seed: u64, position: u64) -> Outcome {
        for at in (0..self.len).step_by(4) {
            let (found, wanted) = (self.pages.read32(self.place(at)), word(seed, position + at));
            ensure!(
                found == wanted,
                "byte {at:#x} of {:#x} at offset {:#x}: {found:#010x}, not {wanted:#010x}",
                self.len,
                self.offset
            );
        }
        Ok(())
    }

    /// Checks that all data bytes are `byte`.
    ///
    /// # Errors
    /// The first word that differs.
    pub fn check_bytes(&self, byte: u8) -> Outcome {
        let wanted = u32::from_ne_bytes([byte; 4]);
        for at in (0..self.len).step_by(4) {
            let found = self.pages.read32(self.place(at));
            ensure!(
                found == wanted,
                "byte {at:#x}: {found:#010x}, not {wanted:#010x}"
            );
        }
        Ok(())
    }

    /// Checks that the bytes around the data, in pages that [`Buffer::clear`] filled, are untouched.
    ///
    /// # Errors
    /// Where something was written.
    pub fn check_surroundings(&self) -> Outcome {
        let end = self.offset + self.len;
        let first = self.place(0) - self.offset;
        ensure!(
            self.pages.find_other(first, self.offset, CANARY).is_none(),
            "bytes before the buffer (offset {:#x}) were overwritten",
            self.offset
        );
        if !end.is_multiple_of(PAGE) {
            let last = self.pages.len() - (end / PAGE + 1) * PAGE;
            let tail = self
                .pages
                .find_other(last + end % PAGE, PAGE - end % PAGE, CANARY);
            ensure!(
                tail.is_none(),
                "bytes behind the buffer ({:#x} at {:#x}) were overwritten",
                self.len,
                self.offset
            );
        }
        let beyond = self.pages.len() - self.touched() * PAGE;
        ensure!(
            self.pages.find_other(0, beyond, CANARY).is_none(),
            "pages behind the buffer were overwritten"
        );
        Ok(())
    }
}

fn word(seed: u64, position: u64) -> u32 {
    mix(seed ^ position) as u32
}
