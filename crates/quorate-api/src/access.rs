//! Who asks, may they, and what is written down about it.
//!
//! Every route passes through [`gate`] with the [`Operation`] that it declared in the route table;
//! [`quorate_model::access::policy::allow`] decides. A handler that changes something turns its
//! [`Acting`] into an [`Actor`] with [`Acting::on`], which is the only way to a command: so nothing
//! is done without a trace, and nothing dangerous without its confirmation.
//!
//! Credentials, the first that is there: `Authorization: Bearer` with a session (`qs_…`), an API
//! token (`qt_…`), a replica's (`qr_…`) or the console token of `quorate dev`; the session's cookie; the console's
//! cookie; the node's own socket.

pub(crate) mod audit;
pub(crate) mod login;
pub(crate) mod password;
pub(crate) mod roles;
pub(crate) mod tokens;
pub(crate) mod users;

use crate::backend::{AccessView, Backend, Query};
use crate::guard::{COOKIE, bearer, cookie, is_safe, is_token};
use crate::managers;
use crate::problem::Failure;
use crate::request::fresh_id;
use crate::server::{App, Shared};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode};
use quorate_model::access::name::{ApiTokenId, Digest};
use quorate_model::access::policy::{Needs, Operation, Principal, Verdict, allow, allow_database};
use quorate_model::access::{AccessCommand, AccessState, Actor, SESSION_TOUCHED_EVERY};
use quorate_model::command::Command;
use quorate_model::entry::{Database, Outcome, Proposal};
use quorate_model::id::{LogIndex, ReplicaId, RequestId};
use quorate_model::sql::{Consistency, SqlBatch, Statement};
use quorate_model::time::WallTime;
use serde_json::json;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Names the confirmation that an act uses up.
const CONFIRMATION: &str = "quorate-confirmation";
/// Longest wait for this node's own view to show what was just committed.
const VIEW_WITHIN: Duration = Duration::from_secs(1);
/// How long to wait for a leader before a credential that is unknown here is called wrong.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(3);
/// Patience with entries of the API's own: tries, touches, refusals.
const OWN_PATIENCE: Duration = Duration::from_secs(5);
/// Longest target that an audit entry or a confirmation names.
const TARGET_MAX: usize = 256;

/// Whether anybody is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuthMode {
    /// Whoever reaches the API may do everything: `quorate dev` on loopback.
    Open,
    /// Everything but health, login and the console's files needs a user, a token, or the node's own socket.
    #[default]
    Required,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Tcp(IpAddr),
    /// The node's socket, used by root or the server's own user.
    Root,
}

impl Peer {
    pub(crate) fn tcp(address: IpAddr) -> Peer {
        Peer::Tcp(address.to_canonical())
    }

    /// Where it is; `None` for a process of this machine on the node's own socket.
    pub(crate) fn ip(self) -> Option<IpAddr> {
        match self {
            Peer::Tcp(address) => Some(address),
            Peer::Root => None,
        }
    }

    /// As the audit names it.
    fn address(self) -> String {
        match self {
            Peer::Tcp(address) => address.to_string(),
            Peer::Root => "local".into(),
        }
    }

