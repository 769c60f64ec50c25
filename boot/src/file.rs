//! Files that are copied into guest memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{FileError, KernelError};

/// An open regular file of known length.
pub(crate) struct Image {
    file: File,
    length: u64,
}

impl Image {
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        // The type is checked first: opening a pipe would wait for its writer.
        let file_type = std::fs::metadata(path)?.file_type();
        if file_type.is_dir() {
            return Err(FileError::Directory);
        }
        if !file_type.is_file() {
            return Err(FileError::NotRegular);
        }
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        if length == 0 {
            return Err(FileError::Empty);
        }
        Ok(Self { file, length })
    }

    /// Length in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Fails unless the file has `needed` bytes.
    pub(crate) fn require(&self, needed: u64) -> Result<(), KernelError> {
        if self.length < needed {
            return Err(KernelError::Truncated {
                length: self.length,
                needed,
            });
        }
        Ok(())
    }

    /// Fills `bytes` from `offset` on; the file must reach that far.
    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), KernelError> {
        self.require(offset.saturating_add(bytes.len() as u64))?;
        self.file
            .read_exact_at(bytes, offset)
            .map_err(FileError::Io)?;
        Ok(())
    }

    /// Reads a header.
    pub(crate) fn read<T: FromBytes + IntoBytes>(&self, offset: u64) -> Result<T, KernelError> {
        let mut value = T::new_zeroed();
        self.read_at(value.as_mut_bytes(), offset)?;
        Ok(value)
    }

    /// Copies `length` bytes from `offset` to guest address `to`, without a
    /// buffer between.
    pub(crate) fn copy_to(
        &mut self,
        ram: &GuestMemoryMmap,
        to: u64,
        offset: u64,
        length: u64,
    ) -> Result<(), FileError> {
        self.file.seek(SeekFrom::Start(offset))?;
        if let Some(place) = Place::find(ram, to, length) {
            return place.fill(&self.file, length);
        }
        // Callers keep `length` within guest RAM, which is in our address space.
        #[allow(clippy::cast_possible_truncation)]
        let length = length as usize;
        ram.read_exact_volatile_from(GuestAddress(to), &mut self.file, length)
            .map_err(FileError::Copy)
    }
}

/// The place of guest memory in the file behind it.
///
/// Written there, a page costs neither a fault nor zeroes that are overwritten: half of the time for a
/// kernel of 11 MiB.
struct Place<'a> {
    file: &'a File,
    offset: u64,
}

impl<'a> Place<'a> {
    fn find(ram: &'a GuestMemoryMmap, to: u64, length: u64) -> Option<Self> {
        let region = ram.find_region(GuestAddress(to))?;
        let behind = region.file_offset()?;
        let within = to - region.start_addr().raw_value();
        let fits = within.checked_add(length)? <= region.len();
        fits.then(|| Self {
            file: behind.file(),
            offset: behind.start() + within,
        })
    }

    /// Copies `length` bytes from where `from` stands.
    fn fill(&self, from: &File, length: u64) -> Result<(), FileError> {
        let mut to = self.file;
        to.seek(SeekFrom::Start(self.offset))?;
        // Between two files the kernel does all of it (sendfile).
        let count = io::copy(&mut from.take(length), &mut to)?;
        if count < length {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }
}
