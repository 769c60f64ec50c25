//! Which namespaces a controller sees: an immutable table, replaced as a whole when it changes.

use std::sync::Arc;

use super::namespace::{MAX_NSID, Namespace};

/// The namespaces attached to one controller. I/O threads read it without locks.
#[derive(Debug, Default)]
pub struct AttachmentTable {
    // Indexed by NSID; short when the NSIDs are low.
    namespaces: Vec<Option<Arc<Namespace>>>,
}

impl AttachmentTable {
    /// A table of these namespaces.
    pub(super) fn new(attached: impl Iterator<Item = Arc<Namespace>>) -> Self {
        let mut table = Self::default();
        for namespace in attached {
            let index = namespace.nsid() as usize;
            debug_assert!(index <= MAX_NSID as usize);
            if table.namespaces.len() <= index {
                table.namespaces.resize(index + 1, None);
            }
            table.namespaces[index] = Some(namespace);
        }
        table
    }

    /// The namespace with this NSID, if it is attached.
    pub fn get(&self, nsid: u32) -> Option<&Arc<Namespace>> {
        self.namespaces.get(nsid as usize)?.as_ref()
    }

    /// The table without the NSIDs that are `hidden`; itself if there are none.
    pub fn without(self: &Arc<Self>, hidden: impl Fn(u32) -> bool) -> Arc<Self> {
        if !self.iter().any(|namespace| hidden(namespace.nsid())) {
            return Arc::clone(self);
        }
        let seen = self.iter().filter(|namespace| !hidden(namespace.nsid()));
        Arc::new(Self::new(seen.cloned()))
    }

    /// A number above every NSID in the table.
    pub fn nsid_bound(&self) -> usize {
        self.namespaces.len()
    }

    /// All attached namespaces in the order of their NSIDs.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.namespaces.iter().flatten()
    }
}
