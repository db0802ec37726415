//! Configurations in the log: how one is proposed, and how it comes in force.
//!
//! An entry carries the whole [`Configuration`] that it leads to. The step itself, in the library's
//! words, follows from that and from the one before, so nothing else of the entry is believed: one that
//! is no possible step changes nothing, on every node alike. And a node that is new and knows of no
//! configuration takes over the first that it meets, although it has not seen those before.

use super::{CommittedEntry, Consensus, Content, NotProposed};
use crate::configuration::Configuration;
use bytes::Bytes;
use prost::Message as _;
use quorate_model::id::{LogIndex, NodeId, Term};
use quorate_model::planted::{Bug, planted};
use raft::eraftpb::{self, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, EntryType};
use raft::{Changer, ProgressState};
use std::collections::BTreeSet;

/// What is read of the library's `ConfChangeV2`: the context, a [`Configuration`] as JSON.
#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(bytes = "bytes", tag = "3")]
    context: Bytes,
}

impl Consensus {
    pub(crate) fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Whether the library counts exactly those whom [`configuration`](Self::configuration) names, or that
    /// is not known yet. Looks at all of them: for simulations and tests.
    pub(crate) fn counts_as_configured(&self) -> bool {
        let sorted = |state: ConfState| {
            [state.voters, state.voters_outgoing, state.learners, state.learners_next]
                .map(|numbers| numbers.into_iter().collect::<BTreeSet<u64>>())
        };
        let counted = self.raw.raft.prs().conf().to_conf_state();
        !self.configuration.is_known() || sorted(counted) == sorted(conf_state(&self.configuration))
    }

    /// Whether a change is on its way, or a new leader has not applied yet what may be one. The library
    /// would turn another one into an empty entry (traps A2 f).
    pub(crate) fn reconfigures(&self) -> bool {
        self.raw.raft.has_pending_conf()
    }

    /// Whether leadership is being handed over.
    pub(crate) fn hands_over(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// Proposes the step to another configuration.
    ///
    /// # Errors
    /// [`NotProposed`] when this node cannot take it now, or when no single step leads there.
    pub(crate) fn reconfigure(&mut self, to: &Configuration) -> Result<(), NotProposed> {
        if !self.leads() {
            return Err(NotProposed::NotLeader);
        }
        if self.reconfigures() || self.hands_over() {
            return Err(NotProposed::Busy);
        }
        let step = step(&self.configuration, to).ok_or(NotProposed::Busy)?;
        self.raw.propose_conf_change(Vec::new(), step).map_err(|_| NotProposed::Busy)
    }

    /// Nodes that have nearly as much of the log as this leader; none unless it leads.
    pub(crate) fn caught_up(&self) -> BTreeSet<NodeId> {
        if !self.leads() {
            return BTreeSet::new();
        }
        let enough = self.raw.raft.raft_log.committed.saturating_sub(super::CAUGHT_UP_ENTRIES);
        let near = |node: &NodeId| {
            self.raw
                .raft
                .prs()
                .get(node.raft_id())
                .is_some_and(|progress| progress.state == ProgressState::Replicate && progress.matched >= enough)
        };
        self.configuration.nodes().into_iter().filter(near).collect()
    }

    /// A committed entry on its way to the databases.
    pub(super) fn take_committed(&mut self, entry: eraftpb::Entry) -> CommittedEntry {
        let (index, term) = (LogIndex(entry.index), Term(entry.term));
        let content = match entry.get_entry_type() {
            EntryType::EntryNormal => Content::Data(entry.data),
            EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                if index <= self.configured {
                    // Applied once more for the file that was behind, which has no configuration in it.
                    Content::Configuration(read(&entry.data).unwrap_or_else(|| self.configuration.clone()))
                } else {
                    if !planted(Bug::ConfiguredAtAppend) {
                        self.take_configuration(entry.index, &entry.data);
                    }
                    Content::Configuration(self.configuration.clone())
                }
            }
        };
        CommittedEntry { index, term, content }
    }

