//! Letting servers in: what a manager looks at before it makes a node of one.
//!
//! Everything that can be seen beforehand is looked at first, so that a refusal leaves nothing behind;
//! the entry that admits the node decides it all once more, because other managers let servers in as
//! well. The order of what is done is in [`quorate_api::join`].
//!
//! # Invariants
//! - One server at a time on each manager; between managers the log is the order.
//! - A secret is never logged, and no attempt to guess one is free: who fails [`FAILURES_MAX`] times
//!   within [`FAILURES_WITHIN`] is not listened to until that is over.
//! - Ports of a server are tried only for one that showed a token that is still good.

mod throttle;

use super::backend::NodeBackend;
use super::keychain::Keychain;
use crate::config::NodeConfig;
use crate::keys::ManagerKeys;
use crate::trust::serial;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_api::backend::{Backend as _, Invitation, InviteError, JoinError, Query};
use quorate_api::join::{JOIN_VERSION, JoinAnswer, JoinCheck, JoinRequest, ManagerAddress};
use quorate_api::view::NodeState;
use quorate_membership::seal::KeyRing;
use quorate_model::access::Actor;
use quorate_model::command::{Command, Refusal};
use quorate_model::entry::{Database, Outcome, Proposal};
use quorate_model::id::{LogIndex, NodeId, RequestId};
use quorate_model::member::{MemberCommand, NotAdmitted, SecretHash};
use quorate_model::sql::{Consistency, SqlBatch, Statement};
use quorate_model::state::{ClusterState, Health, NodeIdentity, Role};
use quorate_model::time::{Span, WallTime};
use quorate_node::wire;
use quorate_trust::key::CertificateRequest;
use quorate_trust::token::{JoinAddress, JoinSecret, JoinToken};
use rustls::pki_types::ServerName;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use throttle::Throttle;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::{info, warn};

/// Failed attempts of one address before it is not listened to.
pub(super) const FAILURES_MAX: usize = 10;
/// For how long a failed attempt counts.
pub(super) const FAILURES_WITHIN: Duration = Duration::from_secs(60);
/// Clocks that differ by more than this do not join: logs and events would be of no use, and a token
/// or certificate could seem to begin later than it ends. NTP keeps servers within milliseconds, so a
/// server that is beyond this has none, and nothing that a person could read from two clocks is lost.
const CLOCKS_WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for a server's port to answer.
const PORT_WITHIN: Duration = Duration::from_secs(3);
/// How long this manager may be behind the one that made a token.
const BEHIND_WITHIN: Duration = Duration::from_secs(1);

/// What a manager needs to let others in.
#[derive(Debug)]
pub(super) struct Admission {
    config: NodeConfig,
    keychain: Arc<Keychain>,
    /// Gossip's keys as they are now.
    ring: Option<watch::Receiver<KeyRing>>,
    turn: tokio::sync::Mutex<()>,
    throttle: Mutex<Throttle>,
}

/// A request that makes sense.
struct Applicant {
    secret: JoinSecret,
    identity: NodeIdentity,
    api: SocketAddr,
    link: SocketAddr,
    request: CertificateRequest,
}

impl Admission {
    pub(super) fn new(
        config: &NodeConfig,
        keychain: Arc<Keychain>,
        ring: Option<watch::Receiver<KeyRing>>,
    ) -> Admission {
        let (turn, throttle) = (tokio::sync::Mutex::default(), Mutex::default());
        Admission { config: config.clone(), keychain, ring, turn, throttle }
    }

    fn manager(&self) -> Result<ManagerKeys, InviteError> {
        self.keychain.held().manager.clone().ok_or(InviteError::NoAuthority)
    }

    pub(super) fn invite(&self) -> Result<Invitation, InviteError> {
        let mut bytes = [0; 20];
        getrandom::fill(&mut bytes).map_err(|error| InviteError::NoRandomness(error.to_string()))?;
        let secret = JoinSecret::from_random(bytes);
        let authority = self.manager()?.authority.certificate().fingerprint();
        let command = |address: &SocketAddr| {
            let address = JoinAddress::new(ServerName::from(address.ip()), address.port()).ok()?;
            let token = JoinToken { address, secret: secret.clone(), authority };
            Some(format!("quorate join {}", token.to_text()))
        };
        let commands = self.config.node.api_addresses().iter().filter_map(command).collect();
        Ok(Invitation { secret: SecretHash(*secret.digest().as_bytes()), commands })
    }

