//! 64-bit ELF kernels with a PVH entry point (Xen's
//! docs/misc/pvh.pandoc, "x86/HVM direct boot ABI").

use vm_memory::GuestMemoryMmap;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{FileError, KernelError};
use crate::file::Image;
use crate::layout;

/// Most program headers an ELF kernel may have; Linux has five.
pub(crate) const MAX_PROGRAM_HEADERS: u16 = 128;
/// Longest note segment that is searched, in bytes; Linux has some hundreds.
const MAX_NOTES: u64 = 1 << 20;
/// Longest command line, the NUL not counted. PVH has no field for it; this is
/// COMMAND_LINE_SIZE - 1 of Linux (arch/x86/include/asm/setup.h), which cuts a
/// longer one without a word.
pub(crate) const CMDLINE_LIMIT: u64 = 2047;

const MAGIC: [u8; 4] = *b"\x7fELF";
const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const TYPE_EXEC: u16 = 2;
const TYPE_DYN: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
const NOTE_NAME: &[u8] = b"Xen\0";
/// XEN_ELFNOTE_PHYS32_ENTRY: physical address of the 32-bit entry point.
const NOTE_PHYS32_ENTRY: u32 = 18;

/// `Elf64_Ehdr`.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Header {
    magic: [u8; 4],
    class: u8,
    data: u8,
    ident: [u8; 10],
    elf_type: U16,
    machine: U16,
    version: U32,
    entry: U64,
    phoff: U64,
    shoff: U64,
    flags: U32,
    ehsize: U16,
    phentsize: U16,
    phnum: U16,
    shentsize: U16,
    shnum: U16,
    shstrndx: U16,
}

/// `Elf64_Phdr`.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct ProgramHeader {
    segment_type: U32,
    flags: U32,
    offset: U64,
    vaddr: U64,
    paddr: U64,
    filesz: U64,
    memsz: U64,
    align: U64,
}

/// `Elf64_Nhdr`.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct NoteHeader {
    namesz: U32,
    descsz: U32,
    note_type: U32,
}

/// A PT_LOAD segment, checked against the file and guest RAM.
struct Segment {
    offset: u64,
    file_length: u64,
    address: u64,
    end: u64,
}

/// An ELF kernel whose headers were found good.
pub(crate) struct Elf {
    image: Image,
    segments: Vec<Segment>,
    /// Address of the PVH entry point.
    entry: u64,
}

/// Whether the file starts like an ELF file.
pub(crate) fn is_elf(image: &Image) -> bool {
    image.read::<[u8; 4]>(0).is_ok_and(|magic| magic == MAGIC)
}

impl Elf {
    /// Checks the headers of `image` against the file and `memory` bytes of RAM.
    pub(crate) fn parse(image: Image, memory: u64) -> Result<Self, KernelError> {
        let headers = program_headers(&image)?;
        let entry = pvh_entry(&image, &headers)?;
        let segments = headers
            .iter()
            .filter(|header| header.segment_type == SEGMENT_LOAD)
            .filter(|header| header.memsz != 0 || header.filesz != 0)
            .map(|header| check_segment(&image, header, memory))
            .collect::<Result<Vec<_>, _>>()?;
        if segments.is_empty() {
            return Err(KernelError::NoSegments);
        }
        if !segments
            .iter()
            .any(|segment| (segment.address..segment.end).contains(&entry))
        {
            return Err(KernelError::EntryOutside { entry });
        }
        Ok(Self {
            image,
            segments,
            entry,
        })
    }

    /// End of the highest segment (exclusive).
    pub(crate) fn end(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| segment.end)
            .fold(layout::HIGH_MEMORY_START, u64::max)
    }

    /// Copies all segments and returns the entry point. What a segment has in
    /// memory beyond the file is zero already.
    pub(crate) fn copy_to(&mut self, ram: &GuestMemoryMmap) -> Result<u64, FileError> {
        for segment in &self.segments {
            self.image
                .copy_to(ram, segment.address, segment.offset, segment.file_length)?;
        }
        Ok(self.entry)
    }
}

