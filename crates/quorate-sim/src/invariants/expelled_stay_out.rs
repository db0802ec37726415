//! A node that was expelled is never again a node, a voter or a learner, whatever it says.
//!
//! `quorate_model::member`: an expelled id never becomes a node again.

use super::Invariant;
use super::voters_of_the_log::History;
use crate::machine::Identity;
use crate::seen::Seen;
use quorate_model::id::{LogIndex, NodeId};
use quorate_model::member::MemberChange;
use quorate_model::state::Change;
use std::collections::BTreeMap;

#[derive(Debug)]
pub(super) struct ExpelledStayOut {
    history: History,
    /// By the entry that expelled it.
    expelled: BTreeMap<NodeId, LogIndex>,
}

impl ExpelledStayOut {
    pub(super) fn new(identity: &Identity) -> ExpelledStayOut {
        ExpelledStayOut { history: History::new(identity), expelled: BTreeMap::new() }
    }
}

impl Invariant for ExpelledStayOut {
    fn name(&self) -> &'static str {
        "expelled_stay_out"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        for index in self.history.note(seen) {
            let (before, after) = (self.history.before(index), self.history.at(index));
            let comes_in = |node: &&NodeId| after.contains(**node) && !before.contains(**node);
            if let Some((node, at)) = self.expelled.iter().find(|(node, at)| **at < index && comes_in(node)) {
                return Err(format!("{node} was expelled at {at} and gets the log from {index} on"));
            }
        }
        match seen {
            Seen::Applied { entry, .. } if !entry.repeated => {
                for change in &entry.changes {
                    match change {
                        Change::Member(MemberChange::Expelled { node }) => {
                            self.expelled.entry(*node).or_insert(entry.index);
                        }
                        Change::Node(record) => {
                            let node = record.identity.id;
                            if let Some(at) = self.expelled.get(&node).filter(|at| **at < entry.index) {
                                return Err(format!("{node} was expelled at {at} and has a record at {}", entry.index));
                            }
                        }
                        _ => {}
                    }
                }
            }
            Seen::Healed { machines } => {
                for held in *machines {
                    let stays = |node: &&NodeId| held.configuration.contains(**node);
                    if let Some(node) = self.expelled.keys().find(stays) {
                        return Err(format!("{node} was expelled and still gets the log"));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.expelled.len() as u64
    }
}
