//! The cluster's decided state and how it changes.
//!
//! `decide` reads, `absorb` writes: [`ClusterState::decide`] turns a command into a list of
//! [`Change`]s or a [`Refusal`] without touching anything; [`ClusterState::absorb`] carries changes
//! out without deciding anything. The apply thread does both and writes the changes as rows; the
//! core and the API only absorb. So there is one state machine, run once, and mirrors of it.
//!
//! # Invariants
//! - A change is complete: it holds the new record, not a difference.
//! - A node's generation only grows, and a service's version means one program.
//! - A replica's service and node exist, or its node did when it was placed.
//! - `planned_on` is the index of the last entry that changed anything a plan depends on.

use crate::access::name::ExternalName;
use crate::access::{AccessChange, AccessCommand, AccessState};
use crate::assignment::{AssignedLease, AssignedReplica, Assignment, Phase};
use crate::attribute::Attributes;
use crate::command::{Command, Refusal};
use crate::deployment::{Deployment, VersionRecord};
use crate::drill::DrillRecord;
use crate::event::{Event, Happening};
use crate::external::ExternalRecord;
use crate::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use crate::lease::LeaseRecord;
use crate::member::{MemberChange, Members, NotAdmitted, Vote};
use crate::place::Availability;
use crate::spec::{RouteSpec, ServiceSpec};
use crate::stopped::Stopped;
use crate::time::WallTime;
use crate::trust::{KeyRecord, TrustState};
use crate::vip::VipRecord;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

mod applied;
mod steps;

/// Events kept in memory and in the database. Older ones are forgotten.
pub const EVENTS_KEPT: usize = 2_000;

/// Everything that the cluster has decided.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ClusterState {
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    pub services: BTreeMap<ServiceName, ServiceRecord>,
    pub replicas: BTreeMap<ReplicaId, ReplicaRecord>,
    /// Who may run what runs once; kept when the service is gone, so that epochs only grow.
    pub leases: BTreeMap<ServiceName, LeaseRecord>,
    /// The last versions of each service, by number.
    pub versions: BTreeMap<ServiceName, BTreeMap<u64, VersionRecord>>,
    /// The newest update of each service.
    pub deployments: BTreeMap<ServiceName, Deployment>,
    /// Virtual addresses of gateways.
    pub vips: BTreeMap<IpAddr, VipRecord>,
    /// Systems that services use and that Quorate does not run.
    pub externals: BTreeMap<ExternalName, ExternalRecord>,
    /// The last drills, by number.
    pub drills: BTreeMap<u64, DrillRecord>,
    /// Tokens, quota, and who was expelled.
    pub members: Members,
    /// Newest last.
    pub events: VecDeque<Event>,
    /// The cluster's own keys.
    pub trust: TrustState,
    /// Shared with those who ask it at each request; copied when it changes.
    pub access: Arc<AccessState>,
    /// A plan made on this state names this index; see [`Command::CarryOut`].
    pub planned_on: LogIndex,
}

/// Who a node is and where it can be reached; it says so itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    pub id: NodeId,
    pub name: String,
    pub roles: BTreeSet<Role>,
    /// HOST:PORT of the API.
    pub api: String,
    /// HOST:PORT of the node link.
    pub link: String,
    /// The host under which its replicas are reached.
    pub host: String,
}

/// What a node does for the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Manager,
    Worker,
    Gateway,
}

/// A node as decided by the majority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    #[serde(flatten)]
    pub identity: NodeIdentity,
    pub health: Health,
    /// Since when it has this health.
    pub since: WallTime,
    /// Grows by one at each start of the node; 0 until its first.
    pub generation: u64,
    pub boot: u64,
    /// Another name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Whether it is to vote, for a manager.
    #[serde(default)]
    pub vote: Vote,
    /// The cluster decides its roles; what the node says of them itself does not count any more.
    #[serde(default)]
    pub roles_set: bool,
    /// It is to go for ever: its vote is taken away first, then it is cut off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expelling: bool,
    /// Its server, in the run with this [`boot`](Self::boot), is to end and begin anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<u64>,
    /// Its server is about to end and not to come back at once: what runs once is brought elsewhere before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub handing_over: bool,
    /// What an operator says of it, for services to be placed by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What it takes of services.
    #[serde(default)]
    pub availability: Availability,
    /// What resource agents there say of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: Attributes,
}

