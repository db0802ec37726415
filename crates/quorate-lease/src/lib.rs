//! Leases that a majority acknowledges: who may run what must never run twice.
//!
//! A holder asks all voters again and again to renew its lease; it holds until the time of life after the
//! newest renewal that a majority acknowledged was *sent*, on the holder's own clock ([`Holder`]). Nothing
//! of this is in the log. To give the work to somebody else the leader asks the voters how long ago they
//! acknowledged ([`Voter::age`]) and goes two steps, both entries of the log ([`verdict`]):
//!
//! 1. *fence*: from when the entry is in a voter's log, committed or not, that voter acknowledges this
//!    lease no more. It is proposed once a majority has acknowledged nothing for the time of life.
//! 2. *raise*: the lease gets its next epoch, and with it another holder may be chosen. It is proposed once
//!    the fence is committed and a majority, each of which has the committed fence in its log, has acknowledged
//!    nothing for the time of life and a guard.
//!
//! # Why no two hold it
//! The majority that acknowledged the newest valid renewal and the majority that lets the raise pass have a
//! voter in common. It acknowledged before the fence came into its log to stay, and its answer was given after:
//! so the time of life has passed since it acknowledged, and before that the renewal was sent.
//! A new leader finds the fence in the log and needs an answer of each voter, no new time of life. A fence that
//! may still be overwritten is no answer: between it and the next one its voter could acknowledge again.
//!
//! Voters that change: an acknowledgement names the voters as of the newest configuration in the voter's log, a
//! renewal needs a majority of one such set, and a configuration that comes into a voter's log counts as if it
//! had acknowledged everything then. So does its start: what it acknowledged before is forgotten. Where the
//! majority that acknowledged and the one that lets the raise pass are of different voters, the ones were
//! left by a majority of theirs, which had the next configuration in its log before the others could vote: a
//! voter of both acknowledged before that, so before what the others count from.
//!
//! # Invariants
//! - The holder's clock is never slower than a voter's ([`Clocks`]). The rest is what the guard is for.
//! - Nothing here reads a clock or sends anything.
//!
//! Sources: C. Gray, D. Cheriton, *Leases: an efficient fault-tolerant mechanism for distributed file cache
//! consistency*, 1989; ADR 11. The model that is checked is in `tests/model.rs`.

mod clocks;
mod electorate;
mod holder;
mod verdict;
mod voter;

pub use clocks::Clocks;
pub use electorate::Electorate;
pub use holder::{Holder, Renewal};
pub use verdict::{Verdict, verdict};
pub use voter::{Age, Voter};

use quorate_model::id::ServiceName;
use std::time::Duration;

/// What a lease is for, and how many holders it has had. Names that are not a service's (a virtual address,
/// say) are the owner's affair.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease {
    pub name: ServiceName,
    /// From 1; grows by one whenever somebody else may hold it.
    pub epoch: u64,
}

/// What is added to the time of life before somebody else may hold a lease: what clocks of sound machines
/// drift apart in it (a hundred millionths of 180 s are 18 ms), and how late a kill timer fires.
pub const GUARD: Duration = Duration::from_millis(250);

/// How long a lease lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Life {
    /// From the sending of the renewal, on the holder's clock.
    pub ttl: Duration,
    /// On top of that, on the voters' clocks.
    pub guard: Duration,
}

impl Life {
    #[must_use]
    pub fn new(ttl: Duration) -> Life {
        Life { ttl, guard: GUARD }
    }

    /// How often the holder renews: several renewals may be lost before one is missed.
    #[must_use]
    pub fn renew_every(self) -> Duration {
        self.ttl / 6
    }

    /// From when on nobody can hold a lease that was acknowledged last this long ago.
    #[must_use]
    pub fn outlived(self) -> Duration {
        self.ttl + self.guard
    }
}
