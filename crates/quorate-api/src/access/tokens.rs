//! Sessions and API tokens: lists, and their ends; tokens' beginnings.

use super::login::own_user;
use super::password::random;
use super::users::user_name;
use super::{Acting, OWN_PATIENCE, carry_out};
use crate::backend::Backend;
use crate::problem::Failure;
use crate::request::{Named, fresh_id, read_body, read_json};
use crate::server::Shared;
use crate::view::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, StatusCode};
use quorate_model::access::name::{ApiTokenId, Digest, UserName};
use quorate_model::access::policy::Permission;
use quorate_model::access::{AccessCommand, AccessRefusal, AccessState, SessionRecord, TOKEN_LASTS, TokenRecord};
use quorate_model::command::Refusal;
use quorate_model::id::RequestId;
use quorate_model::time::{Span, WallTime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// Longest label of a token, in bytes.
const LABEL_MAX: usize = 120;

/// An open session. `quorate session list -o json` is an array of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionView {
    /// Names it here; of no use for logging in.
    pub id: String,
    pub user: String,
    /// The address that logged in.
    pub from: String,
    #[schema(value_type = u64)]
    pub created: WallTime,
    /// Its last use, at most five minutes late.
    #[schema(value_type = u64)]
    pub seen: WallTime,
}

/// Every open session.
#[utoipa::path(get, path = "/v1/sessions", operation_id = "session_list", tag = "access", responses((status = 200, body = [SessionView])))]
pub(crate) async fn sessions<B: Backend>(State(app): State<Shared<B>>) -> Json<Vec<SessionView>> {
    Json(open(&app.access(), None))
}

fn open(access: &AccessState, of: Option<&UserName>) -> Vec<SessionView> {
    let now = super::wall_now();
    let open = access.sessions.values().filter(|session| !session.is_over(now));
    let mut open: Vec<_> = open.filter(|session| of.is_none_or(|of| session.user == *of)).collect();
    open.sort_by_key(|session| (session.created, session.hash));
    let view = |session: &&SessionRecord| SessionView {
        id: session.hash.short(),
        user: session.user.to_string(),
        from: session.from.clone(),
        created: session.created,
        seen: session.seen,
    };
    open.iter().map(view).collect()
}

/// One's own open sessions.
#[utoipa::path(get, path = "/v1/me/sessions", operation_id = "own_session_list", tag = "access",
    responses((status = 200, body = [SessionView]), (status = 409, description = "no-user", body = Problem)))]
pub(crate) async fn own_sessions<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
) -> Result<Json<Vec<SessionView>>, Failure> {
    let access = app.access();
    let user = own_user(&access, &acting)?;
    Ok(Json(open(&access, Some(&user))))
}

/// Ends a session.
#[utoipa::path(delete, path = "/v1/sessions/{id}", operation_id = "session_revoke", tag = "access", params(("id" = String, Path)),
    responses((status = 204), (status = 404, description = "unknown-session", body = Problem)))]
pub(crate) async fn end_session<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(request): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(id): Named,
) -> Result<StatusCode, Failure> {
    end(&app, request, &acting, &id, None).await
}

/// Ends one's own session, here or on another computer.
#[utoipa::path(delete, path = "/v1/me/sessions/{id}", operation_id = "own_session_end", tag = "access", params(("id" = String, Path)),
    responses((status = 204), (status = 404, description = "unknown-session", body = Problem)))]
pub(crate) async fn end_own_session<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(request): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(id): Named,
) -> Result<StatusCode, Failure> {
    let user = own_user(&app.access(), &acting)?;
    end(&app, request, &acting, &id, Some(user)).await
}

/// Somebody else's session is as unknown as one that there never was.
async fn end<B: Backend>(
    app: &Shared<B>,
    request: RequestId,
    acting: &Acting,
    id: &str,
    of: Option<UserName>,
) -> Result<StatusCode, Failure> {
    let access = app.access();
    let mine = |session: &&SessionRecord| of.as_ref().is_none_or(|of| session.user == *of);
    let known = access.sessions.values().filter(mine).find(|session| session.hash.short() == id);
    let known = known.ok_or(Refusal::Access(AccessRefusal::UnknownSession))?;
    let actor = acting.on(&access, &format!("{id} of {}", known.user))?;
    carry_out(app, request, AccessCommand::CloseSession { session: known.hash }, &actor, OWN_PATIENCE).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// An API token without its secret. `quorate token list -o json` is an array of these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    pub id: String,
    pub user: String,
    pub label: String,
    /// What it may do, as far as its user may.
    #[schema(value_type = Vec<String>)]
    pub scopes: BTreeSet<Permission>,
    /// May do without a password what a person has to confirm.
    pub dangerous: bool,
    #[schema(value_type = u64)]
    pub created: WallTime,
    #[schema(value_type = u64)]
    pub expires: WallTime,
    /// Only in the answer that made it: `qt_<id>_<secret>`, to be sent as `Authorization: Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

fn view(token: &TokenRecord) -> TokenView {
    TokenView {
        id: token.id.to_string(),
        user: token.user.to_string(),
        label: token.label.clone(),
        scopes: token.scopes.clone(),
        dangerous: token.dangerous,
        created: token.created,
        expires: token.expires,
        token: None,
    }
}

fn list(access: &AccessState, of: Option<&UserName>) -> Vec<TokenView> {
    let now = super::wall_now();
    let valid = access.tokens.values().filter(|token| now < token.expires);
    valid.filter(|token| of.is_none_or(|of| token.user == *of)).map(view).collect()
}

/// Every valid API token.
#[utoipa::path(get, path = "/v1/tokens", operation_id = "token_list", tag = "access", responses((status = 200, body = [TokenView])))]
pub(crate) async fn all<B: Backend>(State(app): State<Shared<B>>) -> Json<Vec<TokenView>> {
    Json(list(&app.access(), None))
}

/// One's own valid API tokens.
#[utoipa::path(get, path = "/v1/me/tokens", operation_id = "own_token_list", tag = "access",
    responses((status = 200, body = [TokenView]), (status = 409, description = "no-user", body = Problem)))]