    pub(super) async fn check(
        &self,
        backend: &NodeBackend,
        request: &JoinRequest,
        from: Option<IpAddr>,
    ) -> Result<JoinCheck, JoinError> {
        let checked = self.look(backend, request, from).await;
        self.note(request, from, checked.as_ref().err());
        let applicant = checked?;
        Ok(JoinCheck {
            cluster: self.config.cluster.id,
            cluster_name: self.config.cluster.name.clone(),
            node: applicant.identity.id,
            answered_by: self.config.node.id,
            managers: managers(backend),
        })
    }

    pub(super) async fn join(
        &self,
        backend: &NodeBackend,
        request: &JoinRequest,
        from: Option<IpAddr>,
        actor: &Actor,
        patience: Duration,
    ) -> Result<JoinAnswer, JoinError> {
        let _turn = self.turn.lock().await;
        let joined = self.admit(backend, request, from, actor, patience).await;
        self.note(request, from, joined.as_ref().err());
        if let Ok(answer) = &joined {
            let id = assigned(&answer.roles, answer.node);
            info!(node = %answer.node, name = %request.name, api = %request.api, "admitted a node: {id}");
        }
        joined
    }

    async fn admit(
        &self,
        backend: &NodeBackend,
        request: &JoinRequest,
        from: Option<IpAddr>,
        actor: &Actor,
        patience: Duration,
    ) -> Result<JoinAnswer, JoinError> {
        let applicant = self.look(backend, request, from).await?;
        let managers = managers(backend);
        let untried: Vec<String> = managers
            .iter()
            .filter(|manager| manager.id != self.config.node.id && !request.tried.contains(&manager.id))
            .map(|manager| manager.name.clone())
            .collect();
        if !untried.is_empty() {
            return Err(JoinError::Untested { managers: untried });
        }
        let node = applicant.identity.clone();
        let is_manager = node.roles.contains(&Role::Manager);
        let command = Command::Member(MemberCommand::Admit {
            secret: SecretHash(*applicant.secret.digest().as_bytes()),
            node,
            vote: request.vote,
        });
        let id = serial().map_err(|error| JoinError::NotSigned(format!("{error:#}")))?;
        let proposal = Proposal::command_by(RequestId::from_u128(id), &command, actor);
        let committed = backend.propose(proposal, patience).await.map_err(JoinError::Write)?;
        if let Outcome::Command(Err(refusal)) = committed.outcome {
            return Err(JoinError::Refused(refusal));
        }
        if let Some(alias) = &request.alias {
            let command = MemberCommand::SetAlias { node: applicant.identity.id, alias: Some(alias.clone()) };
            let id = serial().map_err(|error| JoinError::NotSigned(format!("{error:#}")))?;
            let proposal = Proposal::command_by(RequestId::from_u128(id), &Command::Member(command), actor);
            let committed = backend.propose(proposal, patience).await.map_err(JoinError::Write)?;
            if let Outcome::Command(Err(why)) = committed.outcome {
                // It is a name for people; they can give it another.
                warn!(name = %request.name, "the node gets no alias: {why}");
            }
        }
        let manager = self.manager().map_err(JoinError::Invite)?;
        let certificate = sign(&manager, &applicant).map_err(|error| JoinError::NotSigned(format!("{error:#}")))?;
        // Taken once, and not held: the core waits for whoever looks, and a second look would wait for the core.
        let overview = backend.0.overview.borrow().clone();
        let gossip_keys = self.ring.as_ref().map(|ring| ring.borrow().to_text());
        Ok(JoinAnswer {
            cluster: self.config.cluster.id,
            cluster_name: self.config.cluster.name.clone(),
            incarnation: overview.cluster.incarnation,
            node: applicant.identity.id,
            roles: applicant.identity.roles.clone(),
            managers,
            voters: overview.cluster.electors.as_ref().map_or(1, |electors| electors.voters),
            admitted_managers: admitted_managers(backend, applicant.identity.id),
            certificate,
            authorities: self.keychain.held().files.authorities.iter().map(|authority| authority.to_pem()).collect(),
            for_managers: is_manager.then(|| manager.to_text().to_string()),
            gossip_keys,
        })
    }

