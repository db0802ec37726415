//! Who belongs to the cluster: join tokens, aliases, roles, votes, removal, the quota.

use crate::access::Acting;
use crate::asked::AskedOfNode;
use crate::backend::Backend;
use crate::cluster::{command, nearest};
use crate::ha;
use crate::problem::Failure;
use crate::request::{Named, Patience, fresh_id, patience, read_body, read_json, read_query};
use crate::server::Shared;
use crate::view::{JoinTokenView, MembersView, NodeView, Overview, Problem, QuotaView};
use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use http::{HeaderMap, StatusCode, Uri};
use quorate_model::command::Command;
use quorate_model::id::{LogIndex, NodeId, RequestId, TokenId};
use quorate_model::member::{JoinToken, MemberCommand, Quota, Vote};
use quorate_model::state::Role;
use quorate_model::time::{Span, WallTime};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use utoipa::ToSchema;

/// How long a join token may be used unless its maker says otherwise.
pub const TOKEN_TTL: Span = Span::from_secs(3_600);
/// Longest life of a join token: who has it can become a manager.
pub const TOKEN_TTL_MAX: Span = Span::from_secs(24 * 3_600);
/// Shortest life of a join token.
pub const TOKEN_TTL_MIN: Span = Span::from_secs(1);
/// Fewer characters of an id are more likely a mistyped name.
const ID_PREFIX_MIN: usize = 4;

fn wall_now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Every join token that waits, was used or expired a short time ago. Never their secrets.
#[utoipa::path(get, path = "/v1/join-tokens", tag = "members", responses((status = 200, body = [JoinTokenView])))]
pub(crate) async fn tokens<B: Backend>(State(app): State<Shared<B>>) -> Json<Vec<JoinTokenView>> {
    Json(app.backend.members().borrow().tokens.clone())
}

/// Who may join.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// What the server becomes: `manager` (which may also be worker and gateway), `worker` or `gateway`.
    #[serde(default = "manager")]
    #[schema(value_type = String, default = "manager")]
    pub role: Role,
    /// How long the token may be used: `1s` to `24h`.
    #[serde(default = "ttl")]
    #[schema(value_type = String, default = "1h")]
    pub ttl: Span,
    /// Only a server of this name may use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

fn manager() -> Role {
    Role::Manager
}

fn ttl() -> Span {
    TOKEN_TTL
}

impl Default for Invite {
    fn default() -> Invite {
        Invite { role: manager(), ttl: ttl(), name: None }
    }
}

/// A new join token. Its secret is in the commands, and is never shown again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Invited {
    pub token: JoinTokenView,
    /// One command for each address of the node that answers; any of them may be used, once.
    pub commands: Vec<String>,
    /// The log entry that did it.
    pub index: u64,
}

/// Makes a join token, which lets one server in, once. It switches high availability on.
#[utoipa::path(post, path = "/v1/join-tokens", tag = "members", request_body = Invite,
    responses((status = 200, body = Invited),
        (status = 409, description = "token-made-before, no-authority, link-port-taken", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn invite<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Invited>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let body = read_body(&headers, body).await?;
    let Invite { role, ttl, name } = if body.is_empty() { Invite::default() } else { read_json(&body)? };
    if !(TOKEN_TTL_MIN..=TOKEN_TTL_MAX).contains(&ttl) {
        let message = format!("`ttl` is {ttl}; a token lasts {TOKEN_TTL_MIN} to {TOKEN_TTL_MAX}");
        let fix = "make one when the server is ready: it takes a moment";
        return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message, fix)
            .with_details(json!({ "field": "ttl" })));
    }
    let actor = acting.on(&app.access(), &format!("{role:?}").to_lowercase())?;
    ha::may_listen(&app)?;
    let invitation = app.backend.invite()?;
    let created = wall_now();
    let token = JoinToken {
        id: TokenId(fresh_id().0),
        secret: invitation.secret,
        role,
        name,
        created,
        expires: WallTime(created.0.saturating_add(micros(ttl.0))),
        used: None,
    };
    let view = JoinTokenView {
        id: token.id,
        role,
        name: token.name.clone(),
        created,
        expires: token.expires,
        used_by: None,
        used_at: None,
    };
    let wanted = token.id;
    let create = Command::Member(MemberCommand::CreateToken { token, turn_on_ha: true });
    let index = command(&app, id, &create, &actor, patience).await?;
    ha::listens(&app, true).await;
    if !is_there(&app, wanted, index).await {
        // A request that is repeated is done once, and the secret of that once is gone.
        let message = "this request has made a join token before, whose secret was shown then";
        let fix = "send it with a new request id to make another token";
        return Err(Failure::new(StatusCode::CONFLICT, "token-made-before", message, fix));
    }
    Ok(Json(Invited { token: view, commands: invitation.commands, index: index.0 }))
}

