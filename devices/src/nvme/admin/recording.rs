//! What is recorded of admin commands.

use super::super::core::Core;
use super::super::error::CommandError;
use super::super::spec::Sqe;
use super::super::trace::{Open, Recorder, probes};

/// The admin queue's part of a trace.
#[derive(Debug, Default)]
pub struct Recording {
    recorder: Option<Recorder>,
    // Those that have not ended, by their identifiers: no more than the queue has room for. Kept for the
    // probes, too, whether there is a recorder or not.
    open: Vec<(u16, Option<Open>)>,
}

impl Recording {
    /// Records from now on, or no more.
    pub fn set(&mut self, recorder: Option<Recorder>) {
        self.recorder = recorder;
        for (_, open) in &mut self.open {
            *open = None;
        }
    }

    /// A command was fetched.
    pub fn fetched(&mut self, core: &Core, sqe: &Sqe) {
        drop(self.recorder.take_if(|recorder| !recorder.is_read()));
        let recorder = self.recorder.as_mut();
        let open = recorder.map(|recorder| recorder.fetched_admin(core.number, sqe));
        self.open.push((sqe.cid(), open));
        probes::fetched(core, || 0, sqe);
    }

    /// A command's completion is about to be posted.
    pub fn completed(&mut self, core: &Core, cid: u16, end: Result<u32, CommandError>) {
        let index = self.open.iter().position(|(open, _)| *open == cid);
        let open = index.and_then(|index| self.open.swap_remove(index).1);
        if let (Some(recorder), Some(open)) = (&mut self.recorder, open) {
            recorder.completed(&open, end);
        }
        probes::completed(core, || 0, cid, end);
    }

    /// The queue is gone, and with it all commands that have not ended.
    pub fn abandon(&mut self, core: &Core) {
        for (cid, open) in self.open.drain(..) {
            if let (Some(recorder), Some(open)) = (&mut self.recorder, open) {
                recorder.abandoned(&open);
            }
            probes::abandoned(core, || 0, cid);
        }
    }
}
