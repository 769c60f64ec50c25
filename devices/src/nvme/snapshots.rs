//! The attachment tables that commands in flight were started with.
//!
//! A command keeps the table it found its namespace in, by epoch number and count, with no atomic
//! read-modify-write. A table that was replaced shrinks to the namespaces that its commands use: one
//! that was detached is let go of once its last command ends, whatever others do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::Guard;

use crate::subsystem::{AttachmentTable, Namespace, TrafficCounter};

use super::spec::BROADCAST;
use super::stats::Gauge;
use super::sync::{Atomics, Native, Place};

/// The table of now of one controller, and who still uses which table.
#[derive(Debug)]
pub struct Tables<A: Atomics = Native> {
    latest: A::Place<AttachmentTable>,
    // Behind `latest` by no more than a moment: a look at it costs each command one load.
    version: A::Number,
    // Of all queue groups, for those who count. Locked when tables change, never per command.
    views: Mutex<Vec<View>>,
}

impl<A: Atomics> Default for Tables<A> {
    fn default() -> Self {
        Self {
            latest: A::Place::new(Arc::default()),
            version: A::Number::default(),
            views: Mutex::default(),
        }
    }
}

impl<A: Atomics> Tables<A> {
    /// Replaces the table of now.
    pub fn publish(&self, table: Arc<AttachmentTable>) {
        self.latest.store(table);
        A::bump(&self.version);
    }

    /// I/O commands in flight, over all queues.
    pub fn in_flight(&self) -> u64 {
        let views = self.views();
        views
            .iter()
            .map(|view| u64::from(view.counts.total.get()))
            .sum()
    }

    /// I/O commands in flight on a namespace, over all queues.
    pub fn in_flight_on(&self, namespace: &Namespace) -> u64 {
        let views = self.views();
        let counts = views.iter().map(|view| view.in_flight_on(namespace));
        counts.map(u64::from).sum()
    }

    fn views(&self) -> MutexGuard<'_, Vec<View>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, view: &View) {
        self.views().push(view.clone());
    }

    /// Replaces the table of a view. Namespaces of the old one may close, which must not happen under
    /// the lock.
    fn replace(&self, view: &View) {
        let old = {
            let mut views = self.views();
            let here = views.iter_mut().find(|other| other.is(view));
            here.map(|here| std::mem::replace(&mut here.table, Arc::clone(&view.table)))
        };
        drop(old);
    }

    /// Lets go of a view, as [`Tables::replace`] does.
    fn remove(&self, view: &View) {
        let removed = {
            let mut views = self.views();
            let index = views.iter().position(|other| other.is(view));
            index.map(|index| views.swap_remove(index))
        };
        drop(removed);
    }
}

impl Tables {
    /// The table of now.
    pub fn load(&self) -> Guard<Arc<AttachmentTable>> {
        self.latest.load()
    }
}

/// A table as one queue group uses it.
#[derive(Debug, Clone)]
struct View {
    table: Arc<AttachmentTable>,
    counts: Arc<Counts>,
}

/// Commands in flight. The group's owner alone counts; anybody may read.
#[derive(Debug)]
struct Counts {
    total: Gauge,
    // By NSID; index 0 counts the commands for all namespaces.
    by_nsid: Box<[Gauge]>,
}

impl Counts {
    /// Where a command for `nsid` counts; nowhere if the table cannot have such a namespace.
    fn gauge(&self, nsid: u32) -> Option<&Gauge> {
        match nsid {
            0 => None,
            BROADCAST => self.by_nsid.first(),
            nsid => self.by_nsid.get(nsid as usize),
        }
    }

    fn get(&self, nsid: u32) -> u32 {
        let of = |nsid| self.gauge(nsid).map_or(0, Gauge::get);
        of(nsid) + of(BROADCAST)
    }
}

