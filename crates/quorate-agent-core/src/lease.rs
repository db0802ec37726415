//! When what runs under a lease must have ended: the clock, and the sums that agent and shim share.
//!
//! ```text
//!  now            launch, if          soft stop            deadline   until
//!   │              left ≥ ttl/2           │                  │         │
//!   ├──────────────────┼───────────────────┼──────────────────┼─────────┤
//!                                          └ ≤ grace, ttl/4 ─┘ left/12 ┘
//! ```
//! The *deadline* is when the kernel kills; it is what agent and shim speak of. It comes before `until` by a
//! twelfth of what is left: `until` is counted on the stricter of two clocks, the kernel's timer on one, and
//! chrony slows that one by up to 83,333 millionths to correct it. A deadline is fixed when `until` is told
//! and never counted again, for `until` itself may move on a clock that is being slowed.
//!
//! # Invariants
//! - The deadline of an epoch never goes back: what was promised once holds.
//! - What is told for one epoch says nothing about another.
//!
//! Sources: ADR 11; chrony.conf(5), `maxslewrate`; clock_gettime(2).

use quorate_model::id::ReplicaId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A moment of CLOCK_BOOTTIME, in nanoseconds since this machine started, sleep included. In JSON it is that
/// number. It means nothing on another machine, nor after a restart of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootTime(u64);

impl BootTime {
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> BootTime {
        BootTime(nanos)
    }

    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    #[must_use]
    pub fn since_boot(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// Zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: BootTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The end of time, if that is over earlier.
    #[must_use]
    pub fn plus(self, span: Duration) -> BootTime {
        BootTime(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The start of the machine, if that was later.
    #[must_use]
    pub fn minus(self, span: Duration) -> BootTime {
        BootTime(self.0.saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// That this node holds a lease, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    pub replica: ReplicaId,
    pub epoch: u64,
    /// When nothing of the replica may run any more. Counted when it is told, on the stricter of two clocks.
    pub until: BootTime,
}

/// When the kernel is to kill what may run until `until`, which is told `now`.
#[must_use]
pub fn deadline(now: BootTime, until: BootTime) -> BootTime {
    let left = until.since(now);
    until.minus(left / 12)
}

/// When the workload is asked to end: as long before the deadline as it has to end in, but not so long that a
/// few renewals that got lost would end it.
#[must_use]
pub fn soft_stop(deadline: BootTime, grace: Duration, ttl: Duration) -> BootTime {
    deadline.minus(grace.min(ttl / 4))
}

/// Whether it is worth while to start something that is killed at `deadline`. Every renewal that comes in time
/// leaves more than half of the time to live; a soft stop takes a quarter.
#[must_use]
pub fn is_far_enough(now: BootTime, deadline: BootTime, ttl: Duration) -> bool {
    deadline.since(now) >= ttl / 2
}

/// The deadlines of one replica by epoch. Mostly one; two while the epoch changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deadlines(BTreeMap<u64, BootTime>);

impl Deadlines {
    /// When the kernel is to kill what runs under this epoch.
    #[must_use]
    pub fn of(&self, epoch: u64) -> Option<BootTime> {
        self.0.get(&epoch).copied()
    }

    /// Whether this is news.
    pub fn tell(&mut self, now: BootTime, epoch: u64, deadline: BootTime) -> bool {
        self.0.retain(|known, at| *known == epoch || *at > now);
        let known = self.0.entry(epoch).or_insert(BootTime(0));
        let is_later = deadline > *known;
        *known = deadline.max(*known);
        is_later
    }

    /// Whether nothing of it says anything any more.
    #[must_use]
    pub fn are_over(&self, now: BootTime) -> bool {
        self.0.values().all(|at| *at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(second: u64) -> BootTime {
        BootTime(second * SECOND)
    }

    #[test]
    fn a_clock_that_is_slowed_as_much_as_chrony_may_does_not_reach_the_deadline_late() {
        // Of twelve nanoseconds it counts eleven.
        let slowed = |real: u64| BootTime(at(100).0 + real * 11 / 12);
        let ttl = 6 * SECOND;
        let first = deadline(slowed(0), BootTime(slowed(0).0 + ttl));
        assert_eq!(first, slowed(ttl), "the kernel's clock says so when the lease is over");
        // Told again on the stricter clock, it is the same moment.
        let again = deadline(slowed(3 * SECOND), BootTime(slowed(3 * SECOND).0 + ttl - 3 * SECOND));
        assert_eq!(again, first);
    }

    #[test]
    fn a_stop_is_asked_for_a_grace_before_the_deadline_and_never_before_three_quarters_of_the_life() {
        let ttl = Duration::from_secs(12);
        assert_eq!(soft_stop(at(20), Duration::from_secs(1), ttl), at(19));
        assert_eq!(soft_stop(at(20), Duration::from_secs(600), ttl), at(17));
        assert_eq!(soft_stop(at(20), Duration::ZERO, ttl), at(20));
        assert!(is_far_enough(at(14), at(20), ttl) && !is_far_enough(at(15), at(20), ttl));
    }
}