    /// Puts the configuration of a committed entry in force.
    pub(super) fn take_configuration(&mut self, index: u64, data: &Bytes) {
        let Some(to) = read(data) else { return };
        if self.configuration.is_known() {
            let Some(change) = step(&self.configuration, &to) else { return };
            self.raw.apply_conf_change(&change).expect("a step from the configuration that the library has as well");
        } else {
            self.adopt(&to);
        }
        self.configuration = to;
        if planted(Bug::JointSkipped) && self.configuration.is_joint() {
            self.raw.apply_conf_change(&ConfChangeV2::default()).expect("it is joint");
            self.configuration = self.configuration.left();
        }
        let conf_state = self.raw.raft.prs().conf().to_conf_state();
        self.raw.mut_store().configured(index, conf_state);
        if self.leads() && !self.raw.raft.prs().conf().voters().contains(self.raw.raft.id) {
            // It was elected with this entry in its log and could not hand over before. The library would
            // look for its own progress, which is gone, and panic (traps A2 c).
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, raft::INVALID_ID);
        }
    }

    /// This node is new: nothing is tracked, and nobody was counted.
    fn adopt(&mut self, configuration: &Configuration) {
        let single = |node: &NodeId, kind| single(*node, kind);
        let add = |nodes: &BTreeSet<NodeId>, kind| nodes.iter().map(|node| single(node, kind)).collect::<Vec<_>>();
        let (first, then) = if configuration.is_joint() {
            let mut then = add(&configuration.outgoing, ConfChangeType::RemoveNode);
            then.extend(add(&configuration.voters, ConfChangeType::AddNode));
            then.extend(add(&configuration.learners, ConfChangeType::AddLearnerNode));
            then.extend(add(&configuration.learners_next, ConfChangeType::AddLearnerNode));
            (add(&configuration.outgoing, ConfChangeType::AddNode), then)
        } else {
            let mut first = add(&configuration.voters, ConfChangeType::AddNode);
            first.extend(add(&configuration.learners, ConfChangeType::AddLearnerNode));
            (first, Vec::new())
        };
        let next = self.raw.raft.raft_log.last_index();
        let progress = self.raw.raft.mut_prs();
        for change in first {
            if let Ok((conf, changes)) = Changer::new(progress).simple(&[change]) {
                progress.apply_conf(conf, changes, next);
            }
        }
        if !then.is_empty()
            && let Ok((conf, changes)) = Changer::new(progress).enter_joint(false, &then)
        {
            progress.apply_conf(conf, changes, next);
        }
        self.raw.raft.post_conf_change();
    }
}

/// The data of an entry that leads from one configuration to another; `None` when no single step does. Of
/// the library's record it has what nodes read of it.
pub(crate) fn data_of_step(from: &Configuration, to: &Configuration) -> Option<Bytes> {
    step(from, to)?;
    Some(Record { context: to.to_bytes().into() }.encode_to_vec().into())
}

/// The configuration in force after such an entry.
pub(crate) fn after(from: &Configuration, data: &Bytes) -> Configuration {
    let possible = |to: &Configuration| !from.is_known() || step(from, to).is_some();
    read(data).filter(possible).unwrap_or_else(|| from.clone())
}

/// The configuration to which an entry leads.
fn read(data: &Bytes) -> Option<Configuration> {
    let record = Record::decode(data.clone()).ok()?;
    Configuration::read(&record.context).ok().filter(Configuration::is_known)
}

/// The library's name for a configuration.
pub(super) fn conf_state(configuration: &Configuration) -> ConfState {
    let numbers = |nodes: &BTreeSet<NodeId>| nodes.iter().map(|node| node.raft_id()).collect::<Vec<u64>>();
    let mut state = ConfState::default();
    state.set_voters(numbers(&configuration.voters));
    state.set_voters_outgoing(numbers(&configuration.outgoing));
    state.set_learners(numbers(&configuration.learners));
    state.set_learners_next(numbers(&configuration.learners_next));
    state
}

