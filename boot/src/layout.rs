//! The guest-physical address map.
//!
//! Every fixed guest-physical address of the machine is named here and nowhere
//! else. All values are in bytes.
//!
//! ```text
//! 0x0000_0000  RAM; boot structures below 640 KiB, ACPI tables from 896 KiB
//! 0xC000_0000  32-bit PCI window
//! 0xE000_0000  ECAM of bus 0
//! 0xFEC0_0000  IOAPIC
//! 0xFEE0_0000  local APIC
//! 0xFFFB_C000  pages KVM needs for itself
//! 4 GiB        rest of the RAM, then the 64-bit PCI window
//! ```

use std::ops::Range;

use crate::error::KernelError;

/// Global descriptor table of the boot processor.
pub const GDT: u64 = 0x500;
/// PVH `hvm_start_info`, followed by the module list.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH module list: one entry, for the initrd.
pub const PVH_MODULES: u64 = 0x6100;
/// PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x6200;
/// Linux `boot_params`, the "zero page".
pub const ZERO_PAGE: u64 = 0x7000;
/// Page-map level 4: the value for CR3. The page-directory-pointer table and
/// four page directories follow it, which map the first 4 GiB one to one.
pub const PAGE_TABLES: u64 = 0x9000;
/// End of the page tables (exclusive).
pub const PAGE_TABLES_END: u64 = PAGE_TABLES + 6 * PAGE_SIZE;
/// Kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line, its NUL included.
pub const CMDLINE_CAPACITY: u64 = 0x1_0000;
/// End of conventional memory: 640 KiB. The PC's video and option ROM hole
/// follows.
pub const LOW_MEMORY_END: u64 = 0xA_0000;

/// ACPI tables. The root pointer is at the very start, where a scan of the
/// BIOS area (ACPI 6.5, 5.2.5.1) finds it.
pub const ACPI_START: u64 = 0xE_0000;
/// End of the room for ACPI tables (exclusive).
pub const ACPI_END: u64 = 0xF_0000;
/// Where a PC's firmware starts in real mode, F000:FFF0. A few instructions lie
/// here that reset the machine.
pub const RESET_VECTOR: u64 = 0xF_FFF0;
/// First address that a kernel may be loaded to: 1 MiB.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// End of the RAM below 4 GiB (exclusive): 3 GiB.
pub const LOW_RAM_END: u64 = 0xC000_0000;
/// Start of the RAM that did not fit below [`LOW_RAM_END`]: 4 GiB.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// 32-bit PCI memory window.
pub const PCI_WINDOW_32: Range<u64> = 0xC000_0000..0xE000_0000;
/// Length of the 64-bit PCI memory window: 32 GiB.
pub const PCI_WINDOW_64_LENGTH: u64 = 32 << 30;
/// PCI Express enhanced configuration space (ECAM).
pub const ECAM_BASE: u64 = 0xE000_0000;
/// Length of ECAM: 1 MiB, which is one bus (32 slots of 8 functions of 4 KiB).
pub const ECAM_LENGTH: u64 = 0x10_0000;

/// I/O APIC registers.
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;
/// Local APIC registers.
pub const LAPIC_BASE: u64 = 0xFEE0_0000;
/// Page for `KVM_SET_IDENTITY_MAP_ADDR`.
pub const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;
/// Three pages for `KVM_SET_TSS_ADDR`.
pub const KVM_TSS: u64 = 0xFFFB_D000;
/// End of the pages that KVM keeps for itself (exclusive).
pub const KVM_PAGES_END: u64 = KVM_TSS + 3 * PAGE_SIZE;

/// x86 base page.
pub const PAGE_SIZE: u64 = 0x1000;
/// Most RAM a machine can have: 1 TiB. It keeps every address, the 64-bit PCI
/// window included, below 2^41, far from overflow and from the widths that
/// hosts commonly offer.
pub const MAX_MEMORY: u64 = 1 << 40;

/// Where `memory_bytes` of RAM lie, as `(start, length)`, lowest first.
///
/// RAM fills the space below [`LOW_RAM_END`]; the rest starts at
/// [`HIGH_RAM_START`]. No range is empty.
#[must_use]
pub fn ram_ranges(memory_bytes: u64) -> Vec<(u64, u64)> {
    let low = memory_bytes.min(LOW_RAM_END);
    [(0, low), (HIGH_RAM_START, memory_bytes - low)]
        .into_iter()
        .filter(|&(_, length)| length != 0)
        .collect()
}

/// The 64-bit PCI memory window of a machine with `memory_bytes` of RAM: above
/// all RAM, aligned to 1 GiB, [`PCI_WINDOW_64_LENGTH`] long.
///
/// `memory_bytes` must not exceed [`MAX_MEMORY`].
#[must_use]
pub fn pci_window_64(memory_bytes: u64) -> Range<u64> {
    let above_low = memory_bytes.saturating_sub(LOW_RAM_END);
    let start = (HIGH_RAM_START + above_low).next_multiple_of(1 << 30);
    start..start + PCI_WINDOW_64_LENGTH
}

/// Checks that a kernel which needs RAM up to `end` (exclusive) can have it.
pub(crate) fn check_kernel_end(end: u64, memory: u64) -> Result<(), KernelError> {
    if end > LOW_RAM_END {
        return Err(KernelError::TooHigh { end });
    }
    if end > memory {
        return Err(KernelError::NotEnoughMemory { end, memory });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_splits_at_three_gib() {
        assert_eq!(ram_ranges(0), vec![]);
        assert_eq!(ram_ranges(512 << 20), vec![(0, 512 << 20)]);
        assert_eq!(ram_ranges(3 * GIB), vec![(0, 3 * GIB)]);
        assert_eq!(
            ram_ranges(3 * GIB + 4096),
            vec![(0, 3 * GIB), (4 * GIB, 4096)]
        );
        assert_eq!(ram_ranges(8 * GIB), vec![(0, 3 * GIB), (4 * GIB, 5 * GIB)]);
    }

    #[test]
    fn wide_pci_window_is_above_ram_and_aligned() {
        assert_eq!(pci_window_64(512 << 20).start, 4 * GIB);
        assert_eq!(pci_window_64(3 * GIB + 4096).start, 5 * GIB);
        assert_eq!(pci_window_64(8 * GIB), 9 * GIB..41 * GIB);
        assert!(pci_window_64(MAX_MEMORY).end < 1 << 41);
    }

    #[test]
    fn low_structures_do_not_overlap() {
        let ranges = [
            GDT..GDT + PAGE_SIZE / 8,
            PVH_START_INFO..PVH_MODULES,
            PVH_MODULES..PVH_MEMORY_MAP,
            PVH_MEMORY_MAP..ZERO_PAGE,
            ZERO_PAGE..ZERO_PAGE + PAGE_SIZE,
            PAGE_TABLES..PAGE_TABLES_END,
            CMDLINE..CMDLINE + CMDLINE_CAPACITY,
            LOW_MEMORY_END..ACPI_START,
            ACPI_START..ACPI_END,
            RESET_VECTOR..RESET_VECTOR + 16,
            HIGH_MEMORY_START..LOW_RAM_END,
            PCI_WINDOW_32,
            ECAM_BASE..ECAM_BASE + ECAM_LENGTH,
            IOAPIC_BASE..IOAPIC_BASE + PAGE_SIZE,
            LAPIC_BASE..LAPIC_BASE + PAGE_SIZE,
            KVM_IDENTITY_MAP..KVM_TSS,
            KVM_TSS..KVM_PAGES_END,
            HIGH_RAM_START..MAX_MEMORY,
        ];
        for pair in ranges.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:x?}");
        }
    }
}
