//! Leases as this node keeps them: as a holder, as a voter, as the leader.
//!
//! Why nobody shares a lease is in `quorate-lease`, and what of it is decided in `quorate_model::lease`. Here
//! is who is told what, and when: [`Holding`] renews what this node's replicas hold, [`Voting`] answers as a
//! voter, [`Raising`] ends what a silent holder held.
//!
//! ```text
//! holder ── Renew ──▶ every voter ── Renewed ──▶ holder: Effect::Hold
//! leader ── AskAges ─▶ every voter ── Ages ─────▶ leader: fence, then raise, in the log
//! ```
//!
//! A quiet cluster says and writes nothing of this: a healthy lease costs one round of small messages in each
//! `Life::renew_every`, and no entry of the log. The leader asks when a holder is not heard, when a lease is
//! fenced, and when it has itself not acknowledged one for two renewals.
//!
//! # Invariants
//! - A voter says nothing about a lease before all that its log had when it made up its mind is durable.
//! - Questions are answered at the end of a turn, when the voter was told of all that the turn brought.
//! - What is asked of this node itself goes the same way as what is asked of others.
//!
//! # What goes wrong, and what becomes of it
//! - *A node's server starts anew.* Its holders know of no renewal and begin at once; the replicas' own timers
//!   run on. Unless the lease was fenced, the next majority goes on with it. Acknowledgements of what the run
//!   before sent are not taken: numbers are its own ([`crate::wire::Renew::run`]).
//! - *A voter starts anew*: it counts everything as acknowledged at its start. Fences are in its log or in its
//!   database. So a cluster that was off, or one that goes on with a single survivor (`quorate recover`), waits
//!   a whole time of life before it raises anything.
//! - *Voters change*: whoever comes counts from when the configuration came into its log. Holders send to the
//!   voters of the newest configuration in their log and of the one in force, so a change loses no renewal.
//! - *A snapshot* brings fences in the database, and counts like a start, since what it skipped is not known.
//! - *The leader dies*: the next one asks all over. The fence is in its log or was never committed; what voters
//!   remember does not depend on who leads.
//! - *The leader is the holder and is cut off*: it can neither renew nor raise, and those on the other side elect.
//! - *A holder hears no acknowledgements, or voters hear no renewals* (a link of one direction): the lease runs
//!   out on the holder's side and is raised on the other, although the leader may hear the node.
//! - *An expelled node* is not listened to by whoever has applied that, so it renews nothing. Nothing depends on
//!   it: what it holds ends by the fence like any other.
//! - *A service is removed while its holder is away*: the lease is raised all the same, and its replica goes.
//! - *A frame that this version does not know* is skipped, which is as if it were lost.

mod holding;
mod measuring;
mod raising;
mod voting;

pub(crate) use holding::Holding;
pub(crate) use measuring::Measuring;
pub(crate) use raising::{Raising, Seen};
pub(crate) use voting::{Question, Voting};

use crate::event::Now;
use quorate_lease::Lease;
use quorate_model::event::{Event, Happening};
use quorate_model::id::NodeId;
use quorate_model::lease::LeaseRecord;
use quorate_model::spec::Mode;
use quorate_model::state::{Change, ClusterState};
use quorate_model::time::Timestamp;

/// Leases in one message.
const LEASES_PER_FRAME: usize = 1_024;

/// The lease that is in force: the holder's, or that of whoever comes next.
fn in_force(record: &LeaseRecord) -> Lease {
    Lease { name: record.name.clone(), epoch: record.epoch_in_force() }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Leases {
    pub(crate) holding: Holding,
    pub(crate) voting: Voting,
    pub(crate) raising: Raising,
    pub(crate) measuring: Measuring,
}

impl Leases {
    /// An entry was applied; `state` is as after it.
    pub(crate) fn applied(&mut self, now: Now, me: NodeId, state: &ClusterState, changes: &[Change]) {
        let mut own = false;
        for change in changes {
            match change {
                Change::Lease(record) => {
                    self.voting.decided(record);
                    self.raising.decided(now.mono, record);
                    self.raising.hurry();
                }
                Change::Event(Event { what: Happening::LeaseRaised { node, .. }, .. }) if *node != me => {
                    self.raising.raised_from(now.mono, *node);
                }
                Change::Replica(replica) => {
                    // Whoever was the active one of several may be a standby now.
                    let may_hold = replica.lease.is_some() || replica.spec.mode == Mode::ActivePassive;
                    own |= replica.node == me && may_hold;
                }
                Change::ReplicaGone { .. } => own = true,
                _ => {}
            }
        }
        if own {
            self.holding.assigned(now.mono, me, state);
        }
    }

    /// The state is another one altogether.
    pub(crate) fn replaced(&mut self, now: Now, me: NodeId, state: &ClusterState) {
        state.leases.values().for_each(|record| self.raising.decided(now.mono, record));
        self.holding.assigned(now.mono, me, state);
    }

    /// When this node has something to do about leases by itself.
    pub(crate) fn next_wake(&self, leads: bool) -> Option<Timestamp> {
        let raising = self.raising.next_wake().filter(|_| leads);
        [self.holding.next_wake(), raising].into_iter().flatten().min()
    }
}
