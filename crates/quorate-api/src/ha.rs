//! High availability, on or off (K6). What it means is decided in `quorate_model::member::ha`.
//!
//! Switching it is answered when the node listens for others, or does not any more: who joins next finds
//! an open port. A port that another program has taken meanwhile is found before anything is decided.

use crate::access::Acting;
use crate::backend::Backend;
use crate::cluster::{VIEW_WITHIN, command, shown};
use crate::problem::Failure;
use crate::request::{Patience, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::{NodeState, Overview, Problem};
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, StatusCode, Uri};
use quorate_model::command::Command;
use quorate_model::id::RequestId;
use quorate_model::member::MemberCommand;
use quorate_model::member::ha::TWO_NODES;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

/// Whether the nodes stand in for each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HaView {
    pub enabled: bool,
    /// One sentence for people.
    pub summary: String,
    /// Name of the Active manager; absent while there is none, and while it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// How many managers vote; absent while it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voters: Option<u32>,
    /// How many of them may be lost now; absent while it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub can_lose: Option<u32>,
}

impl HaView {
    fn of(overview: &Overview) -> HaView {
        let cluster = &overview.cluster;
        let Some(electors) = cluster.electors.as_ref().filter(|_| cluster.ha) else {
            let summary = "high availability is off: there is one node, which coordinates with nobody".to_owned();
            return HaView { enabled: false, summary, active: None, voters: None, can_lose: None };
        };
        let summary = match (is_two_nodes(overview), electors.can_lose) {
            (true, _) => format!("high availability is not reached: {TWO_NODES}"),
            (false, 0) => "high availability is on, and no manager may be lost; three survive the loss of one".into(),
            (false, 1) => "high availability is on: one manager may be lost".into(),
            (false, count) => format!("high availability is on: {count} managers may be lost"),
        };
        HaView {
            enabled: true,
            summary,
            active: cluster.leader.clone(),
            voters: Some(electors.voters),
            can_lose: Some(electors.can_lose),
        }
    }
}

/// Whether the cluster has two nodes, those aside that left.
#[must_use]
pub fn is_two_nodes(overview: &Overview) -> bool {
    overview.nodes.iter().filter(|node| node.state != NodeState::Removed).count() == 2
}

/// Whether high availability is on, and what it bears.
#[utoipa::path(get, path = "/v1/ha", tag = "members", responses((status = 200, body = HaView)))]
pub(crate) async fn show<B: Backend>(State(app): State<Shared<B>>) -> Json<HaView> {
    Json(HaView::of(&app.backend.overview().borrow()))
}

/// On or off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HaWish {
    pub enabled: bool,
}

/// Switches high availability. Nothing else changes: no data moves and no service restarts. Off is for
/// one node alone, and makes join tokens that wait useless.
#[utoipa::path(put, path = "/v1/ha", tag = "members", request_body = HaWish,
    responses((status = 200, body = HaView),
        (status = 409, description = "ha-in-use, ha-needs-three, link-port-taken", body = Problem)))]
pub(crate) async fn set<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<HaView>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let HaWish { enabled } = read_json(&read_body(&headers, body).await?)?;
    let actor = acting.on(&app.access(), if enabled { "on" } else { "off" })?;
    if enabled {
        may_listen(&app)?;
    }
    let command_of = Command::Member(MemberCommand::SetHa { on: enabled });
    let index = command(&app, id, &command_of, &actor, patience).await?;
    let overview = shown(&app, index).await;
    listens(&app, overview.cluster.ha).await;
    Ok(Json(HaView::of(&overview)))
}

/// Refuses what would switch it on if others could not connect then.
pub(crate) fn may_listen<B: Backend>(app: &Shared<B>) -> Result<(), Failure> {
    if *app.backend.link().borrow() {
        return Ok(());
    }
    app.backend.try_link().map_err(|why| {
        let message = format!("high availability stays off: other nodes could not connect: {why}");
        let fix = "end the program that uses the port (`ss -ltnup` names it), then retry";
        Failure::new(StatusCode::CONFLICT, "link-port-taken", message, fix)
    })
}

/// Waits until this node listens for others, or does not any more. It is a matter of milliseconds; when it
/// takes longer, the node's log says why.
pub(crate) async fn listens<B: Backend>(app: &Shared<B>, wanted: bool) {
    let mut link = app.backend.link();
    let _ = tokio::time::timeout(VIEW_WITHIN, link.wait_for(|listens| *listens == wanted)).await;
}

/// Refuses what is about several managers while there can be one only.
pub(crate) fn is_on(overview: &Overview) -> Result<(), Failure> {
    if overview.cluster.ha {
        return Ok(());
    }
    let message = "high availability is off: there is one node, and nothing that could take its place";
    let fix = "switch it on with `quorate ha enable`, or add a server with `quorate add-node`";
    Err(Failure::new(StatusCode::CONFLICT, "ha-off", message, fix)
        .with_details(json!({ "node": overview.answered_by })))
}
