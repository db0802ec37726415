//! Joins what was decided with what is seen, for people and for gateways.

use super::drills;
use super::electors::{self, Electors};
use crate::config::NodeConfig;
use quorate_api::placement::Availability;
use quorate_api::updates::DeploymentView;
use quorate_api::view::{
    AnnouncedView, ClusterHealth, ClusterView, ElectorsView, EventView, FailoverView, GatewayView, JoinTokenView,
    LeaseView, MembersView, MomentView, NodeMode, NodeState, NodeView, Overview, PendingView, QuotaView, ReplicaView,
    ServiceView, StoppedView,
};
use quorate_api::vips::{CandidateState, CandidateView, VipView};
use quorate_model::access::policy::ANYONE;
use quorate_model::assignment::Phase;
use quorate_model::deployment::Stage as UpdateStage;
use quorate_model::event::{Event, Happening};
use quorate_model::id::{NodeId, ReplicaId, ServiceName};
use quorate_model::member::JoinToken;
use quorate_model::observed::{Part, ReplicaState, ReplicaStatus, TrustReport, VipState};
use quorate_model::place;
use quorate_model::resource::Amount;
use quorate_model::routing::{Candidate, Endpoint, EndpointState, OfferedVip, RoutingTable, Upstream};
use quorate_model::spec::{Autoscale, Mode, ServiceSpec, WithoutQuorum};
use quorate_model::state::{ClusterState, Health, NodeRecord, ReplicaRecord, Role, ServiceRecord};
use quorate_model::time::{Span, WallTime};
use quorate_model::trust::{KeyKind, Stage};
use quorate_model::vip::VipRecord;
use quorate_node::{Node, Now, Sight};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Events that an overview carries.
const EVENTS: usize = 50;

/// The cluster for people.
pub(super) fn overview(node: &Node, config: &NodeConfig, now: Now, sequence: u64) -> Overview {
    let scene = Scene { node, config, now };
    let nodes = scene.nodes();
    let services: Vec<ServiceView> = node.state().services.values().map(|service| scene.service(service)).collect();
    Overview {
        sequence,
        answered_by: config.node.name.clone(),
        cluster: scene.cluster(&nodes, &services),
        gateways: scene.gateways(),
        vips: scene.vips(),
        events: scene.events(),
        expelled_by: node.expelled_by().map(|by| scene.name(by)),
        strangers: scene.strangers(),
        nodes,
        services,
        announced: config.node.announced.as_ref().map(|announced| AnnouncedView {
            api: announced.api.to_string(),
            link: announced.link.to_string(),
            because: announced.because.clone(),
        }),
    }
}

/// The part of the state that says who belongs to the cluster, and which externals there are.
pub(super) fn known(node: &Node) -> ClusterState {
    let state = node.state();
    let (nodes, members, trust) = (state.nodes.clone(), state.members.clone(), state.trust.clone());
    ClusterState { nodes, members, trust, externals: state.externals.clone(), ..ClusterState::default() }
}

/// What nodes that are heard say that they prove themselves with.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Proofs {
    pub(super) leads: bool,
    pub(super) of: BTreeMap<NodeId, TrustReport>,
}

pub(super) fn proofs(node: &Node) -> Proofs {
    let heard = node.peers().iter().filter(|(id, _)| node.hears(**id));
    let of = heard.filter_map(|(id, peer)| Some((*id, peer.report.trust.clone()?))).collect();
    Proofs { leads: node.leads(), of }
}

/// Join tokens and the quota.
pub(super) fn members(node: &Node) -> MembersView {
    let state = node.state();
    let token = |token: &JoinToken| JoinTokenView {
        id: token.id,
        role: token.role,
        name: token.name.clone(),
        created: token.created,
        expires: token.expires,
        used_by: token.used.as_ref().map(|used| used.name.clone()),
        used_at: token.used.as_ref().map(|used| used.at),
    };
    let mut tokens: Vec<JoinTokenView> = state.members.tokens.values().map(token).collect();
    tokens.sort_by_key(|token| (token.created, token.id));
    let quota = state.members.quota.as_ref();
    let used = state.nodes.values().filter(|record| ClusterState::has_seat(record)).count();
    MembersView {
        tokens,
        quota: QuotaView {
            nodes: quota.map(|quota| quota.nodes),
            expires: quota.and_then(|quota| quota.expires),
            used: u32::try_from(used).unwrap_or(u32::MAX),
        },
        applied: node.applied(),
    }
}