    /// Everything that can be seen without changing anything.
    async fn look(
        &self,
        backend: &NodeBackend,
        request: &JoinRequest,
        from: Option<IpAddr>,
    ) -> Result<Applicant, JoinError> {
        if let Some(from) = from
            && let Some(wait) = self.throttle().wait(from, Instant::now())
        {
            return Err(JoinError::Throttled { from, wait });
        }
        check_version(request)?;
        check_clock(request.now, wall_now())?;
        let mut applicant = read(request)?;
        let hash = SecretHash(*applicant.secret.digest().as_bytes());
        let known = known_token(backend, hash).await;
        let role = known.members.tokens.values().find(|token| token.secret == hash).map(|token| token.role);
        if applicant.identity.roles.is_empty() {
            applicant.identity.roles = roles_of(role.unwrap_or(Role::Manager));
        }
        let command = Command::Member(MemberCommand::Admit {
            secret: hash,
            node: applicant.identity.clone(),
            vote: request.vote,
        });
        known.decide(LogIndex(0), wall_now(), &command).map_err(JoinError::Refused)?;
        for (what, address) in [("API", applicant.api), ("node link", applicant.link)] {
            self.try_port(what, address, &request.hail).await?;
        }
        Ok(applicant)
    }

    /// Whether the server itself, and not another program, answers at this address.
    async fn try_port(&self, what: &'static str, address: SocketAddr, hail: &str) -> Result<(), JoinError> {
        let hailed = async {
            let mut stream = TcpStream::connect(address).await?;
            let mut said = vec![0; hail.len()];
            stream.read_exact(&mut said).await?;
            Ok::<bool, std::io::Error>(said == hail.as_bytes())
        };
        let why = match tokio::time::timeout(PORT_WITHIN, hailed).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => "something else answers there".to_owned(),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                "something else answers there".to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {}", Span(PORT_WITHIN)),
        };
        Err(JoinError::Unreachable { by: self.config.node.name.clone(), what, address: address.to_string(), why })
    }

    fn throttle(&self) -> std::sync::MutexGuard<'_, Throttle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says in the log what was refused, and remembers who tried something that may be guessing.
    fn note(&self, request: &JoinRequest, from: Option<IpAddr>, error: Option<&JoinError>) {
        let Some(error) = error else { return };
        let from_text = from.map(|from| from.to_string()).unwrap_or_default();
        warn!(from = %from_text, name = %request.name.escape_debug(), "a server may not join: {error}");
        if let Some(from) = from.filter(|_| may_be_guessing(error)) {
            self.throttle().failed(from, Instant::now());
        }
    }
}

fn sign(manager: &ManagerKeys, applicant: &Applicant) -> anyhow::Result<String> {
    let names = certificate_names(applicant.api.ip(), &applicant.identity.name);
    let certificate =
        manager.authority.issue(&applicant.request, applicant.identity.id, &names, wall_now(), serial()?)?;
    Ok(certificate.to_pem())
}

fn may_be_guessing(error: &JoinError) -> bool {
    match error {
        JoinError::Malformed { .. } => true,
        JoinError::Refused(Refusal::NotAdmitted { why }) => {
            matches!(why, NotAdmitted::UnknownToken | NotAdmitted::UsedToken { .. } | NotAdmitted::ExpiredToken { .. })
        }
        _ => false,
    }
}

/// The cluster as this manager knows it, once it knows this token, or could.
async fn known_token(backend: &NodeBackend, hash: SecretHash) -> Arc<ClusterState> {
    let mut known = backend.0.known.clone();
    let has = |state: &ClusterState| state.members.tokens.values().any(|token| token.secret == hash);
    if !has(&known.borrow()) {
        // Another manager may have made it a moment ago: a read that covers everything waits for it.
        let query = Query {
            database: Database::System,
            batch: SqlBatch { statements: vec![Statement::new("SELECT 1")], transaction: false },
            consistency: Consistency::Linearizable,
            patience: BEHIND_WITHIN,
        };
        // Without a leader there is nothing to wait for; what is decided later says so.
        let _ = backend.query(query).await;
        let _ = tokio::time::timeout(BEHIND_WITHIN, known.wait_for(|state| has(state))).await;
    }
    known.borrow().clone()
}

