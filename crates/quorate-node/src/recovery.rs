//! How a cluster goes on with one survivor after the majority of its managers is lost for ever.
//!
//! Consensus cannot do it, and must not: without a majority nobody knows whether the others decided
//! something else. A person says that they are destroyed. Then the survivor's log is the cluster's, all of
//! it, also what nobody confirmed; and [`plan`] says what is to be appended to it so that the node that
//! starts on it is the only voter. The steps are the ordinary ones of a configuration, so every node that
//! reads this log later takes them as it takes others, and the survivor takes them when it starts.
//!
//! The last of the entries is a command that expels the managers that are lost and begins another
//! *incarnation*: links between members of different ones are refused, so that a server which was given up
//! and comes back can neither lead nor be led.
//!
//! # Invariants
//! - Nothing that the survivor holds is thrown away.
//! - The entries have a term of their own, above any that the survivor has seen.
//! - Nodes that are no managers stay; they hold no votes and nothing that is not in the log.

use crate::configuration::Configuration;
use crate::consensus::reconfigure::{after, data_of_step};
use crate::consensus::{EntryKind, LogEntry, RecoveredLog};
use bytes::Bytes;
use prost::Message as _;
use quorate_model::command::Command;
use quorate_model::entry::{Envelope, Payload, Proposal};
use quorate_model::id::{LogIndex, NodeId, RequestId, Term};
use quorate_model::member::MemberCommand;
use quorate_model::state::{ClusterState, Role};
use quorate_model::time::WallTime;
use std::collections::BTreeSet;

/// What a recovery does, before it is done.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovery {
    pub survivor: NodeId,
    pub incarnation: u64,
    /// Managers that are given up: expelled, and never let in again.
    pub lost: BTreeSet<NodeId>,
    /// Nodes that stay, without votes.
    pub stay: BTreeSet<NodeId>,
    /// The last entry that the survivor has, and when it was made, if that is known.
    pub last: LogIndex,
    pub last_made: Option<WallTime>,
    /// Up to here a majority confirmed what the survivor has. What is between this and `last` may be known to
    /// nobody else; it is kept.
    pub confirmed: LogIndex,
    /// To be appended durably.
    pub entries: Vec<LogEntry>,
    /// Term, vote, commit; in the same append.
    pub hard_state: (u64, u64, u64),
}

/// Why a node cannot be the survivor. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CannotRecover {
    #[error("this node was never told who votes: it has nothing of the cluster's yet")]
    KnowsNothing,
    #[error("this node is no member any more: it was expelled")]
    Expelled,
    #[error("this node is no manager")]
    NotManager,
    #[error("this node is the only one that votes: it needs nobody else")]
    NotNeeded,
    /// A log entry of a newer version.
    #[error("entry {index} cannot be understood: {why}")]
    Unreadable { index: LogIndex, why: String },
}

/// What is known beforehand.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    pub survivor: NodeId,
    /// The incarnation that begins; above the present one.
    pub incarnation: u64,
    pub now: WallTime,
    /// The databases hold everything up to here.
    pub applied: LogIndex,
    /// When the last entry of the log was made, as far as it is known.
    pub last_made: Option<WallTime>,
    /// Random, for the entry's seed and request id.
    pub seed: u64,
    pub request: RequestId,
}

