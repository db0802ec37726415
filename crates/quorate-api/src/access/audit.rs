//! The audit: pieces of it, whether it holds, all of it.

use crate::backend::Backend;
use crate::problem::Failure;
use crate::request::read_query;
use crate::server::Shared;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use http::{Uri, header};
use quorate_model::access::audit::{AuditHead, AuditLink, Broken, Chain};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: u32 = 1_000;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditRange {
    /// Only entries with a higher number. Default: the newest.
    after: Option<u64>,
    /// At most so many. 1 to 1000; default 50.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Entries of the audit, oldest first: number, log index, time, who, from where, what, target,
/// outcome, the hash before it and its own.
#[utoipa::path(get, path = "/v1/audit", operation_id = "audit_list", tag = "access", params(AuditRange),
    responses((status = 200, body = [Object])))]
pub(crate) async fn list<B: Backend>(State(app): State<Shared<B>>, uri: Uri) -> Result<Json<Vec<AuditLink>>, Failure> {
    let AuditRange { after, limit } = read_query(&uri)?;
    let limit = limit.unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(Failure::bad_request("bad-query", format!("limit is {limit}"), "give 1 to 1000"));
    }
    super::catch_up(&app).await?;
    let after = after.unwrap_or_else(|| app.access().audit.seq.saturating_sub(u64::from(limit)));
    Ok(Json(app.backend.audit(after, limit, PATIENCE).await?.links))
}

/// Whether the audit holds on the node that answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditVerdict {
    pub node: String,
    /// Entries that hold, from the oldest that is kept.
    pub entries: u64,
    /// The number and the hash of the last entry. Whoever notes them elsewhere can tell later that
    /// nothing before was changed on all nodes.
    #[schema(value_type = Object)]
    pub head: AuditHead,
    /// The first entry that does not fit; absent when all do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub broken: Option<Broken>,
}

/// Checks the chain of hashes over all entries in this node's own file.
#[utoipa::path(get, path = "/v1/audit/verify", operation_id = "audit_verify", tag = "access", responses((status = 200, body = AuditVerdict)))]
pub(crate) async fn verify<B: Backend>(State(app): State<Shared<B>>) -> Result<Json<AuditVerdict>, Failure> {
    super::catch_up(&app).await?;
    let node = app.options.node_name.clone();
    let mut chain = Chain::default();
    let mut first = None;
    let mut after = 0;
    loop {
        let page = app.backend.audit(after, LIMIT_MAX, PATIENCE).await?;
        let broken = page.links.iter().find_map(|link| chain.check(link).err());
        first = first.or(page.links.first().map(|link| link.entry.seq));
        after = page.links.last().map_or(after, |link| link.entry.seq);
        // Entries may come while we read; the end is of the moment of the last page.
        let at_end = page.links.len() < LIMIT_MAX as usize;
        let broken = broken.or_else(|| if at_end { chain.end(first, page.head).err() } else { None });
        if at_end || broken.is_some() {
            return Ok(Json(AuditVerdict { node, entries: chain.checked(), head: page.head, broken }));
        }
    }
}

/// All entries, one JSON object a line, as `GET /v1/audit` has them. `quorate audit verify --file`
/// checks what was saved.
#[utoipa::path(get, path = "/v1/audit/export", operation_id = "audit_export", tag = "access",
    responses((status = 200, content_type = "application/x-ndjson", body = String)))]
pub(crate) async fn export<B: Backend>(State(app): State<Shared<B>>) -> Result<Response, Failure> {
    super::catch_up(&app).await?;
    let pieces = stream::unfold((app, Some(0)), |(app, after)| async move {
        let page = match app.backend.audit(after?, LIMIT_MAX, PATIENCE).await {
            Ok(page) => page,
            // The connection breaks off, which is how the reader knows that it has not got all.
            Err(error) => return Some((Err(error), (app, None))),
        };
        let last = page.links.last()?.entry.seq;
        let mut lines = Vec::with_capacity(page.links.len() * 400);
        for link in &page.links {
            serde_json::to_writer(&mut lines, link).expect("an entry has string keys and no failing Serialize");
            lines.push(b'\n');
        }
        Some((Ok(Bytes::from(lines)), (app, Some(last))))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(pieces)).into_response())
}
