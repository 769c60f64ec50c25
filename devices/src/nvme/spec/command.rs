//! Submission queue entries and the fields of commands (3.3.3.1, chapters 5 and 7; NVM 3.2).

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::open_enum;

open_enum! {
    /// Admin command opcodes (5, figure 138).
    AdminOpcode: u8 {
        /// Delete I/O Submission Queue.
        DELETE_SQ = 0x00,
        /// Create I/O Submission Queue.
        CREATE_SQ = 0x01,
        /// Get Log Page.
        GET_LOG_PAGE = 0x02,
        /// Delete I/O Completion Queue.
        DELETE_CQ = 0x04,
        /// Create I/O Completion Queue.
        CREATE_CQ = 0x05,
        /// Identify.
        IDENTIFY = 0x06,
        /// Abort.
        ABORT = 0x08,
        /// Set Features.
        SET_FEATURES = 0x09,
        /// Get Features.
        GET_FEATURES = 0x0a,
        /// Asynchronous Event Request.
        ASYNC_EVENT_REQUEST = 0x0c,
        /// Doorbell Buffer Config.
        DOORBELL_BUFFER_CONFIG = 0x7c,
    }
}

open_enum! {
    /// NVM command set opcodes (NVM 3.2).
    NvmOpcode: u8 {
        /// Flush.
        FLUSH = 0x00,
        /// Write.
        WRITE = 0x01,
        /// Read.
        READ = 0x02,
        /// Write Zeroes.
        WRITE_ZEROES = 0x08,
        /// Dataset Management.
        DATASET_MANAGEMENT = 0x09,
    }
}

/// Command dword 0.
#[bitfield(u32)]
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Cdw0 {
    /// Opcode.
    pub opc: u8,
    /// Fused operation; 0 for a normal command.
    #[bits(2)]
    pub fuse: u8,
    #[bits(4)]
    __: u8,
    /// PRP or SGL for data transfer; 0 for PRPs.
    #[bits(2)]
    pub psdt: u8,
    /// Command identifier.
    pub cid: u16,
}

/// A submission queue entry.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Sqe {
    /// Opcode, fuse, PSDT and command identifier.
    pub cdw0: Cdw0,
    /// Namespace identifier.
    pub nsid: u32,
    /// Command dword 2.
    pub cdw2: u32,
    /// Command dword 3.
    pub cdw3: u32,
    /// Metadata pointer.
    pub mptr: u64,
    /// PRP entry 1.
    pub prp1: u64,
    /// PRP entry 2.
    pub prp2: u64,
    /// Command dword 10.
    pub cdw10: u32,
    /// Command dword 11.
    pub cdw11: u32,
    /// Command dword 12.
    pub cdw12: u32,
    /// Command dword 13.
    pub cdw13: u32,
    /// Command dword 14.
    pub cdw14: u32,
    /// Command dword 15.
    pub cdw15: u32,
}

const _: () = assert!(size_of::<Sqe>() == 64);