/// The decided health of a node. *Unreachable* is an opinion of those who look at it, and not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    Joined,
    /// A majority of managers has not heard from it: its replicas are replaced.
    Down,
    /// It stopped cleanly. People see it as removed; it may come back under its id.
    Left,
}

/// A service as wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRecord {
    pub spec: ServiceSpec,
    pub routes: Vec<RouteSpec>,
    /// Another number when anything changes but how many replicas there are, where and how they are replaced:
    /// a new one, or that of a version that it goes back to. Replicas of other versions are replaced.
    pub version: u64,
    /// It keeps what it is to be, and none of it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
    /// The moment of its schedule that was carried out last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moment: Option<WallTime>,
}

/// A replica as decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    pub id: ReplicaId,
    pub service: ServiceName,
    pub ordinal: u32,
    pub node: NodeId,
    pub phase: Phase,
    /// The service's version that it runs, and the spec of that version.
    pub version: u64,
    pub spec: ServiceSpec,
    /// When it was placed, retired or released last.
    pub since: WallTime,
    /// The log entry that changed it last.
    pub revision: LogIndex,
    /// The lease that it holds, or held; for what runs once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<AssignedLease>,
    /// It is to be brought to another node, because somebody asked for balance.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moving: bool,
}

/// One record's new value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Change {
    Node(NodeRecord),
    Service(ServiceRecord),
    ServiceGone { service: ServiceName },
    Replica(ReplicaRecord),
    ReplicaGone { replica: ReplicaId },
    Lease(LeaseRecord),
    Version(VersionRecord),
    VersionGone { service: ServiceName, version: u64 },
    Deployment(Deployment),
    Vip(VipRecord),
    VipGone { address: IpAddr },
    External(Box<ExternalRecord>),
    ExternalGone { external: ExternalName },
    Drill(Box<DrillRecord>),
    DrillGone { drill: u64 },
    Member(MemberChange),
    Event(Event),
    Access(AccessChange),
    Trust(KeyRecord),
}

impl Change {
    /// Whether plans depend on it.
    #[must_use]
    pub fn moves_plans(&self) -> bool {
        match self {
            Change::Node(_)
            | Change::Service(_)
            | Change::ServiceGone { .. }
            | Change::Replica(_)
            | Change::ReplicaGone { .. }
            | Change::Lease(_)
            | Change::Version(_)
            | Change::VersionGone { .. }
            | Change::Deployment(_)
            | Change::Member(MemberChange::NodeGone { .. }) => true,
            // A routing table of before and one of after differ: gateways take the one with the later revision.
            Change::Vip(_) | Change::VipGone { .. } => true,
            // Replicas are assigned with what they need to reach theirs.
            Change::External(_) | Change::ExternalGone { .. } => true,
            Change::Member(_) | Change::Event(_) | Change::Access(_) | Change::Trust(_) => false,
            Change::Drill(_) | Change::DrillGone { .. } => false,
        }
    }
}

