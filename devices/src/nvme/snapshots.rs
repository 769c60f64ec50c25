//! The attachment tables that commands in flight were started with.
//!
//! A command keeps the table it found its namespace in, by epoch number and count, with no atomic
//! read-modify-write. A namespace that was detached is let go of once the last command of its table
//! ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};

use crate::subsystem::{AttachmentTable, Namespace};

use super::spec::BROADCAST;
use super::stats::Gauge;

/// The table of now of one controller, and who still uses which table.
#[derive(Debug, Default)]
pub struct Tables {
    latest: ArcSwap<AttachmentTable>,
    // Behind `latest` by no more than a moment: a look at it costs each command one load.
    version: AtomicU64,
    // Of all queue groups, for those who count. Locked when tables change, never per command.
    views: Mutex<Vec<Arc<View>>>,
}

impl Tables {
    /// Replaces the table of now.
    pub fn publish(&self, table: Arc<AttachmentTable>) {
        self.latest.store(table);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The table of now.
    pub fn load(&self) -> Guard<Arc<AttachmentTable>> {
        self.latest.load()
    }

    /// I/O commands in flight, over all queues.
    pub fn in_flight(&self) -> u64 {
        let views = self.views();
        views.iter().map(|view| u64::from(view.total.get())).sum()
    }

    /// I/O commands in flight on a namespace, over all queues.
    pub fn in_flight_on(&self, namespace: &Namespace) -> u64 {
        let views = self.views();
        let counts = views.iter().map(|view| view.in_flight_on(namespace));
        counts.map(u64::from).sum()
    }

    fn views(&self) -> MutexGuard<'_, Vec<Arc<View>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, view: &Arc<View>) {
        self.views().push(Arc::clone(view));
    }

    /// Lets go of a view. Its namespaces may close, which must not happen under the lock.
    fn remove(&self, view: &Arc<View>) {
        let removed = {
            let mut views = self.views();
            let index = views.iter().position(|other| Arc::ptr_eq(other, view));
            index.map(|index| views.swap_remove(index))
        };
        drop(removed);
    }
}

/// A table as one queue group uses it. The group's owner alone counts; anybody may read.
#[derive(Debug)]
struct View {
    table: Arc<AttachmentTable>,
    total: Gauge,
    // By NSID; index 0 counts the commands for all namespaces.
    by_nsid: Box<[Gauge]>,
}

impl View {
    fn new(table: Arc<AttachmentTable>) -> Arc<Self> {
        let by_nsid = (0..table.nsid_bound().max(1)).map(|_| Gauge::default());
        Arc::new(Self {
            by_nsid: by_nsid.collect(),
            total: Gauge::default(),
            table,
        })
    }

    /// Where a command for `nsid` counts; nowhere if the table cannot have such a namespace.
    fn gauge(&self, nsid: u32) -> Option<&Gauge> {
        match nsid {
            0 => None,
            BROADCAST => self.by_nsid.first(),
            nsid => self.by_nsid.get(nsid as usize),
        }
    }

    fn in_flight_on(&self, namespace: &Namespace) -> u32 {
        let nsid = namespace.nsid();
        let here = self.table.get(nsid);
        if !here.is_some_and(|here| std::ptr::eq(&raw const **here, namespace)) {
            return 0;
        }
        let of = |nsid| self.gauge(nsid).map_or(0, Gauge::get);
        of(nsid) + of(BROADCAST)
    }
}

/// Names one table that was current for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u32);

#[derive(Debug)]
struct Snapshot {
    epoch: Epoch,
    view: Arc<View>,
}

/// The current table of a queue group and those that its older commands still use.
#[derive(Debug)]
pub struct Snapshots {
    tables: Arc<Tables>,
    version: u64,
    current: Snapshot,
    // Only tables with commands in flight, so never more than there are such commands.
    older: Vec<Snapshot>,
}

impl Snapshots {
    /// Starts with the table of now.
    pub fn new(tables: &Arc<Tables>) -> Self {
        // Before the table: one that is replaced in between is replaced here, too, sooner or later.
        let version = tables.version.load(Ordering::Acquire);
        let view = View::new(tables.latest.load_full());
        tables.add(&view);
        Self {
            tables: Arc::clone(tables),
            version,
            current: Snapshot {
                epoch: Epoch(0),
                view,
            },
            older: Vec::new(),
        }
    }

    /// Goes over to the table of now. Called for each command that was fetched: a guest that knows of a
    /// change when it rings is served with it.
    pub fn refresh(&mut self) {
        let version = self.tables.version.load(Ordering::Acquire);
        if version == self.version {
            return;
        }
        self.version = version;
        let view = View::new(self.tables.latest.load_full());
        self.tables.add(&view);
        let epoch = Epoch(self.current.epoch.0.wrapping_add(1));
        let last = std::mem::replace(&mut self.current, Snapshot { epoch, view });
        if last.view.total.get() > 0 {
            self.older.push(last);
        } else {
            self.tables.remove(&last.view);
        }
    }

    /// Counts a command for `nsid` against the current table.
    pub fn enter(&mut self, nsid: u32) -> Epoch {
        let view = &self.current.view;
        view.total.add(1);
        if let Some(gauge) = view.gauge(nsid) {
            gauge.add(1);
        }
        self.current.epoch
    }

    /// The current table.
    pub fn current(&self) -> &AttachmentTable {
        &self.current.view.table
    }

    /// The table that a command in flight was started with.
    pub fn get(&self, epoch: Epoch) -> Option<&AttachmentTable> {
        std::iter::once(&self.current)
            .chain(&self.older)
            .find(|snapshot| snapshot.epoch == epoch)
            .map(|snapshot| &*snapshot.view.table)
    }

    /// A command for `nsid` ended.
    pub fn leave(&mut self, epoch: Epoch, nsid: u32) {
        if epoch == self.current.epoch {
            self.current.view.leave(nsid);
            return;
        }
        if let Some(index) = self.older.iter().position(|old| old.epoch == epoch)
            && self.older[index].view.leave(nsid) == 0
        {
            let last = self.older.swap_remove(index);
            self.tables.remove(&last.view);
        }
    }
}

impl View {
    /// How many commands are left.
    fn leave(&self, nsid: u32) -> u32 {
        if let Some(gauge) = self.gauge(nsid) {
            gauge.sub(1);
        }
        self.total.sub(1);
        self.total.get()
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        for snapshot in self.older.drain(..) {
            self.tables.remove(&snapshot.view);
        }
        self.tables.remove(&self.current.view);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lives_as_long_as_its_commands() {
        let tables = Arc::<Tables>::default();
        let first = Arc::downgrade(&tables.latest.load_full());
        let mut snapshots = Snapshots::new(&tables);
        let epoch = snapshots.enter(1);
        assert_eq!(epoch, snapshots.enter(1));
        assert_eq!(tables.in_flight(), 2);

        tables.publish(Arc::default());
        snapshots.refresh();
        let newer = snapshots.enter(1);
        assert_ne!(epoch, newer);
        assert_eq!(tables.in_flight(), 3);
        assert!(snapshots.get(epoch).is_some());
        snapshots.leave(epoch, 1);
        assert!(first.upgrade().is_some());
        snapshots.leave(epoch, 1);
        assert!(first.upgrade().is_none());
        assert!(snapshots.get(epoch).is_none());
        snapshots.leave(newer, 1);

        tables.publish(Arc::default());
        snapshots.refresh();
        assert!(snapshots.older.is_empty());
        assert_eq!((tables.in_flight(), tables.views().len()), (0, 1));
        drop(snapshots);
        assert!(tables.views().is_empty());
    }
}
