//! Whose clock is right? The leader stamps every entry with the time; a leader whose clock is a day
//! ahead would poison the cluster's time for a day, since it never runs backwards.
//!
//! Each node says its clock with its status. The leader stamps with its own clock as long as that
//! is within [`TOLERANCE`] of the median of all that it hears, itself included; else with the time
//! nearest to its own that is.

use quorate_model::id::NodeId;
use quorate_model::time::WallTime;
use std::collections::BTreeMap;

/// How far a stamp may be off the median. Well above what synchronised clocks and a status on its
/// way differ by, in microseconds.
const TOLERANCE: i64 = 500_000;

#[derive(Debug, Default)]
pub(crate) struct Clocks {
    /// How many microseconds a peer's clock is ahead of ours, as of its last status.
    ahead: BTreeMap<NodeId, i64>,
}

impl Clocks {
    pub(crate) fn heard(&mut self, peer: NodeId, its_wall_us: u64, wall: WallTime) {
        if its_wall_us > 0 {
            self.ahead.insert(peer, its_wall_us.cast_signed().saturating_sub(wall.0.cast_signed()));
        }
    }

    pub(crate) fn forget(&mut self, peer: NodeId) {
        self.ahead.remove(&peer);
    }

    /// The time to stamp with when our own clock shows `wall`.
    pub(crate) fn stamp(&self, wall: WallTime) -> WallTime {
        let mut all: Vec<i64> = self.ahead.values().copied().chain([0]).collect();
        all.sort_unstable();
        // Of an even number the one nearer to us: two nodes cannot outvote each other.
        let (low, high) = (all[(all.len() - 1) / 2], all[all.len() / 2]);
        let median = if low.abs() <= high.abs() { low } else { high };
        let correction = median - median.clamp(-TOLERANCE, TOLERANCE);
        WallTime(wall.0.saturating_add_signed(correction))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000_000;

    fn stamp(ahead: &[i64]) -> i64 {
        let mut clocks = Clocks::default();
        let wall = WallTime(1_700_000_000_000_000);
        for (number, ahead) in (1..).zip(ahead) {
            clocks.heard(NodeId::from_u128(number), wall.0.saturating_add_signed(*ahead), wall);
        }
        clocks.stamp(wall).0.cast_signed() - wall.0.cast_signed()
    }

    #[test]
    fn a_clock_that_agrees_is_used_as_it_is() {
        assert_eq!(stamp(&[]), 0);
        assert_eq!(stamp(&[200_000, -300_000]), 0);
        assert_eq!(stamp(&[DAY, -DAY]), 0);
        assert_eq!(stamp(&[DAY, 10]), 0);
    }

    #[test]
    fn a_clock_that_most_others_contradict_is_moved_towards_them() {
        assert_eq!(stamp(&[-DAY, -DAY]), -DAY + TOLERANCE);
        assert_eq!(stamp(&[DAY, DAY]), DAY - TOLERANCE);
        assert_eq!(stamp(&[DAY, DAY, DAY, 0]), DAY - TOLERANCE);
    }

    #[test]
    fn one_contradiction_is_no_majority() {
        assert_eq!(stamp(&[DAY]), 0);
        assert_eq!(stamp(&[DAY, 0, 0, 0]), 0);
    }
}
