//! A guest without an operating system that tests NVMe controllers from inside a virtual machine.
//!
//! It is an ELF image with a PVH note. All of its Rust code runs at CPL 3 with every port and
//! page open to it, for code at CPL 0 is emulated instruction by instruction on hosts with software
//! KVM; see `entry.s`. The kernel command line chooses what it does:
//!
//! ```text
//! test=NAME[,NAME...] | test=all | list
//! ```
//!
//! Each test prints one `TEST name ... ok|FAILED: why|skipped: why`, the end is one line
//! `RESULT passed=N failed=N skipped=N`, then the machine powers off, or resets if a test failed.
//! Build it with `cargo build --release -p bare-guest`.

#![no_std]
#![no_main]
// This only ever is x86-64 code, where usize is u64; registers, commands and addresses are split
// into halves all over it.
#![allow(clippy::cast_possible_truncation)]
// A failure carries its words with it, for there is no heap to put them on.
#![allow(clippy::result_large_err)]

mod acpi;
mod check;
mod cmdline;
mod entry;
mod exit;
mod interrupts;
mod io;
mod memory;
mod nvme;
mod pci;
mod pvh;
mod random;
mod serial;
mod tests;
mod time;
mod virtio;

use cmdline::CommandLine;
use serial::println;

/// Where `entry.s` arrives, at CPL 3 on its own stack.
#[unsafe(no_mangle)]
extern "C" fn rust_start() -> ! {
    interrupts::init();
    let info = pvh::StartInfo::get();
    let line = CommandLine::new(info.command_line());
    // The first sign of life, before anything that takes time.
    println!("bare guest: {line}");
    memory::init(&info);
    time::init();
    let ok = tests::run(&line, &info);
    if ok {
        exit::power_off();
    }
    exit::reset();
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    tests::abandon(format_args!("{info}"))
}
