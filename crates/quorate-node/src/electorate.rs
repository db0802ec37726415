//! Which nodes should vote, and the next step towards it.
//!
//! The leader calls [`next`] whenever something changed. It compares what is wished and seen with the
//! [`Configuration`] in force and says the one thing to do now, and why. Nothing is remembered between
//! two calls, so any new leader goes on where the last one stopped, in the middle of a change as well.
//!
//! # Rules
//! - Every node is at least a learner; a manager that is one stands by.
//! - The number of voters is odd (an even one tolerates no more losses than the odd one below it). So
//!   standbys are promoted in pairs, and one alone only to make an even number odd.
//! - Only a standby that is heard and has caught up is promoted.
//! - A voter that the majority has not heard for long is replaced by a standby, and stays without one.
//!   One that *left* stays: it comes back. One that is to be expelled, may not vote or is no manager any
//!   more is replaced, or else dropped.
//! - Promotions and removals that belong together are one change (joint consensus): one by one they
//!   would pass through an even set (traps A4).
//! - The leader never removes itself. It hands over first.
//! - Whoever is to be expelled loses its vote first, and is cut off then (`quorate_model::member`).
//! - Nothing is begun that those who are heard could not commit, before and after.
//!
//! # Sources
//! Ongaro: Consensus: Bridging Theory and Practice, 2014, chapter 4; traps A2 c, A4.

use crate::configuration::Configuration;
use quorate_model::id::NodeId;
use quorate_model::member::Vote;
use quorate_model::member::managers::Harm;
use quorate_model::planted::{Bug, planted};
use quorate_model::state::{Health, NodeRecord};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// All that the decision looks at, as the leader sees it.
#[derive(Debug, Clone)]
pub struct Electorate<'a> {
    /// The leader.
    pub me: NodeId,
    pub configuration: &'a Configuration,
    pub nodes: &'a BTreeMap<NodeId, NodeRecord>,
    pub expelled: &'a BTreeSet<NodeId>,
    /// Nodes that the leader hears, itself included.
    pub heard: &'a BTreeSet<NodeId>,
    /// For how long the majority has not heard a node.
    pub unheard_for: &'a BTreeMap<NodeId, Duration>,
    /// Nodes that have nearly as much of the log as the leader.
    pub caught_up: &'a BTreeSet<NodeId>,
    /// A voter that is not heard for this long is replaced.
    pub replace_voter_after: Duration,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Propose the way to this configuration.
    Change(Configuration),
    /// Hand leadership to this node.
    HandOver(NodeId),
    /// Something should be done and cannot be now.
    Wait,
}

/// The next step, with its reason for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub action: Action,
    pub why: String,
}

/// Something that somebody asks for about a voter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish<'a> {
    /// `node remove`.
    Expel(NodeId),
    /// It is to vote no more: [`Vote::Never`], or without the role of a manager.
    StopVoting(NodeId),
    /// `manager stop`: the same for all of these at once, none of which may be the leader.
    Stop(&'a BTreeSet<NodeId>),
    /// [`Vote::Asked`]: `--voter`.
    AskVote(NodeId),
}

/// The next step towards the voters that there should be; `None` when they are as they should be.
#[must_use]
pub fn next(seen: &Electorate<'_>) -> Option<Step> {
    let present = seen.configuration;
    if present.is_joint() {
        return Some(seen.leave_joint());
    }
    if let Some(node) = present.learners.iter().find(|node| seen.expelled.contains(node)) {
        let mut to = present.clone();
        to.learners.remove(node);
        return Some(seen.change(to, format!("{} was expelled", seen.name(*node))));
    }
    if let Some(node) = seen.nodes.keys().find(|node| !present.contains(**node)) {
        let mut to = present.clone();
        to.learners.insert(*node);
        return Some(seen.change(to, format!("{} is new and gets the log", seen.name(*node))));
    }
    let (voters, reasons) = seen.wanted_voters();
    if voters == present.voters {
        return None;
    }
    let why = reasons.join("; ");
    if voters.is_empty() {
        return Some(Step { action: Action::Wait, why: format!("{why}; nobody would vote") });
    }
    if !voters.contains(&seen.me) {
        return Some(seen.hand_over(&voters, why));
    }
    Some(seen.change(present.entering(voters), why))
}

