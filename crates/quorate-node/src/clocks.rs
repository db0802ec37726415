//! Whose clock is right? The leader stamps every entry with the time; a leader whose clock is a day
//! ahead would poison the cluster's time for a day, since it never runs backwards.
//!
//! Each node says its clock with its status. The leader stamps with its own clock as long as that
//! is within [`TOLERANCE`] of the median of all that it hears, itself included; else with the time
//! nearest to its own that is. Of two that contradict each other neither is a majority: the one counts
//! that goes on from where most agreed last.

use crate::event::Now;
use quorate_model::id::NodeId;
use quorate_model::time::WallTime;
use std::collections::BTreeMap;

/// A peer's clock that has moved this much against ours is news for people, in microseconds. Above
/// what the way of a status varies by, below what anybody would act on.
const NOTABLE: u64 = 100_000;

/// How far a stamp may be off the median. Well above what synchronised clocks and a status on its
/// way differ by, in microseconds.
const TOLERANCE: i64 = 500_000;

#[derive(Debug, Default)]
pub(crate) struct Clocks {
    /// How many microseconds a peer's clock is ahead of our monotonic one, as of its last status.
    /// Were it our wall clock, a jump of that would count as one of everybody until they are heard
    /// again, and the first entry after it would poison the cluster's time.
    ahead: BTreeMap<NodeId, i64>,
    /// How far a peer's clock was ahead of our own one when people were told last.
    told: BTreeMap<NodeId, i64>,
    /// How far ahead of our monotonic clock the time was when most agreed last; at first, our own.
    agreed: Option<i64>,
}

/// How many microseconds our own clock is ahead of our monotonic one.
fn own(now: Now) -> i64 {
    ahead(now.wall.0, now)
}

fn ahead(wall_us: u64, now: Now) -> i64 {
    let mono = i64::try_from(now.mono.0.as_micros()).unwrap_or(i64::MAX);
    wall_us.cast_signed().saturating_sub(mono)
}

impl Clocks {
    /// Returns whether the peer's clock has moved against ours so that people should know.
    pub(crate) fn heard(&mut self, peer: NodeId, its_wall_us: u64, now: Now) -> bool {
        if its_wall_us == 0 {
            return false;
        }
        self.ahead.insert(peer, ahead(its_wall_us, now));
        let offset = self.offset(peer, now).unwrap_or_default();
        let news = self.told.get(&peer).is_none_or(|told| told.abs_diff(offset) >= NOTABLE);
        if news {
            self.told.insert(peer, offset);
        }
        news
    }

    pub(crate) fn forget(&mut self, peer: NodeId) {
        self.ahead.remove(&peer);
        self.told.remove(&peer);
    }

    /// How many microseconds the peer's clock is ahead of our own one. `None`: it is not heard.
    ///
    /// Less the time that its status took to get here, which nobody knows.
    pub(crate) fn offset(&self, peer: NodeId, now: Now) -> Option<i64> {
        self.ahead.get(&peer).map(|ahead| ahead.saturating_sub(own(now)))
    }

    /// The time to stamp with now.
    pub(crate) fn stamp(&mut self, now: Now) -> WallTime {
        let own = own(now);
        let mut all: Vec<i64> = self.ahead.values().map(|ahead| ahead.saturating_sub(own)).chain([0]).collect();
        all.sort_unstable();
        let (low, high) = (all[(all.len() - 1) / 2], all[all.len() / 2]);
        let agreed = *self.agreed.get_or_insert(own) - own;
        let median = if low.abs_diff(agreed) <= high.abs_diff(agreed) { low } else { high };
        if low.abs_diff(high) <= TOLERANCE.unsigned_abs() {
            self.agreed = Some(median + own);
        }
        let correction = median - median.clamp(-TOLERANCE, TOLERANCE);
        WallTime(now.wall.0.saturating_add_signed(correction))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::time::Timestamp;
    use std::time::Duration;

    const DAY: i64 = 86_400_000_000;

    fn stamp(ahead: &[i64]) -> i64 {
        let mut clocks = Clocks::default();
        let now = at(7, 0);
        for (number, ahead) in (1..).zip(ahead) {
            clocks.heard(NodeId::from_u128(number), now.wall.0.saturating_add_signed(*ahead), now);
        }
        off(&mut clocks, now, 0)
    }

    /// So many seconds after the start, with our clock ahead of the truth by so many microseconds.
    fn at(seconds: u64, ahead: i64) -> Now {
        let wall = 1_700_000_000_000_000 + 1_000_000 * seconds;
        Now::of(Timestamp(Duration::from_secs(seconds)), WallTime(wall.saturating_add_signed(ahead)))
    }

    /// How far a stamp is off the truth, when our own clock is ahead of it by so much.
    fn off(clocks: &mut Clocks, now: Now, ahead: i64) -> i64 {
        clocks.stamp(now).0.cast_signed() - now.wall.0.cast_signed() + ahead
    }

    #[test]
    fn a_jump_of_our_own_clock_is_known_before_the_others_are_heard_again() {
        let mut clocks = Clocks::default();
        for peer in [1, 2] {
            clocks.heard(NodeId::from_u128(peer), at(1, 0).wall.0, at(1, 0));
        }
        for jump in [DAY, -DAY] {
            let stamped = off(&mut clocks, at(2, jump), jump);
            assert!(stamped.abs() <= TOLERANCE, "{stamped} after a jump of {jump}");
        }
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
    fn of_two_that_contradict_each_other_the_one_goes_on_that_most_agreed_with() {
        let (a, b) = (NodeId::from_u128(1), NodeId::from_u128(2));
        for jump in [DAY, -DAY] {
            let mut clocks = Clocks::default();
            clocks.heard(a, at(1, 0).wall.0, at(1, 0));
            clocks.heard(b, at(1, 0).wall.0, at(1, 0));
            assert!(off(&mut clocks, at(1, 0), 0).abs() <= TOLERANCE);
            clocks.forget(b);
            let stamped = off(&mut clocks, at(2, jump), jump);
            assert!(stamped.abs() <= TOLERANCE, "{stamped} after a jump of {jump}, with one other heard");
        }
    }

    #[test]
    fn people_are_told_of_a_clock_that_moves_against_ours_and_not_of_every_status() {
        let (mut clocks, peer) = (Clocks::default(), NodeId::from_u128(1));
        let mut heard = |seconds, its_ahead: i64, our_ahead: i64| {
            let its = at(seconds, its_ahead).wall.0;
            let news = clocks.heard(peer, its, at(seconds, our_ahead));
            (news, clocks.offset(peer, at(seconds, our_ahead)).unwrap())
        };
        assert_eq!(heard(1, -300, 0), (true, -300));
        assert_eq!(heard(2, -90_000, 0), (false, -90_000));
        assert_eq!(heard(3, 2_400_000, 0), (true, 2_400_000));
        assert_eq!(heard(4, 2_400_000, 0), (false, 2_400_000));
        assert_eq!(heard(5, 2_400_000, DAY), (true, 2_400_000 - DAY), "our own clock was set");
        clocks.forget(peer);
        assert_eq!(clocks.offset(peer, at(6, 0)), None);
    }

    #[test]
    fn one_contradiction_is_no_majority() {
        assert_eq!(stamp(&[DAY]), 0);
        assert_eq!(stamp(&[DAY, 0, 0, 0]), 0);
    }
}
