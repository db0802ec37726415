//! The one table of everything that can fail: code, HTTP status and what to do about it.
//!
//! Codes are for programs and never change; sentences are for people and may.

use crate::backend::{InviteError, JoinError, LogError, LogOf, ReadError, TransferError, WriteError};
use crate::certificates::{RenewRefused, RotateError};
use crate::view::Problem;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use quorate_model::access::AccessRefusal;
use quorate_model::command::Refusal;
use quorate_model::drill::NoDrill;
use quorate_model::fence::FenceRefused;
use quorate_model::member::NotAdmitted;
use quorate_model::member::managers::Harm;
use quorate_model::state::Role;
use serde_json::{Value, json};
use std::time::Duration;

/// A failed request: a [`Problem`] and its status. Boxed, because success is the common case.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure(Box<(StatusCode, Problem)>);

impl Failure {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>, fix: impl Into<String>) -> Failure {
        let problem = Problem { code: code.into(), message: message.into(), fix: fix.into(), details: Value::Null };
        Failure(Box::new((status, problem)))
    }

    pub(crate) fn bad_request(code: &str, message: impl Into<String>, fix: impl Into<String>) -> Failure {
        Failure::new(StatusCode::BAD_REQUEST, code, message, fix)
    }

    #[must_use]
    pub(crate) fn with_details(mut self, details: Value) -> Failure {
        self.0.1.details = details;
        self
    }

    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.0
    }

    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.0.1
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, problem) = *self.0;
        let problem_wait_s = problem.details["wait_ms"].as_u64().map(|ms| ms.div_ceil(1_000));
        let mut response = (status, axum::Json(problem)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        let wait_s = problem_wait_s.filter(|_| status == StatusCode::TOO_MANY_REQUESTS);
        if let Some(wait_s) = wait_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait_s));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Failure {
        let message = error.to_string();
        match error {
            WriteError::Overloaded => Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                message,
                "nothing was written: pause and retry",
            ),
            WriteError::Unknown { waited } => Failure::new(
                StatusCode::GATEWAY_TIMEOUT,
                "outcome-unknown",
                message,
                "repeat the request with the same Quorate-Request-Id: it is done once and answers its outcome",
            )
            .with_details(waited_ms(waited)),
            WriteError::TooLarge { bytes, limit } => Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "write-too-large",
                message,
                "nothing was written: split the request into smaller ones",
            )
            .with_details(json!({ "bytes": bytes, "limit": limit })),
            WriteError::ShuttingDown => shutting_down(message),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Failure {
        let message = error.to_string();
        match error {
            ReadError::NoLeader { waited } => Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no-leader",
                message,
                "retry, or ask for consistency `local` to read what this node has, however old",
            )
            .with_details(waited_ms(waited)),
            ReadError::TooSlow { limit } => Failure::new(
                StatusCode::GATEWAY_TIMEOUT,
                "query-too-slow",
                message,
                "read fewer rows, add an index, or give a longer timeout_ms (at most 60000)",
            )
            .with_details(waited_ms(limit)),
            ReadError::Overloaded => Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                message,
                "pause and retry, or ask another node",
            ),
            ReadError::ShuttingDown => shutting_down(message),
        }
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Failure {
        let message = error.to_string();
        match error {
            LogError::Unknown(of) => Failure::new(
                StatusCode::NOT_FOUND,
                "unknown-log",
                message,
                "logs of a replica are kept until five later ones of its service have ended on the same node; \
                 `GET /v1/services` names those of now",
            )
            .with_details(match of {
                LogOf::Replica(replica) => json!({ "replica": replica }),
                LogOf::Node(node) => json!({ "node": node }),
            }),
            LogError::Io { node, .. } => Failure::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "log-unreadable",
                message,
                format!("look at the disk and the rights of the log directory on {node}"),
            )
            .with_details(json!({ "node": node })),
            LogError::Unreachable { nodes, .. } => Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "node-unreachable",
                message,
                format!(
                    "the log is on the disk there: bring the server of {} and its network back, and ask again",
                    nodes.join(" or ")
                ),
            )
            .with_details(json!({ "nodes": nodes })),
            LogError::Busy(node) => Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                message,
                "end what follows logs and is not needed, then ask again",
            )
            .with_details(json!({ "node": node })),
        }
    }
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Failure {
        let message = error.to_string();
        match error {
            TransferError::UnknownNode(node) => Failure::new(
                StatusCode::NOT_FOUND,
                "unknown-node",
                message,
                "name a manager; `GET /v1/nodes` lists them",
            )
            .with_details(json!({ "node": node })),
            TransferError::NoLeader => Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no-leader",
                message,
                "wait until a leader is elected and retry",
            ),
            TransferError::NotTaken(node, _) => Failure::new(
                StatusCode::GATEWAY_TIMEOUT,
                "not-taken",
                message,
                "see whether that node is joined and not far behind, then retry",
            )
            .with_details(json!({ "node": node })),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let message = refusal.to_string();
        let (status, code, fix) = match &refusal {
            Refusal::UnknownService { similar: Some(similar), .. } => {
                (StatusCode::NOT_FOUND, "unknown-service", format!("use `{similar}`, or see `GET /v1/services`"))
            }
            Refusal::UnknownService { similar: None, .. } => {
                (StatusCode::NOT_FOUND, "unknown-service", "see `GET /v1/services` for the names".into())
            }
            Refusal::KeyChanging { .. } => {
                (StatusCode::CONFLICT, "key-changing", "see `quorate cert show`, and wait until that is over".into())
            }
            Refusal::UnknownNode { .. } => {
                (StatusCode::NOT_FOUND, "unknown-node", "see `GET /v1/nodes` for the names".into())
            }
            Refusal::StalePlan { .. } => {
                (StatusCode::CONFLICT, "stale-plan", "nothing was changed: look at the cluster again and retry".into())
            }
            Refusal::RouteTaken { owner, .. } => (
                StatusCode::CONFLICT,
                "route-taken",
                format!("choose another host or path, or remove the route from `{owner}` first"),
            ),
            Refusal::VipTaken { .. } => {
                (StatusCode::CONFLICT, "vip-taken", "choose another address, or remove that one first".into())
            }
            Refusal::UnknownVip { .. } => {
                (StatusCode::NOT_FOUND, "unknown-vip", "see `quorate vip list` for those that there are".into())
            }
            Refusal::UnknownExternal { external, similar } => {
                let list = "see `quorate external list` for those that there are".to_owned();
                let fix = similar.as_ref().map_or(list, |similar| format!("use `{similar}` instead of `{external}`"));
                (StatusCode::NOT_FOUND, "unknown-external", fix)
            }
            Refusal::ExternalInUse { external, service } => (
                StatusCode::CONFLICT,
                "external-in-use",
                format!("take `{external}` out of the spec of `{service}` first, and apply it"),
            ),
            Refusal::RouteWithoutService { service } => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "route-without-service",
                format!("put a [[service]] named `{service}` into the same file"),
            ),
            Refusal::Invalid { field, .. } => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid",
                format!("nothing was changed: correct `{field}` and send it again"),
            ),
            Refusal::NotActivated { service, .. } => (
                StatusCode::CONFLICT,
                "not-activated",
                format!("see which copies it has, and how they are: `quorate service show {service}`"),
            ),
            Refusal::NotScalable { service, .. } => {
                (StatusCode::CONFLICT, "not-scalable", format!("see where it runs: `quorate explain {service}`"))
            }
            Refusal::NothingGranted { .. } => {
                (StatusCode::CONFLICT, "nothing-granted", "it has ended, or its spec has no `grants`".to_owned())
            }
            Refusal::Autoscaled { service, .. } => (
                StatusCode::CONFLICT,
                "autoscaled",
                format!(
                    "change its limits: `quorate autoscale on {service} --min N --max N`; or scale it by hand from now \
                     on: `quorate autoscale off {service}`; see what it goes by: `quorate autoscale explain {service}`"
                ),
            ),
            Refusal::OtherAway { node } => (
                StatusCode::CONFLICT,
                "other-away",
                format!("wait until {node} is joined again (`quorate node show {node}`), or bring it back, and retry"),
            ),
            Refusal::NodeLives { node } => {
                (StatusCode::CONFLICT, "node-lives", format!("to empty a node that lives: `quorate node drain {node}`"))
            }
            Refusal::NoDrill { why } => (StatusCode::CONFLICT, "no-drill", no_drill(why).to_owned()),
            Refusal::KeepsService { node, .. } => (
                StatusCode::CONFLICT,
                "keeps-service",
                format!(
                    "empty it first: `quorate node drain {node}`; if it has no power or is destroyed, say so: \
                     `quorate node confirm-dead {node}`"
                ),
            ),
            Refusal::NoVersion { service, .. } => (
                StatusCode::CONFLICT,
                "no-version",
                format!("see those that there are: `quorate service history {service}`"),
            ),
            Refusal::NoUpdate { service } => {
                (StatusCode::CONFLICT, "no-update", format!("see how it is: `quorate service show {service}`"))
            }
            Refusal::UnknownToken { .. } => {
                (StatusCode::NOT_FOUND, "token-unknown", "see `GET /v1/join-tokens` for those that there are".into())
            }
            Refusal::NotAdmitted { why } => not_admitted(why),
            Refusal::Access(refusal) => access(refusal),
            Refusal::Harm { harm } => harmful(harm),
            Refusal::NotManager { .. } => {
                (StatusCode::CONFLICT, "not-manager", "see `quorate manager list` for the managers".into())
            }
            Refusal::ManagerNeeds { requires, .. } => manager_needs(*requires),
            // A refusal of a newer model: its own words say more than a guess would.
            _ => (StatusCode::CONFLICT, "refused", "nothing was changed".into()),
        };
        let mut details = serde_json::to_value(&refusal).unwrap_or(Value::Null);
        if let Value::Object(fields) = &mut details {
            fields.remove("code");
            fields.remove("access");
            if let Some(Value::Object(harm)) = fields.remove("harm") {
                fields.extend(harm);
            }
        }
        Failure::new(status, code, message, fix).with_details(details)
    }
}

