//! What is recorded of admin commands.

use super::super::core::Core;
use super::super::error::CommandError;
use super::super::spec::Sqe;
use super::super::trace::{Open, Recorder, probes};

/// The admin queue's part of a trace.
#[derive(Debug, Default)]
pub struct Recording {
    recorder: Option<Recorder>,
    // Those that have not ended, by their identifiers: no more than the queue has room for.
    open: Vec<(u16, Open)>,
}

impl Recording {
    /// Records from now on, or no more.
    pub fn set(&mut self, recorder: Option<Recorder>) {
        self.recorder = recorder;
        self.open.clear();
    }

    /// A command was fetched.
    pub fn fetched(&mut self, core: &Core, sqe: &Sqe) {
        if let Some(recorder) = &mut self.recorder {
            let open = recorder.fetched_admin(core.number, sqe);
            self.open.push((sqe.cid(), open));
        }
        probes::fetched(core, || 0, sqe);
    }

    /// A command's completion is about to be posted.
    pub fn completed(&mut self, core: &Core, cid: u16, end: Result<u32, CommandError>) {
        let index = self.open.iter().position(|(open, _)| *open == cid);
        if let (Some(recorder), Some(index)) = (&mut self.recorder, index) {
            recorder.completed(&self.open.swap_remove(index).1, end);
        }
        probes::completed(core, || 0, cid, end);
    }

    /// The queue is gone, and with it all commands that have not ended.
    pub fn abandon(&mut self, core: &Core) {
        for (cid, open) in self.open.drain(..) {
            if let Some(recorder) = &mut self.recorder {
                recorder.abandoned(&open);
            }
            probes::abandoned(core, || 0, cid);
        }
    }
}
