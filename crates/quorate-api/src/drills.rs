//! Drills: a node is really taken away for a while, and what becomes of each service is measured.

use crate::access::Acting;
use crate::backend::Backend;
use crate::cluster::{VIEW_WITHIN, command};
use crate::members::find_node;
use crate::placement::{HeldView, MoveView, RoleMoveView};
use crate::problem::Failure;
use crate::request::{Named, Patience, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, StatusCode, Uri};
use quorate_model::command::Command;
use quorate_model::drill::{DrillCommand, Verdict};
use quorate_model::id::{LogIndex, RequestId, ServiceName};
use quorate_model::spec::Mode;
use quorate_model::time::{Span, WallTime};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The drills that are remembered, as one node has them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DrillsView {
    /// The newest first.
    pub drills: Vec<DrillView>,
    /// Up to where the log is in them.
    pub applied: LogIndex,
}

/// A drill and what was measured. Spans count from when the node fell silent, on the clock of the manager that led
/// when it saw that; they are exact to about 0.1 s, and to the difference of two clocks where that manager was
/// started during the drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DrillView {
    pub id: u64,
    /// The node that is, or was, away.
    pub node: String,
    /// For how long.
    #[schema(value_type = String)]
    pub away: Span,
    /// Who wanted it; `null`: nobody is asked who they are here.
    pub by: Option<String>,
    /// When it began, and the log entry that began it.
    #[schema(value_type = u64)]
    pub began: WallTime,
    #[schema(value_type = u64)]
    pub index: LogIndex,
    /// Whether nothing is left to be measured.
    pub over: bool,
    /// Who led after the node, if it led.
    pub successor: Option<SuccessorView>,
    /// When a majority was known not to hear the node any more; `null`: it was not noticed, or not yet.
    #[schema(value_type = Option<String>)]
    pub noticed: Option<Span>,
    /// When the node was joined and heard again.
    #[schema(value_type = Option<String>)]
    pub returned: Option<Span>,
    /// When nothing was left to be measured.
    #[schema(value_type = Option<String>)]
    pub ended: Option<Span>,
    /// What ran on the node.
    pub services: Vec<ServiceDrillView>,
}

/// Who led after the node that was taken away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SuccessorView {
    pub node: String,
    #[schema(value_type = String)]
    pub after: Span,
}

/// What becomes of a service in a drill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceDrillView {
    #[schema(value_type = String)]
    pub service: ServiceName,
    #[schema(value_type = String)]
    pub mode: Mode,
    /// What is promised: the failover time of what runs once, `replace_after` of the rest.
    #[schema(value_type = String)]
    pub setting: Span,
    /// Until when it has to be whole again: the failover time, or 10 s after `replace_after`.
    #[schema(value_type = String)]
    pub limit: Span,
    /// For how long it had fewer healthy copies than wanted, or if it runs once, for how long it did not run; `null`: it has them not, or only since the node is back.
    #[schema(value_type = Option<String>)]
    pub took: Option<Span>,
    /// `open`, `ok`, `late`, `not-recovered`, `stays` (it is not meant to go elsewhere) or `gone` (it was removed).
    #[schema(value_type = String)]
    pub verdict: Verdict,
    /// Its copies that ran on the node.
    pub copies: Vec<CopyView>,
}

/// A copy that ran on the node that is taken away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CopyView {
    /// Service and ordinal, like `web.1`.
    pub name: String,
    /// Where another took its place.
    pub to: Option<String>,
    /// When that was decided.
    #[schema(value_type = Option<String>)]
    pub placed: Option<Span>,
    /// When that one was healthy.
    #[schema(value_type = Option<String>)]
    pub serving: Option<Span>,
}

/// What a drill would do, if it began now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DrillForecast {
    pub node: String,
    /// Whether it leads now.
    pub leads: bool,
    /// For how long it would be away.
    #[schema(value_type = String)]
    pub away: Span,
    /// What runs there, and until when it has to be whole again.
    pub services: Vec<ServiceDrillView>,
    /// As `GET /v1/whatif/kill/{node}`.
    pub moves: Vec<MoveView>,
    #[serde(default)]
    pub roles: Vec<RoleMoveView>,
    pub held: Vec<HeldView>,
    /// Why no drill would begin, as far as this node knows.
    pub refused: Option<String>,
}

