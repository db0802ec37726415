//! A node that is no member any more, and lives on.
//!
//! The entry that expels it may never reach it: everybody ends the connections with it. Who refuses it
//! says why, under a certificate of the cluster's authority, and that is all that it hears. Its replicas
//! run elsewhere by then, so what it runs itself would run twice; it stops them.
//!
//! A node that was away while the cluster's authority was exchanged cannot be told even that: it believes
//! none of those who could say it. It sees that the others are strangers to it. When they are so many that
//! nobody can be elected without them, no leader will ever be heard, and it stops what it runs as well:
//! whoever was expelled before the rotation, as a rotation is advised then, is in no other case.
//!
//! # Invariants
//! - Nothing stops while this node hears a leader: a recovery may have been a mistake, and whoever it gave
//!   up may still be the majority.
//! - A leader that is heard ends it: then what the leader assigns counts again.
//! - Strangers that leave a majority of the voters, in each of their sets, stop nothing: whoever answers in
//!   place of a few must not be able to.

use crate::configuration::Configuration;
use quorate_model::id::NodeId;
use quorate_model::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// No leader for this long, and none will come. Elections take a second or two.
const WITHOUT_LEADER: Duration = Duration::from_secs(10);

/// What a node knows of its being no member.
#[derive(Debug, Default)]
pub(crate) struct Outcast {
    /// By whom it was told last that it was expelled, and since when it is told so without hearing a leader.
    told: Option<(NodeId, Timestamp)>,
    /// Nodes of another authority, each since when it is one without a leader being heard.
    strangers: BTreeMap<NodeId, Timestamp>,
}

impl Outcast {
    /// A node of the cluster says that this one was expelled. Returns whether that is news.
    pub(crate) fn told(&mut self, now: Timestamp, by: NodeId) -> bool {
        let news = self.told.is_none();
        let since = self.told.map_or(now, |(_, since)| since);
        self.told = Some((by, since));
        news
    }

    /// A node and this one have certificates of different authorities, and do not believe each other.
    /// Returns whether that is news.
    pub(crate) fn is_stranger(&mut self, now: Timestamp, node: NodeId) -> bool {
        let news = !self.strangers.contains_key(&node);
        self.strangers.entry(node).or_insert(now);
        news
    }

    /// They believe each other.
    pub(crate) fn meets(&mut self, node: NodeId) {
        self.strangers.remove(&node);
    }

    /// Who says that it was expelled, as long as no leader is heard.
    pub(crate) fn by(&self) -> Option<NodeId> {
        self.told.map(|(by, _)| by)
    }

    /// Nodes of another authority, if nobody can be elected without them.
    pub(crate) fn strangers(&self, configuration: &Configuration) -> BTreeSet<NodeId> {
        // As nearly always; this is asked at every turn.
        if self.strangers.is_empty() {
            return BTreeSet::new();
        }
        let strangers: BTreeSet<NodeId> = self.strangers.keys().copied().collect();
        let rest: BTreeSet<NodeId> = configuration.nodes().difference(&strangers).copied().collect();
        let too_many = configuration.is_known() && !configuration.is_majority(&rest);
        if too_many { strangers } else { BTreeSet::new() }
    }

    /// Whether what runs here must end. `leader` is when this node heard from one last.
    pub(crate) fn is_out(&mut self, now: Timestamp, leader: Option<Timestamp>, configuration: &Configuration) -> bool {
        let later = |since: Timestamp| leader.is_some_and(|heard| heard > since);
        self.told = self.told.filter(|(_, since)| !later(*since));
        self.strangers.retain(|_, since| !later(*since));
        let long = |since: Timestamp| now.since(since) >= WITHOUT_LEADER;
        if self.told.is_some_and(|(_, since)| long(since)) {
            return true;
        }
        let strangers = self.strangers(configuration);
        !strangers.is_empty() && strangers.iter().all(|node| long(self.strangers[node]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp(Duration::from_secs(seconds))
    }

    fn of(voters: &[u128]) -> Configuration {
        Configuration::of(voters.iter().copied().map(NodeId::from_u128).collect())
    }

    #[test]
    fn one_that_is_told_so_and_hears_no_leader_is_out_after_a_while() {
        let mut outcast = Outcast::default();
        let all = of(&[1, 2, 3]);
        assert!(!outcast.is_out(at(100), None, &all));
        assert!(outcast.told(at(100), NodeId::from_u128(1)));
        assert!(!outcast.told(at(105), NodeId::from_u128(2)), "it is told again and again");
        assert!(!outcast.is_out(at(109), Some(at(99)), &all));
        assert!(outcast.is_out(at(110), Some(at(99)), &all));
        assert_eq!(outcast.by(), Some(NodeId::from_u128(2)));
    }

    #[test]
    fn one_that_hears_a_leader_goes_on_whatever_others_say() {
        let (mut outcast, all) = (Outcast::default(), of(&[1, 2, 3]));
        outcast.told(at(100), NodeId::from_u128(1));
        assert!(!outcast.is_out(at(200), Some(at(150)), &all));
        assert_eq!(outcast.by(), None);
        outcast.told(at(200), NodeId::from_u128(1));
        assert!(!outcast.is_out(at(205), Some(at(150)), &all));
    }

    #[test]
    fn strangers_without_whom_nobody_can_be_elected_end_it_after_a_while_and_fewer_never() {
        let (mut outcast, all) = (Outcast::default(), of(&[1, 2, 3]));
        let [one, two] = [1, 2].map(NodeId::from_u128);
        assert!(outcast.is_stranger(at(100), one));
        assert!(!outcast.is_stranger(at(101), one), "it is so again and again");
        assert!(!outcast.is_out(at(1_000), None, &all), "the other two could elect");
        assert!(outcast.strangers(&all).is_empty());
        outcast.is_stranger(at(1_000), two);
        assert_eq!(outcast.strangers(&all), BTreeSet::from([one, two]));
        assert!(!outcast.is_out(at(1_009), None, &all));
        assert!(outcast.is_out(at(1_010), None, &all));
        // While voters change, a majority of each set is needed.
        let joint = Configuration { outgoing: all.voters.clone(), ..of(&[3, 4, 5, 6, 7]) };
        assert!(outcast.is_out(at(1_010), None, &joint));
        assert!(!outcast.is_out(at(1_010), None, &of(&[1, 2, 3, 4, 5])), "three could elect");
        assert!(!outcast.is_out(at(1_010), None, &Configuration::default()), "it knows nobody yet");
        outcast.meets(two);
        assert!(!outcast.is_out(at(1_010), None, &all));
    }

    #[test]
    fn a_leader_that_is_heard_ends_what_strangers_began() {
        let (mut outcast, all) = (Outcast::default(), of(&[1, 2, 3]));
        for node in [1, 2] {
            outcast.is_stranger(at(100), NodeId::from_u128(node));
        }
        assert!(outcast.is_out(at(110), Some(at(99)), &all));
        assert!(!outcast.is_out(at(120), Some(at(115)), &all));
        assert!(outcast.strangers(&all).is_empty());
    }
}
