//! What an I/O thread records of its commands, and where. All of it is out of the way of a thread that
//! records nothing.

use super::super::super::error::CommandError;
use super::super::super::group::Group;
use super::super::super::spec::Sqe;
use super::super::super::trace::{Open, Place, Recorder, probes};
use super::Key;

/// An I/O thread's recorder, with the commands in flight that it has seen.
#[derive(Debug)]
pub struct Recording {
    recorder: Recorder,
    // By the slot that the command has. Grows to the most ever in flight and stays.
    open: Vec<Option<Open>>,
}

impl Recording {
    /// Has not seen any command.
    pub fn new(recorder: Recorder) -> Self {
        Self {
            recorder,
            open: Vec::new(),
        }
    }

    /// Whether somebody still reads.
    pub(super) fn is_read(&self) -> bool {
        self.recorder.is_read()
    }

    /// A command of the queue at `sq` was fetched.
    #[cold]
    pub(super) fn fetched(&mut self, key: Key, group: &Group, sq: usize, sqe: &Sqe) {
        let namespace = group.snapshots.current().get(sqe.nsid);
        let shift = namespace.map(|namespace| namespace.block_shift());
        let place = Place {
            controller: group.core.number,
            sqid: sqid(group, sq),
            cqid: group.cq.id(),
        };
        let open = self.recorder.fetched_io(place, sqe, shift);
        let index = key.index();
        if index >= self.open.len() {
            self.open.resize(index + 1, None);
        }
        self.open[index] = Some(open);
    }

    /// A command's completion is about to be posted.
    #[cold]
    pub(super) fn completed(&mut self, key: Key, end: Result<u32, CommandError>) {
        if let Some(open) = self.take(key) {
            self.recorder.completed(&open, end);
        }
    }

    /// A command is about to end without a completion.
    #[cold]
    pub(super) fn abandoned(&mut self, key: Key) {
        if let Some(open) = self.take(key) {
            self.recorder.abandoned(&open);
        }
    }

    /// None for a command that was fetched before the trace began: it is not in it.
    fn take(&mut self, key: Key) -> Option<Open> {
        self.open.get_mut(key.index())?.take()
    }
}

/// Tells whoever listens at the probes that a command was fetched.
#[inline]
pub(super) fn probe_fetched(group: &Group, sq: usize, sqe: &Sqe) {
    probes::fetched(&group.core, || sqid(group, sq), sqe);
}

/// Tells whoever listens at the probes that a completion is about to be posted.
#[inline]
pub(super) fn probe_completed(group: &Group, sq: usize, cid: u16, end: Result<u32, CommandError>) {
    probes::completed(&group.core, || sqid(group, sq), cid, end);
}

/// Tells whoever listens at the probes that a command is about to end without a completion.
#[inline]
pub(super) fn probe_abandoned(group: &Group, sq: usize, cid: u16) {
    probes::abandoned(&group.core, || sqid(group, sq), cid);
}

fn sqid(group: &Group, sq: usize) -> u16 {
    let sq = group.sqs.get(sq).and_then(Option::as_ref);
    sq.map_or(0, |sq| sq.queue.id())
}
