//! A voter's side: what it acknowledged and what it must not.

use crate::Lease;
use quorate_model::id::{LogIndex, ServiceName};
use quorate_model::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// What one voter knows of leases.
///
/// It is told of its *log*, not of what is committed: an entry binds it from when it is written down. Only
/// renewals that arrive after that may be acknowledged, so the shell tells of entries when they are handed to
/// the disk and sends no acknowledgement before what it was told is durable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Voter {
    /// Any lease counts as acknowledged then.
    base: Timestamp,
    configuration: LogIndex,
    acknowledged: BTreeMap<Lease, Timestamp>,
    /// Leases that are fenced in the log, by the entry that does it.
    fences: BTreeMap<LogIndex, Lease>,
    /// The epoch in force of each lease, as of what is applied.
    epochs: BTreeMap<ServiceName, u64>,
}

/// How long ago a voter acknowledged a lease last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Age {
    /// At least this long ago, on its clock.
    pub since: Duration,
    /// The fence is in its log: it will not acknowledge this lease again.
    pub fenced: bool,
    /// The newest configuration in its log.
    pub configuration: LogIndex,
}

impl Voter {
    /// One that starts: whatever it acknowledged before may have been just now.
    #[must_use]
    pub fn starts(now: Timestamp, configuration: LogIndex) -> Voter {
        Voter {
            base: now,
            configuration,
            acknowledged: BTreeMap::new(),
            fences: BTreeMap::new(),
            epochs: BTreeMap::new(),
        }
    }

    /// The newest configuration in the log is another one now: of a new entry, or again that of before when
    /// the new one was overwritten.
    pub fn configured(&mut self, now: Timestamp, index: LogIndex) {
        if index != self.configuration {
            self.configuration = index;
            self.base = now;
        }
    }

    /// A fence came into the log.
    pub fn fenced(&mut self, index: LogIndex, lease: Lease) {
        self.fences.insert(index, lease);
    }

    /// Everything from `index` on is no longer in the log.
    pub fn cut(&mut self, index: LogIndex) {
        self.fences.split_off(&index);
    }

    /// A lease has this epoch now, as of the database. What was said of earlier ones is of no use any more.
    pub fn raised(&mut self, lease: &Lease) {
        let outdated = |other: &Lease| other.name == lease.name && other.epoch < lease.epoch;
        self.acknowledged.retain(|other, _| !outdated(other));
        self.fences.retain(|_, other| !outdated(other));
        let epoch = self.epochs.entry(lease.name.clone()).or_default();
        *epoch = lease.epoch.max(*epoch);
    }

    /// The lease is not there any more.
    pub fn forgotten(&mut self, name: &ServiceName) {
        self.acknowledged.retain(|other, _| other.name != *name);
        self.fences.retain(|_, other| other.name != *name);
        self.epochs.remove(name);
    }

    /// A renewal arrived. `Some`: acknowledge it, with this configuration.
    pub fn renew(&mut self, now: Timestamp, lease: &Lease) -> Option<LogIndex> {
        let in_force = self.epochs.get(&lease.name) == Some(&lease.epoch);
        if !in_force || self.is_fenced(lease) {
            return None;
        }
        self.acknowledged.insert(lease.clone(), now);
        Some(self.configuration)
    }

    /// What the leader is told.
    #[must_use]
    pub fn age(&self, now: Timestamp, lease: &Lease) -> Age {
        let last = self.acknowledged.get(lease).map_or(self.base, |last| self.base.max(*last));
        Age { since: now.since(last), fenced: self.is_fenced(lease), configuration: self.configuration }
    }

    fn is_fenced(&self, lease: &Lease) -> bool {
        self.fences.values().any(|fenced| fenced == lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(epoch: u64) -> Lease {
        Lease { name: "s".parse().expect("a name"), epoch }
    }

    fn at(second: u64) -> Timestamp {
        Timestamp(Duration::from_secs(second))
    }

    #[test]
    fn only_the_epoch_in_force_is_acknowledged_and_no_more_once_the_fence_is_in_the_log() {
        let mut voter = Voter::starts(at(0), LogIndex(3));
        assert_eq!(voter.renew(at(1), &lease(1)), None, "it does not know the lease yet");
        voter.raised(&lease(1));
        assert_eq!(voter.renew(at(1), &lease(1)), Some(LogIndex(3)));
        assert_eq!(voter.renew(at(1), &lease(2)), None);
        voter.fenced(LogIndex(9), lease(1));
        assert_eq!(voter.renew(at(2), &lease(1)), None);
        // Its leader was deposed and the entry overwritten.
        voter.cut(LogIndex(9));
        assert_eq!(voter.renew(at(2), &lease(1)), Some(LogIndex(3)));
        voter.fenced(LogIndex(9), lease(1));
        voter.raised(&lease(2));
        assert_eq!(voter.renew(at(3), &lease(1)), None);
        assert_eq!(voter.renew(at(3), &lease(2)), Some(LogIndex(3)));
    }

    #[test]
    fn a_start_and_a_configuration_count_as_if_all_had_been_acknowledged() {
        let mut voter = Voter::starts(at(10), LogIndex(0));
        let since = |voter: &Voter| voter.age(at(20), &lease(1)).since.as_secs();
        assert_eq!(since(&voter), 10);
        voter.configured(at(14), LogIndex(0));
        assert_eq!(since(&voter), 10, "it is the same");
        voter.configured(at(15), LogIndex(8));
        assert_eq!(since(&voter), 5);
    }
}
