//! Certificates of nodes: renewed by the nodes themselves.
//!
//! A node proves itself by its old certificate and a signature with its key, and by nothing else: its
//! certificate may have ended, so that no connection lets it in with it. What is answered is public.

use crate::access::Acting;
use crate::backend::Backend;
use crate::problem::Failure;
use crate::request::{read_body, read_json};
use crate::server::Shared;
use crate::view::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::HeaderMap;
use quorate_model::id::NodeId;
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
    let request: RenewRequest = read_json(&read_body(&headers, body).await?)?;
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
