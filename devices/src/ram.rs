//! Guest RAM as devices reach it: every address is checked, and only RAM can be reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A guest physical range that is not wholly inside one piece of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest range {address:#x}+{len:#x} is not in RAM")]
pub struct NotRam {
    /// First guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub len: usize,
}

/// All RAM of a guest. Clones share it.
#[derive(Debug, Clone)]
pub struct GuestRam(Arc<GuestMemoryMmap>);

/// Bytes of guest RAM as a host range, for one vectored read or write.
///
/// Made by [`GuestRam::slice`] only, so it always lies in RAM. It is valid as long as any clone of
/// that [`GuestRam`] lives; whoever keeps slices keeps a clone beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestSlice {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: a slice is an address and a length; guest RAM may be reached from every thread, and every
// access below goes through volatile or atomic operations or the kernel.
unsafe impl Send for GuestSlice {}
// SAFETY: as above; there is no interior state.
unsafe impl Sync for GuestSlice {}

impl GuestSlice {
    /// Host address, for an iovec.
    pub fn as_ptr(self) -> *mut u8 {
        self.ptr
    }

    /// Length in bytes.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether the length is zero.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// This slice with `other` behind it, if they touch in host memory.
    pub fn join(self, other: Self) -> Option<Self> {
        let end = self.ptr.wrapping_add(self.len);
        let len = self.len.checked_add(other.len)?;
        std::ptr::eq(end, other.ptr).then_some(Self { ptr: self.ptr, len })
    }

    /// The part from `start` on, at most `len` bytes; empty past the end.
    pub fn part(self, start: usize, len: usize) -> Self {
        let start = start.min(self.len);
        Self {
            ptr: self.ptr.wrapping_add(start),
            len: len.min(self.len - start),
        }
    }

    /// Copies `from` into the guest; the shorter length counts.
    pub fn copy_from(self, from: &[u8]) {
        let len = self.len.min(from.len());
        // SAFETY: the slice lies in mapped guest RAM (see the type), `from` is a live reference, and
        // they cannot overlap because no Rust reference into guest RAM exists.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.ptr, len) }
    }

    /// Copies guest bytes into `to`; the shorter length counts.
    pub fn copy_to(self, to: &mut [u8]) {
        let len = self.len.min(to.len());
        // SAFETY: as in `copy_from`.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr, to.as_mut_ptr(), len) }
    }

    /// Fills the slice with zeroes.
    pub fn zero(self) {
        // SAFETY: the slice lies in mapped guest RAM (see the type).
        unsafe { std::ptr::write_bytes(self.ptr, 0, self.len) }
    }
}

impl GuestRam {
    /// Wraps the memory that the machine made.
    pub fn new(memory: GuestMemoryMmap) -> Self {
        Self(Arc::new(memory))
    }

