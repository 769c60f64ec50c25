//! Repeatable pseudo-random numbers.

/// Marsaglia's xorshift64, seeded by who wants the same run again.
pub struct Random(u64);

impl Random {
    /// A sequence that `seed` alone determines.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed) | 1)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`, which is not zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Spreads `value` over all 64 bits (the finalizer of MurmurHash3).
pub fn mix(value: u64) -> u64 {
    let mut hash = value ^ 0x9e37_79b9_7f4a_7c15;
    hash = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ hash >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}