impl From<FenceRefused> for Failure {
    fn from(refused: FenceRefused) -> Failure {
        let service = &refused.service;
        let (code, fix) = if refused.is_stale() {
            ("stale-epoch", format!("nothing was written: stop, another copy of `{service}` has taken over"))
        } else {
            ("unknown-epoch", "nothing was written: send what the copy finds in QUORATE_EPOCH".to_owned())
        };
        let details = json!({ "service": service, "epoch": refused.epoch, "newest": refused.newest });
        Failure::new(StatusCode::CONFLICT, code, refused.to_string(), fix).with_details(details)
    }
}

/// Why no node is taken away. Nothing was changed.
fn no_drill(why: &NoDrill) -> &'static str {
    match why {
        NoDrill::Alone => "add other nodes first: quorate add-node",
        NoDrill::Runs { .. } => "wait until it is over: quorate drill show",
        NoDrill::NotJoined { .. } | NoDrill::NotHeard { .. } => {
            "bring that node back, or remove it, first: one loss at a time is a drill"
        }
        NoDrill::Leaving { .. } => "wait until that is over, or take it back: quorate node undrain NODE",
        NoDrill::LosesQuorum { .. } => "start the managers that are away, or add others, first: quorate add-node",
        // A reason of a newer model: its own words say more than a guess would.
        _ => "nothing was changed",
    }
}