/// Two dwords as one number.
fn quad(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

impl Sqe {
    /// Command identifier.
    pub fn cid(&self) -> u16 {
        self.cdw0.cid()
    }

    /// Starting LBA of Read, Write and Write Zeroes.
    pub fn slba(&self) -> u64 {
        quad(self.cdw10, self.cdw11)
    }

    /// Offset in bytes of Get Log Page, while it is no index.
    pub fn log_offset(&self) -> u64 {
        quad(self.cdw12, self.cdw13)
    }
}

/// Create I/O Submission or Completion Queue, dword 10 (5.4, 5.5).
#[bitfield(u32)]
pub struct CreateQueueCdw10 {
    /// Queue identifier.
    pub qid: u16,
    /// Queue size.
    pub qsize_z: u16,
}

/// Create I/O Completion Queue, dword 11 (5.4).
#[bitfield(u32)]
pub struct CreateCqCdw11 {
    /// Physically contiguous.
    pub pc: bool,
    /// Interrupts enabled.
    pub ien: bool,
    #[bits(14)]
    __: u16,
    /// Interrupt vector.
    pub iv: u16,
}

/// Create I/O Submission Queue, dword 11 (5.5).
#[bitfield(u32)]
pub struct CreateSqCdw11 {
    /// Physically contiguous.
    pub pc: bool,
    /// Queue priority.
    #[bits(2)]
    pub qprio: u8,
    #[bits(13)]
    __: u16,
    /// Identifier of the completion queue that it feeds.
    pub cqid: u16,
}

/// Abort, dword 10 (5.1).
#[bitfield(u32)]
pub struct AbortCdw10 {
    /// Submission queue identifier.
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
}

/// Identify, dword 10 (5.17).
#[bitfield(u32)]
pub struct IdentifyCdw10 {
    /// Controller or namespace structure.
    pub cns: u8,
    __: u8,
    /// Controller identifier.
    pub cntid: u16,
}

/// Identify, dword 11 (5.17).
#[bitfield(u32)]
pub struct IdentifyCdw11 {
    /// CNS specific identifier.
    pub cnssid: u16,
    __: u8,
    /// Command set identifier.
    pub csi: u8,
}

/// Get Log Page, dword 10 (5.16.1).
#[bitfield(u32)]
pub struct GetLogCdw10 {
    /// Log page identifier.
    pub lid: u8,
    /// Log specific parameter.
    #[bits(7)]
    pub lsp: u8,
    /// Retain asynchronous event.
    pub rae: bool,
    /// Number of dwords, lower half.
    pub numdl_z: u16,
}

/// Get Log Page, dword 11 (5.16.1).
#[bitfield(u32)]
pub struct GetLogCdw11 {
    /// Number of dwords, upper half.
    pub numdu_z: u16,
    /// Log specific identifier.
    pub lsi: u16,
}

/// Get Log Page, dword 14 (5.16.1).
#[bitfield(u32)]
pub struct GetLogCdw14 {
    /// UUID index.
    #[bits(7)]
    pub uuid_index: u8,
    #[bits(16)]
    __: u16,
    /// The offset is an index.
    pub ot: bool,
    /// Command set identifier.
    pub csi: u8,
}

/// Get Features and Set Features, dword 10 (5.15, 5.27).
#[bitfield(u32)]
pub struct FeaturesCdw10 {
    /// Feature identifier.
    pub fid: u8,
    /// Which value Get Features wants.
    #[bits(3)]
    pub sel: u8,
    #[bits(20)]
    __: u32,
    /// Set Features: keep over resets and power cycles.
    pub sv: bool,
}

/// Read, Write and Write Zeroes, dword 12 (NVM 3.2.4, 3.2.6, 3.2.8).
#[bitfield(u32)]
pub struct ReadWriteCdw12 {
    /// Number of logical blocks.
    pub nlb_z: u16,
    #[bits(9)]
    __: u16,
    /// Write Zeroes: the blocks may be deallocated.
    pub deac: bool,
    /// Protection information.
    #[bits(4)]
    pub prinfo: u8,
    /// Force unit access.
    pub fua: bool,
    /// Limited retry.
    pub lr: bool,
}

impl ReadWriteCdw12 {
    /// Number of logical blocks, 1 to 65,536.
    pub fn blocks(self) -> u64 {
        u64::from(self.nlb_z()) + 1
    }
}

/// Dataset Management, dword 10 (NVM 3.2.3).
#[bitfield(u32)]
pub struct DsmCdw10 {
    /// Number of ranges.
    pub nr_z: u8,
    #[bits(24)]
    __: u32,
}

/// Dataset Management, dword 11 (NVM 3.2.3).
#[bitfield(u32)]
pub struct DsmCdw11 {
    /// Integral dataset for read.
    pub idr: bool,
    /// Integral dataset for write.
    pub idw: bool,
    /// Deallocate.
    pub ad: bool,
    #[bits(29)]
    __: u32,
}

/// A range of Dataset Management (NVM 3.2.3, figure 40).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DsmRange {
    /// Context attributes.
    pub cattr: u32,
    /// Number of logical blocks; not zero-based.
    pub nlb: u32,
    /// Starting LBA.
    pub slba: u64,
}

const _: () = assert!(size_of::<DsmRange>() == 16);

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        assert_eq!(offset_of!(Sqe, nsid), 4);
        assert_eq!(offset_of!(Sqe, prp1), 24);
        assert_eq!(offset_of!(Sqe, cdw10), 40);
        let cdw0 = Cdw0::from_bits(0x1234_c106);
        assert_eq!(
            (cdw0.opc(), cdw0.fuse(), cdw0.psdt(), cdw0.cid()),
            (6, 1, 3, 0x1234)
        );
        let cdw12 = ReadWriteCdw12::from_bits(0xffff | 1 << 25 | 1 << 30);
        assert!(cdw12.deac() && cdw12.fua() && !cdw12.lr());
        assert_eq!(cdw12.blocks(), 65_536);
        assert!(GetLogCdw10::from_bits(1 << 15).rae());
        assert!(FeaturesCdw10::from_bits(1 << 31).sv());
        assert_eq!(GetLogCdw14::from_bits(0x0180_0000).csi(), 1);
        assert!(GetLogCdw14::from_bits(0x0080_0000).ot());
        assert_eq!(CreateCqCdw11::from_bits(0x0005_0003).iv(), 5);
        assert!(DsmCdw11::from_bits(4).ad());
    }
}
