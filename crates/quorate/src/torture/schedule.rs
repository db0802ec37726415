//! Which fault happens when ([`changes`]: and which change beside it): a pure function of the seed and of what can be had.
//!
//! A schedule is a row of slots. In a slot one fault is made, or two at once (the rig takes another
//! node for the second);
//! it holds for a while, ends, and the cluster gets a short rest. Slots follow each other however
//! long the making takes, so a slow machine has the same faults in the same order, only later.
//!
//! # Invariants
//! - Equal arguments give an equal schedule on every machine.
//! - Every kind that can be had happens at least once, as long as there are that many faults.
//! - At most one disk is broken at a time, and what hits all nodes happens alone: everything else
//!   would be a loss that no cluster promises to survive.

pub(crate) mod changes;

use crate::torture::dice::Dice;
use crate::torture::fault::FaultKind;
use changes::PlannedChange;
use std::collections::BTreeMap;
use std::time::Duration;

/// One fault in this time, on average. Quick: 60 in 4 minutes; full: 675 in 45.
const FAULT_EVERY: Duration = Duration::from_secs(4);
/// So many of 100 faults get a second one beside them, where that is allowed.
const PAIRS: usize = 40;
/// So many of 100 slots hold three times as long: long enough for everything to time out.
const LONG: usize = 10;

/// A fault that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Planned {
    pub(crate) kind: FaultKind,
    /// Decides whom it hits and how hard.
    pub(crate) choice: u64,
}

/// What happens at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Since the first slot could begin. Nothing is made up for: a late slot begins late.
    pub(crate) not_before: Duration,
    /// Nothing is broken for this long before it, at least.
    pub(crate) quiet: Duration,
    pub(crate) faults: Vec<Planned>,
    pub(crate) hold: Duration,
    /// What operators begin in it; see [`changes`].
    pub(crate) changes: Vec<PlannedChange>,
}

/// Makes the schedule of a run that breaks things for `length`.
///
/// `kinds` without repetition; a run too short for all of them has those that come first in the
/// seed's order.
pub(crate) fn plan(seed: u64, kinds: &[FaultKind], length: Duration) -> Vec<Slot> {
    let mut dice = Dice::new(seed, 1);
    let faults = (length.as_secs_f64() / FAULT_EVERY.as_secs_f64()).round().max(1.0) as usize;
    let mut deck: Vec<FaultKind> = kinds.to_vec();
    deck.sort_unstable();
    dice.shuffle(&mut deck);
    let bag: Vec<FaultKind> = deck.iter().flat_map(|kind| std::iter::repeat_n(*kind, weight(*kind))).collect();
    deck.truncate(faults);
    while deck.len() < faults {
        let Some(kind) = dice.pick(&bag) else { break };
        deck.push(*kind);
    }
    dice.shuffle(&mut deck);
    let groups = group(&mut dice, deck);
    let budget = length / u32::try_from(groups.len().max(1)).unwrap_or(u32::MAX);
    groups
        .into_iter()
        .zip(0..)
        .map(|(faults, number)| {
            let quiet = dice.between(budget / 20, budget / 5);
            let hold = dice.between(budget / 5, budget / 2);
            let hold = if dice.chance(LONG) { hold * 3 } else { hold };
            Slot { not_before: budget * number, quiet, faults, hold, changes: Vec::new() }
        })
        .collect()
}

/// Slots of a run that breaks nothing: only changes happen in them.
pub(crate) fn without_faults(length: Duration) -> Vec<Slot> {
    let count = u32::try_from(length.as_secs() / FAULT_EVERY.as_secs()).unwrap_or(u32::MAX).max(1);
    let slot = |number: u32| Slot {
        not_before: FAULT_EVERY * number,
        quiet: Duration::ZERO,
        faults: Vec::new(),
        hold: Duration::ZERO,
        changes: Vec::new(),
    };
    (0..count).map(slot).collect()
}

/// How often each kind is in a schedule.
pub(crate) fn count(slots: &[Slot]) -> BTreeMap<FaultKind, u32> {
    let mut counts = BTreeMap::new();
    for fault in slots.iter().flat_map(|slot| &slot.faults) {
        *counts.entry(fault.kind).or_default() += 1;
    }
    counts
}

/// Makes pairs of what may happen at once.
fn group(dice: &mut Dice, deck: Vec<FaultKind>) -> Vec<Vec<Planned>> {
    let mut groups: Vec<Vec<Planned>> = Vec::new();
    for kind in deck {
        let fault = Planned { kind, choice: dice.next() };
        match groups.last_mut() {
            Some(group) if group.len() == 1 && go_together(group[0].kind, kind) && dice.chance(PAIRS) => {
                group.push(fault)
            }
            _ => groups.push(vec![fault]),
        }
    }
    groups
}

fn go_together(one: FaultKind, other: FaultKind) -> bool {
    let both = |is: fn(FaultKind) -> bool| is(one) && is(other);
    one != other && both(|kind| !is_of_all(kind)) && !both(breaks_a_disk) && !both(shapes_the_network)
}

