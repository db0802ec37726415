//! A voter's side: what it acknowledged and what it must not.

use crate::{Electorate, Lease};
use quorate_model::id::{LogIndex, ServiceName};
use quorate_model::planted::{Bug, planted};
use quorate_model::time::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What one voter knows of leases.
///
/// It is told of its *log*, not only of what is committed: an entry binds it from when it is written down.
/// Only renewals that arrive after that may be acknowledged, so the shell tells of entries when they are handed
/// to the disk and sends no acknowledgement and no age before what it was told is durable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Voter {
    /// Any lease counts as acknowledged then.
    base: Timestamp,
    /// As of the newest configuration in the log.
    voters: Electorate,
    acknowledged: BTreeMap<Lease, Timestamp>,
    /// Leases that are fenced in the log, by the entry that does it. Such an entry may still be overwritten.
    fences: BTreeMap<LogIndex, Lease>,
    /// Leases whose fence is committed: that stays.
    settled: BTreeSet<Lease>,
    /// The epoch in force of each lease, as of what is applied.
    epochs: BTreeMap<ServiceName, u64>,
}

/// How long ago a voter acknowledged a lease last.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Age {
    /// At least this long ago, on its clock.
    pub since: Duration,
    /// The fence is in its log for good: it will not acknowledge this lease again. One that is not known to be
    /// committed keeps it from acknowledging as well and does not count here, since another leader may overwrite
    /// it, and between that and the next fence the lease could be acknowledged once more.
    pub fenced: bool,
    /// Who votes as of the newest configuration in its log.
    pub voters: Electorate,
}

impl Voter {
    /// One that starts: whatever it acknowledged before may have been just now.
    #[must_use]
    pub fn starts(now: Timestamp, voters: Electorate) -> Voter {
        Voter {
            base: now,
            voters,
            acknowledged: BTreeMap::new(),
            fences: BTreeMap::new(),
            settled: BTreeSet::new(),
            epochs: BTreeMap::new(),
        }
    }

    /// The newest configuration in the log is another one now: of a new entry, or again that of before when
    /// the new one was overwritten. To be told of each one, also where several come at once: the last may have
    /// the voters of the first.
    pub fn configured(&mut self, now: Timestamp, voters: &Electorate) {
        if *voters != self.voters {
            self.voters = voters.clone();
            self.base = now;
        }
    }

    /// A database came in the place of the log: which configurations passed in between is not known.
    pub fn replaced(&mut self, now: Timestamp, voters: Electorate) {
        self.voters = voters;
        self.base = now;
        self.fences.clear();
    }

    /// Who votes as of the newest configuration in the log.
    #[must_use]
    pub fn voters(&self) -> &Electorate {
        &self.voters
    }

    /// A fence came into the log.
    pub fn fenced(&mut self, index: LogIndex, lease: Lease) {
        if !self.is_over(&lease) {
            self.fences.insert(index, lease);
        }
    }

    /// Everything from `index` on is no longer in the log.
    pub fn cut(&mut self, index: LogIndex) {
        self.fences.split_off(&index);
    }

    /// Everything up to `index` is committed.
    pub fn committed(&mut self, index: LogIndex) {
        while let Some(first) = self.fences.first_entry().filter(|first| *first.key() <= index) {
            self.settled.insert(first.remove());
        }
    }

    /// A fence is in the database, so it is committed.
    pub fn settled(&mut self, lease: Lease) {
        if !self.is_over(&lease) {
            self.settled.insert(lease);
        }
    }

    /// A lease has this epoch now, as of the database. What was said of earlier ones is of no use any more.
    pub fn raised(&mut self, lease: &Lease) {
        let outdated = |other: &Lease| other.name == lease.name && other.epoch < lease.epoch;
        self.acknowledged.retain(|other, _| !outdated(other));
        self.fences.retain(|_, other| !outdated(other));
        self.settled.retain(|other| !outdated(other));
        let epoch = self.epochs.entry(lease.name.clone()).or_default();
        *epoch = lease.epoch.max(*epoch);
    }

    /// The lease is not there any more.
    pub fn forgotten(&mut self, name: &ServiceName) {
        self.acknowledged.retain(|other, _| other.name != *name);
        self.fences.retain(|_, other| other.name != *name);
        self.settled.retain(|other| other.name != *name);
        self.epochs.remove(name);
    }