fn program_headers(image: &Image) -> Result<Vec<ProgramHeader>, KernelError> {
    let [.., class, data] = image.read::<[u8; 6]>(0)?;
    if class != CLASS_64 {
        return Err(KernelError::Elf32);
    }
    if data != DATA_LITTLE_ENDIAN {
        return Err(KernelError::ElfByteOrder);
    }
    let header: Header = image.read(0)?;
    if header.machine != MACHINE_X86_64 {
        return Err(KernelError::ElfMachine {
            machine: header.machine.get(),
        });
    }
    if header.elf_type != TYPE_EXEC && header.elf_type != TYPE_DYN {
        return Err(KernelError::ElfType {
            elf_type: header.elf_type.get(),
        });
    }
    let (count, size) = (header.phnum.get(), header.phentsize.get());
    let right_size = usize::from(size) == size_of::<ProgramHeader>();
    if !right_size || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(KernelError::ElfProgramHeaders { count, size });
    }
    (0..count)
        .map(|index| u64::from(index) * u64::from(size))
        .map(|offset| image.read(header.phoff.get().saturating_add(offset)))
        .collect()
}

fn check_segment(
    image: &Image,
    header: &ProgramHeader,
    memory: u64,
) -> Result<Segment, KernelError> {
    let (in_file, in_memory) = (header.filesz.get(), header.memsz.get());
    if in_file > in_memory {
        return Err(KernelError::SegmentLength { in_file, in_memory });
    }
    image.require(header.offset.get().saturating_add(in_file))?;
    let address = header.paddr.get();
    if address < layout::HIGH_MEMORY_START {
        return Err(KernelError::SegmentAddress { address });
    }
    let end = address.saturating_add(in_memory);
    layout::check_kernel_end(end, memory)?;
    Ok(Segment {
        offset: header.offset.get(),
        file_length: in_file,
        address,
        end,
    })
}

/// The PVH entry point. It is looked for before anything else is checked: any
/// program is an ELF file, and that it is no kernel says more than its addresses.
fn pvh_entry(image: &Image, headers: &[ProgramHeader]) -> Result<u64, KernelError> {
    for header in headers {
        if header.segment_type == SEGMENT_NOTE
            && let Some(entry) = find_pvh_entry(image, header)?
        {
            return Ok(entry);
        }
    }
    Err(KernelError::NoPvhNote)
}

/// Looks for the PVH entry point in one PT_NOTE segment.
fn find_pvh_entry(image: &Image, header: &ProgramHeader) -> Result<Option<u64>, KernelError> {
    let length = header.filesz.get();
    if length > MAX_NOTES {
        return Err(KernelError::BadNotes("a note segment is over 1 MiB long"));
    }
    // At most MAX_NOTES.
    #[allow(clippy::cast_possible_truncation)]
    let mut notes = vec![0; length as usize];
    image.read_at(&mut notes, header.offset.get())?;

    let mut rest = notes.as_slice();
    while let Ok((note, tail)) = NoteHeader::read_from_prefix(rest) {
        let (name, tail) = take_field(tail, note.namesz)?;
        let (desc, tail) = take_field(tail, note.descsz)?;
        if name == NOTE_NAME && note.note_type == NOTE_PHYS32_ENTRY {
            return entry_address(desc).map(Some);
        }
        rest = tail;
    }
    Ok(None)
}

/// Splits a note's name or descriptor, padded to four bytes, off `bytes`.
fn take_field(bytes: &[u8], length: U32) -> Result<(&[u8], &[u8]), KernelError> {
    let length = length.get() as usize;
    let (field, tail) = bytes
        .split_at_checked(length)
        .ok_or(KernelError::BadNotes("a note is longer than its segment"))?;
    // The padding after the last note may be missing.
    let padding = (length.next_multiple_of(4) - length).min(tail.len());
    Ok((field, &tail[padding..]))
}

/// The entry point is written as a 32-bit or a 64-bit number.
fn entry_address(desc: &[u8]) -> Result<u64, KernelError> {
    if let Ok(entry) = U64::read_from_bytes(desc) {
        return Ok(entry.get());
    }
    U32::read_from_bytes(desc)
        .map(|entry| u64::from(entry.get()))
        .map_err(|_| KernelError::BadNotes("the PVH entry point is not 4 or 8 bytes long"))
}
