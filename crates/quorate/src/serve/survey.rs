//! What the scheduler says of a moment, asked aside: the core gives away a copy of what it plans on, and the
//! answer is computed where it keeps nobody waiting.

use super::backend::Inner;
use super::inbox::Closed;
use quorate_api::autoscale::{AutoscaleView, AutoscaledView, FoundView, ReadingView, TrafficView};
use quorate_api::backend::ReadError;
use quorate_api::placement::{
    ActiveView, ExplanationView, FitView, ForecastView, HeldView, MoveView, PlacedView, RebalanceView, RoleMoveView,
    RolesView, RoomView, RunningView, SearchView, ShiftView, StandbyView, UnfitView,
};
use quorate_api::updates::{HistoryView, VersionState, VersionView};
use quorate_model::assignment::Phase;
use quorate_model::deployment::{Trial, VersionRecord};
use quorate_model::id::{NodeId, ServiceName};
use quorate_model::time::Span;
use quorate_node::Event;
use quorate_scheduler::autoscale::{Change, Flow, Reading, Report};
use quorate_scheduler::{
    ActiveCopy, Balance, Budget, Candidates, Explanation, Fault, Forecast, Roles, Slot, Survey, Unfit,
};
use std::time::Duration;

impl Inner {
    /// # Errors
    /// The core has too much to do, is gone, or did not answer in time.
    pub(super) async fn survey(&self, patience: Duration) -> Result<Survey, ReadError> {
        let (ticket, answer) = self.questions.ask_survey();
        if let Err(closed) = self.inbox.try_send(Event::Survey { ticket }) {
            self.questions.forget_survey(ticket);
            return Err(match closed {
                Closed::Full => ReadError::Overloaded,
                Closed::Gone => ReadError::ShuttingDown,
            });
        }
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(survey)) => Ok(*survey),
            Ok(Err(_)) => Err(ReadError::ShuttingDown),
            Err(_) => {
                self.questions.forget_survey(ticket);
                Err(ReadError::TooSlow { limit: patience })
            }
        }
    }

    pub(super) async fn explain(
        &self,
        service: ServiceName,
        patience: Duration,
    ) -> Result<Option<ExplanationView>, ReadError> {
        let survey = self.survey(patience).await?;
        aside(move || survey.explain(&service).map(explanation)).await
    }

    pub(super) async fn autoscale(
        &self,
        service: ServiceName,
        patience: Duration,
    ) -> Result<Option<AutoscaleView>, ReadError> {
        let survey = self.survey(patience).await?;
        let Some(known) = survey.state.services.get(&service) else { return Ok(None) };
        let found = survey.autoscale(&service).map(found);
        let (on, table) = (known.spec.autoscaled().is_some(), known.spec.autoscale.clone());
        Ok(Some(AutoscaleView { on, want: survey.state.wanted(known), table, found, service }))
    }

    pub(super) async fn history(
        &self,
        service: ServiceName,
        patience: Duration,
    ) -> Result<Option<HistoryView>, ReadError> {
        let survey = self.survey(patience).await?;
        let Some(known) = survey.state.services.get(&service) else { return Ok(None) };
        let kept = survey.state.versions.get(&service).into_iter().flat_map(|kept| kept.values().rev());
        Ok(Some(HistoryView { version: known.version, versions: kept.map(version).collect(), service }))
    }

    pub(super) async fn what_if_kill(&self, node: NodeId, patience: Duration) -> Result<ForecastView, ReadError> {
        let survey = self.survey(patience).await?;
        aside(move || forecast(&survey, node)).await
    }

    pub(super) async fn to_rebalance(&self, moves_max: usize, patience: Duration) -> Result<RebalanceView, ReadError> {
        let survey = self.survey(patience).await?;
        aside(move || shifts(&survey, moves_max)).await
    }
}

/// Where computing for milliseconds keeps no connection waiting.
pub(super) async fn aside<T: Send + 'static>(compute: impl FnOnce() -> T + Send + 'static) -> Result<T, ReadError> {
    tokio::task::spawn_blocking(compute).await.map_err(|_| ReadError::ShuttingDown)
}

fn explanation(explanation: Explanation) -> ExplanationView {
    let Explanation { service, mode, wanted, roles, running, searches, without, budget, held } = explanation;
    let running = running.into_iter().map(|one| {
        let rank = one.rank().and_then(|rank| u32::try_from(rank).ok());
        let (fit, unfit) = nodes(one.candidates);
        RunningView { name: one.slot.to_string(), id: one.replica, node: one.node, rank, fit, unfit }
    });
    let searches = searches.into_iter().map(|one| {
        let (fit, unfit) = nodes(one.candidates);
        let to = fit.first().map(|best| best.node.clone());
        SearchView { name: one.slot.to_string(), from: one.from, to, fit, unfit }
    });
    ExplanationView {
        service,
        mode,
        want: wanted,
        roles: roles.map(parts),
        running: running.collect(),
        searches: searches.collect(),
        without: without.into_iter().map(unfit).collect(),
        room: budget.map(room),
        stopped: None,
        next: None,
        held: held.iter().map(ToString::to_string).collect(),
    }
}

