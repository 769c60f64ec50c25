//! The rest of a `rep outsb` at once.
//!
//! KVM emulates string output byte by byte, with an exit for each (Linux arch/x86/kvm/emulate.c, `em_out`).
//! When it has delivered one, berth takes those that follow in the same page out of the guest's memory and
//! sets RSI and RCX behind them. The guest cannot tell the difference, other than by the time.

use devices::ram::GuestRam;
use kvm_bindings::{kvm_regs, kvm_sregs};
use kvm_ioctls::VcpuFd;

/// The part that is taken at once lies in one page: what is in the next one may not be the guest's to
/// read.
pub const PAGE: usize = 4096;

/// RFLAGS: single-step, direction.
const TRAP_OR_DIRECTION: u64 = 1 << 8 | 1 << 10;
/// CR4: page tables of five levels.
const CR4_LA57: u64 = 1 << 12;
/// EFER: long mode, which has page tables.
const EFER_LMA: u64 = 1 << 10;
/// Page tables: an entry is there; it is the user's; it is of a large page; its address.
const PRESENT: u64 = 1;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// `rep outsb` with addresses of 64 bits and no other prefix.
const REP_OUTSB: [u8; 2] = [0xf3, 0x6e];

/// Takes the bytes that the vCPU's `rep outsb` would write next, after the one that it has just written;
/// none if it is in the middle of something else.
pub fn take_rest<'a>(fd: &VcpuFd, ram: &GuestRam, page: &'a mut [u8; PAGE]) -> &'a [u8] {
    let take = |page: &mut [u8; PAGE]| {
        let mut regs = fd.get_regs().ok()?;
        let count = rest(&mut regs, &fd.get_sregs().ok()?, ram, page)?;
        // Without this, the guest would write the same bytes again.
        fd.set_regs(&regs).ok()?;
        Some(count)
    };
    let count = take(page).unwrap_or(0);
    &page[..count]
}

/// Copies the bytes to the start of `page`, sets RSI and RCX behind them, and returns their number.
fn rest(
    regs: &mut kvm_regs,
    sregs: &kvm_sregs,
    ram: &GuestRam,
    page: &mut [u8; PAGE],
) -> Option<usize> {
    let offset = usize::try_from(regs.rsi % PAGE as u64).ok()?;
    // The byte before was the guest's to read, and with it the rest of its page.
    if regs.rcx == 0 || regs.rflags & TRAP_OR_DIRECTION != 0 || offset == 0 {
        return None;
    }
    let tables = Tables::of(sregs)?;
    for (byte, at) in REP_OUTSB.into_iter().zip(0..) {
        let place = tables.translate(ram, regs.rip.wrapping_add(at))?;
        if ram.read::<u8>(place).ok()? != byte {
            return None;
        }
    }
    let left = usize::try_from(regs.rcx).unwrap_or(usize::MAX);
    let count = left.min(PAGE - offset);
    let place = tables.translate(ram, regs.rsi)?;
    ram.read_bytes(place, &mut page[..count]).ok()?;
    // The page may be the last one of all.
    regs.rsi = regs.rsi.wrapping_add(count as u64);
    // With RCX at zero the instruction does nothing more, and the guest goes on behind it.
    regs.rcx -= count as u64;
    Some(count)
}

/// The page tables that a vCPU uses (Intel SDM volume 3, 5.5). KVM_TRANSLATE does not serve: it reads as the
/// kernel does, to whom SMAP forbids what belongs to a user.
struct Tables {
    root: u64,
    levels: u32,
    /// The vCPU runs a user's program.
    user: bool,
}

impl Tables {
    /// Those of 64-bit code; nothing for other code, whose segments need not be flat.
    fn of(sregs: &kvm_sregs) -> Option<Self> {
        if sregs.cs.l == 0 || sregs.efer & EFER_LMA == 0 {
            return None;
        }
        Some(Self {
            root: sregs.cr3 & ADDRESS,
            levels: if sregs.cr4 & CR4_LA57 == 0 { 4 } else { 5 },
            user: sregs.cs.dpl == 3,
        })
    }