/// Managers that this one hears.
fn managers(backend: &NodeBackend) -> Vec<ManagerAddress> {
    let overview = backend.0.overview.borrow().clone();
    let heard: BTreeSet<NodeId> =
        overview.nodes.iter().filter(|node| node.state == NodeState::Joined).map(|node| node.id).collect();
    let known = backend.0.known.borrow().clone();
    let managers = known.nodes.values().map(|record| &record.identity);
    managers
        .filter(|identity| identity.roles.contains(&Role::Manager) && heard.contains(&identity.id))
        .map(|identity| ManagerAddress {
            id: identity.id,
            name: identity.name.clone(),
            api: identity.api.clone(),
            link: identity.link.clone(),
        })
        .collect()
}

/// How many managers were let in and have not left, with this one.
fn admitted_managers(backend: &NodeBackend, me: NodeId) -> u32 {
    let known = backend.0.known.borrow();
    let present = known.nodes.values().filter(|record| record.health != Health::Left);
    let others = present.filter(|record| record.identity.roles.contains(&Role::Manager) && record.identity.id != me);
    u32::try_from(others.count() + 1).unwrap_or(u32::MAX)
}

/// A node's id as people read it: gateways are known by theirs (D2).
pub(crate) fn assigned(roles: &BTreeSet<Role>, node: NodeId) -> String {
    let kind = match roles.first() {
        Some(Role::Gateway) if roles.len() == 1 => "gateway",
        Some(Role::Worker) if roles.len() == 1 => "worker",
        _ => "node",
    };
    format!("{kind}_{node}")
}

/// What a server becomes that does not say what it wants to be.
pub(crate) fn roles_of(role: Role) -> BTreeSet<Role> {
    match role {
        Role::Manager => BTreeSet::from([Role::Manager, Role::Worker]),
        Role::Worker => BTreeSet::from([Role::Worker]),
        Role::Gateway => BTreeSet::from([Role::Gateway]),
    }
}

/// Names under which clients reach a node's API.
pub(crate) fn certificate_names(ip: IpAddr, name: &str) -> Vec<ServerName<'static>> {
    let mut names = vec![ServerName::from(ip)];
    names.extend(["localhost", name].into_iter().filter_map(|name| ServerName::try_from(name.to_owned()).ok()));
    names.dedup();
    names
}

fn check_version(request: &JoinRequest) -> Result<(), JoinError> {
    if (request.join_version, request.link_version) == (JOIN_VERSION, wire::VERSION) {
        return Ok(());
    }
    Err(JoinError::Version {
        theirs: request.version.chars().take(32).collect(),
        their_join: request.join_version,
        their_link: request.link_version,
        ours: env!("CARGO_PKG_VERSION").to_owned(),
        our_join: JOIN_VERSION,
        our_link: wire::VERSION,
    })
}

fn check_clock(theirs: WallTime, ours: WallTime) -> Result<(), JoinError> {
    let ahead = theirs > ours;
    let off = if ahead { theirs.since(ours) } else { ours.since(theirs) };
    if off <= CLOCKS_WITHIN {
        return Ok(());
    }
    Err(JoinError::Clock { off: Span::from_secs(off.as_secs()), ahead, limit: Span(CLOCKS_WITHIN) })
}