impl ClusterState {
    /// What `command`, as log entry `index` of time `now`, changes. Changes nothing itself.
    ///
    /// An empty list is success too: the command found everything as it wants it.
    ///
    /// # Errors
    /// [`Refusal`] when the command cannot be carried out; the state stays as it is.
    pub fn decide(&self, index: LogIndex, now: WallTime, command: &Command) -> Result<Vec<Change>, Refusal> {
        let mut changes = Changes { index, now, list: Vec::new() };
        match command {
            Command::RegisterNode { node, boot } => self.register(&mut changes, node, *boot)?,
            Command::ChangeHealth { node, generation, health, at } => {
                self.change_health(&mut changes, *node, *generation, *health, *at)?;
            }
            Command::ApplySpec { document } => self.apply_spec(&mut changes, document)?,
            Command::ScaleService { service, replicas } => self.scale(&mut changes, service, *replicas)?,
            Command::RestartService { service } => {
                self.restart(&mut changes, self.service(service)?);
            }
            Command::Rebalance { replicas } => self.rebalance(&mut changes, replicas),
            Command::RemoveService { service } => {
                self.service(service)?;
                changes.list.push(Change::ServiceGone { service: service.clone() });
                changes.event(Happening::ServiceRemoved { service: service.clone() });
            }
            Command::RollBackService { service, to } => self.roll_back(&mut changes, service, *to)?,
            Command::Activate { service, node } => self.activate(&mut changes, service, *node)?,
            Command::ContinueUpdate { service } => self.continue_update(&mut changes, service)?,
            Command::AbortUpdate { service } => self.abort_update(&mut changes, service)?,
            Command::Autoscale(command) => self.decide_autoscale(&mut changes, command)?,
            Command::Switch(command) => self.decide_switch(&mut changes, command)?,
            Command::Reconfigure { settings } => self.reconfigure(&mut changes, settings)?,
            Command::Member(command) => self.decide_member(&mut changes, command)?,
            Command::CarryOut { expected, steps } => self.carry_out(&mut changes, *expected, steps)?,
            Command::Lease(command) => self.decide_lease(&mut changes, command),
            Command::Vip(command) => self.decide_vip(&mut changes, command)?,
            Command::External(command) => self.decide_external(&mut changes, command)?,
            Command::Drill(command) => self.decide_drill(&mut changes, command)?,
            Command::Record { at, what } => {
                changes.list.push(Change::Event(Event { index, at: *at, what: what.clone() }));
            }
            Command::Trust(command) => self.decide_trust(&mut changes, command)?,
            Command::Withheld { why } => return Err(why.clone()),
            Command::ServiceToken { replica, hash } => changes.list.extend(self.hand_out(*replica, *hash)?),
            Command::Access(command) => {
                self.sealed_well(command).map_err(Refusal::Access)?;
                let decided = self.access.decide(now, command).map_err(Refusal::Access)?;
                changes.list.extend(decided.into_iter().map(Change::Access));
                if let AccessCommand::SetSecret { name, .. } = command {
                    self.restart_for_secret(&mut changes, name);
                }
            }
        }
        self.take_tokens_back(&mut changes.list);
        Ok(changes.list)
    }

    /// Carries out what [`decide`](Self::decide) found for entry `index`.
    pub fn absorb(&mut self, index: LogIndex, changes: &[Change]) {
        for change in changes {
            if change.moves_plans() {
                self.planned_on = index;
            }
            match change.clone() {
                Change::Node(node) => {
                    self.nodes.insert(node.identity.id, node);
                }
                Change::Service(service) => {
                    self.services.insert(service.spec.name.clone(), service);
                }
                Change::ServiceGone { service } => {
                    self.services.remove(&service);
                    self.versions.remove(&service);
                    self.deployments.remove(&service);
                }
                Change::Version(record) => {
                    self.versions.entry(record.service.clone()).or_default().insert(record.version, record);
                }
                Change::VersionGone { service, version } => {
                    self.versions.entry(service).or_default().remove(&version);
                }
                Change::Deployment(deployment) => {
                    self.deployments.insert(deployment.service.clone(), deployment);
                }
                Change::Replica(replica) => {
                    self.replicas.insert(replica.id, replica);
                }
                Change::ReplicaGone { replica } => {
                    self.replicas.remove(&replica);
                }
                Change::Lease(lease) => {
                    self.leases.insert(lease.name.clone(), lease);
                }
                Change::Vip(vip) => {
                    self.vips.insert(vip.address.ip(), vip);
                }
                Change::VipGone { address } => {
                    self.vips.remove(&address);
                }
                Change::External(record) => {
                    self.externals.insert(record.external.name.clone(), *record);
                }
                Change::ExternalGone { external } => {
                    self.externals.remove(&external);
                }
                Change::Drill(drill) => {
                    self.drills.insert(drill.id, *drill);
                }
                Change::DrillGone { drill } => {
                    self.drills.remove(&drill);
                }
                Change::Member(change) => self.absorb_member(change),
                Change::Event(event) => {
                    self.events.push_back(event);
                    if self.events.len() > EVENTS_KEPT {
                        self.events.pop_front();
                    }
                }
                Change::Access(change) => Arc::make_mut(&mut self.access).absorb(change),
                Change::Trust(record) => {
                    self.trust.keys.insert(record.kind, record);
                }
            }
        }
    }

