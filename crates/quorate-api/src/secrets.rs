//! Secrets: set, listed, removed; never read.
//!
//! A value comes in, is sealed by this node, and only then proposed: the log, the databases, snapshots
//! and backups hold ciphertext. No answer holds a value, and neither does an error: what cannot be used
//! is named by what is wrong with it.

use crate::access::{Acting, carry_out};
use crate::backend::{Backend, SealRefused};
use crate::problem::Failure;
use crate::request::{Named, Patience, patience, read_body, read_query};
use crate::server::Shared;
use crate::view::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, StatusCode, Uri};
use quorate_model::access::name::SecretName;
use quorate_model::access::{AccessCommand, AccessRefusal, AccessState, SecretRecord};
use quorate_model::command::Refusal;
use quorate_model::id::RequestId;
use quorate_model::secret::Secret;
use quorate_model::time::WallTime;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The largest value, in bytes: a certificate with its key fits many times.
const SECRET_MAX: usize = 64 << 10;

/// A secret without its value. `quorate secret list -o json` is an array of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SecretView {
    pub name: String,
    /// Grows with each new value.
    pub version: u64,
    /// When the value was set.
    #[schema(value_type = u64)]
    pub changed: WallTime,
    /// Number of the cluster's key that seals it.
    pub key: u32,
}

fn view(record: &SecretRecord) -> SecretView {
    let SecretRecord { name, version, changed, key, .. } = record;
    SecretView { name: name.to_string(), version: *version, changed: *changed, key: *key }
}

fn find(access: &AccessState, name: &SecretName) -> Result<SecretView, Failure> {
    let known = access.secrets.get(name).map(view);
    known.ok_or_else(|| Refusal::Access(AccessRefusal::UnknownSecret { name: name.clone() }).into())
}

fn name_of(text: &str) -> Result<SecretName, Failure> {
    SecretName::new(text).map_err(|error| {
        Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "bad-secret-name", error.to_string(), "choose another name")
    })
}

/// Names of all secrets.
#[utoipa::path(get, path = "/v1/secrets", operation_id = "secret_list", tag = "secrets",
    responses((status = 200, body = [SecretView])))]
pub(crate) async fn list<B: Backend>(State(app): State<Shared<B>>) -> Json<Vec<SecretView>> {
    Json(app.access().secrets.values().map(view).collect())
}

/// What is known of a secret besides its value, which nobody is told.
#[utoipa::path(get, path = "/v1/secrets/{name}", operation_id = "secret_show", tag = "secrets", params(("name" = String, Path)),
    responses((status = 200, body = SecretView), (status = 404, description = "unknown-secret", body = Problem)))]
pub(crate) async fn show<B: Backend>(
    State(app): State<Shared<B>>,
    Named(name): Named,
) -> Result<Json<SecretView>, Failure> {
    Ok(Json(find(&app.access(), &name_of(&name)?)?))
}

/// Sets a secret. The body is its value, as it is: 1 byte to 64 KiB.
#[utoipa::path(put, path = "/v1/secrets/{name}", operation_id = "secret_set", tag = "secrets", params(("name" = String, Path)),
    request_body(content = String, content_type = "application/octet-stream"),
    responses((status = 200, body = SecretView),
        (status = 409, description = "no-cluster-key, key-changed, full", body = Problem),
        (status = 413, description = "secret-too-large", body = Problem),
        (status = 422, description = "bad-secret-name, empty-secret", body = Problem)))]
pub(crate) async fn set<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(name): Named,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SecretView>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let name = name_of(&name)?;
    let actor = acting.on(&app.access(), name.as_str())?;
    let value = Secret::new(read_body(&headers, body).await?);
    let length = value.expose().len();
    if length == 0 {
        let fix = "send the value as the body; `quorate secret remove` takes a secret away";
        return Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "empty-secret",
            "there is no value in the body",
            fix,
        ));
    }
    if length > SECRET_MAX {
        let message = format!("the value has {length} bytes, and {SECRET_MAX} is the limit");
        let fix = "keep what is large elsewhere, and its password here";
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "secret-too-large", message, fix));
    }
    let sealed = app.backend.seal(&name, value.expose())?;
    let command = AccessCommand::SetSecret { name: name.clone(), sealed: sealed.sealed, key: sealed.key };
    let (_, access) = carry_out(&app, id, command, &actor, patience).await?;
    Ok(Json(find(&access, &name)?))
}

/// Removes a secret for good.
#[utoipa::path(delete, path = "/v1/secrets/{name}", operation_id = "secret_remove", tag = "secrets", params(("name" = String, Path)),
    responses((status = 204), (status = 404, description = "unknown-secret", body = Problem)))]
pub(crate) async fn remove<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(name): Named,
    uri: Uri,
) -> Result<StatusCode, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let name = name_of(&name)?;
    let actor = acting.on(&app.access(), name.as_str())?;
    carry_out(&app, id, AccessCommand::RemoveSecret { name }, &actor, patience).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl From<SealRefused> for Failure {
    fn from(refused: SealRefused) -> Failure {
        let message = refused.to_string();
        match refused {
            SealRefused::NoKey => Failure::new(
                StatusCode::CONFLICT,
                "no-cluster-key",
                message,
                "ask a manager; `quorate node list` shows them",
            ),
            SealRefused::NotSealed(_) => {
                Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "not-sealed", message, "ask another manager")
            }
        }
    }
}
