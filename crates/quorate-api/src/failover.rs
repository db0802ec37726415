//! The failover time of the cluster (E8): how long a node may be away before what ran there runs elsewhere.

use crate::access::Acting;
use crate::backend::Backend;
use crate::cluster::{command, shown};
use crate::problem::Failure;
use crate::request::{Patience, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::{Overview, Problem};
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, Uri};
use quorate_model::command::Command;
use quorate_model::id::RequestId;
use quorate_model::member::MemberCommand;
use quorate_model::time::Span;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The failover time of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FailoverTime {
    /// `10s` to `300s`. `null`: never decided; then services that run once and name none have 30 s, and
    /// `ha.failover_time` of the manager that leads counts for the others.
    #[schema(value_type = Option<String>)]
    pub failover: Option<Span>,
}

fn of(overview: &Overview) -> Json<FailoverTime> {
    Json(FailoverTime { failover: overview.cluster.failover })
}

/// The failover time of the cluster.
#[utoipa::path(get, path = "/v1/failover", tag = "services", responses((status = 200, body = FailoverTime)))]
pub(crate) async fn show<B: Backend>(State(app): State<Shared<B>>) -> Json<FailoverTime> {
    of(&app.backend.overview().borrow())
}

/// Sets the failover time of the cluster. What is held keeps the time that it was given; each next holder gets
/// the new one.
#[utoipa::path(put, path = "/v1/failover", tag = "services", request_body = FailoverTime,
    responses((status = 200, body = FailoverTime), (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn set<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<FailoverTime>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let FailoverTime { failover } = read_json(&read_body(&headers, body).await?)?;
    let target = failover.map_or_else(|| "default".to_owned(), |span| span.to_string());
    let actor = acting.on(&app.access(), &target)?;
    let index = command(&app, id, &Command::Member(MemberCommand::SetFailover { failover }), &actor, patience).await?;
    let overview = shown(&app, index).await;
    Ok(of(&overview))
}
