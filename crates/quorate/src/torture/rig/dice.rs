//! Random numbers that a seed repeats: SplitMix64, which is enough to choose victims and packets.
//!
//! # Sources
//! Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014.

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..below`; 0 if `below` is. The bias of the remainder is of no weight here.
    pub(super) fn below(&mut self, below: u64) -> u64 {
        self.next() % below.max(1)
    }

    /// One of them; `None` if there is none.
    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        from.get(usize::try_from(self.below(from.len() as u64)).ok()?).copied()
    }

    /// True `per_mille` times of a thousand.
    pub(super) fn happens(&mut self, per_mille: u16) -> bool {
        self.below(1_000) < u64::from(per_mille)
    }
}