    /// As tries are counted: a network of 64 bits is one guesser.
    fn source(self) -> String {
        match self {
            Peer::Tcp(IpAddr::V6(address)) => {
                let [a, b, c, d, ..] = address.segments();
                format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            other => other.address(),
        }
    }
}

/// The system's clock: expiry is looked at with it, records carry the log's time.
pub(crate) fn wall_now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// What a request brings to say who asks.
#[derive(Debug)]
enum Credential {
    None,
    Console,
    Session(Digest),
    Token(ApiTokenId, Digest),
    /// A replica's.
    Service(ReplicaId, Digest),
    /// Something that cannot be any of these.
    Nonsense,
}

/// Whether a bearer token is one that [`gate`] looks at, and not the console's.
pub(crate) fn is_ours(bearer: &[u8]) -> bool {
    [SESSION, TOKEN, SERVICE].iter().any(|prefix| bearer.starts_with(prefix))
}

const SESSION: &[u8] = b"qs_";
const TOKEN: &[u8] = b"qt_";
const SERVICE: &[u8] = b"qr_";

fn credential<B>(app: &App<B>, headers: &HeaderMap) -> Credential {
    if let Some(bearer) = bearer(headers) {
        return match bearer {
            token if token.starts_with(SESSION) => Credential::Session(Digest::of(token)),
            token if token.starts_with(TOKEN) => parse_token(token).unwrap_or(Credential::Nonsense),
            token if token.starts_with(SERVICE) => parse_service_token(token).unwrap_or(Credential::Nonsense),
            // Others were refused by the guard.
            _ => Credential::Console,
        };
    }
    if let Some(session) = cookie(headers, app.options.session_cookie()) {
        return Credential::Session(Digest::of(session));
    }
    match cookie(headers, COOKIE) {
        Some(token) if is_token(&app.options, token) => Credential::Console,
        _ => Credential::None,
    }
}

/// `qt_<id>_<secret>`
fn parse_token(text: &[u8]) -> Option<Credential> {
    let (id, secret) = std::str::from_utf8(text).ok()?.strip_prefix("qt_")?.split_once('_')?;
    Some(Credential::Token(ApiTokenId::new(id).ok()?, Digest::of(secret.as_bytes())))
}

/// `qr_<replica>_<secret>`
fn parse_service_token(text: &[u8]) -> Option<Credential> {
    let (replica, secret) = std::str::from_utf8(text).ok()?.strip_prefix("qr_")?.split_once('_')?;
    Some(Credential::Service(replica.parse().ok()?, Digest::of(secret.as_bytes())))
}

/// What the gate of one route works with.
pub(crate) struct Gate<B> {
    pub(crate) app: Shared<B>,
    pub(crate) operation: Operation,
}

impl<B> Clone for Gate<B> {
    fn clone(&self) -> Self {
        Gate { app: self.app.clone(), operation: self.operation }
    }
}

/// Runs before each handler: who asks, and may they.
pub(crate) async fn gate<B: Backend>(State(gate): State<Gate<B>>, mut request: Request, next: Next) -> Response {
    let Gate { app, operation } = gate;
    let peer = request.extensions().get::<Peer>().copied().unwrap_or(Peer::Tcp(Ipv6Addr::UNSPECIFIED.into()));
    if peer != Peer::Root {
        let overview = app.backend.overview().borrow().clone();
        if managers::is_shut(&overview, operation) {
            return managers::shut(&overview).into_response();
        }
    }
    let changes = !is_safe(request.method());
    let principal = match identify(&app, peer, operation, request.headers(), changes).await {
        Ok(principal) => principal,
        Err(failure) => return failure.into_response(),
    };
    let access = app.access();
    let mut acting = Acting { principal, peer, operation, dangerous: false, confirmation: None };
    match allow(&access, &acting.principal, operation) {
        Verdict::Allow => {}
        Verdict::Confirm => {
            let given = request.headers().get(CONFIRMATION);
            acting.dangerous = true;
            acting.confirmation = given.map(|value| Digest::of(value.as_bytes()));
        }
        verdict => {
            let failure = denied(verdict);
            // Whoever shows nothing at all is every visitor's browser; others were turned away.
            if verdict != Verdict::LogIn {
                let actor = acting.actor(&access, "");
                app.denials.write(&app, actor, format!("{} ({})", failure.problem().message, failure.problem().code));
            }
            return failure.into_response();
        }
    }
    request.extensions_mut().insert(acting);
    next.run(request).await
}

async fn identify<B: Backend>(
    app: &Shared<B>,
    peer: Peer,
    operation: Operation,
    headers: &HeaderMap,
    changes: bool,
) -> Result<Principal, Failure> {
    let credential = credential(app, headers);
    let mut held = look_up(app, &credential, &app.access());
    let known = matches!(credential, Credential::Session(_) | Credential::Token(..) | Credential::Service(..));
    if known && held.is_none() && operation.needs() != Needs::Nothing {
        // It may have been made on another node a moment ago.
        catch_up(app).await?;
        held = look_up(app, &credential, &app.access());
    }
    if let Some(principal) = held {
        return Ok(principal);
    }
    let without = match (peer, app.options.auth) {
        (Peer::Root, _) => Principal::Root,
        (Peer::Tcp(_), AuthMode::Open) => Principal::Open,
        (Peer::Tcp(_), AuthMode::Required) => Principal::Anonymous,
    };
    match credential {
        Credential::None => Ok(without),
        // The login page of somebody whose session is over.
        _ if operation.needs() == Needs::Nothing => Ok(Principal::Anonymous),
        // A browser that was logged in may look on where anybody may, and change nothing unnoticed.
        Credential::Session(_) if without == Principal::Open && !changes && bearer(headers).is_none() => Ok(without),
        Credential::Session(_) => Err(Failure::new(
            StatusCode::UNAUTHORIZED,
            "session-over",
            "the session is over, or there never was one",
            "log in again",
        )),
        Credential::Token(..) | Credential::Service(..) | Credential::Nonsense | Credential::Console => {
            let actor = Actor {
                who: "nobody".into(),
                from: peer.address(),
                what: operation.word().into(),
                target: String::new(),
                confirmation: None,
            };
            app.denials.write(app, actor, "a token that is unknown, expired or revoked".into());
            Err(Failure::new(
                StatusCode::UNAUTHORIZED,
                "wrong-token",
                "the token is unknown, expired or revoked",
                "make one with `quorate token create`",
            ))
        }
    }
}

/// Who holds this credential, by what this node knows.
fn look_up<B: Backend>(app: &Shared<B>, credential: &Credential, access: &AccessState) -> Option<Principal> {
    match credential {
        Credential::None | Credential::Nonsense => None,
        Credential::Console => Some(Principal::Open),
        Credential::Session(hash) => {
            let now = wall_now();
            let session = access.session(*hash, now)?;
            if now.since(session.seen) >= SESSION_TOUCHED_EVERY {
                touch(app, *hash, session.seen);
            }
            Some(Principal::User { user: session.user.clone(), session: *hash })
        }
        Credential::Token(id, hash) => {
            access.token(id, *hash, wall_now()).map(|token| Principal::Token { token: token.id.clone() })
        }
        Credential::Service(replica, hash) => {
            access.service_token(*replica, *hash).map(|token| Principal::Service { replica: token.replica })
        }
    }
}

/// Notes the use of a session. Requests that notice it at one time, on whichever nodes, make one
/// id of it, so that the log has it once.
fn touch<B: Backend>(app: &Shared<B>, session: Digest, seen: WallTime) {
    let id = Digest::chained(session, &seen.0.to_le_bytes());
    let id = RequestId(uuid::Builder::from_random_bytes(id.0[..16].try_into().expect("16 of 32 bytes")).into_uuid());
    let command = Command::Access(AccessCommand::TouchSession { session });
    propose_quietly(app, Proposal::command(id, &command));
}

/// Puts an entry into the log that nobody waits for.
fn propose_quietly<B: Backend>(app: &Shared<B>, proposal: Proposal) {
    let backend = app.backend.clone();
    tokio::spawn(async move {
        if let Err(error) = backend.propose(proposal, OWN_PATIENCE).await {
            tracing::debug!(%error, "an entry of the API's own is not in the log");
        }
    });
}

/// Waits until this node knows everything that was decided before now.
async fn catch_up<B: Backend>(app: &Shared<B>) -> Result<(), Failure> {
    let batch = SqlBatch { statements: vec![Statement::new("SELECT 1")], transaction: false };
    let consistency = Consistency::Linearizable;
    let query = Query { database: Database::System, batch, consistency, patience: CATCH_UP_WITHIN };
    app.backend.query(query).await?;
    Ok(())
}

/// This node's view of access, once it shows the entry, or what there is when it takes too long.
async fn shown<B: Backend>(app: &Shared<B>, index: LogIndex) -> Arc<AccessState> {
    let mut view = app.backend.access();
    let shows = view.wait_for(|view: &AccessView| view.applied >= index);
    // A closed channel or the end of the wait leave what there is.
    let _ = tokio::time::timeout(VIEW_WITHIN, shows).await;
    app.access()
}

fn denied(verdict: Verdict) -> Failure {
    let forbidden = |message: String, fix: &str| Failure::new(StatusCode::FORBIDDEN, "not-allowed", message, fix);
    match verdict {
        Verdict::LogIn | Verdict::Allow | Verdict::Confirm => Failure::new(
            StatusCode::UNAUTHORIZED,
            "login-needed",
            "this cluster wants to know who asks",
            "log in with `quorate login`, send a token, or use the node's own socket as root",
        ),
        Verdict::Lacks(permission) => forbidden(
            format!("this needs the permission {permission}"),
            "ask an administrator for a role that has it; `quorate role list` shows which do",
        )
        .with_details(json!({ "permission": permission })),
        Verdict::NotDangerous => forbidden(
            "the token lacks the scope `dangerous`".into(),
            "make a token with `--dangerous`, or do it yourself with your password",
        ),
        Verdict::NotForTokens => forbidden("tokens cannot do this".into(), "log in as a user"),
        Verdict::NotGranted => forbidden(
            "the service's spec does not grant this to its replicas".into(),
            "add it to `grants` of the service, or use a token of a user",
        ),
    }
}

/// A request that was let in: who asks, from where, for what.
#[derive(Debug, Clone)]
pub(crate) struct Acting {
    pub(crate) principal: Principal,
    peer: Peer,
    operation: Operation,
    /// It needs a confirmation.
    dangerous: bool,
    confirmation: Option<Digest>,
}

impl Acting {
    /// Whether they may do something else besides, on which this depends.
    ///
    /// # Errors
    /// As that operation by itself would be refused.
    pub(crate) fn may(&self, access: &AccessState, operation: Operation) -> Result<(), Failure> {
        match allow(access, &self.principal, operation) {
            Verdict::Allow | Verdict::Confirm => Ok(()),
            verdict => Err(denied(verdict)),
        }
    }