/// Why a server did not become, or did not stay, a node. Nothing was changed.
fn not_admitted(why: &NotAdmitted) -> (StatusCode, &'static str, String) {
    const ANOTHER: &str = "make a new token with `quorate add-node` on a node of the cluster";
    match why {
        NotAdmitted::UnknownToken => (StatusCode::FORBIDDEN, "token-unknown", ANOTHER.into()),
        NotAdmitted::UsedToken { .. } => (
            StatusCode::CONFLICT,
            "token-used",
            format!("each token lets one server in: {ANOTHER}; if nobody you know used this one, remove that node"),
        ),
        NotAdmitted::ExpiredToken { .. } => (StatusCode::FORBIDDEN, "token-expired", ANOTHER.into()),
        NotAdmitted::WrongRole { allowed, .. } => {
            let role = format!("{allowed:?}").to_lowercase();
            let fix = format!("join with `--role {role}`, or make a token with `quorate add-node --role ROLE`");
            (StatusCode::FORBIDDEN, "wrong-role", fix)
        }
        NotAdmitted::WrongName { allowed, .. } => {
            (StatusCode::FORBIDDEN, "wrong-name", format!("join with `--name {allowed}`, or {ANOTHER}"))
        }
        NotAdmitted::NameTaken { name } => (
            StatusCode::CONFLICT,
            "name-taken",
            format!(
                "join with another `--name`; if it is the same server, remove the old node first: `quorate node remove {name}`"
            ),
        ),
        NotAdmitted::AddressTaken { owner, .. } => (
            StatusCode::CONFLICT,
            "address-taken",
            format!(
                "join with another `--listen`; if it is the same server, remove the old node first: `quorate node remove {owner}`"
            ),
        ),
        NotAdmitted::Expelled { .. } => (
            StatusCode::FORBIDDEN,
            "node-expelled",
            "join as a new node: with an empty data directory and a new token of `quorate add-node`".into(),
        ),
        NotAdmitted::QuotaReached { .. } => (
            StatusCode::CONFLICT,
            "quota-reached",
            "stop a node with `quorate leave`, or raise the quota with `quorate cluster quota N`".into(),
        ),
        NotAdmitted::QuotaExpired { .. } => (
            StatusCode::CONFLICT,
            "quota-expired",
            "set a quota that has not expired with `quorate cluster quota N`".into(),
        ),
        NotAdmitted::ManagerNeeds { requires } => manager_needs(*requires),
        _ => (StatusCode::CONFLICT, "refused", "nothing was changed".into()),
    }
}