/// Whether the token made by entry `index` is the one that was wanted.
async fn is_there<B: Backend>(app: &Shared<B>, wanted: TokenId, index: LogIndex) -> bool {
    match shown_members(app, index).await {
        Some(members) => members.tokens.iter().any(|token| token.id == wanted),
        // It was applied here, or the commit would not have been answered; only the view is late.
        None => true,
    }
}

/// The view, once the entry is in it, so that who asks next sees what was just done.
async fn shown_members<B: Backend>(app: &Shared<B>, index: LogIndex) -> Option<Arc<MembersView>> {
    let mut members = app.backend.members();
    let wait = members.wait_for(|members| members.applied >= index);
    tokio::time::timeout(crate::cluster::VIEW_WITHIN, wait).await.ok()?.ok().map(|members| members.clone())
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// A member, a token or the quota was changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Done {
    /// The log entry that did it.
    pub index: u64,
}

/// Makes a join token useless. A server that used it before stays.
#[utoipa::path(delete, path = "/v1/join-tokens/{id}", tag = "members", params(("id" = String, Path)),
    responses((status = 200, body = Done), (status = 404, description = "token-unknown", body = Problem),
        (status = 409, description = "ambiguous", body = Problem)))]
pub(crate) async fn revoke<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    Named(wanted): Named,
    uri: Uri,
) -> Result<Json<Done>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let known: Vec<TokenId> = app.backend.members().borrow().tokens.iter().map(|token| token.id).collect();
    // A whole id is asked of the cluster itself, so that a repeated request gets its first answer.
    let token = match wanted.parse() {
        Ok(token) => token,
        Err(_) => match by_prefix(&wanted, known.iter(), ToString::to_string)? {
            Some(token) => *token,
            None => {
                let message = format!("there is no join token `{wanted}`");
                return Err(Failure::new(StatusCode::NOT_FOUND, "token-unknown", message, "see `GET /v1/join-tokens`"));
            }
        },
    };
    let actor = acting.on(&app.access(), &token.to_string())?;
    let index = command(&app, id, &Command::Member(MemberCommand::RevokeToken { token }), &actor, patience).await?;
    shown_members(&app, index).await;
    Ok(Json(Done { index: index.0 }))
}

/// The only one whose id begins so.
fn by_prefix<'a, T>(
    prefix: &str,
    mut all: impl Iterator<Item = &'a T>,
    id: impl Fn(&T) -> String,
) -> Result<Option<&'a T>, Failure> {
    let prefix = prefix.to_ascii_lowercase();
    if prefix.len() < ID_PREFIX_MIN {
        return Ok(None);
    }
    let mut begins = all.by_ref().filter(|one| id(one).starts_with(&prefix));
    match (begins.next(), begins.next()) {
        (Some(_), Some(_)) => Err(Failure::new(
            StatusCode::CONFLICT,
            "ambiguous",
            format!("several ids begin with `{prefix}`"),
            "give more of the id",
        )),
        (found, _) => Ok(found),
    }
}

/// The node with this name or id, or whose id begins so.
pub(crate) fn find_node<'a>(overview: &'a Overview, wanted: &str) -> Result<&'a NodeView, Failure> {
    let exact = |node: &&NodeView| node.name == wanted || node.id.to_string() == wanted;
    if let Some(node) = overview.nodes.iter().find(exact) {
        return Ok(node);
    }
    if let Some(node) = by_prefix(wanted, overview.nodes.iter(), |node| node.id.to_string())? {
        return Ok(node);
    }
    let similar = nearest(wanted, overview.nodes.iter().map(|node| node.name.as_str()));
    let hint = similar.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
    let message = format!("there is no node `{wanted}`{hint}");
    Err(Failure::new(StatusCode::NOT_FOUND, "unknown-node", message, "see `GET /v1/nodes` for the names")
        .with_details(json!({ "node": wanted, "similar": similar })))
}

