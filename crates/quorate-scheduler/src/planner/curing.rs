//! How stale replicas get successors: updates and moves.
//!
//! A stale replica does not run what its service is now, or is not where it should be. Its ordinal gets a
//! successor first and then loses the old one. The old one ends first where an update keeps its fixed port or
//! its name on the node, where no node has room for both, where the service runs once, and where its spec says
//! so. Updates go on batch by batch, moves one by one.

use super::Planner;
use crate::held::{Held, HeldReason};
use crate::ranking::{Ranking, Search};
use crate::room::{At, Seat};
use quorate_model::assignment::Phase;
use quorate_model::id::ReplicaId;
use quorate_model::observed::ReplicaState;
use quorate_model::planted::{Bug, planted};
use quorate_model::spec::{Mode, Order};
use quorate_model::state::ServiceRecord;

impl<'a> Planner<'a> {
    /// Brings a service one step from stale replicas to what they should be.
    pub(super) fn cure(&mut self, service: &'a ServiceRecord) {
        for members in self.room.ordinals(&service.spec.name).into_values() {
            let (old, new): (Vec<ReplicaId>, Vec<ReplicaId>) =
                members.into_iter().partition(|id| self.room.seat(*id).is_stale());
            if let (Some(old), Some(new)) = (old.first(), new.first())
                && (self.takes_over(service, *new, *old) || self.is_useless(*old))
            {
                self.end(*old);
            }
        }
        let mut is_first = true;
        while let Some(old) = self.next_stale(service, std::mem::take(&mut is_first)) {
            let seat = *self.room.seat(old);
            let search = Search { replaces: Some(old), ..Search::new(service, seat.ordinal) };
            let stops_first = (seat.leased && seat.spec.mode == Mode::Singleton)
                || service.spec.mode == Mode::Singleton
                || (service.spec.update.order == Some(Order::StopFirst) && seat.outdated)
                || (service.spec.is_alone_on_its_node() && !seat.misplaced)
                || self.needs_its_room(search, seat.at);
            let search = Search { ends_first: stops_first, ..search };
            if stops_first {
                // Nobody gives up a place without knowing another.
                match self.find(search, 0) {
                    Some(_) => self.end(old),
                    None => return,
                }
                // Another takes its role over first.
                if self.room.has(old) && self.room.seat(old).phase == Phase::Run {
                    return;
                }
            } else {
                if !self.place(search, 0) {
                    return;
                }
                if self.is_useless(old) {
                    self.end(old);
                }
            }
        }
    }

    /// Whether a successor is so well that the old one may end.
    fn takes_over(&self, service: &ServiceRecord, new: ReplicaId, old: ReplicaId) -> bool {
        if planted(Bug::UpdateWithoutHealth) {
            return true;
        }
        // What only moves runs what it ran before.
        if self.room.seat(old).outdated { self.is_ready(service, new) } else { self.is_healthy(new) }
    }

    /// Whether nothing has room for a successor beside the old one: then the old one goes first, if that helps.
    fn needs_its_room(&self, search: Search<'a>, at: Option<At>) -> bool {
        let spec = &search.service.spec;
        if spec.resources.is_none() {
            return false;
        }
        let ranking = Ranking::new(&self.room, search);
        match spec.mode {
            Mode::EveryNode => at.is_some_and(|at| ranking.unfit(at).is_some()),
            Mode::Replicated | Mode::Singleton | Mode::ActivePassive => ranking.best().is_err(),
        }
    }

    /// Whether it serves nobody, and stands where it should not: nothing is lost with it.
    fn is_useless(&self, id: ReplicaId) -> bool {
        let seat = self.room.seat(id);
        seat.misplaced && self.room.answers(seat.at) && !self.is_healthy(id)
    }

