//! The memory map that a kernel is told.

use crate::layout;

/// Kinds of memory. E820 and PVH use the same numbers (ACPI 6.5, table 15.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Free for the guest.
    Ram = 1,
    /// Not to be used as RAM.
    Reserved = 2,
}

/// One entry of the map; addresses in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) kind: Kind,
}

/// The map of a machine with `memory` bytes of RAM, lowest address first.
/// `memory` is more than [`layout::HIGH_MEMORY_START`].
pub(crate) fn memory_map(memory: u64) -> Vec<Region> {
    let region = |start, end: u64, kind| Region {
        start,
        length: end - start,
        kind,
    };
    let low_end = memory.min(layout::LOW_RAM_END);
    let mut map = vec![
        region(0, layout::LOW_MEMORY_END, Kind::Ram),
        region(
            layout::ACPI_START,
            layout::HIGH_MEMORY_START,
            Kind::Reserved,
        ),
        region(layout::HIGH_MEMORY_START, low_end, Kind::Ram),
        // Linux uses ECAM only where firmware reserved it.
        region(
            layout::ECAM_BASE,
            layout::ECAM_BASE + layout::ECAM_LENGTH,
            Kind::Reserved,
        ),
        region(
            layout::KVM_IDENTITY_MAP,
            layout::KVM_PAGES_END,
            Kind::Reserved,
        ),
    ];
    map.extend(
        layout::ram_ranges(memory)
            .into_iter()
            .filter(|&(start, _)| start >= layout::HIGH_RAM_START)
            .map(|(start, length)| Region {
                start,
                length,
                kind: Kind::Ram,
            }),
    );
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_is_sorted_and_counts_all_ram_but_the_hole() {
        for memory in [2 << 20, 512 << 20, 3 << 30, 5 << 30, layout::MAX_MEMORY] {
            let map = memory_map(memory);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].length <= pair[1].start, "{pair:x?}");
            }
            let ram: u64 = map
                .iter()
                .filter(|region| region.kind == Kind::Ram)
                .map(|region| region.length)
                .sum();
            assert_eq!(ram, memory - (384 << 10));
        }
    }
}
