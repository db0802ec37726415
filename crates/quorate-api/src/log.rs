//! Logs of replicas and of nodes' servers, wherever they are.

use crate::backend::{Backend, LogChunk, LogError, LogFrom, LogOf, OpenLog as _};
use crate::members::find_node;
use crate::problem::Failure;
use crate::request::{Named, read_query};
use crate::server::{App, Shared};
use crate::view::Problem;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use http::{Uri, header};
use quorate_model::id::ReplicaId;
use serde::Deserialize;
use std::time::Duration;
use utoipa::IntoParams;

/// Names the offset to go on from.
const NEXT: header::HeaderName = header::HeaderName::from_static("quorate-log-next");
/// Pause between two looks at a log that is followed.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const BYTES_DEFAULT: usize = 64 << 10;
const BYTES_MAX: usize = 1 << 20;
const LINES_DEFAULT: u32 = 100;
const LINES_MAX: u32 = 10_000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogRange {
    /// The last so many lines. 1 to 10000; default 100. Not together with `offset`.
    lines: Option<u32>,
    /// From this offset on, as an earlier answer named it in `Quorate-Log-Next`.
    offset: Option<u64>,
    /// At most so many bytes in one piece. 1 to 1048576; default 65536.
    bytes: Option<usize>,
    /// Go on as the log grows.
    #[serde(default)]
    follow: bool,
}

/// A piece of a replica's log, as raw bytes. Any node may be asked, also for a replica that has ended: the node
/// that has the log is asked in turn.
#[utoipa::path(get, path = "/v1/replicas/{id}/log", tag = "services", params(("id" = String, Path), LogRange),
    responses((status = 200, content_type = "text/plain", body = String,
            headers(("Quorate-Log-Next" = u64, description = "The offset to go on from"))),
        (status = 404, description = "unknown-log", body = Problem),
        (status = 503, description = "node-unreachable, overloaded", body = Problem)))]
pub(crate) async fn replica_log<B: Backend>(
    State(app): State<Shared<B>>,
    Named(id): Named,
    uri: Uri,
) -> Result<Response, Failure> {
    let replica: ReplicaId = id.parse().map_err(|_| {
        Failure::bad_request("bad-replica-id", format!("`{id}` is not a UUID"), "see `GET /v1/services` for the ids")
    })?;
    answer(app, LogOf::Replica(replica), &uri).await
}

/// A piece of what a node's server says about itself, as raw bytes. Any node may be asked, for any node whose server
/// runs.
#[utoipa::path(get, path = "/v1/nodes/{node}/log", tag = "members",
    params(("node" = String, Path, description = "Name, id, or how the id begins"), LogRange),
    responses((status = 200, content_type = "text/plain", body = String,
            headers(("Quorate-Log-Next" = u64, description = "The offset to go on from"))),
        (status = 404, description = "unknown-node, unknown-log", body = Problem),
        (status = 503, description = "node-unreachable, overloaded", body = Problem)))]
pub(crate) async fn node_log<B: Backend>(
    State(app): State<Shared<B>>,
    Named(wanted): Named,
    uri: Uri,
) -> Result<Response, Failure> {
    let node = find_node(&app.backend.overview().borrow(), &wanted)?.id;
    answer(app, LogOf::Node(node), &uri).await
}

async fn answer<B: Backend>(app: Shared<B>, of: LogOf, uri: &Uri) -> Result<Response, Failure> {
    let range: LogRange = read_query(uri)?;
    let (from, bytes_max) = (range.from()?, range.bytes.unwrap_or(BYTES_DEFAULT));
    let (first, log) = app.backend.open_log(of, from, bytes_max).await?;
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (NEXT, first.next.to_string()),
    ];
    let body = if range.follow { follow(&app, log, first, bytes_max) } else { first.data.into() };
    Ok((headers, body).into_response())
}

impl LogRange {
    fn from(&self) -> Result<LogFrom, Failure> {
        let refused = |message: String, fix: &str| Err(Failure::bad_request("bad-query", message, fix));
        if let Some(bytes) = self.bytes.filter(|bytes| !(1..=BYTES_MAX).contains(bytes)) {
            return refused(format!("bytes is {bytes}"), "give 1 to 1048576");
        }
        match (self.lines, self.offset) {
            (Some(_), Some(_)) => refused("lines and offset are both given".into(), "give one of them"),
            (None, Some(offset)) => Ok(LogFrom::Offset(offset)),
            (lines, None) => match lines.unwrap_or(LINES_DEFAULT) {
                lines @ 1..=LINES_MAX => Ok(LogFrom::LastLines(lines)),
                lines => refused(format!("lines is {lines}"), "give 1 to 10000"),
            },
        }
    }
}

/// The first piece and then whatever is new, until the reader, the log or the server goes. The next piece is asked
/// for when the reader has taken the one before, so that one piece waits at the most. A log that cannot be read any
/// more cuts the answer off; one that is gone for good ends it.
fn follow<B: Backend>(app: &App<B>, log: B::Log, first: LogChunk, bytes_max: usize) -> Body {
    let begin = (app.open.clone(), log, LogFrom::Offset(first.next), Some(first.data));
    let pieces = stream::unfold(Some(begin), move |state| async move {
        let (mut open, mut log, mut from, first) = state?;
        if let Some(first) = first {
            return Some((Ok(first), Some((open, log, from, None))));
        }
        loop {
            let chunk = tokio::select! {
                _ = open.changed() => return None,
                chunk = log.read(from, bytes_max) => chunk,
            };
            match chunk {
                Ok(chunk) => {
                    from = LogFrom::Offset(chunk.next);
                    if !chunk.data.is_empty() {
                        return Some((Ok(chunk.data), Some((open, log, from, None))));
                    }
                }
                Err(LogError::Unknown(_)) => return None,
                Err(error) => return Some((Err(error), None)),
            }
            tokio::select! {
                _ = open.changed() => return None,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    });
    Body::from_stream(pieces)
}