    /// A renewal arrived. Returns whether to acknowledge it, naming [`voters`](Self::voters).
    #[must_use]
    pub fn renew(&mut self, now: Timestamp, lease: &Lease) -> bool {
        let in_force = self.epochs.get(&lease.name) == Some(&lease.epoch);
        if !in_force || self.is_fenced(lease) && !planted(Bug::AcknowledgedAfterFence) {
            return false;
        }
        self.acknowledged.insert(lease.clone(), now);
        true
    }

    /// What the leader is told.
    #[must_use]
    pub fn age(&self, now: Timestamp, lease: &Lease) -> Age {
        if planted(Bug::AgeIgnoresStart) && !self.acknowledged.contains_key(lease) {
            let fenced = self.settled.contains(lease);
            return Age { since: Duration::MAX, fenced, voters: self.voters.clone() };
        }
        let last = self.acknowledged.get(lease).map_or(self.base, |last| self.base.max(*last));
        Age { since: now.since(last), fenced: self.settled.contains(lease), voters: self.voters.clone() }
    }

    fn is_fenced(&self, lease: &Lease) -> bool {
        self.settled.contains(lease) || self.fences.values().any(|fenced| fenced == lease)
    }

    fn is_over(&self, lease: &Lease) -> bool {
        self.epochs.get(&lease.name).is_some_and(|epoch| *epoch > lease.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::id::NodeId;

    fn lease(epoch: u64) -> Lease {
        Lease { name: "s".parse().expect("a name"), epoch }
    }

    fn at(second: u64) -> Timestamp {
        Timestamp(Duration::from_secs(second))
    }

    /// With this many voters.
    fn electorate(voters: u128) -> Electorate {
        Electorate { voters: (1..=voters).map(NodeId::from_u128).collect(), outgoing: BTreeSet::new() }
    }

    #[test]
    fn only_the_epoch_in_force_is_acknowledged_and_no_more_once_the_fence_is_in_the_log() {
        let mut voter = Voter::starts(at(0), electorate(3));
        assert!(!voter.renew(at(1), &lease(1)), "it does not know the lease yet");
        voter.raised(&lease(1));
        assert!(voter.renew(at(1), &lease(1)));
        assert!(!voter.renew(at(1), &lease(2)));
        voter.fenced(LogIndex(9), lease(1));
        assert!(!voter.renew(at(2), &lease(1)));
        // Its leader was deposed and the entry overwritten.
        voter.cut(LogIndex(9));
        assert!(voter.renew(at(2), &lease(1)));
        voter.fenced(LogIndex(9), lease(1));
        voter.raised(&lease(2));
        assert!(!voter.renew(at(3), &lease(1)));
        assert!(voter.renew(at(3), &lease(2)));
    }

    #[test]
    fn only_a_fence_that_stays_is_spoken_of() {
        let mut voter = Voter::starts(at(0), electorate(3));
        voter.raised(&lease(1));
        voter.fenced(LogIndex(9), lease(1));
        assert!(!voter.age(at(1), &lease(1)).fenced, "another leader may overwrite it");
        voter.committed(LogIndex(8));
        assert!(!voter.age(at(1), &lease(1)).fenced);
        voter.committed(LogIndex(9));
        voter.cut(LogIndex(10));
        assert!(voter.age(at(1), &lease(1)).fenced);
        assert!(!voter.renew(at(1), &lease(1)));
        voter.raised(&lease(2));
        voter.settled(lease(1));
        assert_eq!((voter.fences.len(), voter.settled.len()), (0, 0), "nothing of an epoch that is over is kept");
    }

    #[test]
    fn a_start_a_configuration_and_a_database_count_as_if_all_had_been_acknowledged() {
        let mut voter = Voter::starts(at(10), electorate(3));
        let since = |voter: &Voter| voter.age(at(20), &lease(1)).since.as_secs();
        assert_eq!(since(&voter), 10);
        voter.configured(at(14), &electorate(3));
        assert_eq!(since(&voter), 10, "it is the same");
        voter.configured(at(15), &electorate(5));
        assert_eq!(since(&voter), 5);
        voter.replaced(at(17), electorate(5));
        assert_eq!(since(&voter), 3, "others may have voted in between");
    }
}