/// What is to be appended to the survivor's log, on which its databases hold `state`.
///
/// # Errors
/// [`CannotRecover`].
pub fn plan(log: &RecoveredLog, state: &ClusterState, given: Circumstances) -> Result<Recovery, CannotRecover> {
    let mut ahead = Ahead::of(log, state, given)?;
    let me = given.survivor;
    if ahead.state.members.expelled.contains(&me) {
        return Err(CannotRecover::Expelled);
    }
    // A directory that was emptied knows at most with whom the cluster began.
    if !ahead.configuration.contains(me) || !ahead.state.nodes.contains_key(&me) {
        return Err(CannotRecover::KnowsNothing);
    }
    let manages = |node: NodeId| {
        let record = ahead.state.nodes.get(&node);
        record.is_some_and(|record| record.identity.roles.contains(&Role::Manager))
    };
    if !manages(me) {
        return Err(CannotRecover::NotManager);
    }
    let alone = BTreeSet::from([me]);
    if ahead.configuration.voters == alone && !ahead.configuration.is_joint() {
        return Err(CannotRecover::NotNeeded);
    }
    let configured = ahead.configuration.nodes();
    let members: BTreeSet<NodeId> = configured.iter().chain(ahead.state.nodes.keys()).copied().collect();
    let is_lost = |node: &NodeId| {
        let known = ahead.state.nodes.contains_key(node);
        *node != me && (manages(*node) || ahead.configuration.votes(*node) || !known)
    };
    let (lost, others): (BTreeSet<NodeId>, BTreeSet<NodeId>) = members.into_iter().partition(is_lost);
    let stay = others.into_iter().filter(|node| *node != me).collect();

    let term = log.terms.iter().map(|(_, term)| term.0).chain([log.term, log.before.1.0]).max().unwrap_or(0) + 1;
    let (last, last_made) = (ahead.last, ahead.last_made);
    let mut steps = Steps { term: Term(term), next: last.next(), entries: Vec::new() };
    if ahead.configuration.is_joint() {
        ahead.configuration = steps.step(&ahead.configuration, ahead.configuration.left());
    }
    if ahead.configuration.voters != alone {
        let joint = ahead.configuration.entering(alone);
        let joint = steps.step(&ahead.configuration, joint);
        ahead.configuration = steps.step(&joint, joint.left());
    }
    let gone: Vec<NodeId> = ahead.configuration.learners.intersection(&lost).copied().collect();
    for node in gone {
        let mut without = ahead.configuration.clone();
        without.learners.remove(&node);
        ahead.configuration = steps.step(&ahead.configuration, without);
    }
    let incarnation = given.incarnation;
    let recover = MemberCommand::Recover { survivor: me, incarnation, lost: lost.clone() };
    let proposal = Proposal::command(given.request, &Command::Member(recover));
    // Entries' times never go back.
    let now = last_made.map_or(given.now, |made| given.now.max(made));
    steps.push(EntryKind::Normal, Envelope::stamp(proposal, now, given.seed).encode_to_vec().into());
    let commit = steps.next.0 - 1;
    Ok(Recovery {
        survivor: me,
        incarnation,
        lost,
        stay,
        last,
        last_made,
        confirmed: LogIndex(log.commit.max(given.applied.0)),
        entries: steps.entries,
        hard_state: (term, me.raft_id(), commit),
    })
}

/// The cluster as of the last entry of the log.
struct Ahead {
    state: ClusterState,
    configuration: Configuration,
    last: LogIndex,
    last_made: Option<WallTime>,
}

impl Ahead {
    /// Entries that are not in the databases yet are looked at here only for what they say about members.
    fn of(log: &RecoveredLog, state: &ClusterState, given: Circumstances) -> Result<Ahead, CannotRecover> {
        let mut ahead = Ahead {
            state: ClusterState {
                nodes: state.nodes.clone(),
                members: state.members.clone(),
                ..ClusterState::default()
            },
            configuration: log.configuration.clone(),
            last: log.unapplied.last().map_or(given.applied, |entry| entry.index),
            last_made: given.last_made,
        };
        for entry in &log.unapplied {
            match entry.kind {
                EntryKind::Membership if entry.index > log.configured => {
                    ahead.configuration = after(&ahead.configuration, &entry.data);
                }
                EntryKind::Membership => {}
                EntryKind::Normal => ahead.take(entry)?,
            }
        }
        Ok(ahead)
    }

    fn take(&mut self, entry: &LogEntry) -> Result<(), CannotRecover> {
        // A new leader's first entry.
        if entry.data.is_empty() {
            return Ok(());
        }
        let unreadable = |why: quorate_model::entry::EntryError| CannotRecover::Unreadable {
            index: entry.index,
            why: why.to_string(),
        };
        let envelope = Envelope::read(entry.data.clone()).map_err(unreadable)?;
        self.last_made = self.last_made.max(Some(envelope.time()));
        if let Payload::Command(command @ (Command::Member(_) | Command::RegisterNode { .. })) =
            envelope.payload().map_err(unreadable)?
        {
            // One that is refused changes nothing.
            let changes = self.state.decide(entry.index, envelope.time(), &command).unwrap_or_default();
            self.state.absorb(entry.index, &changes);
        }
        Ok(())
    }
}

/// Entries that are made.
struct Steps {
    term: Term,
    next: LogIndex,
    entries: Vec<LogEntry>,
}

impl Steps {
    fn step(&mut self, from: &Configuration, to: Configuration) -> Configuration {
        let data = data_of_step(from, &to).expect("each is one of the three steps that there are");
        self.push(EntryKind::Membership, data);
        to
    }

    fn push(&mut self, kind: EntryKind, data: Bytes) {
        self.entries.push(LogEntry { index: self.next, term: self.term, kind, data });
        self.next = self.next.next();
    }
}
