//! Completion queues that go to another thread, or come from one.
//!
//! A queue leaves with nothing in flight, so that what is in flight never changes threads. It takes no
//! commands until what it has has ended, but only for a short while: storage that hangs keeps the
//! queue where it is, and stops no other command.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::super::core::{Core, Event, same};
use super::super::super::group::State;
use super::{RESET_NOTICE_MS, Worker};

/// How long a queue that is to move takes no commands. Most storage ends what a queue has in flight in
/// less.
pub(in super::super) const MOVE_LIMIT: Duration = Duration::from_millis(10);

/// A group that waits for its last commands, to move.
#[derive(Debug)]
pub(super) struct Leaving {
    group: usize,
    until: Instant,
}

impl Worker {
    /// Begins to give a completion queue up: tells `CqGivenUp` or `CqKept`.
    pub(super) fn give_up(&mut self, core: &Arc<Core>, cqid: u16) {
        let is_it = |group: &super::Group| {
            same(&group.core, core) && group.cq.id() == cqid && group.state == State::Running
        };
        let found = self
            .groups
            .iter()
            .position(|group| group.as_ref().is_some_and(is_it));
        let Some(index) = found else {
            core.post(Event::CqKept { cqid });
            return;
        };
        if let Some(group) = &mut self.groups[index] {
            group.state = State::Leaving;
        }
        self.leaving.push(Leaving {
            group: index,
            until: Instant::now() + self.shared.move_limit,
        });
        self.leave_if_idle(index);
    }

    /// Hands a group that is to move over to the admin queue's owner, once it has nothing in flight.
    pub(super) fn leave_if_idle(&mut self, index: usize) {
        let idle =
            |group: &mut super::Group| group.state == State::Leaving && group.in_flight() == 0;
        let Some(mut group) = self.groups[index].take_if(idle) else {
            return;
        };
        self.leaving.retain(|leaving| leaving.group != index);
        // Nobody keeps its time between two threads.
        group.interrupt_now();
        let core = Arc::clone(&group.core);
        core.post(Event::CqGivenUp {
            group: Box::new(group),
        });
    }

    /// A reset takes the group: it does not move any more.
    pub(super) fn forget_move(&mut self, index: usize) {
        self.leaving.retain(|leaving| leaving.group != index);
    }

    /// Keeps those groups whose commands take too long.
    pub(super) fn keep_late(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let now = Instant::now();
        let groups = &mut self.groups;
        self.leaving.retain(|leaving| {
            if leaving.until > now {
                return true;
            }
            if let Some(group) = &mut groups[leaving.group] {
                // The next look at its queues takes what came in the meantime.
                group.state = State::Running;
                let cqid = group.cq.id();
                group.core.post(Event::CqKept { cqid });
            }
            false
        });
    }

    /// Whether a group waits to move.
    pub(super) fn is_any_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// How long the thread may sleep in milliseconds; -1 for ever.
    pub(super) fn sleep_limit(&self) -> i32 {
        let first = self.leaving.iter().map(|leaving| leaving.until).min();
        if let Some(first) = first {
            let left = first.saturating_duration_since(Instant::now());
            // Never too early: it would only sleep again.
            return i32::try_from(left.as_millis()).map_or(i32::MAX, |ms| ms.saturating_add(1));
        }
        if self.resets.is_empty() {
            -1
        } else {
            RESET_NOTICE_MS
        }
    }
}
