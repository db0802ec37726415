//! The cluster: what it is, what is wanted of it, who leads it.

use crate::access::Acting;
use crate::asked::Asked;
use crate::backend::Backend;
use crate::ha;
use crate::members::find_node;
use crate::placement::RoomView;
use crate::problem::Failure;
use crate::request::{Named, Patience, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::{EventView, NodeState, NodeView, Overview, Problem, ServiceView, Standing};
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode, Uri, header};
use quorate_model::access::Actor;
use quorate_model::access::policy::Operation;
use quorate_model::command::{Command, Refusal};
use quorate_model::entry::{Outcome, Proposal};
use quorate_model::id::{LogIndex, RequestId, ServiceName};
use quorate_model::spec::{self, Format, RouteSpec, ServiceSpec, SpecDocument};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

/// Longest wait, after a commit, for this node's own view to show it.
pub(crate) const VIEW_WITHIN: Duration = Duration::from_secs(1);

pub(crate) fn current<B: Backend>(app: &Shared<B>) -> Arc<Overview> {
    app.backend.overview().borrow().clone()
}

/// The cluster at this moment, as this node sees it.
#[utoipa::path(get, path = "/v1/status", tag = "cluster", responses((status = 200, body = Overview)))]
pub(crate) async fn status<B: Backend>(State(app): State<Shared<B>>) -> Response {
    Json(&*current(&app)).into_response()
}

/// Every node.
#[utoipa::path(get, path = "/v1/nodes", tag = "cluster", responses((status = 200, body = [NodeView])))]
pub(crate) async fn nodes<B: Backend>(State(app): State<Shared<B>>) -> Response {
    Json(&current(&app).nodes).into_response()
}

/// Every service with its replicas.
#[utoipa::path(get, path = "/v1/services", tag = "services", responses((status = 200, body = [ServiceView])))]
pub(crate) async fn services<B: Backend>(State(app): State<Shared<B>>) -> Response {
    Json(&current(&app).services).into_response()
}

/// One service with its replicas.
#[utoipa::path(get, path = "/v1/services/{name}", tag = "services", params(("name" = String, Path)),
    responses((status = 200, body = ServiceView), (status = 404, description = "unknown-service", body = Problem)))]
pub(crate) async fn service<B: Backend>(
    State(app): State<Shared<B>>,
    Named(name): Named,
) -> Result<Json<ServiceView>, Failure> {
    let overview = current(&app);
    match overview.services.iter().find(|service| service.name.as_str() == name) {
        Some(service) => Ok(Json(service.clone())),
        None => Err(unknown_service(&overview, &name)),
    }
}

pub(crate) fn unknown_service(overview: &Overview, name: &str) -> Failure {
    let similar = nearest(name, overview.services.iter().map(|service| service.name.as_str()));
    let (hint, fix) = match similar {
        Some(similar) => {
            (format!("; did you mean `{similar}`?"), format!("use `{similar}`, or see `GET /v1/services`"))
        }
        None => (String::new(), "see `GET /v1/services` for the names".into()),
    };
    Failure::new(StatusCode::NOT_FOUND, "unknown-service", format!("there is no service `{name}`{hint}"), fix)
        .with_details(json!({ "service": name, "similar": similar }))
}

pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|other| (strsim::damerau_levenshtein(other, name), other))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, other)| other)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventFilter {
    /// Only events of later log entries.
    after: Option<u64>,
    /// At most so many, the newest. 1 to 50; default 50.
    #[param(minimum = 1, maximum = 50)]
    limit: Option<usize>,
}

/// The newest events, newest first.
#[utoipa::path(get, path = "/v1/events", tag = "cluster", params(EventFilter), responses((status = 200, body = [EventView])))]
pub(crate) async fn events<B: Backend>(
    State(app): State<Shared<B>>,
    uri: Uri,
) -> Result<Json<Vec<EventView>>, Failure> {
    let filter: EventFilter = read_query(&uri)?;
    let after = LogIndex(filter.after.unwrap_or(0));
    let limit = filter.limit.unwrap_or(50);
    if !(1..=50).contains(&limit) {
        return Err(Failure::bad_request("bad-query", format!("limit is {limit}"), "give 1 to 50"));
    }
    let overview = current(&app);
    Ok(Json(overview.events.iter().filter(|event| event.index > after).take(limit).cloned().collect()))
}

/// 200 on the Active node alone: for load balancers and scripts.
#[utoipa::path(get, path = "/v1/active", tag = "cluster",
    responses((status = 200, body = Object), (status = 503, description = "not-active", body = Problem)))]
