//! The holder's side: until when the lease is valid.

use crate::{Electorate, Lease, Life};
use quorate_model::id::NodeId;
use quorate_model::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Renewals whose acknowledgements are still of use: the time of life holds six.
const REMEMBERED: usize = 16;

/// One lease that this node holds, or tries to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    lease: Lease,
    life: Life,
    last: u64,
    /// When each renewal was sent.
    sent: BTreeMap<u64, Timestamp>,
    /// The newest renewal that each voter acknowledged, and who votes as it said.
    acknowledged: BTreeMap<NodeId, (u64, Electorate)>,
    valid_until: Option<Timestamp>,
}

/// To be sent to every voter, this node included if it is one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Renewal {
    pub lease: Lease,
    pub number: u64,
}

impl Holder {
    #[must_use]
    pub fn of(lease: Lease, life: Life) -> Holder {
        Holder { lease, life, last: 0, sent: BTreeMap::new(), acknowledged: BTreeMap::new(), valid_until: None }
    }

    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The next renewal. It counts from now, so it must not have been made ready before.
    pub fn renew(&mut self, now: Timestamp) -> Renewal {
        self.last += 1;
        self.sent.insert(self.last, now);
        while self.sent.len() > REMEMBERED {
            self.sent.pop_first();
        }
        Renewal { lease: self.lease.clone(), number: self.last }
    }

    /// A voter acknowledged this renewal, and said who votes as of its log.
    pub fn acknowledged(&mut self, voter: NodeId, number: u64, voters: &Electorate) {
        let known = self.acknowledged.entry(voter).or_default();
        if number < known.0 {
            return;
        }
        *known = (number, voters.clone());
        let renewed = self.sent.iter().rev().find(|(number, _)| {
            let said = self.acknowledged.iter().filter(|(_, (newest, of))| newest >= number && of == voters);
            voters.is_majority(&said.map(|(node, _)| *node).collect::<BTreeSet<NodeId>>())
        });
        if let Some((_, sent)) = renewed {
            self.valid_until = Some(sent.plus(self.life.ttl)).max(self.valid_until);
        }
    }

    /// Until when this node holds the lease; before the first majority it does not.
    #[must_use]
    pub fn valid_until(&self) -> Option<Timestamp> {
        self.valid_until
    }

    #[must_use]
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.valid_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// With this many voters.
    fn electorate(voters: u128) -> Electorate {
        Electorate { voters: (1..=voters).map(NodeId::from_u128).collect(), outgoing: BTreeSet::new() }
    }

    #[test]
    fn it_is_valid_from_a_majority_of_one_configuration_and_counted_from_the_sending() {
        let life = Life { ttl: Duration::from_secs(6), guard: Duration::ZERO };
        let at = |second| Timestamp(Duration::from_secs(second));
        let mut holder = Holder::of(Lease { name: "s".parse().expect("a name"), epoch: 1 }, life);
        let (first, second) = (holder.renew(at(10)).number, holder.renew(at(11)).number);
        let mut says = |node: u128, number: u64, voters: u128| {
            holder.acknowledged(NodeId::from_u128(node), number, &electorate(voters));
            holder.valid_until()
        };
        assert_eq!(says(1, second, 3), None);
        assert_eq!(says(2, first, 2), None, "another configuration");
        assert_eq!(says(9, second, 3), None, "no voter");
        assert_eq!(says(2, first, 3), Some(at(16)), "both have acknowledged the first");
        assert_eq!(says(3, second, 3), Some(at(17)));
        assert!(holder.is_valid(at(16)) && !holder.is_valid(at(17)));
    }
}
