//! Externals: set once every node could log in, listed, tried again, removed.
//!
//! A password comes in with the definition and is sealed before anything is proposed; no answer holds one.

use crate::access::Acting;
use crate::backend::Backend;
use crate::cluster::command;
use crate::problem::Failure;
use crate::request::{Named, Patience, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, StatusCode, Uri};
use quorate_model::access::name::ExternalName;
use quorate_model::command::{Command, Refusal};
use quorate_model::external::{External, ExternalCommand, ExternalRecord, NodeLogin};
use quorate_model::id::RequestId;
use quorate_model::secret::Secret;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

/// Longest password, in bytes.
const PASSWORD_BYTES_MAX: usize = 4 << 10;

/// An external. `quorate external list -o json` is an array of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExternalView {
    /// Name, kind, hosts and so on, as they were set; of a password the name of its secret.
    #[schema(value_type = Object)]
    pub external: External,
    /// Grows with each change.
    pub version: u64,
    /// When it was set.
    #[schema(value_type = u64)]
    pub changed: quorate_model::time::WallTime,
    /// It was taken though not every node could log in, or though none tried.
    pub unchecked: bool,
}

/// An external that is to be set.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewExternal {
    /// Its name is that of the path.
    #[schema(value_type = Object)]
    pub external: External,
    /// The password itself; it is sealed as the secret `external.NAME`. Not together with `external.password`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub password: Option<Secret<String>>,
    /// It is taken whatever comes of the logins. Default false.
    #[serde(default)]
    pub unchecked: bool,
}

/// What came of an attempt to log in from every node that runs services.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExternalTested {
    /// Every node can use it.
    pub ok: bool,
    #[schema(value_type = Vec<Object>)]
    pub logins: Vec<NodeLogin>,
}

/// The external that was set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExternalSet {
    pub name: String,
    /// The log entry that did it.
    pub index: u64,
    #[serde(flatten)]
    pub tested: ExternalTested,
}

/// The external that was removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ExternalRemoved {
    pub name: String,
    /// The log entry that did it.
    pub index: u64,
}

impl ExternalTested {
    fn of(logins: Vec<NodeLogin>) -> ExternalTested {
        ExternalTested { ok: logins.iter().all(NodeLogin::is_well), logins }
    }
}

fn view(record: ExternalRecord) -> ExternalView {
    let ExternalRecord { external, version, changed, unchecked } = record;
    ExternalView { external, version, changed, unchecked }
}

fn name_of(text: &str) -> Result<ExternalName, Failure> {
    let bad = |error: quorate_model::access::name::BadName| invalid("name", error.to_string());
    ExternalName::new(text).map_err(bad)
}

fn invalid(field: &str, problem: String) -> Failure {
    let fix = format!("nothing was changed: correct `{field}` and send it again");
    Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", problem, fix).with_details(json!({ "field": field }))
}

fn find<B: Backend>(app: &Shared<B>, name: &ExternalName) -> Result<ExternalRecord, Failure> {
    let known = app.backend.externals();
    let words: Vec<&str> = known.iter().map(|record| record.external.name.as_str()).collect();
    let similar = quorate_model::spec::nearest(name.as_str(), &words).and_then(|name| ExternalName::new(name).ok());
    let found = known.iter().find(|record| record.external.name == *name).cloned();
    found.ok_or_else(|| Refusal::UnknownExternal { external: name.clone(), similar }.into())
}

/// All externals.
#[utoipa::path(get, path = "/v1/externals", operation_id = "external_list", tag = "externals",
    responses((status = 200, body = [ExternalView])))]
pub(crate) async fn list<B: Backend>(State(app): State<Shared<B>>) -> Json<Vec<ExternalView>> {
    Json(app.backend.externals().into_iter().map(view).collect())
}

/// One external.
#[utoipa::path(get, path = "/v1/externals/{name}", operation_id = "external_show", tag = "externals", params(("name" = String, Path)),
    responses((status = 200, body = ExternalView), (status = 404, description = "unknown-external", body = Problem)))]
pub(crate) async fn show<B: Backend>(
    State(app): State<Shared<B>>,
    Named(name): Named,
) -> Result<Json<ExternalView>, Failure> {
    Ok(Json(view(find(&app, &name_of(&name)?)?)))
}

