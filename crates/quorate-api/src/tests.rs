//! The whole router over a back end in memory.

use crate::access::AuthMode;
use crate::autoscale::AutoscaleView;
use crate::backend::{
    AccessView, Answer, Backend, Committed, Invitation, InviteError, JoinError, LogChunk, LogError, LogFrom, LogOf,
    OpenLog, Pages, Policy, Query, ReadError, SealRefused, Sealed, TransferError, WriteError,
};
use crate::drills::DrillForecast;
use crate::join::{JoinAnswer, JoinCheck, JoinRequest};
use crate::placement::{Availability, ExplanationView, ForecastView, MoveView, RebalanceView, RoomView, ShiftView};
use crate::server::{ApiOptions, Plain, native, router, serve};
use crate::updates::HistoryView;
use crate::view::{
    ClusterHealth, ClusterView, ElectorsView, EventView, JoinTokenView, MembersView, NodeMode, NodeState, NodeView,
    Overview, QuotaView, ServiceView, Standing,
};
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use carried::batch;
use expect_test::{expect, expect_file};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use quorate_model::access::audit::{AuditLink, AuditPage};
use quorate_model::access::name::SecretName;
use quorate_model::access::{AccessChange, AccessState, Actor};
use quorate_model::autoscale::{AutoscaleCommand, AutoscaleWish};
use quorate_model::command::{Command, Refusal};
use quorate_model::entry::{Envelope, Kind, Outcome, Payload, Proposal};
use quorate_model::id::{ClusterId, LogIndex, NodeId, ReplicaId, RequestId, ServiceName};
use quorate_model::member::{MemberCommand, SecretHash};
use quorate_model::observed::GatewayReport;
use quorate_model::place;
use quorate_model::resource::Amount;
use quorate_model::routing::RoutingTable;
use quorate_model::spec::{Driver, Mode, SpecDocument};
use quorate_model::sql::{Consistency, Row, Rows, Scalar, SqlBatch, SqlError, SqlOutcome, StatementResult, Value};
use quorate_model::state::{Change, ClusterState, Role};
use quorate_model::stopped::SwitchCommand;
use quorate_model::time::{Span, WallTime};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

mod access;
mod autoscale;
mod database;
mod ha;
mod managers;
mod members;
mod placement;
mod reconfigure;
mod streams;
mod switch;
mod vips;
mod waiting;

const SOON: Duration = Duration::from_secs(10);

/// Reads what a proposal carries, as the log would.
mod carried {
    use super::*;

    pub(super) fn payload(proposal: &Proposal) -> Payload {
        Envelope::stamp(proposal.clone(), WallTime(1), 1).payload().unwrap()
    }

    pub(super) fn actor(proposal: &Proposal) -> Option<Actor> {
        Envelope::stamp(proposal.clone(), WallTime(1), 1).actor().unwrap()
    }

    pub(super) fn batch(proposal: &Proposal) -> SqlBatch {
        match payload(proposal) {
            Payload::Sql(batch) => batch,
            other => panic!("{other:?}"),
        }
    }
}

/// A back end whose answers a test decides.
#[derive(Clone)]
struct Fake(Arc<Inner>);

struct Inner {
    overview: watch::Sender<Arc<Overview>>,
    members: watch::Sender<Arc<MembersView>>,
    routing: watch::Sender<Arc<RoutingTable>>,
    access: watch::Sender<AccessView>,
    link: watch::Sender<bool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    committed: u64,
    outcomes: BTreeMap<RequestId, Committed>,
    proposals: Vec<(Proposal, Duration)>,
    queries: Vec<Query>,
    reports: Vec<GatewayReport>,
    refuse_write: Option<WriteError>,
    refuse_read: Option<ReadError>,
    sql: Option<SqlOutcome>,
    rows: Option<Result<Rows, SqlError>>,
    log: Vec<u8>,
    logs_open: usize,
    /// What becomes of logs that are read from now on.
    log_error: Option<LogError>,
    invited: u8,
    asked_to_join: Vec<(JoinRequest, Option<IpAddr>)>,
    join_error: Option<JoinError>,
    /// What the leader says to the next command about members.
    withheld: Option<Refusal>,
    left: bool,
    /// Why it cannot listen for others.
    no_link: Option<String>,
    /// What the real state machine makes of commands about access.
    cluster: ClusterState,
    audit: Vec<AuditLink>,
    policy: Option<Policy>,
}

impl Fake {
    fn new() -> Fake {
        let state = State { log: b"one\ntwo\n".to_vec(), ..State::default() };
        Fake(Arc::new(Inner {
            overview: watch::Sender::new(Arc::new(overview())),
            members: watch::Sender::new(Arc::new(MembersView::default())),
            routing: watch::Sender::new(Arc::new(RoutingTable::default())),
            access: watch::Sender::new(AccessView::default()),
            link: watch::Sender::new(true),
            state: Mutex::new(state),
        }))
    }

    fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.state.lock().unwrap())
    }

    fn wants(&self, minimum_nodes: u32, pages: Pages) {
        self.set(|state| state.policy = Some(Policy { minimum_nodes, pages }));
    }

    fn change(&self, change: impl FnOnce(&mut Overview)) {
        self.0.overview.send_modify(|overview| {
            let overview = Arc::make_mut(overview);
            overview.sequence += 1;
            change(overview);
        });
    }

    fn asked_to_join(&self, request: JoinRequest, from: Option<IpAddr>) -> Result<(), JoinError> {
        self.set(|state| {
            state.asked_to_join.push((request, from));
            state.join_error.clone().map_or(Ok(()), Err)
        })
    }

    fn change_member(&self, overview: &mut Overview, index: LogIndex, command: &MemberCommand) -> Option<Refusal> {
        let mut refusal = None;
        self.0.members.send_modify(|members| {
            let members = Arc::make_mut(members);
            members.applied = index;
            let mut of = |id: &NodeId, edit: &dyn Fn(&mut NodeView)| {
                match overview.nodes.iter_mut().find(|node| node.id == *id) {
                    Some(node) => edit(node),
                    None => refusal = Some(Refusal::UnknownNode { node: *id }),
                };
            };
            match command {
                MemberCommand::CreateToken { token, .. } => members.tokens.push(JoinTokenView {
                    id: token.id,
                    role: token.role,
                    name: token.name.clone(),
                    created: token.created,
                    expires: token.expires,
                    used_by: None,
                    used_at: None,
                }),
                MemberCommand::RevokeToken { token } => members.tokens.retain(|known| known.id != *token),
                MemberCommand::SetAlias { node, alias } => of(node, &|node| node.alias = alias.clone()),
                MemberCommand::SetLabels { node, labels } => of(node, &|node| {
                    node.labels.extend(labels.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))));
                    node.labels.retain(|key, _| labels.get(key) != Some(&None));
                }),
                MemberCommand::SetAttribute { node, name, attribute } => of(node, &|node| {
                    node.attributes.remove(name);
                    node.attributes.extend(attribute.iter().map(|it| (name.clone(), it.value.clone())));
                }),
                MemberCommand::SetAvailability { node, availability } => of(node, &|node| {
                    node.drain_deadline = availability.drain().and_then(|drain| drain.deadline);
                    node.availability = match availability {
                        place::Availability::Open => Availability::Open,
                        place::Availability::Cordoned => Availability::Cordoned,
                        place::Availability::Draining(_) => Availability::Draining,
                    };
                }),
                MemberCommand::SetRoles { node, roles } => of(node, &|node| node.roles = roles.clone()),
                MemberCommand::SetVote { node, .. } => of(node, &|_| {}),
                MemberCommand::StopManagers { nodes } => {
                    nodes.iter().for_each(|node| of(node, &|node| node.standing = Some(Standing::Stopped)));
                }
                MemberCommand::StartManagers { nodes } => {
                    nodes.iter().for_each(|node| of(node, &|node| node.standing = Some(Standing::Voter)));
                }
                MemberCommand::RestartServer { node, .. } => of(node, &|node| node.generation += 1),
                MemberCommand::SetManagerRule { requires } => {
                    overview.cluster.electors.iter_mut().for_each(|electors| electors.manager_requires = *requires);
                }
                MemberCommand::SetHa { on } => {
                    overview.cluster.ha = *on;
                    self.0.link.send_replace(*on);
                }
                MemberCommand::Expel { node } => overview.nodes.retain(|known| known.id != *node),
                MemberCommand::ConfirmDead { node, .. } => of(node, &|_| {}),
                MemberCommand::SetFailover { failover } => overview.cluster.failover = *failover,
                MemberCommand::SetQuota { quota } => {
                    members.quota = QuotaView {
                        nodes: quota.as_ref().map(|quota| quota.nodes),
                        expires: quota.as_ref().and_then(|quota| quota.expires),
                        used: 3,
                    };
                }
                other => panic!("{other:?}"),
            }
        });
        refusal
    }

    /// Runs a command about access as a node would, at the time of this machine.
    fn about_access(&self, index: LogIndex, command: &Command, actor: Option<&Actor>) -> Result<(), Refusal> {
        let (outcome, access) = self.set(|state| {
            let decided = state.cluster.decide_for(index, now(), command, actor);
            for change in &decided.changes {
                if let Change::Access(AccessChange::Audit(link)) = change {
                    state.audit.push(link.clone());
                }
            }
            state.cluster.absorb(index, &decided.changes);
            (decided.outcome, state.cluster.access.clone())
        });
        self.0.access.send_replace(AccessView { applied: index, access });
        outcome
    }

    fn carry_out(&self, index: LogIndex, command: &Command) -> Result<(), Refusal> {
        let mut refusal = None;
        self.change(|overview| {
            overview.cluster.applied = index;
            match command {
                Command::ApplySpec { document } => {
                    for spec in &document.services {
                        overview.services.retain(|known| known.name != spec.name);
                        overview.services.push(service_view(document, &spec.name));
                    }
                }
                Command::ScaleService { replicas: 0, .. } => {
                    refusal = Some(Refusal::Invalid { field: "replicas".into(), problem: "is 0".into() });
                }
                Command::ScaleService { service, .. }
                | Command::RestartService { service }
                | Command::ContinueUpdate { service }
                | Command::RollBackService { service, .. }
                | Command::RemoveService { service } => {
                    if !overview.services.iter().any(|known| known.name == *service) {
                        refusal = Some(Refusal::UnknownService { service: service.clone(), similar: None });
                    }
                }
                Command::Autoscale(AutoscaleCommand::Set { service, wish }) => {
                    let known = overview.services.iter_mut().find(|known| known.name == *service);
                    match (known, wish) {
                        (None, _) => {
                            refusal = Some(Refusal::UnknownService { service: service.clone(), similar: None });
                        }
                        (Some(known), AutoscaleWish { min: Some(min), .. }) => known.want = *min,
                        (Some(_), AutoscaleWish { min: None, .. }) => {
                            let (field, problem) = ("service.web.autoscale".into(), "is not there yet".into());
                            refusal = Some(Refusal::Invalid { field, problem });
                        }
                    }
                }
                Command::Switch(SwitchCommand::Stop { service } | SwitchCommand::Start { service }) => {
                    match overview.services.iter_mut().find(|known| known.name == *service) {
                        Some(known) if matches!(command, Command::Switch(SwitchCommand::Stop { .. })) => known.want = 0,
                        Some(known) => known.want = known.spec.replicas,
                        None => refusal = Some(Refusal::UnknownService { service: service.clone(), similar: None }),
                    }
                }
                Command::Member(command) => refusal = self.change_member(overview, index, command),
                // Only whether it may be asked for is of interest here.
                Command::Drill(_)
                | Command::Rebalance { .. }
                | Command::Reconfigure { .. }
                | Command::Activate { .. }
                | Command::External(_) => {}
                other => panic!("{other:?}"),
            }
        });
        refusal.map_or(Ok(()), Err)
    }
}

