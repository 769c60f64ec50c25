//! Linux bzImage, entered through the 64-bit boot protocol
//! (Linux Documentation/arch/x86/boot.rst).

use std::ops::Range;

use linux_loader::loader::bootparam::{
    LOADED_HIGH, XLF_KERNEL_64, boot_e820_entry, boot_params, setup_header,
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::little_endian::{U16, U32};

use crate::error::{Error, FileError, KernelError};
use crate::file::Image;
use crate::layout;
use crate::memory_map::memory_map;

/// Where the setup header is, in the file and in `boot_params`.
const HEADER_OFFSET: usize = 0x1F1;
/// The byte that says where the setup header ends, counted from the byte after.
const HEADER_LENGTH_OFFSET: u64 = 0x201;
/// Where the magic number is, right after that byte.
const MAGIC_OFFSET: usize = 0x202;
/// Where the boot sector signature is.
pub(crate) const BOOT_FLAG_OFFSET: u64 = 0x1FE;
/// End of the fields up to `init_size`, which protocol 2.12 has.
const HEADER_MIN_END: usize = 0x264;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Boot sector signature.
pub(crate) const BOOT_FLAG: u16 = 0xAA55;
/// The 64-bit entry point, `startup_64`, is this far into the protected-mode
/// code.
const ENTRY_64_OFFSET: u64 = 0x200;
/// XLF_KERNEL_64 came with boot protocol 2.12.
const MIN_PROTOCOL: u16 = 0x020C;
/// `type_of_loader` of a boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xFF;
/// `vid_mode`: "normal", as if no mode was asked for.
const VIDEO_MODE_NORMAL: u16 = 0xFFFF;

/// A bzImage whose header was found good.
pub(crate) struct BzImage {
    image: Image,
    header: setup_header,
    /// Where the protected-mode code starts in the file.
    payload_offset: u64,
    payload_length: u64,
    /// Guest memory that the kernel needs until it knows its memory map.
    range: Range<u64>,
}

/// Whether the file has the magic numbers of a Linux kernel image.
pub(crate) fn is_bzimage(image: &Image) -> bool {
    image
        .read::<U16>(BOOT_FLAG_OFFSET)
        .is_ok_and(|flag| flag == BOOT_FLAG)
        && image
            .read::<U32>(MAGIC_OFFSET as u64)
            .is_ok_and(|magic| magic == HEADER_MAGIC)
}

impl BzImage {
    /// Checks the header of `image` against the file and `memory` bytes of RAM.
    pub(crate) fn parse(image: Image, memory: u64) -> Result<Self, KernelError> {
        let header = read_header(&image)?;
        let setup_sectors = match header.setup_sects {
            0 => 4, // boot.rst: for backwards compatibility
            sectors => u64::from(sectors),
        };
        let payload_offset = (setup_sectors + 1) * 512;
        // syssize counts 16-byte paragraphs, the last of which may be short.
        let described = (u64::from(header.syssize) * 16).saturating_sub(15);
        image.require(payload_offset + described.max(ENTRY_64_OFFSET + 1))?;
        let payload_length = image.length() - payload_offset;

        let start = header.pref_address;
        if start < layout::HIGH_MEMORY_START {
            return Err(KernelError::LoadAddress { address: start });
        }
        // A relocatable kernel that is loaded lower still unpacks itself to
        // pref_address, so there is no second place to try.
        let end = start.saturating_add(payload_length.max(u64::from(header.init_size)));
        layout::check_kernel_end(end, memory)?;
        Ok(Self {
            image,
            header,
            payload_offset,
            payload_length,
            range: start..end,
        })
    }

    /// Longest command line, the NUL not counted.
    pub(crate) fn cmdline_limit(&self) -> u64 {
        u64::from(self.header.cmdline_size)
    }

    /// End of the memory that the kernel needs (exclusive).
    pub(crate) fn end(&self) -> u64 {
        self.range.end
    }

    /// First address that no byte of the initrd may be at.
    pub(crate) fn initrd_limit(&self) -> u64 {
        u64::from(self.header.initrd_addr_max) + 1
    }

    /// Copies the protected-mode code and returns the entry point.
    pub(crate) fn copy_to(&mut self, ram: &GuestMemoryMmap) -> Result<u64, FileError> {
        self.image.copy_to(
            ram,
            self.range.start,
            self.payload_offset,
            self.payload_length,
        )?;
        Ok(self.range.start + ENTRY_64_OFFSET)
    }

    /// Writes `boot_params` to [`layout::ZERO_PAGE`].
    // Every address stored in 32 bits is below LOW_RAM_END.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn write_boot_params(
        &self,
        ram: &GuestMemoryMmap,
        memory: u64,
        initrd: Option<&Range<u64>>,
        rsdp: u64,
    ) -> Result<(), Error> {
        let mut params = boot_params {
            hdr: self.header,
            acpi_rsdp_addr: rsdp,
            ..Default::default()
        };
        params.hdr.type_of_loader = LOADER_UNDEFINED;
        params.hdr.vid_mode = VIDEO_MODE_NORMAL;
        params.hdr.code32_start = self.range.start as u32;
        params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
        if let Some(initrd) = initrd {
            params.hdr.ramdisk_image = initrd.start as u32;
            params.hdr.ramdisk_size = (initrd.end - initrd.start) as u32;
        }
        let map = memory_map(memory);
        params.e820_entries = map.len() as u8;
        let mut table = params.e820_table;
        for (entry, region) in table.iter_mut().zip(&map) {
            *entry = boot_e820_entry {
                addr: region.start,
                size: region.length,
                r#type: region.kind as u32,
            };
        }
        params.e820_table = table;
        ram.write_obj(params, GuestAddress(layout::ZERO_PAGE))?;
        Ok(())
    }
}

/// Reads as much of the setup header as the file says it has; the rest stays
/// zero, as boot.rst asks.
fn read_header(image: &Image) -> Result<setup_header, KernelError> {
    image.require(HEADER_MIN_END as u64)?;
    let length: u8 = image.read(HEADER_LENGTH_OFFSET)?;
    let end = (MAGIC_OFFSET + usize::from(length)).max(HEADER_MIN_END);
    let mut header = setup_header::default();
    let bytes = header.as_mut_slice();
    let known = bytes.len().min(end - HEADER_OFFSET);
    image.read_at(&mut bytes[..known], HEADER_OFFSET as u64)?;

    let version = header.version;
    if version < MIN_PROTOCOL {
        return Err(KernelError::OldProtocol { version });
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(KernelError::LoadedLow);
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(KernelError::No64BitEntry);
    }
    Ok(header)
}
