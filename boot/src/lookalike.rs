//! What a file is that is no kernel, by its first bytes.

use zerocopy::little_endian::U16;

use crate::bzimage::{BOOT_FLAG, BOOT_FLAG_OFFSET};
use crate::file::Image;

const COMPRESSED: &str = "it is compressed; an initial RAM disk is given with --initrd, a vmlinux has to \
    be unpacked first (a bzImage must not be)";
const RAM_DISK: &str = "it is an initial RAM disk (a cpio archive); give it with --initrd";
const DISK: &str = "it is a disk image; give it with --disk";
const SCRIPT: &str = "it is a script";
const OTHER: &str = "a Linux bzImage or an x86-64 ELF file is wanted";

const MAGIC: [(&[u8], &str); 13] = [
    (b"070701", RAM_DISK),
    (b"070702", RAM_DISK),
    (b"070707", RAM_DISK),
    (b"\x1f\x8b", COMPRESSED),
    (b"\xfd7zXZ\0", COMPRESSED),
    (b"\x28\xb5\x2f\xfd", COMPRESSED),
    (b"BZh", COMPRESSED),
    // LZ4, as Linux has it and as the tool makes it.
    (b"\x02\x21\x4c\x18", COMPRESSED),
    (b"\x04\x22\x4d\x18", COMPRESSED),
    (b"\x5d\0\0", COMPRESSED),
    (b"\x89LZO", COMPRESSED),
    (b"QFI\xfb", DISK),
    (b"#!", SCRIPT),
];

/// What to do about a file that is neither a bzImage nor an ELF file.
pub(crate) fn advice(image: &Image) -> &'static str {
    let starts_with = |magic: &[u8]| {
        let mut start = vec![0; magic.len()];
        image.read_at(&mut start, 0).is_ok() && start == magic
    };
    let found = MAGIC.iter().find(|(magic, _)| starts_with(magic));
    let boots = || {
        image
            .read::<U16>(BOOT_FLAG_OFFSET)
            .is_ok_and(|flag| flag == BOOT_FLAG)
    };
    match found {
        Some((_, advice)) => advice,
        None if boots() => DISK,
        None => OTHER,
    }
}
