//! No two replicas of one version of a service have one ordinal, unless one of them is on its way out.
//!
//! `docs/concepts/scheduling.md`: an update may start the new one of an ordinal beside the old one, and so may a
//! drain, which is what an expulsion begins with; what an expelled node had is removed after the node itself.

use super::Invariant;
use crate::seen::Seen;
use quorate_model::assignment::Phase;
use quorate_model::id::{NodeId, ReplicaId};
use quorate_model::state::ReplicaRecord;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct OneReplicaAnOrdinal {
    looked: u64,
}

impl Invariant for OneReplicaAnOrdinal {
    fn name(&self) -> &'static str {
        "one_replica_an_ordinal"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Seen::BatchApplied { state, .. } = seen else { return Ok(()) };
        let mut taken: BTreeMap<_, ReplicaId> = BTreeMap::new();
        let is_emptied = |node: NodeId| state.nodes.get(&node).is_none_or(|node| node.availability.drain().is_some());
        let stays = |replica: &&ReplicaRecord| replica.phase == Phase::Run && !is_emptied(replica.node);
        for replica in state.replicas.values().filter(stays) {
            self.looked += 1;
            let place = (replica.service.clone(), replica.ordinal, replica.version, replica.spec.env.clone());
            if let Some(other) = taken.insert(place, replica.id) {
                return Err(format!(
                    "{}.{} has two replicas of version {}: {other} and {}",
                    replica.service, replica.ordinal, replica.version, replica.id
                ));
            }
        }
        Ok(())
    }

    fn premises(&self) -> u64 {
        self.looked
    }
}
