//! A node becomes a voter only when its disk has nearly all of the log.
//!
//! Ongaro, 2014, §4.2.1: otherwise the first loss after a promotion stops the cluster until the new
//! voter has caught up.

use super::Invariant;
use super::voters_of_the_log::History;
use crate::machine::Identity;
use crate::seen::Seen;
use quorate_model::id::NodeId;
use std::collections::BTreeMap;

/// What a node may lack when it begins to vote: twice what the leader allows, since more is written
/// while the change is on its way.
const LACKS_MAX: u64 = 2_048;

#[derive(Debug)]
pub(super) struct PromotedWhenCaughtUp {
    history: History,
    machines: Vec<NodeId>,
    /// Up to where each machine's disk was last known to hold the log.
    held: BTreeMap<NodeId, u64>,
    promoted: u64,
}

impl PromotedWhenCaughtUp {
    pub(super) fn new(identity: &Identity) -> PromotedWhenCaughtUp {
        let machines = identity.machines.clone();
        PromotedWhenCaughtUp { history: History::new(identity), machines, held: BTreeMap::new(), promoted: 0 }
    }
}

impl Invariant for PromotedWhenCaughtUp {
    fn name(&self) -> &'static str {
        "promoted_when_caught_up"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Started { machine, found, .. } => {
                self.held.insert(self.machines[*machine], found.last);
            }
            Seen::Acknowledged { machine, durable, .. } => {
                self.held.insert(self.machines[*machine], *durable);
            }
            Seen::Installed { machine, index } => {
                self.held.insert(self.machines[*machine], index.0);
            }
            _ => {}
        }
        for index in self.history.note(seen) {
            let (before, after) = (self.history.before(index), self.history.at(index));
            for node in after.voters.iter().filter(|node| !before.votes(**node)) {
                self.promoted += 1;
                let held = self.held.get(node).copied().unwrap_or_default();
                if held + LACKS_MAX < index.0 {
                    return Err(format!("{node} votes from {index} on and had only entries up to {held}"));
                }
            }
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.promoted
    }
}
