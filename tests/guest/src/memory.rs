//! Pages for DMA, handed out upwards and taken back all at once; and mappings above 4 GiB.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::pvh::StartInfo;

/// Bytes in a page, also the controller's memory page size.
pub const PAGE: u64 = 4096;

static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    static page_map: u8;
}

/// Takes over the RAM behind the image.
pub fn init(info: &StartInfo) {
    let (start, end) = info.free_ram().expect("the image lies in no RAM");
    NEXT.store(start.next_multiple_of(PAGE), Ordering::Relaxed);
    END.store(end, Ordering::Relaxed);
}

/// Where the next page comes from; give it to [`release`] to free all that came after.
pub fn mark() -> u64 {
    NEXT.load(Ordering::Relaxed)
}

/// Frees everything allocated since `mark`; the caller keeps no [`Dma`] of it.
pub fn release(mark: u64) {
    NEXT.store(mark, Ordering::Relaxed);
}

/// Zeroed pages for `bytes` bytes, physically contiguous and aligned to a page.
///
/// # Panics
/// When RAM is used up: a test that needs more says so in its own words.
pub fn allocate(bytes: u64) -> Dma {
    let len = bytes.next_multiple_of(PAGE);
    let base = NEXT.load(Ordering::Relaxed);
    assert!(
        base + len <= END.load(Ordering::Relaxed),
        "out of memory for {bytes:#x} bytes"
    );
    NEXT.store(base + len, Ordering::Relaxed);
    let dma = Dma { base, len };
    dma.fill(0, len, 0);
    dma
}

/// A range of RAM that devices may reach. Every access is volatile and checked against its length.
///
/// The address is physical and virtual at once, for memory is mapped one to one.
#[derive(Clone, Copy)]
pub struct Dma {
    base: u64,
    len: u64,
}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty) => {
        /// Loads a value.
        pub fn $read(&self, offset: u64) -> $type {
            let at = self.at(offset, size_of::<$type>() as u64) as *const $type;
            // SAFETY: `at` checked the bounds; memory from the allocator is no Rust object.
            unsafe { at.read_volatile() }
        }

        /// Stores a value.
        pub fn $write(&self, offset: u64, value: $type) {
            let at = self.at(offset, size_of::<$type>() as u64) as *mut $type;
            // SAFETY: as for loads.
            unsafe { at.write_volatile(value) }
        }
    };
}

impl Dma {
    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
    access!(read64, write64, u64);

    /// The physical address of `offset`.
    pub fn address(&self, offset: u64) -> u64 {
        self.at(offset, 0)
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A part of it.
    pub fn part(&self, offset: u64, len: u64) -> Self {
        Self {
            base: self.at(offset, len),
            len,
        }
    }

    /// Sets `len` bytes from `offset`.
    pub fn fill(&self, offset: u64, len: u64, byte: u8) {
        let to = self.at(offset, len);
        // SAFETY: `at` checked the bounds; the direction flag is clear by the ABI.
        unsafe {
            asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") byte,
                options(nostack, preserves_flags));
        }
    }

    /// The first offset in `offset..offset + len` whose byte is not `byte`.
    pub fn find_other(&self, offset: u64, len: u64, byte: u8) -> Option<u64> {
        let word = u64::from_ne_bytes([byte; 8]);
        let mut at = offset;
        let end = offset + len;
        while at < end {
            if at.is_multiple_of(8) && end - at >= 8 && self.read64(at) == word {
                at += 8;
                continue;
            }
            if self.read8(at) != byte {
                return Some(at);
            }
            at += 1;
        }
        None
    }

    /// Copies bytes out.
    pub fn copy_to(&self, offset: u64, to: &mut [u8]) {
        for (index, byte) in to.iter_mut().enumerate() {
            *byte = self.read8(offset + index as u64);
        }
    }

    fn at(&self, offset: u64, len: u64) -> u64 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{offset:#x}+{len:#x} is outside of {:#x} bytes of memory",
            self.len
        );
        self.base + offset
    }
}

/// RAM that the loader filled, at a physical address below 3 GiB.
pub fn existing(base: u64, len: u64) -> Dma {
    Dma { base, len }
}

/// Makes sure that the `len` bytes of device registers at `address` are mapped.
///
/// Everything below 4 GiB is mapped from the start. Page tables are open to CPL 3 like all
/// memory, and an entry that was not present needs no flush.
pub fn map_registers(address: u64, len: u64) {
    const LARGE: u64 = 2 << 20;
    // Present, writable, user; uncached and large for the last level.
    const TABLE: u64 = 0x7;
    const LEAF: u64 = 0x9f;
    let first = address & !(LARGE - 1);
    let mut page = first.max(1 << 32);
    while page < address + len {
        let root = (&raw const page_map).addr() as u64;
        let mut table = Dma {
            base: root,
            len: PAGE,
        };
        for shift in [39, 30] {
            let slot = (page >> shift & 511) * 8;
            if table.read64(slot) == 0 {
                // Never released: mappings outlive the test that asked for them.
                table.write64(slot, permanent_page() | TABLE);
            }
            table = Dma {
                base: table.read64(slot) & !(PAGE - 1),
                len: PAGE,
            };
        }
        table.write64((page >> 21 & 511) * 8, page | LEAF);
        page += LARGE;
    }
}

/// A zeroed page from the top of RAM, which is never released.
fn permanent_page() -> u64 {
    let base = END.load(Ordering::Relaxed) - PAGE;
    assert!(
        base >= NEXT.load(Ordering::Relaxed),
        "out of memory for a page table"
    );
    END.store(base, Ordering::Relaxed);
    Dma { base, len: PAGE }.fill(0, PAGE, 0);
    base
}