/// What a node's name may be: 1 to 63 letters, digits, `-`, `_` and `.`, beginning with a letter or digit.
pub(crate) fn is_node_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn read(request: &JoinRequest) -> Result<Applicant, JoinError> {
    let bad = |field, problem: &str| JoinError::Malformed { field, problem: problem.to_owned() };
    let secret: JoinSecret = request
        .secret
        .parse()
        .map_err(|error| JoinError::Malformed { field: "secret", problem: format!("is none: {error}") })?;
    if !is_node_name(&request.name) {
        return Err(bad("name", "must be 1 to 63 letters, digits, `-`, `_` and `.`, beginning with a letter or digit"));
    }
    if !(16..=64).contains(&request.hail.len()) || !request.hail.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(bad("hail", "must be 16 to 64 letters and digits"));
    }
    let address = |field, text: &str| {
        let address: Option<SocketAddr> = text.parse().ok();
        address
            .filter(|address| address.port() != 0 && !address.ip().is_unspecified())
            .ok_or_else(|| bad(field, "must be an address and a port under which others reach this server"))
    };
    let (api, link) = (address("api", &request.api)?, address("link", &request.link)?);
    if api == link {
        return Err(bad("link", "must be another port than that of the API"));
    }
    let der = STANDARD.decode(&request.certificate_request).map_err(|_| bad("certificate_request", "is not base64"))?;
    let request_of = CertificateRequest::from_der(&der);
    let certificate = request_of.map_err(|error| JoinError::Malformed {
        field: "certificate_request",
        problem: format!("cannot be used: {error}"),
    })?;
    let identity = NodeIdentity {
        id: secret.node_of(certificate.public()),
        name: request.name.clone(),
        roles: request.roles.clone(),
        api: api.to_string(),
        link: link.to_string(),
        host: api.ip().to_string(),
    };
    Ok(Applicant { secret, identity, api, link, request: certificate })
}

fn wall_now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_model::member::Vote;
    use quorate_trust::key::NodeKey;

    fn request() -> JoinRequest {
        let key = NodeKey::generate().unwrap().request().unwrap();
        JoinRequest {
            secret: JoinSecret::from_random([7; 20]).to_text(),
            name: "n4".into(),
            alias: None,
            roles: BTreeSet::new(),
            api: "192.0.2.4:7000".into(),
            link: "192.0.2.4:7001".into(),
            vote: Vote::Auto,
            version: "0.0.0".into(),
            join_version: JOIN_VERSION,
            link_version: wire::VERSION,
            now: WallTime(1),
            certificate_request: STANDARD.encode(key.as_der()),
            hail: "0123456789abcdef".into(),
            tried: BTreeSet::new(),
        }
    }

    fn field(change: impl FnOnce(&mut JoinRequest)) -> &'static str {
        let mut request = request();
        change(&mut request);
        match read(&request) {
            Err(JoinError::Malformed { field, problem }) => {
                assert!(!problem.contains(&request.secret), "{problem}");
                field
            }
            Err(other) => panic!("{other:?}"),
            Ok(_) => "fine",
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        assert_eq!(field(|_| {}), "fine");
        assert_eq!(field(|request| request.secret.truncate(31)), "secret");
        for name in ["", "-a", "a b", "a/b", "\u{1b}[2J", &"x".repeat(64)] {
            assert_eq!(field(|request| request.name = name.into()), "name", "{name}");
        }
        assert_eq!(field(|request| request.hail = "short".into()), "hail");
        for address in ["", "n4:7000", "0.0.0.0:7000", "192.0.2.4:0", "[::]:7000"] {
            assert_eq!(field(|request| request.api = address.into()), "api", "{address}");
        }
        assert_eq!(field(|request| request.link = request.api.clone()), "link");
        assert_eq!(field(|request| request.certificate_request = "AA==".into()), "certificate_request");
        assert_eq!(field(|request| request.certificate_request = "?".into()), "certificate_request");
    }

    #[test]
    fn an_incompatible_version_is_refused_with_both_named() {
        check_version(&request()).unwrap();
        let other = JoinRequest { version: "9.9.9".into(), link_version: 99, ..request() };
        let text = check_version(&other).unwrap_err().to_string();
        assert!(text.contains("quorate 9.9.9") && text.contains(env!("CARGO_PKG_VERSION")), "{text}");
        assert!(
            text.contains("link version 99") && text.contains(&format!("link version {}", wire::VERSION)),
            "{text}"
        );
    }

    #[test]
    fn a_clock_that_is_a_day_off_is_refused_with_the_numbers() {
        let day = 86_400_000_000;
        let now = WallTime(20 * day);
        check_clock(WallTime(now.0 + 59_000_000), now).unwrap();
        let ahead = check_clock(WallTime(now.0 + day), now).unwrap_err().to_string();
        assert_eq!(ahead, "the clock of this server is 1d ahead of that of the cluster; 1m is allowed");
        let behind = check_clock(WallTime(now.0 - day), now).unwrap_err().to_string();
        assert_eq!(behind, "the clock of this server is 1d behind that of the cluster; 1m is allowed");
    }
}
