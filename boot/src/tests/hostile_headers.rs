//! Headers with random damage must be refused or load within RAM; nothing else.

use super::*;

/// Xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Numbers at the edges of what fields can hold.
const EDGES: [u64; 6] = [0, 1, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 63, u64::MAX];

/// Loads `image` with damage within `header`; returns how many loads worked.
fn damage(image: &[u8], header: std::ops::Range<usize>, seed: u64) -> u32 {
    const ROUNDS: u32 = 2000;
    let machine = Machine::new(16 * MIB);
    let initrd = machine.file("initrd", b"070701");
    let mut random = Random(seed);
    let mut loaded = 0;
    for _ in 0..ROUNDS {
        let mut image = image.to_vec();
        for _ in 0..=random.below(2) {
            let offset = header.start + random.below(header.len());
            let value = match random.below(2) {
                0 => random.next(),
                _ => EDGES[random.below(EDGES.len())],
            };
            let length = 1 << random.below(4);
            put(&mut image, offset, &value.to_le_bytes()[..length]);
        }
        let path = machine.file("kernel", &image);
        if let Ok(entry) = machine.load(&path, Some(&initrd), "quiet") {
            loaded += 1;
            let rip = entry.cpu_state().rip;
            assert!((layout::HIGH_MEMORY_START..machine.memory).contains(&rip));
        }
    }
    assert!(loaded < ROUNDS, "no damage was noticed");
    loaded
}

#[test]
fn bzimage() {
    assert!(damage(&good_bzimage(), 0x1F1..0x268, 0x9E37_79B9_7F4A_7C15) > 0);
}

#[test]
fn elf() {
    assert!(damage(&good_elf(), 4..ELF_NOTES + 0x60, 0xD1B5_4A32_D192_ED03) > 0);
}
