//! Where replicas go: labels of nodes, what nodes take, why a service runs where it does, what if a node died.

use crate::access::Acting;
use crate::asked::AskedOfNode;
use crate::backend::Backend;
use crate::cluster::{command, current, service_name, unknown_service};
use crate::members::find_node;
use crate::problem::Failure;
use crate::request::{Named, Patience, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::{MomentView, NodeView, Problem, StoppedView};
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, StatusCode, Uri};
use quorate_model::attribute::Attribute;
use quorate_model::command::Command;
use quorate_model::id::{ReplicaId, RequestId, ServiceName};
use quorate_model::member::MemberCommand;
use quorate_model::place::{self, Drain};
use quorate_model::resource::Amount;
use quorate_model::spec::Mode;
use quorate_model::time::{Span, WallTime};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

/// Longest deadline of a drain: a node that is emptied for longer has been forgotten.
pub const DRAIN_DEADLINE_MAX: Span = Span::from_secs(7 * 24 * 3_600);

/// What a node takes of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Availability {
    /// Any replica that fits.
    #[default]
    Open,
    /// Nothing new; what runs there stays.
    Cordoned,
    /// Nothing new, and what runs there is brought elsewhere.
    Draining,
}

/// Labels to set and to take away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelChange {
    /// A value sets the label, `null` takes it away; labels that are not named stay.
    pub labels: BTreeMap<String, Option<String>>,
}

