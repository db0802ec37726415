//! The HTTP API: whole requests, and the SQL bodies of both facades, through the real router.
//!
//! Behind it stands a node that has done everything at once, and whose tables hold what was asked: each
//! statement is answered with its parameters. So one request tries the decoder and the encoder.

use crate::head;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use quorate_api::autoscale::AutoscaleView;
use quorate_api::backend::{
    AccessView, Answer, Backend, Committed, Invitation, InviteError, JoinError, LogChunk, LogError, LogFrom, LogOf,
    OpenLog, Pages, Policy, Query, ReadError, TransferError, WriteError,
};
use quorate_api::drills::DrillForecast;
use quorate_api::join::{JoinAnswer, JoinCheck, JoinRequest};
use quorate_api::placement::{ExplanationView, ForecastView, RebalanceView};
use quorate_api::updates::HistoryView;
use quorate_api::view::{MembersView, Overview, Problem};
use quorate_api::{ApiOptions, AuthMode, router};
use quorate_model::access::Actor;
use quorate_model::access::audit::{AuditHead, AuditPage};
use quorate_model::entry::{Envelope, Outcome, Payload, Proposal};
use quorate_model::id::{LogIndex, NodeId, ServiceName};
use quorate_model::member::SecretHash;
use quorate_model::observed::GatewayReport;
use quorate_model::routing::RoutingTable;
use quorate_model::sql::{Row, Rows, Scalar, SqlBatch, SqlOutcome, Statement, StatementResult, Value};
use quorate_model::time::{Span, WallTime};
use serde_json::Value as Json;
use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::{self, Runtime};
use tokio::sync::watch;

/// A node that answers each statement with its parameters.
#[derive(Debug, Clone)]
struct Mirror {
    overview: watch::Sender<Arc<Overview>>,
    routing: watch::Sender<Arc<RoutingTable>>,
    access: watch::Sender<AccessView>,
    seen: Arc<Mutex<Vec<Statement>>>,
}

impl Mirror {
    fn new() -> Mirror {
        let overview: Overview = serde_json::from_str(OVERVIEW).expect("the text below is an overview");
        let (overview, routing) = (watch::Sender::new(Arc::new(overview)), watch::Sender::new(Arc::default()));
        Mirror { overview, routing, access: watch::Sender::default(), seen: Arc::default() }
    }

    /// The statements since the last call.
    fn take_seen(&self) -> Vec<Statement> {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn answer(&self, batch: SqlBatch) -> Vec<Rows> {
        let answers = batch.statements.iter().map(rows).collect();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).extend(batch.statements);
        answers
    }
}

fn values(statement: &Statement) -> Vec<Value> {
    let named = statement.named.iter().map(|named| named.value.clone());
    statement.positional.iter().cloned().chain(named).collect()
}

fn rows(statement: &Statement) -> Rows {
    let values = values(statement);
    let columns = (0..values.len()).map(|number| format!("c{number}")).collect();
    Rows { columns, types: vec![String::new(); values.len()], rows: vec![Row { values }] }
}

const OVERVIEW: &str = r#"{"sequence":1,"answered_by":"n1","cluster":{"id":"00000000-0000-0000-0000-000000000001",
"name":"fuzz","health":"healthy","summary":"","leader":"n1","term":2,"voters":1,"voters_joined":1,"can_lose":0,
"applied":9,"version":"0.0.0"},"nodes":[],"services":[],"gateways":[],"events":[]}"#;

/// There is none.
enum NoLog {}

impl OpenLog for NoLog {
    async fn read(&mut self, _: LogFrom, _: usize) -> Result<LogChunk, LogError> {
        match *self {}
    }
}

impl Backend for Mirror {
    type Log = NoLog;

    async fn propose(&self, proposal: Proposal, _: Duration) -> Result<Committed, WriteError> {
        let payload = Envelope::stamp(proposal, WallTime(1), 1).payload();
        let outcome = match payload.expect("what the API proposes can be read") {
            Payload::Sql(batch) => {
                let result =
                    |rows| StatementResult { rows: Some(rows), rows_affected: 1, ..StatementResult::default() };
                let results = self.answer(batch).into_iter().map(result).collect();
                Outcome::Sql(SqlOutcome { results, refused: None })
            }
            Payload::Command(_) => Outcome::Command(Ok(())),
            Payload::Noop => Outcome::Noop,
        };
        Ok(Committed { index: LogIndex(1), outcome })
    }

    async fn query(&self, query: Query) -> Result<Answer, ReadError> {
        let results = self.answer(query.batch).into_iter().map(Ok).collect();
        Ok(Answer { results, applied: LogIndex(9), age: Some(Duration::ZERO) })
    }

    fn overview(&self) -> watch::Receiver<Arc<Overview>> {
        self.overview.subscribe()
    }