pub(crate) async fn active<B: Backend>(State(app): State<Shared<B>>) -> Result<Json<Value>, Failure> {
    let overview = current(&app);
    let leader = overview.cluster.leader.as_deref();
    if leader == Some(overview.answered_by.as_str()) {
        return Ok(Json(json!({ "node": leader, "term": overview.cluster.term })));
    }
    let (message, fix) = match leader {
        Some(leader) => {
            (format!("{} is not the Active node, {leader} is", overview.answered_by), format!("ask {leader}"))
        }
        None => ("no node is Active".into(), "wait until a leader is elected".into()),
    };
    Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "not-active", message, fix)
        .with_details(json!({ "leader": leader })))
}

/// What applying a spec does, or would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SpecAnswer {
    pub services: Vec<SpecResult>,
    /// The log entry that did it; absent for a plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
}

/// What applying a spec does to one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SpecResult {
    #[schema(value_type = String)]
    pub service: ServiceName,
    pub action: SpecAction,
    /// The service's version afterwards.
    pub version: u64,
    /// Fields that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
    /// What somebody should know before, for people.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SpecAction {
    Create,
    Update,
    Unchanged,
}

/// A field whose value changes; `null` stands for "not given".
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// Path of the field, like `health.every`.
    pub field: String,
    #[schema(value_type = Object)]
    pub from: Value,
    #[schema(value_type = Object)]
    pub to: Value,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct SpecOptions {
    /// Only tell what would happen.
    #[serde(default)]
    plan: bool,
    /// 10 to 60000; default 10000.
    timeout_ms: Option<u64>,
}

/// Creates or replaces services and their routes. JSON, or TOML as `application/toml`.
///
/// `services` compares with what this node had applied before the request.
#[utoipa::path(post, path = "/v1/specs", tag = "services", params(SpecOptions),
    request_body(content = Object, description = "A spec file: `service` and `route` tables"),
    responses((status = 200, body = SpecAnswer), (status = 409, description = "route-taken", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn apply_specs<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SpecAnswer>, Failure> {
    let options: SpecOptions = read_query(&uri)?;
    let patience = patience(options.timeout_ms)?;
    let document = read_spec(&headers, &read_body(&headers, body).await?)?;
    document.validate()?;
    check_templates(&document)?;
    let mut services = plan(&current(&app), &document);
    if options.plan {
        return Ok(Json(SpecAnswer { services, index: None }));
    }
    let has_secrets = |service: &ServiceSpec| !service.secrets.is_empty() || !service.externals.is_empty();
    if document.services.iter().any(has_secrets) {
        // Who says what runs with a secret gets to know it, and so with the password of an external.
        acting.may(&app.access(), Operation::SecretSet)?;
    }
    let names: Vec<&str> = document.services.iter().map(|service| service.name.as_str()).collect();
    let actor = acting.on(&app.access(), &names.join(" "))?;
    let index = command(&app, id, &Command::ApplySpec { document }, &actor, patience).await?;
    let overview = shown(&app, index).await;
    for result in &mut services {
        // What this node shows is the truth; without it the plan's number is the best guess.
        if let Some(service) = overview.services.iter().find(|service| service.name == result.service) {
            result.version = service.version.max(result.version);
        }
    }
    Ok(Json(SpecAnswer { services, index: Some(index.0) }))
}

fn read_spec(headers: &HeaderMap, body: &[u8]) -> Result<SpecDocument, Failure> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let format = if kind == "application/toml" { Format::Toml } else { Format::Json };
    let text = std::str::from_utf8(body).map_err(|error| {
        Failure::bad_request("bad-spec", format!("the spec is not text: {error}"), "send it as UTF-8")
    })?;
    spec::parse(text, format).map_err(|error| {
        let fix = "correct the line that is named; send TOML with the content type application/toml";
        Failure::bad_request("bad-spec", format!("the spec cannot be read: {error}"), fix)
    })
}

/// Whether texts are templates at all. What they are made of shows on a node alone. No rule of the state machine:
/// nodes may have different versions of the language.
fn check_templates(document: &SpecDocument) -> Result<(), Refusal> {
    let language = minijinja::Environment::new();
    for service in &document.services {
        for (to, text) in service.templates.iter().filter_map(|it| Some((&it.to, it.text.as_ref()?))) {
            language.template_from_str(text).map_err(|error| Refusal::Invalid {
                field: format!("service.{}.template.{to}.text", service.name),
                problem: format!(
                    "is no template: line {}: {}",
                    error.line().unwrap_or(1),
                    error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned)
                ),
            })?;
        }
    }
    Ok(())
}

