//! The rest of a `rep outsb` at once.
//!
//! KVM emulates string output byte by byte, with an exit for each (Linux arch/x86/kvm/emulate.c, `em_out`).
//! When it has delivered one, berth takes those that follow in the same page out of the guest's memory and
//! sets RSI and RCX behind them. The guest cannot tell the difference, other than by the time.

use devices::ram::GuestRam;
use kvm_ioctls::VcpuFd;

/// The part that is taken at once lies in one page: what is in the next one may not be the guest's to
/// read.
pub const PAGE: usize = 4096;

/// RFLAGS: single-step, direction.
const TRAP_OR_DIRECTION: u64 = 1 << 8 | 1 << 10;
/// CR4: page tables of five levels.
const CR4_LA57: u64 = 1 << 12;
/// Page tables: an entry is there; it is of a large page; its address.
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// `rep outsb` with addresses of 64 bits and no other prefix.
const REP_OUTSB: [u8; 2] = [0xf3, 0x6e];

/// Takes the bytes that the vCPU's `rep outsb` would write next, after the one that it has just written;
/// none if it is in the middle of something else.
pub fn take_rest<'a>(fd: &VcpuFd, ram: &GuestRam, page: &'a mut [u8; PAGE]) -> &'a [u8] {
    rest(fd, ram, page).unwrap_or_default()
}

fn rest<'a>(fd: &VcpuFd, ram: &GuestRam, page: &'a mut [u8; PAGE]) -> Option<&'a [u8]> {
    let mut regs = fd.get_regs().ok()?;
    let offset = usize::try_from(regs.rsi % PAGE as u64).ok()?;
    // The byte before was the guest's to read, and with it the rest of its page.
    if regs.rcx == 0 || regs.rflags & TRAP_OR_DIRECTION != 0 || offset == 0 {
        return None;
    }
    // Only 64-bit code has flat segments for certain.
    let sregs = fd.get_sregs().ok()?;
    if sregs.cs.l == 0 {
        return None;
    }
    let levels = if sregs.cr4 & CR4_LA57 == 0 { 4 } else { 5 };
    let translated = |address: u64| translate(ram, sregs.cr3, levels, address);
    for (byte, at) in REP_OUTSB.into_iter().zip(0..) {
        let place = translated(regs.rip.wrapping_add(at))?;
        if ram.read::<u8>(place).ok()? != byte {
            return None;
        }
    }
    let left = usize::try_from(regs.rcx).unwrap_or(usize::MAX);
    let count = left.min(PAGE - offset);
    ram.read_bytes(translated(regs.rsi)?, &mut page[..count])
        .ok()?;
    // The page may be the last one of all.
    regs.rsi = regs.rsi.wrapping_add(count as u64);
    regs.rcx -= count as u64;
    // With RCX at zero the instruction does nothing more, and the guest goes on behind it.
    fd.set_regs(&regs).ok()?;
    Some(&page[..count])
}

/// Where an address is that the guest has just used (Intel SDM volume 3, 5.5). KVM_TRANSLATE does not serve:
/// it reads as the kernel does, to whom SMAP forbids what belongs to a user.
fn translate(ram: &GuestRam, cr3: u64, levels: u32, address: u64) -> Option<u64> {
    let mut table = cr3 & ADDRESS;
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let index = address >> shift & 0x1ff;
        let entry: u64 = ram.read(table + index * 8).ok()?;
        if entry & PRESENT == 0 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

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
        // The low bits of CR3 are no part of the address.
        let four = |address| translate(&ram, 0x2fff, 4, address);
        assert_eq!(four(address(0, 3, 5, 7, 9, 0x123)), Some(0xabc_d123));
        assert_eq!(four(address(0, 3, 5, 8, 1, 2)), Some(0x60_1002));
        assert_eq!(four(address(0, 3, 6, 1, 1, 2)), Some(0x8020_1002));
        assert_eq!(four(address(0, 3, 5, 7, 10, 0)), None);
        assert_eq!(four(address(0, 4, 0, 0, 0, 0)), None);
        let five = |address| translate(&ram, 0x1000, 5, address);
        assert_eq!(five(address(1, 3, 5, 7, 9, 1)), Some(0xabc_d001));
        // Tables outside of RAM are the guest's to point to.
        entry(0x2000, 4, ADDRESS);
        assert_eq!(four(address(0, 4, 0, 0, 0, 0)), None);
    }
}
