//! Whose acknowledgements count.

use quorate_model::id::{LogIndex, NodeId};
use std::collections::BTreeSet;

/// The voters as of one entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Electorate {
    /// The entry that brought them; 0 for those with whom the cluster began.
    pub index: LogIndex,
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: &[u128]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId::from_u128).collect()
    }

    #[test]
    fn while_voters_change_both_halves_are_asked() {
        let mut electorate = Electorate { index: LogIndex(0), voters: nodes(&[1, 2, 3]), outgoing: nodes(&[]) };
        assert!(electorate.is_majority(&nodes(&[1, 2])));
        assert!(!electorate.is_majority(&nodes(&[1, 8, 9])));
        electorate.outgoing = nodes(&[3, 4, 5]);
        assert!(!electorate.is_majority(&nodes(&[1, 2, 3])));
        assert!(electorate.is_majority(&nodes(&[1, 3, 4])));
    }

    #[test]
    fn nobody_is_no_majority() {
        let electorate = Electorate { index: LogIndex(0), voters: nodes(&[]), outgoing: nodes(&[]) };
        assert!(!electorate.is_majority(&nodes(&[1])));
    }
}