    /// Where in RAM an address is that the vCPU may read.
    fn translate(&self, ram: &GuestRam, address: u64) -> Option<u64> {
        let needed = if self.user { PRESENT | USER } else { PRESENT };
        let mut table = self.root;
        for level in (0..self.levels).rev() {
            let shift = 12 + 9 * level;
            let index = address >> shift & 0x1ff;
            let entry: u64 = ram.read(table + index * 8).ok()?;
            if entry & needed != needed {
                return None;
            }
            if level == 0 || level <= 2 && entry & LARGE != 0 {
                let inside = (1 << shift) - 1;
                return Some(entry & ADDRESS & !inside | address & inside);
            }
            table = entry & ADDRESS;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    /// A guest whose `rep outsb` is at `CODE` and whose text, numbered bytes, in one page at `TEXT`; that and
    /// the one behind it are the last pages of the address space.
    const CODE: u64 = 0x40_0000;
    const TEXT: u64 = 0xffff_ffff_ffff_e000;
    const TEXT_PLACE: u64 = 0x8000;

    struct Guest {
        ram: GuestRam,
        regs: kvm_regs,
        sregs: kvm_sregs,
        page: [u8; PAGE],
    }

    impl Guest {
        /// The guest is about to write the byte with this offset in its text; `count` are left.
        fn at(offset: u64, count: u64) -> Self {
            let ram = memory::create(&[(0, 64 << 20)]).unwrap();
            let mut guest = Self {
                ram,
                regs: kvm_regs {
                    rip: CODE,
                    rsi: TEXT + offset,
                    rcx: count,
                    ..Default::default()
                },
                sregs: kvm_sregs {
                    // Its low bits are flags.
                    cr3: 0x1018,
                    efer: EFER_LMA,
                    ..Default::default()
                },
                page: [0; PAGE],
            };
            (guest.sregs.cs.l, guest.sregs.cs.dpl) = (1, 3);
            // The tables of the text are at 0x2000, 0x3000, 0x4000; the code is in a large page.
            for (table, index, value) in [
                (0x1000, 511, 0x2000),
                (0x2000, 511, 0x3000),
                (0x3000, 511, 0x4000),
                (0x4000, 510, TEXT_PLACE),
                (0x4000, 511, TEXT_PLACE + 0x1000),
                (0x1000, 0, 0x5000),
                (0x5000, 0, 0x6000),
                (0x6000, 2, CODE | LARGE),
            ] {
                guest.entry(table, index, value | PRESENT | USER);
            }
            let text: Vec<u8> = (0..2 * PAGE).map(byte).collect();
            guest.ram.write_bytes(TEXT_PLACE, &text).unwrap();
            guest.ram.write_bytes(CODE, &REP_OUTSB).unwrap();
            guest
        }

        fn entry(&self, table: u64, index: u64, value: u64) {
            self.ram.write(table + index * 8, &value).unwrap();
        }

        /// How many bytes are taken; they and the registers are as they have to be.
        fn take(&mut self) -> Option<usize> {
            let before = self.regs;
            let count = rest(&mut self.regs, &self.sregs, &self.ram, &mut self.page);
            let moved = count.unwrap_or(0) as u64;
            let expected = kvm_regs {
                rsi: before.rsi.wrapping_add(moved),
                rcx: before.rcx - moved,
                ..before
            };
            assert_eq!(self.regs, expected);
            let first = usize::try_from(before.rsi.wrapping_sub(TEXT)).unwrap();
            let text: Vec<u8> = (first..first + count.unwrap_or(0)).map(byte).collect();
            assert_eq!(self.page[..text.len()], text);
            count
        }
    }

    fn byte(at: usize) -> u8 {
        u8::try_from(at % 251).unwrap()
    }

    #[test]
    fn the_rest_of_a_string_is_taken_up_to_the_end_of_its_page() {
        assert_eq!(Guest::at(1, 100).take(), Some(100));
        assert_eq!(Guest::at(1, 4095).take(), Some(4095));
        assert_eq!(Guest::at(1, 4096).take(), Some(4095));
        assert_eq!(Guest::at(4095, u64::MAX).take(), Some(1));
        // In the last page of the address space.
        let mut guest = Guest::at(4097, u64::MAX);
        assert_eq!(guest.take(), Some(4095));
        assert_eq!((guest.regs.rsi, guest.regs.rcx), (0, u64::MAX - 4095));
        assert_eq!(Guest::at(8191, 5).take(), Some(1));
    }

    #[test]
    fn nothing_is_taken_of_what_is_no_running_string() {
        let refused = |what: &str, change: &dyn Fn(&mut Guest)| {
            let mut guest = Guest::at(10, 100);
            change(&mut guest);
            assert_eq!(guest.take(), None, "{what}");
        };
        refused("nothing is left", &|guest| guest.regs.rcx = 0);
        refused("a page that was not read yet", &|guest| {
            guest.regs.rsi = TEXT;
        });
        refused("downwards", &|guest| guest.regs.rflags = 1 << 10);
        refused("step by step", &|guest| guest.regs.rflags = 1 << 8);
        refused("32-bit code", &|guest| guest.sregs.cs.l = 0);
        refused("a segment's bit without long mode", &|guest| {
            guest.sregs.efer = 0;
        });
        refused("another instruction", &|guest| guest.regs.rip += 1);
        refused("another page of code", &|guest| guest.regs.rip = 0);
        refused("code at the end of all", &|guest| {
            guest.regs.rip = u64::MAX;
        });
    }

    #[test]
    fn nothing_is_taken_of_what_the_guest_may_not_read() {
        let mut guest = Guest::at(10, 100);
        // The byte before may have been of an instruction before.
        guest.entry(0x4000, 510, TEXT_PLACE | PRESENT);
        assert_eq!(guest.take(), None, "the kernel's");
        guest.sregs.cs.dpl = 0;
        assert_eq!(guest.take(), Some(100), "the kernel's own");
        for (table, index) in [(0x4000, 510), (0x3000, 511), (0x1000, 511)] {
            let mut guest = Guest::at(10, 100);
            guest.entry(table, index, USER | 0x9000);
            assert_eq!(guest.take(), None, "not there");
            guest.entry(table, index, ADDRESS | PRESENT | USER);
            assert_eq!(guest.take(), None, "outside of RAM");
        }
        let mut guest = Guest::at(10, 100);
        guest.sregs.cr3 = u64::MAX;
        assert_eq!(guest.take(), None, "tables outside of RAM");
    }

    #[test]
    fn tables_may_have_five_levels() {
        let mut guest = Guest::at(10, 100);
        guest.sregs.cr4 = CR4_LA57;
        guest.sregs.cr3 = 0x7000;
        assert_eq!(guest.take(), None, "the first level is empty");
        guest.entry(0x7000, 511, 0x1000 | PRESENT | USER);
        guest.entry(0x7000, 0, 0x1000 | PRESENT | USER);
        assert_eq!(guest.take(), Some(100));
    }

    #[test]
    fn pages_of_all_sizes_are_found() {
        let ram = memory::create(&[(0, 64 << 20)]).unwrap();
        let entry = |table: u64, index: u64, value: u64| {
            ram.write(table + index * 8, &(value | PRESENT)).unwrap();
        };
        // Of five levels 0x1000 is the first one; of four, 0x2000.
        entry(0x1000, 1, 0x2000);
        entry(0x2000, 3, 0x3000);
        entry(0x3000, 5, 0x4000);
        entry(0x3000, 6, 0x8000_0000 | LARGE);
        entry(0x4000, 7, 0x5000);
        entry(0x4000, 8, 0x60_0000 | LARGE | 1 << 63);
        entry(0x5000, 9, 0xabc_d000 | 1 << 63);
        let address = |i4: u64, i3: u64, i2: u64, i1: u64, i0: u64, offset: u64| {
            i4 << 48 | i3 << 39 | i2 << 30 | i1 << 21 | i0 << 12 | offset
        };
        let tables = |root, levels| Tables {
            root,
            levels,
            user: false,
        };
        let four = |address| tables(0x2000, 4).translate(&ram, address);
        assert_eq!(four(address(0, 3, 5, 7, 9, 0x123)), Some(0xabc_d123));
        assert_eq!(four(address(0, 3, 5, 8, 1, 2)), Some(0x60_1002));
        assert_eq!(four(address(0, 3, 6, 1, 1, 2)), Some(0x8020_1002));
        assert_eq!(four(address(0, 3, 5, 7, 10, 0)), None);
        assert_eq!(four(address(0, 4, 0, 0, 0, 0)), None);
        let five = |address| tables(0x1000, 5).translate(&ram, address);
        assert_eq!(five(address(1, 3, 5, 7, 9, 1)), Some(0xabc_d001));
        // Tables outside of RAM are the guest's to point to.
        entry(0x2000, 4, ADDRESS);
        assert_eq!(four(address(0, 4, 0, 0, 0, 0)), None);
    }
}
