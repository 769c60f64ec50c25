//! Puts a kernel, its command line and its firmware tables into guest memory,
//! and says where the boot processor starts.
//!
//! Two kinds of kernel are understood: a 64-bit Linux bzImage, entered through
//! the 64-bit boot protocol, and a 64-bit ELF file with a PVH note, entered
//! through the x86/HVM direct boot ABI. Guest memory must be zero before
//! [`load`]: what a kernel expects to be zero is not written again.

pub mod acpi;
mod bzimage;
mod cmdline;
pub mod cpu;
mod elf;
mod error;
mod file;
mod initrd;
pub mod layout;
mod lookalike;
mod memory_map;
mod pvh;
mod reset_vector;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;

use vm_memory::GuestMemoryMmap;

use bzimage::BzImage;
use elf::Elf;
use file::Image;

pub use error::{CmdlineError, Error, FileError, InitrdError, KernelError};

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

/// Whether `kernel` can be loaded into a guest of `memory` bytes, as far as its headers tell.
///
/// # Errors
/// As [`load`], where the kernel is why.
pub fn check(kernel: &Path, memory: u64) -> Result<(), Error> {
    match Kernel::open(kernel, memory) {
        Ok(_) => Ok(()),
        Err(problem) => Err(Error::Kernel {
            path: kernel.to_owned(),
            problem,
        }),
    }
}

/// Puts everything the machine needs to start into guest memory.
///
/// # Errors
/// Says which argument is wrong, how, and what would be right.
pub fn load(ram: &GuestMemoryMmap, config: &Config) -> Result<Entry, Error> {
    let memory = config.memory;
    if memory <= layout::HIGH_MEMORY_START || memory > layout::MAX_MEMORY {
        return Err(Error::MemorySize { memory });
    }
    cmdline::check_characters(config.cmdline)?;

    let kernel_error = |problem| Error::Kernel {
        path: config.kernel.to_owned(),
        problem,
    };
    let mut kernel = Kernel::open(config.kernel, memory).map_err(kernel_error)?;
    cmdline::write(ram, config.cmdline, kernel.cmdline_limit())?;
    let rip = kernel.copy_to(ram).map_err(|e| kernel_error(e.into()))?;
    let initrd = match config.initrd {
        Some(path) => {
            let range = initrd::load(ram, path, &kernel.initrd_room(memory));
            Some(range.map_err(|problem| Error::Initrd {
                path: path.to_owned(),
                problem,
            })?)
        }
        None => None,
    };
    let rsdp = acpi::write(ram, config.acpi)?;
    reset_vector::write(ram, config.acpi)?;

    let entry = match &kernel {
        Kernel::BzImage(kernel) => {
            kernel.write_boot_params(ram, memory, initrd.as_ref(), rsdp)?;
            Entry::Linux64 {
                rip,
                boot_params: layout::ZERO_PAGE,
            }
        }
        Kernel::Elf(_) => {
            pvh::write_start_info(ram, memory, initrd.as_ref(), rsdp)?;
            Entry::Pvh {
                rip,
                start_info: layout::PVH_START_INFO,
            }
        }
    };
    entry.cpu_state().write_tables(ram)?;
    Ok(entry)
}

/// A kernel file whose headers were found good.
enum Kernel {
    BzImage(BzImage),
    Elf(Elf),
}

impl Kernel {
    fn open(path: &Path, memory: u64) -> Result<Self, KernelError> {
        let image = Image::open(path)?;
        if elf::is_elf(&image) {
            Elf::parse(image, memory).map(Self::Elf)
        } else if bzimage::is_bzimage(&image) {
            BzImage::parse(image, memory).map(Self::BzImage)
        } else {
            Err(KernelError::NotAKernel(lookalike::advice(&image)))
        }
    }

    fn cmdline_limit(&self) -> u64 {
        match self {
            Self::BzImage(kernel) => kernel.cmdline_limit(),
            Self::Elf(_) => elf::CMDLINE_LIMIT,
        }
    }

    fn copy_to(&mut self, ram: &GuestMemoryMmap) -> Result<u64, FileError> {
        match self {
            Self::BzImage(kernel) => kernel.copy_to(ram),
            Self::Elf(kernel) => kernel.copy_to(ram),
        }
    }

    /// Where the initrd may lie: above the kernel, in the RAM below 4 GiB.
    fn initrd_room(&self, memory: u64) -> Range<u64> {
        let ram_end = memory.min(layout::LOW_RAM_END);
        match self {
            Self::BzImage(kernel) => kernel.end()..ram_end.min(kernel.initrd_limit()),
            Self::Elf(kernel) => kernel.end()..ram_end,
        }
    }
}