/// A log of the fake's, which counts how many of them are open.
struct FakeLog(Fake);

impl Drop for FakeLog {
    fn drop(&mut self) {
        self.0.set(|state| state.logs_open -= 1);
    }
}

impl OpenLog for FakeLog {
    async fn read(&mut self, from: LogFrom, bytes_max: usize) -> Result<LogChunk, LogError> {
        self.0.set(|state| {
            if let Some(error) = &state.log_error {
                return Err(error.clone());
            }
            let start = match from {
                LogFrom::Offset(offset) => usize::try_from(offset).unwrap().min(state.log.len()),
                LogFrom::LastLines(lines) => {
                    let all: Vec<&[u8]> = state.log.split_inclusive(|byte| *byte == b'\n').collect();
                    all[..all.len().saturating_sub(lines as usize)].iter().map(|line| line.len()).sum()
                }
            };
            let end = state.log.len().min(start + bytes_max);
            Ok(LogChunk { data: Bytes::copy_from_slice(&state.log[start..end]), next: end as u64 })
        })
    }
}

impl Backend for Fake {
    type Log = FakeLog;

    async fn propose(&self, proposal: Proposal, patience: Duration) -> Result<Committed, WriteError> {
        let index = self.set(|state| {
            if let Some(error) = &state.refuse_write {
                return Err(error.clone());
            }
            if let Some(known) = state.outcomes.get(&proposal.request_id) {
                return Ok(Err(known.clone()));
            }
            state.proposals.push((proposal.clone(), patience));
            state.committed += 1;
            Ok(Ok(LogIndex(state.committed)))
        })?;
        let index = match index {
            Ok(index) => index,
            Err(known) => return Ok(known),
        };
        let outcome = match carried::payload(&proposal) {
            Payload::Sql(batch) => Outcome::Sql(self.set(|state| state.sql.clone()).unwrap_or_else(|| {
                SqlOutcome {
                    results: batch
                        .statements
                        .iter()
                        .map(|_| StatementResult { rows_affected: 1, last_insert_id: 1, ..StatementResult::default() })
                        .collect(),
                    refused: None,
                }
            })),
            Payload::Command(command @ Command::Access(_)) => {
                Outcome::Command(self.about_access(index, &command, carried::actor(&proposal).as_ref()))
            }
            Payload::Command(command) => Outcome::Command(match self.set(|state| state.withheld.take()) {
                Some(refusal) => Err(refusal),
                None => self.carry_out(index, &command),
            }),
            Payload::Noop => Outcome::Noop,
        };
        let committed = Committed { index, outcome };
        self.set(|state| state.outcomes.insert(proposal.request_id, committed.clone()));
        Ok(committed)
    }

    async fn query(&self, query: Query) -> Result<Answer, ReadError> {
        self.set(|state| {
            state.queries.push(query.clone());
            match &state.refuse_read {
                Some(error) => Err(error.clone()),
                None => Ok(Answer {
                    results: vec![state.rows.clone().unwrap_or_else(|| Ok(Rows::default()))],
                    applied: LogIndex(7),
                    age: Some(Duration::from_millis(3)),
                }),
            }
        })
    }

    fn overview(&self) -> watch::Receiver<Arc<Overview>> {
        self.0.overview.subscribe()
    }

    fn routing(&self) -> watch::Receiver<Arc<RoutingTable>> {
        self.0.routing.subscribe()
    }

    fn access(&self) -> watch::Receiver<AccessView> {
        self.0.access.subscribe()
    }

    async fn audit(&self, after: u64, limit: u32, _: Duration) -> Result<AuditPage, ReadError> {
        self.set(|state| {
            let later = state.audit.iter().filter(|link| link.entry.seq > after);
            let links = later.take(limit as usize).cloned().collect();
            Ok(AuditPage { links, head: state.cluster.access.audit })
        })
    }

    fn link(&self) -> watch::Receiver<bool> {
        self.0.link.subscribe()
    }

    fn try_link(&self) -> Result<(), String> {
        self.set(|state| state.no_link.clone()).map_or(Ok(()), Err)
    }

    fn gateway_report(&self, report: GatewayReport) {
        self.set(|state| state.reports.push(report));
    }

    async fn open_log(&self, of: LogOf, from: LogFrom, bytes_max: usize) -> Result<(LogChunk, FakeLog), LogError> {
        match of {
            LogOf::Replica(replica) if replica == ReplicaId::from_u128(9) => {}
            LogOf::Node(node) if node == NodeId::from_u128(2) => {}
            LogOf::Node(node) if node == NodeId::from_u128(3) => {
                return Err(LogError::Unreachable { nodes: vec!["n3".into()], why: "no route".into() });
            }
            of => return Err(LogError::Unknown(of)),
        }
        let mut log = FakeLog(self.clone());
        self.set(|state| state.logs_open += 1);
        Ok((log.read(from, bytes_max).await?, log))
    }

    fn policy(&self) -> Policy {
        self.set(|state| state.policy.clone()).unwrap_or(Policy { minimum_nodes: 1, pages: Pages::Own })
    }

    async fn explain(&self, service: ServiceName, _: Duration) -> Result<Option<ExplanationView>, ReadError> {
        let known = self.0.overview.borrow().services.iter().any(|known| known.name == service);
        let held = vec!["no node can take it".to_owned()];
        let (mode, want) = (Mode::Replicated, 2);
        let half = Amount { cpu_millis: 500, memory_bytes: 1 << 28 };
        let (lost, fit, fit_then) = (Some("n2".to_owned()), 4, 2);
        let room = Some(RoomView { each: half, replicas: 2, free: half, fit, lost, free_then: half, fit_then });
        let (running, searches, without) = (vec![], vec![], vec![]);
        let (roles, stopped, next) = (None, None, None);
        let view =
            ExplanationView { service, mode, want, roles, running, searches, without, room, stopped, next, held };
        Ok(known.then_some(view))
    }