/// Sets labels of a node, or takes them away. Services are placed by them.
#[utoipa::path(post, path = "/v1/nodes/{node}/labels", tag = "members", params(("node" = String, Path, description = "Name, id, or how the id begins")),
    request_body = LabelChange,
    responses((status = 200, body = NodeView), (status = 404, description = "unknown-node", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn labels<B: Backend>(
    asked: AskedOfNode<B>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<NodeView>, Failure> {
    let LabelChange { labels } = read_json(&read_body(&headers, body).await?)?;
    asked.changed(|node| MemberCommand::SetLabels { node, labels }).await
}

/// What a resource agent says of its node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AttributeChange {
    /// 1 to 128 bytes. `master-SERVICE` is the score of that service's copy: below 0 it is not promoted.
    pub name: String,
    /// At most 256 bytes. `null` takes it away.
    #[serde(default)]
    pub value: Option<String>,
    /// Whether it stays when the node is down or leaves. Default: no.
    #[serde(default)]
    pub lasts: bool,
}

/// Sets an attribute of a node, or takes it away. Resource agents of the driver `ocf` do this, in the way in which
/// they tell Pacemaker.
#[utoipa::path(post, path = "/v1/nodes/{node}/attributes", tag = "members", params(("node" = String, Path, description = "Name, id, or how the id begins")),
    request_body = AttributeChange,
    responses((status = 200, body = NodeView), (status = 404, description = "unknown-node", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn attribute<B: Backend>(
    asked: AskedOfNode<B>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<NodeView>, Failure> {
    let AttributeChange { name, value, lasts } = read_json(&read_body(&headers, body).await?)?;
    let attribute = value.map(|value| Attribute { value, lasts });
    asked.changed(|node| MemberCommand::SetAttribute { node, name, attribute }).await
}

/// What a node is to take from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AvailabilityWish {
    pub availability: Availability,
    /// With `draining`: after this, `1s` to `7d`, replicas that found no other place are stopped without one.
    /// Default: they stay until there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub deadline: Option<Span>,
}

/// Says what a node takes: any replica, nothing new, or nothing at all. Answered at once; a node is empty when no
/// service has a replica there any more.
#[utoipa::path(put, path = "/v1/nodes/{node}/availability", tag = "members", params(("node" = String, Path, description = "Name, id, or how the id begins")),
    request_body = AvailabilityWish,
    responses((status = 200, body = NodeView), (status = 404, description = "unknown-node", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn availability<B: Backend>(
    asked: AskedOfNode<B>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<NodeView>, Failure> {
    let wish: AvailabilityWish = read_json(&read_body(&headers, body).await?)?;
    let availability = wish.read()?;
    asked.changed(|node| MemberCommand::SetAvailability { node, availability }).await
}

impl AvailabilityWish {
    fn read(&self) -> Result<place::Availability, Failure> {
        let invalid = |message: String, fix: &str| {
            Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message, fix)
                .with_details(json!({ "field": "deadline" })))
        };
        match (self.availability, self.deadline) {
            (Availability::Open, None) => Ok(place::Availability::Open),
            (Availability::Cordoned, None) => Ok(place::Availability::Cordoned),
            (Availability::Open | Availability::Cordoned, Some(_)) => {
                invalid("`deadline` is for `draining` alone".into(), "leave it out: nothing is stopped")
            }
            (Availability::Draining, Some(deadline))
                if !(Span::from_secs(1)..=DRAIN_DEADLINE_MAX).contains(&deadline) =>
            {
                let message = format!("`deadline` is {deadline}; it must be 1s to {DRAIN_DEADLINE_MAX}");
                invalid(message, "leave it out to stop nothing that has no other place")
            }
            (Availability::Draining, deadline) => {
                Ok(place::Availability::Draining(Drain { deadline, ..Drain::default() }))
            }
        }
    }
}

/// Why the replicas of a service are where they are, and why others are nowhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExplanationView {
    #[schema(value_type = String)]
    pub service: ServiceName,
    #[schema(value_type = String)]
    pub mode: Mode,
    pub want: u32,
    /// Of an active-passive service: which copy is active and why, and who would be next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<RolesView>,
    /// Those that run, by ordinal.
    pub running: Vec<RunningView>,
    /// Those for which a node is looked for now.
    pub searches: Vec<SearchView>,
    /// With mode `every-node`: nodes that run none, and why.
    pub without: Vec<UnfitView>,
    /// Of a service with `resources`: whether there is room for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<RoomView>,
    /// Who stopped it; absent: it is to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<StoppedView>,
    /// When its schedule starts it next, if it is stopped, or stops it; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<MomentView>,
    /// What the scheduler does not do, and why, for people.
    pub held: Vec<String>,
}

/// What a service asks for, and what is free on the nodes that could run it. Amounts have `cpu_millis` and
/// `memory_bytes`. What other services had on a lost node looks for room too, and is not counted here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RoomView {
    /// For one replica.
    #[schema(value_type = Object)]
    pub each: Amount,
    pub replicas: u32,
    /// What its own replicas have is part of it.
    #[schema(value_type = Object)]
    pub free: Amount,
    /// How many replicas fit in there.
    pub fit: u32,
    /// The node whose loss takes the most; `null`: no node could run it.
    pub lost: Option<String>,
    /// As `free`, without that node.
    #[schema(value_type = Object)]
    pub free_then: Amount,
    /// As `fit`, without that node.
    pub fit_then: u32,
}

/// A replica that runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunningView {
    /// Service and ordinal, like `web.1`.
    pub name: String,
    #[schema(value_type = uuid::Uuid)]
    pub id: ReplicaId,
    pub node: String,
    /// Which place its node would have if the replica were placed now, from 1. `null`: it would not go there.
    pub rank: Option<u32>,
    /// Nodes that could run it now, the best first.
    pub fit: Vec<FitView>,
    pub unfit: Vec<UnfitView>,
}

/// A replica that looks for a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SearchView {
    /// Service and ordinal, like `web.1`.
    pub name: String,
    /// The node of the replica whose place it takes, if it takes one.
    pub from: Option<String>,
    /// Where it goes; `null`: no node can take it.
    pub to: Option<String>,
    /// Nodes that could run it, the best first.
    pub fit: Vec<FitView>,
    pub unfit: Vec<UnfitView>,
}

/// A node that could run a replica, and what orders it among the others: the first difference decides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FitView {
    pub node: String,
    /// For people.
    pub score: String,
}

