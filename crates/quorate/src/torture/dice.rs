//! Random numbers that a seed decides, the same on every machine and in every version.
//!
//! Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014
//! (SplitMix64). A library's generator may change with its version, and a seed that found a bug
//! must find it again.

use std::time::Duration;

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Equal seeds and purposes give equal numbers; different purposes independent ones.
    pub(crate) fn new(seed: u64, purpose: u64) -> Dice {
        let mut dice = Dice(seed);
        Dice(dice.next() ^ purpose.wrapping_mul(0xD1B5_4A32_D192_ED03))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `end` - 1; 0 if `end` is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % end).unwrap_or(usize::MAX)
    }

    /// True in `percent` of 100 cases.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// A span between the two, to the millisecond.
    pub(crate) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let room = usize::try_from(most.saturating_sub(least).as_millis()).unwrap_or(usize::MAX);
        least + Duration::from_millis(self.below(room.saturating_add(1)) as u64)
    }

    /// One of them; `None` if there is none.
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_for_ever() {
        let mut dice = Dice::new(7, 0);
        let first: Vec<u64> = (0..3).map(|_| dice.next()).collect();
        let mut again = Dice::new(7, 0);
        assert_eq!(first, (0..3).map(|_| again.next()).collect::<Vec<_>>());
        assert_ne!(first[0], Dice::new(7, 1).next());
        assert_ne!(first[0], Dice::new(8, 0).next());
        // Published test vector of SplitMix64 with the state 1234567.
        assert_eq!(Dice(1_234_567).next(), 6_457_827_717_110_365_317);
    }

    #[test]
    fn a_span_keeps_its_ends() {
        let (least, most) = (Duration::from_millis(5), Duration::from_millis(7));
        let mut dice = Dice::new(1, 1);
        let seen: std::collections::BTreeSet<Duration> = (0..200).map(|_| dice.between(least, most)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [5, 6, 7].map(Duration::from_millis));
        assert_eq!(dice.between(most, least), most);
    }
}