fn single(node: NodeId, kind: ConfChangeType) -> ConfChangeSingle {
    let mut change = ConfChangeSingle { node_id: node.raft_id(), ..ConfChangeSingle::default() };
    change.set_change_type(kind);
    change
}

/// The library's change that leads from one configuration to the other, if a single one does.
///
/// There are three: to leave the old set of voters, to enter a joint configuration, and to add or remove
/// one learner. Voters are changed through joint configurations only, which the leader leaves itself.
fn step(from: &Configuration, to: &Configuration) -> Option<ConfChangeV2> {
    let mut change = ConfChangeV2::default();
    change.set_context(to.to_bytes().into());
    if from.is_joint() {
        return (*to == from.left()).then_some(change);
    }
    let learner = |node: &NodeId| {
        let kind = if planted(Bug::LearnerCounted) { ConfChangeType::AddNode } else { ConfChangeType::AddLearnerNode };
        single(*node, kind)
    };
    let mut changes = Vec::new();
    if to.is_joint() {
        let stay_by: BTreeSet<NodeId> = from.learners.difference(&to.voters).copied().collect();
        let leave: BTreeSet<NodeId> = from.voters.difference(&to.voters).copied().collect();
        let known = to.voters.iter().all(|node| from.contains(*node));
        if to.outgoing != from.voters || to.learners != stay_by || to.learners_next != leave || !known {
            return None;
        }
        changes.extend(to.voters.difference(&from.voters).map(|node| single(*node, ConfChangeType::AddNode)));
        changes.extend(to.learners_next.iter().map(|node| single(*node, ConfChangeType::AddLearnerNode)));
        change.set_transition(ConfChangeTransition::Explicit);
    } else {
        if to.voters != from.voters || !to.learners_next.is_empty() || !to.learners.is_disjoint(&to.voters) {
            return None;
        }
        changes.extend(to.learners.difference(&from.learners).map(learner));
        changes.extend(from.learners.difference(&to.learners).map(|node| single(*node, ConfChangeType::RemoveNode)));
        if changes.len() != 1 {
            return None;
        }
    }
    change.set_changes(changes.into());
    Some(change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::{Output, RecoveredLog};

    fn of(voters: &[u128], learners: &[u128]) -> Configuration {
        let ids = |numbers: &[u128]| numbers.iter().map(|number| NodeId::from_u128(number << 64)).collect();
        Configuration { learners: ids(learners), ..Configuration::of(ids(voters)) }
    }

    #[test]
    fn a_configuration_that_is_ahead_of_its_snapshot_is_not_taken_again_from_the_log() {
        let mut node = Consensus::new(1, RecoveredLog::default(), LogIndex(0), 7).unwrap();
        // The files were copied at two moments: the one with the voters has entries up to 102.
        let newest = of(&[2, 3, 4], &[1]);
        assert!(node.receive_snapshot(2, Term(1), (LogIndex(100), Term(1)), (newest.clone(), LogIndex(102))));
        let mut out = Vec::new();
        node.flush(&mut out);
        assert!(out.iter().any(|output| matches!(output, Output::Install { .. })));
        node.snapshot_installed(LogIndex(100), &mut out);
        // At 101 the first of two learners came in; a step to it from the newest one would look possible.
        let before = of(&[2, 3, 4], &[]);
        let data: Bytes = Record { context: before.to_bytes().into() }.encode_to_vec().into();
        let mut entry = eraftpb::Entry { index: 101, term: 1, data, ..Default::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        let taken = node.take_committed(entry);
        assert_eq!(taken.content, Content::Configuration(before), "the file that is behind gets what the log says");
        assert_eq!(*node.configuration(), newest);
    }
}
