//! Logs of replicas.

use crate::backend::{Backend, LogChunk, LogError, LogFrom, LogPiece};
use crate::problem::Failure;
use crate::request::{Named, read_query};
use crate::server::{App, Shared};
use crate::view::Problem;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{Uri, header};
use quorate_model::id::ReplicaId;
use serde::Deserialize;
use std::convert::Infallible;
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

/// A piece of a replica's log, as raw bytes. Asked of the node that runs it.
#[utoipa::path(get, path = "/v1/replicas/{id}/log", tag = "services", params(("id" = String, Path), LogRange),
    responses((status = 200, content_type = "text/plain", body = String,
            headers(("Quorate-Log-Next" = u64, description = "The offset to go on from"))),
        (status = 404, description = "unknown-log", body = Problem)))]
pub(crate) async fn replica_log<B: Backend>(
    State(app): State<Shared<B>>,
    Named(id): Named,
    uri: Uri,
) -> Result<Response, Failure> {
    let replica: ReplicaId = id.parse().map_err(|_| {
        Failure::bad_request("bad-replica-id", format!("`{id}` is not a UUID"), "see `GET /v1/services` for the ids")
    })?;
    let range: LogRange = read_query(&uri)?;
    let piece = LogPiece { replica, from: range.from()?, bytes_max: range.bytes.unwrap_or(BYTES_DEFAULT) };
    let first = app.backend.replica_log(piece.clone()).await.map_err(|error| explain(&app, error))?;
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (NEXT, first.next.to_string()),
    ];
    let body = if range.follow { follow(app, piece, first) } else { first.data.into() };
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

/// Adds to "not here" where it is.
fn explain<B: Backend>(app: &App<B>, error: LogError) -> Failure {
    let LogError::Unknown(replica) = error else { return error.into() };
    let overview = app.backend.overview().borrow().clone();
    let home = overview
        .services
        .iter()
        .flat_map(|service| &service.replicas)
        .find(|known| known.id == replica)
        .and_then(|known| overview.nodes.iter().find(|node| node.id == known.node_id));
    match home {
        Some(home) if home.name != overview.answered_by => Failure::new(
            http::StatusCode::NOT_FOUND,
            "unknown-log",
            format!("replica {replica} runs on {}, not here", home.name),
            format!("ask {}", home.api),
        )
        .with_details(serde_json::json!({ "replica": replica, "node": home.name, "api": home.api })),
        _ => LogError::Unknown(replica).into(),
    }
}

/// The first piece and then whatever is new, until the reader, the log or the server goes.
fn follow<B: Backend>(app: Shared<B>, piece: LogPiece, first: LogChunk) -> Body {
    let open = app.open.clone();
    let pieces = stream::unfold((app, open, piece, Some(first)), |(app, mut open, mut piece, first)| async move {
        if let Some(first) = first {
            piece.from = LogFrom::Offset(first.next);
            return Some((Ok::<Bytes, Infallible>(first.data), (app, open, piece, None)));
        }
        loop {
            let chunk = app.backend.replica_log(piece.clone()).await.ok()?;
            let moved = piece.from != LogFrom::Offset(chunk.next);
            piece.from = LogFrom::Offset(chunk.next);
            if moved && !chunk.data.is_empty() {
                return Some((Ok(chunk.data), (app, open, piece, None)));
            }
            tokio::select! {
                _ = open.changed() => return None,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    });
    Body::from_stream(pieces)
}
