//! Roles: which there are, what they grant.

use super::users::role_name;
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
use quorate_model::access::name::RoleName;
use quorate_model::access::policy::Permission;
use quorate_model::access::{AccessCommand, AccessRefusal, AccessState, RoleRecord};
use quorate_model::command::Refusal;
use quorate_model::id::RequestId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// A role. `quorate role list -o json` is an array of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RoleView {
    pub name: String,
    pub purpose: String,
    /// Cannot be changed, only cloned.
    pub fixed: bool,
    /// Comes with Quorate, and cannot be removed.
    pub built_in: bool,
    #[schema(value_type = Vec<String>)]
    pub permissions: BTreeSet<Permission>,
    /// Who has it.
    pub users: Vec<String>,
}

fn view(access: &AccessState, role: &RoleRecord) -> RoleView {
    let users = access.users.values().filter(|user| user.roles.contains(&role.name));
    RoleView {
        name: role.name.to_string(),
        purpose: role.purpose.clone(),
        fixed: role.fixed,
        built_in: role.built_in,
        permissions: role.permissions.clone(),
        users: users.map(|user| user.name.to_string()).collect(),
    }
}

fn show(access: &AccessState, name: &RoleName) -> Result<RoleView, Failure> {
    let unknown = || Refusal::Access(AccessRefusal::UnknownRole { role: name.clone() });
    Ok(access.role(name).map(|role| view(access, &role)).ok_or_else(unknown)?)
}

/// Every role.
#[utoipa::path(get, path = "/v1/roles", operation_id = "role_list", tag = "access", responses((status = 200, body = [RoleView])))]
pub(crate) async fn list<B: Backend>(State(app): State<Shared<B>>) -> Json<Vec<RoleView>> {
    let access = app.access();
    Json(access.all_roles().values().map(|role| view(&access, role)).collect())
}

/// One role.
#[utoipa::path(get, path = "/v1/roles/{name}", operation_id = "role_show", tag = "access", params(("name" = String, Path)),
    responses((status = 200, body = RoleView), (status = 404, description = "unknown-role", body = Problem)))]
pub(crate) async fn get<B: Backend>(
    State(app): State<Shared<B>>,
    Named(name): Named,
) -> Result<Json<RoleView>, Failure> {
    show(&app.access(), &role_name(&name)?).map(Json)
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Clone {
    name: String,
    /// The role whose permissions it begins with.
    from: String,
}

/// Makes a role with the permissions of another one.
#[utoipa::path(post, path = "/v1/roles", operation_id = "role_clone", tag = "access", request_body = Clone,
    responses((status = 200, body = RoleView), (status = 403, description = "confirmation-needed", body = Problem),
        (status = 404, description = "unknown-role", body = Problem),
        (status = 409, description = "role-exists", body = Problem)))]
pub(crate) async fn clone<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RoleView>, Failure> {
    let Clone { name, from } = read_json(&read_body(&headers, body).await?)?;
    let from = role_name(&from)?;
    change(&app, id, &acting, &uri, &name, &name, |role| AccessCommand::CloneRole { role, from }).await.map(Json)
}

/// Removes a role that nobody has.
#[utoipa::path(delete, path = "/v1/roles/{name}", operation_id = "role_remove", tag = "access", params(("name" = String, Path)),
    responses((status = 200, description = "The role as it was", body = RoleView),
        (status = 403, description = "confirmation-needed", body = Problem),
        (status = 404, description = "unknown-role", body = Problem),
        (status = 409, description = "fixed-role or role-in-use", body = Problem)))]
pub(crate) async fn remove<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(name): Named,
    uri: Uri,
) -> Result<Json<RoleView>, Failure> {
    change(&app, id, &acting, &uri, &name, &name, |role| AccessCommand::RemoveRole { role }).await.map(Json)
}

/// Adds a permission to a role.
#[utoipa::path(put, path = "/v1/roles/{name}/permissions/{permission}", operation_id = "role_permission_add", tag = "access",
    params(("name" = String, Path), ("permission" = String, Path)),
    responses((status = 200, body = RoleView), (status = 403, description = "confirmation-needed", body = Problem),
        (status = 404, description = "unknown-role", body = Problem),
        (status = 409, description = "fixed-role", body = Problem)))]
pub(crate) async fn add<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named((name, permission)): Named<(String, String)>,
    uri: Uri,
) -> Result<Json<RoleView>, Failure> {
    set(&app, id, &acting, &uri, &name, &permission, true).await.map(Json)
}

/// Takes a permission from a role.
#[utoipa::path(delete, path = "/v1/roles/{name}/permissions/{permission}", operation_id = "role_permission_take", tag = "access",
    params(("name" = String, Path), ("permission" = String, Path)),
    responses((status = 200, body = RoleView), (status = 403, description = "confirmation-needed", body = Problem),
        (status = 404, description = "unknown-role", body = Problem),
        (status = 409, description = "fixed-role", body = Problem)))]
pub(crate) async fn take<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named((name, permission)): Named<(String, String)>,
    uri: Uri,
) -> Result<Json<RoleView>, Failure> {
    set(&app, id, &acting, &uri, &name, &permission, false).await.map(Json)
}

async fn set<B: Backend>(
    app: &Shared<B>,
    id: RequestId,
    acting: &Acting,
    uri: &Uri,
    name: &str,
    permission: &str,
    granted: bool,
) -> Result<RoleView, Failure> {
    let permission: Permission = permission.parse().map_err(|error| Refusal::Access(AccessRefusal::from(error)))?;
    let target = format!("{} {permission} {name}", if granted { "add" } else { "take" });
    let command = |role| AccessCommand::SetPermission { role, permission, granted };
    change(app, id, acting, uri, name, &target, command).await
}

async fn change<B: Backend>(
    app: &Shared<B>,
    id: RequestId,
    acting: &Acting,
    uri: &Uri,
    name: &str,
    target: &str,
    command: impl FnOnce(RoleName) -> AccessCommand,
) -> Result<RoleView, Failure> {
    let patience = patience(read_query::<Patience>(uri)?.timeout_ms)?;
    let role = role_name(name)?;
    let before = app.access();
    let actor = acting.on(&before, target)?;
    let known = show(&before, &role);
    let (_, access) = carry_out(app, id, command(role.clone()), &actor, patience).await?;
    // One that was just removed is shown as it was.
    show(&access, &role).or(known)
}
