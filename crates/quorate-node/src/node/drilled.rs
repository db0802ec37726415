//! Drills, as the node that is taken away and as the one that leads.
//!
//! # Invariants
//! - This node is taken away once by one drill, in the run that the drill names, and not when it hears of a drill
//!   whose time is over by its own clock.
//! - Spans are of this node's monotonic clock if it ran when the drill began, else of the wall clock.

use super::Node;
use crate::event::{Effect, Now};
use crate::leading::{Chore, unheard_by_majority};
use quorate_model::command::{Command, Refusal};
use quorate_model::drill::{DrillCommand, DrillRecord, Fact, NoDrill, SILENT_AFTER, Sight, look};
use quorate_model::id::NodeId;
use quorate_model::observed::ReplicaState;
use quorate_model::state::{Change, Health};
use quorate_model::time::{Span, Timestamp};
use std::time::Duration;

/// What a node remembers of drills beside the records.
#[derive(Debug, Default)]
pub(super) struct Drilled {
    /// The drill that this node saw begin last, and when.
    began: Option<(u64, Timestamp)>,
    /// The last one that took this node away.
    left_for: Option<u64>,
}

impl Node {
    /// Takes note of a drill that begins.
    pub(super) fn note_drill(&mut self, now: Now, changes: &[Change]) {
        for change in changes {
            if let Change::Drill(drill) = change
                && !drill.is_over()
                && self.drilled.began.is_none_or(|(known, _)| known < drill.id)
            {
                self.drilled.began = Some((drill.id, now.mono));
            }
        }
    }

    /// Falls silent if a drill wants it.
    pub(super) fn obey_drill(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(drill) = self.state.drill() else { return };
        let is_me = drill.node == self.me.id && drill.boot == self.boot && self.drilled.left_for != Some(drill.id);
        if is_me {
            self.drilled.left_for = Some(drill.id);
            if now.wall < drill.until() {
                out.push(Effect::GoAway { after: SILENT_AFTER.0, away: drill.away.0 });
            }
        }
    }

    /// What is to be written down of a drill, if this node leads.
    pub(super) fn measure_drill(&self, now: Now) -> Option<(Command, Chore)> {
        let drill = self.state.drill().filter(|_| self.consensus.leads())?;
        if self.leading.is_on_its_way(&Chore::Drill) {
            return None;
        }
        let after = self.since_cut(now, drill);
        let reports = || {
            let fresh = self.peers.iter().filter(|(node, peer)| peer.fresh && self.hears(**node));
            fresh.flat_map(|(_, peer)| &peer.report.replicas)
        };
        let healthy = reports().filter(|status| status.state == ReplicaState::Healthy).map(|status| status.replica);
        let running = reports().filter(|status| status.pid.is_some()).map(|status| status.replica);
        let unheard = unheard_by_majority(&self.membership, drill.node, self.configuration(), now).is_some();
        let facts: Vec<Fact> = look(
            drill,
            &Sight {
                state: &self.state,
                leader: self.me.id,
                after,
                unheard,
                heard: self.hears(drill.node),
                healthy: &healthy.collect(),
                running: &running.collect(),
            },
        );
        if facts.is_empty() {
            return None;
        }
        Some((Command::Drill(DrillCommand::Note { id: drill.id, after, facts }), Chore::Drill))
    }

    /// To the millisecond: more is not measured.
    fn since_cut(&self, now: Now, drill: &DrillRecord) -> Span {
        let since = match self.drilled.began {
            Some((id, began)) if id == drill.id => now.mono.since(began),
            // It started since, or got the record with a snapshot.
            Some(_) | None => now.wall.since(drill.began),
        };
        let ms = since.saturating_sub(SILENT_AFTER.0).as_millis();
        Span(Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)))
    }

    /// What only the leader knows against a drill: who is heard now, and whether the others could decide.
    pub(crate) fn objects_to_drill(&self, node: NodeId) -> Option<Refusal> {
        let name = |node: NodeId| {
            self.state.nodes.get(&node).map_or_else(|| node.to_string(), |record| record.identity.name.clone())
        };
        let no = |why| Some(Refusal::NoDrill { why });
        // What is decided says more than what is heard.
        if self.state.may_drill(node).is_err() {
            return None;
        }
        let joined = self.state.nodes.values().filter(|record| record.health == Health::Joined);
        let mut joined = joined.map(|record| record.identity.id);
        if let Some(silent) = joined.find(|node| !self.hears(*node)) {
            return no(NoDrill::NotHeard { node: name(silent) });
        }
        for half in self.configuration().halves() {
            let left = half.iter().filter(|voter| **voter != node && self.hears(**voter)).count();
            let needed = half.len() / 2 + 1;
            if left < needed {
                return no(NoDrill::LosesQuorum { node: name(node), left, voters: half.len(), needed });
            }
        }
        None
    }
}
