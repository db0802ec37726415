//! Logging in and out, and giving the password again.

use super::password::{Compared, acceptable, random};
use super::{Acting, OWN_PATIENCE, carry_out, shown};
use crate::backend::Backend;
use crate::problem::Failure;
use crate::request::{fresh_id, read_body, read_json, read_strangers_body};
use crate::server::{ApiOptions, Shared};
use crate::view::Problem;
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use quorate_model::access::name::{Digest, RoleName, UserName};
use quorate_model::access::policy::{Operation, Permission, Principal};
use quorate_model::access::{
    AccessCommand, AccessRefusal, AccessState, Actor, CONFIRMED_FOR, SESSION_IDLE, SESSION_LONGEST,
};
use quorate_model::command::{Command, Refusal};
use quorate_model::entry::{Outcome, Proposal};
use quorate_model::id::RequestId;
use quorate_model::secret::Secret;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;
use utoipa::ToSchema;

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogIn {
    user: String,
    #[schema(value_type = String)]
    password: Secret<String>,
    /// Answer with the session's token instead of a cookie: for programs.
    #[serde(default)]
    token: bool,
}

/// A session began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LoggedIn {
    pub user: String,
    /// Names the session in lists; of no use for logging in.
    pub session: String,
    /// Seconds without a request after which it is over, and seconds after which it is over anyway.
    pub idle_s: u64,
    pub longest_s: u64,
    /// To be sent as `Authorization: Bearer`; only if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// Begins a session. The same answer, after the same time, for a wrong password and an unknown user.
#[utoipa::path(post, path = "/v1/login", tag = "access", request_body = LogIn,
    responses((status = 200, body = LoggedIn), (status = 401, description = "wrong-credentials", body = Problem),
        (status = 429, description = "too-many-tries", body = Problem)))]
pub(crate) async fn log_in<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let request: LogIn = read_json(&read_strangers_body(&headers, body).await?)?;
    let right = check_password(&app, &acting, &request.user, request.password).await?;
    let text = format!("qs_{}", Digest(random()));
    let hash = Digest::of(text.as_bytes());
    let command = AccessCommand::OpenSession {
        session: hash,
        user: right.user.clone(),
        verified: right.verified,
        source: acting.source(),
    };
    let actor = Actor { who: right.user.to_string(), ..acting.on(&app.access(), "")? };
    // Not the request's id: a repeated login would be told of a session that never was.
    carry_out(&app, fresh_id(), command, &actor, OWN_PATIENCE).await?;
    let answer = LoggedIn {
        user: right.user.to_string(),
        session: hash.short(),
        idle_s: SESSION_IDLE.as_secs(),
        longest_s: SESSION_LONGEST.as_secs(),
        token: request.token.then(|| text.clone()),
    };
    if request.token {
        return Ok(Json(answer).into_response());
    }
    Ok(([(header::SET_COOKIE, set_cookie(&app.options, &text))], Json(answer)).into_response())
}

fn set_cookie(options: &ApiOptions, value: &str) -> HeaderValue {
    let secure = if options.tls { "; Secure" } else { "" };
    let age = if value.is_empty() { "; Max-Age=0" } else { "" };
    let cookie = format!("{}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{age}", options.session_cookie());
    HeaderValue::try_from(cookie).expect("hexadecimal digits and our own words are visible ASCII")
}

/// A password that was right.
struct Right {
    user: UserName,
    /// SHA-256 of the PHC string it was compared with.
    verified: Digest,
}