    fn routing(&self) -> watch::Receiver<Arc<RoutingTable>> {
        self.routing.subscribe()
    }

    fn access(&self) -> watch::Receiver<AccessView> {
        self.access.subscribe()
    }

    async fn audit(&self, _: u64, _: u32, _: Duration) -> Result<AuditPage, ReadError> {
        Ok(AuditPage { links: Vec::new(), head: AuditHead::default() })
    }

    fn policy(&self) -> Policy {
        Policy { minimum_nodes: 1, pages: Pages::Own }
    }

    fn link(&self) -> watch::Receiver<bool> {
        watch::channel(true).1
    }

    fn try_link(&self) -> Result<(), String> {
        Ok(())
    }

    fn gateway_report(&self, _: GatewayReport) {}

    async fn open_log(&self, of: LogOf, _: LogFrom, bytes_max: usize) -> Result<(LogChunk, NoLog), LogError> {
        assert!(bytes_max <= 64 << 20, "a request may not ask for {bytes_max} bytes at once");
        Err(LogError::Unknown(of))
    }

    async fn explain(&self, _: ServiceName, _: Duration) -> Result<Option<ExplanationView>, ReadError> {
        Ok(None)
    }

    async fn history(&self, _: ServiceName, _: Duration) -> Result<Option<HistoryView>, ReadError> {
        Ok(None)
    }

    async fn autoscale(&self, _: ServiceName, _: Duration) -> Result<Option<AutoscaleView>, ReadError> {
        Ok(None)
    }

    async fn what_if_kill(&self, _: NodeId, _: Duration) -> Result<ForecastView, ReadError> {
        Err(ReadError::Overloaded)
    }

    async fn to_rebalance(&self, _: usize, _: Duration) -> Result<RebalanceView, ReadError> {
        Err(ReadError::Overloaded)
    }

    async fn drill_forecast(&self, _: NodeId, _: Option<Span>, _: Duration) -> Result<DrillForecast, ReadError> {
        Err(ReadError::Overloaded)
    }

    async fn transfer_leadership(&self, _: NodeId, _: Duration) -> Result<(), TransferError> {
        Ok(())
    }

    fn members(&self) -> watch::Receiver<Arc<MembersView>> {
        watch::channel(Arc::default()).1
    }

    fn invite(&self) -> Result<Invitation, InviteError> {
        Ok(Invitation { secret: SecretHash([7; 32]), commands: vec!["quorate join".into()] })
    }

    async fn check_join(&self, _: JoinRequest, _: Option<IpAddr>) -> Result<JoinCheck, JoinError> {
        Err(JoinError::Invite(InviteError::NoAuthority))
    }

    async fn join(&self, _: JoinRequest, _: Option<IpAddr>, _: Actor, _: Duration) -> Result<JoinAnswer, JoinError> {
        Err(JoinError::Invite(InviteError::NoAuthority))
    }

    fn leave(&self) {}
}

struct Server {
    runtime: Runtime,
    mirror: Mirror,
    service: TowerToHyperService<Router>,
}

thread_local! {
    static SERVER: OnceCell<Server> = const { OnceCell::new() };
}

impl Server {
    fn new() -> Server {
        let runtime = runtime::Builder::new_current_thread().enable_time().build();
        let mirror = Mirror::new();
        let options = ApiOptions {
            console_token: Some("token".into()),
            node_name: "n1".into(),
            auth: AuthMode::Open,
            ..ApiOptions::default()
        };
        let service = TowerToHyperService::new(router(mirror.clone(), options));
        Server { runtime: runtime.expect("a runtime of one thread can be made"), mirror, service }
    }

    /// Status, content type, body. A stream's body never ends and is not waited for.
    fn send(&self, request: Request<Body>) -> (StatusCode, String, Option<Bytes>) {
        self.runtime.block_on(async {
            let response = self.service.call(request).await.expect("the router's error cannot be");
            let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            let kind = kind.to_owned();
            let status = response.status();
            let body = match kind.as_str() {
                "text/event-stream" | "application/x-ndjson" => None,
                _ => Some(response.into_body().collect().await.expect("a whole body has no error").to_bytes()),
            };
            (status, kind, body)
        })
    }

    fn post(&self, path: &str, body: Vec<u8>) -> (StatusCode, Bytes) {
        let request = Request::post(path).body(Body::from(body)).expect("our own paths are paths");
        let (status, _, body) = self.send(request);
        (status, body.expect("no stream"))
    }
}

fn with_server<T>(work: impl FnOnce(&Server) -> T) -> T {
    SERVER.with(|server| work(server.get_or_init(Server::new)))
}