fn manager_needs(requires: Role) -> (StatusCode, &'static str, String) {
    let role = format!("{requires:?}").to_lowercase();
    let fix = format!("give it the role {role} too, or lift the rule with `quorate manager rule none`");
    (StatusCode::CONFLICT, "manager-needs-role", fix)
}

/// Wishes that the leader does not grant, because those who decide would suffer. Nothing was changed.
fn harmful(harm: &Harm) -> (StatusCode, &'static str, String) {
    let (code, fix) = match harm {
        Harm::LosesMajority { .. } => {
            ("loses-majority", "start the managers that are away, or remove those that never come back, first")
        }
        Harm::LastVoter { .. } => ("last-voter", "add another manager first: quorate add-node"),
        Harm::EvenVoters { .. } => {
            ("even-voters", "leave it to the cluster (vote `auto`): it will vote once another manager has joined")
        }
        Harm::Active { .. } => (
            "is-active",
            "make another one Active first: quorate manager promote NODE; to restart it: quorate manager restart --active",
        ),
        Harm::TwoNodes => ("ha-needs-three", "add a third node: quorate add-node"),
        Harm::HaInUse { .. } => ("ha-in-use", "remove all nodes but one first: quorate node remove NODE"),
        // A harm of a newer model: its own words say more than a guess would.
        _ => ("refused", "nothing was changed"),
    };
    (StatusCode::CONFLICT, code, fix.to_owned())
}

