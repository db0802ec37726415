//! Managers: stop, start and restart passive ones, restart the Active one, say where managers may be.
//!
//! A manager that is stopped keeps the log, so that it can start at any time and from any node; its
//! services, its gateway's routes and its agent go on. It answers nobody as a manager: [`is_shut`] is what
//! the gate asks. Who may decide that the role can be spared is the leader, when it proposes the entry.

use crate::access::Acting;
use crate::backend::Backend;
use crate::cluster::{command, shown};
use crate::ha;
use crate::members::find_node;
use crate::problem::Failure;
use crate::request::{Named, Patience, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::{NodeMode, NodeView, Overview, Problem, Standing};
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, StatusCode, Uri};
use quorate_model::access::policy::Operation;
use quorate_model::command::Command;
use quorate_model::id::{LogIndex, NodeId, RequestId};
use quorate_model::member::MemberCommand;
use quorate_model::state::Role;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// Which managers are meant: some by name, or all passive ones.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Which {
    /// Names, ids, or how the ids begin.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// Every manager but the Active one.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all_passive: bool,
}

/// One manager.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct One {
    /// Name, id, or how the id begins.
    pub node: String,
}

/// What was done to managers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Managers {
    /// Those that were meant, as they are now.
    pub nodes: Vec<NodeView>,
    /// The log entry that did it.
    pub index: u64,
}

/// Stops the manager role of passive managers: they answer nobody as managers and do not vote, their
/// services, agents and gateways go on. It outlives a restart of theirs.
#[utoipa::path(post, path = "/v1/managers/stop", tag = "members", request_body = Which,
    responses((status = 200, body = Managers), (status = 404, description = "unknown-node", body = Problem),
        (status = 409, description = "is-active, loses-majority, last-voter, not-manager, no-passive, ha-off", body = Problem)))]
pub(crate) async fn stop<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Managers>, Failure> {
    let which = read_json(&read_body(&headers, body).await?)?;
    turn(&app, id, &acting, &uri, &which, |nodes| MemberCommand::StopManagers { nodes }).await
}

/// Starts them again. The cluster decides which of them vote.
#[utoipa::path(post, path = "/v1/managers/start", tag = "members", request_body = Which,
    responses((status = 200, body = Managers), (status = 404, description = "unknown-node", body = Problem),
        (status = 409, description = "not-manager, no-passive, ha-off", body = Problem)))]
pub(crate) async fn start<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Managers>, Failure> {
    let which = read_json(&read_body(&headers, body).await?)?;
    turn(&app, id, &acting, &uri, &which, |nodes| MemberCommand::StartManagers { nodes }).await
}

async fn turn<B: Backend>(
    app: &Shared<B>,
    id: RequestId,
    acting: &Acting,
    uri: &Uri,
    which: &Which,
    make: impl FnOnce(BTreeSet<NodeId>) -> MemberCommand,
) -> Result<Json<Managers>, Failure> {
    let patience = patience(read_query::<Patience>(uri)?.timeout_ms)?;
    let overview = app.backend.overview().borrow().clone();
    ha::is_on(&overview)?;
    let meant = which.of(&overview)?;
    let names: Vec<&str> = meant.iter().map(|node| node.name.as_str()).collect();
    let actor = acting.on(&app.access(), &names.join(" "))?;
    let nodes: BTreeSet<NodeId> = meant.iter().map(|node| node.id).collect();
    let index = command(app, id, &Command::Member(make(nodes.clone())), &actor, patience).await?;
    let overview = shown(app, index).await;
    let nodes = overview.nodes.iter().filter(|node| nodes.contains(&node.id)).cloned().collect();
    Ok(Json(Managers { nodes, index: index.0 }))
}

impl Which {
    fn of<'a>(&self, overview: &'a Overview) -> Result<Vec<&'a NodeView>, Failure> {
        if self.all_passive != self.nodes.is_empty() {
            let message = "either `nodes` or `all_passive` says which managers are meant";
            return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message, "give one of the two")
                .with_details(json!({ "field": "nodes" })));
        }
        if !self.all_passive {
            return self.nodes.iter().map(|wanted| find_node(overview, wanted)).collect();
        }
        // Without a leader nobody knows which one to spare.
        if overview.cluster.leader.is_none() {
            return Err(no_active());
        }
        let passive: Vec<&NodeView> =
            overview.nodes.iter().filter(|node| node.mode == Some(NodeMode::Passive)).collect();
        if passive.is_empty() {
            let message = "there is no passive manager";
            let fix = "add one with `quorate add-node`; the Active one is restarted with `manager restart --active`";
            return Err(Failure::new(StatusCode::CONFLICT, "no-passive", message, fix));
        }
        Ok(passive)
    }
}

fn no_active() -> Failure {
    let fix = "wait until a leader is elected and retry";
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, "no-leader", "no manager is Active now", fix)
}

/// Ends the server of a passive manager and begins it anew. What it runs for users is not touched.
#[utoipa::path(post, path = "/v1/managers/restart", tag = "members", request_body = One,
    responses((status = 200, body = Managers), (status = 404, description = "unknown-node", body = Problem),
        (status = 409, description = "is-active, not-manager", body = Problem)))]
pub(crate) async fn restart<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Managers>, Failure> {
    let One { node: wanted } = read_json(&read_body(&headers, body).await?)?;
    let overview = app.backend.overview().borrow().clone();
    let node = find_node(&overview, &wanted)?;
    acting.on(&app.access(), &node.name)?;
    match node.mode {
        // A plain restart: nobody could take over.
        None if !overview.cluster.ha => begin_anew(&app, id, &acting, &uri, node).await,
        Some(NodeMode::Passive) => begin_anew(&app, id, &acting, &uri, node).await,
        Some(NodeMode::Active) => {
            let message = format!("{} is the Active manager, and only passive ones are restarted like this", node.name);
            let fix = "quorate manager restart --active hands over first";
            Err(Failure::new(StatusCode::CONFLICT, "is-active", message, fix)
                .with_details(json!({ "node": node.name })))
        }
        None => Err(Failure::new(
            StatusCode::CONFLICT,
            "not-manager",
            format!("{} is no manager", node.name),
            "see `quorate manager list`",
        )),
    }
}

