//! What a node is to run: the rules of the agent, without the agent.
//!
//! Assignments arrive late, twice and out of order, and an agent restarts in between. Which of them
//! counts, and what follows for a replica that is listed, listed no more or just found, is decided
//! here and nowhere else. There is no I/O here, so the simulator runs the same rules with processes
//! that it makes up.
//!
//! # Invariants
//! - The revision of what is obeyed never falls, over restarts too: whoever acts on [`Offer::Obey`]
//!   writes [`Desired::newest`] down first and hands it to [`Desired::at_start`] the next time.
//! - A replica that is known and not listed is to stop.
//! - Nothing is ended without knowing: before the first assignment whatever runs goes on.

use quorate_model::assignment::{AssignedReplica, Assignment, Phase};
use quorate_model::id::{LogIndex, NodeId, ReplicaId};
use quorate_model::planted::{Bug, planted};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The newest assignment that a node has seen, if any.
#[derive(Debug, Clone)]
pub struct Desired {
    node: NodeId,
    newest: Option<Arc<Assignment>>,
}

/// What an assignment that arrives means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Offer {
    /// It is the newest now. Write it down, then carry it out.
    Obey,
    /// It is the one that is obeyed already.
    Same,
    /// Its revision is lower than that of what is obeyed. Nothing changed.
    Older,
    /// It is not for this node. Nothing changed.
    OtherNode,
}

/// What was written down belongs to another node: obeying it would stop that node's replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the last assignment belongs to node {owner}")]
pub struct OtherNode {
    pub owner: NodeId,
}

/// What the newest assignment says about one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub assigned: AssignedReplica,
    /// `false`: it is not in the assignment (any more), and `assigned` is what was last known.
    pub listed: bool,
}

impl Wanted {
    /// What to do with the replica.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.listed { self.assigned.phase } else { Phase::Stop }
    }
}

impl Desired {
    /// `cached` is the last assignment that was written down, `None` if there is none (or if it cannot
    /// be read any more).
    ///
    /// # Errors
    /// [`OtherNode`] if it is not for `node`.
    pub fn at_start(node: NodeId, cached: Option<Assignment>) -> Result<Desired, OtherNode> {
        match cached {
            Some(cached) if cached.node != node => Err(OtherNode { owner: cached.node }),
            cached => Ok(Desired { node, newest: cached.map(Arc::new) }),
        }
    }

    /// Takes an assignment as the newest, unless it says nothing new.
    ///
    /// One with the revision that is obeyed and other contents is obeyed: it was made later.
    pub fn offer(&mut self, assignment: Assignment) -> Offer {
        if assignment.node != self.node {
            return Offer::OtherNode;
        }
        let obeys_older = planted(Bug::OlderAssignmentObeyed);
        match self.newest.as_deref() {
            Some(newest) if assignment.revision < newest.revision && !obeys_older => Offer::Older,
            Some(newest) if assignment == *newest => Offer::Same,
            _ => {
                self.newest = Some(Arc::new(assignment));
                Offer::Obey
            }
        }
    }

    /// The assignment to obey; `None` before the first.
    #[must_use]
    pub fn newest(&self) -> Option<&Arc<Assignment>> {
        self.newest.as_ref()
    }

    /// The revision of [`newest`](Desired::newest).
    #[must_use]
    pub fn revision(&self) -> Option<LogIndex> {
        self.newest.as_deref().map(|newest| newest.revision)
    }

    /// What is wanted of a replica that runs or may run here, with what was last known of it.
    ///
    /// Also at the start, from the first moment: one that is told "not listed" first and "listed" a
    /// moment later may have been ended by then.
    #[must_use]
    pub fn wanted(&self, known: AssignedReplica) -> Wanted {
        let Some(newest) = &self.newest else { return Wanted { assigned: known, listed: true } };
        match newest.replicas.iter().find(|listed| listed.replica == known.replica) {
            Some(listed) => Wanted { assigned: listed.clone(), listed: true },
            None => Wanted { assigned: known, listed: false },
        }
    }