/// What `document` would change, service by service in the document's order.
fn plan(overview: &Overview, document: &SpecDocument) -> Vec<SpecResult> {
    let result = |spec: &ServiceSpec| {
        let routes: Vec<&RouteSpec> = document.routes.iter().filter(|route| route.service == spec.name).collect();
        let known = overview.services.iter().find(|service| service.name == spec.name);
        let spec = &spec.settled(known.map(|known| known.spec.replicas));
        let mut differences = Vec::new();
        let before =
            known.map_or(Value::Null, |known| described(&known.spec, &known.routes.iter().collect::<Vec<_>>()));
        compare("", &before, &described(spec, &routes), &mut differences);
        let (action, version) = match known {
            None => (SpecAction::Create, 1),
            Some(known) if differences.is_empty() => (SpecAction::Unchanged, known.version),
            Some(known) => {
                let same_program = known.spec.runs_the_same(spec);
                (SpecAction::Update, if same_program { known.version } else { known.version + 1 })
            }
        };
        let replaced = known.filter(|known| !known.spec.runs_the_same(spec));
        let warnings = replaced.and_then(|known| interruption(spec, known.want)).into_iter().collect();
        SpecResult { service: spec.name.clone(), action, version, differences, warnings }
    };
    document.services.iter().map(result).collect()
}

/// Why nothing serves for a while when the copies of a service are replaced.
fn interruption(spec: &ServiceSpec, copies: u32) -> Option<String> {
    let why = spec.stops_first().filter(|_| spec.update_interrupts(copies))?;
    Some(format!("{} is away for a moment: it {why}, so the old copies end before new ones start", spec.name))
}

fn described(spec: &ServiceSpec, routes: &[&RouteSpec]) -> Value {
    let mut fields = serde_json::to_value(spec).expect("a spec has string keys and no failing Serialize");
    fields["routes"] = serde_json::to_value(routes).expect("a route has string keys and no failing Serialize");
    fields
}

fn compare(path: &str, from: &Value, to: &Value, out: &mut Vec<Difference>) {
    if from == to {
        return;
    }
    let empty = serde_json::Map::new();
    let (from_fields, to_fields) = match (from, to) {
        (Value::Object(from), Value::Object(to)) => (from, to),
        (Value::Null, Value::Object(to)) => (&empty, to),
        (Value::Object(from), Value::Null) => (from, &empty),
        _ => return out.push(Difference { field: path.into(), from: from.clone(), to: to.clone() }),
    };
    let mut names: Vec<&String> = from_fields.keys().chain(to_fields.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let value = |fields: &serde_json::Map<String, Value>| fields.get(name).cloned().unwrap_or(Value::Null);
        compare(&path, &value(from_fields), &value(to_fields), out);
    }
}

/// A service was changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    #[schema(value_type = String)]
    pub service: ServiceName,
    /// The log entry that did it.
    pub index: u64,
    /// How many copies are wanted now; absent when the service was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// After scaling a service with `resources`: whether there is room for all copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<RoomView>,
}

/// Removes a service: its replicas end, its routes go.
#[utoipa::path(delete, path = "/v1/services/{name}", tag = "services", params(("name" = String, Path)),
    responses((status = 200, body = Changed), (status = 404, description = "unknown-service", body = Problem)))]
pub(crate) async fn remove_service<B: Backend>(asked: Asked<B>) -> Result<Json<Changed>, Failure> {
    let service = asked.service.clone();
    asked.done(service.as_str(), &Command::RemoveService { service: service.clone() }).await
}

/// How many copies of a service are wanted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// 1 to 1000.
    #[schema(minimum = 1, maximum = 1000)]
    pub replicas: u32,
}

