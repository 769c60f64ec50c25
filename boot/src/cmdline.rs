//! The kernel command line.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::{CmdlineError, Error};
use crate::layout;

/// Refuses what a kernel would not read back as it was written.
///
/// Beyond ASCII, Linux takes single bytes for Latin-1 (0xA0 is a space to it),
/// so even well-formed UTF-8 may be torn apart.
pub(crate) fn check_characters(cmdline: &str) -> Result<(), CmdlineError> {
    let printable = |c: char| matches!(c, ' '..='~');
    match cmdline.char_indices().find(|&(_, c)| !printable(c)) {
        Some((position, character)) => Err(CmdlineError::Character {
            character,
            position,
        }),
        None => Ok(()),
    }
}

/// Writes the NUL-terminated command line to [`layout::CMDLINE`]. The kernel
/// takes `limit` bytes, the NUL not counted.
pub(crate) fn write(ram: &GuestMemoryMmap, cmdline: &str, limit: u64) -> Result<(), Error> {
    let limit = limit.min(layout::CMDLINE_CAPACITY - 1);
    if cmdline.len() as u64 > limit {
        return Err(Error::Cmdline(CmdlineError::TooLong {
            length: cmdline.len(),
            limit,
        }));
    }
    let end = layout::CMDLINE + cmdline.len() as u64;
    ram.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    ram.write_obj(0u8, GuestAddress(end))?;
    Ok(())
}
