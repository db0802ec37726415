//! The other nodes: their numbers in consensus and where their links may be found.
//!
//! Nodes are known from their records, from the configuration, from what this node was told at its
//! start, and from calling here. The last matters for one that was away for long: who leads now may
//! have joined meanwhile, and only its call says how to answer it.
//!
//! # Invariants
//! - An expelled node is in none of it.
//! - At most [`MET_MAX`] nodes are known from their calls alone.

use crate::configuration::Configuration;
use quorate_model::id::NodeId;
use quorate_model::state::ClusterState;
use std::collections::BTreeMap;

/// More than a cluster has nodes; a bound against callers that make up ids.
const MET_MAX: usize = 1_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct AddressBook {
    me: NodeId,
    contacts: BTreeMap<NodeId, String>,
    met: BTreeMap<NodeId, String>,
    peers: BTreeMap<NodeId, Vec<String>>,
    by_raft_id: BTreeMap<u64, NodeId>,
    announced: bool,
}

impl AddressBook {
    pub(crate) fn new(me: NodeId, contacts: BTreeMap<NodeId, String>) -> AddressBook {
        let (met, peers) = (BTreeMap::new(), BTreeMap::new());
        AddressBook { me, contacts, met, peers, by_raft_id: BTreeMap::new(), announced: false }
    }

    /// A node called from there. Returns whether that is news.
    pub(crate) fn met(&mut self, node: NodeId, link: String) -> bool {
        if node == self.me || (self.met.len() >= MET_MAX && !self.met.contains_key(&node)) {
            return false;
        }
        self.met.insert(node, link.clone()) != Some(link)
    }

    /// Puts together who is known now.
    pub(crate) fn refresh(&mut self, configuration: &Configuration, state: &ClusterState) {
        let expelled = &state.members.expelled;
        self.met.retain(|node, _| !expelled.contains(node));
        let mut peers: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
        let told = self.contacts.iter().chain(&self.met).map(|(node, link)| (*node, link.as_str()));
        let recorded = state.nodes.iter().map(|(node, record)| (*node, record.identity.link.as_str()));
        let counted = configuration.nodes().into_iter().map(|node| (node, ""));
        for (node, link) in told.chain(recorded).chain(counted) {
            if node == self.me || expelled.contains(&node) {
                continue;
            }
            let links = peers.entry(node).or_default();
            if !link.is_empty() && !links.iter().any(|known| known == link) {
                links.push(link.to_owned());
            }
        }
        self.by_raft_id = peers.keys().chain([&self.me]).map(|node| (node.raft_id(), *node)).collect();
        self.peers = peers;
    }

    /// The others and their links, the likeliest first.
    pub(crate) fn peers(&self) -> &BTreeMap<NodeId, Vec<String>> {
        &self.peers
    }

    pub(crate) fn is_peer(&self, node: NodeId) -> bool {
        self.peers.contains_key(&node)
    }

    pub(crate) fn by_raft_id(&self, number: u64) -> Option<NodeId> {
        self.by_raft_id.get(&number).copied()
    }

    /// Whether anybody was told of the peers yet.
    pub(crate) fn announced(&self) -> bool {
        self.announced
    }

    pub(crate) fn announce(&mut self) -> BTreeMap<NodeId, Vec<String>> {
        self.announced = true;
        self.peers.clone()
    }
}