/// Whether a wish may be granted.
///
/// # Errors
/// [`Harm`], for people.
pub fn judge(seen: &Electorate<'_>, wish: Wish<'_>) -> Result<(), Harm> {
    match wish {
        Wish::Expel(node) => may_expel(seen, node),
        Wish::StopVoting(node) => may_stop_voting(seen, &BTreeSet::from([node])),
        Wish::Stop(nodes) if nodes.contains(&seen.me) => Err(Harm::Active { node: seen.name(seen.me) }),
        Wish::Stop(nodes) => may_stop_voting(seen, nodes),
        Wish::AskVote(node) => may_ask_vote(seen, node),
    }
}

/// Those who remain must be able to decide.
fn may_expel(seen: &Electorate<'_>, node: NodeId) -> Result<(), Harm> {
    let mut nodes = seen.nodes.clone();
    if let Some(record) = nodes.get_mut(&node) {
        record.expelling = true;
    }
    seen.may_go(&BTreeSet::from([node]), &Electorate { nodes: &nodes, ..seen.clone() })
}

/// Those who remain must be able to decide.
fn may_stop_voting(seen: &Electorate<'_>, stopped: &BTreeSet<NodeId>) -> Result<(), Harm> {
    let mut nodes = seen.nodes.clone();
    for (_, record) in nodes.iter_mut().filter(|(node, _)| stopped.contains(node)) {
        record.vote = Vote::Never;
    }
    seen.may_go(stopped, &Electorate { nodes: &nodes, ..seen.clone() })
}

/// Not the one that would make the number of voters even (U4).
fn may_ask_vote(seen: &Electorate<'_>, node: NodeId) -> Result<(), Harm> {
    let settled = seen.configuration.left();
    if settled.voters.contains(&node) {
        return Ok(());
    }
    let others = seen.nodes.keys().filter(|other| **other != node && !settled.voters.contains(other));
    let partners = others.filter(|other| seen.may_vote(**other) && !seen.is_away(**other)).count();
    let voters = settled.voters.len() + 1;
    if voters.is_multiple_of(2) && partners == 0 {
        return Err(Harm::EvenVoters { node: seen.name(node), voters });
    }
    Ok(())
}

