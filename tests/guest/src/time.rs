//! Time from the time stamp counter, calibrated once.

use core::arch::x86_64::{__cpuid, _rdtsc};
use core::sync::atomic::{AtomicU64, Ordering};

use crate::io;

/// Used when nothing tells the frequency; limits are then off by a small factor, no more.
const ASSUMED_KHZ: u64 = 2_500_000;

static KHZ: AtomicU64 = AtomicU64::new(ASSUMED_KHZ);

/// The time stamp counter.
pub fn now() -> u64 {
    // SAFETY: x86-64 has rdtsc, and CR4.TSD is clear.
    unsafe { _rdtsc() }
}

/// Milliseconds in `ticks` of the time stamp counter.
pub fn to_ms(ticks: u64) -> u64 {
    ticks / KHZ.load(Ordering::Relaxed)
}

/// Nanoseconds in `ticks` of the time stamp counter.
pub fn to_ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000 / u128::from(KHZ.load(Ordering::Relaxed))) as u64
}

/// Spins for about `microseconds`.
pub fn spin_us(microseconds: u64) {
    let end = now() + microseconds * KHZ.load(Ordering::Relaxed) / 1000;
    while now() < end {
        core::hint::spin_loop();
    }
}

/// A moment after which waiting ends.
#[derive(Clone, Copy)]
pub struct Deadline(u64);

impl Deadline {
    /// `ms` milliseconds from now.
    pub fn after_ms(ms: u64) -> Self {
        Self(now() + ms * KHZ.load(Ordering::Relaxed))
    }

    /// Whether it has come.
    pub fn passed(self) -> bool {
        now() >= self.0
    }
}

/// Finds the frequency of the time stamp counter.
pub fn init() {
    // The shortest of a few, for a busy host stretches some of them.
    let khz = (0..3)
        .filter_map(|_| from_pit())
        .min()
        .or_else(from_cpuid)
        .unwrap_or(ASSUMED_KHZ);
    KHZ.store(khz, Ordering::Relaxed);
    crate::serial::println!("time stamp counter: {} MHz", khz / 1000);
}

/// Times 10 ms with channel 2 of the programmable interval timer, if there is one.
fn from_pit() -> Option<u64> {
    const HZ: u64 = 1_193_182;
    const TICKS: u16 = 11_932;
    const GATE: u16 = 0x61;
    // Gate on, speaker off; then mode 0 (output rises at the end), both bytes.
    io::out8(GATE, io::in8(GATE) & !2 | 1);
    io::out8(0x43, 0xb0);
    io::out8(0x42, TICKS.to_le_bytes()[0]);
    io::out8(0x42, TICKS.to_le_bytes()[1]);
    let start = now();
    if io::in8(GATE) & 0x20 != 0 {
        // No timer: the port floats.
        return None;
    }
    // 10 ms at 10 GHz, ten times over.
    let limit = start + 1_000_000_000;
    while io::in8(GATE) & 0x20 == 0 {
        if now() > limit {
            return None;
        }
    }
    let khz = (now() - start) * HZ / u64::from(TICKS) / 1000;
    (100_000..20_000_000).contains(&khz).then_some(khz)
}

/// Asks CPUID: the hypervisor's timing leaf, the crystal clock leaf, the nominal frequency leaf.
fn from_cpuid() -> Option<u64> {
    let hypervisor = __cpuid(0x4000_0000).eax;
    if (0x4000_0010..0x4001_0000).contains(&hypervisor) {
        let khz = __cpuid(0x4000_0010).eax;
        if khz != 0 {
            return Some(u64::from(khz));
        }
    }
    let highest = __cpuid(0).eax;
    if highest >= 0x15 {
        let leaf = __cpuid(0x15);
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            let hz = u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax);
            return Some(hz / 1000);
        }
    }
    if highest >= 0x16 {
        let mhz = __cpuid(0x16).eax & 0xffff;
        return (mhz != 0).then_some(u64::from(mhz) * 1000);
    }
    None
}
