//! The initial RAM disk.

use std::ops::Range;
use std::path::Path;

use vm_memory::GuestMemoryMmap;

use crate::error::InitrdError;
use crate::file::Image;
use crate::layout::PAGE_SIZE;

/// Copies the initrd to the highest page-aligned place within `room` and
/// returns the range it fills.
pub(crate) fn load(
    ram: &GuestMemoryMmap,
    path: &Path,
    room: &Range<u64>,
) -> Result<Range<u64>, InitrdError> {
    let mut image = Image::open(path)?;
    let length = image.length();
    let lowest = room.start.next_multiple_of(PAGE_SIZE);
    let start = room
        .end
        .checked_sub(length)
        .map(|start| start - start % PAGE_SIZE)
        .filter(|&start| start >= lowest)
        .ok_or(InitrdError::TooBig {
            length,
            room: room.end.saturating_sub(lowest),
        })?;
    image.copy_to(ram, start, 0, length)?;
    Ok(start..start + length)
}
