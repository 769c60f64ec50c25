//! The attachment tables that commands in flight were started with.
//!
//! A command keeps the table it found its namespace in, by epoch number and count, with no atomic
//! operation. A namespace that was detached is let go of once the last command of its table ends.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::subsystem::AttachmentTable;

/// Names one table that was current for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u32);

#[derive(Debug)]
struct Snapshot {
    epoch: Epoch,
    table: Arc<AttachmentTable>,
    in_flight: u32,
}

/// The current table and those that older commands still use.
#[derive(Debug)]
pub struct Snapshots {
    current: Snapshot,
    // Only tables with commands in flight, so never more than there are such commands.
    older: Vec<Snapshot>,
}

impl Snapshots {
    /// Starts with the table of now.
    pub fn new(latest: &ArcSwap<AttachmentTable>) -> Self {
        Self {
            current: Snapshot {
                epoch: Epoch(0),
                table: latest.load_full(),
                in_flight: 0,
            },
            older: Vec::new(),
        }
    }

    /// Goes over to the table of now; called once a batch.
    pub fn refresh(&mut self, latest: &ArcSwap<AttachmentTable>) {
        if Arc::ptr_eq(&latest.load(), &self.current.table) {
            return;
        }
        let next = Snapshot {
            epoch: Epoch(self.current.epoch.0.wrapping_add(1)),
            table: latest.load_full(),
            in_flight: 0,
        };
        let last = std::mem::replace(&mut self.current, next);
        if last.in_flight > 0 {
            self.older.push(last);
        }
    }

    /// Counts a command against the current table.
    pub fn enter(&mut self) -> Epoch {
        self.current.in_flight += 1;
        self.current.epoch
    }

    /// The current table.
    pub fn current(&self) -> &AttachmentTable {
        &self.current.table
    }

    /// The table that a command in flight was started with.
    pub fn get(&self, epoch: Epoch) -> Option<&AttachmentTable> {
        std::iter::once(&self.current)
            .chain(&self.older)
            .find(|snapshot| snapshot.epoch == epoch)
            .map(|snapshot| &*snapshot.table)
    }

    /// A command ended.
    pub fn leave(&mut self, epoch: Epoch) {
        if epoch == self.current.epoch {
            self.current.in_flight -= 1;
            return;
        }
        if let Some(index) = self.older.iter().position(|old| old.epoch == epoch) {
            self.older[index].in_flight -= 1;
            if self.older[index].in_flight == 0 {
                self.older.swap_remove(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lives_as_long_as_its_commands() {
        let latest = ArcSwap::from_pointee(AttachmentTable::default());
        let first = Arc::downgrade(&latest.load_full());
        let mut snapshots = Snapshots::new(&latest);
        let epoch = snapshots.enter();
        assert_eq!(epoch, snapshots.enter());

        latest.store(Arc::default());
        snapshots.refresh(&latest);
        let newer = snapshots.enter();
        assert_ne!(epoch, newer);
        assert!(snapshots.get(epoch).is_some());
        snapshots.leave(epoch);
        assert!(first.upgrade().is_some());
        snapshots.leave(epoch);
        assert!(first.upgrade().is_none());
        assert!(snapshots.get(epoch).is_none());
        snapshots.leave(newer);

        latest.store(Arc::default());
        snapshots.refresh(&latest);
        assert!(snapshots.older.is_empty());
    }
}
