//! Updates of services: how far one is, which versions there were, and what an operator decides about them.

use crate::asked::Asked;
use crate::backend::Backend;
use crate::cluster::{Changed, service_name, unknown_service};
use crate::problem::Failure;
use crate::request::{Named, Patience, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use http::{HeaderMap, Uri};
use quorate_model::command::Command;
use quorate_model::deployment::Stage;
use quorate_model::id::ServiceName;
use quorate_model::spec::ServiceSpec;
use quorate_model::time::WallTime;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The newest update of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeploymentView {
    /// What is brought out, or was.
    pub version: u64,
    /// The last stable version, which it goes back to; absent: there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// `canary`, `await-promotion`, `rolling`, `verifying`, `done`, `rolling-back` or `rolled-back`.
    #[schema(value_type = String)]
    pub stage: Stage,
    /// Since when it is in this stage.
    #[schema(value_type = u64)]
    pub since: WallTime,
    /// Healthy copies of the version that the service is to be at, of `want`.
    pub updated: u32,
    /// Why it was given up. Empty while it was not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Why it goes no further by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
}

/// The versions of a service that are remembered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HistoryView {
    #[schema(value_type = String)]
    pub service: ServiceName,
    /// The version that the service is to be at.
    pub version: u64,
    /// The newest first.
    pub versions: Vec<VersionView>,
}

/// A version of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    pub version: u64,
    pub state: VersionState,
    /// Why it failed. Empty if it did not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    #[schema(value_type = u64)]
    pub at: WallTime,
    /// Who applied it; absent where nobody has to say who they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    #[schema(value_type = Object)]
    pub spec: ServiceSpec,
}

/// What is known of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VersionState {
    /// It is being brought out.
    Running,
    /// It ran everywhere, and well.
    Stable,
    Failed,
    /// Another followed before it was proven.
    Superseded,
}

/// Which version it is to be again.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollBack {
    /// One of the service's history. Default: the last stable one that is not the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
}

/// What becomes of an update that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateAction {
    /// The canaries are good enough, or what held it is over.
    Continue,
    /// Back to the last stable version.
    Abort,
}

/// What is to become of an update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateWish {
    pub action: UpdateAction,
}

/// The last ten versions of a service: their specs, who applied them, and what became of them.
#[utoipa::path(get, path = "/v1/services/{name}/history", tag = "services", params(("name" = String, Path)),
    responses((status = 200, body = HistoryView), (status = 404, description = "unknown-service", body = Problem)))]
pub(crate) async fn history<B: Backend>(
    State(app): State<Shared<B>>,
    Named(name): Named,
    uri: Uri,
) -> Result<Json<HistoryView>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let service = service_name(&app, &name)?;
    match app.backend.history(service, patience).await? {
        Some(history) => Ok(Json(history)),
        None => Err(unknown_service(&app.backend.overview().borrow(), &name)),
    }
}

/// Makes a service an earlier version of itself: what runs, and not how many copies, where, or their routes.
#[utoipa::path(post, path = "/v1/services/{name}/rollback", tag = "services", params(("name" = String, Path)),
    request_body = RollBack,
    responses((status = 200, body = Changed), (status = 404, description = "unknown-service", body = Problem),
        (status = 409, description = "no-version", body = Problem)))]
pub(crate) async fn rollback<B: Backend>(
    asked: Asked<B>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Changed>, Failure> {
    let service = asked.service.clone();
    let RollBack { to } = read_json(&read_body(&headers, body).await?)?;
    let target = match to {
        Some(version) => format!("{service} back to version {version}"),
        None => format!("{service} back to the version before"),
    };
    asked.done(&target, &Command::RollBackService { service, to }).await
}

/// Lets an update go on that waits for somebody, or ends it.
#[utoipa::path(post, path = "/v1/services/{name}/update", tag = "services", params(("name" = String, Path)),
    request_body = UpdateWish,
    responses((status = 200, body = Changed), (status = 404, description = "unknown-service", body = Problem),
        (status = 409, description = "no-update, no-version", body = Problem)))]
pub(crate) async fn update<B: Backend>(
    asked: Asked<B>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Changed>, Failure> {
    let service = asked.service.clone();
    let UpdateWish { action } = read_json(&read_body(&headers, body).await?)?;
    let (word, wish) = match action {
        UpdateAction::Continue => ("continues", Command::ContinueUpdate { service: service.clone() }),
        UpdateAction::Abort => ("is aborted", Command::AbortUpdate { service: service.clone() }),
    };
    asked.done(&format!("the update of {service} {word}"), &wish).await
}
