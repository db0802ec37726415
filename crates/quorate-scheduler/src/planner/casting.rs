//! Which copy of an active-passive service is the active one.
//!
//! Copies are placed, replaced and updated like those of any service; here one of them gets the lease, and gives it
//! back when another is to have it: because somebody asked, because it is to leave its node or its version, because
//! it is not well, or because the spec wants its place back (`failback`). Nobody gives a role up without an heir who
//! is healthy.
//!
//! # Invariants
//! - Nobody is promoted before the lease is free: given back by the word of its node, or raised.
//! - A copy that is well, and where it should be, stays active, whoever else comes.

use super::{Fate, Planner};
use crate::held::HeldReason;
use crate::roles::{ActiveCopy, Roles, Standby, Unready, WhyActive};
use crate::room::Seat;
use quorate_model::assignment::Phase;
use quorate_model::command::Step;
use quorate_model::id::ReplicaId;
use quorate_model::observed::ReplicaState;
use quorate_model::planted::{Bug, planted};
use quorate_model::spec::{Driver, Mode, ServiceSpec};
use quorate_model::state::{NodeRecord, ReplicaRecord, ServiceRecord};
use std::cmp::Reverse;

impl<'a> Planner<'a> {
    /// Sees to it that one copy is active, and the right one. Of a service that is stopped nobody takes over.
    pub(super) fn cast(&mut self, service: &ServiceRecord) {
        if service.spec.mode != Mode::ActivePassive {
            return;
        }
        let holder = self.state.leases.get(&service.spec.name).and_then(|lease| lease.holder);
        let Some(holder) = holder else { return self.promote(service, None) };
        // What held it before the service was active-passive ends as what runs once does.
        let record = self.state.replicas.get(&holder.replica).filter(|record| is_cast(&record.spec));
        let Some((record, lease)) = record.and_then(|record| Some((record, record.lease?))) else { return };
        if lease.yields {
            let said = self.observed.castings.get(&record.id).is_some_and(|casting| casting.yielded == lease.epoch);
            if said || planted(Bug::YieldTakenAsDone) {
                self.plan.steps.push(Step::Demoted { replica: record.id });
                self.promote(service, Some(record.id));
            }
        } else if service.stopped.is_none() && self.should_yield(service, record) {
            self.yield_role(record.id);
        }
    }

    /// Whether another copy is to be active, and could be.
    fn should_yield(&self, service: &ServiceRecord, record: &ReplicaRecord) -> bool {
        let Some(heir) = self.heir(service, Some(record.id)).map(|id| *self.room.seat(id)) else { return false };
        let Some(seat) = self.room.has(record.id).then(|| *self.room.seat(record.id)) else { return false };
        if seat.phase != Phase::Run || !self.room.answers(seat.at) {
            return false;
        }
        let state = self.observed.replicas.get(&record.id);
        let unwell = [ReplicaState::Unhealthy, ReplicaState::BackingOff, ReplicaState::Failed];
        // Nobody goes back to where the role was taken from a moment ago.
        let wanted_back = service.spec.activity().failback && !heir.outdated && !self.leaves(&heir) && {
            self.preference(service, &heir) < self.preference(service, &seat)
        };
        (self.leaves(&seat) && !self.leaves(&heir)) || state.is_some_and(|state| unwell.contains(state)) || wanted_back
    }

    /// Another copy that would be a good active one: the best.
    fn heir(&self, service: &ServiceRecord, but: Option<ReplicaId>) -> Option<ReplicaId> {
        let standbys = self.room.of(&service.spec.name).filter(|(id, seat)| {
            let may = seat.phase == Phase::Run && Some(*id) != but && is_cast(seat.spec);
            may && self.is_healthy(*id) && !self.is_vetoed(service, seat)
        });
        standbys.min_by_key(|(id, seat)| self.rank(service, *id, seat)).map(|(id, _)| id)
    }

    /// Less is promoted rather than more.
    fn rank(&self, service: &ServiceRecord, id: ReplicaId, seat: &Seat<'_>) -> impl Ord + use<> {
        let next = self.state.leases.get(&service.spec.name).and_then(|lease| lease.next);
        let placed = self.state.replicas.get(&id).map(|replica| replica.revision);
        let score = Reverse(self.score(service, seat).flatten());
        (Some(id) != next, self.leaves(seat), seat.outdated, score, self.preference(service, seat), placed, id)
    }

    /// What the agent of a copy says of its promotion, where any agent of the service says anything: those of
    /// databases know whose data is the newest. Inside: `None`, this one said nothing.
    fn score(&self, service: &ServiceRecord, seat: &Seat<'_>) -> Option<Option<i64>> {
        let of = |node: &NodeRecord| node.score(&service.spec.name);
        let is_scored = service.spec.driver == Driver::Ocf && self.state.nodes.values().any(|node| of(node).is_some());
        is_scored.then(|| self.state.nodes.get(&seat.node).and_then(of))
    }

    /// Whether a copy is not to be promoted, as its agent says or does not.
    fn is_vetoed(&self, service: &ServiceRecord, seat: &Seat<'_>) -> bool {
        self.score(service, seat).is_some_and(|score| score.is_none_or(|score| score < 0))
    }

    /// Whether a copy is to leave its node, or its server is about to end.
    fn leaves(&self, seat: &Seat<'_>) -> bool {
        seat.misplaced || self.state.nodes.get(&seat.node).is_some_and(|node| node.handing_over)
    }

