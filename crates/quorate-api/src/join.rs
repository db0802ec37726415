//! How a server becomes a node, on the wire.
//!
//! ```text
//! server                               manager that the command names        every other manager
//!   │ POST /v1/join/check  ─────────────▶ token, versions, clock, name;
//!   │                                     connects to both ports of the server
//!   │ ◀── id for the node, managers ─────
//!   │ POST /v1/join/check, and a connection to its link ───────────────────────▶ the same
//!   │ POST /v1/join ────────────────────▶ the same, then Admit in the log, then the certificate
//! ```
//! So every port is tried between the server and every manager that answers, in both directions,
//! before anything changes.
//!
//! # Invariants
//! - The secret is sent only after the other side showed a certificate of the cluster that the token
//!   names; that is the client's part, here it is only never logged.
//! - A node's id follows from the secret and the server's own key: nobody can ask for the id of
//!   another node, two servers with one token are two nodes, and a server that asks again is the
//!   same one.

use crate::access::Acting;
use crate::backend::{Backend, JoinError};
use crate::problem::Failure;
use crate::request::{Patience, patience, read_json, read_query, read_strangers_body};
use crate::server::Shared;
use crate::view::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, Uri};
use quorate_model::access::Actor;
use quorate_model::id::{ClusterId, NodeId};
use quorate_model::member::Vote;
use quorate_model::state::Role;
use quorate_model::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use utoipa::ToSchema;

/// The version of what is said here. Both sides must have the same.
pub const JOIN_VERSION: u32 = 1;

/// What a server says of itself when it wants to join.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JoinRequest {
    /// The token's secret as the join command has it.
    pub secret: String,
    /// The name that the node is to have.
    pub name: String,
    /// Another name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    #[schema(value_type = Vec<String>)]
    pub roles: BTreeSet<Role>,
    /// HOST:PORT of its API, as the other nodes reach it.
    pub api: String,
    /// HOST:PORT of its node link, as the other nodes reach it.
    pub link: String,
    /// Whether a manager is to vote: `auto` unless somebody asked for it.
    #[serde(default)]
    #[schema(value_type = String)]
    pub vote: Vote,
    /// Version of the program.
    pub version: String,
    /// [`JOIN_VERSION`] and the version of the node link.
    pub join_version: u32,
    pub link_version: u32,
    /// Its clock when it asks.
    #[schema(value_type = u64)]
    pub now: WallTime,
    /// A signed request for a certificate (PKCS #10), as base64 of its DER.
    pub certificate_request: String,
    /// What the server says to whoever connects to its ports while it joins: so that nobody takes
    /// another program, or another server, for it. 16 to 64 letters and digits.
    pub hail: String,
    /// Managers that the server has reached, and that have reached it.
    #[serde(default)]
    #[schema(value_type = Vec<uuid::Uuid>)]
    pub tried: BTreeSet<NodeId>,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the secret.
        f.debug_struct("JoinRequest")
            .field("name", &self.name)
            .field("roles", &self.roles)
            .field("api", &self.api)
            .field("link", &self.link)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// The server may join, as far as this manager sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JoinCheck {
    #[schema(value_type = uuid::Uuid)]
    pub cluster: ClusterId,
    pub cluster_name: String,
    /// The id that the node will have.
    #[schema(value_type = uuid::Uuid)]
    pub node: NodeId,
    /// The manager that answers.
    #[schema(value_type = uuid::Uuid)]
    pub answered_by: NodeId,
    /// All managers that this one hears, itself too.
    pub managers: Vec<ManagerAddress>,
}

/// Where a manager is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ManagerAddress {
    #[schema(value_type = uuid::Uuid)]
    pub id: NodeId,
    pub name: String,
    /// HOST:PORT.
    pub api: String,
    /// HOST:PORT.
    pub link: String,
}

/// The server is a node.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JoinAnswer {
    #[schema(value_type = uuid::Uuid)]
    pub cluster: ClusterId,
    pub cluster_name: String,
    /// 1, and one more for each time that the cluster was recovered.
    #[serde(default = "first_incarnation")]
    pub incarnation: u64,
    #[schema(value_type = uuid::Uuid)]
    pub node: NodeId,
    /// What it is to do.
    #[schema(value_type = Vec<String>)]
    pub roles: BTreeSet<Role>,
    pub managers: Vec<ManagerAddress>,
    /// How many managers vote now.
    pub voters: u32,
    /// How many managers were let in, this server too if it is one; some may not run yet.
    #[serde(default)]
    pub admitted_managers: u32,
    /// The node's certificate and that of the authority that made it, as PEM.
    pub certificate: String,
    /// The authorities that nodes trust, as PEM.
    pub authorities: String,
    /// The keys that seal gossip. Absent where the cluster does not gossip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gossip_keys: Option<String>,
    /// What only managers get: the keys of the authority and of the cluster's secrets. The connection
    /// is pinned to the authority, so that nobody else reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_managers: Option<String>,
}

fn first_incarnation() -> u64 {
    1
}

impl fmt::Debug for JoinAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinAnswer")
            .field("cluster_name", &self.cluster_name)
            .field("node", &self.node)
            .field("managers", &self.managers)
            .finish_non_exhaustive()
    }
}

/// Tells whether a server may join, and tries its ports. Changes nothing.
#[utoipa::path(post, path = "/v1/join/check", tag = "members", request_body = JoinRequest,
    responses((status = 200, body = JoinCheck),
        (status = 403, description = "token-unknown, token-expired, wrong-role, wrong-name, node-expelled", body = Problem),
        (status = 409, description = "token-used, name-taken, address-taken, quota-reached, quota-expired, \
            version-mismatch, clock-off, port-unreachable, no-authority", body = Problem),
        (status = 422, description = "bad-join", body = Problem),
        (status = 429, description = "too-many-attempts", body = Problem)))]
pub(crate) async fn check<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<JoinCheck>, Failure> {
    let request: JoinRequest = read_json(&read_strangers_body(&headers, body).await?)?;
    let actor = acting.on(&app.access(), &request.name)?;
    match app.backend.check_join(request, acting.peer().ip()).await {
        Ok(check) => Ok(Json(check)),
        Err(error) => Err(refused(&app, actor, error)),
    }
}

/// Who was turned away is in the audit.
fn refused<B: Backend>(app: &Shared<B>, actor: Actor, error: JoinError) -> Failure {
    let failure = Failure::from(error);
    app.denials.write(app, actor, format!("{} ({})", failure.problem().message, failure.problem().code));
    failure
}

/// Makes a server a node of the cluster.
#[utoipa::path(post, path = "/v1/join", tag = "members", request_body = JoinRequest,
    responses((status = 200, body = JoinAnswer),
        (status = 403, description = "token-unknown, token-expired, wrong-role, wrong-name, node-expelled", body = Problem),
        (status = 409, description = "token-used, name-taken, address-taken, quota-reached, quota-expired, \
            version-mismatch, clock-off, port-unreachable, ports-not-tried, no-authority", body = Problem),
        (status = 422, description = "bad-join", body = Problem),
        (status = 429, description = "too-many-attempts", body = Problem),
        (status = 500, description = "not-signed", body = Problem)))]
pub(crate) async fn join<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<JoinAnswer>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let request: JoinRequest = read_json(&read_strangers_body(&headers, body).await?)?;
    let actor = acting.on(&app.access(), &request.name)?;
    match app.backend.join(request, acting.peer().ip(), actor.clone(), patience).await {
        Ok(answer) => Ok(Json(answer)),
        Err(error) => Err(refused(&app, actor, error)),
    }
}
