//! Which node is best for a replica, and why the others are not.
//!
//! First what rules a node out ([`Unfit`]), then an order of those that are left. It is lexicographic and
//! not a sum of weights: an operator can follow it, and no two wishes outvote a third.
//!
//! 1. fewest replicas of the service among the nodes with the same value of the label `spread`;
//! 2. fewest replicas of the service on the node: one failure takes as few as possible;
//! 3. `prefer`, the first condition before the second;
//! 4. fewest services that it should be apart from, plus those that it should be near and is not;
//! 5. where this ordinal was before: what it left on the disk is there, and an update changes nothing else;
//! 6. fewest replicas at all;
//! 7. a hash of service, ordinal and node.

use crate::explain::{Candidates, Score};
use crate::held::Unfit;
use crate::room::{At, Room, fixed_ports};
use quorate_model::id::{NodeId, ReplicaId, ServiceName};
use quorate_model::state::ServiceRecord;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A replica that looks for a node.
#[derive(Clone, Copy)]
pub(crate) struct Search<'a> {
    pub(crate) service: &'a ServiceRecord,
    pub(crate) ordinal: u32,
    /// The one whose place it takes, which is no load any more.
    pub(crate) replaces: Option<ReplicaId>,
    /// Whether that one ends before the new one begins, so that its ports and its room are free.
    pub(crate) ends_first: bool,
    /// Whether it counts where the ordinal was.
    pub(crate) returns: bool,
}

impl<'a> Search<'a> {
    pub(crate) fn new(service: &'a ServiceRecord, ordinal: u32) -> Search<'a> {
        Search { service, ordinal, replaces: None, ends_first: false, returns: true }
    }
}

pub(crate) struct Ranking<'r, 'a> {
    room: &'r Room<'a>,
    search: Search<'a>,
    ports: BTreeSet<u16>,
    /// Replicas of the service, by node.
    same: Vec<u32>,
    /// Replicas of the service by value of the label that they are spread over; `None`: without it.
    spread: BTreeMap<Option<&'a str>, u32>,
    near: Vec<(&'a ServiceName, BTreeSet<At>)>,
    apart: Vec<(&'a ServiceName, BTreeSet<At>)>,
}

/// What a replica gains by a move; what is less important comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Better {
    /// So many replicas fewer run beside it.
    Load(u32),
    /// More of what its service prefers, or wants to be near to or apart from.
    Wish,
    /// So many of its own service fewer run on its node.
    Apart(u32),
    /// So many of its own service fewer run under the same value of the label that they are spread over.
    Spread(u32),
}

impl fmt::Display for Better {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Better::Load(by) => write!(f, "{by} fewer run there"),
            Better::Wish => f.write_str("more there is as its service wishes"),
            Better::Apart(by) => write!(f, "{by} fewer of its own service run there"),
            Better::Spread(by) => write!(f, "{by} fewer of its own service run under the same label"),
        }
    }
}

/// The less, the better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    spread: u32,
    same: u32,
    unmet: u32,
    company: u32,
    elsewhere: bool,
    load: u32,
}

impl<'r, 'a> Ranking<'r, 'a> {
    pub(crate) fn new(room: &'r Room<'a>, search: Search<'a>) -> Ranking<'r, 'a> {
        let Search { service, replaces, .. } = search;
        let (spec, place) = (&service.spec, &service.spec.place);
        let others = |name| room.running(name).filter(|(id, _)| Some(*id) != replaces).map(|(_, at)| at);
        let mut same = vec![0; room.spots().len()];
        others(&spec.name).for_each(|at| same[at] += 1);
        let mut ranking = Ranking {
            room,
            search,
            ports: fixed_ports(spec).collect(),
            same,
            spread: BTreeMap::new(),
            near: place.near.iter().map(|name| (name, others(name).collect())).collect(),
            apart: place.apart.iter().map(|name| (name, others(name).collect())).collect(),
        };
        if place.spread.is_some() {
            for at in others(&spec.name) {
                *ranking.spread.entry(ranking.value(at)).or_default() += 1;
            }
        }
        ranking
    }

    /// The best node; else each with the reason why it is none.
    pub(crate) fn best(&self) -> Result<At, Vec<(String, Unfit)>> {
        let mut unfit = Vec::new();
        let mut best: Option<(Rank, At)> = None;
        for at in 0..self.room.spots().len() {
            if let Some(why) = self.unfit(at) {
                unfit.push((self.name(at), why));
                continue;
            }
            let rank = self.rank(at);
            if best.is_none_or(|(other, there)| rank < other || (rank == other && self.hash(at) < self.hash(there))) {
                best = Some((rank, at));
            }
        }
        unfit.sort_by(|(a, _), (b, _)| a.cmp(b));
        best.map(|(_, at)| at).ok_or(unfit)
    }

    /// All nodes that could take it, the best first, in words; and the others.
    pub(crate) fn in_words(&self) -> Candidates {
        let (mut fit, mut unfit) = (Vec::new(), Vec::new());
        for at in 0..self.room.spots().len() {
            match self.unfit(at) {
                Some(why) => unfit.push((self.name(at), why)),
                None => fit.push(at),
            }
        }
        fit.sort_by_key(|at| (self.rank(*at), self.hash(*at)));
        unfit.sort_by(|(a, _), (b, _)| a.cmp(b));
        Candidates { fit: fit.into_iter().map(|at| (self.name(at), self.score(at))).collect(), unfit }
    }