/// Refusals about users, roles, sessions and tokens.
fn access(refusal: &AccessRefusal) -> (StatusCode, &'static str, String) {
    use AccessRefusal as R;
    let unchanged = |fix: &str| format!("nothing was changed: {fix}");
    match refusal {
        R::UnknownUser { .. } => {
            (StatusCode::NOT_FOUND, "unknown-user", "see `quorate user list` for the names".into())
        }
        R::UserExists { .. } => (StatusCode::CONFLICT, "user-exists", unchanged("choose another name")),
        R::UnknownRole { .. } => {
            (StatusCode::NOT_FOUND, "unknown-role", "see `quorate role list` for the names".into())
        }
        R::RoleExists { .. } => (StatusCode::CONFLICT, "role-exists", unchanged("choose another name")),
        R::FixedRole { role } => {
            (StatusCode::CONFLICT, "fixed-role", unchanged(&format!("clone it with `quorate role clone NAME {role}`")))
        }
        R::RoleInUse { user, .. } => {
            (StatusCode::CONFLICT, "role-in-use", unchanged(&format!("take it from {user} and all others first")))
        }
        R::LastAdmin { .. } => (StatusCode::CONFLICT, "last-admin", unchanged("make another user an admin first")),
        R::UnknownSession => {
            (StatusCode::NOT_FOUND, "unknown-session", "see `quorate session list` for the sessions".into())
        }
        R::UnknownToken { .. } => {
            (StatusCode::NOT_FOUND, "unknown-token", "see `quorate token list` for the ids".into())
        }
        R::UnknownSecret { .. } => (StatusCode::NOT_FOUND, "unknown-secret", "nothing was changed".into()),
        R::PasswordChanged => {
            (StatusCode::UNAUTHORIZED, "wrong-credentials", "log in with the password as it is now".into())
        }
        R::OldKey { .. } => (StatusCode::CONFLICT, "key-changed", unchanged("send it again")),
        R::TooSoon { wait_ms } => (
            StatusCode::TOO_MANY_REQUESTS,
            "too-many-tries",
            format!("wait {} s, then try again", wait_ms.div_ceil(1_000)),
        ),
        R::NotConfirmed { .. } => (
            StatusCode::FORBIDDEN,
            "not-confirmed",
            unchanged("give the password again and repeat it within five minutes"),
        ),
        R::Full { .. } => (StatusCode::CONFLICT, "full", unchanged("remove some that are not needed")),
        R::Invalid { field, .. } => {
            (StatusCode::UNPROCESSABLE_ENTITY, "invalid", unchanged(&format!("correct `{field}` and send it again")))
        }
        // A refusal of a newer model: its own words say more than a guess would.
        _ => (StatusCode::CONFLICT, "refused", "nothing was changed".into()),
    }
}

impl From<InviteError> for Failure {
    fn from(error: InviteError) -> Failure {
        let message = error.to_string();
        match error {
            InviteError::NoAuthority => Failure::new(
                StatusCode::CONFLICT,
                "no-authority",
                message,
                "ask a manager of a cluster that was made with `quorate init`",
            ),
            InviteError::NoRandomness(_) => {
                Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "no-randomness", message, "ask another node")
            }
        }
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Failure {
        let message = error.to_string();
        let conflict = |code, fix: String| Failure::new(StatusCode::CONFLICT, code, message.clone(), fix);
        match error {
            JoinError::Refused(refusal) => refusal.into(),
            JoinError::Write(WriteError::Unknown { waited }) => Failure::new(
                StatusCode::GATEWAY_TIMEOUT,
                "outcome-unknown",
                message,
                "run the same join command again on the same server: it goes on where it was",
            )
            .with_details(waited_ms(waited)),
            JoinError::Write(error) => error.into(),
            JoinError::Invite(error) => error.into(),
            JoinError::Malformed { field, .. } => Failure::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "bad-join",
                message,
                "copy the whole join command as `quorate add-node` printed it",
            )
            .with_details(json!({ "field": field })),
            JoinError::Version { theirs, ours, .. } => {
                conflict("version-mismatch", format!("install quorate {ours} on this server"))
                    .with_details(json!({ "server": theirs, "cluster": ours }))
            }
            JoinError::Clock { off, ahead, .. } => {
                conflict("clock-off", "set the clock, best by NTP: `systemctl enable --now chronyd`".into())
                    .with_details(json!({ "off_ms": u64::try_from(off.0.as_millis()).unwrap_or(u64::MAX), "ahead": ahead }))
            }
            JoinError::Unreachable { by, address, .. } => conflict(
                "port-unreachable",
                format!("let TCP connections from {by} to {address} through the firewalls between them, or give another `--advertise`"),
            )
            .with_details(json!({ "by": by, "address": address })),
            JoinError::Untested { managers } => conflict(
                "ports-not-tried",
                "join with `quorate join`, which tries the ports of every manager".into(),
            )
            .with_details(json!({ "managers": managers })),
            JoinError::Throttled { wait, .. } => Failure::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-attempts",
                message,
                format!("wait {} s and check the token", wait.as_secs().max(1)),
            )
            .with_details(json!({ "retry_after_s": wait.as_secs().max(1) })),
            JoinError::NotSigned(_) => Failure::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "not-signed",
                message,
                "look into this node's log, then run the same join command again on the same server",
            ),
        }
    }
}

