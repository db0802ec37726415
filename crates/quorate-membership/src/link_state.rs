//! Membership from links and reports: every node has a link to every other one.
//!
//! Good for the small clusters of today, where a link between each two costs nothing. An ended
//! link is silence at once; a link that hangs is ended by who owns it.

use crate::{Input, Membership, Opinion, REPORT_LIFETIME};
use quorate_model::id::NodeId;
use quorate_model::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// See the module.
#[derive(Debug, Clone)]
pub struct LinkState {
    me: NodeId,
    peers: BTreeMap<NodeId, Peer>,
}

#[derive(Debug, Clone)]
struct Peer {
    /// `None`: the link is open.
    unheard_since: Option<Timestamp>,
    report: Option<Report>,
}

/// What a peer says. Moments are of this node's clock: when the report that said it came.
#[derive(Debug, Clone)]
struct Report {
    at: Timestamp,
    reachable: BTreeSet<NodeId>,
    /// Nodes that the peer does not hear, since the first of its reports without them.
    ///
    /// Holds those that an earlier report had. One that never was there is unheard since `first`.
    lost: BTreeMap<NodeId, Timestamp>,
    /// When the unbroken row of reports began.
    first: Timestamp,
}

impl LinkState {
    #[must_use]
    pub fn new(me: NodeId) -> Self {
        LinkState { me, peers: BTreeMap::new() }
    }

    fn peer(&mut self, now: Timestamp, node: NodeId) -> &mut Peer {
        self.peers.entry(node).or_insert(Peer { unheard_since: Some(now), report: None })
    }

    /// Since when `voter` says that it does not hear `node`. `None`: it hears it, or has no say.
    fn unheard_by(&self, voter: NodeId, node: NodeId, now: Timestamp) -> Option<Timestamp> {
        if voter == node {
            return None;
        }
        if voter == self.me {
            return match self.opinion(node) {
                Opinion::Unheard { since } => Some(since),
                Opinion::Heard | Opinion::Unknown => None,
            };
        }
        let voter = self.peers.get(&voter)?;
        let report = voter.report.as_ref().filter(|report| now.since(report.at) <= REPORT_LIFETIME)?;
        if voter.unheard_since.is_some() || report.reachable.contains(&node) {
            return None;
        }
        Some(report.lost.get(&node).copied().unwrap_or(report.first))
    }
}

impl Report {
    fn first(at: Timestamp, reachable: BTreeSet<NodeId>) -> Report {
        Report { at, reachable, lost: BTreeMap::new(), first: at }
    }

    fn follow(&mut self, at: Timestamp, reachable: BTreeSet<NodeId>) {
        if at.since(self.at) > REPORT_LIFETIME {
            // Nobody knows what the peer heard meanwhile, so its silence about others begins anew.
            *self = Report::first(at, reachable);
            return;
        }
        self.lost.retain(|node, _| !reachable.contains(node));
        self.lost.extend(self.reachable.difference(&reachable).map(|node| (*node, at)));
        self.at = at;
        self.reachable = reachable;
    }
}

impl Membership for LinkState {
    fn step(&mut self, now: Timestamp, input: Input) {
        match input {
            Input::Known(node) | Input::LinkUp(node) | Input::LinkDown(node) | Input::Report { from: node, .. }
                if node == self.me => {}
            Input::Known(node) => {
                self.peer(now, node);
            }
            Input::LinkUp(node) => self.peer(now, node).unheard_since = None,
            Input::LinkDown(node) => {
                // A second end of the same silence does not make it younger.
                self.peer(now, node).unheard_since.get_or_insert(now);
            }
            Input::Report { from, reachable } => {
                let reachable = reachable.into_iter().collect();
                match &mut self.peer(now, from).report {
                    Some(report) => report.follow(now, reachable),
                    none => *none = Some(Report::first(now, reachable)),
                }
            }
            Input::Removed(node) => {
                self.peers.remove(&node);
            }
        }
    }

