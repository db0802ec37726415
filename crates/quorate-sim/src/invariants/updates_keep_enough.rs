//! An update that starts first takes no copy away that was well before its successor was.
//!
//! `docs/guides/updates.md`. Judged by the log's own entries, one by one, and by what agents really ran: whether
//! a leader may have believed something else does not count.

use super::Invariant;
use crate::seen::Seen;
use quorate_model::assignment::Phase;
use quorate_model::id::{LogIndex, ReplicaId};
use quorate_model::observed::ReplicaState;
use quorate_model::place::Availability;
use quorate_model::spec::Mode;
use quorate_model::state::{Change, ClusterState, ReplicaRecord};
use std::collections::BTreeSet;

#[derive(Debug, Default)]
pub(super) struct UpdatesKeepEnough {
    /// As of the entry that was applied first by anybody.
    state: ClusterState,
    applied: LogIndex,
    /// Entries are missing that nobody showed; what this machine holds after its batch is true again.
    gap: Option<usize>,
    were_well: BTreeSet<ReplicaId>,
    looked: u64,
}

impl UpdatesKeepEnough {
    fn retired(&mut self, old: &ReplicaRecord) -> Result<(), String> {
        let Some(service) = self.state.services.get(&old.service) else { return Ok(()) };
        let node = self.state.nodes.get(&old.node);
        let moves =
            node.is_none_or(|node| node.availability != Availability::Open || service.spec.place.unmet(node).is_some());
        let outdated = old.version != service.version || !old.spec.runs_the_same(&service.spec);
        let starts_first = service.spec.mode == Mode::Replicated && service.spec.stops_first().is_none();
        if !outdated || !starts_first || moves || !self.were_well.contains(&old.id) {
            return Ok(());
        }
        let mine = self.state.replicas.values().filter(|it| it.service == old.service && it.phase == Phase::Run);
        let running: Vec<&ReplicaRecord> = mine.collect();
        let ordinals: BTreeSet<u32> = running.iter().map(|it| it.ordinal).collect();
        if !ordinals.contains(&old.ordinal) && ordinals.len() >= service.copies() as usize {
            // It was one too many.
            return Ok(());
        }
        self.looked += 1;
        let successor = |it: &&&ReplicaRecord| it.ordinal == old.ordinal && self.were_well.contains(&it.id);
        if running.iter().find(successor).is_some() {
            return Ok(());
        }
        let (name, ordinal, version) = (&old.service, old.ordinal, old.version);
        Err(format!("{name}.{ordinal} of version {version} was well and is taken away before another was"))
    }
}

impl Invariant for UpdatesKeepEnough {
    fn name(&self) -> &'static str {
        "updates_keep_enough"
    }

    fn see(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match seen {
            Seen::Reported { statuses } => {
                let well = statuses.iter().filter(|status| status.state == ReplicaState::Healthy);
                self.were_well.extend(well.map(|status| status.replica));
                Ok(())
            }
            Seen::BatchApplied { machine, state } if self.gap == Some(*machine) => {
                (self.state, self.gap) = ((*state).clone(), None);
                Ok(())
            }
            Seen::Applied { machine, entry } if entry.index > self.applied => {
                if entry.index != self.applied.next() || self.gap.is_some() {
                    self.gap = Some(*machine);
                }
                self.applied = entry.index;
                if self.gap.is_some() {
                    return Ok(());
                }
                let retires = |change: &Change| match change {
                    Change::Replica(record) if record.phase == Phase::Drain => {
                        self.state.replicas.get(&record.id).filter(|known| known.phase == Phase::Run).cloned()
                    }
                    _ => None,
                };
                let retired: Vec<ReplicaRecord> = entry.changes.iter().filter_map(retires).collect();
                self.state.absorb(entry.index, &entry.changes);
                retired.iter().try_for_each(|old| self.retired(old))
            }
            _ => Ok(()),
        }
    }

    fn premises(&self) -> u64 {
        self.looked
    }
}
