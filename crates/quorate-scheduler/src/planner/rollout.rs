//! How far an update is, and whether it goes on.
//!
//! The log has the stage of each update ([`deployment`](quorate_model::deployment)); whether it is over, or has
//! failed, follows from the replicas and from what is observed of them. Nothing of the way through a stage is
//! remembered here, so whoever leads next goes on with the same batch.
//!
//! What is on a node that cannot be asked says nothing about a version: it neither fails an update nor keeps it
//! from its end. What of an older version returns with its node is replaced then.
//!
//! Spans are those that the planning manager measured itself. All managers measure, from when they learn of a
//! thing; so a deadline goes on when another leads, and begins anew only with one that has just started.

use super::Planner;
use crate::held::HeldReason;
use quorate_model::assignment::Phase;
use quorate_model::deployment::{Advance, Deployment, Stage};
use quorate_model::id::{ReplicaId, ServiceName};
use quorate_model::observed::ReplicaState;
use quorate_model::planted::{Bug, planted};
use quorate_model::state::{ClusterState, ServiceRecord};
use std::collections::BTreeMap;
use std::time::Duration;

/// Restarts of a new replica that is not well after which its version has failed. One may be an accident, of a
/// port or of something that was not up yet; with the usual back-off three take less than two seconds.
const CRASHES: u32 = 3;

/// What an update may do now.
pub(super) struct Pace {
    /// Ordinals that may be without a settled replica at a time.
    pub(super) batch: usize,
    /// Ordinals that may have the new version.
    pub(super) copies: usize,
}

/// The replicas of a service that can be asked.
#[derive(Default)]
struct Census {
    /// Of the present version, and well.
    ready: Vec<ReplicaId>,
    unready: Vec<ReplicaId>,
    /// Of another one: those that run, and those on their way out.
    others: usize,
}

impl Census {
    fn is_complete(&self) -> bool {
        !self.ready.is_empty() && self.unready.is_empty() && self.others == 0
    }

    fn ready(&self) -> u32 {
        u32::try_from(self.ready.len()).unwrap_or(u32::MAX)
    }
}

/// Whether the scheduler goes by other rules afterwards.
pub(super) fn changes_plans(advance: &Advance) -> bool {
    match advance {
        Advance::To { stage } => *stage == Stage::Rolling,
        Advance::Hold { .. } | Advance::Resume | Advance::RollBack { .. } => true,
    }
}

fn may_go_back(service: &ServiceRecord, deployment: &Deployment) -> bool {
    service.spec.update.rollback && !deployment.stage.goes_back() && deployment.from.is_some()
}