    /// What is wanted of every replica: of those that are listed, in the assignment's order, then of
    /// those that are known and not listed.
    #[must_use]
    pub fn wanted_of_all(&self, known: impl IntoIterator<Item = AssignedReplica>) -> Vec<Wanted> {
        let listed = self.newest.iter().flat_map(|newest| &newest.replicas);
        let mut all: Vec<Wanted> = listed.map(|assigned| Wanted { assigned: assigned.clone(), listed: true }).collect();
        let named: BTreeSet<ReplicaId> = all.iter().map(|wanted| wanted.assigned.replica).collect();
        let others = known.into_iter().filter(|known| !named.contains(&known.replica));
        all.extend(others.map(|known| self.wanted(known)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::spec::{self, Format};
    use std::collections::BTreeMap;

    fn node() -> NodeId {
        NodeId::from_u128(9)
    }

    fn replica(number: u128, phase: Phase) -> AssignedReplica {
        let document = spec::parse("[[service]]\nname = 'web'\ncommand = ['serve']\n", Format::Toml).unwrap();
        let spec = document.services.into_iter().next().unwrap();
        AssignedReplica {
            replica: ReplicaId::from_u128(number),
            ordinal: 0,
            spec,
            phase,
            lease: None,
            externals: Vec::new(),
        }
    }

    fn assignment(revision: u64, running: &[u128]) -> Assignment {
        let replicas = running.iter().map(|number| replica(*number, Phase::Run)).collect();
        Assignment { node: node(), revision: LogIndex(revision), replicas, scrapes: BTreeMap::new() }
    }

    fn fresh() -> Desired {
        Desired::at_start(node(), None).unwrap()
    }

    fn told(all: &[Wanted]) -> Vec<(ReplicaId, Phase)> {
        all.iter().map(|wanted| (wanted.assigned.replica, wanted.phase())).collect()
    }

    #[test]
    fn a_newer_assignment_is_obeyed_and_an_older_one_changes_nothing() {
        let mut desired = fresh();
        assert_eq!(desired.revision(), None);
        assert_eq!(desired.offer(assignment(5, &[1])), Offer::Obey);
        assert_eq!(desired.offer(assignment(5, &[1])), Offer::Same);
        assert_eq!(desired.offer(assignment(4, &[1, 2])), Offer::Older);
        assert_eq!(desired.newest().map(|newest| (**newest).clone()), Some(assignment(5, &[1])));
        assert_eq!(desired.offer(assignment(6, &[1])), Offer::Obey, "the revision alone is news too");
        assert_eq!(desired.revision(), Some(LogIndex(6)));
    }

    #[test]
    fn of_two_with_one_revision_the_later_one_is_obeyed() {
        let mut desired = fresh();
        assert_eq!(desired.offer(assignment(5, &[1])), Offer::Obey);
        assert_eq!(desired.offer(assignment(5, &[1, 2])), Offer::Obey);
        assert_eq!(desired.newest().unwrap().replicas.len(), 2);
    }

    #[test]
    fn an_older_assignment_is_ignored_after_a_restart_too() {
        let mut desired = fresh();
        assert_eq!(desired.offer(assignment(5, &[1])), Offer::Obey);
        let written = desired.newest().map(|newest| (**newest).clone());
        let mut restarted = Desired::at_start(node(), written).unwrap();
        assert_eq!(restarted.offer(assignment(4, &[])), Offer::Older);
        assert_eq!(restarted.offer(assignment(5, &[1])), Offer::Same);
    }

    #[test]
    fn what_belongs_to_another_node_is_never_obeyed() {
        let mut desired = fresh();
        let other = Assignment { node: NodeId::from_u128(8), ..assignment(5, &[1]) };
        assert_eq!(desired.offer(other.clone()), Offer::OtherNode);
        assert_eq!(desired.revision(), None);
        assert_eq!(Desired::at_start(node(), Some(other)).unwrap_err(), OtherNode { owner: NodeId::from_u128(8) });
    }

    #[test]
    fn what_is_known_and_not_listed_is_to_stop() {
        let mut desired = fresh();
        assert_eq!(desired.offer(assignment(5, &[2, 1])), Offer::Obey);
        let all = desired.wanted_of_all([replica(1, Phase::Run), replica(3, Phase::Run)]);
        let id = ReplicaId::from_u128;
        assert_eq!(told(&all), [(id(2), Phase::Run), (id(1), Phase::Run), (id(3), Phase::Stop)]);
    }

    #[test]
    fn before_the_first_assignment_whatever_runs_goes_on() {
        let all = fresh().wanted_of_all([replica(3, Phase::Run)]);
        assert_eq!(told(&all), [(ReplicaId::from_u128(3), Phase::Run)]);
        assert!(fresh().wanted(replica(3, Phase::Run)).listed, "nothing is ended without knowing");
    }

    #[test]
    fn what_the_last_assignment_lists_is_wanted_from_the_first_moment() {
        let replicas = vec![replica(1, Phase::Run), replica(2, Phase::Drain)];
        let last = Assignment { node: node(), revision: LogIndex(5), replicas, scrapes: BTreeMap::new() };
        let desired = Desired::at_start(node(), Some(last)).unwrap();
        let of = |number| desired.wanted(replica(number, Phase::Run));
        assert_eq!(of(1).phase(), Phase::Run);
        assert_eq!(of(2).phase(), Phase::Drain, "the assignment knows more than the launch");
        assert_eq!(of(3).phase(), Phase::Stop, "it was replaced while the agent was away");
    }
}
