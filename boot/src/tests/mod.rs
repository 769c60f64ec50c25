//! Loads made-up kernels into real guest memory.

// The numbers here are small and of our own making.
#![allow(clippy::cast_possible_truncation)]

mod bad_kernels;
mod bzimage;
mod cmdline;
mod elf;
mod hostile_headers;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vm_memory::{ByteValued, Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::{Config, Entry, Error, acpi, layout};

const MIB: u64 = 1 << 20;
/// RAM of the machine, unless a test asks for another size.
const MEMORY: u64 = 64 * MIB;
/// Where the made-up kernels are loaded.
const LOAD_ADDRESS: u64 = 2 * MIB;

/// A machine that is being made ready, with its files in a directory of its own.
struct Machine {
    directory: tempfile::TempDir,
    memory: u64,
    ram: GuestMemoryMmap,
}

impl Machine {
    /// With one file behind all of its RAM, as berth has it.
    fn new(memory: u64) -> Self {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(memory).unwrap();
        let mut offset = 0;
        Self::with(memory, |length| {
            let part = FileOffset::from_arc(Arc::clone(&file), offset);
            offset += length;
            Some(part)
        })
    }

    fn with(memory: u64, mut behind: impl FnMut(u64) -> Option<FileOffset>) -> Self {
        let ranges = layout::ram_ranges(memory).into_iter();
        let ranges = ranges.map(|(start, length)| {
            let bytes = usize::try_from(length).unwrap();
            (GuestAddress(start), bytes, behind(length))
        });
        Self {
            directory: tempfile::tempdir().unwrap(),
            memory,
            ram: GuestMemoryMmap::from_ranges_with_files(ranges).unwrap(),
        }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn load(&self, kernel: &Path, initrd: Option<&Path>, cmdline: &str) -> Result<Entry, Error> {
        crate::load(
            &self.ram,
            &Config {
                kernel,
                initrd,
                cmdline,
                memory: self.memory,
                acpi: &acpi::Config::new(2, self.memory),
            },
        )
    }

    /// Loads a kernel from bytes, without an initrd.
    fn load_bytes(&self, kernel: &[u8], cmdline: &str) -> Result<Entry, Error> {
        self.load(&self.file("kernel", kernel), None, cmdline)
    }

    fn read(&self, address: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        self.ram
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn read_obj<T: ByteValued>(&self, address: u64) -> T {
        self.ram.read_obj(GuestAddress(address)).unwrap()
    }
}

#[test]
fn memory_without_a_file_behind_it_is_filled_too() {
    let machine = Machine::with(MEMORY, |_| None);
    machine.load_bytes(&good_bzimage(), "").unwrap();
    assert_eq!(machine.read(LOAD_ADDRESS, PAYLOAD), pattern(PAYLOAD));
}

/// `length` bytes in which no two neighbouring pages are alike.
fn pattern(length: u64) -> Vec<u8> {
    (0..length)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect()
}

/// Overwrites bytes from `offset` on.
fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Length of the protected-mode code of [`good_bzimage`].
const PAYLOAD: u64 = 0x3000;
/// `init_size` of [`good_bzimage`].
const INIT_SIZE: u64 = 4 * MIB;

/// A bzImage with a setup header as Linux 6 has it.
fn good_bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1F1] = 1; // setup_sects
    put(&mut image, 0x1F4, &(PAYLOAD as u32 / 16).to_le_bytes()); // syssize
    put(&mut image, 0x1FE, &[0x55, 0xAA]);
    put(&mut image, 0x200, &[0xEB, 0x6A]); // the header ends at 0x26C
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x20Fu16.to_le_bytes());
    image[0x211] = 1; // loadflags: LOADED_HIGH
    put(&mut image, 0x22C, &0x7FFF_FFFFu32.to_le_bytes()); // initrd_addr_max
    put(&mut image, 0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    image[0x234] = 1; // relocatable_kernel
    put(&mut image, 0x236, &0x7Fu16.to_le_bytes()); // xloadflags
    put(&mut image, 0x238, &2047u32.to_le_bytes()); // cmdline_size
    put(&mut image, 0x258, &LOAD_ADDRESS.to_le_bytes()); // pref_address
    put(&mut image, 0x260, &(INIT_SIZE as u32).to_le_bytes());
    image.extend(pattern(PAYLOAD));
    image
}

/// Offsets in [`good_elf`].
const ELF_LOAD_HEADER: usize = 64;
const ELF_NOTE_HEADER: usize = 64 + 56;
const ELF_NOTES: usize = 0x100;
const ELF_SEGMENT: usize = 0x200;
/// Length of the segment in the file; in memory it is longer.
const ELF_FILE_LENGTH: u64 = 0x2345;
const ELF_MEMORY_LENGTH: u64 = 0x8000;
/// PVH entry point of [`good_elf`].
const ELF_ENTRY: u64 = LOAD_ADDRESS + 0x40;

fn program_header(kind: u32, offset: u64, address: u64, in_file: u64, in_memory: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(kind.to_le_bytes());
    header.extend(5u32.to_le_bytes()); // readable, executable
    for field in [offset, address, address, in_file, in_memory, 4] {
        header.extend(field.to_le_bytes());
    }
    header
}

fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend((name.len() as u32).to_le_bytes());
    note.extend((desc.len() as u32).to_le_bytes());
    note.extend(kind.to_le_bytes());
    for field in [name, desc] {
        note.extend(field);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// A 64-bit ELF executable with one segment and a PVH note among others.
fn good_elf() -> Vec<u8> {
    let mut notes = note(b"GNU\0", 3, &[1, 2, 3, 4, 5]);
    notes.extend(note(b"Linux\0", 18, &[0xFF; 4]));
    notes.extend(note(b"Xen\0", 18, &ELF_ENTRY.to_le_bytes()));
    elf_with_notes(&notes)
}

fn elf_with_notes(notes: &[u8]) -> Vec<u8> {
    let mut image = vec![0; ELF_SEGMENT];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, &2u16.to_le_bytes()); // e_type: executable
    put(&mut image, 18, &62u16.to_le_bytes()); // e_machine
    put(&mut image, 20, &1u32.to_le_bytes());
    put(&mut image, 24, &LOAD_ADDRESS.to_le_bytes()); // e_entry
    put(&mut image, 32, &64u64.to_le_bytes()); // e_phoff
    put(&mut image, 52, &64u16.to_le_bytes());
    put(&mut image, 54, &56u16.to_le_bytes()); // e_phentsize
    put(&mut image, 56, &2u16.to_le_bytes()); // e_phnum
    let load = program_header(
        1,
        ELF_SEGMENT as u64,
        LOAD_ADDRESS,
        ELF_FILE_LENGTH,
        ELF_MEMORY_LENGTH,
    );
    put(&mut image, ELF_LOAD_HEADER, &load);
    let length = notes.len() as u64;
    let note_header = program_header(4, ELF_NOTES as u64, 0, length, length);
    put(&mut image, ELF_NOTE_HEADER, &note_header);
    put(&mut image, ELF_NOTES, notes);
    image.extend(pattern(ELF_FILE_LENGTH));
    image
}