/// A node's id, also of one that this view does not show any more: a repeated request must reach
/// the cluster, which knows what it answered before.
pub(crate) fn node_id(overview: &Overview, wanted: &str) -> Result<NodeId, Failure> {
    match wanted.parse() {
        Ok(id) => Ok(id),
        Err(_) => Ok(find_node(overview, wanted)?.id),
    }
}

/// One node.
#[utoipa::path(get, path = "/v1/nodes/{node}", tag = "members", params(("node" = String, Path, description = "Name, id, or how the id begins")),
    responses((status = 200, body = NodeView), (status = 404, description = "unknown-node", body = Problem)))]
pub(crate) async fn node<B: Backend>(
    State(app): State<Shared<B>>,
    Named(wanted): Named,
) -> Result<Json<NodeView>, Failure> {
    let overview = app.backend.overview().borrow().clone();
    Ok(Json(find_node(&overview, &wanted)?.clone()))
}

/// Removes a node for ever: its vote is taken away, then its certificate is refused, and its id is never
/// used again. Answered when that is done.
#[utoipa::path(delete, path = "/v1/nodes/{node}", tag = "members", params(("node" = String, Path, description = "Name, id, or how the id begins")),
    responses((status = 200, body = Done), (status = 404, description = "unknown-node", body = Problem),
        (status = 503, description = "being-removed", body = Problem)))]
pub(crate) async fn remove<B: Backend>(asked: AskedOfNode<B>) -> Result<Json<Done>, Failure> {
    let (index, node) = asked.carry_out(|node| MemberCommand::Expel { node }).await?;
    let AskedOfNode { wanted, patience, .. } = &asked;
    let mut overview = asked.app.backend.overview();
    let gone = overview.wait_for(|overview| overview.nodes.iter().all(|known| known.id != node));
    match tokio::time::timeout(*patience, gone).await {
        Ok(Ok(_)) => Ok(Json(Done { index: index.0 })),
        Ok(Err(_)) | Err(_) => {
            let message = format!("{wanted} will be removed, but its vote still counts after {} s", patience.as_secs());
            let fix = "nothing is lost: it goes on by itself; `quorate status` says what the cluster waits for";
            Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "being-removed", message, fix))
        }
    }
}

/// Says that a node, which is not joined, has no power or is destroyed: what it would go on with without a quorum
/// (`without_quorum = "keep"`) may start elsewhere. If it is not true, two copies run.
#[utoipa::path(post, path = "/v1/nodes/{node}/confirm-dead", tag = "members", params(("node" = String, Path, description = "Name, id, or how the id begins")),
    responses((status = 200, body = NodeView), (status = 404, description = "unknown-node", body = Problem),
        (status = 409, description = "node-lives", body = Problem)))]
pub(crate) async fn confirm_dead<B: Backend>(asked: AskedOfNode<B>) -> Result<Json<NodeView>, Failure> {
    let overview = asked.app.backend.overview().borrow().clone();
    let generation = find_node(&overview, &asked.wanted)?.generation;
    asked.changed(|node| MemberCommand::ConfirmDead { node, generation }).await
}

/// Another name for a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Alias {
    /// At most 63 characters; `null` or an empty text takes it away.
    pub alias: Option<String>,
}

