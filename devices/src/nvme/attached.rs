//! What a guest can know of the namespaces that are attached to its controller.
//!
//! Between two looks of the guest a namespace can go and another one can take its NSID. A guest that
//! missed the gap would have the new bytes under the old name: what it cached is wrong, and what it
//! still writes ends in the wrong place. So a namespace with another identity than the one that the
//! guest had at an NSID is withheld until the guest looks (Identify, CNS 02h and 07h: the lists of
//! active namespaces) for the second time. The first time it finds that the old one went, and the
//! Changed Namespace List has it look again once it is done with that.
//!
//! Linux does so in this order: Get Log Page (Changed Namespace List, RAE 0), the list of active
//! namespaces, then each namespace in it, then it drops those that are not in it; and one such scan
//! ends before the next begins. The log alone is no look: it says that something changed, not what.
//! Neither is a reset: Linux keeps its namespaces over it, and before it looks at them it sends again
//! what it had in flight. And what it finds gone it uses until it has dropped it, so that commands for
//! that end as on a path that is gone until the guest has looked twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::subsystem::{AttachmentTable, Identity};

/// The attached namespaces of one controller, and what the guest may not know of them.
#[derive(Debug, Default)]
pub struct Attached {
    table: Arc<AttachmentTable>,
    // By NSID: what the guest had there. None of these is visible, whatever is attached.
    departed: BTreeMap<u32, Departed>,
    // The guest enabled the controller once.
    in_use: bool,
}

#[derive(Debug)]
struct Departed {
    identity: Identity,
    looks: Looks,
}

/// How often the guest has looked since a namespace went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looks {
    Never,
    /// It may still be at dropping the namespace.
    Once,
    More,
}

impl Attached {
    /// The namespaces that the guest may use.
    pub fn visible(&self) -> Arc<AttachmentTable> {
        self.table.without(|nsid| self.departed.contains_key(&nsid))
    }

    /// The attached namespaces are now `table`; the NSIDs in `changed` came, went or changed.
    pub fn set(&mut self, table: Arc<AttachmentTable>, changed: &[u32]) {
        let before = std::mem::replace(&mut self.table, table);
        if !self.in_use {
            return;
        }
        let identity = |table: &AttachmentTable, nsid| table.get(nsid).map(|ns| ns.identity());
        for &nsid in changed {
            let had = identity(&before, nsid);
            let has = identity(&self.table, nsid);
            if let Some(identity) = had
                && has != had
                && !self.departed.contains_key(&nsid)
            {
                let looks = Looks::Never;
                self.departed.insert(nsid, Departed { identity, looks });
            }
            let returned = |departed: &Departed| Some(departed.identity) == has;
            if self.departed.get(&nsid).is_some_and(returned) {
                self.departed.remove(&nsid);
            }
        }
    }

    /// The guest begins to use the controller. The first time, it knows nothing of before; after a
    /// reset, what it looked at last may not have reached it.
    pub fn begin_use(&mut self) {
        self.in_use = true;
        for departed in self.departed.values_mut() {
            departed.looks = Looks::Never;
        }
    }

    /// The guest looks at the NSIDs above `after`. Those that it must look at once more are told, and
    /// those that it finds just now in place of another one: who looked the first time need not be
    /// who does now.
    pub fn guest_looks(&mut self, after: u32) -> Vec<u32> {
        let table = &self.table;
        let mut changed = Vec::new();
        self.departed.retain(|&nsid, departed| {
            if nsid <= after {
                return true;
            }
            let waits = table.get(nsid).is_some();
            let stays = !(waits && departed.looks != Looks::Never);
            departed.looks = match departed.looks {
                Looks::Never => Looks::Once,
                _ => Looks::More,
            };
            if waits {
                changed.push(nsid);
            }
            stays
        });
        changed
    }

    /// Whether a namespace went and the guest may still use it.
    pub fn has_departed(&self, nsid: u32) -> bool {
        self.departed
            .get(&nsid)
            .is_some_and(|departed| departed.looks != Looks::More)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::tests::held::table_of;

    const NSID: u32 = 1;

    /// What can happen: one of two namespaces comes, or goes, the guest looks, or resets.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Set(usize),
        Look,
        Reset,
    }

    /// The guest's side: which namespace it had last, and whether it found that it went.
    #[derive(Debug, Clone, Copy, Default)]
    struct Guest {
        had: Option<Identity>,
        saw_it_go: bool,
    }

    fn seen(attached: &Attached) -> Option<Identity> {
        attached.visible().get(NSID).map(|found| found.identity())
    }

    fn run(steps: &[Step], tables: &[Arc<AttachmentTable>]) {
        let mut attached = Attached::default();
        attached.begin_use();
        let (mut guest, mut told) = (Guest::default(), false);
        for &step in steps {
            match step {
                Step::Set(table) => {
                    attached.set(Arc::clone(&tables[table]), &[NSID]);
                    told = true;
                }
                Step::Reset => {
                    attached.begin_use();
                    // It keeps what it has, and looks. What it found before may not have reached it.
                    guest.saw_it_go = false;
                    told = true;
                }
                Step::Look => {
                    told = !attached.guest_looks(0).is_empty();
                    match seen(&attached) {
                        Some(had) => {
                            let same = guest.had.is_none_or(|last| last == had);
                            assert!(same || guest.saw_it_go, "{steps:?}");
                            guest = Guest {
                                had: Some(had),
                                saw_it_go: false,
                            };
                        }
                        None => guest.saw_it_go = true,
                    }
                }
            }
            // Commands reach what is visible: never another one than the guest had.
            let reached = seen(&attached);
            let known = guest.had.is_none() || reached.is_none() || reached == guest.had;
            assert!(known, "{steps:?}: {reached:?} {guest:?}");
        }
        // It is told to look as long as it does not see what there is, and two looks are enough.
        for _ in 0..2 {
            let there = attached.table.get(NSID).map(|found| found.identity());
            assert!(told || seen(&attached) == there, "{steps:?}: not told");
            told = !attached.guest_looks(0).is_empty();
        }
        let there = attached.table.get(NSID).map(|found| found.identity());
        assert_eq!(seen(&attached), there, "{steps:?}");
    }

    #[test]
    fn no_sequence_of_changes_and_looks_shows_a_namespace_for_another_one() {
        let tables = [None, Some(1), Some(2)].map(table_of);
        let sets = [0, 1, 2].map(Step::Set);
        let choices = [sets.as_slice(), &[Step::Look, Step::Reset]].concat();
        const STEPS: u32 = 7;
        for number in 0..choices.len().pow(STEPS) {
            let steps: Vec<Step> = (0..STEPS)
                .map(|digit| choices[number / choices.len().pow(digit) % choices.len()])
                .collect();
            run(&steps, &tables);
        }
    }
}