impl From<RenewRefused> for Failure {
    fn from(refused: RenewRefused) -> Failure {
        let message = refused.to_string();
        let (status, code, fix) = match refused {
            RenewRefused::NoAuthority => (StatusCode::CONFLICT, "no-authority", "ask another manager"),
            RenewRefused::Malformed { .. } => {
                (StatusCode::UNPROCESSABLE_ENTITY, "bad-renewal", "nodes renew their certificates by themselves")
            }
            RenewRefused::NotProved { .. } => (
                StatusCode::FORBIDDEN,
                "not-proved",
                "if the CA was rotated while the node was away: remove it, empty its data directory, join it anew",
            ),
            RenewRefused::Expelled { .. } => {
                (StatusCode::FORBIDDEN, "node-expelled", "empty the node's data directory and join it as a new node")
            }
            RenewRefused::Unknown { .. } => {
                (StatusCode::NOT_FOUND, "unknown-node", "ask a manager that has caught up, or join the node anew")
            }
            RenewRefused::NotSigned(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "not-signed", "look into this node's log, and ask another manager")
            }
        };
        Failure::new(status, code, message, fix)
    }
}

impl From<RotateError> for Failure {
    fn from(error: RotateError) -> Failure {
        let message = error.to_string();
        match error {
            RotateError::NoAuthority => Failure::new(StatusCode::CONFLICT, "no-authority", message, "ask a manager"),
            RotateError::NotMade(_) => Failure::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "not-made",
                message,
                "nothing was changed: ask another manager",
            ),
        }
    }
}

fn shutting_down(message: String) -> Failure {
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, "shutting-down", message, "send it to another node")
}

