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
    if fd.get_sregs().ok()?.cs.l == 0 {
        return None;
    }
    let translated = |address: u64| {
        let at = fd.translate_gva(address).ok()?;
        (at.valid != 0).then_some(at.physical_address)
    };
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
    regs.rsi += count as u64;
    regs.rcx -= count as u64;
    // With RCX at zero the instruction does nothing more, and the guest goes on behind it.
    fd.set_regs(&regs).ok()?;
    Some(&page[..count])
}
