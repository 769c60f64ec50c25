//! The two things that berth wants to know of 64-bit ELF files: the interpreter of a program, and a
//! section of a kernel module (System V ABI, chapters 4 and 5).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Program header: the path of the interpreter.
const PT_INTERP: u32 = 3;
/// Length of a program header.
const PROGRAM_HEADER: usize = 56;
/// Length of a section header.
const SECTION_HEADER: usize = 64;
/// Longest part that is read at once: tables, paths and `.modinfo` are far shorter.
const MAX_PART: usize = 1 << 20;

/// Where the bytes of a file are.
pub trait ReadAt {
    /// Bytes from `offset` on.
    ///
    /// # Errors
    /// They cannot be read, or the file ends before.
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>>;
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

impl ReadAt for [u8] {
    fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let start = usize::try_from(offset).ok();
        let bytes = start.and_then(|start| self.get(start..start.checked_add(length)?));
        let bytes = bytes.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(bytes.to_vec())
    }
}

/// A 64-bit little-endian ELF file.
pub struct Elf<'a, T: ?Sized> {
    file: &'a T,
    header: Vec<u8>,
}

impl<'a, T: ReadAt + ?Sized> Elf<'a, T> {
    /// Reads the header; nothing if the file is something else.
    pub fn open(file: &'a T) -> Option<Self> {
        let header = file.read_at(0, 64).ok()?;
        header
            .starts_with(b"\x7fELF\x02\x01")
            .then_some(Self { file, header })
    }

    /// Path of the program that starts this one; none if it is static.
    ///
    /// # Errors
    /// The file is cut short.
    pub fn interpreter(&self) -> io::Result<Option<String>> {
        let (table, count) = (u64_at(&self.header, 0x20), u16_at(&self.header, 0x38));
        let table = self.part(table, u64::from(count) * PROGRAM_HEADER as u64)?;
        let header = table
            .chunks_exact(PROGRAM_HEADER)
            .find(|header| u32_at(header, 0) == PT_INTERP);
        let Some(header) = header else {
            return Ok(None);
        };
        let path = self.part(u64_at(header, 8), u64_at(header, 0x20))?;
        Ok(Some(text(&path)))
    }

    /// Contents of the section `name`, if there is one.
    ///
    /// # Errors
    /// The file is cut short.
    pub fn section(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let (table, count) = (u64_at(&self.header, 0x28), u16_at(&self.header, 0x3c));
        let names_index = usize::from(u16_at(&self.header, 0x3e));
        let table = self.part(table, u64::from(count) * SECTION_HEADER as u64)?;
        let contents = |header: &[u8]| self.part(u64_at(header, 0x18), u64_at(header, 0x20));
        let mut headers = table.chunks_exact(SECTION_HEADER);
        let Some(names) = headers.clone().nth(names_index) else {
            return Ok(None);
        };
        let names = contents(names)?;
        let is_it = |header: &&[u8]| {
            let start = u32_at(header, 0) as usize;
            let rest = names.get(start..).unwrap_or_default();
            let behind = rest.strip_prefix(name.as_bytes());
            behind.is_some_and(|behind| behind.first().is_none_or(|byte| *byte == 0))
        };
        headers.find(is_it).map(contents).transpose()
    }

    fn part(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_PART {
            return Err(io::Error::other("has an ELF header that makes no sense"));
        }
        self.file.read_at(offset, length)
    }
}

/// What is before the first NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

/// Callers read whole headers: the bytes are there. The same goes for the others.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_has_an_interpreter_and_sections() {
        let file = File::open("/proc/self/exe").unwrap();
        let elf = Elf::open(&file).unwrap();
        let interpreter = elf.interpreter().unwrap().unwrap();
        assert!(interpreter.contains("/ld-"), "{interpreter}");
        let section = elf.section(".interp").unwrap().unwrap();
        assert_eq!(text(&section), interpreter);
        assert_eq!(elf.section(".nonsense").unwrap(), None);
    }

    #[test]
    fn damaged_files_are_refused_without_harm() {
        let whole = std::fs::read("/proc/self/exe").unwrap();
        assert!(Elf::open(b"#!/bin/sh\n".as_slice()).is_none());
        assert!(Elf::open(&whole[..63]).is_none());
        let elf = Elf::open(&whole[..100]).unwrap();
        assert!(elf.interpreter().is_err() && elf.section("x").is_err());
        for at in 0x18..64 {
            let mut damaged = whole[..4096].to_vec();
            damaged[at] = 0xff;
            let elf = Elf::open(damaged.as_slice()).unwrap();
            // Any answer will do.
            let _ = (elf.interpreter(), elf.section(".modinfo"));
        }
    }
}