    pub(crate) fn unfit(&self, at: At) -> Option<Unfit> {
        let spot = &self.room.spots()[at];
        if let Some(why) = &spot.closed {
            return Some(why.clone());
        }
        if let Some(constraint) = self.search.service.spec.place.unmet(spot.record) {
            return Some(Unfit::Unmet { constraint: constraint.to_string() });
        }
        if let Some(why) = self.room.without_driver(&self.search.service.spec, at) {
            return Some(why);
        }
        if let Some(why) = self.room.unprepared(&self.search.service.spec, at) {
            return Some(why);
        }
        if self.search.replaces.map(|id| self.room.seat(id)).is_some_and(|old| old.moving && old.at == Some(at)) {
            return Some(Unfit::Left);
        }
        let ended = self.search.replaces.filter(|_| self.search.ends_first);
        let taken = self.ports.iter().find_map(|port| {
            let by = self.room.has_port(at, *port, ended)?;
            Some(Unfit::PortTaken { port: *port, by })
        });
        let has_copy = || self.room.has_copy(at, &self.search.service.spec, ended);
        taken
            .or_else(has_copy)
            .or_else(|| self.room.without_room(at, self.search.service.spec.resources.amount(), ended))
    }

    fn rank(&self, at: At) -> Rank {
        let place = &self.search.service.spec.place;
        let record = self.room.spots()[at].record;
        let unmet = place.prefer.iter().fold(0, |bits, wish| bits << 1 | u32::from(!wish.holds(record)));
        let company = self.near.iter().filter(|(_, there)| !there.contains(&at)).count()
            + self.apart.iter().filter(|(_, there)| there.contains(&at)).count();
        Rank {
            spread: self.in_value(at),
            same: self.same[at],
            unmet,
            company: u32::try_from(company).unwrap_or(u32::MAX),
            elsewhere: !self.was_here(at),
            load: self.load(at),
        }
    }

    /// What a replica gains that goes from one node to another. `None`: nothing. Equal loads afterwards are no gain:
    /// it would go back and forth.
    pub(crate) fn better(&self, to: At, from: At) -> Option<Better> {
        let (there, here) = (self.rank(to), self.rank(from));
        let gain = |here: u32, there: u32| here.saturating_sub(there);
        let order = (there.spread, there.same, there.unmet, there.company);
        match order.cmp(&(here.spread, here.same, here.unmet, here.company)) {
            Ordering::Greater => None,
            Ordering::Equal if there.load >= here.load => None,
            Ordering::Equal => Some(Better::Load(gain(here.load, there.load))),
            Ordering::Less if there.spread < here.spread => Some(Better::Spread(gain(here.spread, there.spread))),
            Ordering::Less if there.same < here.same => Some(Better::Apart(gain(here.same, there.same))),
            Ordering::Less => Some(Better::Wish),
        }
    }

    /// The same in words.
    fn score(&self, at: At) -> Score {
        let place = &self.search.service.spec.place;
        let record = self.room.spots()[at].record;
        let value = |key: &String| (key.clone(), self.value(at).map(str::to_owned), self.in_value(at));
        let with = |others: &[(&ServiceName, BTreeSet<At>)]| -> Vec<(ServiceName, bool)> {
            others.iter().map(|(name, there)| ((*name).clone(), there.contains(&at))).collect()
        };
        Score {
            spread: place.spread.as_ref().map(value),
            same: self.same[at],
            prefers: place.prefer.iter().map(|wish| (wish.to_string(), wish.holds(record))).collect(),
            near: with(&self.near),
            apart: with(&self.apart),
            was_here: self.was_here(at),
            load: self.load(at),
        }
    }

    fn name(&self, at: At) -> String {
        self.room.spots()[at].record.identity.name.clone()
    }

    fn value(&self, at: At) -> Option<&'a str> {
        let key = self.search.service.spec.place.spread.as_ref()?;
        self.room.spots()[at].record.labels.get(key).map(String::as_str)
    }

    fn in_value(&self, at: At) -> u32 {
        if self.spread.is_empty() { 0 } else { self.spread.get(&self.value(at)).copied().unwrap_or_default() }
    }

    fn was_here(&self, at: At) -> bool {
        self.search.returns
            && self.room.homes(&self.search.service.spec.name, self.search.ordinal).any(|home| home == at)
    }

    /// Without the one that is replaced.
    fn load(&self, at: At) -> u32 {
        let spot = &self.room.spots()[at];
        let mine = self.search.replaces.is_some_and(|id| self.room.seat(id).at == Some(at));
        spot.load - u32::from(mine)
    }

    fn hash(&self, at: At) -> (Reverse<u64>, NodeId) {
        let node = self.room.spots()[at].record.identity.id;
        (Reverse(rendezvous(&self.search.service.spec.name, self.search.ordinal, node)), node)
    }
}

/// Each ordinal has its own order of the nodes, so a node more or less moves only what it must.
fn rendezvous(service: &ServiceName, ordinal: u32, node: NodeId) -> u64 {
    let mut bytes = service.as_str().as_bytes().to_vec();
    bytes.push(0);
    bytes.extend(ordinal.to_le_bytes());
    bytes.extend(node.0.as_bytes());
    xxhash_rust::xxh3::xxh3_64(&bytes)
}