    /// Whether they may read this database.
    ///
    /// # Errors
    /// 403 with the reason, which is written down.
    pub(crate) fn reads<B: Backend>(&self, app: &Shared<B>, database: Database) -> Result<(), Failure> {
        let access = app.access();
        let verdict = allow_database(&access, &self.principal, database);
        if verdict == Verdict::Allow {
            return Ok(());
        }
        let failure = denied(verdict);
        let why = format!("{} ({})", failure.problem().message, failure.problem().code);
        app.denials.write(app, self.actor(&access, database.name()), why);
        Err(failure)
    }

    /// Who does it to `target`, for the log entry.
    ///
    /// # Errors
    /// 403 `confirmation-needed` when there is none and there must be one.
    pub(crate) fn on(&self, access: &AccessState, target: &str) -> Result<Actor, Failure> {
        let target = shorten(target);
        if self.dangerous && self.confirmation.is_none() {
            let what = format!("{} {target}", self.operation);
            return Err(Failure::new(
                StatusCode::FORBIDDEN,
                "confirmation-needed",
                format!("`{}` needs your password again", what.trim_end()),
                "send it to POST /v1/confirm with this operation and target, and the answer's confirmation in the header Quorate-Confirmation",
            )
            .with_details(json!({ "operation": self.operation, "target": target })));
        }
        let confirmation = self.confirmation.filter(|_| self.dangerous);
        Ok(Actor { confirmation, ..self.actor(access, target) })
    }