    async fn autoscale(&self, service: ServiceName, _: Duration) -> Result<Option<AutoscaleView>, ReadError> {
        let overview = self.0.overview.borrow().clone();
        let Some(known) = overview.services.iter().find(|known| known.name == service) else { return Ok(None) };
        let (on, table) = (known.spec.autoscaled().is_some(), known.spec.autoscale.clone());
        Ok(Some(AutoscaleView { service, on, want: known.want, table, found: None }))
    }

    async fn history(&self, service: ServiceName, _: Duration) -> Result<Option<HistoryView>, ReadError> {
        let known = self.0.overview.borrow().services.iter().any(|known| known.name == service);
        Ok(known.then_some(HistoryView { service, version: 1, versions: vec![] }))
    }

    async fn what_if_kill(&self, node: NodeId, _: Duration) -> Result<ForecastView, ReadError> {
        let moves = vec![MoveView { name: "web.0".into(), from: Some("n2".into()), to: None }];
        Ok(ForecastView { node: node.to_string(), moves, roles: vec![], held: vec![] })
    }

    async fn to_rebalance(&self, moves_max: usize, _: Duration) -> Result<RebalanceView, ReadError> {
        let (id, service, why) =
            (ReplicaId::from_u128(7), ServiceName::new("web").unwrap(), "2 fewer run there".into());
        let one = ShiftView { id, service, name: "web.0".into(), from: "n2".into(), to: "n1".into(), why };
        Ok(RebalanceView { moves: vec![one; moves_max.min(1)], under_way: vec![], left_out: vec![] })
    }

    async fn drill_forecast(&self, node: NodeId, away: Option<Span>, _: Duration) -> Result<DrillForecast, ReadError> {
        let (node, away) = (node.to_string(), away.unwrap_or(Span::from_secs(20)));
        let (services, moves, roles, held) = (vec![], vec![], vec![], vec![]);
        Ok(DrillForecast { node, leads: false, away, services, moves, roles, held, refused: None })
    }

    async fn transfer_leadership(&self, to: NodeId, patience: Duration) -> Result<(), TransferError> {
        if to == NodeId::from_u128(3) {
            return Err(TransferError::NotTaken(to, patience));
        }
        Ok(())
    }

    fn members(&self) -> watch::Receiver<Arc<MembersView>> {
        self.0.members.subscribe()
    }

    fn invite(&self) -> Result<Invitation, InviteError> {
        let number = self.set(|state| {
            state.invited += 1;
            state.invited
        });
        let commands = vec![format!("quorate join 192.0.2.7:7000/secret{number}/fingerprint")];
        Ok(Invitation { secret: SecretHash([number; 32]), commands })
    }

    /// Nothing of the value, so that whatever shows it elsewhere is at fault.
    fn seal(&self, _: &SecretName, value: &[u8]) -> Result<Sealed, SealRefused> {
        Ok(Sealed { sealed: format!("sealed {} bytes", value.len()), key: 1 })
    }

    async fn check_join(&self, request: JoinRequest, from: Option<IpAddr>) -> Result<JoinCheck, JoinError> {
        self.asked_to_join(request, from)?;
        Ok(JoinCheck {
            cluster: ClusterId::from_u128(1),
            cluster_name: "test".into(),
            node: NodeId::from_u128(9),
            answered_by: NodeId::from_u128(1),
            managers: vec![],
        })
    }

    async fn join(
        &self,
        request: JoinRequest,
        from: Option<IpAddr>,
        _: Actor,
        _: Duration,
    ) -> Result<JoinAnswer, JoinError> {
        self.asked_to_join(request, from)?;
        Ok(JoinAnswer {
            incarnation: 1,
            cluster: ClusterId::from_u128(1),
            cluster_name: "test".into(),
            node: NodeId::from_u128(9),
            roles: [Role::Manager].into(),
            managers: vec![],
            voters: 3,
            certificate: "pem".into(),
            authorities: "pem".into(),
            admitted_managers: 2,
            gossip_keys: None,
            for_managers: None,
        })
    }

    fn leave(&self) {
        self.set(|state| state.left = true);
    }
}

fn overview() -> Overview {
    let node = |number: u128, mode| NodeView {
        id: NodeId::from_u128(number),
        name: format!("n{number}"),
        state: NodeState::Joined,
        mode: Some(mode),
        roles: [Role::Manager].into(),
        api: format!("http://127.0.0.1:800{number}"),
        link: format!("127.0.0.1:810{number}"),
        generation: 1,
        since: WallTime(1),
        lag: Some(0),
        replicas: 1,
        alias: None,
        standing: Some(Standing::Voter),
        clock_ahead_us: None,
        applied: Some(LogIndex(0)),
        version: Some("0.0.0".into()),
        labels: [("zone".to_owned(), format!("z{number}"))].into(),
        attributes: BTreeMap::new(),
        availability: Availability::Open,
        drain_deadline: None,
        log_dir: None,
        pending: None,
        capacity: None,
        reserved: Amount::default(),
        drivers: None,
    };
    Overview {
        sequence: 1,
        answered_by: "n1".into(),
        expelled_by: None,
        strangers: Vec::new(),
        cluster: ClusterView {
            id: ClusterId::from_u128(1),
            name: "test".into(),
            health: ClusterHealth::Healthy,
            summary: "3 of 3 managers, can lose 1".into(),
            leader: Some("n1".into()),
            term: 2,
            ha: true,
            electors: Some(ElectorsView {
                voters: 3,
                voters_joined: 3,
                can_lose: 1,
                can_lose_when_up: 1,
                voters_change: None,
                voters_next: None,
                manager_requires: None,
            }),
            failover: None,
            incarnation: 1,
            applied: LogIndex(0),
            digests_compared: 0,
            version: "0.0.0".into(),
        },
        nodes: vec![node(1, NodeMode::Active), node(2, NodeMode::Passive), node(3, NodeMode::Passive)],
        services: vec![service_view(&spec("web", 2), &ServiceName::new("web").unwrap())],
        gateways: vec![],
        vips: vec![],
        announced: None,
        events: (1..=3)
            .rev()
            .map(|index| EventView {
                index: LogIndex(index),
                at: WallTime(index),
                kind: "node-joined".into(),
                text: format!("event {index}"),
                node: None,
                service: None,
            })
            .collect(),
    }
}