    /// The first wish that its node meets; less is better.
    fn preference(&self, service: &ServiceRecord, seat: &Seat<'_>) -> usize {
        let prefer = service.spec.activity().prefer;
        let node = self.state.nodes.get(&seat.node);
        node.and_then(|node| prefer.iter().position(|wish| wish.holds(node))).unwrap_or(prefer.len())
    }

    /// Which copy is active and why, and who would be next. `None`: it is not that kind of service.
    pub(crate) fn roles(&self, service: &ServiceRecord) -> Option<Roles> {
        let name = &service.spec.name;
        if service.spec.mode != Mode::ActivePassive {
            return None;
        }
        let lease = self.state.leases.get(name);
        let held = lease.and_then(|lease| Some((lease, lease.holder?)));
        let held = held.filter(|(_, holder)| self.room.has(holder.replica));
        let active = held.map(|(lease, holder)| {
            let seat = self.room.seat(holder.replica);
            let (slot, node, why) =
                (seat.slot(), self.room.node_name(seat.node), self.why_active(service, seat, holder.replica));
            ActiveCopy { slot, node, epoch: lease.epoch, since: lease.since, why }
        });
        let but = held.map(|(_, holder)| holder.replica);
        let mut standbys: Vec<(ReplicaId, &Seat<'_>)> = self
            .room
            .of(name)
            .filter(|(id, seat)| seat.phase == Phase::Run && Some(*id) != but && is_cast(seat.spec))
            .collect();
        let unfit = |id: ReplicaId, seat: &Seat<'_>| !self.is_healthy(id) || self.is_vetoed(service, seat);
        standbys.sort_by_cached_key(|(id, seat)| (unfit(*id, seat), self.rank(service, *id, seat)));
        let standbys = standbys.into_iter().map(|(id, seat)| {
            let state = self.observed.replicas.get(&id).copied();
            let is_heard = self.room.answers(seat.at);
            let unready = || if is_heard { Unready::State(state) } else { Unready::Unheard };
            let vetoed = || self.is_vetoed(service, seat).then(|| Unready::Score(self.score(service, seat).flatten()));
            let unfit = if self.is_healthy(id) { vetoed() } else { Some(unready()) };
            Standby { slot: seat.slot(), node: self.room.node_name(seat.node), unfit }
        });
        Some(Roles { active, cold: service.spec.stands_by_cold(), standbys: standbys.collect() })
    }

    fn why_active(&self, service: &ServiceRecord, seat: &Seat<'_>, id: ReplicaId) -> WhyActive {
        if !self.room.answers(seat.at) || self.fate(seat.node) != Fate::Present {
            return WhyActive::Silent;
        }
        let Some(record) = self.state.replicas.get(&id) else { return WhyActive::Stays };
        if record.lease.is_some_and(|lease| lease.yields) || self.should_yield(service, record) {
            return WhyActive::Yields;
        }
        let heir = self.heir(service, Some(id)).map(|heir| (heir, self.room.seat(heir)));
        let Some((heir, other)) = heir else {
            return if self.is_healthy(id) { WhyActive::Alone } else { WhyActive::NobodyBetter };
        };
        if self.rank(service, heir, other) < self.rank(service, id, seat) {
            return WhyActive::Stays;
        }
        let (mine, theirs) = (self.preference(service, seat), self.preference(service, other));
        match service.spec.activity().prefer.get(mine).filter(|_| mine < theirs) {
            Some(wish) => WhyActive::Preferred { wish: wish.to_string() },
            None if (self.leaves(seat), seat.outdated) < (self.leaves(other), other.outdated) => WhyActive::Stays,
            None => WhyActive::Oldest,
        }
    }

    fn promote(&mut self, service: &ServiceRecord, but: Option<ReplicaId>) {
        if service.stopped.is_some() {
            return;
        }
        let name = &service.spec.name;
        match self.heir(service, but) {
            Some(replica) => {
                let epoch = self.state.next_epoch(name);
                self.plan.steps.push(Step::Promote { replica, service: name.clone(), epoch });
                self.room.give_role(replica);
            }
            None => {
                let is_well = |(id, seat): (ReplicaId, &Seat<'_>)| {
                    seat.phase == Phase::Run && Some(id) != but && is_cast(seat.spec) && self.is_healthy(id)
                };
                let some_are_well = self.room.of(name).any(is_well);
                let why = if some_are_well { HeldReason::NobodyToPromote } else { HeldReason::NobodyActive };
                self.hold(service, why);
            }
        }
    }

    fn yield_role(&mut self, replica: ReplicaId) {
        if self.yielding.insert(replica) {
            self.plan.steps.push(Step::Yield { replica });
        }
    }

    /// Has the active copy give its role to another before it is ended. `false`: there is nothing to wait for.
    pub(super) fn ends_later(&mut self, replica: ReplicaId) -> bool {
        let seat = *self.room.seat(replica);
        let service = self.state.services.get(seat.service).filter(|service| service.spec.mode == Mode::ActivePassive);
        let Some(service) = service.filter(|_| seat.leased && is_cast(seat.spec)) else { return false };
        let yields = self.state.replicas.get(&replica).and_then(|record| record.lease).is_some_and(|it| it.yields);
        let is_new = self.state.replicas.get(&replica).is_none_or(|record| record.lease.is_none());
        if yields || is_new {
            return true;
        }
        let waits = self.heir(service, Some(replica)).is_some();
        if waits {
            self.yield_role(replica);
        }
        waits
    }
}

/// Whether copies of it have parts.
fn is_cast(spec: &ServiceSpec) -> bool {
    spec.mode == Mode::ActivePassive
}
