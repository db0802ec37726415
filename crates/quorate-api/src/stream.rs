//! Streams that follow a value: the overview for consoles, the routing table for gateways.
//!
//! A stream holds a `watch` receiver and makes a piece only when the connection wants one, so a
//! slow reader skips to the newest value and costs nothing in between.

use crate::backend::Backend;
use crate::problem::Failure;
use crate::request::{read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::Problem;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, StatusCode, Uri, header};
use quorate_model::observed::GatewayReport;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use utoipa::IntoParams;

/// How a value becomes pieces of a stream.
#[derive(Clone, Copy)]
struct Framing {
    content_type: &'static str,
    /// At most one value in this time.
    apart: Duration,
    /// Something is sent at least this often, so that both ends notice a dead connection.
    heartbeat_every: Duration,
    heartbeat: &'static [u8],
}

const EVENTS: Framing = Framing {
    content_type: "text/event-stream",
    apart: Duration::from_millis(50),
    heartbeat_every: Duration::from_secs(2),
    heartbeat: b":\n\n",
};

const LINES: Framing = Framing {
    content_type: "application/x-ndjson",
    apart: Duration::ZERO,
    heartbeat_every: Duration::from_secs(1),
    heartbeat: b"\n",
};

/// The overview as server-sent events: event `overview`, first at once, then at each change.
///
/// The id of an event is the overview's sequence. A comment comes at least every 2 s.
#[utoipa::path(get, path = "/v1/stream", tag = "cluster",
    responses((status = 200, content_type = "text/event-stream", body = String)))]
pub(crate) async fn overview<B: Backend>(State(app): State<Shared<B>>) -> Response {
    follow(EVENTS, app.backend.overview(), app.open.clone(), |overview| {
        let mut piece = format!("event: overview\nid: {}\ndata: ", overview.sequence).into_bytes();
        write_json(&mut piece, overview);
        piece.extend_from_slice(b"\n\n");
        piece
    })
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct GatewayName {
    /// The name that the gateway gave itself.
    name: String,
}

/// The routing table, one JSON object a line: first at once, then at each change.
///
/// An empty line comes at least every second.
#[utoipa::path(get, path = "/v1/gateway/stream", tag = "gateway", params(GatewayName),
    responses((status = 200, content_type = "application/x-ndjson", body = String),
        (status = 400, description = "bad-query", body = Problem)))]
pub(crate) async fn routing<B: Backend>(State(app): State<Shared<B>>, uri: Uri) -> Result<Response, Failure> {
    let GatewayName { name } = read_query(&uri)?;
    tracing::info!(gateway = %name, node = %app.options.node_name, "a gateway takes its routes from here");
    Ok(follow(LINES, app.backend.routing(), app.open.clone(), |table| {
        let mut piece = Vec::with_capacity(1024);
        write_json(&mut piece, table);
        piece.push(b'\n');
        piece
    }))
}

/// How far a gateway is.
#[utoipa::path(post, path = "/v1/gateway/report", tag = "gateway", request_body = Object,
    responses((status = 204), (status = 400, description = "bad-json", body = Problem)))]
pub(crate) async fn gateway_report<B: Backend>(
    State(app): State<Shared<B>>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Failure> {
    let report: GatewayReport = read_json(&read_body(&headers, body).await?)?;
    app.backend.gateway_report(report);
    Ok(StatusCode::NO_CONTENT)
}

fn write_json(out: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(out, value).expect("views have string keys, and a vector takes every byte");
}

struct Follower<T> {
    values: watch::Receiver<Arc<T>>,
    open: watch::Receiver<()>,
    framing: Framing,
    not_before: Instant,
    heartbeat_at: Instant,
}

fn follow<T: Send + Sync + 'static>(
    framing: Framing,
    mut values: watch::Receiver<Arc<T>>,
    open: watch::Receiver<()>,
    write: fn(&T) -> Vec<u8>,
) -> Response {
    values.mark_changed();
    let now = Instant::now();
    let follower = Follower { values, open, framing, not_before: now, heartbeat_at: now + framing.heartbeat_every };
    let pieces = stream::unfold(follower, move |mut follower| async move {
        let piece = follower.next(write).await?;
        Some((Ok::<Bytes, Infallible>(piece), follower))
    });
    let headers = [
        (header::CONTENT_TYPE, framing.content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::from_stream(pieces)).into_response()
}

impl<T> Follower<T> {
    /// The next piece; `None` when the node or the server ends.
    async fn next(&mut self, write: fn(&T) -> Vec<u8>) -> Option<Bytes> {
        let Follower { values, open, framing, not_before, heartbeat_at } = self;
        let fresh = async {
            // In this order: nothing may wait after `changed`, or a heartbeat in between would lose a value.
            sleep_until(*not_before).await;
            values.changed().await.ok()?;
            Some(values.borrow_and_update().clone())
        };
        let piece = tokio::select! {
            biased;
            _ = open.changed() => return None,
            value = fresh => {
                *not_before = Instant::now() + framing.apart;
                write(&*value?).into()
            }
            () = sleep_until(*heartbeat_at) => {
                Bytes::from_static(framing.heartbeat)
            }
        };
        *heartbeat_at = Instant::now() + framing.heartbeat_every;
        Some(piece)
    }
}
