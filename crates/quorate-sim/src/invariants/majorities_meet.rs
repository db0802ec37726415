//! Any majority of a configuration meets any majority of the one that follows it in the log.
//!
//! Ongaro, 2014, §4.3: that is what joint consensus is for. Otherwise the old and the new voters could
//! each elect a leader in one term.

use super::Invariant;
use super::voters_of_the_log::History;
use crate::machine::Identity;
use crate::seen::Seen;
use quorate_model::id::NodeId;
use quorate_node::Configuration;
use std::collections::BTreeSet;

#[derive(Debug)]
pub(super) struct MajoritiesMeet {
    history: History,
    changes: u64,
}

impl MajoritiesMeet {
    pub(super) fn new(identity: &Identity) -> MajoritiesMeet {
        MajoritiesMeet { history: History::new(identity), changes: 0 }
    }
}

/// Two majorities, one of each, that have no node in common.
fn apart(one: &Configuration, other: &Configuration) -> Option<(BTreeSet<NodeId>, BTreeSet<NodeId>)> {
    let nodes: Vec<NodeId> =
        one.nodes().union(&other.nodes()).copied().filter(|n| one.votes(*n) || other.votes(*n)).collect();
    (0..1_u32 << nodes.len()).find_map(|side| {
        let on = |wanted: bool| {
            let chosen = nodes.iter().enumerate().filter(|(bit, _)| (side >> bit & 1 == 1) == wanted);
            chosen.map(|(_, node)| *node).collect::<BTreeSet<NodeId>>()
        };
        let (left, right) = (on(true), on(false));
        (one.is_majority(&left) && other.is_majority(&right)).then_some((left, right))
    })
}

impl Invariant for MajoritiesMeet {
    fn name(&self) -> &'static str {
        "majorities_meet"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        for index in self.history.note(seen) {
            self.changes += 1;
            let (before, after) = (self.history.before(index), self.history.at(index));
            if let Some((left, right)) = apart(before, after) {
                return Err(format!(
                    "at {index} {before:?} became {after:?}: {left:?} and {right:?} could both decide"
                ));
            }
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.changes
    }
}
