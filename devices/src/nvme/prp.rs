//! Physical region pages to host ranges (NVMe Base 2.0c, 4.1.1).

use crate::ram::{GuestRam, GuestSlice};

use super::error::CommandError;
use super::spec::Status;

/// Memory page size in bytes (CC.MPS = 0 is the only one offered).
pub const PAGE: u64 = 4096;

/// Entries in one page of a PRP list.
const LIST_ENTRIES: usize = 512;

/// Appends the host ranges of `len` bytes at the PRPs to `out`, joined where they touch.
///
/// # Errors
/// A PRP that is misaligned or outside RAM, in the list or in the data.
pub fn map(
    ram: &GuestRam,
    prp1: u64,
    prp2: u64,
    len: u64,
    out: &mut Vec<GuestSlice>,
) -> Result<(), CommandError> {
    if !prp1.is_multiple_of(4) {
        return Err(Status::INVALID_PRP_OFFSET.into());
    }
    let first = len.min(PAGE - prp1 % PAGE);
    push(ram, prp1, first, out)?;
    let rest = len - first;
    if rest == 0 {
        Ok(())
    } else if rest <= PAGE {
        push_page(ram, prp2, rest, out)
    } else {
        map_list(ram, prp2, rest, out)
    }
}

/// Follows a PRP list: entries up to the end of its page, the last of which points to the next page
/// of the list if more remain. Bounded by `rest`, for each list page but the last covers data.
fn map_list(
    ram: &GuestRam,
    mut list: u64,
    mut rest: u64,
    out: &mut Vec<GuestSlice>,
) -> Result<(), CommandError> {
    if !list.is_multiple_of(8) {
        return Err(Status::INVALID_PRP_OFFSET.into());
    }
    let mut entries = [0u64; LIST_ENTRIES];
    // A chain pointer may lead to another chain pointer only if its page has room for one entry.
    let mut lone_pages = 0;
    while rest > 0 {
        let needed = usize::try_from(rest.div_ceil(PAGE)).unwrap_or(usize::MAX);
        let room = usize::try_from((PAGE - list % PAGE) / 8).unwrap_or(1);
        let count = needed.min(room);
        let page = &mut entries[..count];
        ram.read_bytes(list, zerocopy::IntoBytes::as_mut_bytes(page))?;
        let chained = needed > room;
        let data = if chained { count - 1 } else { count };
        if data == 0 {
            lone_pages += 1;
            if lone_pages > 1 {
                return Err(Status::INVALID_PRP_OFFSET.into());
            }
        }
        for &entry in &page[..data] {
            let len = rest.min(PAGE);
            push_page(ram, u64::from_le(entry), len, out)?;
            rest -= len;
        }
        if chained {
            list = u64::from_le(page[count - 1]);
            if !list.is_multiple_of(PAGE) {
                return Err(Status::INVALID_PRP_OFFSET.into());
            }
        }
    }
    Ok(())
}

fn push_page(
    ram: &GuestRam,
    prp: u64,
    len: u64,
    out: &mut Vec<GuestSlice>,
) -> Result<(), CommandError> {
    if !prp.is_multiple_of(PAGE) {
        return Err(Status::INVALID_PRP_OFFSET.into());
    }
    push(ram, prp, len, out)
}

fn push(
    ram: &GuestRam,
    address: u64,
    len: u64,
    out: &mut Vec<GuestSlice>,
) -> Result<(), CommandError> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len == 0 {
        return Ok(());
    }
    let slice = ram.slice(address, len)?;
    if let Some(last) = out.last_mut()
        && let Some(joined) = last.join(slice)
    {
        *last = joined;
    } else {
        out.push(slice);
    }
    Ok(())
}