/// It takes a majority or more by itself, or needs the others to go on.
fn is_of_all(kind: FaultKind) -> bool {
    matches!(kind, FaultKind::KillAll | FaultKind::PowerLossAll | FaultKind::Snapshot)
}

fn breaks_a_disk(kind: FaultKind) -> bool {
    use FaultKind::{DiskFull, PowerLoss, PowerLossAll, SlowDisk, SyncError};
    matches!(kind, DiskFull | PowerLoss | PowerLossAll | SlowDisk | SyncError)
}

fn shapes_the_network(kind: FaultKind) -> bool {
    use FaultKind::{Delay, Duplicate, Loss, PartitionBridge, PartitionHalves, PartitionNode, PartitionOneWay};
    matches!(kind, PartitionNode | PartitionHalves | PartitionOneWay | PartitionBridge | Loss | Delay | Duplicate)
}

/// No server starts anew because of it.
pub(crate) fn leaves_processes_alone(kind: FaultKind) -> bool {
    shapes_the_network(kind) || matches!(kind, FaultKind::Pause | FaultKind::Freeze)
}

/// How often a kind is drawn beyond its first time, in proportion. What has found most bugs in
/// other systems comes most: crashes, pauses, partitions that are not clean.
fn weight(kind: FaultKind) -> usize {
    match kind {
        FaultKind::Kill | FaultKind::PartitionOneWay => 5,
        FaultKind::Pause | FaultKind::PartitionNode | FaultKind::PartitionBridge => 4,
        FaultKind::PowerLoss
        | FaultKind::PartitionHalves
        | FaultKind::ClockJump
        | FaultKind::Restart
        | FaultKind::Freeze => 3,
        FaultKind::KillAll
        | FaultKind::Loss
        | FaultKind::Delay
        | FaultKind::DiskFull
        | FaultKind::SyncError
        | FaultKind::SlowDisk => 2,
        // Each of them costs many seconds.
        FaultKind::PowerLossAll | FaultKind::Duplicate | FaultKind::Snapshot => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const QUICK: Duration = Duration::from_secs(240);

    fn some_kinds() -> impl Strategy<Value = Vec<FaultKind>> {
        prop::sample::subsequence(FaultKind::ALL.to_vec(), 1..=FaultKind::ALL.len())
    }

    proptest! {
        #[test]
        fn every_kind_that_can_be_had_happens(seed: u64, kinds in some_kinds()) {
            let slots = plan(seed, &kinds, QUICK);
            let planned: BTreeSet<FaultKind> = count(&slots).into_keys().collect();
            prop_assert_eq!(planned, kinds.into_iter().collect::<BTreeSet<_>>());
            prop_assert!(count(&slots).values().sum::<u32>() >= 50);
        }

        #[test]
        fn no_two_disks_break_at_once_and_what_hits_all_is_alone(seed: u64) {
            for slot in plan(seed, &FaultKind::ALL, QUICK) {
                prop_assert!((1..=2).contains(&slot.faults.len()));
                prop_assert!(slot.faults.iter().filter(|fault| breaks_a_disk(fault.kind)).count() <= 1);
                prop_assert!(slot.faults.iter().filter(|fault| shapes_the_network(fault.kind)).count() <= 1);
                if slot.faults.iter().any(|fault| is_of_all(fault.kind)) {
                    prop_assert_eq!(slot.faults.len(), 1);
                }
            }
        }

        #[test]
        fn a_seed_decides_everything_but_the_order_in_which_kinds_are_named(seed: u64, kinds in some_kinds()) {
            let mut turned = kinds.clone();
            turned.reverse();
            prop_assert_eq!(plan(seed, &kinds, QUICK), plan(seed, &turned, QUICK));
        }

        #[test]
        fn there_is_time_to_make_and_end_what_is_planned(seed: u64) {
            let slots = plan(seed, &FaultKind::ALL, QUICK);
            let planned: Duration = slots.iter().map(|slot| slot.quiet + slot.hold).sum();
            prop_assert!(planned < QUICK * 4 / 5, "{planned:?}");
        }
    }

    #[test]
    fn a_full_run_has_600_faults_and_often_two_at_once() {
        let slots = plan(1, &FaultKind::ALL, Duration::from_secs(45 * 60));
        assert!(count(&slots).values().sum::<u32>() >= 600);
        assert!(slots.iter().filter(|slot| slot.faults.len() == 2).count() >= 60);
    }

    #[test]
    fn a_run_too_short_for_all_kinds_has_as_many_as_fit() {
        let slots = plan(3, &FaultKind::ALL, Duration::from_secs(18));
        assert_eq!(count(&slots).values().sum::<u32>(), 5);
        assert_eq!(count(&slots).len(), 5);
        assert!(plan(3, &[], QUICK).is_empty());
    }
}