    /// The replica that gets a successor next. `None`: there is none, or it has to wait; then it is said
    /// what for, if `tells`.
    fn next_stale(&mut self, service: &ServiceRecord, tells: bool) -> Option<ReplicaId> {
        let (mut waiting, mut pairs, mut unsettled) = (Vec::new(), Vec::new(), Vec::new());
        let mut updated = 0;
        for members in self.room.ordinals(&service.spec.name).into_values() {
            updated += usize::from(members.iter().any(|id| !self.room.seat(*id).outdated));
            let (old, new): (Vec<ReplicaId>, Vec<ReplicaId>) =
                members.into_iter().partition(|id| self.room.seat(*id).is_stale());
            match (old.first(), new.first()) {
                (Some(old), Some(new)) => pairs.push((*old, *new)),
                (Some(old), None) => waiting.push(*old),
                (None, Some(new)) if !self.is_ready(service, *new) => unsettled.push(*new),
                (None, _) => {}
            }
        }
        let ending = self.ending(service);
        let busy = pairs.len() + unsettled.len() + ending.len();
        let copies = waiting.len() + updated;
        let pace = self.pace(service, copies);
        // A version that does not become healthy is brought out no further.
        let may_update = busy < pace.batch && updated < pace.copies;
        // What is not healthy loses nothing by being replaced. What cannot be asked is left to the
        // decision about its node.
        let may_follow = |id: &ReplicaId| {
            let seat = self.room.seat(*id);
            self.room.answers(seat.at) && if seat.outdated { may_update } else { pairs.is_empty() }
        };
        let rank = |id: &ReplicaId| {
            let seat = self.room.seat(*id);
            // Whoever is active has its successor among those that went before.
            (seat.leased, self.is_healthy(*id), !seat.misplaced, seat.ordinal)
        };
        let next = waiting.iter().copied().filter(may_follow).min_by_key(rank);
        let is_stuck = !may_update && waiting.iter().any(|id| self.room.seat(*id).outdated);
        match (pairs.first(), unsettled.first(), ending.first()) {
            _ if !tells => {}
            (Some((old, new)), _, _) if next.is_none() => self.hold_for_new(service, *new, Some(*old)),
            (None, Some(new), _) if is_stuck => self.hold_for_new(service, *new, None),
            (None, None, Some(old)) if is_stuck => self.hold_for_ending(*old),
            _ => {}
        }
        next
    }

    /// Replicas of older versions that are on their way out, and whose successors wait for them.
    pub(super) fn ending(&self, service: &ServiceRecord) -> Vec<Seat<'a>> {
        let mine = self.room.of(&service.spec.name).map(|(_, seat)| *seat);
        mine.filter(|seat| seat.outdated && seat.phase != Phase::Run).collect()
    }

    pub(super) fn hold_for_ending(&mut self, old: Seat<'_>) {
        let reason = HeldReason::Ending { slot: old.slot(), node: self.room.node_name(old.node) };
        self.hold_once(Held { service: old.service.clone(), reason });
    }

    fn hold_for_new(&mut self, service: &ServiceRecord, new: ReplicaId, old: Option<ReplicaId>) {
        let (seat, version) = (*self.room.seat(new), service.version);
        let slot = seat.slot();
        let moved_from = old.map(|old| self.room.seat(old)).filter(|old| !old.outdated).map(|old| old.node);
        let healthy_for = service.spec.update.healthy_for;
        let reason = match (self.observed.replicas.get(&new), moved_from) {
            (Some(ReplicaState::Healthy), None) => HeldReason::UpdateBakes { slot, version, healthy_for },
            (Some(ReplicaState::Unhealthy | ReplicaState::BackingOff | ReplicaState::Failed), _) => {
                HeldReason::UpdateFailed { slot, version, detail: self.detail(new) }
            }
            (_, Some(from)) => {
                let (from, to) = (self.room.node_name(from), self.room.node_name(seat.node));
                HeldReason::MoveWaits { slot, from, to }
            }
            (_, None) => HeldReason::UpdateWaits { slot, version },
        };
        self.hold(service, reason);
    }
}
