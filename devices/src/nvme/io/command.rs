//! The NVM command set: from a submission queue entry to requests of a backend (NVM Command Set
//! 1.0c, 3.2).

use crate::ram::GuestSlice;
use crate::storage::{BackendError, Engine, Op, Request, Submitted, Token};
use crate::subsystem::{AttachmentTable, Namespace};

use super::super::core::Core;
use super::super::error::CommandError;
use super::super::prp;
use super::super::snapshots::Snapshots;
use super::super::spec::{
    BROADCAST, DsmCdw10, DsmCdw11, DsmRange, NvmOpcode, ReadWriteCdw12, Sqe, Status,
};
use super::super::stats::SqStats;

/// What a failing backend means for a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It reads the medium.
    Read,
    /// It changes the medium.
    Write,
    /// It does neither.
    Other,
}

impl Kind {
    /// From the opcode.
    pub fn of(sqe: &Sqe) -> Self {
        match NvmOpcode(sqe.cdw0.opc()) {
            NvmOpcode::READ => Self::Read,
            NvmOpcode::WRITE | NvmOpcode::WRITE_ZEROES | NvmOpcode::DATASET_MANAGEMENT => {
                Self::Write
            }
            _ => Self::Other,
        }
    }

    /// The status of a backend's error.
    pub fn error(self, error: BackendError) -> CommandError {
        match (self, error) {
            (Self::Read, BackendError::Io(_)) => Status::UNRECOVERED_READ_ERROR.into(),
            (Self::Write, BackendError::Io(_)) => Status::WRITE_FAULT.into(),
            _ => error.into(),
        }
    }
}

/// What a command needs of its queue and thread.
pub struct Context<'a> {
    pub engine: &'a mut Engine,
    pub data: &'a mut Vec<GuestSlice>,
    pub core: &'a Core,
    pub namespaces: &'a AttachmentTable,
    pub token: Token,
}

/// What a command counts as (SMART / Health Information).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// A read of this many bytes.
    Read(u64),
    /// A write of this many bytes.
    Write(u64),
    /// Neither.
    Nothing,
}

impl Counted {
    /// Adds it to the counters of a queue, and of the namespace of the group's that it was for.
    pub fn add_to(self, stats: &SqStats, snapshots: &mut Snapshots, nsid: u32) {
        match self {
            Self::Read(bytes) => {
                stats.reads.add(1);
                stats.read_bytes.add(bytes);
                snapshots.count(nsid, |namespace| namespace.read(bytes));
            }
            Self::Write(bytes) => {
                stats.writes.add(1);
                stats.written_bytes.add(bytes);
                snapshots.count(nsid, |namespace| namespace.write(bytes));
            }
            Self::Nothing => {}
        }
    }
}

/// A command that was accepted.
#[derive(Debug, Clone, Copy)]
pub struct Started {
    /// Requests whose completions follow.
    pub pending: u32,
    /// First error of those that ended at once.
    pub error: Option<BackendError>,
    /// For the counters.
    pub counted: Counted,
    /// Bytes of the medium that the requests are for.
    pub bytes: u64,
}

impl Started {
    fn new(counted: Counted) -> Self {
        Self {
            pending: 0,
            error: None,
            counted,
            bytes: 0,
        }
    }

    fn add(&mut self, submitted: Submitted) {
        match submitted {
            Submitted::Pending => self.pending += 1,
            Submitted::Done(Ok(())) => {}
            Submitted::Done(Err(error)) => {
                self.error.get_or_insert(error);
            }
        }
    }
}

/// Checks a command and starts its requests.
///
/// # Errors
/// The command is not valid; nothing was started.
pub fn start(context: &mut Context<'_>, sqe: &Sqe) -> Result<Started, CommandError> {
    if sqe.cdw0.fuse() != 0 || sqe.cdw0.psdt() != 0 {
        return Err(Status::INVALID_FIELD.into());
    }
    match NvmOpcode(sqe.cdw0.opc()) {
        NvmOpcode::READ => transfer(context, sqe, Kind::Read),
        NvmOpcode::WRITE => transfer(context, sqe, Kind::Write),
        NvmOpcode::FLUSH => flush(context, sqe),
        NvmOpcode::WRITE_ZEROES => write_zeroes(context, sqe),
        NvmOpcode::DATASET_MANAGEMENT => dataset_management(context, sqe),
        _ => Err(Status::INVALID_OPCODE.into()),
    }
}

/// The attached namespace that a command names.
fn namespace<'a>(
    namespaces: &'a AttachmentTable,
    core: &Core,
    nsid: u32,
) -> Result<&'a Namespace, CommandError> {
    match namespaces.get(nsid) {
        Some(namespace) => Ok(namespace),
        // A host that has another path tries that; one that has none hears of it soon.
        None if core.has_departed(nsid) => {
            Err(CommandError::transient(Status::INTERNAL_PATH_ERROR))
        }
        // Inactive NSIDs are valid, but name nothing (NVMe Base 2.0c, 3.2.1.2).
        None if (1..=crate::subsystem::MAX_NSID).contains(&nsid) => {
            Err(Status::INVALID_FIELD.into())
        }
        None => Err(Status::INVALID_NAMESPACE.into()),
    }
}

