//! Exceptions, the local APIC, and counters of message-signalled interrupts.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::io;
use crate::time::Deadline;

/// Interrupts that [`message`] can make, each with its own counter.
pub const MESSAGES: u16 = 64;

const FIRST_VECTOR: u8 = 0x30;
const STUB_BYTES: u64 = 32;
const EXCEPTION_STUB_BYTES: u64 = 16;
const UNDEFINED: usize = 6;
const SPURIOUS_VECTOR: usize = 0xff;
const KERNEL_CODE: u64 = 0x08;

const APIC: u64 = 0xfee0_0000;
const APIC_ID: u64 = APIC + 0x20;
const TASK_PRIORITY: u64 = APIC + 0x80;
const SPURIOUS: u64 = APIC + 0xf0;
const LOCAL_VECTORS: [u64; 3] = [TIMER, APIC + 0x350, APIC + 0x360];
const TIMER: u64 = APIC + 0x320;
const TIMER_COUNT: u64 = APIC + 0x380;
const TIMER_DIVIDE: u64 = APIC + 0x3e0;
const TIMER_PERIODIC: u32 = 1 << 17;
const DIVIDE_BY_16: u32 = 3;
/// About 100 ms with KVM's APIC clock of 1 GHz.
const TIMER_PERIOD: u32 = 6_250_000;
/// The counter that the timer counts in; no device gets it.
const TIMER_MESSAGE: u16 = MESSAGES - 1;
const MASKED: u32 = 1 << 16;
const SOFTWARE_ENABLE: u32 = 1 << 8;

unsafe extern "C" {
    static exception_stubs: u8;
    static msi_stubs: u8;
    static spurious_stub: u8;
    static undefined_stub: u8;
    /// Halts until the next interrupt if counter `index` is `count`.
    fn sleep_unless_counted(index: u64, count: u64);
    static idt: [[AtomicU64; 2]; 256];
    static msi_counters: [AtomicU64; MESSAGES as usize];
    /// Vector, error code, RIP, RSP, CR2.
    static fault_record: [AtomicU64; 5];
}

fn set_gate(vector: usize, handler: u64) {
    // SAFETY: entry.s reserves 256 gates of 16 bytes; atomics allow shared writes.
    let gate = unsafe { &idt[vector] };
    gate[1].store(handler >> 32, Ordering::Relaxed);
    // An interrupt gate: present, type 14, interrupts off inside.
    let low = handler & 0xffff | KERNEL_CODE << 16 | 0x8e << 40 | (handler >> 16 & 0xffff) << 48;
    gate[0].store(low, Ordering::Relaxed);
}

/// Fills the interrupt table and enables the local APIC with nothing but messages in it.
pub fn init() {
    let exceptions = (&raw const exception_stubs).addr() as u64;
    for vector in 0..32 {
        set_gate(vector, exceptions + vector as u64 * EXCEPTION_STUB_BYTES);
    }
    let messages = (&raw const msi_stubs).addr() as u64;
    for index in 0..u64::from(MESSAGES) {
        set_gate(
            usize::from(FIRST_VECTOR) + index as usize,
            messages + index * STUB_BYTES,
        );
    }
    set_gate(SPURIOUS_VECTOR, (&raw const spurious_stub).addr() as u64);
    set_gate(UNDEFINED, (&raw const undefined_stub).addr() as u64);
    for local in LOCAL_VECTORS {
        io::write32(local, MASKED);
    }
    io::write32(TASK_PRIORITY, 0);
    io::write32(SPURIOUS, SOFTWARE_ENABLE | SPURIOUS_VECTOR as u32);
}

/// Address and data of an MSI that counts in `count(index)`, to this processor.
pub fn message(index: u16) -> (u64, u32) {
    assert!(index < TIMER_MESSAGE);
    let id = io::read32(APIC_ID) >> 24;
    (
        APIC | u64::from(id) << 12,
        u32::from(FIRST_VECTOR) + u32::from(index),
    )
}

/// How often message `index` arrived so far.
pub fn count(index: u16) -> u64 {
    // SAFETY: entry.s reserves the counters; the handlers add to them with single instructions.
    unsafe { msi_counters[usize::from(index)].load(Ordering::Relaxed) }
}

/// Sleeps until the next interrupt.
pub fn halt() {
    // SAFETY: counter 0 exists, and the function keeps all registers.
    unsafe { sleep_unless_counted(0, count(0)) };
}

/// Sleeps until message `index` arrived more than `before` times, or `deadline` passed; whether it
/// did.
pub fn wait_above(index: u16, before: u64, deadline: Deadline) -> bool {
    // The timer wakes the processor should the message never come.
    io::write32(TIMER_DIVIDE, DIVIDE_BY_16);
    io::write32(
        TIMER,
        TIMER_PERIODIC | (u32::from(FIRST_VECTOR) + u32::from(TIMER_MESSAGE)),
    );
    io::write32(TIMER_COUNT, TIMER_PERIOD);
    while count(index) == before && !deadline.passed() {
        // SAFETY: the index is checked by `count`, and the function keeps all registers.
        unsafe { sleep_unless_counted(u64::from(index), before) };
    }
    io::write32(TIMER, MASKED);
    count(index) > before
}

/// Empties the interrupt table: the next exception shuts the processor down.
pub fn forget() {
    // SAFETY: as in `set_gate`.
    for gate in unsafe { &idt } {
        gate[0].store(0, Ordering::Relaxed);
    }
}

/// Where exceptions continue, at CPL 3 on a stack of their own.
#[unsafe(no_mangle)]
extern "C" fn report_fault() -> ! {
    // SAFETY: the exception handler filled the record before it came here.
    let [vector, error, rip, rsp, cr2] =
        unsafe { [0, 1, 2, 3, 4].map(|index: usize| fault_record[index].load(Ordering::Relaxed)) };
    crate::tests::abandon(format_args!(
        "exception {vector} error {error:#x} rip {rip:#x} rsp {rsp:#x} cr2 {cr2:#x}"
    ))
}