impl Electorate<'_> {
    /// The voters that there should be, and what speaks for each difference from the present ones.
    fn wanted_voters(&self) -> (BTreeSet<NodeId>, Vec<String>) {
        let present = &self.configuration.voters;
        let mut voters = present.clone();
        let mut reasons = Vec::new();
        let mut standbys = self.standbys();
        for node in present.iter().filter(|node| !self.may_vote(**node)) {
            let because = self.why_not(*node);
            voters.remove(node);
            if standbys.is_empty() {
                reasons.push(format!("{} {because}", self.name(*node)));
            } else {
                let heir = standbys.remove(0);
                voters.insert(heir);
                reasons.push(format!("{} votes in place of {}, which {because}", self.name(heir), self.name(*node)));
            }
        }
        for (node, away) in self.lost() {
            if standbys.is_empty() {
                break;
            }
            let heir = standbys.remove(0);
            voters.remove(&node);
            voters.insert(heir);
            let (heir, node, away) = (self.name(heir), self.name(node), away.as_secs());
            reasons.push(format!("{heir} votes in place of {node}, which was not heard for {away} s"));
        }
        if voters.len().is_multiple_of(2) && !standbys.is_empty() {
            let heir = standbys.remove(0);
            voters.insert(heir);
            reasons.push(format!("{} makes the number of voters odd", self.name(heir)));
        }
        while !voters.len().is_multiple_of(2) && standbys.len() >= 2 {
            let pair: Vec<NodeId> = standbys.drain(..2).collect();
            reasons.push(format!("{} and {} vote from now on, as a pair", self.name(pair[0]), self.name(pair[1])));
            voters.extend(pair);
        }
        if voters.len().is_multiple_of(2)
            && let Some(node) = self.most_dispensable(&voters)
        {
            voters.remove(&node);
            reasons.push(format!("{} stands by, so that the number of voters is odd", self.name(node)));
        }
        (voters, reasons)
    }

    /// Who could vote at once, whom somebody asked for first.
    fn standbys(&self) -> Vec<NodeId> {
        let mut ready: Vec<NodeId> = self
            .configuration
            .learners
            .iter()
            .copied()
            .filter(|node| self.may_vote(*node) && !self.is_away(*node) && self.heard.contains(node))
            .filter(|node| self.caught_up.contains(node) || planted(Bug::PromotedBehind))
            .collect();
        ready.sort_by_key(|node| (self.nodes.get(node).map(|record| record.vote) != Some(Vote::Asked), *node));
        ready
    }

    /// Voters that were not heard for too long, the longest first.
    fn lost(&self) -> Vec<(NodeId, Duration)> {
        let too_long = |node: &NodeId| self.unheard_for.get(node).filter(|away| **away >= self.replace_voter_after);
        let left = |node: &NodeId| self.nodes.get(node).is_some_and(|record| record.health == Health::Left);
        let voters = self.configuration.voters.iter();
        let mut lost: Vec<(NodeId, Duration)> = voters
            .filter(|node| **node != self.me && self.may_vote(**node) && !left(node) && !self.heard.contains(node))
            .filter_map(|node| Some((*node, *too_long(node)?)))
            .collect();
        lost.sort_by_key(|(node, away)| (Reverse(*away), *node));
        lost
    }

    /// Whom an even set misses least: one that is not heard rather than one that is, never the leader.
    fn most_dispensable(&self, voters: &BTreeSet<NodeId>) -> Option<NodeId> {
        let others = voters.iter().filter(|node| **node != self.me);
        let asked = |node: &NodeId| self.nodes.get(node).is_some_and(|record| record.vote == Vote::Asked);
        others.copied().min_by_key(|node| (self.heard.contains(node), asked(node), Reverse(*node)))
    }

    /// A voter without a record has only not said yet who it is.
    fn may_vote(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_none_or(NodeRecord::may_vote)
    }

    fn is_away(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_none_or(|record| record.health != Health::Joined)
    }

    fn why_not(&self, node: NodeId) -> &'static str {
        match self.nodes.get(&node) {
            Some(record) if record.expelling => "is to be expelled",
            Some(record) if record.vote == Vote::Never => "is not to vote",
            Some(_) | None => "is no manager any more",
        }
    }

    fn leave_joint(&self) -> Step {
        let voters = &self.configuration.voters;
        let why = "both sets of voters know of the change".to_owned();
        if !voters.contains(&self.me) {
            return self.hand_over(voters, why);
        }
        self.change(self.configuration.left(), why)
    }

    /// One of `voters` is to lead, since this node will not vote any more.
    fn hand_over(&self, voters: &BTreeSet<NodeId>, why: String) -> Step {
        let able = |node: &&NodeId| {
            self.configuration.votes(**node) && self.heard.contains(node) && self.caught_up.contains(node)
        };
        match voters.iter().find(able) {
            Some(heir) => {
                let why = format!("{} is to lead first: {why}", self.name(*heir));
                Step { action: Action::HandOver(*heir), why }
            }
            // None of the new voters votes yet: they come in beside the leader, and it goes afterwards.
            None if !self.configuration.is_joint() && voters.iter().any(|node| !self.configuration.votes(*node)) => {
                let both = self.configuration.entering(voters.clone());
                self.change(both, why)
            }
            None => Step { action: Action::Wait, why: format!("{why}; nobody who votes then could lead now") },
        }
    }

    /// The change, unless those who are heard could not commit it.
    fn change(&self, to: Configuration, why: String) -> Step {
        if self.configuration.is_majority(self.heard) && to.is_majority(self.heard) {
            return Step { action: Action::Change(to), why };
        }
        Step { action: Action::Wait, why: format!("{why}; too few of the voters answer to change that now") }
    }

    /// Whether the cluster as it would be `after` these nodes' end can go on without their votes.
    fn may_go(&self, gone: &BTreeSet<NodeId>, after: &Electorate<'_>) -> Result<(), Harm> {
        let settled = self.configuration.left();
        if !gone.iter().any(|node| self.configuration.votes(*node)) {
            return Ok(());
        }
        let names = || gone.iter().map(|node| self.name(*node)).collect::<Vec<_>>().join(", ");
        let mut others = settled.voters.difference(gone);
        if !others.clone().any(|other| after.may_vote(*other)) && after.standbys().is_empty() {
            return Err(Harm::LastVoter { node: names() });
        }
        let leads = if gone.contains(&self.me) { others.next() } else { None };
        let after = Electorate { configuration: &settled, me: leads.copied().unwrap_or(self.me), ..after.clone() };
        let (voters, _) = after.wanted_voters();
        let step = after.change(settled.entering(voters), String::from("it is a voter"));
        match step.action {
            Action::Wait => Err(Harm::LosesMajority { node: names(), why: step.why }),
            Action::Change(_) | Action::HandOver(_) => Ok(()),
        }
    }

    fn name(&self, node: NodeId) -> String {
        self.nodes.get(&node).map_or_else(|| node.to_string(), |record| record.identity.name.clone())
    }
}

#[cfg(test)]
mod tests;