/// Which copy of an active-passive service is active, and who would be next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolesView {
    /// The copy that has the lease; `null`: nobody has it.
    pub active: Option<ActiveView>,
    /// Nothing runs of the copies that stand by.
    pub cold: bool,
    /// The others: who would be promoted next comes first, who cannot be comes last.
    pub standbys: Vec<StandbyView>,
}

/// The active copy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ActiveView {
    /// Service and ordinal, like `db.0`.
    pub name: String,
    pub node: String,
    /// It grows with every promotion.
    pub epoch: u64,
    /// Since when it is the active one, in microseconds since 1970.
    #[schema(value_type = u64)]
    pub since: WallTime,
    /// Why it is this one, for people.
    pub why: String,
}

/// A copy that is not the active one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StandbyView {
    /// Service and ordinal, like `db.1`.
    pub name: String,
    pub node: String,
    /// Why it cannot be promoted now, for people; `null`: it can.
    pub unfit: Option<String>,
}

/// A node that cannot run a replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UnfitView {
    pub node: String,
    /// For people; it goes on after the node's name.
    pub why: String,
}

/// Why a service's replicas are where they are: for each replica the nodes that could run it in their order, and
/// why the others cannot. As the node that answers sees the cluster now.
#[utoipa::path(get, path = "/v1/services/{name}/explain", tag = "services", params(("name" = String, Path)),
    responses((status = 200, body = ExplanationView), (status = 404, description = "unknown-service", body = Problem)))]
pub(crate) async fn explain<B: Backend>(
    State(app): State<Shared<B>>,
    Named(name): Named,
    uri: Uri,
) -> Result<Json<ExplanationView>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let service = service_name(&app, &name)?;
    match app.backend.explain(service, patience).await? {
        // The scheduler explains nothing but copies.
        Some(explanation) => {
            let overview = current(&app);
            let known = overview.services.iter().find(|known| known.name == explanation.service);
            let stopped = known.and_then(|known| known.stopped.clone());
            Ok(Json(ExplanationView { stopped, next: known.and_then(|known| known.next), ..explanation }))
        }
        None => Err(unknown_service(&app.backend.overview().borrow(), &name)),
    }
}

/// What would be done if something happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ForecastView {
    /// The node that would be lost.
    pub node: String,
    /// Replicas that would run elsewhere afterwards, or nowhere, by service and ordinal.
    pub moves: Vec<MoveView>,
    /// Active-passive services of which another copy would be active afterwards, or none.
    #[serde(default)]
    pub roles: Vec<RoleMoveView>,
    /// What would not be done, and why, for people.
    pub held: Vec<HeldView>,
}

/// A replica that would run elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MoveView {
    /// Service and ordinal, like `web.1`.
    pub name: String,
    /// `null`: it ran nowhere.
    pub from: Option<String>,
    /// `null`: no node could take it.
    pub to: Option<String>,
}

/// A service of which another copy would be active.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RoleMoveView {
    #[schema(value_type = String)]
    pub service: ServiceName,
    /// The copy that is active now; `null`: none is.
    pub from: Option<PlacedView>,
    /// The copy that would be; `null`: none could be.
    pub to: Option<PlacedView>,
}

/// A copy and where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlacedView {
    /// Service and ordinal, like `db.1`.
    pub name: String,
    pub node: String,
}

/// Something that is not done for a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HeldView {
    #[schema(value_type = String)]
    pub service: ServiceName,
    pub why: String,
}

/// What would move where if this node lost its power and did not come back: the scheduler itself, run on a copy
/// of the cluster. Nothing is changed.
#[utoipa::path(get, path = "/v1/whatif/kill/{node}", tag = "cluster", params(("node" = String, Path, description = "Name, id, or how the id begins")),
    responses((status = 200, body = ForecastView), (status = 404, description = "unknown-node", body = Problem)))]
