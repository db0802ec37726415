//! Whether this node should be sent clients: `GET /v1/health`.
//!
//! It is ready when it is joined and at least as many nodes are joined as the operator asks for, as
//! this node sees it. Consensus is another matter: a node without a majority still answers local
//! reads and runs its services, so only `?quorum=1` asks for it too.

use crate::backend::Backend;
use crate::problem::Failure;
use crate::request::read_query;
use crate::server::Shared;
use crate::view::{ClusterHealth, NodeState, Overview, Problem};
use axum::Json;
use axum::extract::State;
use http::{StatusCode, Uri};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

/// What a ready node says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Ready {
    /// Name of the node.
    pub node: String,
    /// Nodes that are joined, this one included.
    pub joined: u32,
    /// How many have to be.
    pub minimum_nodes: u32,
    pub health: ClusterHealth,
    /// Name of the Active node; absent while there is none.
    pub leader: Option<String>,
    /// One sentence for people.
    pub summary: String,
}

/// Why a node is not ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotReady {
    #[error("{node} is not joined, it is {}", .state.map_or("not known to the cluster yet", state_word))]
    NotJoined { node: String, state: Option<NodeState> },
    #[error("{node} was removed from the cluster, says {by}")]
    Expelled { node: String, by: String },
    #[error("{node} and {} do not believe each other's certificates: the CA was rotated while {node} was away", .strangers.join(", "))]
    Stranger { node: String, strangers: Vec<String> },
    #[error("{joined} of {minimum} nodes are joined, as {node} sees it")]
    TooFew { node: String, joined: u32, minimum: u32 },
    #[error("there is no quorum: {summary}")]
    NoQuorum { summary: String },
}

fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Joined => "joined",
        NodeState::Unreachable => "unreachable",
        NodeState::Down => "down",
        NodeState::Removed => "removed",
    }
}

/// Judges one moment of the cluster.
pub(crate) fn readiness(overview: &Overview, minimum: u32, quorum: bool) -> Result<Ready, NotReady> {
    let node = overview.answered_by.clone();
    if let Some(by) = overview.expelled_by.clone() {
        return Err(NotReady::Expelled { node, by });
    }
    if !overview.strangers.is_empty() {
        return Err(NotReady::Stranger { node, strangers: overview.strangers.clone() });
    }
    let this = overview.nodes.iter().find(|known| known.name == node).map(|this| this.state);
    if this != Some(NodeState::Joined) {
        return Err(NotReady::NotJoined { node, state: this });
    }
    let joined = overview.nodes.iter().filter(|node| node.state == NodeState::Joined).count();
    let joined = u32::try_from(joined).unwrap_or(u32::MAX);
    if joined < minimum {
        return Err(NotReady::TooFew { node, joined, minimum });
    }
    let cluster = &overview.cluster;
    if quorum && (cluster.leader.is_none() || cluster.health == ClusterHealth::NoQuorum) {
        return Err(NotReady::NoQuorum { summary: cluster.summary.clone() });
    }
    Ok(Ready {
        node,
        joined,
        minimum_nodes: minimum,
        health: cluster.health,
        leader: cluster.leader.clone(),
        summary: cluster.summary.clone(),
    })
}

impl From<NotReady> for Failure {
    fn from(why: NotReady) -> Failure {
        let message = why.to_string();
        let (code, fix, details) = match why {
            NotReady::NotJoined { state, .. } => (
                "not-joined",
                "wait until the node has joined; `GET /v1/nodes` shows every node's state",
                json!({ "state": state }),
            ),
            NotReady::Expelled { by, .. } => (
                "expelled",
                "empty its data directory and join with a new token to bring the server back",
                json!({ "by": by }),
            ),
            NotReady::Stranger { strangers, .. } => (
                "missed-rotation",
                "`quorate node remove` it on another node, empty its data directory and join with a new token",
                json!({ "strangers": strangers }),
            ),
            NotReady::TooFew { joined, minimum, .. } => (
                "too-few-nodes",
                "start the missing nodes, or lower `cluster.minimum_nodes`",
                json!({ "joined": joined, "minimum_nodes": minimum }),
            ),
            NotReady::NoQuorum { .. } => (
                "no-quorum",
                "bring managers back until a majority answers; `GET /v1/nodes` names them",
                serde_json::Value::Null,
            ),
        };
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, code, message, fix).with_details(details)
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct HealthQuery {
    /// 1: also ask whether writes are possible.
    #[param(minimum = 0, maximum = 1)]
    quorum: Option<u8>,
}

/// 200 while this node and enough others are joined: for load balancers.
#[utoipa::path(get, path = "/v1/health", tag = "cluster", params(HealthQuery),
    responses((status = 200, body = Ready), (status = 503, description = "expelled, not-joined, too-few-nodes, no-quorum", body = Problem)))]
pub(crate) async fn health<B: Backend>(State(app): State<Shared<B>>, uri: Uri) -> Result<Json<Ready>, Failure> {
    let query: HealthQuery = read_query(&uri)?;
    let quorum = match query.quorum {
        None | Some(0) => false,
        Some(1) => true,
        Some(other) => return Err(Failure::bad_request("bad-query", format!("quorum is {other}"), "give 0 or 1")),
    };
    let overview = app.backend.overview().borrow().clone();
    Ok(Json(readiness(&overview, app.backend.policy().minimum_nodes, quorum)?))
}