    /// What `node` is to run.
    #[must_use]
    pub fn assignment(&self, node: NodeId) -> Assignment {
        let mine = || self.replicas.values().filter(move |replica| replica.node == node);
        let scrape = |replica: &ReplicaRecord| {
            let autoscale = self.services.get(&replica.service)?.spec.autoscaled()?;
            Some((replica.service.clone(), autoscale.scrape.clone()?))
        };
        Assignment {
            node,
            revision: self.planned_on,
            scrapes: mine().filter_map(scrape).collect(),
            replicas: mine()
                .map(|replica| AssignedReplica {
                    replica: replica.id,
                    ordinal: replica.ordinal,
                    spec: replica.spec.clone(),
                    phase: replica.phase,
                    lease: replica.lease,
                    externals: self.externals_of(replica.spec.externals.iter()),
                })
                .collect(),
        }
    }

    /// # Errors
    /// [`Refusal::UnknownService`], with the nearest name that exists.
    pub fn service(&self, name: &ServiceName) -> Result<&ServiceRecord, Refusal> {
        self.services.get(name).ok_or_else(|| Refusal::UnknownService {
            service: name.clone(),
            similar: self
                .services
                .keys()
                .map(|other| (strsim::damerau_levenshtein(other.as_str(), name.as_str()), other))
                .filter(|(distance, _)| *distance <= 2)
                .min()
                .map(|(_, other)| other.clone()),
        })
    }

    fn register(&self, changes: &mut Changes, node: &NodeIdentity, boot: u64) -> Result<(), Refusal> {
        let not_admitted = |why| Refusal::NotAdmitted { why };
        if self.members.expelled.contains(&node.id) {
            return Err(not_admitted(NotAdmitted::Expelled { node: node.id }));
        }
        let known = self.nodes.get(&node.id);
        let identity = match known {
            Some(known) => known.registered(node),
            None => node.clone(),
        };
        if known.is_some_and(|known| known.boot == boot && known.identity == identity && known.health == Health::Joined)
        {
            return Ok(());
        }
        self.find_seat(&identity, changes.now).map_err(not_admitted)?;
        changes.list.push(Change::Node(NodeRecord {
            identity,
            health: Health::Joined,
            since: changes.now,
            generation: known.map_or(1, |known| known.generation + 1),
            boot,
            alias: known.and_then(|known| known.alias.clone()),
            vote: known.map_or(Vote::Auto, |known| known.vote),
            roles_set: known.is_some_and(|known| known.roles_set),
            expelling: known.is_some_and(|known| known.expelling),
            restart: None,
            handing_over: false,
            labels: known.map(|known| known.labels.clone()).unwrap_or_default(),
            availability: known.map(|known| known.availability).unwrap_or_default(),
            attributes: known.map(|known| known.attributes.clone()).unwrap_or_default(),
        }));
        // A node that was admitted has joined already; this is only its first start.
        match known {
            None => changes.event(Happening::NodeJoined { node: node.id }),
            Some(known) if known.generation == 0 => {}
            Some(_) => changes.event(Happening::NodeReturned { node: node.id }),
        }
        Ok(())
    }

