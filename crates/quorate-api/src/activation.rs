//! `/v1/services/{name}/activate`: another copy of an active-passive service takes over, in an orderly way.

use crate::access::Acting;
use crate::backend::Backend;
use crate::cluster::{command, current, refused, service_name};
use crate::members::find_node;
use crate::problem::Failure;
use crate::request::{Named, Patience, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, Uri};
use quorate_model::command::{Command, Refusal};
use quorate_model::id::{RequestId, ServiceName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which copy is to be the active one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Activate {
    /// Name or id of a node with a healthy copy; left out: whichever standby is best.
    #[serde(default)]
    pub node: Option<String>,
}

/// What was asked for. It is done when the service's lease has another holder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Activated {
    #[schema(value_type = String)]
    pub service: ServiceName,
    /// The log entry that decided it.
    pub index: u64,
    /// Name of the node.
    pub node: Option<String>,
}

/// Makes another copy of an active-passive service the active one: the present one gives its role back first.
#[utoipa::path(post, path = "/v1/services/{name}/activate", tag = "services", params(("name" = String, Path)),
    request_body = Activate,
    responses((status = 200, body = Activated),
        (status = 404, description = "unknown-service, unknown-node", body = Problem),
        (status = 409, description = "not-activated", body = Problem)))]
pub(crate) async fn activate<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(name): Named,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Activated>, Failure> {
    let service = service_name(&app, &name)?;
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let Activate { node } = read_json(&read_body(&headers, body).await?)?;
    let overview = current(&app);
    let node = node.map(|wanted| find_node(&overview, &wanted)).transpose()?;
    // What is healthy is seen, not decided: whoever is asked here says what it sees.
    let view = overview.services.iter().find(|view| view.name == service);
    let standbys = view.into_iter().flat_map(|view| &view.replicas).filter(|replica| replica.state == "healthy");
    let role = |role: &Option<String>| role.as_deref() == Some("standby");
    let mut heirs = standbys.filter(|replica| match node {
        Some(node) => replica.node_id == node.id,
        None => role(&replica.role),
    });
    let is_cast = view.is_some_and(|view| view.replicas.iter().any(|replica| replica.role.is_some()));
    if is_cast && heirs.next().is_none() {
        let why = node.map_or_else(
            || "no other copy is healthy".to_owned(),
            |node| format!("{} has no healthy copy of it", node.name),
        );
        return Err(refused(&overview, Refusal::NotActivated { service, why }));
    }
    let actor = acting.on(&app.access(), service.as_str())?;
    let wanted = Command::Activate { service: service.clone(), node: node.map(|node| node.id) };
    let index = command(&app, id, &wanted, &actor, patience).await?;
    Ok(Json(Activated { service, index: index.0, node: node.map(|node| node.name.clone()) }))
}
