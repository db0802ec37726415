//! Users.

use super::password::{acceptable, generate_password};
use super::{Acting, carry_out};
use crate::backend::Backend;
use crate::problem::Failure;
use crate::request::{Named, Patience, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, Uri};
use quorate_model::access::name::{RoleName, UserName};
use quorate_model::access::{AccessCommand, AccessRefusal, AccessState, UserRecord};
use quorate_model::command::Refusal;
use quorate_model::id::RequestId;
use quorate_model::secret::Secret;
use quorate_model::time::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// A user. `quorate user list -o json` is an array of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UserView {
    pub name: String,
    #[schema(value_type = Vec<String>)]
    pub roles: BTreeSet<RoleName>,
    pub disabled: bool,
    #[schema(value_type = u64)]
    pub created: WallTime,
    #[schema(value_type = u64)]
    pub password_changed: WallTime,
    /// Sessions that are open.
    pub sessions: u64,
    /// API tokens that are valid.
    pub tokens: u64,
    /// Only in the answer that made it: the password that Quorate chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

fn view(access: &AccessState, user: &UserRecord) -> UserView {
    let now = super::wall_now();
    let sessions = access.sessions.values().filter(|known| known.user == user.name && !known.is_over(now)).count();
    let tokens = access.tokens.values().filter(|known| known.user == user.name && now < known.expires).count();
    UserView {
        name: user.name.to_string(),
        roles: user.roles.clone(),
        disabled: user.disabled,
        created: user.created,
        password_changed: user.password_changed,
        sessions: sessions as u64,
        tokens: tokens as u64,
        password: None,
    }
}

fn show(access: &AccessState, name: &UserName) -> Result<UserView, Failure> {
    let user = access.users.get(name);
    user.map(|user| view(access, user)).ok_or_else(|| unknown(name))
}

fn unknown(user: &UserName) -> Failure {
    Refusal::Access(AccessRefusal::UnknownUser { user: user.clone() }).into()
}

pub(super) fn user_name(name: &str) -> Result<UserName, Failure> {
    UserName::new(name).map_err(|error| Refusal::Access(error.into()).into())
}

pub(super) fn role_name(name: &str) -> Result<RoleName, Failure> {
    RoleName::new(name).map_err(|error| Refusal::Access(error.into()).into())
}

/// Every user.
#[utoipa::path(get, path = "/v1/users", operation_id = "user_list", tag = "access", responses((status = 200, body = [UserView])))]
pub(crate) async fn list<B: Backend>(State(app): State<Shared<B>>) -> Json<Vec<UserView>> {
    let access = app.access();
    Json(access.users.values().map(|user| view(&access, user)).collect())
}

/// One user.
#[utoipa::path(get, path = "/v1/users/{name}", operation_id = "user_show", tag = "access", params(("name" = String, Path)),
    responses((status = 200, body = UserView), (status = 404, description = "unknown-user", body = Problem)))]
pub(crate) async fn get<B: Backend>(
    State(app): State<Shared<B>>,
    Named(name): Named,
) -> Result<Json<UserView>, Failure> {
    show(&app.access(), &user_name(&name)?).map(Json)
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewUser {
    name: String,
    /// Chosen by Quorate, and shown once, when it is not given.
    #[schema(value_type = Option<String>)]
    password: Option<Secret<String>>,
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    roles: BTreeSet<RoleName>,
}

/// The password that is to be set, and whether it has to be shown because nobody knows it yet.
fn chosen(user: &UserName, given: Option<Secret<String>>) -> Result<(Secret<String>, bool), Failure> {
    match given {
        Some(password) => acceptable(user.as_str(), &password).map(|()| (password, false)),
        None => Ok((generate_password(), true)),
    }
}

/// Makes a user.
#[utoipa::path(post, path = "/v1/users", operation_id = "user_create", tag = "access", request_body = NewUser,
    responses((status = 200, body = UserView), (status = 403, description = "confirmation-needed", body = Problem),
        (status = 409, description = "user-exists", body = Problem),
        (status = 422, description = "weak-password", body = Problem)))]
