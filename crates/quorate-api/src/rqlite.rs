//! The first part of the rqlite facade: `/db/execute` and `/db/query`, as rqlite's clients expect
//! them to the byte.
//!
//! Words and shapes here are rqlite's. Errors of SQLite are answers (200); errors of transport are
//! plain text. Sources: rqlite's API documentation and its `http` and `command/encoding` packages.

use crate::access::Acting;
use crate::backend::{Backend, Query, ReadError, WriteError};
use crate::json::{Dialect as _, Rqlite, RqliteStatement, UNSUPPORTED, write_list, write_plain, write_value};
use crate::problem::Failure;
use crate::request::{STATEMENTS_MAX, fence, read_body};
use crate::server::Shared;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri, header};
use quorate_model::entry::{Database, Outcome, Proposal};
use quorate_model::id::RequestId;
use quorate_model::sql::{Consistency, Rows, Scalar, SqlBatch, Statement, StatementResult, Value};
use quorate_model::time::Span;
use serde::Deserialize;
use std::time::Duration;

const PATIENCE_DEFAULT: Duration = Duration::from_secs(30);
const PATIENCE_MIN: Duration = Duration::from_millis(10);
const PATIENCE_MAX: Duration = Duration::from_secs(60);

/// A failure as rqlite says it: text.
pub(crate) struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

fn bad_request(text: impl Into<String>) -> Refused {
    Refused(StatusCode::BAD_REQUEST, text.into())
}

fn in_words(failure: Failure) -> Refused {
    Refused(failure.status(), failure.problem().message.clone())
}

/// A flag is set by being there, whatever its value; unknown ones are ignored, as in rqlite.
#[derive(Debug, Default, Deserialize)]
struct Flags {
    transaction: Option<String>,
    level: Option<String>,
    timeout: Option<String>,
    q: Option<String>,
}

impl Flags {
    fn read(uri: &Uri) -> Result<Flags, Refused> {
        if uri.query().is_none() {
            return Ok(Flags::default());
        }
        let query = axum::extract::Query::try_from_uri(uri).map_err(|rejection| bad_request(rejection.body_text()))?;
        Ok(query.0)
    }

    fn patience(&self) -> Result<Duration, Refused> {
        let Some(text) = &self.timeout else { return Ok(PATIENCE_DEFAULT) };
        let span: Span = text.parse().map_err(|_| bad_request("timeout is not a valid duration"))?;
        Ok(span.0.clamp(PATIENCE_MIN, PATIENCE_MAX))
    }

    fn consistency(&self) -> Consistency {
        match self.level.as_deref() {
            Some("none") => Consistency::Local,
            _ => Consistency::Linearizable,
        }
    }
}

/// `POST /db/execute`
pub(crate) async fn execute<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let flags = Flags::read(&uri)?;
    let patience = flags.patience()?;
    // Not of rqlite: whoever sends it knows Quorate.
    let fence = fence(&headers).map_err(in_words)?;
    let batch = read_batch(&flags, &headers, body).await?;
    let proposal = Proposal::sql(id, &batch).under(fence);
    let committed = app.backend.propose(proposal, patience).await.map_err(refuse_write)?;
    let Outcome::Sql(outcome) = committed.outcome else {
        return Err(bad_request("the request id belongs to a request of another kind"));
    };
    if let Some(refused) = outcome.refused {
        return Err(Refused(StatusCode::CONFLICT, refused.to_string()));
    }
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(b"{\"results\":");
    write_list(&mut out, &outcome.results, write_executed);
    out.push(b'}');
    Ok(answer(out))
}

/// `POST /db/query`
pub(crate) async fn query<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let flags = Flags::read(&uri)?;
    let batch = read_batch(&flags, &headers, body).await?;
    run_query(&app, &acting, &flags, batch).await
}

/// `GET /db/query?q=…`
pub(crate) async fn query_get<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
) -> Result<Response, Refused> {
    let mut flags = Flags::read(&uri)?;
    let sql = flags.q.take().filter(|sql| !sql.is_empty()).ok_or_else(|| bad_request("query parameter not set"))?;
    let batch = SqlBatch { statements: vec![Statement::new(sql)], transaction: flags.transaction.is_some() };
    run_query(&app, &acting, &flags, batch).await
}

async fn run_query<B: Backend>(
    app: &Shared<B>,
    acting: &Acting,
    flags: &Flags,
    batch: SqlBatch,
) -> Result<Response, Refused> {
    acting.reads(app, Database::Main).map_err(in_words)?;
    let query =
        Query { database: Database::Main, batch, consistency: flags.consistency(), patience: flags.patience()? };
    let found = app.backend.query(query).await.map_err(refuse_read)?;
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(b"{\"results\":");
    write_list(&mut out, &found.results, |out, result| match result {
        Ok(rows) => write_table(out, rows),
        Err(error) => write_error(out, &error.message),
    });
    out.push(b'}');
    Ok(answer(out))
}

