//! Drills as people see them.

use super::backend::Inner;
use super::survey;
use super::view::seconds;
use quorate_api::backend::ReadError;
use quorate_api::drills::{CopyView, DrillForecast, DrillView, DrillsView, ServiceDrillView, SuccessorView};
use quorate_api::placement::ForecastView;
use quorate_model::drill::{DrillRecord, ServiceDrill, Verdict};
use quorate_model::id::{LogIndex, NodeId, ServiceName};
use quorate_model::state::ClusterState;
use quorate_model::time::Span;
use quorate_node::Node;
use std::time::Duration;

fn name(state: &ClusterState, id: NodeId) -> String {
    state.nodes.get(&id).map_or_else(|| id.to_string(), |record| record.identity.name.clone())
}

/// All that are remembered.
pub(super) fn view(node: &Node) -> DrillsView {
    let state = node.state();
    let drills: Vec<DrillView> = state.drills.values().rev().map(|record| drill(state, record)).collect();
    // Where there is none it need not be published anew with each entry.
    let applied = if drills.is_empty() { LogIndex(0) } else { node.applied() };
    DrillsView { drills, applied }
}

fn drill(state: &ClusterState, record: &DrillRecord) -> DrillView {
    let DrillRecord { id, away, by, began, index, successor, noticed, returned, ended, services, .. } = record;
    DrillView {
        id: *id,
        node: record.name.clone(),
        away: *away,
        by: by.clone(),
        began: *began,
        index: *index,
        over: record.is_over(),
        successor: successor.map(|(node, after)| SuccessorView { node: name(state, node), after }),
        noticed: *noticed,
        returned: *returned,
        ended: *ended,
        services: services.iter().map(|(service, drilled)| one(state, service, drilled)).collect(),
    }
}

fn one(state: &ClusterState, service: &ServiceName, drilled: &ServiceDrill) -> ServiceDrillView {
    let copies = drilled.lost.iter().map(|(ordinal, copy)| CopyView {
        name: format!("{service}.{ordinal}"),
        to: copy.placed.map(|(node, _)| name(state, node)),
        placed: copy.placed.map(|(_, at)| at),
        serving: copy.serving,
    });
    ServiceDrillView {
        service: service.clone(),
        mode: drilled.mode,
        setting: drilled.setting,
        limit: drilled.limit,
        took: drilled.whole,
        verdict: drilled.verdict,
        copies: copies.collect(),
    }
}

/// What became of a service, in a sentence.
pub(super) fn measured(drill: u64, service: &ServiceName, took: Option<Span>, limit: Span, verdict: Verdict) -> String {
    let took = took.map_or_else(String::new, seconds);
    match verdict {
        Verdict::Ok => format!("drill {drill}: {service} was whole after {took}, within {limit}"),
        Verdict::Late => format!("drill {drill}: {service} was whole after {took}, later than {limit}"),
        Verdict::Gone => format!("drill {drill}: {service} was removed meanwhile"),
        Verdict::NotRecovered | Verdict::Open | Verdict::Stays => {
            format!("drill {drill}: {service} was not whole before the node was back")
        }
    }
}

impl Inner {
    pub(super) async fn drill_forecast(
        &self,
        node: NodeId,
        away: Option<Span>,
        patience: Duration,
    ) -> Result<DrillForecast, ReadError> {
        let seen = self.survey(patience).await?;
        survey::aside(move || {
            let state = &seen.state;
            let refused = state.may_drill(node).err().map(|refusal| refusal.to_string());
            let (services, default) = state.would_drill(node, Span(seen.policy.replace_after));
            let services = services.iter().map(|(service, drilled)| one(state, service, drilled)).collect();
            let ForecastView { node, moves, roles, held } = survey::forecast(&seen, node);
            let away = away.unwrap_or(default);
            DrillForecast { node, leads: false, away, services, moves, roles, held, refused }
        })
        .await
    }
}