pub(crate) async fn create<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<UserView>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let NewUser { name, password, roles } = read_json(&read_body(&headers, body).await?)?;
    let user = user_name(&name)?;
    let actor = acting.on(&app.access(), user.as_str())?;
    let (password, is_new) = chosen(&user, password)?;
    let hashed = app.hashing.hash(password.clone()).await?;
    let command = AccessCommand::CreateUser { user: user.clone(), password: hashed.clone(), roles };
    let (_, access) = carry_out(&app, id, command, &actor, patience).await?;
    // A repeated request made another password that never was.
    let ours = access.users.get(&user).is_some_and(|known| known.password == hashed);
    let password = (is_new && ours).then(|| password.expose().clone());
    Ok(Json(UserView { password, ..show(&access, &user)? }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FirstAdmin {
    name: String,
    #[schema(value_type = Option<String>)]
    password: Option<Secret<String>>,
}

/// Makes the first user, an admin. Changes nothing, and answers without a password, when there are users.
#[utoipa::path(post, path = "/v1/first-admin", operation_id = "first_admin", tag = "access", request_body = FirstAdmin,
    responses((status = 200, body = [UserView]), (status = 422, description = "weak-password", body = Problem)))]
pub(crate) async fn first_admin<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Vec<UserView>>, Failure> {
    let FirstAdmin { name, password } = read_json(&read_body(&headers, body).await?)?;
    let user = user_name(&name)?;
    let actor = acting.on(&app.access(), user.as_str())?;
    let (password, is_new) = chosen(&user, password)?;
    let hashed = app.hashing.hash(password.clone()).await?;
    let command = AccessCommand::EnsureAdmin { user: user.clone(), password: hashed.clone() };
    let (_, access) = carry_out(&app, id, command, &actor, super::OWN_PATIENCE).await?;
    let ours = |known: &UserRecord| known.name == user && known.password == hashed;
    let shown = access.users.values().map(|known| UserView {
        password: (is_new && ours(known)).then(|| password.expose().clone()),
        ..view(&access, known)
    });
    Ok(Json(shown.collect()))
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetPassword {
    /// Chosen by Quorate, and shown once, when it is not given.
    #[schema(value_type = Option<String>)]
    password: Option<Secret<String>>,
}

/// Sets a user's password. All sessions of the user end.
#[utoipa::path(put, path = "/v1/users/{name}/password", operation_id = "user_password", tag = "access", params(("name" = String, Path)),
    request_body = SetPassword,
    responses((status = 200, body = UserView), (status = 403, description = "confirmation-needed", body = Problem),
        (status = 404, description = "unknown-user", body = Problem),
        (status = 422, description = "weak-password", body = Problem)))]
pub(crate) async fn password<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(name): Named,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<UserView>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let SetPassword { password } = read_json(&read_body(&headers, body).await?)?;
    let user = user_name(&name)?;
    let actor = acting.on(&app.access(), user.as_str())?;
    let (password, is_new) = chosen(&user, password)?;
    let hashed = app.hashing.hash(password.clone()).await?;
    let command = AccessCommand::SetPassword { user: user.clone(), password: hashed.clone(), keep: None };
    let (_, access) = carry_out(&app, id, command, &actor, patience).await?;
    let ours = access.users.get(&user).is_some_and(|known| known.password == hashed);
    let password = (is_new && ours).then(|| password.expose().clone());
    Ok(Json(UserView { password, ..show(&access, &user)? }))
}