/// Adds an external or puts it in the place of the one of its name, once every node that runs services could log in.
#[utoipa::path(put, path = "/v1/externals/{name}", operation_id = "external_set", tag = "externals", params(("name" = String, Path)),
    request_body = NewExternal,
    responses((status = 200, body = ExternalSet), (status = 409, description = "login-failed, no-cluster-key, key-changed", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn set<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(name): Named,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ExternalSet>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let name = name_of(&name)?;
    let actor = acting.on(&app.access(), name.as_str())?;
    let NewExternal { mut external, password, unchecked } = read_json(&read_body(&headers, body).await?)?;
    if external.name != name {
        return Err(invalid("name", format!("the external is named `{}`, and the path `{name}`", external.name)));
    }
    let password = password.map(|password| Secret::new(password.expose().clone().into_bytes()));
    if let Some(password) = &password {
        if external.password.is_some() {
            return Err(invalid("password", "there is a password, and the name of a secret for it: give one".into()));
        }
        if !(1..=PASSWORD_BYTES_MAX).contains(&password.expose().len()) {
            return Err(invalid(
                "password",
                format!("the password is empty or has more than {PASSWORD_BYTES_MAX} bytes"),
            ));
        }
        external.password = Some(External::own_secret(&name));
    }
    external.validate().map_err(|(field, problem)| invalid(&field, format!("`{field}` {problem}")))?;
    let tested = ExternalTested::of(app.backend.log_in(external.clone(), password.clone()).await?);
    if !tested.ok && !unchecked {
        return Err(not_logged_in(&name, &tested));
    }
    let sealed =
        password.map(|password| app.backend.seal(&External::own_secret(&name), password.expose())).transpose()?;
    let (sealed, key) = sealed.map_or((None, 0), |sealed| (Some(sealed.sealed), sealed.key));
    let wish = ExternalCommand::Set { definition: Box::new(external), sealed, key, unchecked: !tested.ok };
    let index = command(&app, id, &Command::External(wish), &actor, patience).await?;
    Ok(Json(ExternalSet { name: name.to_string(), index: index.0, tested }))
}

/// Why it was not taken. The first problem is the message, all of them are in the details.
fn not_logged_in(name: &ExternalName, tested: &ExternalTested) -> Failure {
    let bad = || tested.logins.iter().filter(|login| !login.is_well());
    let nodes: Vec<&str> = bad().map(|login| login.node.as_str()).collect();
    let problems = bad().flat_map(|login| &login.hosts).filter_map(|host| host.problem.as_ref());
    // What is against the login says more than that a host is away.
    let worst = problems.max_by_key(|problem| !problem.why.is_absence());
    let fix = worst.map_or("see that these nodes run, and try again", |problem| problem.why.fix());
    let message = format!("{} cannot log in to `{name}`, so it was not taken", nodes.join(", "));
    let fix = format!("{fix}; to take it all the same: `--unchecked`");
    Failure::new(StatusCode::CONFLICT, "login-failed", message, fix).with_details(json!({ "logins": tested.logins }))
}

/// Has every node that runs services log in, and changes nothing.
#[utoipa::path(post, path = "/v1/externals/{name}/test", operation_id = "external_test", tag = "externals", params(("name" = String, Path)),
    responses((status = 200, body = ExternalTested), (status = 404, description = "unknown-external", body = Problem),
        (status = 409, description = "no-cluster-key", body = Problem)))]
pub(crate) async fn test<B: Backend>(
    State(app): State<Shared<B>>,
    Named(name): Named,
) -> Result<Json<ExternalTested>, Failure> {
    let record = find(&app, &name_of(&name)?)?;
    Ok(Json(ExternalTested::of(app.backend.log_in(record.external, None).await?)))
}

/// Removes an external that no service names.
#[utoipa::path(delete, path = "/v1/externals/{name}", operation_id = "external_remove", tag = "externals", params(("name" = String, Path)),
    responses((status = 200, body = ExternalRemoved), (status = 404, description = "unknown-external", body = Problem),
        (status = 409, description = "external-in-use", body = Problem)))]
pub(crate) async fn remove<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(name): Named,
    uri: Uri,
) -> Result<Json<ExternalRemoved>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let name = name_of(&name)?;
    let actor = acting.on(&app.access(), name.as_str())?;
    let wish = Command::External(ExternalCommand::Remove { name: name.clone() });
    let index = command(&app, id, &wish, &actor, patience).await?;
    Ok(Json(ExternalRemoved { name: name.to_string(), index: index.0 }))
}
