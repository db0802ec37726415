//! The leader's side: what may be done about a lease whose holder is silent.

use crate::{Age, Electorate, Life};
use quorate_model::id::NodeId;
use quorate_model::planted::{Bug, planted};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What follows from the voters' answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Ask again after this long at the earliest; [`Duration::ZERO`] when too few have answered.
    Wait(Duration),
    /// Propose the fence.
    Fence,
    /// Propose the next epoch: nobody holds this one.
    Raise,
}

/// Judges one lease. `answers` are what voters said since this node leads, the newest of each;
/// `is_fenced`: the fence is committed, as of the leader's database; `voters`: of the newest configuration
/// in the leader's log.
///
/// An answer does not grow old: one given with the committed fence in the log stays true for ever, and before
/// the fence nothing depends on it but patience.
#[must_use]
pub fn verdict(life: Life, voters: &Electorate, is_fenced: bool, answers: &BTreeMap<NodeId, Age>) -> Verdict {
    let mut silent = BTreeSet::new();
    let mut left = Vec::new();
    for (node, age) in answers {
        if age.voters != *voters || is_fenced && !age.fenced {
            continue;
        }
        match life.outlived().checked_sub(age.since).filter(|left| !left.is_zero()) {
            None => _ = silent.insert(*node),
            Some(span) => left.push((span, *node)),
        }
    }
    if voters.is_majority(&silent) {
        return if is_fenced || planted(Bug::RaisedWithoutFence) { Verdict::Raise } else { Verdict::Fence };
    }
    // As soon as enough of those who acknowledged last are silent for long enough.
    left.sort_unstable();
    for (span, node) in left {
        silent.insert(node);
        if voters.is_majority(&silent) {
            return Verdict::Wait(span);
        }
    }
    Verdict::Wait(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life = Life { ttl: Duration::from_secs(6), guard: Duration::from_millis(250) };

    /// With this many voters.
    fn electorate(voters: u128) -> Electorate {
        Electorate { voters: (1..=voters).map(NodeId::from_u128).collect(), outgoing: BTreeSet::new() }
    }

    fn judge(is_fenced: bool, answers: &[(u128, u64, bool, u128)]) -> Verdict {
        let age = |ms, fenced, of| Age { since: Duration::from_millis(ms), fenced, voters: electorate(of) };
        let answers = answers.iter().map(|(n, ms, fenced, of)| (NodeId::from_u128(*n), age(*ms, *fenced, *of)));
        verdict(LIFE, &electorate(3), is_fenced, &answers.collect())
    }

    #[test]
    fn a_silent_majority_lets_the_fence_pass_and_the_raise_needs_the_fence_in_their_logs() {
        let silent = [(1, 6_250, false, 3), (2, 9_000, false, 3)];
        assert_eq!(judge(false, &silent), Verdict::Fence);
        assert_eq!(judge(true, &silent), Verdict::Wait(Duration::ZERO));
        assert_eq!(judge(true, &[(1, 6_250, true, 3), (2, 9_000, true, 3)]), Verdict::Raise);
    }

    #[test]
    fn it_says_how_long_to_wait_for_the_majority() {
        let wait = |ms| Verdict::Wait(Duration::from_millis(ms));
        assert_eq!(judge(false, &[(1, 6_249, false, 3), (2, 9_000, false, 3)]), wait(1));
        assert_eq!(judge(false, &[(1, 1_250, false, 3), (2, 3_250, false, 3), (3, 0, false, 3)]), wait(5_000));
        assert_eq!(judge(false, &[(1, 9_000, false, 3)]), wait(0));
    }

    #[test]
    fn whoever_has_another_configuration_in_its_log_says_nothing() {
        assert_eq!(judge(false, &[(1, 9_000, false, 3), (2, 9_000, false, 2)]), Verdict::Wait(Duration::ZERO));
    }
}