pub(crate) async fn what_if_kill<B: Backend>(
    State(app): State<Shared<B>>,
    Named(wanted): Named,
    uri: Uri,
) -> Result<Json<ForecastView>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let overview = app.backend.overview().borrow().clone();
    let node = find_node(&overview, &wanted)?;
    Ok(Json(app.backend.what_if_kill(node.id, patience).await?))
}

/// Moves that one request may ask for.
pub const MOVES_MAX: u32 = 100;
/// Moves that are proposed where nobody says how many.
pub const MOVES: u32 = 10;

/// What would run better elsewhere by now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RebalanceView {
    /// The greatest gain first; each is reckoned with those before it carried out.
    pub moves: Vec<ShiftView>,
    /// Copies that are to move already, by service and ordinal, like `web.1`.
    pub under_way: Vec<String>,
    /// Services that were not looked at, because they are being updated, moved or ended, or are out of reach.
    #[schema(value_type = Vec<String>)]
    pub left_out: Vec<ServiceName>,
}

/// A copy that would run better elsewhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ShiftView {
    #[schema(value_type = uuid::Uuid)]
    pub id: ReplicaId,
    #[schema(value_type = String)]
    pub service: ServiceName,
    /// Service and ordinal, like `web.1`.
    pub name: String,
    pub from: String,
    pub to: String,
    /// What is better there, for people.
    pub why: String,
}

/// How much may be proposed.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Budget {
    /// 1 to 100. Default 10.
    moves: Option<u32>,
    timeout_ms: Option<u64>,
}

/// The copies that are to move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rebalance {
    /// Ids of replicas, at most 100. Whatever was to move before and is not here stays; with none, all stay.
    #[schema(value_type = Vec<uuid::Uuid>)]
    pub replicas: BTreeSet<ReplicaId>,
}

/// How many copies are to move now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Rebalanced {
    /// The log entry that says so.
    pub index: u64,
    pub moves: u32,
}

/// What would run better elsewhere by now, by the order in which nodes are chosen: after a node came back or
/// joined, for instance. Nothing is changed.
#[utoipa::path(get, path = "/v1/rebalance", tag = "cluster",
    params(("moves" = Option<u32>, Query, description = "Most moves, 1 to 100; default 10")),
    responses((status = 200, body = RebalanceView), (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn to_rebalance<B: Backend>(
    State(app): State<Shared<B>>,
    uri: Uri,
) -> Result<Json<RebalanceView>, Failure> {
    let Budget { moves, timeout_ms } = read_query(&uri)?;
    let moves = moves.unwrap_or(MOVES);
    if !(1..=MOVES_MAX).contains(&moves) {
        return Err(too_many_moves("moves", moves as usize));
    }
    Ok(Json(app.backend.to_rebalance(moves as usize, patience(timeout_ms)?).await?))
}

/// Brings these copies to other nodes, one of a service after another: the new one is healthy before the old one
/// ends. Copies that have ended meanwhile, and those of services that run once or everywhere, are left out.
/// Answered at once.
#[utoipa::path(post, path = "/v1/rebalance", tag = "cluster", request_body = Rebalance,
    responses((status = 200, body = Rebalanced), (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn rebalance<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Rebalanced>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let Rebalance { replicas } = read_json(&read_body(&headers, body).await?)?;
    let moves = u32::try_from(replicas.len()).unwrap_or(u32::MAX);
    if moves > MOVES_MAX {
        return Err(too_many_moves("replicas", replicas.len()));
    }
    let actor = acting.on(&app.access(), &format!("{moves} copies"))?;
    let index = command(&app, id, &Command::Rebalance { replicas }, &actor, patience).await?;
    Ok(Json(Rebalanced { index: index.0, moves }))
}

fn too_many_moves(field: &str, count: usize) -> Failure {
    let message = format!("`{field}` asks for {count} moves; it must be 1 to {MOVES_MAX}");
    Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message, "move fewer, and look again afterwards")
        .with_details(json!({ "field": field }))
}