/// Runs a command about one user.
async fn change<B: Backend>(
    app: &Shared<B>,
    id: RequestId,
    acting: &Acting,
    uri: &Uri,
    name: &str,
    target: &str,
    command: impl FnOnce(UserName) -> AccessCommand,
) -> Result<UserView, Failure> {
    let patience = patience(read_query::<Patience>(uri)?.timeout_ms)?;
    let user = user_name(name)?;
    let before = app.access();
    let actor = acting.on(&before, target)?;
    let known = before.users.get(&user).map(|known| view(&before, known));
    let (_, access) = carry_out(app, id, command(user.clone()), &actor, patience).await?;
    // One that was just removed is shown as it was.
    show(&access, &user).or_else(|_| known.ok_or_else(|| unknown(&user)))
}

/// Keeps a user out: sessions end, tokens are refused.
#[utoipa::path(post, path = "/v1/users/{name}/disable", operation_id = "user_disable", tag = "access", params(("name" = String, Path)),
    responses((status = 200, body = UserView), (status = 403, description = "confirmation-needed", body = Problem),
        (status = 404, description = "unknown-user", body = Problem),
        (status = 409, description = "last-admin", body = Problem)))]
pub(crate) async fn disable<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(name): Named,
    uri: Uri,
) -> Result<Json<UserView>, Failure> {
    change(&app, id, &acting, &uri, &name, &name, |user| AccessCommand::DisableUser { user }).await.map(Json)
}

/// Lets a disabled user in again.
#[utoipa::path(post, path = "/v1/users/{name}/enable", operation_id = "user_enable", tag = "access", params(("name" = String, Path)),
    responses((status = 200, body = UserView), (status = 403, description = "confirmation-needed", body = Problem),
        (status = 404, description = "unknown-user", body = Problem)))]
pub(crate) async fn enable<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(name): Named,
    uri: Uri,
) -> Result<Json<UserView>, Failure> {
    change(&app, id, &acting, &uri, &name, &name, |user| AccessCommand::EnableUser { user }).await.map(Json)
}

/// Removes a user with its sessions and tokens.
#[utoipa::path(delete, path = "/v1/users/{name}", operation_id = "user_remove", tag = "access", params(("name" = String, Path)),
    responses((status = 200, description = "The user as it was", body = UserView),
        (status = 403, description = "confirmation-needed", body = Problem),
        (status = 404, description = "unknown-user", body = Problem),
        (status = 409, description = "last-admin", body = Problem)))]
pub(crate) async fn remove<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(name): Named,
    uri: Uri,
) -> Result<Json<UserView>, Failure> {
    change(&app, id, &acting, &uri, &name, &name, |user| AccessCommand::RemoveUser { user }).await.map(Json)
}

/// Gives a user a role.
#[utoipa::path(put, path = "/v1/users/{name}/roles/{role}", operation_id = "role_grant", tag = "access",
    params(("name" = String, Path), ("role" = String, Path)),
    responses((status = 200, body = UserView), (status = 403, description = "confirmation-needed", body = Problem),
        (status = 404, description = "unknown-user or unknown-role", body = Problem)))]
pub(crate) async fn grant<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named((name, role)): Named<(String, String)>,
    uri: Uri,
) -> Result<Json<UserView>, Failure> {
    let role = role_name(&role)?;
    let target = format!("{role} {name}");
    change(&app, id, &acting, &uri, &name, &target, |user| AccessCommand::GrantRole { user, role }).await.map(Json)
}

/// Takes a role from a user.
#[utoipa::path(delete, path = "/v1/users/{name}/roles/{role}", operation_id = "role_revoke", tag = "access",
    params(("name" = String, Path), ("role" = String, Path)),
    responses((status = 200, body = UserView), (status = 403, description = "confirmation-needed", body = Problem),
        (status = 404, description = "unknown-user or unknown-role", body = Problem),
        (status = 409, description = "last-admin", body = Problem)))]
pub(crate) async fn revoke<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named((name, role)): Named<(String, String)>,
    uri: Uri,
) -> Result<Json<UserView>, Failure> {
    let role = role_name(&role)?;
    let target = format!("{role} {name}");
    change(&app, id, &acting, &uri, &name, &target, |user| AccessCommand::RevokeRole { user, role }).await.map(Json)
}
