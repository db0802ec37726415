//! How a node sees another one, for people and gateways: the one place where that rule is.
//!
//! | link to it | gossip says | it is seen as |
//! |---|---|---|
//! | any | left, in its newest generation | left |
//! | open, and heard | unreachable or dead, and it has said nothing on its link since | unreachable |
//! | open, and heard | anything else, or nothing | present |
//! | lost, or silent | anything else, or nothing | unreachable |
//! | there never was one | alive | present |
//!
//! What a peer says on its own link is worth more than what others say of it: a word that comes after
//! the rumor ends it. So a network that swallows datagrams makes nobody unreachable, while a server
//! that lost its power is shown before its silent link is given up.
//!
//! Nothing is decided on this: a node is `down` by the word of a majority about its links alone
//! ([`quorate_membership::Membership::unheard_by_majority`]), and gossip is not asked.

use quorate_membership::Opinion;
use quorate_membership::swim::Rumor;
use quorate_model::id::NodeId;
use std::collections::BTreeMap;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    Present,
    /// It may be cut off, stopped or without power; nothing has been decided.
    Unreachable,
    /// It said that it leaves: its seat is free.
    Left,
}

/// What gossip says and nobody's own word has contradicted.
#[derive(Debug, Default)]
pub(crate) struct Sights {
    rumors: BTreeMap<NodeId, (u64, Rumor)>,
}

impl Sights {
    pub(crate) fn gossip(&mut self, node: NodeId, generation: u64, rumor: Rumor) {
        let known = self.rumors.get(&node).map_or(0, |(generation, _)| *generation);
        if generation >= known {
            self.rumors.insert(node, (generation, rumor));
        }
    }

    /// The node said something on its link. Returns whether it is seen differently now.
    pub(crate) fn spoke(&mut self, node: NodeId) -> bool {
        match self.rumors.get_mut(&node) {
            Some((_, rumor @ (Rumor::Unreachable | Rumor::Dead))) => {
                *rumor = Rumor::Alive;
                true
            }
            // Who leaves goes on speaking until its process has ended.
            Some((_, Rumor::Alive | Rumor::Left)) | None => false,
        }
    }

    /// A link to the node was opened: whatever was said is of before.
    pub(crate) fn linked(&mut self, node: NodeId) {
        self.rumors.remove(&node);
    }

    /// `generation`: the newest one that consensus has counted.
    pub(crate) fn of(&self, node: NodeId, opinion: Opinion, generation: u64) -> Sight {
        let rumor = self.rumors.get(&node).filter(|(said_of, _)| *said_of >= generation).map(|(_, rumor)| *rumor);
        match (opinion, rumor) {
            (_, Some(Rumor::Left)) => Sight::Left,
            (Opinion::Heard, Some(Rumor::Unreachable | Rumor::Dead)) => Sight::Unreachable,
            (Opinion::Heard, Some(Rumor::Alive) | None) | (Opinion::Unknown, Some(Rumor::Alive)) => Sight::Present,
            (Opinion::Unheard { .. }, Some(Rumor::Alive | Rumor::Unreachable | Rumor::Dead) | None)
            | (Opinion::Unknown, Some(Rumor::Unreachable | Rumor::Dead) | None) => Sight::Unreachable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::time::Timestamp;

    const HEARD: Opinion = Opinion::Heard;
    const UNHEARD: Opinion = Opinion::Unheard { since: Timestamp(std::time::Duration::ZERO) };
    const NEVER: Opinion = Opinion::Unknown;

    fn node() -> NodeId {
        NodeId::from_u128(2)
    }

    /// After `rumors` of generation 4, in a cluster that has counted `generation` starts.
    fn seen(rumors: &[Rumor], opinion: Opinion, generation: u64) -> Sight {
        let mut sights = Sights::default();
        for rumor in rumors {
            sights.gossip(node(), 4, *rumor);
        }
        sights.of(node(), opinion, generation)
    }

    #[test]
    fn a_lost_link_or_gossip_makes_a_node_unreachable() {
        assert_eq!(seen(&[], HEARD, 4), Sight::Present);
        assert_eq!(seen(&[], UNHEARD, 4), Sight::Unreachable);
        for rumor in [Rumor::Unreachable, Rumor::Dead] {
            assert_eq!(seen(&[rumor], HEARD, 4), Sight::Unreachable);
            assert_eq!(seen(&[rumor, Rumor::Alive], HEARD, 4), Sight::Present);
        }
        assert_eq!(seen(&[Rumor::Alive], UNHEARD, 4), Sight::Unreachable);
    }

    #[test]
    fn a_node_that_never_had_a_link_is_seen_by_gossip_alone() {
        assert_eq!(seen(&[], NEVER, 4), Sight::Unreachable);
        assert_eq!(seen(&[Rumor::Alive], NEVER, 4), Sight::Present);
        assert_eq!(seen(&[Rumor::Unreachable], NEVER, 4), Sight::Unreachable);
    }

    #[test]
    fn rumors_of_an_earlier_life_say_nothing() {
        for rumor in [Rumor::Unreachable, Rumor::Dead, Rumor::Left] {
            assert_eq!(seen(&[rumor], HEARD, 5), Sight::Present);
        }
        let mut sights = Sights::default();
        sights.gossip(node(), 5, Rumor::Alive);
        sights.gossip(node(), 4, Rumor::Left);
        assert_eq!(sights.of(node(), HEARD, 4), Sight::Present);
    }

    #[test]
    fn a_peers_own_word_ends_what_others_said_before_it_but_not_its_farewell() {
        let mut sights = Sights::default();
        sights.gossip(node(), 4, Rumor::Unreachable);
        assert!(sights.spoke(node()));
        assert!(!sights.spoke(node()));
        assert_eq!(sights.of(node(), HEARD, 4), Sight::Present);
        sights.gossip(node(), 4, Rumor::Left);
        assert!(!sights.spoke(node()));
        assert_eq!(sights.of(node(), UNHEARD, 4), Sight::Left);
        sights.linked(node());
        assert_eq!(sights.of(node(), HEARD, 4), Sight::Present);
    }
}
