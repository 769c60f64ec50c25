//! Guest memory that is registered with a ring: the kernel has looked its pages up once for all
//! requests, and keeps them in memory.

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::ram::GuestRam;

/// Longest buffer that can be registered.
const MAX: usize = 1 << 30;

/// The registered buffers, by index; none unless asked for. Sorted by address.
#[derive(Debug, Default)]
pub(in crate::storage) struct FixedMemory(Vec<Range>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: usize,
    end: usize,
}

impl FixedMemory {
    /// All RAM of a guest, to be registered.
    pub fn of(ram: &GuestRam) -> Self {
        let mut ranges = Vec::new();
        for region in ram.memory().iter() {
            let Ok(start) = region.get_host_address(vm_memory::MemoryRegionAddress(0)) else {
                continue;
            };
            let start = start.addr();
            // It is mapped, so it fits.
            let end = start + usize::try_from(region.len()).unwrap_or(0);
            ranges.extend((start..end).step_by(MAX).map(|start| Range {
                start,
                end: end.min(start.saturating_add(MAX)),
            }));
        }
        ranges.sort_unstable_by_key(|range| range.start);
        Self(ranges)
    }

    /// As the kernel wants to have it.
    pub fn vectors(&self) -> Vec<libc::iovec> {
        let vector = |range: &Range| libc::iovec {
            iov_base: std::ptr::with_exposed_provenance_mut(range.start),
            iov_len: range.end - range.start,
        };
        self.0.iter().map(vector).collect()
    }

    /// Whether nothing is registered.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// The buffer that `len` bytes at `address` are inside.
    pub fn find(&self, address: usize, len: usize) -> Option<u16> {
        let after = self.0.partition_point(|range| range.start <= address);
        let index = after.checked_sub(1)?;
        let end = address.checked_add(len)?;
        (end <= self.0[index].end)
            .then(|| u16::try_from(index).ok())
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    #[test]
    fn large_regions_are_split_and_found_again() {
        let regions = [
            (GuestAddress(0), MAX + 0x5000),
            (GuestAddress(4 << 30), 0x3000),
        ];
        let ram = GuestRam::new(GuestMemoryMmap::from_ranges(&regions).unwrap());
        let memory = FixedMemory::of(&ram);
        assert_eq!(memory.bytes(), MAX + 0x8000);
        let vectors = memory.vectors();
        assert_eq!(vectors.len(), 3);
        let buffer = |address, len| {
            let at = ram.slice(address, len).unwrap().as_ptr().addr();
            let index = memory.find(at, len)?;
            let vector = vectors[usize::from(index)];
            let start = vector.iov_base.addr();
            assert!(start <= at && at + len <= start + vector.iov_len);
            Some(index)
        };
        let (first, second) = (buffer(0, MAX), buffer(MAX as u64, 0x5000));
        assert!(first.is_some() && second.is_some() && first != second);
        assert_eq!(buffer(MAX as u64 - 1, 1), first);
        assert_eq!(buffer(MAX as u64 - 1, 2), None, "across two buffers");
        let third = buffer(4 << 30, 0x3000);
        assert!(third.is_some() && third != first && third != second);
        for (at, len) in [
            (0, 1),
            (usize::MAX, 1),
            (vectors[0].iov_base.addr(), usize::MAX),
        ] {
            assert_eq!(memory.find(at, len), None);
        }
        assert_eq!(
            FixedMemory::default().find(vectors[0].iov_base.addr(), 1),
            None
        );
    }
}
