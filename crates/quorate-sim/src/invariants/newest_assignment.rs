//! A node runs what the newest assignment that it has seen says, over restarts too, and in the end
//! what the cluster has decided.
//!
//! `quorate_model::assignment`; style: a late message can never move a node backwards.

use super::Invariant;
use crate::seen::Seen;
use quorate_model::assignment::Phase;
use quorate_model::id::{LogIndex, ReplicaId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(super) struct NewestAssignment {
    newest: BTreeMap<usize, LogIndex>,
    seen: u64,
}

impl Invariant for NewestAssignment {
    fn name(&self) -> &'static str {
        "replicas_follow_the_newest_assignment"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Assigned { machine, revision } => {
                self.seen += 1;
                let newest = self.newest.entry(*machine).or_insert(*revision);
                if revision < newest {
                    return Err(format!("n{} obeys revision {revision} after {newest}", machine + 1));
                }
                *newest = *revision;
            }
            Seen::Healed { machines } => {
                for held in *machines {
                    let assigned = held.state.assignment(held.node);
                    let listed: BTreeSet<ReplicaId> = assigned
                        .replicas
                        .iter()
                        .filter(|replica| replica.phase == Phase::Run && !replica.stands_by_cold())
                        .map(|replica| replica.replica)
                        .collect();
                    let running: BTreeSet<ReplicaId> = held.running.iter().copied().collect();
                    if listed != running {
                        return Err(format!("n{} is to run {listed:?} and runs {running:?}", held.machine + 1));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.seen
    }
}
