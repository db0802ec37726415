//! What a node shows of itself and of what it knows.

use super::{Leaving, Node, PeerView};
use crate::configuration::Configuration;
use crate::electorate;
use crate::event::Now;
use crate::sight::Sight;
use quorate_membership::{Membership as _, Opinion};
use quorate_model::command::Refusal;
use quorate_model::id::{LogIndex, NodeId, Term};
use quorate_model::state::ClusterState;
use quorate_model::time::Timestamp;
use quorate_scheduler::Held;
use std::collections::{BTreeMap, BTreeSet};

impl Node {
    #[must_use]
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    #[must_use]
    pub fn committed(&self) -> LogIndex {
        self.consensus.committed()
    }

    #[must_use]
    pub fn term(&self) -> Term {
        self.consensus.term()
    }

    /// The node that leads, as far as this one knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.consensus.leader().and_then(|id| self.book.by_raft_id(id))
    }

    #[must_use]
    pub fn leads(&self) -> bool {
        self.consensus.leads()
    }

    /// Who votes and who stands by, as far as this node has been told.
    #[must_use]
    pub fn configuration(&self) -> &Configuration {
        self.consensus.configuration()
    }

    /// Whether consensus counts exactly those whom [`configuration`](Self::configuration) names, or that is
    /// not known yet. Always so: this is for simulations, which do not believe it.
    #[must_use]
    pub fn counts_as_configured(&self) -> bool {
        self.consensus.counts_as_configured()
    }

    /// The nodes that vote; the new ones while voters change.
    #[must_use]
    pub fn voters(&self) -> &BTreeSet<NodeId> {
        &self.configuration().voters
    }

    /// What this node, leading, is about to change about the voters, or why it cannot.
    #[must_use]
    pub fn electorate(&self) -> Option<&electorate::Step> {
        self.electorate.as_ref()
    }

    /// What the leader does about the voters next: if this node leads, its own mind, and otherwise what it
    /// would do in the leader's place.
    #[must_use]
    pub fn voters_next(&self, now: Now) -> Option<electorate::Step> {
        if self.leads() {
            return self.electorate.clone();
        }
        self.leader()?;
        self.with_electorate(now, electorate::next)
    }

    /// Whether somebody wants this run of the node to end and another to begin.
    #[must_use]
    pub fn restart_asked(&self) -> bool {
        self.state.nodes.get(&self.me.id).is_some_and(|me| me.restart == Some(self.boot))
    }

    /// The other nodes of the cluster and where their links may be found.
    #[must_use]
    pub fn peers_to_call(&self) -> &BTreeMap<NodeId, Vec<String>> {
        self.book.peers()
    }

    /// Whether other nodes may be there, so that this one has to be reached by them (K6). Before it has the
    /// cluster's records, it knows them from what it was told.
    #[must_use]
    pub fn coordinates(&self) -> bool {
        self.state.ha() || !self.book.peers().is_empty()
    }

    /// Whether this node hears another one.
    #[must_use]
    pub fn hears(&self, node: NodeId) -> bool {
        node == self.me.id || self.membership.opinion(node) == Opinion::Heard
    }

    /// How this node sees another one, for people and gateways.
    #[must_use]
    pub fn sight(&self, node: NodeId) -> Sight {
        let opinion = match self.membership.opinion(node) {
            _ if node == self.me.id => Opinion::Heard,
            Opinion::Unheard { since } if self.last_flush.since(since) < self.lost_link_kept_back => Opinion::Heard,
            opinion => opinion,
        };
        let generation = self.state.nodes.get(&node).map_or(0, |record| record.generation);
        self.sights.of(node, opinion, generation)
    }

    /// What nodes said about themselves last, by node; this one's too.
    #[must_use]
    pub fn peers(&self) -> &BTreeMap<NodeId, PeerView> {
        &self.peers
    }

    /// When this node last heard from a leader; now, if it leads itself.
    #[must_use]
    pub fn leader_heard(&self, now: Timestamp) -> Option<Timestamp> {
        if self.leads() { Some(now) } else { self.leader_heard }
    }

    /// Whether this node was told to end, and nothing is left to wait for.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.leaving == Leaving::Done
    }

    /// Why the cluster does not have this node: there is no place for it, or it was expelled.
    #[must_use]
    pub fn refused(&self) -> Option<&Refusal> {
        self.refused.as_ref().map(|(_, why)| why)
    }

    /// The node that says that this one was expelled, as long as no leader is heard.
    #[must_use]
    pub fn expelled_by(&self) -> Option<NodeId> {
        self.outcast.by()
    }

    /// Nodes whose certificates are of an authority that this node does not believe, or that do not know
    /// the one of its own, if they are so many that no leader can be elected without them: the authority was
    /// exchanged while this node was away.
    #[must_use]
    pub fn strangers(&self) -> BTreeSet<NodeId> {
        self.outcast.strangers(self.configuration())
    }

    /// What the scheduler does not do, and why.
    #[must_use]
    pub fn held(&self) -> &[Held] {
        &self.plan.held
    }

    /// Digest comparisons made since the start.
    #[must_use]
    pub fn digests_compared(&self) -> u64 {
        self.digests.compared()
    }

    /// How many microseconds a peer's clock is ahead of this node's, as of what it said last.
    /// `None` when it is not heard, and for this node itself.
    #[must_use]
    pub fn clock_ahead(&self, peer: NodeId, now: Now) -> Option<i64> {
        self.clocks.offset(peer, now)
    }
}
