//! Who decides, for people: how many managers may be lost, what happens while the voters change, and what
//! the leader does about them next.

use quorate_api::view::{Standing, VotersNext, VotersStep};
use quorate_model::id::NodeId;
use quorate_model::member::Vote;
use quorate_model::state::{NodeRecord, Role};
use quorate_node::electorate::{Action, Step};
use quorate_node::{Configuration, Node, Now};
use std::collections::BTreeSet;

/// How much the voters can bear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Electors {
    pub(super) voters: u32,
    /// Of those, the ones that are heard.
    pub(super) joined: u32,
    /// How many of them make a majority.
    pub(super) needed: u32,
    /// Whether those that are heard are a majority wherever one is needed.
    pub(super) can_decide: bool,
    pub(super) can_lose: u32,
    pub(super) can_lose_when_up: u32,
}

impl Electors {
    pub(super) fn of(node: &Node) -> Electors {
        let configuration = node.configuration();
        let heard = configuration.nodes().into_iter().filter(|id| node.hears(*id)).collect();
        Electors::count(configuration, &heard)
    }

    /// While two sets count, the one that can bear less decides.
    fn count(configuration: &Configuration, heard: &BTreeSet<NodeId>) -> Electors {
        let spare = |half: &BTreeSet<NodeId>| half.intersection(heard).count().saturating_sub(majority(half));
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let voters = &configuration.voters;
        Electors {
            voters: number(voters.len()),
            joined: number(voters.intersection(heard).count()),
            needed: number(majority(voters)),
            can_decide: configuration.is_majority(heard),
            can_lose: number(configuration.halves().map(spare).min().unwrap_or(0)),
            can_lose_when_up: number(voters.len().saturating_sub(majority(voters))),
        }
    }
}

fn majority(voters: &BTreeSet<NodeId>) -> usize {
    voters.len() / 2 + 1
}

/// Who decides while the voters change; `None` when they do not.
pub(super) fn change(configuration: &Configuration, name: impl Fn(NodeId) -> String) -> Option<String> {
    if !configuration.is_joint() {
        return None;
    }
    let names = |set: &BTreeSet<NodeId>| set.iter().map(|id| name(*id)).collect::<Vec<_>>().join(", ");
    let (from, to) = (names(&configuration.outgoing), names(&configuration.voters));
    Some(format!("the voters change from {from} to {to}; until all know it, a majority of each decides"))
}

/// What the leader does next, for people.
pub(super) fn next(node: &Node, now: Now) -> Option<VotersNext> {
    let Step { action, why } = node.voters_next(now)?;
    let step = match action {
        Action::Change(_) => VotersStep::Change,
        Action::HandOver(_) => VotersStep::HandOver,
        Action::Wait => VotersStep::Wait,
    };
    Some(VotersNext { step, why })
}

/// A manager's part in decisions; `None` for other nodes.
pub(super) fn standing(record: &NodeRecord, configuration: &Configuration) -> Option<Standing> {
    if !record.identity.roles.contains(&Role::Manager) {
        return None;
    }
    Some(match record.vote {
        Vote::Never => Standing::Stopped,
        Vote::Auto | Vote::Asked if configuration.voters.contains(&record.identity.id) => Standing::Voter,
        Vote::Auto | Vote::Asked => Standing::Standby,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u128]) -> BTreeSet<NodeId> {
        numbers.iter().map(|number| NodeId::from_u128(number << 64)).collect()
    }

    #[test]
    fn u4_losses_that_are_tolerated_now_and_when_all_are_up() {
        for (managers, can_lose) in (1..=9).zip([0, 0, 1, 1, 2, 2, 3, 3, 4]) {
            // An even number is made odd by letting one stand by.
            let voters = if managers % 2 == 0 { managers - 1 } else { managers };
            let all: Vec<u128> = (1..=voters).collect();
            let electors = Electors::count(&Configuration::of(ids(&all)), &ids(&all));
            assert_eq!((electors.can_lose, electors.can_lose_when_up), (can_lose, can_lose), "{managers} managers");
        }
        let electors = Electors::count(&Configuration::of(ids(&[1, 2, 3, 4, 5])), &ids(&[1, 2, 3, 4]));
        assert_eq!((electors.joined, electors.can_lose, electors.can_lose_when_up), (4, 1, 2));
        let electors = Electors::count(&Configuration::of(ids(&[1, 2, 3])), &ids(&[1]));
        assert_eq!((electors.can_decide, electors.needed, electors.can_lose), (false, 2, 0));
    }

    #[test]
    fn while_the_voters_change_the_weaker_set_says_how_many_may_be_lost() {
        let joint = Configuration::of(ids(&[1])).entering(ids(&[1, 2, 3]));
        let electors = Electors::count(&joint, &ids(&[1, 2, 3]));
        assert_eq!((electors.can_lose, electors.can_lose_when_up), (0, 1));
        let words = change(&joint, |id| format!("n{}", id.raft_id()));
        let expected = "the voters change from n1 to n1, n2, n3; until all know it, a majority of each decides";
        assert_eq!(words.as_deref(), Some(expected));
        assert_eq!(change(&joint.left(), |id| id.to_string()), None);
    }
}