pub(crate) async fn own<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
) -> Result<Json<Vec<TokenView>>, Failure> {
    let access = app.access();
    let user = own_user(&access, &acting)?;
    Ok(Json(list(&access, Some(&user))))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewToken {
    /// What it is for.
    #[serde(default)]
    label: String,
    /// What it may do, as far as its user may.
    #[schema(value_type = Vec<String>)]
    scopes: BTreeSet<Permission>,
    #[serde(default)]
    dangerous: bool,
    /// A span like `30d`; default 90d, at most 366d.
    #[schema(value_type = Option<String>)]
    lasts: Option<Span>,
}

/// Makes an API token of one's own. Its secret is shown in this answer only.
#[utoipa::path(post, path = "/v1/me/tokens", operation_id = "own_token_create", tag = "access", request_body = NewToken,
    responses((status = 200, body = TokenView), (status = 403, description = "confirmation-needed", body = Problem),
        (status = 409, description = "no-user", body = Problem)))]
pub(crate) async fn create_own<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TokenView>, Failure> {
    let new = read_json(&read_body(&headers, body).await?)?;
    let user = own_user(&app.access(), &acting)?;
    create(&app, &acting, user, new).await
}

/// Makes an API token for a user. Its secret is shown in this answer only.
#[utoipa::path(post, path = "/v1/users/{name}/tokens", operation_id = "user_token_create", tag = "access", params(("name" = String, Path)),
    request_body = NewToken,
    responses((status = 200, body = TokenView), (status = 403, description = "confirmation-needed", body = Problem),
        (status = 404, description = "unknown-user", body = Problem)))]
pub(crate) async fn create_for<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
    Named(name): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TokenView>, Failure> {
    let new = read_json(&read_body(&headers, body).await?)?;
    create(&app, &acting, user_name(&name)?, new).await
}

async fn create<B: Backend>(
    app: &Shared<B>,
    acting: &Acting,
    user: UserName,
    new: NewToken,
) -> Result<Json<TokenView>, Failure> {
    let NewToken { label, scopes, dangerous, lasts } = new;
    if label.len() > LABEL_MAX {
        let problem = format!("is {} bytes long; at most {LABEL_MAX} fit", label.len());
        return Err(Refusal::Access(AccessRefusal::Invalid { field: "label".into(), problem }).into());
    }
    let actor = acting.on(&app.access(), user.as_str())?;
    let token = ApiTokenId::new(&Digest(random()).short()).expect("16 hexadecimal digits are an id");
    let secret = Digest(random()).to_string();
    let lasts = lasts.map_or(TOKEN_LASTS, |lasts| lasts.0);
    let command = AccessCommand::CreateToken {
        token: token.clone(),
        hash: Digest::of(secret.as_bytes()),
        user,
        label,
        scopes,
        dangerous,
        lasts_us: u64::try_from(lasts.as_micros()).unwrap_or(u64::MAX),
    };
    // Not the request's id: a repeated request would be told of a token that never was.
    let (_, access) = carry_out(app, fresh_id(), command, &actor, OWN_PATIENCE).await?;
    let made = access.tokens.get(&token);
    let made = made.ok_or_else(|| Refusal::Access(AccessRefusal::UnknownToken { token: token.clone() }))?;
    Ok(Json(TokenView { token: Some(format!("qt_{token}_{secret}")), ..view(made) }))
}

/// Ends one's own API token.
#[utoipa::path(delete, path = "/v1/me/tokens/{id}", operation_id = "own_token_revoke", tag = "access", params(("id" = String, Path)),
    responses((status = 204), (status = 404, description = "unknown-token", body = Problem)))]
pub(crate) async fn revoke_own<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(request): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(id): Named,
) -> Result<StatusCode, Failure> {
    let user = own_user(&app.access(), &acting)?;
    revoke(&app, request, &acting, &id, Some(user)).await
}

/// Ends an API token.
#[utoipa::path(delete, path = "/v1/tokens/{id}", operation_id = "token_revoke", tag = "access", params(("id" = String, Path)),
    responses((status = 204), (status = 404, description = "unknown-token", body = Problem)))]
pub(crate) async fn revoke_any<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(request): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(id): Named,
) -> Result<StatusCode, Failure> {
    revoke(&app, request, &acting, &id, None).await
}

async fn revoke<B: Backend>(
    app: &Shared<B>,
    request: RequestId,
    acting: &Acting,
    id: &str,
    of: Option<UserName>,
) -> Result<StatusCode, Failure> {
    let token = ApiTokenId::new(id).map_err(|error| Refusal::Access(error.into()))?;
    let actor = acting.on(&app.access(), id)?;
    carry_out(app, request, AccessCommand::RevokeToken { token, of }, &actor, OWN_PATIENCE).await?;
    Ok(StatusCode::NO_CONTENT)
}
