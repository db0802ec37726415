//! The native SQL paths.
//!
//! A statement that SQLite refuses is part of an answer (200, `error` in its result); a request
//! that never reached SQLite is a failure.

use crate::access::Acting;
use crate::backend::{Answer, Backend, Committed, Query};
use crate::json::{Native, NativeStatement, Params, write_list, write_plain, write_rows, write_str};
use crate::problem::Failure;
use crate::request::{STATEMENTS_MAX, fence, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::Problem;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode, Uri, header};
use quorate_model::entry::{Database, Outcome, Proposal};
use quorate_model::id::RequestId;
use quorate_model::sql::{Consistency, Rows, SqlBatch, SqlError, SqlOutcome, Statement, StatementResult};
use serde::Deserialize;
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

/// What to run: `statements`, or one as `sql` and `params`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SqlRequest {
    statements: Option<Vec<NativeStatement>>,
    sql: Option<String>,
    #[serde(default)]
    params: Params,
    #[serde(default)]
    transaction: bool,
    #[serde(default)]
    database: File,
    #[serde(default)]
    consistency: Consistency,
    timeout_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum File {
    #[default]
    Main,
    System,
}

impl From<File> for Database {
    fn from(file: File) -> Database {
        match file {
            File::Main => Database::Main,
            File::System => Database::System,
        }
    }
}

/// A request that passed every check.
struct Checked {
    batch: SqlBatch,
    database: Database,
    consistency: Consistency,
    patience: Duration,
}

impl SqlRequest {
    fn check(self) -> Result<Checked, Failure> {
        let fix = "send {\"statements\":[{\"sql\":\"…\"}]} or {\"sql\":\"…\",\"params\":[…]}";
        let statements: Vec<Statement> = match (self.statements, self.sql) {
            (Some(statements), None) => statements.into_iter().map(Statement::from).collect(),
            (None, Some(sql)) => vec![NativeStatement::new(sql, self.params).into()],
            (Some(_), Some(_)) => {
                return Err(Failure::bad_request("bad-json", "statements and sql are both given", fix));
            }
            (None, None) => return Err(Failure::bad_request("no-statements", "there is no statement", fix)),
        };
        if statements.is_empty() {
            return Err(Failure::bad_request("no-statements", "there is no statement", fix));
        }
        if statements.len() > STATEMENTS_MAX {
            return Err(Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-many-statements",
                format!("there are {} statements and the limit is {STATEMENTS_MAX}", statements.len()),
                "split them into several requests",
            ));
        }
        Ok(Checked {
            batch: SqlBatch { statements, transaction: self.transaction },
            database: self.database.into(),
            consistency: self.consistency,
            patience: patience(self.timeout_ms)?,
        })
    }
}

/// Runs statements that write. They are one log entry; a repeated request id runs them once.
#[utoipa::path(post, path = "/v1/db/exec", tag = "database", request_body = inline(doc::SqlRequest),
    params(("Quorate-Request-Id" = Option<String>, Header, description = "A UUID; one id is done once"),
        ("Quorate-Fence" = Option<String>, Header, description = "SERVICE@EPOCH: done only while no newer copy of the \
            service has taken over; an id that is known is answered before this is looked at")),
    responses((status = 200, body = inline(doc::ExecAnswer)), (status = 400, body = Problem),
        (status = 409, description = "stale-epoch, unknown-epoch", body = Problem), (status = 413, body = Problem), (status = 503, description = "overloaded", body = Problem),
        (status = 504, description = "outcome-unknown", body = Problem)))]
pub(crate) async fn exec<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let request: SqlRequest = read_json(&read_body(&headers, body).await?)?;
    let request = request.check()?;
    if request.database == Database::System {
        return Err(Failure::new(
            StatusCode::FORBIDDEN,
            "read-only-database",
            "the database `system` is the cluster's own and only commands write it",
            "write to `main`, or use /v1/specs and /v1/services",
        ));
    }
    let proposal = Proposal::sql(id, &request.batch).under(fence(&headers)?);
    let committed = app.backend.propose(proposal, request.patience).await?;
    let Committed { index, outcome: Outcome::Sql(SqlOutcome { results, refused }) } = committed else {
        return Err(crate::cluster::request_id_reused());
    };
    if let Some(refused) = refused {
        return Err(refused.into());
    }
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(b"{\"results\":");
    write_list(&mut out, &results, write_exec);
    out.extend_from_slice(b",\"index\":");
    write_plain(&mut out, index);
    out.push(b'}');
    Ok(answer(out))
}

fn write_exec(out: &mut Vec<u8>, result: &StatementResult) {
    if let Some(error) = &result.error {
        return write_error(out, error);
    }
    out.extend_from_slice(b"{\"rows_affected\":");
    write_plain(out, result.rows_affected);
    out.extend_from_slice(b",\"last_insert_id\":");
    write_plain(out, result.last_insert_id);
    if let Some(rows) = &result.rows {
        out.push(b',');
        write_table(out, rows);
    }
    out.push(b'}');
}

fn write_error(out: &mut Vec<u8>, error: &SqlError) {
    out.extend_from_slice(b"{\"error\":{\"code\":");
    write_plain(out, error.code);
    out.extend_from_slice(b",\"message\":");
    write_str(out, &error.message);
    out.extend_from_slice(b"}}");
}