/// Gives a node another name for people. Its own name stays.
#[utoipa::path(put, path = "/v1/nodes/{node}/alias", tag = "members", params(("node" = String, Path, description = "Name, id, or how the id begins")),
    request_body = Alias,
    responses((status = 200, body = NodeView), (status = 404, description = "unknown-node", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn alias<B: Backend>(
    asked: AskedOfNode<B>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<NodeView>, Failure> {
    let Alias { alias } = read_json(&read_body(&headers, body).await?)?;
    asked.changed(|node| MemberCommand::SetAlias { node, alias }).await
}

/// What a node does for the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Roles {
    /// One or more of `manager`, `worker`, `gateway`.
    #[schema(value_type = Vec<String>)]
    pub roles: BTreeSet<Role>,
}

/// Says what a node does; what the node says of it itself does not count any more.
#[utoipa::path(put, path = "/v1/nodes/{node}/roles", tag = "members", params(("node" = String, Path, description = "Name, id, or how the id begins")),
    request_body = Roles,
    responses((status = 200, body = NodeView), (status = 404, description = "unknown-node", body = Problem),
        (status = 409, description = "quota-reached, quota-expired, ha-off", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn roles<B: Backend>(
    asked: AskedOfNode<B>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<NodeView>, Failure> {
    let Roles { roles } = read_json(&read_body(&headers, body).await?)?;
    if !roles.contains(&Role::Manager) {
        ha::is_on(&asked.app.backend.overview().borrow())?;
    }
    asked.changed(|node| MemberCommand::SetRoles { node, roles }).await
}

/// Whether a manager is to vote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VoteWish {
    /// `auto`: the cluster keeps voters odd and the others as standbys; `asked`; `never`.
    #[schema(value_type = String)]
    pub vote: Vote,
}

/// Asks for a manager's vote, takes it away, or leaves it to the cluster.
#[utoipa::path(put, path = "/v1/nodes/{node}/vote", tag = "members", params(("node" = String, Path, description = "Name, id, or how the id begins")),
    request_body = VoteWish,
    responses((status = 200, body = NodeView), (status = 404, description = "unknown-node", body = Problem),
        (status = 409, description = "ha-off", body = Problem),
        (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn vote<B: Backend>(
    asked: AskedOfNode<B>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<NodeView>, Failure> {
    let VoteWish { vote } = read_json(&read_body(&headers, body).await?)?;
    ha::is_on(&asked.app.backend.overview().borrow())?;
    asked.changed(|node| MemberCommand::SetVote { node, vote }).await
}

/// What happens next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Leaving {
    /// Name of the node that leaves.
    pub node: String,
}

/// The node that is asked leaves: it hands over what it leads, frees its place, and ends. Its id
/// and certificate stay good, so starting it again brings it back.
#[utoipa::path(post, path = "/v1/leave", tag = "members", responses((status = 200, body = Leaving)))]
pub(crate) async fn leave<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(acting): Extension<Acting>,
) -> Result<Json<Leaving>, Failure> {
    let node = app.backend.overview().borrow().answered_by.clone();
    acting.begin(&app, &node).await?;
    app.backend.leave();
    Ok(Json(Leaving { node }))
}

/// How many nodes may run, and how many do.
#[utoipa::path(get, path = "/v1/quota", tag = "members", responses((status = 200, body = QuotaView)))]
pub(crate) async fn quota<B: Backend>(State(app): State<Shared<B>>) -> Json<QuotaView> {
    Json(app.backend.members().borrow().quota.clone())
}

/// How many nodes may run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaWish {
    /// Workers and gateways; a node that is both counts once. `null`: any number.
    pub nodes: Option<u32>,
    /// From then on no node is admitted; those that run go on. Microseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub expires: Option<WallTime>,
}

/// Sets how many nodes may run. It holds at once; nodes that run are never stopped by it.
#[utoipa::path(put, path = "/v1/quota", tag = "members", request_body = QuotaWish,
    responses((status = 200, body = Done), (status = 422, description = "invalid", body = Problem)))]
pub(crate) async fn set_quota<B: Backend>(
    State(app): State<Shared<B>>,
    Extension(id): Extension<RequestId>,
    Extension(acting): Extension<Acting>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Done>, Failure> {
    let patience = patience(read_query::<Patience>(&uri)?.timeout_ms)?;
    let QuotaWish { nodes, expires } = read_json(&read_body(&headers, body).await?)?;
    let quota = match (nodes, expires) {
        (Some(nodes), expires) => Some(Quota { nodes, expires }),
        (None, None) => None,
        (None, Some(_)) => {
            let message = "`expires` needs `nodes`: without a quota nothing can expire";
            return Err(Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message, "give `nodes` a number")
                .with_details(json!({ "field": "nodes" })));
        }
    };
    let target = nodes.map_or_else(|| "none".to_owned(), |nodes| nodes.to_string());
    let actor = acting.on(&app.access(), &target)?;
    let index = command(&app, id, &Command::Member(MemberCommand::SetQuota { quota }), &actor, patience).await?;
    shown_members(&app, index).await;
    Ok(Json(Done { index: index.0 }))
}
