//! Certificates of nodes, renewed by the nodes themselves, and the rotation of the authority.
//!
//! A node that renews its certificate proves itself by its old certificate and a signature with its key, and by nothing else: its
//! certificate may have ended, so that no connection lets it in with it. What is answered is public.

use crate::access::Acting;
use crate::backend::Backend;
use crate::cluster::command;
use crate::members::Done;
use crate::problem::Failure;
use crate::request::{Patience, patience, read_json, read_query, read_strangers_body};
use crate::server::Shared;
use crate::view::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, Uri};
use quorate_model::command::Command;
use quorate_model::id::{NodeId, RequestId};
use quorate_model::time::WallTime;
use quorate_model::trust::{KeyKind, Stage};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A node asks for a new certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenewRequest {
    /// The certificate that it has, as PEM; it may have ended.
    pub certificate: String,
    /// A signed request for a certificate (PKCS #10) for its new key, as base64 of its DER.
    pub request: String,
    /// A signature with the old key that says that the request is its own, as base64.
    pub voucher: String,
}

/// The new certificate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RenewAnswer {
    /// The node's certificate and that of the authority that made it, as PEM.
    pub certificate: String,
}

/// What the cluster's nodes prove themselves with. `quorate cert show -o json` is one of these.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct CertificatesView {
    /// Authorities that the node that answers believes: one, or two while a new one takes over.
    pub authorities: Vec<AuthorityView>,
    pub nodes: Vec<NodeCertificateView>,
    /// The newest key of each kind.
    pub keys: Vec<KeyView>,
    /// What somebody should do, for people; usually nothing.
    pub next: Vec<String>,
}

/// An authority of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuthorityView {
    /// What a join token carries and `--ca-pin` takes.
    pub fingerprint: String,
    #[schema(value_type = u64)]
    pub from: WallTime,
    #[schema(value_type = u64)]
    pub until: WallTime,
    /// New certificates are of this one.
    pub signs: bool,
}

/// A node's certificate, as the node says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeCertificateView {
    #[schema(value_type = uuid::Uuid)]
    pub node: NodeId,
    pub name: String,
    /// Absent, like what follows, while the node is not heard.
    pub fingerprint: Option<String>,
    /// Fingerprint of the authority that made it.
    pub authority: Option<String>,
    #[schema(value_type = Option<u64>)]
    pub from: Option<WallTime>,
    #[schema(value_type = Option<u64>)]
    pub until: Option<WallTime>,
    /// What happens next, or what to do, for people.
    pub next: String,
}

/// The newest key of a kind, and how far its taking over is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct KeyView {
    /// `authority` or `secrets`.
    #[schema(value_type = String)]
    pub key: KeyKind,
    pub number: u32,
    /// `spread`, `use`, `drop`; `done` when it is the only one.
    #[schema(value_type = String)]
    pub stage: Stage,
    /// Since when it is in its stage; 0 for the key with which the cluster began.
    #[schema(value_type = u64)]
    pub since: WallTime,
    /// Names of nodes that have not carried out the stage yet.
    pub waits_for: Vec<String>,
    /// Names of nodes that were away for too long and missed a stage.
    pub behind: Vec<String>,
    /// Name of a node that held it and was removed for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposed_by: Option<String>,
}

/// No new authority was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RotateError {
    #[error("this node does not have the key of the cluster's CA")]
    NoAuthority,
    #[error("the new CA could not be made: {0}")]
    NotMade(String),
}

/// Why a node gets no certificate. Nothing was made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RenewRefused {
    #[error("this node does not have the key of the cluster's CA")]
    NoAuthority,
    #[error("`{field}` {problem}")]
    Malformed { field: &'static str, problem: String },
    /// The old certificate is of another authority, or its key did not sign.
    #[error("the node did not prove itself: {why}")]
    NotProved { why: String },
    #[error("node {node} was expelled; its id is never used again")]
    Expelled { node: NodeId },
    #[error("there is no node {node}")]
    Unknown { node: NodeId },
    #[error("the certificate could not be made: {0}")]
    NotSigned(String),
}

/// What the cluster's nodes prove themselves with, and until when.
#[utoipa::path(get, path = "/v1/certificates", operation_id = "certificate_list", tag = "certificates",
    responses((status = 200, body = CertificatesView)))]
pub(crate) async fn show<B: Backend>(State(app): State<Shared<B>>) -> Json<CertificatesView> {
    Json(app.backend.certificates())
}

/// Makes a new authority, which takes over in steps; see `GET /v1/certificates` for how far it is.
#[utoipa::path(post, path = "/v1/certificates/rotation", operation_id = "certificate_rotate", tag = "certificates",
    responses((status = 200, body = Done),
        (status = 409, description = "no-authority, key-changing", body = Problem),
        (status = 500, description = "not-made", body = Problem)))]
pub(crate) async fn rotate<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
) -> Result<Json<Done>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let actor = acting.on(&app.access(), "ca")?;
    let begin = Command::Trust(app.backend.new_authority()?);
    let index = command(&app, id, &begin, &actor, patience).await?;
    Ok(Json(Done { index: index.0 }))
}

/// Gives a node a new certificate for its old one. Nodes ask by themselves.
#[utoipa::path(post, path = "/v1/certificates", operation_id = "certificate_renew", tag = "certificates",
    request_body = RenewRequest,
    responses((status = 200, body = RenewAnswer),
        (status = 403, description = "not-proved, node-expelled", body = Problem),
        (status = 404, description = "unknown-node", body = Problem),
        (status = 409, description = "no-authority", body = Problem),
        (status = 422, description = "bad-renewal", body = Problem),
        (status = 500, description = "not-signed", body = Problem)))]
pub(crate) async fn renew<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RenewAnswer>, Failure> {
    let request: RenewRequest = read_json(&read_strangers_body(&headers, body).await?)?;
    match app.backend.renew(request) {
        Ok(answer) => Ok(Json(answer)),
        Err(refused) => {
            let target = match &refused {
                RenewRefused::Expelled { node } | RenewRefused::Unknown { node } => node.to_string(),
                _ => String::new(),
            };
            let actor = acting.on(&app.access(), &target)?;
            let failure = Failure::from(refused);
            app.denials.write(&app, actor, format!("{} ({})", failure.problem().message, failure.problem().code));
            Err(failure)
        }
    }
}
