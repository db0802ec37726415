//! Nodes that have applied the same entries hold the same.
//!
//! Schneider: Implementing Fault-Tolerant Services Using the State Machine Approach, 1990. The
//! digests are the product's own; that they say the truth is checked in the end on whole contents.

use super::Invariant;
use crate::seen::Seen;
use quorate_model::id::LogIndex;
use quorate_model::state::ClusterState;
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64;

/// Whole states are compared at indexes that this divides: a comparison costs as much as the state.
const EVERY: u64 = 128;

#[derive(Debug, Default)]
pub(super) struct EqualState {
    digests: BTreeMap<LogIndex, [u64; 2]>,
    /// Of the cluster's state, by the index that it is of.
    states: BTreeMap<LogIndex, u64>,
    last: BTreeMap<usize, LogIndex>,
    compared: u64,
}

fn hash(state: &ClusterState) -> u64 {
    xxh3_64(format!("{state:?}").as_bytes())
}

impl EqualState {
    fn compare(&mut self, machine: usize, index: LogIndex, state: &ClusterState) -> Result<(), String> {
        let here = hash(state);
        let known = *self.states.entry(index).or_insert(here);
        self.compared += 1;
        if known == here {
            return Ok(());
        }
        Err(format!("n{} has another cluster state at {index} than another node had", machine + 1))
    }
}

impl Invariant for EqualState {
    fn name(&self) -> &'static str {
        "equal_state_at_equal_index"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Applied { machine, entry } => {
                // Without digests one file is already further than this entry, and the state with it.
                let Some(digests) = entry.digests else {
                    self.last.remove(machine);
                    return Ok(());
                };
                self.last.insert(*machine, entry.index);
                let known = *self.digests.entry(entry.index).or_insert(digests);
                if known != digests {
                    let n = machine + 1;
                    return Err(format!("n{n} has other contents at {} than another node had", entry.index));
                }
                Ok(())
            }
            Seen::BatchApplied { machine, state } => match self.last.get(machine).copied() {
                Some(index) if index.0 % EVERY == 0 => self.compare(*machine, index, state),
                _ => Ok(()),
            },
            Seen::Healed { machines } => {
                for held in *machines {
                    self.compare(held.machine, held.applied, &held.state)?;
                }
                for pair in machines.windows(2) {
                    let [one, other] = pair else { continue };
                    if one.tables != other.tables {
                        let (a, b) = (one.machine + 1, other.machine + 1);
                        let line = one.tables.lines().zip(other.tables.lines()).find(|(a, b)| a != b);
                        return Err(format!("n{a} and n{b} hold different rows: {line:?}"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn premises(&self) -> u64 {
        self.compared
    }
}
