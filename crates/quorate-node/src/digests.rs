//! Do all nodes hold the same? A digest of every row change, compared at equal indexes.
//!
//! Each node says how far it has applied and the digests of its two databases there. Whoever hears
//! it compares with its own digests at that index: at once when it has been there, later when it
//! comes there. What a difference leads to is decided elsewhere; here it is only found.

use quorate_model::entry::Database;
use quorate_model::id::{LogIndex, NodeId};
use std::collections::{BTreeMap, VecDeque};

/// Own digests kept. A peer that is further behind is compared when it has caught up.
const KEPT: usize = 8_192;

#[derive(Debug, Default)]
pub(crate) struct Digests {
    own: VecDeque<(LogIndex, [u64; 2])>,
    /// The newest word of peers that are ahead of this node.
    ahead: BTreeMap<NodeId, (LogIndex, [u64; 2])>,
    /// Comparisons made; a check that never compared has not checked.
    compared: u64,
}

/// A peer's database differs from ours at an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) node: NodeId,
    pub(crate) database: Database,
    pub(crate) index: LogIndex,
}

impl Digests {
    pub(crate) fn applied(&mut self, index: LogIndex, digests: [u64; 2]) -> Vec<Difference> {
        self.own.push_back((index, digests));
        if self.own.len() > KEPT {
            self.own.pop_front();
        }
        if self.ahead.is_empty() {
            return Vec::new();
        }
        let due: Vec<NodeId> = self.ahead.iter().filter(|(_, (at, _))| *at <= index).map(|(node, _)| *node).collect();
        let mut found = Vec::new();
        for node in due {
            if let Some((at, theirs)) = self.ahead.remove(&node) {
                found.extend(self.compare(node, at, theirs));
            }
        }
        found
    }

    pub(crate) fn heard(&mut self, node: NodeId, index: LogIndex, digests: [u64; 2]) -> Vec<Difference> {
        if self.own.back().is_some_and(|(last, _)| index <= *last) {
            return self.compare(node, index, digests);
        }
        self.ahead.insert(node, (index, digests));
        Vec::new()
    }

    /// A snapshot took this node to another index.
    pub(crate) fn reset(&mut self) {
        self.own.clear();
        self.ahead.clear();
    }

    pub(crate) fn last(&self) -> Option<[u64; 2]> {
        self.own.back().map(|(_, digests)| *digests)
    }

    pub(crate) fn compared(&self) -> u64 {
        self.compared
    }

    fn compare(&mut self, node: NodeId, index: LogIndex, theirs: [u64; 2]) -> Vec<Difference> {
        let Ok(position) = self.own.binary_search_by_key(&index, |(at, _)| *at) else { return Vec::new() };
        self.compared += 1;
        let ours = self.own[position].1;
        Database::ALL
            .into_iter()
            .filter(|database| ours[*database as usize] != theirs[*database as usize])
            .map(|database| Difference { node, database, index })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found_whoever_is_ahead() {
        let node = NodeId::from_u128(9);
        let mut digests = Digests::default();
        assert_eq!(digests.applied(LogIndex(1), [1, 1]), []);
        assert_eq!(digests.heard(node, LogIndex(1), [1, 1]), []);
        let found = digests.heard(node, LogIndex(1), [1, 2]);
        assert_eq!(found, [Difference { node, database: Database::Main, index: LogIndex(1) }]);
        assert_eq!(digests.heard(node, LogIndex(2), [3, 3]), []);
        let found = digests.applied(LogIndex(2), [4, 3]);
        assert_eq!(found, [Difference { node, database: Database::System, index: LogIndex(2) }]);
        assert_eq!(digests.compared(), 3);
    }
}
