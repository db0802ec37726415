//! Whose acknowledgements count.

use quorate_model::id::NodeId;
use std::collections::BTreeSet;

/// The voters as of one entry of the log.
///
/// It is known by who votes and not by the entry: a node that starts, or that got a database instead of a
/// log, knows the voters and not the entry that brought them. That the same voters may come back later does
/// no harm: what a majority of them acknowledged before was acknowledged to the same voters, and the others
/// that voted in between counted from their coming (see the crate's first page).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Electorate {
    pub voters: BTreeSet<NodeId>,
    /// While voters change, those of before: a majority of both is needed.
    pub outgoing: BTreeSet<NodeId>,
}

impl Electorate {
    /// Whether these are enough to decide.
    #[must_use]
    pub fn is_majority(&self, nodes: &BTreeSet<NodeId>) -> bool {
        let most = |of: &BTreeSet<NodeId>| of.intersection(nodes).count() > of.len() / 2;
        most(&self.voters) && (self.outgoing.is_empty() || most(&self.outgoing))
    }

    /// Whether the node's acknowledgement counts.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node)
    }

    /// All whose acknowledgements count.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.voters.union(&self.outgoing).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: &[u128]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId::from_u128).collect()
    }

    #[test]
    fn while_voters_change_both_halves_are_asked() {
        let mut electorate = Electorate { voters: nodes(&[1, 2, 3]), outgoing: nodes(&[]) };
        assert!(electorate.is_majority(&nodes(&[1, 2])));
        assert!(!electorate.is_majority(&nodes(&[1, 8, 9])));
        electorate.outgoing = nodes(&[3, 4, 5]);
        assert!(!electorate.is_majority(&nodes(&[1, 2, 3])));
        assert!(electorate.is_majority(&nodes(&[1, 3, 4])));
        assert_eq!(electorate.nodes().count(), 5);
    }

    #[test]
    fn nobody_is_no_majority() {
        assert!(!Electorate::default().is_majority(&nodes(&[1])));
    }
}