    fn change_health(
        &self,
        changes: &mut Changes,
        node: NodeId,
        generation: u64,
        health: Health,
        at: WallTime,
    ) -> Result<(), Refusal> {
        let known = self.nodes.get(&node).ok_or(Refusal::UnknownNode { node })?;
        // A node that left was not lost, and only itself brings it back.
        if known.generation != generation || known.health == health || known.health == Health::Left {
            return Ok(());
        }
        let mut record = NodeRecord { health, since: at, ..known.clone() };
        if health != Health::Joined {
            record.forget();
        }
        changes.list.push(Change::Node(record));
        let what = match health {
            Health::Down => Happening::NodeDown { node },
            Health::Joined => Happening::NodeReturned { node },
            Health::Left => Happening::NodeLeft { node },
        };
        changes.list.push(Change::Event(Event { index: changes.index, at, what }));
        Ok(())
    }
}

impl NodeRecord {
    /// A node in its first run, about which nobody has decided anything yet.
    #[must_use]
    pub fn started(identity: NodeIdentity, health: Health, since: WallTime) -> NodeRecord {
        NodeRecord {
            identity,
            health,
            since,
            generation: 1,
            boot: 1,
            alias: None,
            vote: Vote::Auto,
            roles_set: false,
            expelling: false,
            restart: None,
            handing_over: false,
            labels: BTreeMap::new(),
            availability: Availability::Open,
            attributes: Attributes::new(),
        }
    }

    /// Whether its vote is wanted, if it has one, as far as is decided.
    #[must_use]
    pub fn may_vote(&self) -> bool {
        self.vote != Vote::Never && self.identity.roles.contains(&Role::Manager) && !self.expelling
    }

    /// What the node is when it says of itself that it is `identity`.
    #[must_use]
    pub fn registered(&self, identity: &NodeIdentity) -> NodeIdentity {
        let mut registered = identity.clone();
        if self.roles_set {
            registered.roles.clone_from(&self.identity.roles);
        }
        registered
    }
}

/// Changes of one entry while they are collected.
pub(crate) struct Changes {
    pub(crate) index: LogIndex,
    pub(crate) now: WallTime,
    pub(crate) list: Vec<Change>,
}

impl Changes {
    pub(crate) fn member(&mut self, change: MemberChange) {
        self.list.push(Change::Member(change));
    }

    pub(crate) fn event(&mut self, what: Happening) {
        self.list.push(Change::Event(Event { index: self.index, at: self.now, what }));
    }

    pub(crate) fn lease(&mut self, lease: LeaseRecord) {
        self.list.push(Change::Lease(lease));
    }

    /// A lease as this entry has changed it so far.
    pub(crate) fn leased(&self, name: &ServiceName) -> Option<&LeaseRecord> {
        self.list.iter().rev().find_map(|change| match change {
            Change::Lease(lease) if lease.name == *name => Some(lease),
            _ => None,
        })
    }

