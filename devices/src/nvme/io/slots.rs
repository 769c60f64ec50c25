//! A table of in-flight commands whose keys never name a later command.

/// Names one occupation of a slot: index in the low half, generation in the high half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key(u64);

impl Key {
    /// As an opaque number, for a backend's token.
    pub fn to_raw(self) -> u64 {
        self.0
    }

    /// From a number that [`Key::to_raw`] gave, perhaps long ago.
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// Which slot it names. A later key may name the same one.
    pub fn index(self) -> usize {
        self.parts().0
    }

    fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(index))
    }

    #[allow(clippy::cast_possible_truncation)] // the two halves
    fn parts(self) -> (usize, u32) {
        (self.0 as u32 as usize, (self.0 >> 32) as u32)
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Slots are reused; storage grows to the most ever in use and stays.
#[derive(Debug)]
pub struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    /// Stores a value.
    pub fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
            u32::try_from(self.slots.len() - 1).unwrap_or_else(|_| unreachable!("queues bound it"))
        });
        let slot = &mut self.slots[index as usize];
        slot.value = Some(value);
        Key::new(index, slot.generation)
    }

    /// The value, unless it was removed since.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (index, generation) = key.parts();
        let slot = self.slots.get_mut(index)?;
        if slot.generation != generation {
            return None;
        }
        slot.value.as_mut()
    }

    /// Takes the value out; its key names nothing from now on.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let (index, generation) = key.parts();
        let slot = self.slots.get_mut(index)?;
        if slot.generation != generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free
            .push(u32::try_from(index).unwrap_or_else(|_| unreachable!("was a u32")));
        Some(value)
    }

    /// The values in use with their keys.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().zip(0u32..).filter_map(|(slot, index)| {
            let value = slot.value.as_ref()?;
            Some((Key::new(index, slot.generation), value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_key_names_nothing() {
        let mut slots = Slots::default();
        let first = slots.insert("first");
        assert_eq!(slots.remove(first), Some("first"));
        let second = slots.insert("second");
        assert_ne!(first, second);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(
            slots.get_mut(Key::from_raw(second.to_raw())),
            Some(&mut "second")
        );
        assert_eq!(slots.iter().count(), 1);
        assert_eq!(slots.get_mut(Key::from_raw(u64::MAX)), None);
    }
}
