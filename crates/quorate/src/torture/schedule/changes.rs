//! Which change happens when: a pure function of the seed, of what is wanted, and of the faults' slots.
//!
//! A removal needs somebody who can be spared, a join needs a free server. So the plan keeps count of
//! managers and workers as they will be, and takes only what is possible then. Whom it hits is decided
//! when it happens; of which kind it is, here.
//!
//! # Invariants
//! - Equal arguments give an equal plan.
//! - Three managers are always left, and a server is free for whoever was removed.
//! - Every kind that is wanted happens before any happens twice, but for joins that others need.
//! - At most one change about members and one about certificates is under way. None but a change of the
//!   CA lasts into a slot in which all nodes die, or one that forgets what an absent node needs.

use super::{Slot, is_of_all};
use crate::torture::change::{About, ChangeKind};
use crate::torture::dice::Dice;
use std::collections::BTreeMap;

/// One change in this many slots, on average. Quick: about 15; full: about 160.
const SLOTS_EACH: usize = 3;
/// Managers that are never removed: two of them are a majority.
pub(crate) const MANAGERS_MIN: usize = 3;
/// A change lasts for one slot, or in so many of 100 cases for two; a change of the CA up to three.
const LASTS: usize = 40;
/// In so many of 100 cases it is begun while the slot's faults are in force, else before them.
const DURING: usize = 60;

/// A change that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedChange {
    pub(crate) kind: ChangeKind,
    /// Decides whom it concerns.
    pub(crate) choice: u64,
    /// It concerns a worker, where both would be possible.
    pub(crate) worker: bool,
    /// It is begun while the faults of its slot are in force.
    pub(crate) during: bool,
    /// Its end is waited for after so many slots.
    pub(crate) slots: usize,
}

/// How many of whom there will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Members {
    managers: usize,
    workers: usize,
    most: usize,
}

impl Members {
    fn is_possible(self, kind: ChangeKind) -> bool {
        match kind {
            ChangeKind::JoinManager | ChangeKind::JoinWorker => self.managers + self.workers < self.most,
            ChangeKind::Remove | ChangeKind::Roles => self.managers > MANAGERS_MIN || self.workers > 0,
            ChangeKind::Replace
            | ChangeKind::Vote
            | ChangeKind::Promote
            | ChangeKind::StopManager
            | ChangeKind::RotateCa
            | ChangeKind::Renew => true,
        }
    }

    /// Carries it out; whether it concerns a worker.
    fn change(&mut self, kind: ChangeKind, dice: &mut Dice) -> bool {
        let worker = self.managers <= MANAGERS_MIN || (self.workers > 0 && dice.chance(40));
        match (kind, worker) {
            (ChangeKind::JoinManager, _) => self.managers += 1,
            (ChangeKind::JoinWorker, _) => self.workers += 1,
            (ChangeKind::Remove, true) => self.workers -= 1,
            (ChangeKind::Remove, false) => self.managers -= 1,
            (ChangeKind::Roles, true) => (self.workers, self.managers) = (self.workers - 1, self.managers + 1),
            (ChangeKind::Roles, false) => (self.workers, self.managers) = (self.workers + 1, self.managers - 1),
            _ => {}
        }
        worker
    }
}

/// Puts changes of these kinds into the slots of a cluster that begins with so many managers.
pub(crate) fn plan(seed: u64, kinds: &[ChangeKind], nodes: usize, slots: &mut [Slot]) {
    let mut dice = Dice::new(seed, 2);
    let mut wanted = kinds.to_vec();
    wanted.sort_unstable();
    let mut members = Members { managers: nodes, workers: 0, most: nodes + 1 };
    let mut left = wanted.clone();
    let mut free: BTreeMap<About, usize> = BTreeMap::new();
    let count = (slots.len() / SLOTS_EACH).max(wanted.len());
    for number in 0..count {
        let Some(kind) = next(&mut dice, members, &wanted, &left) else { return };
        let is_free = |slot: usize| free.get(&kind.about()).is_none_or(|from| slot >= *from);
        // Evenly, and moved to where it may begin.
        let mut places = (number * slots.len() / count..slots.len()).filter(|slot| is_free(*slot));
        let Some(begins) = places.find(|slot| kind == ChangeKind::RotateCa || !is_special(&slots[*slot])) else {
            continue;
        };
        let lasts = 1 + usize::from(dice.chance(LASTS)) + usize::from(kind == ChangeKind::RotateCa && dice.chance(50));
        let after = slots[begins + 1..].iter().take(lasts - 1);
        let lasts = 1 + after.take_while(|slot| kind == ChangeKind::RotateCa || !is_special(slot)).count();
        free.insert(kind.about(), begins + lasts);
        left.retain(|other| *other != kind);
        let worker = members.change(kind, &mut dice);
        let (choice, during) = (dice.next(), dice.chance(DURING));
        slots[begins].changes.push(PlannedChange { kind, choice, worker, during, slots: lasts });
    }
}