/// A drill that is to begin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDrill {
    /// Name, id, or how the id begins.
    pub node: String,
    /// For how long the node is away, `5s` to `10m`. Default: 10 s longer than the slowest of its services may
    /// take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub away: Option<Span>,
}

/// The last 50 drills, the newest first.
#[utoipa::path(get, path = "/v1/drills", operation_id = "drill_list", tag = "cluster",
    responses((status = 200, body = [DrillView])))]
pub(crate) async fn list<B: Backend>(State(app): State<Shared<B>>) -> Json<Vec<DrillView>> {
    Json(app.backend.drills().borrow().drills.clone())
}

/// A drill.
#[utoipa::path(get, path = "/v1/drills/{id}", operation_id = "drill_show", tag = "cluster",
    params(("id" = String, Path, description = "Its number, or `last`")),
    responses((status = 200, body = DrillView), (status = 404, description = "unknown-drill", body = Problem)))]
pub(crate) async fn show<B: Backend>(
    State(app): State<Shared<B>>,
    Named(id): Named,
) -> Result<Json<DrillView>, Failure> {
    let drills = app.backend.drills().borrow().clone();
    let found = match id.as_str() {
        "last" => drills.drills.first(),
        number => drills.drills.iter().find(|drill| drill.id.to_string() == number),
    };
    found.cloned().map(Json).ok_or_else(|| {
        let message = match id.as_str() {
            "last" => "there was no drill".to_owned(),
            number => format!("there is no drill {number}"),
        };
        let fix = "see `quorate drill list` for those that are remembered: the last 50";
        Failure::new(StatusCode::NOT_FOUND, "unknown-drill", message, fix)
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HowLong {
    #[serde(default)]
    away: Option<Span>,
    #[serde(default)]
    timeout_ms: Option<u64>,
}

/// What a drill of this node would do: for how long it would be away, what would move where, and whether it would
/// begin. Nothing is changed.
#[utoipa::path(get, path = "/v1/drills/forecast/{node}", operation_id = "drill_forecast", tag = "cluster",
    params(("node" = String, Path, description = "Name, id, or how the id begins"),
        ("away" = Option<String>, Query, description = "For how long, like `30s`")),
    responses((status = 200, body = DrillForecast), (status = 404, description = "unknown-node", body = Problem)))]
pub(crate) async fn forecast<B: Backend>(
    State(app): State<Shared<B>>,
    Named(wanted): Named,
    uri: Uri,
) -> Result<Json<DrillForecast>, Failure> {
    let HowLong { away, timeout_ms } = read_query(&uri)?;
    let patience = patience(timeout_ms)?;
    let overview = app.backend.overview().borrow().clone();
    let node = find_node(&overview, &wanted)?;
    let mut forecast = app.backend.drill_forecast(node.id, away, patience).await?;
    forecast.leads = overview.cluster.leader.as_ref() == Some(&node.name);
    Ok(Json(forecast))
}

/// Takes a node away: it is silent to all others, as if it had lost its network, and comes back by its own clock.
/// Refused where that would cost the quorum, or while anything else is away. Answered when it is decided; the node
/// falls silent 250 ms later.
#[utoipa::path(post, path = "/v1/drills", operation_id = "drill_begin", tag = "cluster", request_body = NewDrill,
    responses((status = 200, body = DrillView), (status = 404, description = "unknown-node", body = Problem),
        (status = 409, description = "no-drill", body = Problem), (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn begin<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DrillView>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let NewDrill { node, away } = read_json(&read_body(&headers, body).await?)?;
    let overview = app.backend.overview().borrow().clone();
    let node = find_node(&overview, &node)?;
    let actor = acting.on(&app.access(), &node.name)?;
    let led = overview.cluster.leader.as_ref() == Some(&node.name);
    let replace_after = app.backend.replace_after();
    let begin = Command::Drill(DrillCommand::Begin { node: node.id, away, replace_after, led });
    let index = command(&app, id, &begin, &actor, patience).await?;
    let mut drills = app.backend.drills();
    let wait = drills.wait_for(|drills| drills.applied >= index);
    let known = match tokio::time::timeout(VIEW_WITHIN, wait).await {
        Ok(Ok(drills)) => drills.drills.iter().find(|drill| drill.index == index).cloned(),
        Ok(Err(_)) | Err(_) => None,
    };
    known.map(Json).ok_or_else(|| {
        let message = "the drill has begun, and this node does not show it yet";
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "not-shown", message, "see `quorate drill show`")
    })
}