/// Counts the try, then looks at the password; see [`quorate_model::access::tries`].
async fn check_password<B: Backend>(
    app: &Shared<B>,
    acting: &Acting,
    typed: &str,
    password: Secret<String>,
) -> Result<Right, Failure> {
    let account = UserName::new(typed).ok();
    let source = acting.source();
    // First by what this node knows: whoever has to wait puts nothing into the log.
    let wait = app.access().wait(account.as_ref(), &source, super::wall_now());
    if !wait.is_zero() {
        return Err(too_soon(wait));
    }
    // Then a turn to compute: so the tries in the log are no more than can be looked at.
    let turn = app.hashing.turn().await?;
    let command = Command::Access(AccessCommand::Try { account: account.clone(), source });
    let committed = app.backend.propose(Proposal::command(fresh_id(), &command), OWN_PATIENCE).await?;
    if let Outcome::Command(Err(refusal)) = committed.outcome {
        return Err(refusal.into());
    }
    let access = shown(app, committed.index).await;
    let known = account.and_then(|account| access.users.get(&account));
    let usable = known.filter(|user| !user.disabled);
    let again = password.clone();
    let compared = app.hashing.compare(turn, known.map(|user| user.password.clone()), password).await;
    match (usable, compared) {
        (Some(user), Compared::Right { outdated }) => {
            let verified = Digest::of(user.password.as_bytes());
            if !outdated {
                return Ok(Right { user: user.name.clone(), verified });
            }
            let newer = app.hashing.hash(again).await?;
            let rehash = AccessCommand::Rehash { user: user.name.clone(), verified, password: newer.clone() };
            let done =
                app.backend.propose(Proposal::command(fresh_id(), &Command::Access(rehash)), OWN_PATIENCE).await?;
            let verified =
                if done.outcome == Outcome::Command(Ok(())) { Digest::of(newer.as_bytes()) } else { verified };
            Ok(Right { user: user.name.clone(), verified })
        }
        _ => {
            // What was typed may be a password: only a name that exists is written down.
            let who = known.map_or_else(|| "somebody".to_owned(), |user| user.name.to_string());
            let actor = Actor { who, ..acting.actor(&access, "") };
            app.denials.write(app, actor, "wrong user or password".into());
            Err(wrong_credentials())
        }
    }
}

pub(crate) fn wrong_credentials() -> Failure {
    Failure::new(
        StatusCode::UNAUTHORIZED,
        "wrong-credentials",
        "the user or the password is wrong",
        "try again; an administrator can set a new password with `quorate user password`",
    )
}

fn too_soon(wait: Duration) -> Failure {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
    Refusal::Access(AccessRefusal::TooSoon { wait_ms }).into()
}

/// Ends the session that asks.
#[utoipa::path(post, path = "/v1/logout", tag = "access", responses((status = 204), (status = 401, body = Problem)))]
pub(crate) async fn log_out<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
) -> Result<Response, Failure> {
    let cookie = set_cookie(&app.options, "");
    if let Principal::User { session, .. } = acting.principal {
        let actor = acting.on(&app.access(), &session.short())?;
        carry_out(&app, id, AccessCommand::CloseSession { session }, &actor, OWN_PATIENCE).await?;
    }
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie)]).into_response())
}

/// Who asks, and what they may do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Me {
    /// A user's name, `root`, or `anyone`.
    pub who: String,
    /// Absent for `root` and `anyone`, who may do everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[schema(value_type = Vec<String>)]
    pub roles: BTreeSet<RoleName>,
    #[schema(value_type = Vec<String>)]
    pub permissions: BTreeSet<Permission>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// Who asks, and what they may do.
#[utoipa::path(get, path = "/v1/me", tag = "access",
    responses((status = 200, body = Me), (status = 401, description = "login-needed", body = Problem)))]
