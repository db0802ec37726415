//! Who votes and who stands by: the configuration that consensus counts with.
//!
//! While voters change there are two sets: the new one, and the old one ([`Configuration::outgoing`]).
//! An entry is then committed, and a leader elected, only by a majority of each (joint consensus), so
//! at no moment can two majorities exist that do not meet.
//!
//! A configuration is part of the log like any other decision. It is in force from the moment at which
//! its entry is committed and handed out for applying, and it lies in `system` as of the applied index,
//! as JSON. The first clusters kept only the voters, as a list: that is still read.
//!
//! # Invariants
//! - A node is in one of voters (of either set) and learners, not in both.
//! - `learners_next` are outgoing voters that are in no other set, and empty without outgoing ones.
//!
//! # Sources
//! Ongaro: Consensus: Bridging Theory and Practice, 2014, chapter 4.3.

use quorate_model::id::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Configuration {
    pub voters: BTreeSet<NodeId>,
    /// The voters before, while both sets count.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub outgoing: BTreeSet<NodeId>,
    /// Standbys: they get the log and are counted nowhere.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub learners: BTreeSet<NodeId>,
    /// Outgoing voters that stand by once the old set is left.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub learners_next: BTreeSet<NodeId>,
}

/// The bytes are no configuration.
#[derive(Debug, thiserror::Error)]
#[error("the voters are not kept in a form that this version knows")]
pub struct UnreadableConfiguration(#[source] serde_json::Error);

#[derive(Deserialize)]
#[serde(untagged)]
enum Kept {
    Voters(BTreeSet<NodeId>),
    Whole(Configuration),
}

impl Configuration {
    /// The configuration with which a cluster begins.
    #[must_use]
    pub fn of(voters: BTreeSet<NodeId>) -> Configuration {
        Configuration { voters, ..Configuration::default() }
    }

    /// What lies beside the database. No bytes at all: a node that has not been told yet.
    ///
    /// # Errors
    /// [`UnreadableConfiguration`].
    pub fn read(bytes: &[u8]) -> Result<Configuration, UnreadableConfiguration> {
        if bytes.is_empty() {
            return Ok(Configuration::default());
        }
        serde_json::from_slice(bytes).map_err(UnreadableConfiguration).map(|kept| match kept {
            Kept::Voters(voters) => Configuration::of(voters),
            Kept::Whole(configuration) => configuration,
        })
    }

    /// The form that [`read`](Self::read) takes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("ids are strings")
    }

    /// Whether this node has been told who votes.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !self.voters.is_empty()
    }

    /// Whether an old and a new set of voters count.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// The sets of which a majority is needed each.
    pub fn halves(&self) -> impl Iterator<Item = &BTreeSet<NodeId>> {
        [&self.voters, &self.outgoing].into_iter().filter(|half| !half.is_empty())
    }

    /// Whether these nodes are a majority wherever one is needed.
    #[must_use]
    pub fn is_majority(&self, nodes: &BTreeSet<NodeId>) -> bool {
        self.is_known() && self.halves().all(|half| half.intersection(nodes).count() * 2 > half.len())
    }

    /// Whether the node's vote counts, in either set.
    #[must_use]
    pub fn votes(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node)
    }

    /// Whether the node gets the log.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.votes(node) || self.learners.contains(&node)
    }

    /// All nodes that get the log, in order.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        self.voters.iter().chain(&self.outgoing).chain(&self.learners).copied().collect()
    }

    /// This one after its old set of voters was left. The same when there is none.
    #[must_use]
    pub fn left(&self) -> Configuration {
        Configuration {
            voters: self.voters.clone(),
            learners: self.learners.union(&self.learners_next).copied().collect(),
            ..Configuration::default()
        }
    }

    /// This one on its way to other voters. Those that vote no more stand by.
    #[must_use]
    pub fn entering(&self, voters: BTreeSet<NodeId>) -> Configuration {
        Configuration {
            learners_next: self.voters.difference(&voters).copied().collect(),
            learners: self.learners.difference(&voters).copied().collect(),
            outgoing: self.voters.clone(),
            voters,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u128]) -> BTreeSet<NodeId> {
        numbers.iter().map(|number| NodeId::from_u128(number << 64)).collect()
    }

    #[test]
    fn a_list_of_voters_of_an_old_directory_is_read() {
        let old = serde_json::to_vec(&ids(&[1, 2, 3])).unwrap();
        assert_eq!(Configuration::read(&old).unwrap(), Configuration::of(ids(&[1, 2, 3])));
        assert!(Configuration::read(b"{\"voters\":3}").is_err());
        assert!(!Configuration::read(b"").unwrap().is_known());
    }

    #[test]
    fn a_joint_configuration_survives_being_kept() {
        let joint = Configuration::of(ids(&[1, 2, 3])).entering(ids(&[1, 2, 4]));
        assert_eq!(Configuration::read(&joint.to_bytes()).unwrap(), joint);
        assert_eq!(joint.learners_next, ids(&[3]));
        assert_eq!(joint.left(), Configuration { learners: ids(&[3]), ..Configuration::of(ids(&[1, 2, 4])) });
    }

    #[test]
    fn while_two_sets_count_a_majority_of_each_is_needed() {
        let joint = Configuration::of(ids(&[1, 2, 3])).entering(ids(&[1, 4, 5]));
        assert!(joint.is_majority(&ids(&[1, 2, 4])));
        assert!(!joint.is_majority(&ids(&[1, 2, 3])));
        assert!(!joint.is_majority(&ids(&[1, 4, 5])));
        assert!(!Configuration::default().is_majority(&ids(&[1])), "nobody is no majority");
    }
}