fn waited_ms(span: Duration) -> Value {
    json!({ "waited_ms": u64::try_from(span.as_millis()).unwrap_or(u64::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use quorate_model::access::name::{ApiTokenId, RoleName, SecretName, UserName};
    use quorate_model::id::{LogIndex, NodeId, ReplicaId, ServiceName, TokenId};
    use quorate_model::state::Role;
    use quorate_model::time::{Span, WallTime};
    use std::fmt::Write as _;
    use std::net::IpAddr;

    fn refused(why: NotAdmitted) -> Failure {
        Refusal::NotAdmitted { why }.into()
    }

    #[test]
    fn every_error_has_its_code_and_status() {
        let second = Duration::from_secs(1);
        let node = NodeId::from_u128(1);
        let web = ServiceName::new("web").unwrap();
        let all: Vec<Failure> = vec![
            WriteError::Overloaded.into(),
            WriteError::Unknown { waited: second }.into(),
            WriteError::TooLarge { bytes: 2, limit: 1 }.into(),
            WriteError::ShuttingDown.into(),
            ReadError::NoLeader { waited: second }.into(),
            ReadError::TooSlow { limit: second }.into(),
            ReadError::Overloaded.into(),
            ReadError::ShuttingDown.into(),
            LogError::Unknown(LogOf::Replica(ReplicaId::from_u128(1))).into(),
            LogError::Io { node: "n1".into(), why: "gone".into() }.into(),
            LogError::Unreachable { nodes: vec!["n1".into()], why: "refused".into() }.into(),
            LogError::Busy("n1".into()).into(),
            TransferError::UnknownNode(node).into(),
            TransferError::NoLeader.into(),
            TransferError::NotTaken(node, second).into(),
            Refusal::UnknownService { service: web.clone(), similar: None }.into(),
            Refusal::UnknownNode { node }.into(),
            Refusal::StalePlan { expected: LogIndex(1), actual: LogIndex(2) }.into(),
            Refusal::RouteTaken { listen: "default".into(), host: "*".into(), path: "/".into(), owner: web.clone() }
                .into(),
            Refusal::VipTaken { address: [10, 0, 0, 9].into(), owner: "node `n1`".into() }.into(),
            Refusal::UnknownVip { address: [10, 0, 0, 9].into() }.into(),
            Refusal::RouteWithoutService { service: web }.into(),
            Refusal::Invalid { field: "replicas".into(), problem: "is 0".into() }.into(),
            Refusal::UnknownToken { token: TokenId::from_u128(1) }.into(),
            Refusal::NotScalable { service: ServiceName::new("agent").unwrap(), why: "runs everywhere".into() }.into(),
            Refusal::NotActivated {
                service: ServiceName::new("db").unwrap(),
                why: "n3 has no healthy copy of it".into(),
            }
            .into(),
            Refusal::Autoscaled { service: ServiceName::new("web").unwrap(), min: 2, max: 8 }.into(),
            Refusal::NothingGranted { replica: ReplicaId::from_u128(1) }.into(),
            Refusal::NodeLives { node: "n2".into() }.into(),
            Refusal::OtherAway { node: "n2".into() }.into(),
            Refusal::NoDrill { why: NoDrill::Alone }.into(),
            Refusal::KeepsService { node: "n2".into(), service: ServiceName::new("db").unwrap() }.into(),
            Refusal::NoVersion { service: ServiceName::new("web").unwrap(), version: Some(7), known: vec![1] }.into(),
            Refusal::NoUpdate { service: ServiceName::new("web").unwrap() }.into(),
            refused(NotAdmitted::UnknownToken),
            refused(NotAdmitted::UsedToken { by: "n2".into() }),
            refused(NotAdmitted::ExpiredToken { at: WallTime(1) }),
            refused(NotAdmitted::WrongRole { allowed: Role::Worker, asked: Role::Manager }),
            refused(NotAdmitted::WrongName { allowed: "n2".into(), asked: "n3".into() }),
            refused(NotAdmitted::NameTaken { name: "n2".into() }),
            refused(NotAdmitted::AddressTaken { address: "h:1".into(), owner: "n2".into() }),
            refused(NotAdmitted::Expelled { node }),
            refused(NotAdmitted::QuotaReached { nodes: 3 }),
            refused(NotAdmitted::QuotaExpired { at: WallTime(1) }),
            refused(NotAdmitted::ManagerNeeds { requires: Role::Worker }),
            Refusal::ManagerNeeds { node: "n2".into(), requires: Role::Worker }.into(),
            Refusal::NotManager { node: "n2".into() }.into(),
            Refusal::Harm { harm: Harm::LosesMajority { node: "n2".into(), why: "n3 is away".into() } }.into(),
            Refusal::Harm { harm: Harm::LastVoter { node: "n1".into() } }.into(),
            Refusal::Harm { harm: Harm::EvenVoters { node: "n2".into(), voters: 2 } }.into(),
            Refusal::Harm { harm: Harm::Active { node: "n1".into() } }.into(),
            Refusal::Harm { harm: Harm::TwoNodes }.into(),
            Refusal::Harm { harm: Harm::HaInUse { nodes: "n1, n2".into() } }.into(),
            InviteError::NoAuthority.into(),
            InviteError::NoRandomness("none".into()).into(),
            JoinError::Write(WriteError::Unknown { waited: second }).into(),
            JoinError::Malformed { field: "secret", problem: "is short".into() }.into(),
            JoinError::Version {
                theirs: "1".into(),
                their_join: 1,
                their_link: 1,
                ours: "2".into(),
                our_join: 1,
                our_link: 2,
            }
            .into(),
            JoinError::Clock { off: Span::from_secs(86_400), ahead: true, limit: Span::from_secs(60) }.into(),
            JoinError::Unreachable { by: "n1".into(), what: "node link", address: "h:1".into(), why: "refused".into() }
                .into(),
            JoinError::Untested { managers: vec!["n2".into()] }.into(),
            JoinError::Throttled { from: IpAddr::from([192, 0, 2, 1]), wait: second }.into(),
            JoinError::NotSigned("no".into()).into(),
        ];
        let (user, role) = (UserName::new("bob").unwrap(), RoleName::new("viewer").unwrap());
        let name = SecretName::new("pg").unwrap();
        let about_access = [
            AccessRefusal::UnknownUser { user: user.clone() },
            AccessRefusal::UserExists { user: user.clone() },
            AccessRefusal::UnknownRole { role: role.clone() },
            AccessRefusal::RoleExists { role: role.clone() },
            AccessRefusal::FixedRole { role: role.clone() },
            AccessRefusal::RoleInUse { role, user: user.clone() },
            AccessRefusal::LastAdmin { user },
            AccessRefusal::UnknownSession,
            AccessRefusal::UnknownToken { token: ApiTokenId::new("x").unwrap() },
            AccessRefusal::UnknownSecret { name },
            AccessRefusal::OldKey { key: 1, in_use: 2 },
            AccessRefusal::PasswordChanged,
            AccessRefusal::TooSoon { wait_ms: 1_500 },
            AccessRefusal::NotConfirmed { what: "user-remove".into(), target: "bob".into() },
            AccessRefusal::Full { what: "users".into(), limit: 1 },
            AccessRefusal::Invalid { field: "label".into(), problem: "is long".into() },
        ];
        let all: Vec<Failure> =
            all.into_iter().chain(about_access.map(|refusal| Refusal::Access(refusal).into())).collect();
        let mut table = String::new();
        for failure in &all {
            assert!(!failure.problem().fix.is_empty(), "{failure:?}");
            writeln!(table, "{} {}", failure.status().as_u16(), failure.problem().code).unwrap();
        }
        expect![[r#"
            503 overloaded
            504 outcome-unknown
            413 write-too-large
            503 shutting-down
            503 no-leader
            504 query-too-slow
            503 overloaded
            503 shutting-down
            404 unknown-log
            500 log-unreadable
            503 node-unreachable
            503 overloaded
            404 unknown-node
            503 no-leader
            504 not-taken
            404 unknown-service
            404 unknown-node
            409 stale-plan
            409 route-taken
            409 vip-taken
            404 unknown-vip
            422 route-without-service
            422 invalid
            404 token-unknown
            409 not-scalable
            409 not-activated
            409 autoscaled
            409 nothing-granted
            409 node-lives
            409 other-away
            409 no-drill
            409 keeps-service
            409 no-version
            409 no-update
            403 token-unknown
            409 token-used
            403 token-expired
            403 wrong-role
            403 wrong-name
            409 name-taken
            409 address-taken
            403 node-expelled
            409 quota-reached
            409 quota-expired
            409 manager-needs-role
            409 manager-needs-role
            409 not-manager
            409 loses-majority
            409 last-voter
            409 even-voters
            409 is-active
            409 ha-needs-three
            409 ha-in-use
            409 no-authority
            500 no-randomness
            504 outcome-unknown
            422 bad-join
            409 version-mismatch
            409 clock-off
            409 port-unreachable
            409 ports-not-tried
            429 too-many-attempts
            500 not-signed
            404 unknown-user
            409 user-exists
            404 unknown-role
            409 role-exists
            409 fixed-role
            409 role-in-use
            409 last-admin
            404 unknown-session
            404 unknown-token
            404 unknown-secret
            409 key-changed
            401 wrong-credentials
            429 too-many-tries
            403 not-confirmed
            409 full
            422 invalid
        "#]]
        .assert_eq(&table);
    }
}