impl<'a> Planner<'a> {
    /// What becomes of the updates that are not over.
    pub(super) fn advances(&self) -> BTreeMap<&'a ServiceName, Advance> {
        let open = self.state.deployments.values().filter(|deployment| !deployment.stage.is_over());
        open.filter_map(|deployment| {
            // What is stopped proves nothing: its update goes on when it runs again.
            let service = self.state.services.get(&deployment.service).filter(|service| service.stopped.is_none())?;
            Some((&deployment.service, self.further(service, deployment)?))
        })
        .collect()
    }

    fn further(&self, service: &ServiceRecord, deployment: &Deployment) -> Option<Advance> {
        let census = self.census(service);
        let failure = self.failure(service, deployment, &census);
        match (&deployment.held, failure) {
            (Some(_), Some(_)) => return None,
            (Some(halt), None) => {
                return (census.is_complete() || census.ready() > halt.ready).then_some(Advance::Resume);
            }
            (None, Some(why)) if may_go_back(service, deployment) => return Some(Advance::RollBack { why }),
            (None, Some(why)) => return Some(Advance::Hold { why, ready: census.ready() }),
            (None, None) => {}
        }
        let span = self.observed.stage_for.get(&service.spec.name).copied().unwrap_or_default();
        let (is_over, stage) = match deployment.stage {
            Stage::Canary => {
                let copies = self.room.ordinals(&service.spec.name).len();
                let canaries = (service.spec.update.canary as usize).min(copies).max(1);
                let all_well = census.unready.is_empty() && census.ready.len() >= canaries;
                (all_well, ClusterState::after_canaries(&service.spec))
            }
            Stage::Rolling => (census.is_complete(), Stage::Verifying),
            Stage::Verifying => (census.is_complete() && span >= service.spec.update.verify_for.0, Stage::Done),
            Stage::RollingBack => (census.is_complete(), Stage::RolledBack),
            Stage::AwaitPromotion | Stage::Done | Stage::RolledBack => return None,
        };
        is_over.then_some(Advance::To { stage })
    }

    fn census(&self, service: &ServiceRecord) -> Census {
        let mut census = Census::default();
        for (id, seat) in self.room.of(&service.spec.name).filter(|(_, seat)| self.room.answers(seat.at)) {
            match seat.phase {
                _ if seat.outdated => census.others += 1,
                Phase::Run if self.is_ready(service, id) => census.ready.push(id),
                Phase::Run => census.unready.push(id),
                Phase::Drain | Phase::Stop => {}
            }
        }
        census
    }

    /// Why an update has failed, for people. `None`: it has not.
    fn failure(&self, service: &ServiceRecord, deployment: &Deployment, census: &Census) -> Option<String> {
        if planted(Bug::UpdateNeverFails) {
            return None;
        }
        let update = &service.spec.update;
        for id in census.unready.iter().filter(|id| !self.is_healthy(**id)) {
            let seat = self.room.seat(*id);
            let (slot, node) = (seat.slot(), self.room.node_name(seat.node));
            let restarts = self.observed.restarts.get(id).copied().unwrap_or_default();
            let span = self.observed.unhealthy_for.get(id).copied().unwrap_or_default();
            let what = if self.observed.replicas.get(id) == Some(&ReplicaState::Failed) {
                format!("{slot} on {node} failed")
            } else if restarts >= CRASHES {
                format!("{slot} on {node} was started again {restarts} times")
            } else if span >= update.healthy_within.0 {
                format!("{slot} on {node} was not healthy within {}", update.healthy_within)
            } else {
                continue;
            };
            let detail = self.detail(*id);
            return Some(if detail.is_empty() { what } else { format!("{what}: {detail}") });
        }
        let waits = matches!(deployment.stage, Stage::Canary | Stage::Rolling | Stage::RollingBack);
        let stalled = self.observed.stalled_for.get(&service.spec.name).copied().unwrap_or(Duration::ZERO);
        let is_stalled = waits && !census.is_complete() && stalled >= update.progress_within.0;
        is_stalled.then(|| format!("no further copy became healthy within {}", update.progress_within))
    }

    /// Whether a replica of the present version is well, and has been for as long as is wanted of it. What ran
    /// well before need not show it again.
    pub(super) fn is_ready(&self, service: &ServiceRecord, id: ReplicaId) -> bool {
        let open = self.state.deploying(&service.spec.name);
        let is_new = open.is_some_and(|open| !open.proven && !open.stage.goes_back());
        let span = || self.observed.healthy_for.get(&id).copied().unwrap_or_default();
        self.is_healthy(id) && (!is_new || span() >= service.spec.update.healthy_for.0)
    }

    pub(super) fn pace(&self, service: &ServiceRecord, copies: usize) -> Pace {
        let update = &service.spec.update;
        let (batch, canaries) = (update.batch.of(copies), update.canary as usize);
        match self.state.deploying(&service.spec.name) {
            // What goes back never gives up.
            Some(open) if open.held.is_some() && !open.stage.goes_back() => Pace { batch: 0, copies: 0 },
            Some(open) if open.stage == Stage::Canary => Pace { batch, copies: canaries },
            Some(open) if open.stage == Stage::AwaitPromotion => Pace { batch: 0, copies: 0 },
            Some(_) | None => Pace { batch, copies: usize::MAX },
        }
    }

    /// What a missing replica is to run: the version before, while the present one is being tried out and has as
    /// many copies as it may, and while an update is held.
    pub(super) fn version_to_fill(&self, service: &'a ServiceRecord) -> &'a ServiceRecord {
        let Some(former) = self.former.get(&service.spec.name) else { return service };
        let is_held = self.state.deploying(&service.spec.name).is_some_and(|open| open.held.is_some());
        let running = self.room.of(&service.spec.name).filter(|(_, seat)| seat.phase == Phase::Run);
        let updated = running.filter(|(_, seat)| !seat.outdated).count();
        if !is_held && updated < service.spec.update.canary as usize { service } else { former }
    }

    /// Says why an update goes no further, where that is decided.
    pub(super) fn tell_what_is_held(&mut self, service: &ServiceRecord) {
        let Some(open) = self.state.deploying(&service.spec.name) else { return };
        let (name, version) = (service.spec.name.clone(), open.version);
        if let Some(halt) = &open.held {
            self.hold(service, HeldReason::UpdateHeld { service: name, version, why: halt.why.clone() });
        } else if open.stage == Stage::AwaitPromotion && self.census(service).unready.is_empty() {
            self.hold(service, HeldReason::AwaitsPromotion { service: name, version });
        }
    }
}
