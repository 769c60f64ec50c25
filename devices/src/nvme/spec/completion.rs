//! Completion queue entries and status codes (3.3.3.2, 3.3.3.2.1).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::open_enum;

open_enum! {
    /// Status code type in bits 10:8, status code in bits 7:0.
    Status: u16 {
        /// Successful completion.
        SUCCESS = 0x000,
        /// Invalid command opcode.
        INVALID_OPCODE = 0x001,
        /// Invalid field in command.
        INVALID_FIELD = 0x002,
        /// Command identifier conflict.
        COMMAND_ID_CONFLICT = 0x003,
        /// Data transfer error.
        DATA_TRANSFER_ERROR = 0x004,
        /// Internal error.
        INTERNAL_ERROR = 0x006,
        /// Command abort requested.
        ABORT_REQUESTED = 0x007,
        /// Command aborted due to SQ deletion.
        ABORTED_SQ_DELETION = 0x008,
        /// Invalid namespace or format.
        INVALID_NAMESPACE = 0x00b,
        /// Command sequence error.
        COMMAND_SEQUENCE_ERROR = 0x00c,
        /// PRP offset invalid.
        INVALID_PRP_OFFSET = 0x013,
        /// Namespace is write protected.
        NAMESPACE_WRITE_PROTECTED = 0x020,
        /// LBA out of range (NVM).
        LBA_OUT_OF_RANGE = 0x080,
        /// Capacity exceeded (NVM).
        CAPACITY_EXCEEDED = 0x081,
        /// Completion queue invalid.
        INVALID_COMPLETION_QUEUE = 0x100,
        /// Invalid queue identifier.
        INVALID_QUEUE_IDENTIFIER = 0x101,
        /// Invalid queue size.
        INVALID_QUEUE_SIZE = 0x102,
        /// Abort command limit exceeded.
        ABORT_LIMIT_EXCEEDED = 0x103,
        /// Asynchronous event request limit exceeded.
        ASYNC_EVENT_LIMIT_EXCEEDED = 0x105,
        /// Invalid interrupt vector.
        INVALID_INTERRUPT_VECTOR = 0x108,
        /// Invalid log page.
        INVALID_LOG_PAGE = 0x109,
        /// Invalid queue deletion.
        INVALID_QUEUE_DELETION = 0x10c,
        /// Feature identifier not saveable.
        FEATURE_NOT_SAVEABLE = 0x10d,
        /// Feature not changeable.
        FEATURE_NOT_CHANGEABLE = 0x10e,
        /// Feature not namespace specific.
        FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10f,
        /// I/O command set not supported.
        IO_COMMAND_SET_NOT_SUPPORTED = 0x129,
        /// I/O command set combination rejected.
        IO_COMMAND_SET_COMBINATION_REJECTED = 0x12b,
        /// Internal path error.
        INTERNAL_PATH_ERROR = 0x300,
        /// Write fault (media).
        WRITE_FAULT = 0x280,
        /// Unrecovered read error (media).
        UNRECOVERED_READ_ERROR = 0x281,
    }
}

/// A completion queue entry.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Cqe {
    /// Command specific result.
    pub dw0: u32,
    /// Command specific result, upper half.
    pub dw1: u32,
    /// Submission queue head.
    pub sqhd: u16,
    /// Submission queue identifier.
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// Phase tag in bit 0, status in bits 15:1.
    status: u16,
}

const _: () = assert!(size_of::<Cqe>() == 16);

/// Phase tag.
const PHASE: u16 = 1;
/// Do Not Retry.
const DNR: u16 = 1 << 15;

impl Cqe {
    /// A successful completion.
    pub fn success(dw0: u32, sqhd: u16, sqid: u16, cid: u16) -> Self {
        Self {
            dw0,
            dw1: 0,
            sqhd,
            sqid,
            cid,
            status: 0,
        }
    }

    /// A completion with an error.
    pub fn error(status: Status, dnr: bool, sqhd: u16, sqid: u16, cid: u16) -> Self {
        Self {
            status: status.0 << 1 | if dnr { DNR } else { 0 },
            ..Self::success(0, sqhd, sqid, cid)
        }
    }

    /// Status code type and status code.
    pub fn status(&self) -> Status {
        Status(self.status >> 1 & 0x7ff)
    }

    /// Do Not Retry.
    pub fn dnr(&self) -> bool {
        self.status & DNR != 0
    }

    /// Phase tag.
    pub fn phase(&self) -> bool {
        self.status & PHASE != 0
    }

    /// Sets the phase tag.
    pub fn set_phase(&mut self, phase: bool) {
        self.status = self.status & !PHASE | u16::from(phase);
    }

    /// The entry as two little-endian numbers; the second one holds the phase tag.
    pub fn as_halves(&self) -> [u64; 2] {
        let half = |bytes: &[u8]| {
            let mut half = [0; 8];
            half.copy_from_slice(bytes);
            u64::from_le_bytes(half)
        };
        let (low, high) = self.as_bytes().split_at(8);
        [half(low), half(high)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_laid_out_as_in_figure_90() {
        let mut cqe = Cqe::error(Status::INVALID_QUEUE_SIZE, true, 0x1122, 0x3344, 0x5566);
        cqe.set_phase(true);
        assert_eq!(cqe.as_halves(), [0, 0x8205_5566_3344_1122]);
        assert_eq!(cqe.status(), Status::INVALID_QUEUE_SIZE);
        assert!(cqe.dnr() && cqe.phase());
        cqe.set_phase(false);
        assert!(!cqe.phase() && cqe.dnr());
        assert_eq!(
            Cqe::success(0xaabb_ccdd, 1, 2, 3).as_halves()[0],
            0xaabb_ccdd
        );
        assert_eq!(format!("{:?}", Status(0x3ff)), "Status(0x3ff)");
    }
}
