//! Static probes (USDT) at the points where commands are traced. Without a tool that listens each costs
//! a look at its semaphore.
//!
//! `berth:nvme_fetch` has the controller's id (address and length of the text), the submission queue,
//! the command identifier, the opcode and the NSID. `berth:nvme_complete` has the first four of these
//! and the status (status code type in bits 10:8, status code in bits 7:0; 0 for success), and
//! `berth:nvme_abandon` the first four.

use super::super::core::Core;
use super::super::error::CommandError;
use super::super::spec::{Sqe, Status};

/// A command was fetched.
#[inline]
pub fn fetched(core: &Core, sqid: impl Fn() -> u16, sqe: &Sqe) {
    probe::probe_lazy!(
        berth,
        nvme_fetch,
        core.id.as_ptr(),
        core.id.len(),
        sqid(),
        sqe.cid(),
        sqe.cdw0.opc(),
        sqe.nsid
    );
}

/// A command's completion is about to be posted.
#[inline]
pub fn completed(core: &Core, sqid: impl Fn() -> u16, cid: u16, end: Result<u32, CommandError>) {
    probe::probe_lazy!(
        berth,
        nvme_complete,
        core.id.as_ptr(),
        core.id.len(),
        sqid(),
        cid,
        end.map_or_else(CommandError::status, |_| Status::SUCCESS).0
    );
}

/// A command ends without a completion.
#[inline]
pub fn abandoned(core: &Core, sqid: impl Fn() -> u16, cid: u16) {
    probe::probe_lazy!(
        berth,
        nvme_abandon,
        core.id.as_ptr(),
        core.id.len(),
        sqid(),
        cid
    );
}