/// One that has not been yet, if it is possible; else one that makes another possible; else any.
fn next(dice: &mut Dice, members: Members, wanted: &[ChangeKind], left: &[ChangeKind]) -> Option<ChangeKind> {
    let possible = |kinds: &[ChangeKind]| -> Vec<ChangeKind> {
        kinds.iter().copied().filter(|kind| members.is_possible(*kind)).collect()
    };
    let grows = |kind: &ChangeKind| matches!(kind, ChangeKind::JoinManager | ChangeKind::JoinWorker);
    let (new, all) = (possible(left), possible(wanted));
    let growing: Vec<ChangeKind> = all.iter().copied().filter(grows).filter(|_| !left.is_empty()).collect();
    [new, growing, all].iter().find(|kinds| !kinds.is_empty()).and_then(|kinds| dice.pick(kinds).copied())
}

/// All nodes are needed for it, or none is left.
fn is_special(slot: &Slot) -> bool {
    slot.faults.iter().any(|fault| is_of_all(fault.kind))
}

/// How often each kind is in a plan.
pub(crate) fn count(slots: &[Slot]) -> BTreeMap<ChangeKind, u32> {
    let mut counts = BTreeMap::new();
    for change in slots.iter().flat_map(|slot| &slot.changes) {
        *counts.entry(change.kind).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torture::fault::FaultKind;
    use proptest::prelude::*;
    use std::time::Duration;

    fn planned(seed: u64, minutes: u64, nodes: usize) -> Vec<Slot> {
        let mut slots = super::super::plan(seed, &FaultKind::ALL, Duration::from_secs(60 * minutes));
        plan(seed, &ChangeKind::ALL, nodes, &mut slots);
        slots
    }

    proptest! {
        #[test]
        fn every_kind_of_change_happens_in_a_quick_run(seed: u64, nodes in 3..=5_usize) {
            let counts = count(&planned(seed, 4, nodes));
            prop_assert_eq!(counts.len(), ChangeKind::ALL.len(), "{:?}", counts);
        }

        #[test]
        fn somebody_can_always_be_spared_and_a_server_is_always_free(seed: u64, nodes in 3..=5_usize) {
            let (mut managers, mut workers) = (nodes, 0_usize);
            for change in planned(seed, 45, nodes).iter().flat_map(|slot| &slot.changes) {
                match (change.kind, change.worker) {
                    (ChangeKind::JoinManager, _) => managers += 1,
                    (ChangeKind::JoinWorker, _) => workers += 1,
                    (ChangeKind::Remove, true) => workers -= 1,
                    (ChangeKind::Remove, false) => managers -= 1,
                    (ChangeKind::Roles, true) => (managers, workers) = (managers + 1, workers - 1),
                    (ChangeKind::Roles, false) => (managers, workers) = (managers - 1, workers + 1),
                    _ => {}
                }
                prop_assert!(managers >= MANAGERS_MIN && managers + workers <= nodes + 1);
            }
        }

        #[test]
        fn changes_of_one_subject_follow_each_other(seed: u64) {
            let slots = planned(seed, 45, 5);
            let mut free: BTreeMap<About, usize> = BTreeMap::new();
            for (at, change) in (0..).zip(&slots).flat_map(|(at, slot)| slot.changes.iter().map(move |it| (at, it))) {
                let ends = at + change.slots;
                let before = free.insert(change.kind.about(), ends);
                prop_assert!(before.is_none_or(|before| before <= at));
                prop_assert!(ends <= slots.len());
                let special = slots[at..ends].iter().any(is_special);
                prop_assert!(!special || change.kind == ChangeKind::RotateCa);
            }
            prop_assert!(count(&slots).values().sum::<u32>() >= 100);
        }

        #[test]
        fn a_seed_decides_the_changes(seed: u64) {
            prop_assert_eq!(planned(seed, 4, 3), planned(seed, 4, 3));
        }
    }

    #[test]
    fn a_change_that_never_becomes_possible_is_not_planned() {
        let mut slots = super::super::plan(1, &[FaultKind::Kill], Duration::from_secs(240));
        plan(1, &[ChangeKind::Remove], 3, &mut slots);
        assert_eq!(count(&slots), BTreeMap::new());
        plan(1, &[ChangeKind::Remove], 4, &mut slots);
        assert_eq!(count(&slots), BTreeMap::from([(ChangeKind::Remove, 1)]));
    }
}