/// Offset and length in bytes of `blocks` logical blocks at `slba`.
fn byte_range(namespace: &Namespace, slba: u64, blocks: u64) -> Result<(u64, u64), CommandError> {
    let end = slba.checked_add(blocks);
    if end.is_none_or(|end| end > namespace.blocks()) {
        return Err(Status::LBA_OUT_OF_RANGE.into());
    }
    // A namespace's size in bytes fits 64 bits, and the range is inside it.
    let shift = namespace.block_shift();
    Ok((slba << shift, blocks << shift))
}

fn transfer(context: &mut Context<'_>, sqe: &Sqe, kind: Kind) -> Result<Started, CommandError> {
    let cdw12 = ReadWriteCdw12::from_bits(sqe.cdw12);
    let namespace = namespace(context.namespaces, context.core, sqe.nsid)?;
    if kind == Kind::Write && namespace.read_only() {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.into());
    }
    let blocks = cdw12.blocks();
    if blocks << namespace.block_shift() > context.core.max_transfer {
        return Err(Status::INVALID_FIELD.into());
    }
    let (offset, len) = byte_range(namespace, sqe.slba(), blocks)?;
    context.data.clear();
    prp::map(&context.core.ram, sqe.prp1, sqe.prp2, len, context.data)?;
    let (op, counted) = match kind {
        Kind::Write => {
            let fua = cdw12.fua() || context.core.write_through();
            (Op::Write { fua }, Counted::Write(len))
        }
        _ => (Op::Read, Counted::Read(len)),
    };
    let request = Request {
        op,
        offset,
        len,
        data: context.data,
        token: context.token,
    };
    let mut started = Started::new(counted);
    started.bytes = len;
    started.add(namespace.backend().submit(context.engine, &request));
    Ok(started)
}

/// Starts a request without data.
fn submit(
    context: &mut Context<'_>,
    namespace: &Namespace,
    op: Op,
    range: (u64, u64),
) -> Submitted {
    let request = Request {
        op,
        offset: range.0,
        len: range.1,
        data: &[],
        token: context.token,
    };
    namespace.backend().submit(context.engine, &request)
}

fn flush(context: &mut Context<'_>, sqe: &Sqe) -> Result<Started, CommandError> {
    let mut started = Started::new(Counted::Nothing);
    let namespaces = context.namespaces;
    if sqe.nsid == BROADCAST {
        for namespace in namespaces.iter() {
            started.add(submit(context, namespace, Op::Flush, (0, 0)));
        }
    } else {
        let namespace = namespace(namespaces, context.core, sqe.nsid)?;
        started.add(submit(context, namespace, Op::Flush, (0, 0)));
    }
    Ok(started)
}

fn write_zeroes(context: &mut Context<'_>, sqe: &Sqe) -> Result<Started, CommandError> {
    let cdw12 = ReadWriteCdw12::from_bits(sqe.cdw12);
    let namespace = namespace(context.namespaces, context.core, sqe.nsid)?;
    if namespace.read_only() {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.into());
    }
    let range = byte_range(namespace, sqe.slba(), cdw12.blocks())?;
    let op = Op::WriteZeroes {
        unmap: cdw12.deac(),
        fua: cdw12.fua() || context.core.write_through(),
    };
    let mut started = Started::new(Counted::Nothing);
    started.bytes = range.1;
    started.add(submit(context, namespace, op, range));
    Ok(started)
}

fn dataset_management(context: &mut Context<'_>, sqe: &Sqe) -> Result<Started, CommandError> {
    let namespace = namespace(context.namespaces, context.core, sqe.nsid)?;
    let mut ranges = [DsmRange::default(); 256];
    let count = usize::from(DsmCdw10::from_bits(sqe.cdw10).nr_z()) + 1;
    let ranges = &mut ranges[..count];
    let bytes = zerocopy::IntoBytes::as_mut_bytes(ranges);
    prp::copy_in(&context.core.ram, sqe.prp1, sqe.prp2, bytes, context.data)?;
    let mut started = Started::new(Counted::Nothing);
    if !DsmCdw11::from_bits(sqe.cdw11).ad() {
        // The other attributes are hints.
        return Ok(started);
    }
    if namespace.read_only() {
        return Err(Status::NAMESPACE_WRITE_PROTECTED.into());
    }
    // All ranges are checked before the first block goes.
    for range in &*ranges {
        byte_range(namespace, range.slba, u64::from(range.nlb))?;
    }
    for range in &*ranges {
        let bytes = byte_range(namespace, range.slba, u64::from(range.nlb))?;
        if bytes.1 > 0 {
            started.bytes = started.bytes.saturating_add(bytes.1);
            started.add(submit(context, namespace, Op::Discard, bytes));
        }
    }
    Ok(started)
}
