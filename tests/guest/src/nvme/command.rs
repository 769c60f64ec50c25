//! Submission and completion queue entries (NVMe Base Specification 2.0, 3.3.3).

/// Admin opcodes.
pub mod admin {
    pub const DELETE_SQ: u8 = 0x00;
    pub const CREATE_SQ: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const DELETE_CQ: u8 = 0x04;
    pub const CREATE_CQ: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const ASYNC_EVENT: u8 = 0x0c;
    pub const DOORBELL_BUFFER: u8 = 0x7c;
}

/// I/O opcodes of the NVM command set.
pub mod io {
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Status codes: type in bits 10:8, code in bits 7:0.
pub mod status {
    pub const INVALID_OPCODE: u16 = 0x001;
    pub const INVALID_FIELD: u16 = 0x002;
    pub const ABORTED_BY_REQUEST: u16 = 0x007;
    pub const ABORTED_SQ_DELETED: u16 = 0x008;
    pub const INVALID_NAMESPACE: u16 = 0x00b;
    pub const SEQUENCE_ERROR: u16 = 0x00c;
    pub const LBA_OUT_OF_RANGE: u16 = 0x080;
    pub const CQ_INVALID: u16 = 0x100;
    pub const INVALID_QUEUE_ID: u16 = 0x101;
    pub const INVALID_QUEUE_SIZE: u16 = 0x102;
    pub const INVALID_VECTOR: u16 = 0x108;
    pub const INVALID_LOG_PAGE: u16 = 0x109;
    pub const INVALID_QUEUE_DELETION: u16 = 0x10c;
    pub const NOT_SAVEABLE: u16 = 0x10d;
}

/// A submission queue entry.
#[derive(Clone, Copy)]
pub struct Command {
    /// The 16 dwords; the command identifier is filled in on submission.
    pub dwords: [u32; 16],
}

impl Command {
    /// A command with everything but its opcode zero.
    pub fn new(opcode: u8) -> Self {
        let mut dwords = [0; 16];
        dwords[0] = u32::from(opcode);
        Self { dwords }
    }

    /// Sets the namespace identifier.
    pub fn namespace(mut self, nsid: u32) -> Self {
        self.dwords[1] = nsid;
        self
    }

    /// Sets dword `index`.
    pub fn dword(mut self, index: usize, value: u32) -> Self {
        self.dwords[index] = value;
        self
    }

    /// Sets PRP1 and PRP2.
    pub fn prp(self, first: u64, second: u64) -> Self {
        self.quad(6, first).quad(8, second)
    }

    /// Sets dwords `index` and `index + 1`.
    pub fn quad(self, index: usize, value: u64) -> Self {
        self.dword(index, value as u32)
            .dword(index + 1, (value >> 32) as u32)
    }

    /// A command on `blocks` (1 to 65,536) logical blocks from `lba`.
    pub fn blocks(opcode: u8, nsid: u32, lba: u64, blocks: u32) -> Self {
        Self::new(opcode)
            .namespace(nsid)
            .quad(10, lba)
            .dword(12, blocks - 1)
    }

    /// Identify with this CNS value, the result going to `to`.
    pub fn identify(cns: u8, nsid: u32, to: u64) -> Self {
        Self::new(admin::IDENTIFY)
            .namespace(nsid)
            .dword(10, u32::from(cns))
            .prp(to, 0)
    }

    /// Get Log Page for `bytes` bytes (a multiple of 4) from `offset`.
    pub fn log_page(log: u8, nsid: u32, bytes: u64, offset: u64, to: u64) -> Self {
        let dwords = bytes / 4 - 1;
        Self::new(admin::GET_LOG_PAGE)
            .namespace(nsid)
            .dword(10, u32::from(log) | (dwords as u32 & 0xffff) << 16)
            .dword(11, (dwords >> 16) as u32)
            .quad(12, offset)
            .prp(to, 0)
    }
}

/// A completion queue entry.
#[derive(Clone, Copy)]
pub struct Completion {
    /// Command specific result.
    pub result: u32,
    /// Head of the submission queue.
    pub sq_head: u16,
    /// Submission queue identifier.
    pub sq_id: u16,
    /// Command identifier.
    pub id: u16,
    /// Status field without the phase bit.
    pub status: u16,
}

impl Completion {
    /// Status code type and status code, as in [`status`].
    pub fn code(self) -> u16 {
        self.status & 0x7ff
    }

    /// Whether the command did what it should.
    pub fn success(self) -> bool {
        self.code() == 0
    }

    /// Whether the controller says that trying again is no use.
    pub fn do_not_retry(self) -> bool {
        self.status & 1 << 14 != 0
    }
}
