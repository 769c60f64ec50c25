//! Log pages (5.16.1).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::open_enum;

open_enum! {
    /// Log page identifiers.
    LogId: u8 {
        /// Supported Log Pages.
        SUPPORTED_PAGES = 0x00,
        /// Error Information.
        ERROR_INFORMATION = 0x01,
        /// SMART / Health Information.
        SMART = 0x02,
        /// Firmware Slot Information.
        FIRMWARE_SLOT = 0x03,
        /// Changed Namespace List.
        CHANGED_NAMESPACES = 0x04,
        /// Commands Supported and Effects.
        COMMAND_EFFECTS = 0x05,
    }
}

/// An entry of the Error Information log (5.16.1.2).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ErrorEntry {
    /// Number of this error since power-on; 0 for no entry.
    pub error_count: u64,
    /// Submission queue identifier.
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// Phase tag in bit 0, status in bits 15:1.
    pub status: u16,
    /// Where in the command the error is; FFFFh for nowhere.
    pub parameter_error_location: u16,
    /// First LBA in error.
    pub lba: u64,
    /// Namespace identifier.
    pub nsid: u32,
    #[doc(hidden)]
    pub reserved_28: [u8; 4],
    /// Command specific.
    pub command_specific: u64,
    #[doc(hidden)]
    pub reserved_40: [u64; 3],
}

const _: () = assert!(size_of::<ErrorEntry>() == 64);

/// Critical warnings (5.16.1.3).
#[bitfield(u8)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CriticalWarning {
    /// Spare below its threshold.
    pub spare: bool,
    /// Temperature over or under a threshold.
    pub temperature: bool,
    #[bits(6)]
    __: u8,
}

/// A 128-bit little-endian counter.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Counter128(pub [u64; 2]);

impl From<u64> for Counter128 {
    fn from(value: u64) -> Self {
        Self([value, 0])
    }
}

/// SMART / Health Information (5.16.1.3).
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SmartLog {
    /// Critical warnings.
    pub critical_warning: CriticalWarning,
    /// Composite temperature in kelvins, little-endian.
    pub temperature: [u8; 2],
    /// Available spare in per cent.
    pub available_spare: u8,
    /// Available spare threshold in per cent.
    pub spare_threshold: u8,
    /// Percentage used.
    pub percentage_used: u8,
    reserved_6: [u8; 26],
    /// Thousands of 512-byte units read, rounded up.
    pub data_units_read: Counter128,
    /// Thousands of 512-byte units written, rounded up.
    pub data_units_written: Counter128,
    /// Read commands.
    pub host_reads: Counter128,
    /// Write commands.
    pub host_writes: Counter128,
    /// Minutes that the controller was busy.
    pub busy_time: Counter128,
    /// Power cycles.
    pub power_cycles: Counter128,
    /// Hours since power-on.
    pub power_on_hours: Counter128,
    /// Shutdowns without notice.
    pub unsafe_shutdowns: Counter128,
    /// Media and data integrity errors.
    pub media_errors: Counter128,
    /// Error log entries since power-on.
    pub error_log_entries: Counter128,
    reserved_192: [u8; 320],
}

const _: () = assert!(size_of::<SmartLog>() == 512);

/// Firmware Slot Information (5.16.1.4).
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FirmwareSlotLog {
    /// Active firmware: slot in bits 2:0.
    pub afi: u8,
    reserved_1: [u8; 7],
    /// Revision in each slot.
    pub frs: [[u8; 8]; 7],
    reserved_64: [u8; 448],
}

const _: () = assert!(size_of::<FirmwareSlotLog>() == 512);

/// What a command does (figure 211).
#[bitfield(u32)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandEffect {
    /// Supported.
    pub csupp: bool,
    /// Logical block content changes.
    pub lbcc: bool,
    #[bits(30)]
    __: u32,
}

/// Commands Supported and Effects (5.16.1.6).
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CommandEffectsLog {
    /// Admin commands by opcode.
    pub acs: [CommandEffect; 256],
    /// I/O commands by opcode.
    pub iocs: [CommandEffect; 256],
    reserved_2048: [u8; 2048],
}

const _: () = assert!(size_of::<CommandEffectsLog>() == 4096);

/// Bytes of the Supported Log Pages log: a dword for each identifier, bit 0 for support (5.16.1.1).
pub const SUPPORTED_PAGES_SIZE: usize = 1024;

/// Most NSIDs in the Changed Namespace List (5.16.1.5); more are one FFFFFFFFh.
pub const CHANGED_NAMESPACES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        assert_eq!(offset_of!(SmartLog, data_units_read), 32);
        assert_eq!(offset_of!(SmartLog, power_cycles), 112);
        assert_eq!(offset_of!(SmartLog, error_log_entries), 176);
        assert_eq!(offset_of!(ErrorEntry, nsid), 24);
        assert_eq!(offset_of!(FirmwareSlotLog, frs), 8);
        assert_eq!(offset_of!(CommandEffectsLog, iocs), 1024);
    }
}
