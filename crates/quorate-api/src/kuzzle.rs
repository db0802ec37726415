//! Two routes of Kuzzle's cluster plugin, for the load balancers and scripts that ask them:
//! `GET /_plugin/cluster/health` and `GET /_plugin/cluster/status`.
//!
//! Statuses and bodies are the plugin's: `ok` with 200, or 404 with `ko`. Why a node is not ready
//! is in `error.why`, which the plugin does not have and old clients do not look at.
//!
//! Kuzzle has two channels between nodes, `pub` and `router`. Here one link carries both, so both
//! addresses are that link's.
//!
//! # Sources
//! kuzzle-plugin-cluster 4.0: README, `lib/index.js` (`clusterHealthAction`, `clusterStatusAction`).

use crate::backend::Backend;
use crate::health::{NotReady, readiness};
use crate::server::Shared;
use crate::view::{NodeState, NodeView, Overview};
use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

pub(crate) async fn health<B: Backend>(State(app): State<Shared<B>>) -> Response {
    answer(&app, "health", |_| "ok".into())
}

pub(crate) async fn status<B: Backend>(State(app): State<Shared<B>>) -> Response {
    answer(&app, "status", |overview| {
        let joined = |node: &&NodeView| node.state == NodeState::Joined;
        let (this, others): (Vec<&NodeView>, Vec<&NodeView>) =
            overview.nodes.iter().filter(joined).partition(|node| node.name == overview.answered_by);
        json!({
            "count": this.len() + others.len(),
            // A node that is ready is in its own list.
            "current": this.first().map(|node| member(node)),
            "pool": others.into_iter().map(member).collect::<Vec<Value>>(),
        })
    })
}

/// A node that is joined is ready, as far as another one can tell.
fn member(node: &NodeView) -> Value {
    let link = format!("tcp://{}", node.link);
    json!({ "pub": link, "router": link, "ready": true })
}

fn answer<B: Backend>(app: &Shared<B>, action: &str, result: impl FnOnce(&Overview) -> Value) -> Response {
    let overview: Arc<Overview> = app.backend.overview().borrow().clone();
    match readiness(&overview, app.backend.policy().minimum_nodes, false) {
        Ok(_) => envelope(StatusCode::OK, action, Value::Null, result(&overview)),
        Err(why) => envelope(StatusCode::NOT_FOUND, action, not_found(&why), Value::Null),
    }
}

fn not_found(why: &NotReady) -> Value {
    json!({ "message": "ko", "status": 404, "why": why.to_string() })
}

/// What Kuzzle puts around every answer.
fn envelope(status: StatusCode, action: &str, error: Value, result: Value) -> Response {
    let body = json!({
        "requestId": uuid::Uuid::new_v4(), "status": status.as_u16(), "error": error, "controller": "cluster/cluster",
        "action": action, "collection": null, "index": null, "volatile": null, "result": result,
    });
    (status, Json(body)).into_response()
}