    /// A replica as this entry has changed it so far.
    pub(crate) fn replica(&self, id: ReplicaId) -> Option<&ReplicaRecord> {
        self.list.iter().rev().find_map(|change| match change {
            Change::Replica(replica) if replica.id == id => Some(replica),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Step;
    use crate::spec::{Format, parse};

    fn name(text: &str) -> ServiceName {
        ServiceName::new(text).unwrap()
    }

    fn apply(text: &str) -> Command {
        Command::ApplySpec { document: parse(text, Format::Toml).unwrap() }
    }

    fn register(boot: u64) -> Command {
        let node = NodeIdentity {
            id: NodeId::from_u128(1 << 64),
            name: "n1".into(),
            roles: BTreeSet::from([Role::Worker]),
            api: String::new(),
            link: String::new(),
            host: "127.0.0.1".into(),
        };
        Command::RegisterNode { node, boot }
    }

    /// Decides and absorbs; `false`: nothing changed.
    fn run(state: &mut ClusterState, index: u64, command: &Command) -> Result<bool, Refusal> {
        let changes = state.decide(LogIndex(index), WallTime(index), command)?;
        state.absorb(LogIndex(index), &changes);
        Ok(!changes.is_empty())
    }

    const WEB: &str = "[[service]]\nname = 'web'\ncommand = ['/bin/web']\n";

    #[test]
    fn a_service_gets_a_new_version_when_its_program_changes_and_not_when_it_is_scaled() {
        let mut state = ClusterState::default();
        run(&mut state, 1, &apply(WEB)).unwrap();
        run(&mut state, 2, &apply(&format!("{WEB}replicas = 3"))).unwrap();
        run(&mut state, 3, &Command::ScaleService { service: name("web"), replicas: 2 }).unwrap();
        assert_eq!(state.services[&name("web")].version, 1);
        run(&mut state, 4, &apply(&format!("{WEB}env = {{ A = '1' }}"))).unwrap();
        assert_eq!(state.services[&name("web")].version, 2);
    }

    #[test]
    fn a_restart_is_an_update_to_the_same_program() {
        let mut state = ClusterState::default();
        run(&mut state, 1, &apply(WEB)).unwrap();
        let before = state.services[&name("web")].clone();
        run(&mut state, 2, &Command::RestartService { service: name("web") }).unwrap();
        assert_eq!(state.services[&name("web")], ServiceRecord { version: 2, ..before });
        let unknown = run(&mut state, 3, &Command::RestartService { service: name("wbe") });
        assert!(matches!(unknown, Err(Refusal::UnknownService { similar: Some(_), .. })));
    }

    #[test]
    fn a_spec_that_is_applied_again_changes_nothing() {
        let mut state = ClusterState::default();
        assert!(run(&mut state, 1, &apply(WEB)).unwrap());
        assert!(!run(&mut state, 2, &apply(WEB)).unwrap());
        assert_eq!(state.planned_on, LogIndex(1));
    }

    #[test]
    fn a_refused_spec_changes_nothing() {
        let mut state = ClusterState::default();
        let refusal = run(&mut state, 1, &apply(&format!("{WEB}replicas = 0"))).unwrap_err();
        assert_eq!(refusal.to_string(), "`service.web.replicas` is 0; it must be 1 to 1000");
        assert_eq!(state, ClusterState::default());
    }

    #[test]
    fn a_route_belongs_to_one_service() {
        let mut state = ClusterState::default();
        run(&mut state, 1, &apply(&format!("{WEB}[[route]]\nservice = 'web'"))).unwrap();
        let other = "[[service]]\nname = 'api'\ncommand = ['x']\n[[route]]\nservice = 'api'";
        let refusal = run(&mut state, 2, &apply(other)).unwrap_err();
        assert_eq!(refusal.to_string(), "route */ on default already belongs to service `web`");
    }

    #[test]
    fn an_unknown_service_brings_the_nearest_name() {
        let mut state = ClusterState::default();
        run(&mut state, 1, &apply(WEB)).unwrap();
        let refusal = run(&mut state, 2, &Command::RemoveService { service: name("wbe") }).unwrap_err();
        assert_eq!(refusal.to_string(), "there is no service `wbe`; did you mean `web`?");
    }

    #[test]
    fn a_verdict_on_an_older_run_of_a_node_is_ignored() {
        let mut state = ClusterState::default();
        run(&mut state, 1, &register(1)).unwrap();
        run(&mut state, 2, &register(2)).unwrap();
        let node = NodeId::from_u128(1 << 64);
        let down = |generation| Command::ChangeHealth { node, generation, health: Health::Down, at: WallTime(0) };
        assert!(!run(&mut state, 3, &down(1)).unwrap());
        assert!(run(&mut state, 4, &down(2)).unwrap());
        assert_eq!(state.nodes[&node].health, Health::Down);
    }

    #[test]
    fn a_plan_made_before_a_change_is_refused_and_one_made_before_a_mere_event_is_not() {
        let mut state = ClusterState::default();
        run(&mut state, 1, &register(1)).unwrap();
        run(&mut state, 2, &apply(WEB)).unwrap();
        let node = NodeId::from_u128(1 << 64);
        let what = Happening::LeaderElected { node, term: crate::id::Term(1) };
        run(&mut state, 3, &Command::Record { at: WallTime(3), what }).unwrap();
        let replica = ReplicaId::from_u128(1);
        let steps = vec![Step::Place { replica, service: name("web"), ordinal: 0, node, version: None, epoch: None }];
        let stale = run(&mut state, 4, &Command::CarryOut { expected: LogIndex(1), steps: steps.clone() });
        assert_eq!(stale, Err(Refusal::StalePlan { expected: LogIndex(1), actual: LogIndex(2) }));
        assert!(run(&mut state, 5, &Command::CarryOut { expected: LogIndex(2), steps }).unwrap());
        assert_eq!(state.assignment(node).replicas[0].replica, replica);
    }

    #[test]
    fn a_new_value_of_a_secret_restarts_what_names_it_and_nothing_else() {
        let mut state = ClusterState::default();
        run(&mut state, 1, &register(1)).unwrap();
        run(&mut state, 2, &apply(&format!("{WEB}secrets = ['pg']"))).unwrap();
        run(&mut state, 3, &apply("[[service]]\nname = 'other'\ncommand = ['x']")).unwrap();
        let version = |state: &ClusterState, service: &str| state.services[&name(service)].version;
        assert_eq!((version(&state, "web"), version(&state, "other")), (1, 1));
        let secret = crate::access::name::SecretName::new("pg").unwrap();
        let set = AccessCommand::SetSecret { name: secret.clone(), sealed: "c2VhbGVk".into(), key: 1 };
        let needs = |state: &ClusterState| state.needs(&state.services[&name("web")].spec).unwrap();
        let before = needs(&state);
        assert_eq!(before.secrets[&secret], None, "there is none yet");
        run(&mut state, 4, &Command::Access(set.clone())).unwrap();
        assert_ne!(needs(&state).key(), before.key());
        assert_eq!((version(&state, "web"), version(&state, "other")), (2, 1));
        // The same version of another secret of this name is another value.
        let first = needs(&state);
        run(&mut state, 5, &Command::Access(AccessCommand::RemoveSecret { name: secret })).unwrap();
        run(&mut state, 6, &Command::Access(set)).unwrap();
        assert_ne!(needs(&state).key(), first.key());

        let node = NodeId::from_u128(1 << 64);
        assert_eq!(state.secrets_by_node()[&node].len(), 1);
        run(&mut state, 7, &Command::RemoveService { service: name("web") }).unwrap();
        assert!(state.secrets_by_node().is_empty(), "nobody may have it any more");
    }

    #[test]
    fn a_replica_passes_its_phases_in_order() {
        let mut state = ClusterState::default();
        run(&mut state, 1, &register(1)).unwrap();
        run(&mut state, 2, &apply(WEB)).unwrap();
        let (replica, node) = (ReplicaId::from_u128(1), NodeId::from_u128(1 << 64));
        let mut step = |index: u64, step: Step| {
            let expected = state.planned_on;
            run(&mut state, index, &Command::CarryOut { expected, steps: vec![step] }).unwrap();
            state.replicas.get(&replica).map(|replica| replica.phase)
        };
        assert_eq!(
            step(3, Step::Place { replica, service: name("web"), ordinal: 0, node, version: None, epoch: None }),
            Some(Phase::Run)
        );
        assert_eq!(step(4, Step::Release { replica }), Some(Phase::Run));
        assert_eq!(step(5, Step::Retire { replica }), Some(Phase::Drain));
        assert_eq!(step(6, Step::Release { replica }), Some(Phase::Stop));
        assert_eq!(step(7, Step::Retire { replica }), Some(Phase::Stop));
        assert_eq!(step(8, Step::Forget { replica }), None);
    }
}