/// Copies `bytes` to where the PRPs point; `slices` is scratch.
///
/// # Errors
/// As [`map`].
pub fn copy_out(
    ram: &GuestRam,
    prp1: u64,
    prp2: u64,
    bytes: &[u8],
    slices: &mut Vec<GuestSlice>,
) -> Result<(), CommandError> {
    slices.clear();
    map(ram, prp1, prp2, bytes.len() as u64, slices)?;
    let mut rest = bytes;
    for slice in slices {
        let (now, later) = rest.split_at(slice.len().min(rest.len()));
        slice.copy_from(now);
        rest = later;
    }
    Ok(())
}

/// Fills `bytes` from where the PRPs point; `slices` is scratch.
///
/// # Errors
/// As [`map`].
pub fn copy_in(
    ram: &GuestRam,
    prp1: u64,
    prp2: u64,
    bytes: &mut [u8],
    slices: &mut Vec<GuestSlice>,
) -> Result<(), CommandError> {
    slices.clear();
    map(ram, prp1, prp2, bytes.len() as u64, slices)?;
    let mut rest = bytes;
    for slice in slices {
        let (now, later) = rest.split_at_mut(slice.len().min(rest.len()));
        slice.copy_to(now);
        rest = later;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    fn ram() -> GuestRam {
        GuestRam::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap())
    }

    fn mapped(ram: &GuestRam, prp1: u64, prp2: u64, len: u64) -> Result<Vec<GuestSlice>, Status> {
        let mut out = Vec::new();
        map(ram, prp1, prp2, len, &mut out).map_err(|error| error.status())?;
        Ok(out)
    }

    #[test]
    fn one_and_two_pages() {
        let ram = ram();
        assert_eq!(
            mapped(&ram, 0x1004, 0, 12).unwrap(),
            [ram.slice(0x1004, 12).unwrap()]
        );
        assert_eq!(
            mapped(&ram, 0x1800, 0x5000, 0x1000).unwrap(),
            [
                ram.slice(0x1800, 0x800).unwrap(),
                ram.slice(0x5000, 0x800).unwrap()
            ]
        );
        assert_eq!(
            mapped(&ram, 0x1000, 0x2000, 0x2000).unwrap(),
            [ram.slice(0x1000, 0x2000).unwrap()]
        );
    }

    #[test]
    fn a_list_that_crosses_its_page() {
        let ram = ram();
        // Two entries to the end of the page: one for data, one that points to the rest.
        ram.write(0x8ff0, &0x2_0000u64).unwrap();
        ram.write(0x8ff8, &0x9000u64).unwrap();
        ram.write(0x9000, &0x2_2000u64).unwrap();
        ram.write(0x9008, &0x2_4000u64).unwrap();
        assert_eq!(
            mapped(&ram, 0x1ffc, 0x8ff0, 4 + 0x2000 + 0x200).unwrap(),
            [
                (0x1ffc, 4),
                (0x2_0000, 0x1000),
                (0x2_2000, 0x1000),
                (0x2_4000, 0x200)
            ]
            .map(|(address, len)| ram.slice(address, len).unwrap())
        );
    }

    #[test]
    fn what_is_refused() {
        let ram = ram();
        let offset = Err(Status::INVALID_PRP_OFFSET);
        let transfer = Err(Status::DATA_TRANSFER_ERROR);
        assert_eq!(mapped(&ram, 0x1002, 0, 16), offset);
        assert_eq!(mapped(&ram, 0x1000, 0x2008, 0x2000), offset);
        assert_eq!(mapped(&ram, 0x1000, 0x2004, 0x3000), offset);
        assert_eq!(mapped(&ram, 0x10_0000, 0, 16), transfer);
        assert_eq!(mapped(&ram, 0x1000, !0xfff, 0x2000), transfer);
        assert_eq!(mapped(&ram, 0x1000, 0xf_f000_0000, 0x3000), transfer);
        // A list page of one entry that chains to itself ends.
        ram.write(0x8ff8, &0x8ff8u64).unwrap();
        assert_eq!(mapped(&ram, 0x1000, 0x8ff8, 0x10_0000), offset);
    }
}
