//! Guest RAM: one memfd, its ranges in the guest, and KVM's slots for them.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;

use devices::ram::GuestRam;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    Address, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

/// The least RAM a machine can have.
pub const MIN_BYTES: u64 = 64 << 20;
/// Sizes are multiples of this.
const GRANULE: u64 = 1 << 20;

/// Why guest RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Too little for any guest.
    #[error("--memory: {}M is too small, the least is {}M", .0 >> 20, MIN_BYTES >> 20)]
    TooSmall(u64),
    /// Not a whole number of MiB.
    #[error("--memory: {0} bytes is not a multiple of 1M")]
    Unaligned(u64),
    /// The host cannot hold it.
    #[error("--memory: the host cannot make {}M of memory: {source}", .size >> 20)]
    Memfd {
        /// Size asked for.
        size: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host cannot map it.
    #[error("--memory: the host cannot map {}M of memory: {reason}", .size >> 20)]
    Map {
        /// Size asked for.
        size: u64,
        /// What the mapping said.
        reason: String,
    },
    /// KVM refused a slot.
    #[error("KVM refused guest memory at {address:#x}: {source}")]
    Slot {
        /// Guest physical address.
        address: u64,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

/// Makes RAM in `ranges` of (guest physical address, length), backed by one memfd, range after range.
///
/// # Errors
/// See [`MemoryError`].
pub fn create(ranges: &[(u64, u64)]) -> Result<GuestRam, MemoryError> {
    let size = ranges.iter().map(|(_, len)| len).sum::<u64>();
    if size < MIN_BYTES {
        return Err(MemoryError::TooSmall(size));
    }
    if !size.is_multiple_of(GRANULE) {
        return Err(MemoryError::Unaligned(size));
    }
    let file = memfd(size).map_err(|source| MemoryError::Memfd { size, source })?;
    let failed = |reason: String| MemoryError::Map { size, reason };
    let mut parts = Vec::new();
    let mut offset = 0;
    for &(address, len) in ranges {
        let file = file
            .try_clone()
            .map_err(|error| failed(error.to_string()))?;
        let bytes = usize::try_from(len).map_err(|error| failed(error.to_string()))?;
        let part = Some(FileOffset::new(file, offset));
        parts.push((GuestAddress(address), bytes, part));
        offset += len;
    }
    let memory = GuestMemoryMmap::from_ranges_with_files(parts)
        .map_err(|error| failed(error.to_string()))?;
    memory.iter().for_each(advise_huge_pages);
    Ok(GuestRam::new(memory))
}

/// Huge pages where the host gives them to shared memory that asks (`shmem_enabled`): fewer walks of
/// page tables for the guest and for I/O.
fn advise_huge_pages(region: &GuestRegionMmap) {
    let start = region.as_ptr().cast();
    // SAFETY: the whole of a mapping; advice changes nothing of its content, and may be refused.
    unsafe { libc::madvise(start, region.size(), libc::MADV_HUGEPAGE) };
}

fn memfd(size: u64) -> io::Result<File> {
    // SAFETY: the name is a C string, and the result is checked.
    let fd = unsafe { libc::memfd_create(c"berth-ram".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    Ok(file)
}

/// Gives every range of `ram` to the virtual machine, one slot each.
///
/// The caller keeps `ram` for as long as `vm` has vCPUs that run.
///
/// # Errors
/// KVM refused a slot.
pub fn register(vm: &VmFd, ram: &GuestRam) -> Result<(), MemoryError> {
    for (slot, region) in (0..).zip(ram.memory().iter()) {
        let address = region.start_addr().raw_value();
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: address,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is mapped, and the machine keeps `ram` until its vCPUs have stopped.
        unsafe { vm.set_user_memory_region(slot) }
            .map_err(|source| MemoryError::Slot { address, source })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_share_one_file_at_rising_offsets() {
        let ram = create(&[(0, 64 << 20), (4 << 30, 2 << 20)]).unwrap();
        let offsets: Vec<_> = ram
            .memory()
            .iter()
            .map(|region| region.file_offset().unwrap().start())
            .collect();
        assert_eq!(offsets, [0, 64 << 20]);
        ram.write(4 << 30, &7u64).unwrap();
        assert_eq!(ram.read::<u64>(0).unwrap(), 0);
        assert_eq!(ram.read::<u64>(4 << 30).unwrap(), 7);
        assert!(ram.slice(64 << 20, 1).is_err());
    }

    #[test]
    fn bad_sizes_name_the_option() {
        for (ranges, text) in [
            (
                vec![(0, 1 << 20)],
                "--memory: 1M is too small, the least is 64M",
            ),
            (vec![(0, (64 << 20) + 1)], "is not a multiple of 1M"),
            (vec![(0, 1 << 62)], "--memory: the host cannot"),
        ] {
            let message = create(&ranges).unwrap_err().to_string();
            assert!(message.contains(text), "{message}");
        }
    }
}
