//! What would run better elsewhere by now, and where: after nodes came back or joined, for instance.
//!
//! Nothing moves by itself (a move costs its service something, and what comes back may go again), so an operator
//! asks, and says how many moves at most. A replica is better off where it would be placed now, if that is better
//! than where it is by the very order by which it is placed ([`ranking`](crate::ranking)), save that it may leave
//! its ordinal's home. Each move is reckoned with the ones before it carried out; the greatest gain comes first.
//!
//! Only what is replicated moves: of what runs once every move is a gap, and what runs everywhere has no elsewhere.
//! What is being updated, moved or ended stays out of it, and that is said.

use crate::held::Slot;
use crate::ranking::{Better, Ranking, Search};
use crate::room::{At, Room, Seat};
use quorate_model::assignment::Phase;
use quorate_model::deployment::Stage;
use quorate_model::id::{NodeId, ReplicaId, ServiceName};
use quorate_model::spec::Mode;
use quorate_model::state::{ClusterState, ServiceRecord};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;

/// What would run better elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Balance {
    /// The greatest gain first.
    pub shifts: Vec<Shift>,
    /// Services that nothing is said of, because something of them is under way.
    pub left_out: Vec<ServiceName>,
}

/// A replica that would run better elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shift {
    pub replica: ReplicaId,
    pub slot: Slot,
    pub from: NodeId,
    pub to: NodeId,
    pub why: Better,
}

impl fmt::Display for Shift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.slot, self.why)
    }
}

pub(crate) fn rebalance(state: &ClusterState, observed: &crate::Observed, moves_max: usize) -> Balance {
    let mut room = Room::new(state, observed);
    let replicated = state.services.values().filter(|service| service.spec.mode == Mode::Replicated);
    let (quiet, busy): (Vec<&ServiceRecord>, Vec<&ServiceRecord>) =
        replicated.partition(|service| is_quiet(state, &room, service));
    let left_out = busy.into_iter().map(|service| service.spec.name.clone()).collect();
    let mut movable: BTreeSet<ReplicaId> =
        quiet.into_iter().flat_map(|service| room.of(&service.spec.name).map(|(id, _)| id)).collect();
    let mut shifts = Vec::new();
    while shifts.len() < moves_max {
        let best = movable
            .iter()
            .filter_map(|id| {
                let seat = *room.seat(*id);
                let service = state.services.get(seat.service)?;
                let (to, why) = better(&room, service, *id, &seat)?;
                Some((why, Reverse((seat.slot(), *id)), to))
            })
            .max();
        let Some((why, Reverse((slot, replica)), to)) = best else { break };
        movable.remove(&replica);
        let seat = *room.seat(replica);
        let there = room.spots()[to].record.identity.id;
        room.remove(replica);
        room.insert(replica, Seat { node: there, at: Some(to), ..seat });
        shifts.push(Shift { replica, slot, from: seat.node, to: there, why });
    }
    Balance { shifts, left_out }
}

/// Whether nothing of the service is under way. A version that runs everywhere and is only watched for a while may
/// be moved, as it may be drained.
fn is_quiet(state: &ClusterState, room: &Room<'_>, service: &ServiceRecord) -> bool {
    let update = state.deploying(&service.spec.name);
    let is_out = update.is_none_or(|update| update.stage == Stage::Verifying && update.held.is_none());
    is_out
        && room
            .of(&service.spec.name)
            .all(|(_, seat)| seat.phase == Phase::Run && !seat.is_stale() && room.answers(seat.at))
}

/// The best other node for a replica, if it is better than its own.
fn better<'a>(room: &Room<'a>, service: &'a ServiceRecord, id: ReplicaId, seat: &Seat<'a>) -> Option<(At, Better)> {
    let search = Search { replaces: Some(id), returns: false, ..Search::new(service, seat.ordinal) };
    let ranking = Ranking::new(room, search);
    let to = ranking.best().ok()?;
    Some((to, ranking.better(to, seat.at?)?))
}