    fn actor(&self, access: &AccessState, target: &str) -> Actor {
        Actor {
            who: self.principal.describe(access),
            from: self.peer.address(),
            what: self.operation.word().into(),
            target: target.into(),
            confirmation: None,
        }
    }

    pub(crate) fn peer(&self) -> Peer {
        self.peer
    }

    pub(crate) fn source(&self) -> String {
        self.peer.source()
    }

    /// Writes down that an act begins that is no command, and uses up its confirmation.
    pub(crate) async fn begin<B: Backend>(&self, app: &Shared<B>, target: &str) -> Result<(), Failure> {
        let actor = self.on(&app.access(), target)?;
        let command = Command::Access(AccessCommand::Begin {});
        let proposal = Proposal::command_by(fresh_id(), &command, &actor);
        match app.backend.propose(proposal, OWN_PATIENCE).await?.outcome {
            Outcome::Command(Err(refusal)) => Err(refusal.into()),
            _ => Ok(()),
        }
    }
}

fn shorten(target: &str) -> &str {
    let mut end = target.len().min(TARGET_MAX);
    while !target.is_char_boundary(end) {
        end -= 1;
    }
    &target[..end]
}

impl<B: Backend> App<B> {
    pub(crate) fn access(&self) -> Arc<AccessState> {
        self.backend.access().borrow().access.clone()
    }
}

/// Puts a command about access into the log, and returns the state that shows it.
pub(crate) async fn carry_out<B: Backend>(
    app: &Shared<B>,
    id: RequestId,
    command: AccessCommand,
    actor: &Actor,
    patience: Duration,
) -> Result<(LogIndex, Arc<AccessState>), Failure> {
    let proposal = Proposal::command_by(id, &Command::Access(command), actor);
    let committed = app.backend.propose(proposal, patience).await?;
    match committed.outcome {
        Outcome::Command(Ok(())) => Ok((committed.index, shown(app, committed.index).await)),
        Outcome::Command(Err(refusal)) => Err(refusal.into()),
        Outcome::Noop | Outcome::Sql(_) => Err(crate::cluster::request_id_reused()),
    }
}

/// Writes down who was turned away, but not so often that somebody could fill the log with it.
#[derive(Debug)]
pub(crate) struct Denials(Mutex<Allowance>);

#[derive(Debug)]
struct Allowance {
    /// Entries that may be written now.
    left: f64,
    at: Instant,
    unwritten: u64,
}

/// Entries at once, and then one a second, on each node.
const DENIALS_AT_ONCE: f64 = 20.0;

impl Denials {
    pub(crate) fn new() -> Denials {
        Denials(Mutex::new(Allowance { left: DENIALS_AT_ONCE, at: Instant::now(), unwritten: 0 }))
    }