/// Hands leadership over, then ends the server of what was the Active manager and begins it anew.
#[utoipa::path(post, path = "/v1/managers/restart-active", tag = "members",
    responses((status = 200, body = Managers), (status = 503, description = "no-leader", body = Problem)))]
pub(crate) async fn restart_active<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
) -> Result<Json<Managers>, Failure> {
    let overview = app.backend.overview().borrow().clone();
    let is_active = |node: &&NodeView| node.mode == Some(NodeMode::Active) || !overview.cluster.ha;
    let active = overview.nodes.iter().find(is_active).ok_or_else(no_active)?;
    begin_anew(&app, id, &acting, &uri, active).await
}

/// Ends the server of a node, manager or not, and begins it anew with the settings of its file; one that leads hands
/// over first. What it runs for users is not touched. Refused while another server is away or begins anew, and while
/// the node's file has a mistake.
#[utoipa::path(post, path = "/v1/nodes/{node}/restart", tag = "members", params(("node" = String, Path)),
    responses((status = 200, body = Managers), (status = 404, description = "unknown-node", body = Problem),
        (status = 409, description = "other-away, bad-settings", body = Problem)))]
pub(crate) async fn restart_node<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(wanted): Named,
    uri: Uri,
) -> Result<Json<Managers>, Failure> {
    let overview = app.backend.overview().borrow().clone();
    let node = find_node(&overview, &wanted)?;
    if let Some(mistake) = node.pending.as_ref().map(|pending| &pending.mistake).filter(|mistake| !mistake.is_empty()) {
        let message = format!("{} would not come back: {mistake}", node.name);
        let fix = "correct its file; `quorate config validate` there says whether it is good";
        return Err(
            Failure::new(StatusCode::CONFLICT, "bad-settings", message, fix).with_details(json!({ "node": node.name }))
        );
    }
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let actor = acting.on(&app.access(), &node.name)?;
    let restart = MemberCommand::RestartServer { node: node.id, generation: node.generation, alone: true };
    let index = command(&app, id, &Command::Member(restart), &actor, patience).await?;
    Ok(Json(Managers { nodes: vec![node.clone()], index: index.0 }))
}

async fn begin_anew<B: Backend>(
    app: &Shared<B>,
    id: RequestId,
    acting: &Acting,
    uri: &Uri,
    node: &NodeView,
) -> Result<Json<Managers>, Failure> {
    let patience = patience(read_query::<Patience>(uri)?.timeout_ms)?;
    let actor = acting.on(&app.access(), &node.name)?;
    let restart = MemberCommand::RestartServer { node: node.id, generation: node.generation, alone: false };
    let index = command(app, id, &Command::Member(restart), &actor, patience).await?;
    Ok(Json(Managers { nodes: vec![node.clone()], index: index.0 }))
}

/// Where managers may be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ManagerRule {
    /// Managers are only on nodes that have this role too: `worker` or `gateway`; `null`: on any.
    #[schema(value_type = Option<String>)]
    pub requires: Option<Role>,
}

/// Says where managers may be. It holds for roles and joins from now on; managers that would be misplaced
/// have to be moved first.
#[utoipa::path(put, path = "/v1/managers/rule", tag = "members", request_body = ManagerRule,
    responses((status = 200, body = ManagerRule), (status = 409, description = "ha-off", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn rule<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ManagerRule>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let ManagerRule { requires } = read_json(&read_body(&headers, body).await?)?;
    ha::is_on(&app.backend.overview().borrow())?;
    let target = requires.map_or_else(|| "none".to_owned(), |role| format!("{role:?}").to_lowercase());
    let actor = acting.on(&app.access(), &target)?;
    let index =
        command(&app, id, &Command::Member(MemberCommand::SetManagerRule { requires }), &actor, patience).await?;
    shown(&app, LogIndex(index.0)).await;
    Ok(Json(ManagerRule { requires }))
}

/// Whether this node does not do it, because its manager is stopped: everything but health, what its
/// gateways need, and logs.
pub(crate) fn is_shut(overview: &Overview, operation: Operation) -> bool {
    use Operation as O;
    let goes_on = matches!(operation, O::HealthRead | O::GatewayFeed | O::LogRead | O::NodeLogRead);
    let this = overview.nodes.iter().find(|node| node.name == overview.answered_by);
    !goes_on && this.is_some_and(|node| node.standing == Some(Standing::Stopped))
}

/// What whoever asks a stopped manager is told.
pub(crate) fn shut(overview: &Overview) -> Failure {
    let here = &overview.answered_by;
    let others = overview.nodes.iter().filter(|node| node.mode.is_some() && node.name != *here);
    let running: Vec<&NodeView> = others.filter(|node| node.standing != Some(Standing::Stopped)).collect();
    let ask = running.iter().find(|node| node.mode == Some(NodeMode::Active)).or(running.first());
    let elsewhere = ask.map_or_else(|| "another node".to_owned(), |node| format!("{} at {}", node.name, node.api));
    let fix = format!("ask {elsewhere}; `quorate manager start {here}` there starts this one");
    let message = format!("the manager on {here} is stopped");
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, "manager-stopped", message, fix)
        .with_details(json!({ "node": here, "api": ask.map(|node| &node.api) }))
}