async fn read_batch(flags: &Flags, headers: &HeaderMap, body: Body) -> Result<SqlBatch, Refused> {
    let body = read_body(headers, body).await.map_err(in_words)?;
    let is_text = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    let statements: Vec<Statement> = if is_text {
        let sql = std::str::from_utf8(&body).map_err(|_| bad_request("invalid request"))?.trim();
        if sql.is_empty() { Vec::new() } else { vec![Statement::new(sql)] }
    } else if body.is_empty() {
        Vec::new()
    } else {
        let statements: Vec<RqliteStatement> = serde_json::from_slice(&body).map_err(|error| {
            bad_request(match error.classify() {
                serde_json::error::Category::Data if error.to_string().starts_with(UNSUPPORTED) => UNSUPPORTED,
                serde_json::error::Category::Data => "invalid request",
                _ => "invalid JSON body",
            })
        })?;
        statements.into_iter().map(|statement| statement.0).collect()
    };
    if statements.is_empty() {
        return Err(bad_request("no statements"));
    }
    if statements.len() > STATEMENTS_MAX {
        return Err(Refused(StatusCode::PAYLOAD_TOO_LARGE, format!("more than {STATEMENTS_MAX} statements")));
    }
    Ok(SqlBatch { statements, transaction: flags.transaction.is_some() })
}

fn refuse_write(error: WriteError) -> Refused {
    let status = match error {
        WriteError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        WriteError::Overloaded | WriteError::Unknown { .. } | WriteError::ShuttingDown => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    Refused(status, error.to_string())
}

fn refuse_read(error: ReadError) -> Refused {
    let text = match error {
        ReadError::NoLeader { .. } => "leader not found".into(),
        ReadError::TooSlow { .. } | ReadError::Overloaded | ReadError::ShuttingDown => error.to_string(),
    };
    Refused(StatusCode::SERVICE_UNAVAILABLE, text)
}

fn write_executed(out: &mut Vec<u8>, result: &StatementResult) {
    if let Some(error) = &result.error {
        return write_error(out, &error.message);
    }
    if let Some(rows) = &result.rows {
        return write_table(out, rows);
    }
    out.push(b'{');
    if result.last_insert_id != 0 {
        out.extend_from_slice(b"\"last_insert_id\":");
        write_plain(out, result.last_insert_id);
    }
    if result.rows_affected != 0 {
        let comma = if result.last_insert_id == 0 { "" } else { "," };
        write_plain(out, format_args!("{comma}\"rows_affected\":{}", result.rows_affected));
    }
    out.push(b'}');
}

fn write_error(out: &mut Vec<u8>, message: &str) {
    out.extend_from_slice(b"{\"error\":");
    Rqlite::write_text(out, message);
    out.push(b'}');
}

fn write_table(out: &mut Vec<u8>, rows: &Rows) {
    let types: Vec<&str> =
        rows.types.iter().enumerate().map(|(column, declared)| kind(rows, column, declared)).collect();
    out.extend_from_slice(b"{\"columns\":");
    write_list(out, &rows.columns, |out, name| Rqlite::write_text(out, name));
    out.extend_from_slice(b",\"types\":");
    write_list(out, &types, |out, name| Rqlite::write_text(out, name));
    if !rows.rows.is_empty() {
        out.extend_from_slice(b",\"values\":");
        write_list(out, &rows.rows, |out, row| {
            let mut types = types.iter();
            write_list(out, &row.values, |out, value| write_typed(out, value, types.next().copied()));
        });
    }
    out.push(b'}');
}

/// The declared type; for an expression that of the first row's value.
fn kind<'a>(rows: &Rows, column: usize, declared: &'a str) -> &'a str {
    if !declared.is_empty() {
        return declared;
    }
    match rows.rows.first().and_then(|row| row.values.get(column)?.scalar.as_ref()) {
        None => "",
        Some(Scalar::Integer(_)) => "integer",
        Some(Scalar::Real(_)) => "real",
        Some(Scalar::Text(_)) => "text",
        Some(Scalar::Blob(_)) => "blob",
    }
}

fn write_typed(out: &mut Vec<u8>, value: &Value, kind: Option<&str>) {
    match (kind, &value.scalar) {
        (Some("boolean"), Some(Scalar::Integer(number))) => write_plain(out, *number > 0),
        _ => write_value::<Rqlite>(out, value),
    }
}

fn answer(json: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], json).into_response()
}
