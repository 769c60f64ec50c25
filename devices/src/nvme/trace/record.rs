//! What is recorded of a command.

use super::super::spec::{
    AdminOpcode, GetLogCdw10, GetLogCdw11, NvmOpcode, ReadWriteCdw12, Sqe, Status,
};

/// Bytes of an Identify data structure (NVMe Base 2.0c, 5.17).
const IDENTIFY_BYTES: u32 = 4096;

/// Which command it is: where it was fetched, and what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TracedCommand {
    /// Number of the controller, unique in the process, see [`TracedController`](super::TracedController).
    pub controller: u32,
    /// Submission queue identifier, 0 for the admin queue.
    pub sqid: u16,
    /// Identifier of the completion queue that it feeds.
    pub cqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// Opcode, of the admin command set if `sqid` is 0, else of the NVM command set.
    pub opcode: u8,
    /// Namespace identifier as the guest gave it.
    pub nsid: u32,
    /// Bytes that the command asks to move or to zero; 0 if it moves none, or if its namespace is not
    /// there.
    pub bytes: u32,
}

/// Something that happened to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// When, in nanoseconds since the trace began.
    pub time: u64,
    /// Which command.
    pub command: TracedCommand,
    /// What happened.
    pub event: TraceEvent,
    // Records of the same recorder since its last one that found no room.
    pub(super) lost_before: u32,
}

impl Record {
    /// Something that happened at `time`, in nanoseconds since the trace began.
    pub fn new(time: u64, command: TracedCommand, event: TraceEvent) -> Self {
        Self {
            time,
            command,
            event,
            lost_before: 0,
        }
    }
}

/// What can happen to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceEvent {
    /// It was fetched from its submission queue.
    Fetched {
        /// PRP entry 1.
        prp1: u64,
        /// PRP entry 2.
        prp2: u64,
        /// Command dwords 10, 11 and 12.
        cdw: [u32; 3],
    },
    /// Its completion is posted.
    Completed {
        /// Nanoseconds since it was fetched.
        latency: u64,
        /// Status code type and status code.
        status: Status,
        /// Do Not Retry.
        dnr: bool,
        /// Dword 0 of the completion.
        dw0: u32,
    },
    /// It ends without a completion: its controller was reset, shut down or removed.
    Abandoned {
        /// Nanoseconds since it was fetched.
        latency: u64,
    },
}

// One cache line each.
const _: () = assert!(size_of::<Record>() == 64);

/// Bytes that an I/O command is for, on a namespace with blocks of `1 << block_shift` bytes.
pub(super) fn io_bytes(sqe: &Sqe, block_shift: u32) -> u32 {
    match NvmOpcode(sqe.cdw0.opc()) {
        NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::WRITE_ZEROES => {
            let bytes = ReadWriteCdw12::from_bits(sqe.cdw12).blocks() << block_shift;
            u32::try_from(bytes).unwrap_or(u32::MAX)
        }
        _ => 0,
    }
}

/// Bytes of data that an admin command asks for.
pub(super) fn admin_bytes(sqe: &Sqe) -> u32 {
    match AdminOpcode(sqe.cdw0.opc()) {
        AdminOpcode::IDENTIFY => IDENTIFY_BYTES,
        AdminOpcode::GET_LOG_PAGE => {
            let low = u32::from(GetLogCdw10::from_bits(sqe.cdw10).numdl_z());
            let high = u32::from(GetLogCdw11::from_bits(sqe.cdw11).numdu_z());
            (high << 16 | low).saturating_add(1).saturating_mul(4)
        }
        _ => 0,
    }
}