/// Changes how many copies of a service run.
#[utoipa::path(post, path = "/v1/services/{name}/scale", tag = "services", params(("name" = String, Path)),
    request_body = Scale,
    responses((status = 200, body = Changed), (status = 404, description = "unknown-service", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn scale<B: Backend>(
    asked: Asked<B>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Changed>, Failure> {
    let service = asked.service.clone();
    let Scale { replicas } = read_json(&read_body(&headers, body).await?)?;
    let scale = Command::ScaleService { service: service.clone(), replicas };
    let index = asked.carry_out(&format!("{service} to {replicas}"), &scale).await?;
    // What is explained must know of it.
    shown(&asked.app, index).await;
    // It is done; who cannot be told how it looks now is not told that it failed.
    let explained = asked.app.backend.explain(service.clone(), asked.patience()).await;
    let room = explained.ok().flatten().and_then(|explained| explained.room);
    Ok(Json(Changed { service, index: index.0, replicas: Some(replicas), room }))
}

/// Replaces every copy of a service by another of the same program, one after another as an update does.
#[utoipa::path(post, path = "/v1/services/{name}/restart", tag = "services", params(("name" = String, Path)),
    responses((status = 200, body = Changed), (status = 404, description = "unknown-service", body = Problem)))]
pub(crate) async fn restart<B: Backend>(asked: Asked<B>) -> Result<Json<Changed>, Failure> {
    let service = asked.service.clone();
    asked.done(service.as_str(), &Command::RestartService { service: service.clone() }).await
}

/// A text that cannot be a name is the name of no service.
pub(crate) fn service_name<B: Backend>(app: &Shared<B>, name: &str) -> Result<ServiceName, Failure> {
    ServiceName::new(name).map_err(|_| unknown_service(&current(app), name))
}

/// Who is to lead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// Name or id of a manager.
    pub node: String,
}

/// Who leads now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Leader {
    pub leader: String,
}

/// Hands leadership over to another manager.
#[utoipa::path(post, path = "/v1/raft/transfer", tag = "cluster", request_body = Transfer,
    responses((status = 200, body = Leader), (status = 404, description = "unknown-node", body = Problem),
        (status = 409, description = "cannot-lead, ha-off", body = Problem),
        (status = 503, description = "no-leader", body = Problem), (status = 504, description = "not-taken", body = Problem)))]
pub(crate) async fn transfer<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Leader>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let Transfer { node: wanted } = read_json(&read_body(&headers, body).await?)?;
    let overview = current(&app);
    ha::is_on(&overview)?;
    let node = find_node(&overview, &wanted)?;
    acting.on(&app.access(), &node.name)?;
    if let Some(why) = cannot_lead(node) {
        let fix = "name a manager that votes; `quorate manager list` shows which do";
        return Err(Failure::new(StatusCode::CONFLICT, "cannot-lead", format!("{} {why}", node.name), fix)
            .with_details(json!({ "node": node.name })));
    }
    acting.begin(&app, &node.name).await?;
    app.backend.transfer_leadership(node.id, patience).await?;
    Ok(Json(Leader { leader: node.name.clone() }))
}

/// Why nobody hands over to this node.
fn cannot_lead(node: &NodeView) -> Option<&'static str> {
    match (node.standing, node.state) {
        (None, _) => Some("is no manager"),
        (Some(Standing::Standby), _) => Some("stands by: it leads once it votes"),
        (Some(Standing::Stopped), _) => Some("is a manager that is stopped"),
        (Some(Standing::Voter), NodeState::Joined) => None,
        (Some(Standing::Voter), NodeState::Unreachable | NodeState::Down | NodeState::Removed) => {
            Some("does not answer now")
        }
    }
}

/// Puts a command into the log and says at which entry it was carried out.
pub(crate) async fn command<B: Backend>(
    app: &Shared<B>,
    id: RequestId,
    command: &Command,
    actor: &Actor,
    patience: Duration,
) -> Result<LogIndex, Failure> {
    let committed = app.backend.propose(Proposal::command_by(id, command, actor), patience).await?;
    match committed.outcome {
        Outcome::Command(Ok(())) => Ok(committed.index),
        Outcome::Command(Err(refusal)) => Err(refused(&current(app), refusal)),
        Outcome::Noop | Outcome::Sql(_) => Err(request_id_reused()),
    }
}

pub(crate) fn refused(overview: &Overview, refusal: Refusal) -> Failure {
    match refusal {
        Refusal::UnknownService { service, similar: None } => unknown_service(overview, service.as_str()),
        other => other.into(),
    }
}

pub(crate) fn request_id_reused() -> Failure {
    Failure::new(
        StatusCode::CONFLICT,
        "request-id-reused",
        "this request id belongs to an earlier request of another kind",
        "nothing was done: send the request with a new id",
    )
}

/// The overview that includes `index`, or the newest when it takes too long.
pub(crate) async fn shown<B: Backend>(app: &Shared<B>, index: LogIndex) -> Arc<Overview> {
    let mut overview = app.backend.overview();
    let wait = overview.wait_for(|overview| overview.cluster.applied >= index);
    // A closed channel or the end of the wait leave what there is.
    if let Ok(Ok(overview)) = tokio::time::timeout(VIEW_WITHIN, wait).await {
        return overview.clone();
    }
    current(app)
}
