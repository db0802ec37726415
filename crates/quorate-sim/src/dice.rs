//! Everything random, from one seed.
//!
//! Each concern has a stream of its own, so that drawing once more in one place does not change what
//! happens everywhere else.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// One stream of random numbers.
#[derive(Debug)]
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    /// The stream of a concern.
    #[must_use]
    pub(crate) fn new(seed: u64, concern: &str) -> Dice {
        Dice(ChaCha8Rng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ xxh3_64(concern.as_bytes())))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub(crate) fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }

    /// Less than `bound`; 0 when that is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // The bias of the remainder does not matter to what is tested.
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// A position in a list of `len` things.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("it is less than a usize")
    }

    /// From `low` to `high`, both possible.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in so many of a thousand cases.
    pub(crate) fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// A span in whole microseconds.
    pub(crate) fn span(&mut self, range: (Duration, Duration)) -> Duration {
        let micros = |span: Duration| u64::try_from(span.as_micros()).expect("simulated spans are short");
        Duration::from_micros(self.between(micros(range.0), micros(range.1)))
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }
}
