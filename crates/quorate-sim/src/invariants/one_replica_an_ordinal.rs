//! No two replicas of one version of a service have one ordinal, unless one of them is on its way out.
//!
//! `docs/concepts/scheduling.md`: an update may start the new one of an ordinal beside the old one.

use super::Invariant;
use crate::seen::Seen;
use quorate_model::assignment::Phase;
use quorate_model::id::ReplicaId;
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
        for replica in state.replicas.values().filter(|replica| replica.phase == Phase::Run) {
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
