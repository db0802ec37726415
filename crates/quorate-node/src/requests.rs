//! Mutations on their way into the log.
//!
//! A node does not answer its clients by messages of the leader: it sees the request's id when it
//! applies the entry, like everybody else. So a request survives a change of leader by being sent
//! again under the same id, and the state machine does it once.
//!
//! # Invariants
//! - A request is here from the moment it was accepted until it is applied or refused.
//! - At most [`PENDING_MAX`] requests and [`PENDING_BYTES_MAX`] bytes wait here.

use quorate_model::entry::Proposal;
use quorate_model::id::RequestId;
use quorate_model::planted::{Bug, planted};
use quorate_model::time::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Requests that one node keeps waiting; 10,000 clients with one request each fit.
const PENDING_MAX: usize = 16_384;
/// Their bytes: a quarter of what an idle node may take, for what is an overload anyway.
const PENDING_BYTES_MAX: usize = 64 << 20;
/// After this a request is sent again even to the same leader: the message may have been lost
/// with its connection. Far above a normal commit, so that a slow disk does not double its load.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Requests {
    pending: BTreeMap<RequestId, Pending>,
    /// Not handed to a leader yet, in the order of their coming.
    fresh: Vec<RequestId>,
    bytes: usize,
}

#[derive(Debug)]
struct Pending {
    proposal: Proposal,
    accepted: Timestamp,
    deadline: Timestamp,
    handed_over: Option<Timestamp>,
}

impl Requests {
    pub(crate) fn new() -> Requests {
        Requests { pending: BTreeMap::new(), fresh: Vec::new(), bytes: 0 }
    }

    /// Takes a request over. A second one with the same id joins the first.
    ///
    /// Returns whether there was room.
    #[must_use]
    pub(crate) fn accept(&mut self, now: Timestamp, proposal: Proposal, deadline: Timestamp) -> bool {
        if let Some(known) = self.pending.get_mut(&proposal.request_id) {
            known.deadline = known.deadline.max(deadline);
            return true;
        }
        let bytes = proposal.payload.len();
        if self.pending.len() >= PENDING_MAX || self.bytes + bytes > PENDING_BYTES_MAX {
            return false;
        }
        self.bytes += bytes;
        self.fresh.push(proposal.request_id);
        self.pending.insert(proposal.request_id, Pending { proposal, accepted: now, deadline, handed_over: None });
        true
    }

    /// The request is applied.
    pub(crate) fn done(&mut self, id: RequestId) {
        if let Some(gone) = self.pending.remove(&id) {
            self.bytes -= gone.proposal.payload.len();
        }
    }

    /// Another leader: all that is not applied is handed over anew.
    pub(crate) fn leader_changed(&mut self) {
        self.fresh = self.pending.keys().copied().collect();
        // Ids are random; the order of coming is fairer to those who wait longest.
        self.fresh.sort_by_key(|id| self.pending[id].accepted);
    }

    /// Sends again what seems lost, and gives up on what is too late.
    pub(crate) fn tick(&mut self, now: Timestamp) -> Vec<(RequestId, Duration)> {
        let mut late = Vec::new();
        for (id, pending) in &mut self.pending {
            if pending.deadline <= now {
                late.push((*id, now.since(pending.accepted)));
            } else if pending.handed_over.is_some_and(|at| now.since(at) >= AGAIN_AFTER) {
                pending.handed_over = None;
                self.fresh.push(*id);
            }
        }
        for (id, _) in &late {
            self.done(*id);
        }
        late
    }

    /// Whether something waits for a leader.
    pub(crate) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Hands everything fresh to `leader`, which says whether it took it. What it did not take
    /// stays fresh.
    pub(crate) fn hand_over(&mut self, now: Timestamp, mut leader: impl FnMut(&Proposal) -> bool) {
        let mut refused = Vec::new();
        for id in std::mem::take(&mut self.fresh) {
            // One that was applied or given up meanwhile is simply no longer pending.
            let Some(pending) = self.pending.get_mut(&id) else { continue };
            // Too late, also for the memory of request ids: a node that was stopped for minutes must
            // not bring back what was done, and forgotten, meanwhile.
            if pending.deadline <= now && !planted(Bug::RetryAfterDeadline) {
                continue;
            }
            if leader(&pending.proposal) {
                pending.handed_over = Some(now);
            } else {
                refused.push(id);
            }
        }
        self.fresh = refused;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::entry::Kind;

    fn at(secs: u64) -> Timestamp {
        Timestamp(Duration::from_secs(secs))
    }

    fn handed_over(requests: &mut Requests, now: Timestamp) -> usize {
        let mut count = 0;
        requests.hand_over(now, |_| {
            count += 1;
            true
        });
        count
    }

    #[test]
    fn a_node_that_was_stopped_for_minutes_brings_nothing_back() {
        let mut requests = Requests::new();
        let request_id = RequestId::from_u128(1);
        let proposal = Proposal { request_id, kind: Kind::Sql, fence: None, payload: "INSERT".into() };
        assert!(requests.accept(at(0), proposal, at(10)));
        assert_eq!(handed_over(&mut requests, at(0)), 1);
        // It goes on at last, hears of another leader, and has not looked at deadlines yet.
        requests.leader_changed();
        assert_eq!(handed_over(&mut requests, at(150)), 0);
        assert_eq!(requests.tick(at(150)).len(), 1, "it is refused, not forgotten");
    }
}
