//! Which UUIDs the subsystem gives to namespaces that bring none: an NSID never names other bytes
//! by the same UUID.
//!
//! The first namespace at an NSID has a UUID made from NQN and NSID, so that it stays the same from
//! run to run. The same medium that returns has the same UUID; another one, and all that is not a
//! medium, such as memory, has a new one.

use std::collections::{BTreeMap, VecDeque};

use uuid::Uuid;

use crate::storage::Medium;

/// Media remembered by NSID. The one that was away longest is forgotten first; it has a new UUID
/// should it return, as generations are never used again.
const REMEMBERED: usize = 16;

/// What was at each NSID: at most one entry for each valid NSID, with [`REMEMBERED`] media.
#[derive(Debug, Default)]
pub struct History(BTreeMap<u32, Past>);

#[derive(Debug, Default)]
struct Past {
    next: u64,
    media: VecDeque<(Medium, u64)>,
}

impl History {
    /// The UUID for the namespace that is now added at `nsid` with its bytes in `medium`.
    pub fn uuid(&mut self, nqn: &str, nsid: u32, medium: Option<Medium>) -> Uuid {
        let generation = self.0.entry(nsid).or_default().generation(medium);
        let name = match generation {
            0 => format!("{nqn}#{nsid}"),
            _ => format!("{nqn}#{nsid}#{generation}"),
        };
        Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
    }
}

impl Past {
    fn generation(&mut self, medium: Option<Medium>) -> u64 {
        let known = self
            .media
            .iter()
            .position(|(other, _)| Some(other) == medium.as_ref());
        let generation = match known.and_then(|index| self.media.remove(index)) {
            Some((_, generation)) => generation,
            None => {
                self.next += 1;
                self.next - 1
            }
        };
        if let Some(medium) = medium {
            self.media.push_back((medium, generation));
            if self.media.len() > REMEMBERED {
                self.media.pop_front();
            }
        }
        generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn medium(number: u64) -> Option<Medium> {
        Some(Medium::Device { number })
    }

    #[test]
    fn a_medium_keeps_its_uuid_and_everything_else_has_a_new_one() {
        let mut history = History::default();
        let mut uuid = |nsid, medium| history.uuid("nqn", nsid, medium);
        let first = uuid(1, medium(1));
        assert_eq!(first, Uuid::new_v5(&Uuid::NAMESPACE_OID, b"nqn#1"));
        let second = uuid(1, medium(2));
        assert_eq!(second, Uuid::new_v5(&Uuid::NAMESPACE_OID, b"nqn#1#1"));
        let memory = [uuid(1, None), uuid(1, None)];
        let all = [first, second, memory[0], memory[1], uuid(2, medium(1))];
        for (index, uuid) in all.iter().enumerate() {
            assert!(!all[..index].contains(uuid));
        }
        assert_eq!(uuid(1, medium(1)), first);
        assert_eq!(uuid(1, medium(2)), second);
    }

    #[test]
    fn what_is_forgotten_is_new_and_little_is_remembered() {
        let mut history = History::default();
        let all: Vec<Uuid> = (0..100)
            .map(|number| history.uuid("nqn", 1, medium(number)))
            .collect();
        assert_eq!(history.0[&1].media.len(), REMEMBERED);
        assert_eq!(history.uuid("nqn", 1, medium(99)), all[99]);
        assert_eq!(history.uuid("nqn", 1, medium(84)), all[84]);
        let returned = history.uuid("nqn", 1, medium(0));
        assert!(!all.contains(&returned));
    }
}