    /// How many were left out before this one; `None` if this one is left out too.
    fn take(&self, now: Instant) -> Option<u64> {
        let mut allowance = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let earned = now.saturating_duration_since(allowance.at).as_secs_f64();
        allowance.left = (allowance.left + earned).min(DENIALS_AT_ONCE);
        allowance.at = now;
        if allowance.left < 1.0 {
            allowance.unwritten += 1;
            return None;
        }
        allowance.left -= 1.0;
        Some(std::mem::take(&mut allowance.unwritten))
    }

    pub(crate) fn write<B: Backend>(&self, app: &Shared<B>, actor: Actor, why: String) {
        let Some(unwritten) = self.take(Instant::now()) else { return };
        let command = Command::Access(AccessCommand::Denied { why, unwritten });
        propose_quietly(app, Proposal::command_by(fresh_id(), &command, &actor));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_are_written_down_a_few_at_a_time_and_the_rest_is_counted() {
        let denials = Denials::new();
        let start = Instant::now();
        let written: Vec<Option<u64>> = (0..100).map(|_| denials.take(start)).collect();
        assert_eq!(written.iter().flatten().count(), 20);
        assert_eq!(denials.take(start + Duration::from_secs(3)), Some(80));
        assert_eq!(denials.take(start + Duration::from_secs(3)), Some(0));
    }

    #[test]
    fn a_network_of_ipv6_addresses_is_one_guesser() {
        let peer = |text: &str| Peer::tcp(text.parse().unwrap());
        assert_eq!(peer("2001:db8:1:2:3:4:5:6").source(), "2001:db8:1:2::/64");
        assert_eq!(peer("2001:db8:1:2:3:4:5:6").address(), "2001:db8:1:2:3:4:5:6");
        assert_eq!(peer("::ffff:192.0.2.1").source(), "192.0.2.1");
    }
}