fn parts(roles: Roles) -> RolesView {
    let Roles { active, cold, standbys } = roles;
    let active = active.map(|one| {
        let ActiveCopy { slot, node, epoch, since, why } = one;
        ActiveView { name: slot.to_string(), node, epoch, since, why: why.to_string() }
    });
    let standbys = standbys.into_iter().map(|one| {
        let unfit = one.unfit.map(|why| why.to_string());
        StandbyView { name: one.slot.to_string(), node: one.node, unfit }
    });
    RolesView { active, cold, standbys: standbys.collect() }
}

fn found(report: Report) -> FoundView {
    let Report { bounds, hours, verdict, looked, step, flow, changes, .. } = report;
    let numbers = verdict.as_ref().map(|verdict| (verdict.right, verdict.to));
    let (readings, limits) = verdict.map(|verdict| (verdict.readings, verdict.limits)).unwrap_or_default();
    let reading = |reading: Reading| ReadingView {
        metric: reading.metric.name().to_owned(),
        mean: reading.mean,
        target: reading.target,
        percent: reading.percent(),
        copies: reading.copies,
        right: reading.right,
    };
    let change = |change: Change| AutoscaledView { at: change.at, from: change.from, to: change.to, why: change.why };
    FoundView {
        min: bounds.min,
        max: bounds.max,
        hours,
        load: step.map(|step| step.name().to_owned()),
        readings: readings.into_iter().map(reading).collect(),
        traffic: flow.map(traffic),
        right: numbers.map(|(right, _)| right),
        to: numbers.map(|(_, to)| to),
        why: limits.iter().map(ToString::to_string).collect(),
        looked: looked.map(|ago| Span::from_secs(ago.as_secs())),
        changes: changes.into_iter().map(change).collect(),
    }
}

fn traffic(flow: Flow) -> TrafficView {
    let p95_us = flow.latencies.p95_us();
    let Flow { gateways, silent, millirequests, waiting, .. } = flow;
    TrafficView { gateways, silent, millirequests, waiting, p95_us }
}

fn room(budget: Budget) -> RoomView {
    let Budget { each, replicas, free, fit, lost, free_then, fit_then } = budget;
    RoomView { each, replicas, free, fit, lost, free_then, fit_then }
}

fn version(record: &VersionRecord) -> VersionView {
    let (state, why) = match &record.trial {
        Trial::Running => (VersionState::Running, ""),
        Trial::Stable { .. } => (VersionState::Stable, ""),
        Trial::Failed { why } => (VersionState::Failed, why.as_str()),
        Trial::Superseded => (VersionState::Superseded, ""),
    };
    let (version, at, by, spec) = (record.version, record.at, record.by.clone(), record.spec.clone());
    VersionView { version, state, why: why.to_owned(), at, by, spec }
}

fn nodes(candidates: Candidates) -> (Vec<FitView>, Vec<UnfitView>) {
    let fit = candidates.fit.into_iter().map(|(node, score)| FitView { node, score: score.to_string() });
    (fit.collect(), candidates.unfit.into_iter().map(unfit).collect())
}

fn unfit((node, why): (String, Unfit)) -> UnfitView {
    UnfitView { node, why: why.to_string() }
}

fn node_name(survey: &Survey, id: NodeId) -> String {
    survey.state.nodes.get(&id).map_or_else(|| id.to_string(), |record| record.identity.name.clone())
}

fn shifts(survey: &Survey, moves_max: usize) -> RebalanceView {
    let Balance { shifts, left_out } = survey.rebalance(moves_max);
    let moves = shifts.into_iter().map(|one| ShiftView {
        id: one.replica,
        name: one.slot.to_string(),
        service: one.slot.service,
        from: node_name(survey, one.from),
        to: node_name(survey, one.to),
        why: one.why.to_string(),
    });
    let moving = survey.state.replicas.values().filter(|replica| replica.moving && replica.phase == Phase::Run);
    let under_way = moving.map(|replica| format!("{}.{}", replica.service, replica.ordinal));
    RebalanceView { moves: moves.collect(), under_way: under_way.collect(), left_out }
}

pub(super) fn forecast(survey: &Survey, node: NodeId) -> ForecastView {
    let name = |id| node_name(survey, id);
    let Forecast { moves, roles, held } = survey.what_if(Fault::Kill(node));
    let copy = |(slot, at): (Slot, NodeId)| PlacedView { name: slot.to_string(), node: name(at) };
    let roles = roles.into_iter().map(|one| RoleMoveView {
        service: one.service,
        from: one.from.map(copy),
        to: one.to.map(copy),
    });
    let moves = moves.into_iter().map(|one| MoveView {
        name: one.slot.to_string(),
        from: one.from.map(name),
        to: one.to.map(name),
    });
    let held = held.into_iter().map(|held| HeldView { service: held.service, why: held.reason.to_string() });
    ForecastView { node: name(node), moves: moves.collect(), roles: roles.collect(), held: held.collect() }
}