fn spec(name: &str, replicas: u32) -> SpecDocument {
    serde_json::from_value(json!({"service": [{"name": name, "replicas": replicas, "command": ["./serve"]}]})).unwrap()
}

fn service_view(document: &SpecDocument, name: &ServiceName) -> ServiceView {
    let spec = document.services.iter().find(|spec| spec.name == *name).unwrap().clone();
    ServiceView {
        name: name.clone(),
        mode: Mode::Replicated,
        driver: Driver::Process,
        want: spec.replicas,
        healthy: 0,
        version: 1,
        routes: vec![],
        replicas: vec![],
        held: vec![],
        lease: None,
        stopped: None,
        next: None,
        deployment: None,
        spec,
    }
}

fn now() -> WallTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    WallTime(u64::try_from(since.as_micros()).unwrap())
}

fn api(fake: &Fake) -> Router {
    let options = ApiOptions {
        console_token: Some("secret".into()),
        node_name: "n1".into(),
        auth: AuthMode::Open,
        ..ApiOptions::default()
    };
    router(fake.clone(), options)
}

async fn send(fake: &Fake, request: Request<Body>) -> Response<Body> {
    let service = TowerToHyperService::new(api(fake));
    let response = service.call(request).await.unwrap();
    // Streams end with their router; here it outlives every answer.
    std::mem::forget(service);
    response
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn get(fake: &Fake, path: &str) -> (u16, String) {
    let response = send(fake, Request::get(path).body(Body::empty()).unwrap()).await;
    (response.status().as_u16(), text(response).await)
}

async fn post(fake: &Fake, path: &str, body: impl Into<Body>) -> (u16, String) {
    let response = send(fake, Request::post(path).body(body.into()).unwrap()).await;
    (response.status().as_u16(), text(response).await)
}

/// Status and code of a failure, which must say what to do.
fn code((status, body): &(u16, String)) -> String {
    let problem: crate::view::Problem = serde_json::from_str(body).unwrap();
    assert!(!problem.fix.is_empty() && !problem.message.is_empty(), "{body}");
    format!("{status} {}", problem.code)
}

fn parsed((status, body): (u16, String)) -> Json {
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn the_cluster_is_shown_whole_and_in_parts() {
    let fake = Fake::new();
    assert_eq!(parsed(get(&fake, "/v1/status").await), serde_json::to_value(overview()).unwrap());
    assert_eq!(parsed(get(&fake, "/v1/nodes").await)[2]["name"], "n3");
    assert_eq!(parsed(get(&fake, "/v1/services").await)[0]["name"], "web");
    assert_eq!(parsed(get(&fake, "/v1/services/web").await)["want"], 2);
    let missing = get(&fake, "/v1/services/wbe").await;
    assert_eq!(code(&missing), "404 unknown-service");
    assert!(missing.1.contains("did you mean `web`?"), "{}", missing.1);
}

#[tokio::test]
async fn a_path_that_is_no_text_is_a_failure_like_any_other() {
    let fake = Fake::new();
    for path in ["/v1/services/%ff", "/v1/replicas/%ff/log", "/ui/%ff"] {
        assert_eq!(code(&get(&fake, path).await), "400 bad-path", "{path}");
    }
    assert_eq!(code(&post(&fake, "/v1/services/%ff/scale", r#"{"replicas":1}"#).await), "400 bad-path");
}

#[tokio::test]
async fn events_are_those_after_an_index_newest_first() {
    let fake = Fake::new();
    let indexes =
        |events: Json| events.as_array().unwrap().iter().map(|e| e["index"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(indexes(parsed(get(&fake, "/v1/events").await)), [3, 2, 1]);
    assert_eq!(indexes(parsed(get(&fake, "/v1/events?after=1").await)), [3, 2]);
    assert_eq!(indexes(parsed(get(&fake, "/v1/events?after=1&limit=1").await)), [3]);
    for bad in ["limit=0", "limit=51", "after=x", "before=1"] {
        assert_eq!(code(&get(&fake, &format!("/v1/events?{bad}")).await), "400 bad-query", "{bad}");
    }
}

#[tokio::test]
async fn active_follows_the_leader_and_so_does_health_that_asks_for_a_quorum() {
    let fake = Fake::new();
    assert_eq!(get(&fake, "/v1/active").await.0, 200);
    assert_eq!(get(&fake, "/v1/health?quorum=1").await.0, 200);
    fake.change(|overview| overview.cluster.leader = Some("n2".into()));
    let other = get(&fake, "/v1/active").await;
    assert_eq!(code(&other), "503 not-active");
    assert!(other.1.contains("ask n2"), "{}", other.1);
    assert_eq!(get(&fake, "/v1/health?quorum=1").await.0, 200);
    fake.change(|overview| {
        overview.cluster.leader = None;
        overview.cluster.health = ClusterHealth::NoQuorum;
        overview.cluster.summary = "1 of 3 managers answers".into();
    });
    assert_eq!(code(&get(&fake, "/v1/active").await), "503 not-active");
    let health = get(&fake, "/v1/health?quorum=1").await;
    assert_eq!(code(&health), "503 no-quorum");
    assert!(health.1.contains("1 of 3 managers answers"));
    assert_eq!(get(&fake, "/v1/health").await.0, 200, "nobody asked for a quorum");
    for bad in ["quorum=2", "quorum=x", "quorums=1"] {
        assert_eq!(code(&get(&fake, &format!("/v1/health?{bad}")).await), "400 bad-query", "{bad}");
    }
}

#[tokio::test]
async fn z3_a_node_is_healthy_only_while_it_and_enough_others_are_joined() {
    let fake = Fake::new();
    let health = parsed(get(&fake, "/v1/health").await);
    assert_eq!((health["joined"].as_u64(), health["minimum_nodes"].as_u64()), (Some(3), Some(1)));
    fake.wants(3, Pages::Own);
    assert_eq!(get(&fake, "/v1/health").await.0, 200);
    fake.change(|overview| overview.nodes[2].state = NodeState::Unreachable);
    let few = get(&fake, "/v1/health").await;
    assert_eq!(code(&few), "503 too-few-nodes");
    assert!(few.1.contains("2 of 3 nodes are joined, as n1 sees it"), "{}", few.1);
    fake.wants(2, Pages::Own);
    assert_eq!(get(&fake, "/v1/health").await.0, 200, "the operator changed the minimum");
    fake.change(|overview| overview.nodes[0].state = NodeState::Down);
    assert_eq!(code(&get(&fake, "/v1/health").await), "503 not-joined");
    fake.change(|overview| overview.answered_by = "n4".into());
    let unknown = get(&fake, "/v1/health").await;
    assert!(unknown.1.contains("n4 is not joined, it is not known to the cluster yet"), "{}", unknown.1);
}

#[tokio::test]
async fn k3_a_page_of_a_passive_manager_is_the_active_ones_and_nothing_else_is_moved() {
    let fake = Fake::new();
    let target = async |path: &str| {
        let response = send(&fake, Request::get(path).body(Body::empty()).unwrap()).await;
        let location = response.headers().get("location").map(|to| to.to_str().unwrap().to_owned());
        (response.status().as_u16(), location)
    };
    let to = |url: &str| (307, Some(url.to_owned()));
    // The Active one shows its own pages, whatever is wanted.
    fake.wants(1, Pages::Active);
    assert_eq!(target("/ui/").await, (200, None));
    fake.change(|overview| overview.cluster.leader = Some("n2".into()));
    assert_eq!(target("/ui/").await, to("http://127.0.0.1:8002/ui/"));
    assert_eq!(target("/ui/nodes?sort=name").await, to("http://127.0.0.1:8002/ui/nodes?sort=name"));
    for other in ["/ui/app.js", "/v1/status", "/v1/health", "/v1/stream", "/_plugin/cluster/health", "/openapi.json"] {
        assert_eq!(target(other).await, (200, None), "{other}");
    }
    fake.wants(1, Pages::Balancer("https://lb.example.com/".into()));
    assert_eq!(target("/ui/").await, to("https://lb.example.com/ui/"));
    fake.wants(1, Pages::Own);
    assert_eq!(target("/ui/").await, (200, None));
    fake.wants(1, Pages::Active);
    fake.change(|overview| overview.cluster.leader = None);
    assert_eq!(target("/ui/").await, (200, None), "there is no Active");
}

/// Kuzzle's answer without the id that each one has.
async fn kuzzle(fake: &Fake, path: &str) -> (u16, Json) {
    let (status, body) = get(fake, &format!("/_plugin/cluster/{path}")).await;
    let mut body: Json = serde_json::from_str(&body).unwrap();
    assert_eq!(body["requestId"].take().as_str().unwrap().len(), 36);
    (status, body)
}

#[tokio::test]
async fn z3_old_clients_of_kuzzle_are_answered_as_they_expect() {
    let fake = Fake::new();
    let envelope = |action: &str, error: Json, result: Json| {
        json!({
            "requestId": null, "status": if error.is_null() { 200 } else { 404 }, "error": error,
            "controller": "cluster/cluster", "action": action, "collection": null, "index": null, "volatile": null,
            "result": result
        })
    };
    let node = |number: u32| {
        let link = format!("tcp://127.0.0.1:810{number}");
        json!({ "pub": link, "router": link, "ready": true })
    };
    assert_eq!(kuzzle(&fake, "health").await, (200, envelope("health", Json::Null, json!("ok"))));
    let all = json!({ "count": 3, "current": node(1), "pool": [node(2), node(3)] });
    assert_eq!(kuzzle(&fake, "status").await, (200, envelope("status", Json::Null, all)));
    fake.change(|overview| overview.nodes[1].state = NodeState::Down);
    let without = json!({ "count": 2, "current": node(1), "pool": [node(3)] });
    assert_eq!(kuzzle(&fake, "status").await, (200, envelope("status", Json::Null, without)));
    fake.wants(3, Pages::Own);
    let ko = json!({ "message": "ko", "status": 404, "why": "2 of 3 nodes are joined, as n1 sees it" });
    for action in ["health", "status"] {
        assert_eq!(kuzzle(&fake, action).await, (404, envelope(action, ko.clone(), Json::Null)));
    }
    let reset = post(&fake, "/_plugin/cluster/reset", "").await;
    assert_eq!(code(&reset), "404 unknown-path", "what does not exist is not pretended");
}

#[tokio::test]
async fn a_spec_says_what_it_does_to_each_service() {
    let fake = Fake::new();
    let toml = "[[service]]\nname = 'web'\nreplicas = 3\ncommand = ['./serve']\n\
                [[service]]\nname = 'api'\ncommand = ['./api']\n";
    let request = |path: &str, body: &str| {
        Request::post(path).header("content-type", "application/toml").body(Body::from(body.to_owned())).unwrap()
    };
    let planned = send(&fake, request("/v1/specs?plan=true", toml)).await;
    let planned = parsed((200, text(planned).await));
    assert_eq!(planned["services"][0]["action"], "update");
    assert_eq!(planned["services"][0]["differences"], json!([{"field": "replicas", "from": 2, "to": 3}]));
    assert_eq!(planned["services"][1]["action"], "create");
    assert_eq!(planned.get("index"), None);
    assert!(fake.set(|state| state.proposals.is_empty()), "a plan changes nothing");

    let applied = parsed((200, text(send(&fake, request("/v1/specs", toml)).await).await));
    assert_eq!(applied["services"], planned["services"]);
    assert_eq!(applied["index"], 1);
    let again = parsed((200, text(send(&fake, request("/v1/specs", toml)).await).await));
    assert_eq!(again["services"][0], json!({"service": "web", "action": "unchanged", "version": 1}));

    let broken = send(&fake, request("/v1/specs", "[[service]]\nnaem = 'x'\n")).await;
    let broken = (broken.status().as_u16(), text(broken).await);
    assert_eq!(code(&broken), "400 bad-spec");
    assert!(broken.1.contains("naem"), "{}", broken.1);
    assert_eq!(code(&post(&fake, "/v1/specs", "{").await), "400 bad-spec");
}

#[tokio::test]
async fn a_service_is_scaled_and_removed_by_name() {
    let fake = Fake::new();
    let scaled = parsed(post(&fake, "/v1/services/web/scale", r#"{"replicas": 5}"#).await);
    let half = json!({"cpu_millis": 500, "memory_bytes": 268_435_456});
    let room = json!({
        "each": half, "replicas": 2, "free": half, "fit": 4, "lost": "n2", "free_then": half, "fit_then": 2
    });
    assert_eq!(scaled, json!({"service": "web", "index": 1, "replicas": 5, "room": room}));
    assert_eq!(code(&post(&fake, "/v1/services/web/scale", r#"{"replicas": 0}"#).await), "422 invalid");
    assert_eq!(code(&post(&fake, "/v1/services/web/scale", r#"{"replica": 1}"#).await), "400 bad-json");
    let missing = post(&fake, "/v1/services/we/scale", r#"{"replicas": 1}"#).await;
    assert_eq!(code(&missing), "404 unknown-service");
    assert!(missing.1.contains("did you mean `web`?"), "{}", missing.1);
    let delete = |name: &str| Request::delete(format!("/v1/services/{name}")).body(Body::empty()).unwrap();
    assert_eq!(send(&fake, delete("web")).await.status(), 200);
    assert_eq!(send(&fake, delete("NoName")).await.status(), 404);
}

#[tokio::test]
async fn leadership_goes_to_a_node_by_name_or_id() {
    let fake = Fake::new();
    assert_eq!(parsed(post(&fake, "/v1/raft/transfer", r#"{"node": "n2"}"#).await), json!({"leader": "n2"}));
    let by_id = format!(r#"{{"node": "{}"}}"#, NodeId::from_u128(2));
    assert_eq!(parsed(post(&fake, "/v1/raft/transfer", by_id).await), json!({"leader": "n2"}));
    assert_eq!(code(&post(&fake, "/v1/raft/transfer", r#"{"node": "n9"}"#).await), "404 unknown-node");
    assert_eq!(code(&post(&fake, "/v1/raft/transfer", r#"{"node": "n3"}"#).await), "504 not-taken");
}

#[tokio::test]
async fn a_repeated_request_id_is_done_once_and_echoed() {
    let fake = Fake::new();
    let id = "7f1de2d3-7d53-4f5c-9f30-d5ab9b0b7d2e";
    let request =
        |path: &str, header: &str| Request::post(path).header(header, id).body(Body::from(r#"{"sql":"A"}"#)).unwrap();
    let first = send(&fake, request("/v1/db/exec", "Quorate-Request-Id")).await;
    assert_eq!(first.headers()["quorate-request-id"], id);
    let second = send(&fake, request("/v1/db/exec", "Idempotency-Key")).await;
    assert_eq!(second.headers()["quorate-request-id"], id);
    assert_eq!(text(first).await, text(second).await);
    assert_eq!(fake.set(|state| state.proposals.len()), 1);

    let other = Request::delete("/v1/services/web").header("Idempotency-Key", id).body(Body::empty()).unwrap();
    let other = send(&fake, other).await;
    assert_eq!(code(&(other.status().as_u16(), text(other).await)), "409 request-id-reused");
    let bad = Request::post("/v1/db/exec").header("Quorate-Request-Id", "7").body(Body::empty()).unwrap();
    let bad = send(&fake, bad).await;
    assert_eq!(code(&(bad.status().as_u16(), text(bad).await)), "400 bad-request-id");
    let fresh = send(&fake, Request::post("/v1/db/exec").body(Body::from("{")).unwrap()).await;
    assert_eq!(fresh.headers()["quorate-request-id"].len(), 36, "a failure names its id too");
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_announced_or_not() {
    let fake = Fake::new();
    let body = vec![b' '; (8 << 20) + 1];
    let refused = post(&fake, "/v1/db/exec", body.clone()).await;
    assert_eq!(code(&refused), "413 body-too-large");
    assert!(refused.1.contains("8388608"), "{}", refused.1);
    let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from(body))]);
    assert_eq!(code(&post(&fake, "/v1/specs", Body::from_stream(pieces)).await), "413 body-too-large");
}

#[tokio::test]
async fn unknown_paths_and_methods_point_to_the_description() {
    let fake = Fake::new();
    let unknown = get(&fake, "/v2/nothing").await;
    assert_eq!(code(&unknown), "404 unknown-path");
    assert!(unknown.1.contains("/openapi.json"));
    assert_eq!(code(&post(&fake, "/v1/status", "").await), "405 wrong-method");
    let (status, description) = get(&fake, "/openapi.json").await;
    assert_eq!((status, description.as_str()), (200, crate::openapi_document()));
}

#[tokio::test]
async fn a_foreign_page_cannot_reach_a_handler() {
    let fake = Fake::new();
    let request = |origin: &str, cookie: &str| {
        Request::delete("/v1/services/web")
            .header("host", "127.0.0.1:8001")
            .header("origin", origin)
            .header("cookie", cookie)
            .body(Body::empty())
            .unwrap()
    };
    let ours = "http://127.0.0.1:8001";
    assert_eq!(send(&fake, request("http://evil.example", "quorate_console=secret")).await.status(), 403);
    assert_eq!(send(&fake, request(ours, "quorate_console=guess")).await.status(), 403);
    assert!(fake.set(|state| state.proposals.is_empty()));
    assert_eq!(send(&fake, request(ours, "quorate_console=secret")).await.status(), 200);
    let wrong = Request::get("/v1/status").header("authorization", "Bearer no").body(Body::empty()).unwrap();
    assert_eq!(send(&fake, wrong).await.status(), 401);
    let rebound = Request::get("/v1/status").header("host", "evil.example").body(Body::empty()).unwrap();
    assert_eq!(send(&fake, rebound).await.status(), 403);
}

#[tokio::test]
async fn the_console_is_cached_by_its_content_and_opened_by_its_token() {
    let fake = Fake::new();
    let home = send(&fake, Request::get("/").body(Body::empty()).unwrap()).await;
    assert_eq!(home.headers()["location"], "/ui/");
    for (path, kind) in [
        ("/ui/", "text/html; charset=utf-8"),
        ("/ui/services/web", "text/html; charset=utf-8"),
        ("/ui/app.js", "text/javascript; charset=utf-8"),
        ("/ui/app.css", "text/css; charset=utf-8"),
        ("/ui/favicon.svg", "image/svg+xml"),
    ] {
        let first = send(&fake, Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!((first.status(), &first.headers()["content-type"]), (StatusCode::OK, &kind.parse().unwrap()));
        let policy = first.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'self'; ") && policy.ends_with("; frame-ancestors 'none'"), "{policy}");
        let etag = first.headers()["etag"].clone();
        let again = Request::get(path).header("if-none-match", etag).body(Body::empty()).unwrap();
        let again = send(&fake, again).await;
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(text(again).await, "");
        let stale = Request::get(path).header("if-none-match", "\"0\"").body(Body::empty()).unwrap();
        assert_eq!(send(&fake, stale).await.status(), StatusCode::OK);
    }
    assert_eq!(code(&get(&fake, "/ui/missing.js").await), "404 unknown-path");
    let opened = send(&fake, Request::get("/ui/?t=secret").body(Body::empty()).unwrap()).await;
    assert_eq!((opened.status(), &opened.headers()["location"]), (StatusCode::SEE_OTHER, &"/ui/".parse().unwrap()));
    assert_eq!(opened.headers()["set-cookie"], "quorate_console=secret; Path=/; HttpOnly; SameSite=Strict");
    let wrong = send(&fake, Request::get("/ui/?t=guess").body(Body::empty()).unwrap()).await;
    assert_eq!(wrong.status(), StatusCode::FORBIDDEN);
    assert!(!wrong.headers().contains_key("set-cookie"));
    assert!(text(wrong).await.contains("does not open the console"));
}

#[tokio::test]
async fn a_server_keeps_connections_open_and_ends_its_streams() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let shutdown = async move {
        ended.await.ok();
    };
    let open = ApiOptions { auth: AuthMode::Open, ..ApiOptions::default() };
    let server = tokio::spawn(serve(listener, Plain, Fake::new(), open, shutdown));
    let mut socket = TcpStream::connect(address).await.unwrap();
    let mut received = Vec::new();
    for answers in 1..=2 {
        let body = r#"["A"]"#;
        let head = format!("POST /db/execute HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", body.len());
        socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        read_until(&mut socket, &mut received, r#"{"results":[{"last_insert_id":1,"rows_affected":1}]}"#, answers)
            .await;
    }
    let answers = String::from_utf8(received.clone()).unwrap();
    assert!(answers.contains("content-length: 52\r\n") && !answers.contains("transfer-encoding"), "{answers}");
    let stream = format!("GET /v1/stream HTTP/1.1\r\nHost: {address}\r\n\r\n");
    socket.write_all(stream.as_bytes()).await.unwrap();
    read_until(&mut socket, &mut received, "event: overview", 1).await;
    end.send(()).unwrap();
    tokio::time::timeout(SOON, socket.read_to_end(&mut received)).await.unwrap().unwrap();
    tokio::time::timeout(SOON, server).await.unwrap().unwrap();
}

async fn read_until(socket: &mut TcpStream, received: &mut Vec<u8>, text: &str, times: usize) {
    while String::from_utf8_lossy(received).matches(text).count() < times {
        let mut piece = [0; 4096];
        let length = tokio::time::timeout(SOON, socket.read(&mut piece)).await.unwrap().unwrap();
        assert_ne!(length, 0, "{}", String::from_utf8_lossy(received));
        received.extend_from_slice(&piece[..length]);
    }
}

#[test]
fn every_native_path_is_described() {
    let document: Json = serde_json::from_str(crate::openapi_document()).unwrap();
    let described: Vec<&str> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    let mut served: Vec<&str> = native::<Fake>().into_iter().map(|route| route.path).collect();
    served.sort_unstable();
    assert_eq!(described, served);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
}

#[tokio::test]
async fn a_method_is_served_if_and_only_if_it_is_described() {
    let fake = Fake::new();
    let document: Json = serde_json::from_str(crate::openapi_document()).unwrap();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in ["get", "post", "put", "patch", "delete"] {
            let request = Request::builder().method(method.to_uppercase().as_str()).uri(path.replace(['{', '}'], ""));
            let status = send(&fake, request.body(Body::empty()).unwrap()).await.status();
            let served = status != StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(served, methods.get(method).is_some(), "{method} {path}");
        }
    }
}

#[test]
fn the_committed_description_is_the_generated_one() {
    expect_file!["../../../docs/reference/openapi.json"].assert_eq(crate::openapi_document());
}