/// The fields of a table, without braces.
fn write_table(out: &mut Vec<u8>, rows: &Rows) {
    out.extend_from_slice(b"\"columns\":");
    write_list(out, &rows.columns, |out, name| write_str(out, name));
    out.extend_from_slice(b",\"types\":");
    write_list(out, &rows.types, |out, name| write_str(out, name));
    out.extend_from_slice(b",\"rows\":");
    write_rows::<Native>(out, &rows.rows);
}

/// Runs statements that only read, on this node's own files.
#[utoipa::path(post, path = "/v1/db/query", tag = "database", request_body = inline(doc::SqlRequest),
    responses((status = 200, body = inline(doc::QueryAnswer)), (status = 400, body = Problem),
        (status = 503, description = "no-leader", body = Problem),
        (status = 504, description = "query-too-slow", body = Problem)))]
pub(crate) async fn query<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let request: SqlRequest = read_json(&read_body(&headers, body).await?)?;
    run_query(&app, &acting, request.check()?).await
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct QueryParams {
    sql: String,
    #[serde(default)]
    #[param(value_type = Option<String>)]
    database: File,
    /// `linearizable` (default) or `local`.
    #[serde(default)]
    #[param(value_type = Option<String>)]
    consistency: Consistency,
    /// 10 to 60000; default 10000.
    timeout_ms: Option<u64>,
}

/// One statement without parameters that only reads.
#[utoipa::path(get, path = "/v1/db/query", tag = "database", params(QueryParams),
    responses((status = 200, body = inline(doc::QueryAnswer)), (status = 400, body = Problem),
        (status = 503, description = "no-leader", body = Problem)))]
pub(crate) async fn query_get<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
) -> Result<Response, Failure> {
    let QueryParams { sql, database, consistency, timeout_ms } = read_query(&uri)?;
    let batch = SqlBatch { statements: vec![Statement::new(sql)], transaction: false };
    let patience = patience(timeout_ms)?;
    run_query(&app, &acting, Checked { batch, database: database.into(), consistency, patience }).await
}

async fn run_query<B: Backend>(app: &Shared<B>, acting: &Acting, request: Checked) -> Result<Response, Failure> {
    let Checked { batch, database, consistency, patience } = request;
    acting.reads(app, database)?;
    let Answer { results, applied, age } = app.backend.query(Query { database, batch, consistency, patience }).await?;
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"{\"results\":");
    write_list(&mut out, &results, |out, result| match result {
        Ok(rows) => {
            out.push(b'{');
            write_table(out, rows);
            out.push(b'}');
        }
        Err(error) => write_error(out, error),
    });
    out.extend_from_slice(b",\"applied\":");
    write_plain(&mut out, applied);
    out.extend_from_slice(b",\"age_ms\":");
    match age {
        Some(age) => write_plain(&mut out, age.as_millis()),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    Ok(answer(out))
}

fn answer(json: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json).into_response()
}

/// The shapes of the SQL paths for `/openapi.json`. They are read and written without these types.
mod doc {
    #![allow(dead_code, reason = "schemas only")]
    use super::File;
    use utoipa::ToSchema;

    #[derive(ToSchema)]
    pub(super) struct SqlRequest {
        /// At most 1000.
        statements: Option<Vec<Statement>>,
        /// Short form of one statement; with `params`.
        sql: Option<String>,
        /// An array, or an object of names. A blob is `{"base64": "…"}`.
        params: Option<serde_json::Value>,
        /// All or nothing. Default false.
        transaction: Option<bool>,
        #[schema(inline)]
        database: Option<File>,
        /// `linearizable` (default) or `local`; of queries.
        consistency: Option<String>,
        /// 10 to 60000; default 10000.
        timeout_ms: Option<u64>,
    }

    #[derive(ToSchema)]
    pub(super) struct Statement {
        sql: String,
        /// An array, or an object of names. A blob is `{"base64": "…"}`.
        params: Option<serde_json::Value>,
    }

    #[derive(ToSchema)]
    pub(super) struct ExecAnswer {
        results: Vec<ExecResult>,
        /// The log entry that did it; for a repeated request id the first one.
        index: u64,
    }

    /// Either `error` or the rest.
    #[derive(ToSchema)]
    pub(super) struct ExecResult {
        rows_affected: Option<u64>,
        last_insert_id: Option<i64>,
        columns: Option<Vec<String>>,
        types: Option<Vec<String>>,
        rows: Option<Vec<Vec<serde_json::Value>>>,
        error: Option<StatementError>,
    }

    #[derive(ToSchema)]
    pub(super) struct QueryAnswer {
        results: Vec<QueryResult>,
        /// The log index up to which the state was applied.
        applied: u64,
        /// How long ago this node heard from a leader; null: never.
        age_ms: Option<u64>,
    }

    /// Either `error` or the rest.
    #[derive(ToSchema)]
    pub(super) struct QueryResult {
        columns: Option<Vec<String>>,
        /// Declared types in lower case; empty for an expression.
        types: Option<Vec<String>>,
        rows: Option<Vec<Vec<serde_json::Value>>>,
        error: Option<StatementError>,
    }

    #[derive(ToSchema)]
    pub(super) struct StatementError {
        /// SQLite's extended result code.
        code: i32,
        message: String,
    }
}