impl View {
    fn new(table: Arc<AttachmentTable>) -> Self {
        let by_nsid = (0..table.nsid_bound().max(1)).map(|_| Gauge::default());
        let counts = Counts {
            total: Gauge::default(),
            by_nsid: by_nsid.collect(),
        };
        let counts = Arc::new(counts);
        Self { table, counts }
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.counts, &other.counts)
    }

    fn in_flight_on(&self, namespace: &Namespace) -> u32 {
        let here = self.table.get(namespace.nsid());
        if !here.is_some_and(|here| std::ptr::eq(&raw const **here, namespace)) {
            return 0;
        }
        self.counts.get(namespace.nsid())
    }

    fn enter(&self, nsid: u32) {
        self.counts.total.add(1);
        if let Some(gauge) = self.counts.gauge(nsid) {
            gauge.add(1);
        }
    }

    fn leave(&self, nsid: u32) {
        self.counts.total.sub(1);
        if let Some(gauge) = self.counts.gauge(nsid) {
            gauge.sub(1);
        }
    }

    /// Lets go of the namespaces that no command uses. For tables that get no new commands.
    fn prune(&mut self) {
        let unused = |nsid| self.counts.get(nsid) == 0;
        self.table = self.table.without(unused);
    }
}

/// Names one table that was current for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epoch(u32);

#[derive(Debug)]
struct Snapshot {
    epoch: Epoch,
    view: View,
}

/// The current table of a queue group and those that its older commands still use.
#[derive(Debug)]
pub struct Snapshots<A: Atomics = Native> {
    tables: Arc<Tables<A>>,
    version: u64,
    current: Snapshot,
    // Only tables with commands in flight, so never more than there are such commands; and of each
    // only the namespaces that these commands are for.
    older: Vec<Snapshot>,
    // By NSID in the current table; made with the first command that counts.
    traffic: Vec<Option<TrafficCounter>>,
}

impl<A: Atomics> Snapshots<A> {
    /// Starts with the table of now.
    pub fn new(tables: &Arc<Tables<A>>) -> Self {
        // Before the table: one that is replaced in between is replaced here, too, sooner or later.
        let version = A::load(&tables.version);
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
            traffic: Vec::new(),
        }
    }

    /// Goes over to the table of now. Called for each command that was fetched: a guest that knows of a
    /// change when it rings is served with it.
    pub fn refresh(&mut self) {
        let version = A::load(&self.tables.version);
        if version == self.version {
            return;
        }
        self.version = version;
        self.traffic.clear();
        let view = View::new(self.tables.latest.load_full());
        self.tables.add(&view);
        let epoch = Epoch(self.current.epoch.0.wrapping_add(1));
        let mut last = std::mem::replace(&mut self.current, Snapshot { epoch, view });
        if last.view.counts.total.get() > 0 {
            last.view.prune();
            self.tables.replace(&last.view);
            self.older.push(last);
        } else {
            self.tables.remove(&last.view);
        }
    }

    /// Counts a command for `nsid` against the current table.
    pub fn enter(&mut self, nsid: u32) -> Epoch {
        self.current.view.enter(nsid);
        self.current.epoch
    }

    /// Counts traffic on a namespace of the current table; nothing if it is not there.
    #[inline]
    pub fn count(&mut self, nsid: u32, count: impl Fn(&TrafficCounter)) {
        match self.traffic.get(nsid as usize) {
            Some(Some(counter)) => count(counter),
            _ => self.count_first(nsid, count),
        }
    }

    #[cold]
    fn count_first(&mut self, nsid: u32, count: impl Fn(&TrafficCounter)) {
        let table = &self.current.view.table;
        let Some(namespace) = table.get(nsid) else {
            return;
        };
        if self.traffic.is_empty() {
            self.traffic.resize_with(table.nsid_bound(), || None);
        }
        count(self.traffic[nsid as usize].insert(namespace.traffic_counter()));
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
        let Some(index) = self.older.iter().position(|old| old.epoch == epoch) else {
            return;
        };
        let view = &mut self.older[index].view;
        view.leave(nsid);
        if view.counts.total.get() == 0 {
            let last = self.older.swap_remove(index);
            self.tables.remove(&last.view);
        } else if view.counts.get(nsid) == 0 {
            view.prune();
            self.tables.replace(view);
        }
    }
}

impl<A: Atomics> Drop for Snapshots<A> {
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