/// A request: a line `METHOD TARGET`, a line for each header, an empty line, the body.
///
/// # Panics
/// When an answer is a failure of the server (500), or one of a native path does not say in JSON what
/// is wrong and what to do.
pub fn http(data: &[u8]) -> bool {
    let (lines, body) = head(data);
    let Some(request) = request(lines, body) else { return false };
    let native = request.uri().path().starts_with("/v1/");
    with_server(|server| {
        let (status, kind, body) = server.send(request);
        server.mirror.take_seen();
        assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR);
        let Some(body) = body else { return true };
        if status.is_success() {
            let json = kind.starts_with("application/json");
            assert!(!json || serde_json::from_slice::<Json>(&body).is_ok(), "an answer is no JSON");
            return true;
        }
        if native && status != StatusCode::NOT_MODIFIED {
            let problem: Result<Problem, _> = serde_json::from_slice(&body);
            assert!(problem.is_ok(), "{status} of a native path says `{}`", String::from_utf8_lossy(&body));
        }
        false
    })
}

fn request(head: &[u8], body: &[u8]) -> Option<Request<Body>> {
    let mut lines = head.split(|byte| *byte == b'\n');
    let (method, target) = std::str::from_utf8(lines.next()?).ok()?.split_once(' ')?;
    let mut builder = Request::builder().method(method).uri(target);
    for line in lines.take(100) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        builder = builder.header(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
    }
    builder.body(Body::from(body.to_vec())).ok()
}

/// A body of `POST /v1/db/query`.
///
/// # Panics
/// When an answer is no JSON of the right shape, or when values that came back from the database are
/// other ones after a client sent them again.
pub fn sql(data: &[u8]) -> bool {
    with_server(|server| {
        let (status, answer) = server.post("/v1/db/query", data.to_vec());
        let statements = server.mirror.take_seen();
        if status != StatusCode::OK {
            assert!(statements.is_empty() && serde_json::from_slice::<Problem>(&answer).is_ok());
            return false;
        }
        let again = serde_json::json!({ "statements": given_back(&answer, "rows", &statements) });
        let (status, second) = server.post("/v1/db/query", serde_json::to_vec(&again).expect("JSON can be written"));
        assert_eq!(status, StatusCode::OK, "values that were given out are refused: {again}");
        let repeated = server.mirror.take_seen();
        for (first, second) in statements.iter().zip(&repeated) {
            let (first, second) = (values(first), values(second));
            assert!(first.iter().zip(&second).all(|(a, b)| same(a, b)), "{first:?} came back as {second:?}");
        }
        assert_eq!(statements.len(), repeated.len());
        assert_eq!(answer, second);
        true
    })
}

/// The statements with the parameters that the answer gave.
fn given_back(answer: &[u8], table: &str, statements: &[Statement]) -> Vec<Json> {
    let answer: Json = serde_json::from_slice(answer).expect("an answer is JSON");
    let results = answer["results"].as_array().expect("results are a list");
    assert_eq!(results.len(), statements.len());
    let statement = |(result, statement): (&Json, &Statement)| {
        let row = &result[table][0];
        assert_eq!(row.as_array().map(Vec::len), Some(values(statement).len()), "a row lost a value");
        serde_json::json!({ "sql": statement.sql, "params": row })
    };
    results.iter().zip(statements).map(statement).collect()
}

/// To the bit: two zeros differ, and a number is itself.
fn same(a: &Value, b: &Value) -> bool {
    match (&a.scalar, &b.scalar) {
        (Some(Scalar::Real(a)), Some(Scalar::Real(b))) => a.to_bits() == b.to_bits(),
        (a, b) => a == b,
    }
}

/// A body of rqlite's `POST /db/query`.
///
/// # Panics
/// When an answer is no JSON of rqlite's shape, or a number in it is another than was given.
pub fn rqlite(data: &[u8]) -> bool {
    with_server(|server| {
        let (status, answer) = server.post("/db/query", data.to_vec());
        let statements = server.mirror.take_seen();
        if status != StatusCode::OK {
            assert!(statements.is_empty() && status.is_client_error() && std::str::from_utf8(&answer).is_ok());
            return false;
        }
        for (statement, shown) in statements.iter().zip(given_back(&answer, "values", &statements)) {
            let shown = shown["params"].as_array().cloned().unwrap_or_default();
            for (value, shown) in values(statement).iter().zip(&shown) {
                let equal = match &value.scalar {
                    None => shown.is_null(),
                    Some(Scalar::Integer(number)) => shown.as_i64() == Some(*number),
                    Some(Scalar::Real(number)) => shown.to_string().parse::<f64>().is_ok_and(|shown| shown == *number),
                    Some(Scalar::Text(text)) => shown.as_str() == Some(text),
                    Some(Scalar::Blob(_)) => shown.is_string(),
                };
                assert!(equal, "{value:?} is shown as {shown}");
            }
        }
        true
    })
}