    fn opinion(&self, node: NodeId) -> Opinion {
        if node == self.me {
            return Opinion::Heard;
        }
        match self.peers.get(&node) {
            None => Opinion::Unknown,
            Some(Peer { unheard_since: None, .. }) => Opinion::Heard,
            Some(Peer { unheard_since: Some(since), .. }) => Opinion::Unheard { since: *since },
        }
    }

    fn view(&self) -> BTreeMap<NodeId, Opinion> {
        self.peers.keys().chain([&self.me]).map(|node| (*node, self.opinion(*node))).collect()
    }

    fn unheard_by_majority(&self, node: NodeId, voters: &BTreeSet<NodeId>, now: Timestamp) -> Option<Duration> {
        if node == self.me {
            return None;
        }
        let mut since: Vec<Timestamp> = voters.iter().filter_map(|voter| self.unheard_by(*voter, node, now)).collect();
        since.sort_unstable();
        // The majority is complete with the voter at this position.
        since.get(voters.len() / 2).map(|since| now.since(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u128) -> NodeId {
        NodeId::from_u128(number)
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp(Duration::from_millis(ms))
    }

    fn ms(ms: u64) -> Option<Duration> {
        Some(Duration::from_millis(ms))
    }

    /// Node 1, with open links to all others up to `last`, at time 0.
    fn linked(last: u128) -> LinkState {
        let mut links = LinkState::new(node(1));
        for peer in 2..=last {
            links.step(at(0), Input::LinkUp(node(peer)));
        }
        links
    }

    fn voters(last: u128) -> BTreeSet<NodeId> {
        (1..=last).map(node).collect()
    }

    fn report(links: &mut LinkState, now: Timestamp, from: u128, reachable: &[u128]) {
        links.step(now, Input::Report { from: node(from), reachable: reachable.iter().copied().map(node).collect() });
    }

    #[test]
    fn the_node_itself_is_always_heard() {
        let mut links = linked(3);
        links.step(at(1), Input::LinkDown(node(1)));
        assert_eq!(links.opinion(node(1)), Opinion::Heard);
        for peer in [2, 3] {
            report(&mut links, at(1), peer, &[]);
        }
        assert_eq!(links.unheard_by_majority(node(1), &voters(3), at(2)), None);
    }

    #[test]
    fn an_opinion_follows_the_link() {
        let mut links = LinkState::new(node(1));
        assert_eq!(links.opinion(node(2)), Opinion::Unknown);
        links.step(at(1), Input::Known(node(2)));
        assert_eq!(links.opinion(node(2)), Opinion::Unheard { since: at(1) });
        links.step(at(2), Input::LinkUp(node(2)));
        assert_eq!(links.opinion(node(2)), Opinion::Heard);
        links.step(at(3), Input::LinkDown(node(2)));
        links.step(at(4), Input::LinkDown(node(2)));
        assert_eq!(links.opinion(node(2)), Opinion::Unheard { since: at(3) });
        links.step(at(5), Input::Removed(node(2)));
        assert_eq!(links.view(), BTreeMap::from([(node(1), Opinion::Heard)]));
    }

    #[test]
    fn a_node_that_a_majority_does_not_hear_is_unheard_since_the_majority_was_complete() {
        let mut links = linked(3);
        report(&mut links, at(0), 2, &[1, 3]);
        links.step(at(100), Input::LinkDown(node(3)));
        assert_eq!(links.unheard_by_majority(node(3), &voters(3), at(150)), None);
        report(&mut links, at(200), 2, &[1]);
        assert_eq!(links.unheard_by_majority(node(3), &voters(3), at(250)), ms(50));
        report(&mut links, at(1200), 2, &[1]);
        assert_eq!(links.unheard_by_majority(node(3), &voters(3), at(1250)), ms(1050));
    }

    #[test]
    fn a_node_that_is_heard_again_was_never_silent_for_longer_than_since_then() {
        let mut links = linked(3);
        links.step(at(0), Input::LinkDown(node(3)));
        report(&mut links, at(100), 2, &[1, 3]);
        report(&mut links, at(200), 2, &[1]);
        report(&mut links, at(300), 2, &[1, 3]);
        report(&mut links, at(400), 2, &[1]);
        assert_eq!(links.unheard_by_majority(node(3), &voters(3), at(500)), ms(100));
    }

    #[test]
    fn a_cut_between_two_nodes_marks_nobody() {
        // Of three, 1 and 3 have lost each other, and 2 hears both.
        let mut links = linked(3);
        links.step(at(0), Input::LinkDown(node(3)));
        report(&mut links, at(10), 2, &[1, 3]);
        assert_eq!(links.unheard_by_majority(node(3), &voters(3), at(20)), None);
    }

    #[test]
    fn a_cut_that_a_majority_can_still_cross_marks_nobody() {
        // Of five, 1 and 2 do not hear 5, and 3 and 4 do.
        let mut links = linked(5);
        links.step(at(0), Input::LinkDown(node(5)));
        report(&mut links, at(10), 2, &[1, 3, 4]);
        report(&mut links, at(10), 3, &[1, 2, 4, 5]);
        report(&mut links, at(10), 4, &[1, 2, 3, 5]);
        assert_eq!(links.unheard_by_majority(node(5), &voters(5), at(20)), None);
        report(&mut links, at(1000), 4, &[1, 2, 3]);
        assert_eq!(links.unheard_by_majority(node(5), &voters(5), at(1001)), ms(1));
    }

    #[test]
    fn a_node_that_is_cut_off_marks_nobody() {
        let mut links = linked(3);
        report(&mut links, at(0), 2, &[1]);
        report(&mut links, at(0), 3, &[1]);
        links.step(at(10), Input::LinkDown(node(2)));
        links.step(at(10), Input::LinkDown(node(3)));
        for peer in [2, 3] {
            assert_eq!(links.unheard_by_majority(node(peer), &voters(3), at(1000)), None);
        }
    }

    #[test]
    fn a_voter_that_is_unheard_itself_contributes_nothing() {
        let mut links = linked(3);
        links.step(at(0), Input::LinkDown(node(3)));
        report(&mut links, at(10), 2, &[1]);
        assert_eq!(links.unheard_by_majority(node(3), &voters(3), at(20)), ms(10));
        links.step(at(30), Input::LinkDown(node(2)));
        assert_eq!(links.unheard_by_majority(node(3), &voters(3), at(40)), None);
    }

    #[test]
    fn a_report_that_is_too_old_does_not_count() {
        let mut links = linked(3);
        links.step(at(0), Input::LinkDown(node(3)));
        report(&mut links, at(0), 2, &[1]);
        assert_eq!(links.unheard_by_majority(node(3), &voters(3), at(3000)), ms(3000));
        assert_eq!(links.unheard_by_majority(node(3), &voters(3), at(3001)), None);
        // After a gap the silence that it reports begins anew.
        report(&mut links, at(5000), 2, &[1]);
        assert_eq!(links.unheard_by_majority(node(3), &voters(3), at(5010)), ms(10));
    }

    #[test]
    fn a_node_says_nothing_about_its_own_silence() {
        let mut links = linked(3);
        links.step(at(0), Input::LinkDown(node(2)));
        report(&mut links, at(0), 2, &[]);
        assert_eq!(links.unheard_by_majority(node(2), &voters(3), at(10)), None);
    }

    #[test]
    fn only_voters_are_counted_and_a_single_one_is_its_own_majority() {
        let mut links = linked(3);
        links.step(at(0), Input::LinkDown(node(3)));
        assert_eq!(links.unheard_by_majority(node(3), &voters(1), at(10)), ms(10));
        // A worker that is no voter is judged by the voters, and its own word does not count.
        report(&mut links, at(0), 2, &[1]);
        let without_two = BTreeSet::from([node(1), node(4), node(5)]);
        assert_eq!(links.unheard_by_majority(node(3), &without_two, at(10)), None);
    }
}