/// Whether somebody should look after a node in this state. One that left did so by itself.
fn is_away(state: NodeState) -> bool {
    matches!(state, NodeState::Unreachable | NodeState::Down)
}

struct Scene<'a> {
    node: &'a Node,
    config: &'a NodeConfig,
    now: Now,
}

impl Scene<'_> {
    fn name(&self, id: NodeId) -> String {
        let known = self.node.state().nodes.get(&id).map(|record| record.identity.name.clone());
        let configured = || {
            let told = self.config.voters.iter().chain(&self.config.peers);
            told.into_iter().find(|node| node.id == id).map(|node| node.name.clone())
        };
        known.or_else(configured).unwrap_or_else(|| id.to_string())
    }

    fn strangers(&self) -> Vec<String> {
        let mut names: Vec<String> = self.node.strangers().into_iter().map(|stranger| self.name(stranger)).collect();
        names.sort_by_key(|name| natural(name));
        names
    }

    /// All nodes of a cluster speak TLS, or none does.
    fn url(&self, address: &str) -> String {
        if self.config.node.plain_http { format!("http://{address}") } else { format!("https://{address}") }
    }

    fn nodes(&self) -> Vec<NodeView> {
        let mut nodes: Vec<NodeView> = self.node.state().nodes.values().map(|record| self.node_view(record)).collect();
        nodes.sort_by_key(|node| natural(&node.name));
        nodes
    }

    fn node_view(&self, record: &NodeRecord) -> NodeView {
        let id = record.identity.id;
        let state = match (record.health, self.node.sight(id)) {
            // The second: why it is down, if it is; it said so itself.
            (Health::Left, _) | (Health::Joined | Health::Down, Sight::Left) => NodeState::Removed,
            (Health::Down, Sight::Present | Sight::Unreachable) => NodeState::Down,
            (Health::Joined, Sight::Present) => NodeState::Joined,
            (Health::Joined, Sight::Unreachable) => NodeState::Unreachable,
        };
        let leads = self.node.leader() == Some(id) && matches!(state, NodeState::Joined | NodeState::Unreachable);
        let is_manager = self.node.coordinates() && record.identity.roles.contains(&Role::Manager);
        let applied = if id == self.config.node.id {
            Some(self.node.applied())
        } else {
            self.node.peers().get(&id).filter(|_| self.node.hears(id)).map(|peer| peer.applied)
        };
        let running = self.node.state().replicas.values().filter(|r| r.node == id && r.phase == Phase::Run);
        NodeView {
            id,
            name: record.identity.name.clone(),
            state,
            mode: is_manager.then_some(if leads { NodeMode::Active } else { NodeMode::Passive }),
            roles: record.identity.roles.clone(),
            api: self.url(&record.identity.api),
            link: record.identity.link.clone(),
            generation: record.generation,
            since: self.since(record, state),
            lag: applied
                .filter(|_| self.node.coordinates())
                .map(|applied| self.node.committed().0.saturating_sub(applied.0)),
            replicas: u32::try_from(running.count()).unwrap_or(u32::MAX),
            alias: record.alias.clone(),
            standing: electors::standing(record, self.node.configuration()).filter(|_| is_manager),
            clock_ahead_us: self.node.clock_ahead(id, self.now),
            applied,
            version: self.version(id),
            labels: record.labels.clone(),
            attributes: record.attributes.iter().map(|(name, it)| (name.clone(), it.value.clone())).collect(),
            availability: match record.availability {
                place::Availability::Open => Availability::Open,
                place::Availability::Cordoned => Availability::Cordoned,
                place::Availability::Draining(_) => Availability::Draining,
            },
            drain_deadline: record.availability.drain().and_then(|drain| drain.deadline),
            log_dir: self.log_dir(id),
            pending: self.pending(id),
            capacity: self.node.peers().get(&id).and_then(|peer| peer.report.capacity),
            reserved: self.reserved(id),
            drivers: self.node.peers().get(&id).and_then(|peer| peer.report.drivers.clone()),
        }
    }

    /// What is set aside for the replicas on a node, in whatever phase.
    fn reserved(&self, node: NodeId) -> Amount {
        let here = self.node.state().replicas.values().filter(|replica| replica.node == node);
        here.fold(Amount::default(), |sum, replica| sum + replica.spec.resources.amount())
    }

    /// Since when the node is as it is. Nobody decides that one is unreachable: it is since its last word.
    fn since(&self, record: &NodeRecord, state: NodeState) -> WallTime {
        match self.node.peers().get(&record.identity.id) {
            Some(peer) if state == NodeState::Unreachable => {
                let ago = u64::try_from(self.now.mono.since(peer.at).as_micros()).unwrap_or(u64::MAX);
                WallTime(self.now.wall.0.saturating_sub(ago)).max(record.since)
            }
            _ => record.since,
        }
    }

    /// What it says now: who is away may have been given another file.
    fn pending(&self, id: NodeId) -> Option<PendingView> {
        let said =
            self.node.peers().get(&id).filter(|_| self.node.hears(id)).map(|peer| peer.report.pending.clone())?;
        (!said.is_empty()).then_some(PendingView { changes: said.changes, mistake: said.mistake })
    }

    /// Kept while a node is away, for whoever looks for it on its disk.
    fn log_dir(&self, id: NodeId) -> Option<String> {
        self.node.peers().get(&id).map(|peer| peer.report.log_dir.clone()).filter(|dir| !dir.is_empty())
    }

    /// Kept while a node is away: what was on it is what will be started there again.
    fn version(&self, id: NodeId) -> Option<String> {
        if id == self.config.node.id {
            return Some(env!("CARGO_PKG_VERSION").to_owned());
        }
        self.node.peers().get(&id).map(|peer| peer.report.version.clone()).filter(|version| !version.is_empty())
    }

    fn cluster(&self, nodes: &[NodeView], services: &[ServiceView]) -> ClusterView {
        let electors = Electors::of(self.node);
        let leader = self.node.leader().filter(|_| electors.can_decide);
        let away: Vec<&str> = nodes.iter().filter(|node| is_away(node.state)).map(|node| node.name.as_str()).collect();
        let short: Vec<String> = services
            .iter()
            .filter(|service| service.healthy < service.want)
            .map(|service| format!("{} {}/{}", service.name, service.healthy, service.want))
            .collect();
        let health = match leader {
            None => ClusterHealth::NoQuorum,
            Some(_) if away.is_empty() && short.is_empty() => ClusterHealth::Healthy,
            Some(_) => ClusterHealth::Degraded,
        };
        let ha = self.node.coordinates();
        let mut summary =
            if ha { format!("{} of {} managers", electors.joined, electors.voters) } else { "1 node".to_owned() };
        match health {
            ClusterHealth::NoQuorum if !ha => summary.push_str(": starting"),
            ClusterHealth::NoQuorum if !electors.can_decide => {
                let needed = electors.needed;
                summary.push_str(&format!(": no majority ({needed} needed), writes wait; start the others"));
            }
            ClusterHealth::NoQuorum => summary.push_str(": electing a leader"),
            ClusterHealth::Healthy | ClusterHealth::Degraded => {
                summary.push_str(&match electors.can_lose {
                    _ if !ha => String::new(),
                    0 => ", cannot lose another".to_owned(),
                    n => format!(", can lose {n}"),
                });
                if !away.is_empty() {
                    summary.push_str(&format!("; away: {}", away.join(", ")));
                }
                if !short.is_empty() {
                    summary.push_str(&format!("; too few replicas: {}", short.join(", ")));
                }
            }
        }
        ClusterView {
            id: self.config.cluster.id,
            name: self.config.cluster.name.clone(),
            health,
            summary,
            leader: leader.map(|id| self.name(id)),
            term: self.node.term().0,
            ha,
            electors: ha.then(|| ElectorsView {
                voters: electors.voters,
                voters_joined: electors.joined,
                can_lose: electors.can_lose,
                can_lose_when_up: electors.can_lose_when_up,
                voters_change: electors::change(self.node.configuration(), |id| self.name(id)),
                voters_next: electors::next(self.node, self.now),
                manager_requires: self.node.state().members.manager_requires,
            }),
            failover: self.node.state().members.failover,
            incarnation: self.node.state().incarnation(),
            applied: self.node.applied(),
            digests_compared: self.node.digests_compared(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    fn service(&self, service: &ServiceRecord) -> ServiceView {
        let spec = &service.spec;
        let mut replicas: Vec<ReplicaView> = self
            .node
            .state()
            .replicas
            .values()
            .filter(|replica| replica.service == spec.name)
            .map(|replica| self.replica(replica))
            .collect();
        replicas.sort_by_key(|replica| (replica.ordinal, replica.version, replica.id));
        let healthy = replicas.iter().filter(|replica| replica.state == "healthy").count();
        ServiceView {
            name: spec.name.clone(),
            mode: spec.mode,
            driver: spec.driver,
            want: self.node.state().wanted(service),
            healthy: u32::try_from(healthy).unwrap_or(u32::MAX),
            version: service.version,
            routes: service.routes.clone(),
            replicas,
            held: self
                .node
                .held()
                .iter()
                .filter(|held| held.service == spec.name)
                .map(|held| held.reason.to_string())
                .collect(),
            lease: spec.mode.has_lease().then(|| self.lease(spec)),
            stopped: service.stopped.as_ref().map(|stopped| StoppedView {
                since: stopped.at,
                by_schedule: stopped.by_schedule,
                by: stopped.by.clone().filter(|by| by != ANYONE),
            }),
            next: service.next_moment(self.now.wall).map(|moment| MomentView { at: moment.at, starts: moment.starts }),
            deployment: self.deployment(service),
            spec: spec.clone(),
        }
    }

    fn deployment(&self, service: &ServiceRecord) -> Option<DeploymentView> {
        let state = self.node.state();
        let deployment = state.deployments.get(&service.spec.name)?;
        let mine = state.replicas.values().filter(|replica| replica.service == service.spec.name);
        let new = mine.filter(|replica| replica.version == service.version && replica.phase == Phase::Run);
        let well = |replica: &&ReplicaRecord| {
            let status = status_of(self.node, replica.node, replica.id);
            self.node.hears(replica.node) && status.is_some_and(|status| status.state == ReplicaState::Healthy)
        };
        Some(DeploymentView {
            version: deployment.version,
            from: deployment.from,
            stage: deployment.stage,
            since: deployment.since,
            updated: u32::try_from(new.filter(well).count()).unwrap_or(u32::MAX),
            why: deployment.why.clone(),
            held: deployment.held.as_ref().map(|halt| halt.why.clone()),
        })
    }

    fn lease(&self, spec: &ServiceSpec) -> LeaseView {
        let state = self.node.state();
        let record = state.leases.get(&spec.name);
        let last = record.and_then(|record| record.last_failover);
        LeaseView {
            failover: state.failover(spec),
            holder: record.and_then(|record| record.holder).map(|holder| self.name(holder.node)),
            epoch: record.map_or(0, |record| record.epoch),
            keeps: record.map_or(spec.without_quorum == WithoutQuorum::Keep, |record| record.keeps),
            fenced: record.is_some_and(|record| record.fenced),
            last_failover: last.map(|last| FailoverView {
                from: self.name(last.from),
                to: self.name(last.to),
                took: last.took,
                at: last.at,
            }),
        }
    }

    fn replica(&self, replica: &ReplicaRecord) -> ReplicaView {
        let status = status_of(self.node, replica.node, replica.id);
        let heard = self.node.hears(replica.node);
        let state = match status {
            Some(status) if heard => match (replica.phase, status.state) {
                (Phase::Drain, ReplicaState::Healthy | ReplicaState::Unhealthy) => "draining".to_owned(),
                (_, state) => word(&state),
            },
            None if heard => "pending".to_owned(),
            Some(_) | None => "unknown".to_owned(),
        };
        let host = self.node.state().nodes.get(&replica.node).map(|record| record.identity.host.clone());
        let host = host.unwrap_or_default();
        ReplicaView {
            id: replica.id,
            ordinal: replica.ordinal,
            node: self.name(replica.node),
            node_id: replica.node,
            state,
            role: status.filter(|_| heard).and_then(|status| status.casting).map(|casting| word(&casting.part)),
            pid: status.and_then(|status| status.pid),
            addresses: status
                .map(|status| {
                    status.ports.iter().map(|(name, port)| (name.clone(), format!("{host}:{port}"))).collect()
                })
                .unwrap_or_default(),
            version: replica.version,
            restarts: status.map_or(0, |status| status.restarts),
            started_at: status.and_then(|status| status.started_at),
            detail: status.map(|status| status.detail.clone()).unwrap_or_default(),
            log_dir: status.map(|status| status.log_dir.clone()).unwrap_or_default(),
            usage: self.node.peers().get(&replica.node).and_then(|peer| peer.report.usage.get(&replica.id)).copied(),
        }
    }

    fn gateways(&self) -> Vec<GatewayView> {
        let heard = self.node.peers().iter().filter(|(id, _)| self.node.hears(**id));
        let mut gateways: BTreeMap<&str, GatewayView> = BTreeMap::new();
        for (id, peer) in heard {
            for gateway in &peer.report.gateways {
                let view = GatewayView {
                    name: gateway.gateway.clone(),
                    url: gateway.url.clone(),
                    fed_by: self.name(*id),
                    revision: gateway.revision,
                    requests: gateway.requests,
                    failed: gateway.failed,
                };
                // While a gateway moves from one manager to another, both may speak of it.
                let known = gateways.get(gateway.gateway.as_str());
                if known.is_none_or(|known| known.requests <= view.requests) {
                    gateways.insert(&gateway.gateway, view);
                }
            }
        }
        gateways.into_values().collect()
    }

    fn vips(&self) -> Vec<VipView> {
        self.node.state().vips.values().map(|vip| self.vip(vip)).collect()
    }

    fn vip(&self, vip: &VipRecord) -> VipView {
        let said = |node: NodeId| {
            let peer = self.node.peers().get(&node).filter(|_| self.node.hears(node))?;
            let reports = peer.report.gateways.iter().flat_map(|gateway| &gateway.vips);
            reports.filter(|report| report.address == vip.address.ip()).max_by_key(|report| report.epoch)
        };
        let candidate = |node: NodeId| {
            let said = said(node);
            CandidateView {
                node: self.name(node),
                state: said.map_or(CandidateState::Silent, |said| match said.state {
                    VipState::Holding => CandidateState::Holding,
                    VipState::Standby => CandidateState::Standby,
                    VipState::Unfit => CandidateState::Unfit,
                }),
                epoch: said.map_or(0, |said| said.epoch),
                detail: said.map(|said| said.detail.clone()).unwrap_or_default(),
            }
        };
        let candidates: Vec<CandidateView> = self.node.state().gateways_of(vip).into_iter().map(candidate).collect();
        let holding = candidates.iter().filter(|candidate| candidate.state == CandidateState::Holding);
        VipView {
            address: vip.address,
            interface: vip.interface.clone(),
            gateways: vip.gateways.clone(),
            holder: holding.max_by_key(|candidate| candidate.epoch).map(|candidate| candidate.node.clone()),
            candidates,
        }
    }

    /// The newest. Who became Active is no news of a node that is alone.
    fn events(&self) -> Vec<EventView> {
        let shown = |event: &&Event| self.node.coordinates() || !matches!(event.what, Happening::LeaderElected { .. });
        self.node.state().events.iter().rev().filter(shown).take(EVENTS).map(|event| self.event(event)).collect()
    }

    fn event(&self, event: &Event) -> EventView {
        let (node, service) = subject(&event.what);
        EventView {
            index: event.index,
            at: event.at,
            kind: serde_json::to_value(&event.what)
                .ok()
                .and_then(|value| value.get("kind").and_then(|kind| kind.as_str()).map(str::to_owned))
                .unwrap_or_default(),
            text: self.sentence(&event.what),
            node: node.map(|id| self.name(id)),
            service: service.cloned(),
        }
    }

    fn sentence(&self, what: &Happening) -> String {
        let short = |replica: &ReplicaId| replica.to_string().chars().take(8).collect::<String>();
        match what {
            Happening::NodeJoined { node } => format!("{} joined", self.name(*node)),
            Happening::NodeDown { node } => format!("{} is down: a majority does not hear it", self.name(*node)),
            Happening::NodeReturned { node } => format!("{} is back", self.name(*node)),
            Happening::NodeHandsOver { node } => {
                format!("{} is being stopped: what runs once there goes elsewhere first", self.name(*node))
            }
            Happening::NodeLeft { node } => format!("{} left: it was stopped cleanly", self.name(*node)),
            Happening::NodeExpelled { name, .. } => format!("{name} was removed for ever"),
            Happening::NodeOpened { node } => format!("{} takes replicas again", self.name(*node)),
            Happening::NodeCordoned { node } => format!("{} is cordoned: it takes no more replicas", self.name(*node)),
            Happening::NodeDraining { node } => {
                format!("{} is draining: its replicas are brought elsewhere", self.name(*node))
            }
            Happening::Rebalancing { replicas: 0 } => "nothing is moved for balance any more".to_owned(),
            Happening::Rebalancing { replicas: 1 } => "1 copy is brought to another node for balance".to_owned(),
            Happening::Rebalancing { replicas } => format!("{replicas} copies are brought to other nodes for balance"),
            Happening::ManagerStopped { node } => format!("the manager on {} was stopped", self.name(*node)),
            Happening::ManagerStarted { node } => format!("the manager on {} was started", self.name(*node)),
            Happening::RestartAsked { node } => format!("the server on {} begins anew", self.name(*node)),
            Happening::Recovered { node, incarnation } => {
                let name = self.name(*node);
                format!(
                    "the cluster was recovered on {name}: the other managers are expelled (incarnation {incarnation})"
                )
            }
            Happening::HaSet { on: true } => "high availability was switched on".to_owned(),
            Happening::HaSet { on: false } => "high availability was switched off".to_owned(),
            Happening::QuotaSet { nodes: Some(nodes) } => format!("at most {nodes} nodes may run"),
            Happening::QuotaSet { nodes: None } => "any number of nodes may run".to_owned(),
            Happening::LeaderElected { node, term } => format!("{} is Active, leader of term {term}", self.name(*node)),
            Happening::ServiceApplied { service, replicas } => format!("{service} applied, {replicas} replicas wanted"),
            Happening::ServiceScaled { service, from, to } => format!("{service} scaled from {from} to {to}"),
            Happening::ServiceAutoscaled { service, from, to, why } => {
                format!("{service} autoscaled from {from} to {to}: {why}")
            }
            Happening::AutoscaleSet { service, on: true, min, max } => {
                format!("{service} is autoscaled from now on, {min} to {max} copies")
            }
            Happening::AutoscaleSet { service, on: false, .. } => format!("{service} is autoscaled no more"),
            Happening::ServiceRestarted { service } => format!("{service} restarts, one replica after another"),
            Happening::ServiceRemoved { service } => format!("{service} removed"),
            Happening::ServiceStopped { service, by_schedule: false } => format!("{service} was stopped"),
            Happening::ServiceStopped { service, by_schedule: true } => {
                format!("{service} was stopped by its schedule")
            }
            Happening::ServiceStarted { service, by_schedule: false } => format!("{service} was started"),
            Happening::ServiceStarted { service, by_schedule: true } => {
                format!("{service} was started by its schedule")
            }
            Happening::UpdateStage { service, version, from, stage, why } => {
                let from = from.map_or_else(|| "nothing".into(), |from| format!("version {from}"));
                match stage {
                    UpdateStage::Canary => format!("{service} version {version} is tried out with canaries"),
                    UpdateStage::AwaitPromotion => format!("{service} version {version} waits for its promotion"),
                    UpdateStage::Rolling => format!("{service} version {version} takes the place of {from}"),
                    UpdateStage::Verifying => format!("{service} version {version} runs everywhere"),
                    UpdateStage::Done => format!("{service} version {version} is stable"),
                    UpdateStage::RollingBack => format!("{service} goes back to {from}: {why}"),
                    UpdateStage::RolledBack => format!("{service} is back at {from}"),
                }
            }
            Happening::UpdateHeld { service, version, why } => {
                format!("the update of {service} to version {version} is held: {why}")
            }
            Happening::UpdateResumed { service, version } => {
                format!("the update of {service} to version {version} goes on")
            }
            Happening::LeaseRaised { service, node, epoch } => {
                format!("{} lost {service}: its lease of epoch {epoch} is over", self.name(*node))
            }
            Happening::Promoted { service, node, epoch } => {
                format!("{service} is to be active on {} (epoch {epoch})", self.name(*node))
            }
            Happening::Demoted { service, node, epoch } => {
                format!("{service} is a standby on {}: it gave epoch {epoch} back", self.name(*node))
            }
            Happening::ActivationAsked { service, node: Some(node) } => {
                format!("{service} is to be active on {} from now on", self.name(*node))
            }
            Happening::ActivationAsked { service, node: None } => {
                format!("another copy of {service} is to be active")
            }
            Happening::DeathConfirmed { node } => {
                format!("{} is dead, somebody says: what it went on with may start elsewhere", self.name(*node))
            }
            Happening::FailedOver { service, from, to, took } => {
                format!("{service} failed over from {} to {} in {}", self.name(*from), self.name(*to), seconds(*took))
            }
            Happening::FailoverSet { failover: Some(span) } => format!("the failover time of the cluster is {span}"),
            Happening::FailoverSet { failover: None } => "the failover time of the cluster is its default".to_owned(),
            Happening::ReplicaPlaced { service, replica, ordinal, node } => {
                format!("{service}.{ordinal} placed on {} ({})", self.name(*node), short(replica))
            }
            Happening::ReplicaRetired { service, replica, ordinal, node } => {
                format!("{service}.{ordinal} retired on {} ({})", self.name(*node), short(replica))
            }
            Happening::VipAdded { address } => format!("gateways hold {address} from now on"),
            Happening::VipRemoved { address } => format!("gateways hold {address} no more"),
            Happening::ExternalSet { external, unchecked: false } => format!("the external {external} is set"),
            Happening::ExternalSet { external, unchecked: true } => {
                format!("the external {external} is set, though not every node could log in there")
            }
            Happening::ExternalRemoved { external } => format!("the external {external} is removed"),
            Happening::DrillBegan { drill, node, away } => {
                format!("drill {drill} takes {} away for {away}", self.name(*node))
            }
            Happening::DrillMeasured { drill, service, took, limit, verdict } => {
                drills::measured(*drill, service, *took, *limit, *verdict)
            }
            Happening::DrillEnded { drill, node, ok, late, not_recovered, returned } => {
                let name = self.name(*node);
                let back = returned.map_or_else(
                    || format!("{name} has not come back"),
                    |at| format!("{name} is back after {}", seconds(at)),
                );
                format!("drill {drill} is over: {ok} in time, {late} late, {not_recovered} not recovered; {back}")
            }
            Happening::ServiceHealthy { service, replicas } => format!("{service} {replicas}/{replicas} healthy"),
            Happening::ServiceDegraded { service, healthy, wanted } => format!("{service} {healthy}/{wanted} healthy"),
            Happening::KeyStage { key, number, stage, behind } => {
                let what = match (key, stage) {
                    (KeyKind::Authority, Stage::Spread) => format!("CA {number} is being made known to every node"),
                    (KeyKind::Authority, Stage::Use) => format!("CA {number} signs; certificates are made anew"),
                    (KeyKind::Authority, Stage::Drop) => format!("the CA before CA {number} is being forgotten"),
                    (KeyKind::Authority, Stage::Done) => format!("CA {number} is the only one"),
                    (key, Stage::Spread) => format!("a new {key} key, {number}, is given to its holders"),
                    (key, Stage::Use) => format!("the {key} key {number} is in use"),
                    (key, Stage::Drop) => format!("the {key} key before {number} is being forgotten"),
                    (key, Stage::Done) => format!("the {key} key {number} is the only one"),
                };
                let behind: Vec<String> = behind.iter().map(|node| self.name(*node)).collect();
                if behind.is_empty() { what } else { format!("{what}, without {}", behind.join(", ")) }
            }
            Happening::PeerRefused { node, from, why, unwritten } => {
                let more = if *unwritten == 0 { String::new() } else { format!(" ({unwritten} more before)") };
                format!("{} let nobody in from {from}: {why}{more}", self.name(*node))
            }
            Happening::Diverged { node, database, at_index } => {
                format!("{} differs in database {database} at index {at_index}", self.name(*node))
            }
            other => format!("{other:?}"),
        }
    }
}

/// A measured time: seconds, to the hundredth.
pub(super) fn seconds(span: Span) -> String {
    format!("{:.2} s", span.0.as_secs_f64())
}

fn subject(what: &Happening) -> (Option<NodeId>, Option<&ServiceName>) {
    match what {
        Happening::NodeJoined { node }
        | Happening::NodeDown { node }
        | Happening::NodeReturned { node }
        | Happening::NodeHandsOver { node }
        | Happening::DeathConfirmed { node }
        | Happening::NodeLeft { node }
        | Happening::NodeOpened { node }
        | Happening::NodeCordoned { node }
        | Happening::NodeDraining { node }
        | Happening::ManagerStopped { node }
        | Happening::ManagerStarted { node }
        | Happening::RestartAsked { node }
        | Happening::Recovered { node, .. }
        | Happening::LeaderElected { node, .. }
        | Happening::PeerRefused { node, .. }
        | Happening::DrillBegan { node, .. }
        | Happening::DrillEnded { node, .. }
        | Happening::Diverged { node, .. } => (Some(*node), None),
        Happening::ServiceApplied { service, .. }
        | Happening::ServiceScaled { service, .. }
        | Happening::ServiceAutoscaled { service, .. }
        | Happening::AutoscaleSet { service, .. }
        | Happening::ServiceRestarted { service }
        | Happening::ServiceRemoved { service }
        | Happening::ServiceStopped { service, .. }
        | Happening::ServiceStarted { service, .. }
        | Happening::UpdateStage { service, .. }
        | Happening::UpdateHeld { service, .. }
        | Happening::UpdateResumed { service, .. }
        | Happening::DrillMeasured { service, .. }
        | Happening::ServiceHealthy { service, .. }
        | Happening::ActivationAsked { service, node: None }
        | Happening::ServiceDegraded { service, .. } => (None, Some(service)),
        Happening::ReplicaPlaced { service, node, .. }
        | Happening::ReplicaRetired { service, node, .. }
        | Happening::Promoted { service, node, .. }
        | Happening::Demoted { service, node, .. }
        | Happening::ActivationAsked { service, node: Some(node) }
        | Happening::FailedOver { service, to: node, .. }
        | Happening::LeaseRaised { service, node, .. } => (Some(*node), Some(service)),
        _ => (None, None),
    }
}

fn status_of(node: &Node, on: NodeId, replica: ReplicaId) -> Option<&ReplicaStatus> {
    node.peers().get(&on)?.report.replicas.iter().find(|status| status.replica == replica)
}

/// The word that an enum has in JSON.
fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// `n2` before `n10`.
fn natural(name: &str) -> (String, u64, String) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (stem.to_owned(), name[stem.len()..].parse().unwrap_or(0), name.to_owned())
}

/// What gateways need.
pub(super) fn routing(node: &Node) -> RoutingTable {
    let state = node.state();
    let mut services = Vec::new();
    for service in state.services.values() {
        let Some(first) = service.routes.first() else { continue };
        let endpoints = state
            .replicas
            .values()
            .filter(|replica| replica.service == service.spec.name)
            .filter_map(|replica| endpoint(node, replica))
            .collect();
        let check = service.spec.health.as_ref();
        services.push(Upstream {
            service: service.spec.name.clone(),
            balance: first.balance,
            check_path: check.and_then(|check| check.http.clone()),
            endpoints,
            counted: service.spec.autoscaled().is_some_and(Autoscale::goes_by_traffic),
        });
    }
    RoutingTable {
        revision: state.planned_on.0,
        routes: state.services.values().flat_map(|service| service.routes.iter().cloned()).collect(),
        services,
        vips: state.vips.values().map(|vip| offered(state, vip)).collect(),
    }
}

fn offered(state: &ClusterState, vip: &VipRecord) -> OfferedVip {
    let candidate = |node: NodeId| {
        let link: SocketAddr = state.nodes.get(&node)?.identity.link.parse().ok()?;
        Some(Candidate { node, address: link.ip() })
    };
    OfferedVip {
        address: vip.address,
        interface: vip.interface.clone(),
        candidates: state.gateways_of(vip).into_iter().filter_map(candidate).collect(),
    }
}

/// Whether a copy is the active one of the newest epoch: nothing is sent to the others, nor to one that is giving its
/// role back.
fn is_active(replica: &ReplicaRecord, status: &ReplicaStatus) -> bool {
    let lease = replica.lease.filter(|lease| !lease.yields);
    let casting = status.casting.filter(|casting| casting.part == Part::Active);
    lease.zip(casting).is_some_and(|(lease, casting)| lease.epoch == casting.epoch)
}

fn endpoint(node: &Node, replica: &ReplicaRecord) -> Option<Endpoint> {
    let reached = reached(node, replica)?;
    let port = reached.status.ports.get(replica.spec.main_port()?)?;
    let address = SocketAddr::new(reached.host, *port);
    Some(Endpoint { replica: replica.id, node: replica.node, address, state: reached.state })
}

/// A replica that accepts connections.
pub(super) struct Reached<'a> {
    pub(super) host: IpAddr,
    pub(super) status: &'a ReplicaStatus,
    pub(super) state: EndpointState,
}

/// Where a replica is and whether it is to be chosen, for gateways and for names alike.
pub(super) fn reached<'a>(node: &'a Node, replica: &ReplicaRecord) -> Option<Reached<'a>> {
    let record = node.state().nodes.get(&replica.node)?;
    let status = status_of(node, replica.node, replica.id)?;
    let heard = node.sight(replica.node) == Sight::Present && record.health == Health::Joined;
    if replica.spec.mode == Mode::ActivePassive && !is_active(replica, status) {
        return None;
    }
    let state = match (replica.phase, status.state) {
        (Phase::Run, ReplicaState::Healthy) if heard => EndpointState::Healthy,
        (Phase::Run, ReplicaState::Healthy | ReplicaState::Unhealthy) => EndpointState::Doubtful,
        (Phase::Drain, ReplicaState::Healthy | ReplicaState::Unhealthy | ReplicaState::Draining) => {
            EndpointState::Draining
        }
        _ => return None,
    };
    Some(Reached { host: record.identity.host.parse().ok()?, status, state })
}