pub(crate) async fn me<B: Backend>(State(app): State<Shared<B>>, Extension(acting): Extension<Acting>) -> Json<Me> {
    let access = app.access();
    let principal = &acting.principal;
    let user = principal.user(&access);
    let roles = user.and_then(|user| access.users.get(user)).map(|user| user.roles.clone()).unwrap_or_default();
    let scopes = match principal {
        Principal::Token { token } => access.tokens.get(token).map(|token| token.scopes.clone()),
        _ => None,
    };
    let all = Permission::ALL.iter().copied();
    let permissions = match (user, principal) {
        (None, Principal::Service { replica }) => {
            let granted = access.services.get(replica);
            all.filter(|permission| granted.is_some_and(|granted| granted.allows(*permission))).collect()
        }
        (None, _) => all.collect(),
        (Some(_), _) => all
            .filter(|permission| roles.iter().any(|role| access.grants(role, *permission)))
            .filter(|permission| scopes.as_ref().is_none_or(|scopes| scopes.contains(permission)))
            .collect(),
    };
    let session = match principal {
        Principal::User { session, .. } => Some(session.short()),
        _ => None,
    };
    Json(Me { who: principal.describe(&access), user: user.map(ToString::to_string), roles, permissions, session })
}

/// The user behind a request of a person.
pub(super) fn own_user(access: &AccessState, acting: &Acting) -> Result<UserName, Failure> {
    acting.principal.user(access).cloned().ok_or_else(|| {
        Failure::new(
            StatusCode::CONFLICT,
            "no-user",
            "whoever asks is no user of the cluster",
            "log in as a user, or name the user that is meant",
        )
    })
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPassword {
    #[schema(value_type = String)]
    old: Secret<String>,
    #[schema(value_type = String)]
    new: Secret<String>,
}

/// Changes one's own password. All other sessions of the user end.
#[utoipa::path(post, path = "/v1/me/password", tag = "access", request_body = NewPassword,
    responses((status = 204), (status = 401, description = "wrong-credentials", body = Problem),
        (status = 422, description = "weak-password", body = Problem)))]
pub(crate) async fn own_password<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Failure> {
    let user = own_user(&app.access(), &acting)?;
    let NewPassword { old, new } = read_json(&read_body(&headers, body).await?)?;
    acceptable(user.as_str(), &new)?;
    check_password(&app, &acting, user.as_str(), old).await?;
    let keep = match acting.principal {
        Principal::User { session, .. } => Some(session),
        _ => None,
    };
    let actor = acting.on(&app.access(), user.as_str())?;
    let password = app.hashing.hash(new).await?;
    carry_out(&app, id, AccessCommand::SetPassword { user, password, keep }, &actor, OWN_PATIENCE).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Confirm {
    #[schema(value_type = String)]
    password: Secret<String>,
    /// As `details.operation` of the refusal `confirmation-needed` says it.
    #[schema(value_type = String)]
    operation: Operation,
    /// As `details.target` of that refusal says it.
    #[serde(default)]
    target: String,
}

/// The password was right: one act may be done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Confirmed {
    /// To be sent as `Quorate-Confirmation` with the act, once.
    pub confirmation: String,
    pub expires_s: u64,
}

/// Gives the password again, for one act on one target within five minutes.
#[utoipa::path(post, path = "/v1/confirm", tag = "access", request_body = Confirm,
    responses((status = 200, body = Confirmed), (status = 401, description = "wrong-credentials", body = Problem),
        (status = 429, description = "too-many-tries", body = Problem)))]
pub(crate) async fn confirm<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Confirmed>, Failure> {
    let Confirm { password, operation, target } = read_json(&read_body(&headers, body).await?)?;
    let user = own_user(&app.access(), &acting)?;
    let right = check_password(&app, &acting, user.as_str(), password).await?;
    let text = Digest(random()).to_string();
    let command = AccessCommand::Confirm {
        confirmation: Digest::of(text.as_bytes()),
        user: right.user,
        verified: right.verified,
        source: acting.source(),
        what: operation.word().into(),
        target: super::shorten(&target).into(),
    };
    let actor = acting.on(&app.access(), format!("{operation} {target}").trim_end())?;
    carry_out(&app, fresh_id(), command, &actor, OWN_PATIENCE).await?;
    Ok(Json(Confirmed { confirmation: text, expires_s: CONFIRMED_FOR.as_secs() }))
}
