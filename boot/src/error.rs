//! What can go wrong before the guest runs.

use std::io;
use std::path::PathBuf;

use vm_memory::GuestMemoryError;

use crate::{acpi, layout};

/// Why a machine could not be made ready to boot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel cannot be used.
    #[error("--kernel {}: {problem}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: KernelError,
    },
    /// The initrd cannot be used.
    #[error("--initrd {}: {problem}", path.display())]
    Initrd {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: InitrdError,
    },
    /// The kernel command line cannot be used.
    #[error("--append: {0}")]
    Cmdline(#[from] CmdlineError),
    /// The size of guest RAM is out of range.
    #[error(
        "--memory: {memory} bytes; a guest can have more than {} MiB and up to {} GiB",
        layout::HIGH_MEMORY_START >> 20,
        layout::MAX_MEMORY >> 30
    )]
    MemorySize {
        /// Bytes asked for.
        memory: u64,
    },
    /// The ACPI tables cannot describe the machine.
    #[error("ACPI tables: {0}")]
    Acpi(#[from] acpi::Error),
    /// Guest RAM does not cover an address that it should.
    #[error("guest memory: {0}")]
    Memory(#[from] GuestMemoryError),
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// The file was cut or failed while it was copied into guest memory.
    #[error("cannot be copied into guest memory: {0}")]
    Copy(GuestMemoryError),
    /// It is a directory.
    #[error("is a directory; give the path of a file")]
    Directory,
    /// It is a pipe, a device or a socket.
    #[error("is not a regular file; its length must be known before it is read")]
    NotRegular,
    /// It has no bytes.
    #[error("is empty")]
    Empty,
}

/// What is wrong with a kernel file.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Neither of the two formats was recognized; what it looks like.
    #[error("is not a kernel: {0}")]
    NotAKernel(&'static str),
    /// It ends before what its headers describe.
    #[error("is cut short: {length} bytes long, its headers describe at least {needed}")]
    Truncated {
        /// Length of the file in bytes.
        length: u64,
        /// Bytes that the headers ask for.
        needed: u64,
    },
    /// bzImage: the boot protocol is older than 2.12.
    #[error(
        "speaks boot protocol {}.{:02}; 2.12 or later (Linux 3.8 or later) is needed",
        version >> 8,
        version & 0xFF
    )]
    OldProtocol {
        /// Major version in the upper byte, minor in the lower.
        version: u16,
    },
    /// bzImage: LOADED_HIGH is not set.
    #[error("is a zImage, which is loaded below 1 MiB; a bzImage is needed")]
    LoadedLow,
    /// bzImage: XLF_KERNEL_64 is not set.
    #[error("is a 32-bit kernel (XLF_KERNEL_64 is not set); a 64-bit kernel is needed")]
    No64BitEntry,
    /// bzImage: the preferred address is in the space of the boot structures.
    #[error("prefers to be loaded at {address:#x}; 0x100000 (1 MiB) is the lowest place for it")]
    LoadAddress {
        /// Its `pref_address`.
        address: u64,
    },
    /// It needs more RAM than the guest has.
    #[error(
        "needs RAM up to {end:#x} to start, but the guest has {memory} bytes; \
         give it at least --memory {}M",
        end.div_ceil(1 << 20)
    )]
    NotEnoughMemory {
        /// End of what it needs (exclusive).
        end: u64,
        /// Guest RAM in bytes.
        memory: u64,
    },
    /// It reaches beyond the RAM below 4 GiB, however much RAM there is.
    #[error(
        "needs RAM up to {end:#x}; a kernel must end below {:#x} (3 GiB)",
        layout::LOW_RAM_END
    )]
    TooHigh {
        /// End of what it needs (exclusive), saturated.
        end: u64,
    },
    /// ELF: for a 32-bit processor.
    #[error("is a 32-bit ELF file; a 64-bit one is needed")]
    Elf32,
    /// ELF: not little-endian.
    #[error("is a big-endian ELF file; a little-endian one is needed")]
    ElfByteOrder,
    /// ELF: for another processor.
    #[error("is an ELF file for machine {machine}; x86-64 (62) is needed")]
    ElfMachine {
        /// Its `e_machine`.
        machine: u16,
    },
    /// ELF: an object file or a core dump.
    #[error("is an ELF file of type {elf_type}; an executable (2 or 3) is needed")]
    ElfType {
        /// Its `e_type`.
        elf_type: u16,
    },
    /// ELF: program headers of an unknown size, none, or too many.
    #[error(
        "has {count} ELF program headers of {size} bytes; 1 to {} of 56 bytes are supported",
        crate::elf::MAX_PROGRAM_HEADERS
    )]
    ElfProgramHeaders {
        /// Its `e_phnum`.
        count: u16,
        /// Its `e_phentsize`.
        size: u16,
    },
    /// ELF: no loadable segment.
    #[error("is an ELF file with nothing to load (no PT_LOAD segment)")]
    NoSegments,
    /// ELF: a segment longer in the file than in memory.
    #[error("has a segment of {in_file} bytes in the file but only {in_memory} in memory")]
    SegmentLength {
        /// Its `p_filesz`.
        in_file: u64,
        /// Its `p_memsz`.
        in_memory: u64,
    },
    /// ELF: a segment in the space of the boot structures.
    #[error("has a segment at {address:#x}; 0x100000 (1 MiB) is the lowest place for one")]
    SegmentAddress {
        /// Its `p_paddr`.
        address: u64,
    },
    /// ELF: no PVH entry point.
    #[error(
        "is an ELF file without a PVH note (XEN_ELFNOTE_PHYS32_ENTRY), so it has no known entry \
         point; build Linux with CONFIG_PVH, or give its bzImage"
    )]
    NoPvhNote,
    /// ELF: notes that cannot be understood.
    #[error("has damaged ELF notes: {0}")]
    BadNotes(&'static str),
    /// ELF: the PVH entry point is in no segment.
    #[error("has its PVH entry point at {entry:#x}, outside all its segments")]
    EntryOutside {
        /// The entry point.
        entry: u64,
    },
}

/// What is wrong with an initrd.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It does not fit between the kernel and the highest address allowed.
    #[error(
        "is {length} bytes long, but only {room} bytes are free for it above the kernel; \
         give the guest more --memory or make the initrd smaller"
    )]
    TooBig {
        /// Length of the initrd in bytes.
        length: u64,
        /// Free bytes above the kernel.
        room: u64,
    },
}

/// What is wrong with a kernel command line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CmdlineError {
    /// A character that kernels do not take in a command line.
    #[error(
        "character {character:?} at byte {position} of the kernel command line; \
         only printable ASCII is allowed"
    )]
    Character {
        /// The character.
        character: char,
        /// Its place, counted from 0.
        position: usize,
    },
    /// The kernel would cut it.
    #[error("the kernel command line is {length} bytes long; this kernel takes {limit}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// What the kernel takes, without the NUL.
        limit: u64,
    },
}