    /// The regions behind it.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.0
    }

    /// The host range of `len` bytes at guest physical `address`.
    ///
    /// # Errors
    /// Part of it is outside RAM, or it crosses from one RAM region into another.
    pub fn slice(&self, address: u64, len: usize) -> Result<GuestSlice, NotRam> {
        let slice = self
            .0
            .get_slice(GuestAddress(address), len)
            .map_err(|_| NotRam { address, len })?;
        Ok(GuestSlice {
            ptr: slice.ptr_guard_mut().as_ptr(),
            len,
        })
    }

    /// Reads a value from guest memory.
    ///
    /// # Errors
    /// Part of it is outside RAM.
    pub fn read<T: FromBytes + IntoBytes>(&self, address: u64) -> Result<T, NotRam> {
        let mut value = T::new_zeroed();
        self.read_bytes(address, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes a value to guest memory.
    ///
    /// # Errors
    /// Part of it is outside RAM; nothing or a part was written.
    pub fn write<T: IntoBytes + Immutable>(&self, address: u64, value: &T) -> Result<(), NotRam> {
        self.write_bytes(address, value.as_bytes())
    }

    /// Fills `to` from guest memory.
    ///
    /// # Errors
    /// Part of it is outside RAM.
    pub fn read_bytes(&self, address: u64, to: &mut [u8]) -> Result<(), NotRam> {
        let len = to.len();
        self.0
            .read_slice(to, GuestAddress(address))
            .map_err(|_| NotRam { address, len })
    }

    /// Writes `from` to guest memory.
    ///
    /// # Errors
    /// Part of it is outside RAM; nothing or a part was written.
    pub fn write_bytes(&self, address: u64, from: &[u8]) -> Result<(), NotRam> {
        let len = from.len();
        self.0
            .write_slice(from, GuestAddress(address))
            .map_err(|_| NotRam { address, len })
    }

    /// A range that stays mapped for as long as the result lives: rings and doorbell pages.
    ///
    /// # Errors
    /// As [`GuestRam::slice`], or `address` is not a multiple of 8.
    pub fn map(&self, address: u64, len: usize) -> Result<MappedRange, NotRam> {
        if !address.is_multiple_of(8) {
            return Err(NotRam { address, len });
        }
        let slice = self.slice(address, len)?;
        Ok(MappedRange {
            ram: self.clone(),
            slice,
        })
    }
}

/// A range of guest RAM that is shared with the guest: every access is atomic or volatile, and
/// checked against its length.
#[derive(Debug, Clone)]
pub struct MappedRange {
    // Keeps the mapping that `slice` points into alive.
    #[allow(dead_code)]
    ram: GuestRam,
    slice: GuestSlice,
}

impl MappedRange {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.slice.len
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.slice.len == 0
    }

    fn at(&self, offset: usize, size: usize) -> *mut u8 {
        let end = offset.checked_add(size);
        assert!(
            offset.is_multiple_of(size) && end.is_some_and(|end| end <= self.slice.len),
            "offset {offset:#x} outside of a mapped range of {:#x}",
            self.slice.len
        );
        self.slice.ptr.wrapping_add(offset)
    }

    fn u32_at(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `at` checked bounds and alignment (the base is a multiple of 8 in a page-aligned
        // mapping), and the mapping lives as long as `self.ram`.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }
    }

    fn u64_at(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `u32_at`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }
    }

    /// Loads the 4 bytes at `offset`, a multiple of 4 inside the range.
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        u32::from_le(self.u32_at(offset).load(order))
    }

    /// Stores 4 bytes at `offset`, a multiple of 4 inside the range.
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        self.u32_at(offset).store(value.to_le(), order);
    }

    /// Stores 8 bytes at `offset`, a multiple of 8 inside the range.
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        self.u64_at(offset).store(value.to_le(), order);
    }

    /// Copies a value out, from `offset`, wholly inside the range.
    pub fn read<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        let part = self.slice.part(offset, bytes.len());
        assert_eq!(part.len(), bytes.len(), "read past a mapped range");
        part.copy_to(bytes);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram() -> GuestRam {
        let regions = [(GuestAddress(0), 0x4000), (GuestAddress(0x1_0000), 0x1000)];
        GuestRam::new(GuestMemoryMmap::from_ranges(&regions).unwrap())
    }

    #[test]
    fn only_ram_can_be_reached() {
        let ram = ram();
        assert!(ram.slice(0x3fff, 1).is_ok());
        for (address, len) in [
            (0x3fff, 2),
            (0x4000, 1),
            (0xffff, 2),
            (0x1_0fff, 2),
            (u64::MAX, 1),
            (u64::MAX, 2),
        ] {
            assert_eq!(ram.slice(address, len), Err(NotRam { address, len }));
        }
        assert!(ram.map(4, 8).is_err());
    }

    #[test]
    fn adjacent_slices_join() {
        let ram = ram();
        let (a, b) = (ram.slice(0, 16).unwrap(), ram.slice(16, 16).unwrap());
        assert_eq!(a.join(b), Some(ram.slice(0, 32).unwrap()));
        assert_eq!(b.join(a), None);
        assert_eq!(a.part(4, 100).len(), 12);
        assert!(a.part(17, 1).is_empty());
    }

    #[test]
    fn values_go_both_ways() {
        let ram = ram();
        ram.write(0x100, &0x1122_3344u32).unwrap();
        assert_eq!(ram.read::<u32>(0x100).unwrap(), 0x1122_3344);
        let range = ram.map(0x100, 16).unwrap();
        assert_eq!(range.load_u32(0, Ordering::Acquire), 0x1122_3344);
        range.store_u64(8, 7, Ordering::Release);
        assert_eq!(range.read::<u64>(8), 7);
    }
}
