//! Who leads was voted for by a majority of voters, in its own configuration: a learner's word is not
//! counted.
//!
//! Ongaro, 2014, §4.2.1: non-voting members are not counted in majorities.

use super::Invariant;
use crate::machine::Identity;
use crate::seen::Seen;
use quorate_model::id::{NodeId, Term};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(super) struct LeadersAreElected {
    machines: Vec<NodeId>,
    /// By term and candidate, the candidate by its consensus number.
    votes: BTreeMap<(u64, u64), BTreeSet<NodeId>>,
    /// The term in which each machine was seen to lead last.
    led: BTreeMap<usize, Term>,
    elections: u64,
}

impl LeadersAreElected {
    pub(super) fn new(identity: &Identity) -> LeadersAreElected {
        let machines = identity.machines.clone();
        LeadersAreElected { machines, votes: BTreeMap::new(), led: BTreeMap::new(), elections: 0 }
    }
}

impl Invariant for LeadersAreElected {
    fn name(&self) -> &'static str {
        "leaders_are_elected"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Voted { machine, term, candidate, .. } => {
                self.votes.entry((*term, *candidate)).or_default().insert(self.machines[*machine]);
            }
            // Seen after its turn: the entry of its election is not committed yet, so what is in force
            // is what it was elected with, unless nobody else votes.
            Seen::Turned { machine, node } if node.leads() && self.led.get(machine) != Some(&node.term()) => {
                self.led.insert(*machine, node.term());
                self.elections += 1;
                let me = self.machines[*machine];
                let mut votes = self.votes.get(&(node.term().0, me.raft_id())).cloned().unwrap_or_default();
                votes.insert(me);
                if !node.configuration().is_majority(&votes) {
                    let (n, term, configuration) = (machine + 1, node.term(), node.configuration());
                    return Err(format!("n{n} leads term {term} by the votes of {votes:?} of {configuration:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.elections
    }
}
