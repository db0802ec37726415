//! What the leader does besides counting votes: verdicts on nodes, plans, the record of what happened.
//!
//! Everything here is computed from what is decided and what is seen, and leaves as a command that
//! is checked once more when it is applied. Nothing is asked twice while the first asking is on
//! its way.

use crate::configuration::Configuration;
use crate::event::{Counts, Now};
use crate::node::PeerView;
use crate::succession;
use quorate_membership::{LinkState, Membership, Opinion};
use quorate_model::assignment::Phase;
use quorate_model::autoscale::AutoscaleCommand;
use quorate_model::command::{Command, Step};
use quorate_model::event::Happening;
use quorate_model::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use quorate_model::member::{MemberCommand, Members};
use quorate_model::observed::{ReplicaState, ReplicaStatus};
use quorate_model::resource::Usage;
use quorate_model::spec::ServiceSpec;
use quorate_model::state::{ClusterState, Health};
use quorate_model::time::Timestamp;
use quorate_model::traffic::Traffic;
use quorate_model::trust::KeyKind;
use quorate_scheduler::{Adjustment, Autoscaling, Observed, Plan, Policy, Sight, Survey};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A node is called down after this even when its replicas may wait longer to be replaced.
const DOWN_AFTER_MAX: Duration = Duration::from_secs(2);
/// A node whose server is restarted on purpose is waited for at least this long. It takes less than a
/// second, and a few on a busy machine.
const RESTART_WITHIN: Duration = Duration::from_secs(10);
/// What a query found says so much longer how things are: it is run every five seconds.
const COUNTED_FOR: Duration = Duration::from_secs(15);
/// Replicas placed by one plan. A plan is one log entry; the next one follows as soon as it is
/// applied, so this bounds the entry and not the speed.
const MOVES_MAX: u32 = 200;

/// Something that this node asked of the cluster and that is on its way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Chore {
    Register,
    Verdict(NodeId),
    Plan,
    Transition(ServiceName),
    /// Another number of copies.
    Autoscale(ServiceName),
    /// A moment of a service's schedule.
    Moment(ServiceName),
    Note,
    /// A node whose vote counts no more is cut off.
    CutOff(NodeId),
    /// What runs once here is to go elsewhere.
    HandOver,
    /// This node's own end.
    Leave,
    /// The next stage of a key.
    Key(KeyKind),
    /// The next step towards the end of a lease.
    Lease(ServiceName),
    /// What was seen of a drill.
    Drill,
}

/// All that a decision looks at.
pub(crate) struct Seen<'a> {
    pub(crate) me: NodeId,
    pub(crate) now: Now,
    pub(crate) configuration: &'a Configuration,
    pub(crate) membership: &'a LinkState,
    pub(crate) peers: &'a BTreeMap<NodeId, PeerView>,
    pub(crate) state: &'a ClusterState,
    /// Nodes that have said nothing since they lost a lease by silence, and when that was.
    pub(crate) given_up: &'a BTreeMap<NodeId, Timestamp>,
}

#[derive(Debug)]
pub(crate) struct Leading {
    policy: Policy,
    down_after: Duration,
    in_office: bool,
    on_its_way: BTreeSet<Chore>,
    /// Whether the record says that a service has all it wants.
    healthy: BTreeMap<ServiceName, bool>,
    known_since: BTreeMap<Matter, Timestamp>,
    /// Most healthy replicas of a new version that were seen in the stage that this entry began.
    reached: BTreeMap<ServiceName, (LogIndex, u32)>,
    autoscaling: Autoscaling,
    /// What queries found that services go by, and when.
    counted: Option<(Timestamp, Counts)>,
}

/// Something whose duration counts, from the moment at which this node came to know of it: the times
/// in the records are of whichever node led then. (Found by the simulator: a node taken for dead by a
/// leader whose clock was an hour ahead was waited for an hour.)
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Matter {
    /// A node is down or has left, in one of its generations.
    Down(NodeId, u64),
    Retired(ReplicaId),
    /// A node is being emptied, since this entry asked for it.
    Draining(NodeId, LogIndex),
    /// Its server is to begin anew, in this one of its runs.
    Restarted(NodeId, u64),
    /// A replica of a service that is updated is healthy, after so many restarts.
    Healthy(ReplicaId, u32),
    Unhealthy(ReplicaId),
    /// An update is in the stage that this entry began.
    Stage(ServiceName, LogIndex),
    /// In that stage at most so many new replicas have been healthy.
    Stalled(ServiceName, LogIndex, u32),
}

impl Leading {
    pub(crate) fn new(replace_after: Duration) -> Leading {
        Leading {
            policy: Policy { replace_after, moves_max: MOVES_MAX },
            down_after: replace_after.min(DOWN_AFTER_MAX),
            in_office: false,
            on_its_way: BTreeSet::new(),
            healthy: BTreeMap::new(),
            known_since: BTreeMap::new(),
            reached: BTreeMap::new(),
            autoscaling: Autoscaling::default(),
            counted: None,
        }
    }

    pub(crate) fn counted(&mut self, now: Timestamp, counted: Counts) {
        self.counted = Some((now, counted));
    }

    pub(crate) fn begun(&mut self, chore: &Chore) {
        self.on_its_way.insert(chore.clone());
    }

    pub(crate) fn is_on_its_way(&self, chore: &Chore) -> bool {
        self.on_its_way.contains(chore)
    }

    pub(crate) fn done(&mut self, chore: &Chore) {
        self.on_its_way.remove(chore);
    }

    /// Notes whether this node leads now. Returns true when it has just begun to.
    pub(crate) fn take_office(&mut self, leads: bool, state: &ClusterState) -> bool {
        let begins = leads && !self.in_office;
        self.in_office = leads;
        if begins {
            self.healthy = recorded_health(state);
        }
        begins
    }

    pub(crate) fn plan(&mut self, seen: &Seen<'_>) -> Plan {
        self.look_at_the_clock(seen);
        let (observed, policy) = (self.observe(seen), self.policy(seen.state));
        let (now, wall) = (seen.now.mono, seen.now.wall);
        self.autoscaling.watch(&Sight { now, wall, state: seen.state, observed: &observed, policy: &policy });
        quorate_scheduler::plan(seen.state, &observed, &policy)
    }

    /// What the cluster decided counts for more than this node's own settings.
    fn policy(&self, state: &ClusterState) -> Policy {
        let decided = state.members.failover.map(|failover| failover.0);
        Policy { replace_after: decided.unwrap_or(self.policy.replace_after), ..self.policy }
    }

    /// What the last plan was made of, as it is seen now: a copy of what plans look at, and of nothing else.
    pub(crate) fn survey(&self, seen: &Seen<'_>) -> Survey {
        let (nodes, services) = (seen.state.nodes.clone(), seen.state.services.clone());
        let (replicas, leases) = (seen.state.replicas.clone(), seen.state.leases.clone());
        let (versions, deployments) = (seen.state.versions.clone(), seen.state.deployments.clone());
        let drills = seen.state.drills.iter().next_back().map(|(id, drill)| (*id, drill.clone())).into_iter().collect();
        let planned_on = seen.state.planned_on;
        let members = Members { failover: seen.state.members.failover, ..Members::default() };
        let others = ClusterState::default();
        let state = ClusterState {
            nodes,
            services,
            replicas,
            leases,
            versions,
            deployments,
            drills,
            members,
            planned_on,
            ..others
        };
        let autoscaled = self.autoscaling.reports(seen.state, seen.now.mono, seen.now.wall);
        let observed = Observed { autoscaled, ..self.observe(seen) };
        Survey { state, observed, policy: self.policy(seen.state) }
    }

    /// What is seen, and for how long it has been so.
    fn observe(&self, seen: &Seen<'_>) -> Observed {
        let mut observed = observe(seen);
        if let Some((at, counted)) = &self.counted
            && seen.now.mono.since(*at) < COUNTED_FOR
        {
            observed.counted = counted.clone();
        }
        for (matter, since) in &self.known_since {
            let span = seen.now.mono.since(*since);
            match matter {
                Matter::Down(node, _) => {
                    // The time that a user sets is a total: it begins with the silence, not with the verdict on it.
                    let silent = unheard_by_majority(seen.membership, *node, seen.configuration, seen.now);
                    observed.down_for.insert(*node, span.max(silent.unwrap_or_default()));
                }
                Matter::Draining(node, _) => drop(observed.draining_for.insert(*node, span)),
                Matter::Retired(replica) => drop(observed.retired_for.insert(*replica, span)),
                Matter::Restarted(node, _) => {
                    observed.returns_within.insert(*node, RESTART_WITHIN.saturating_sub(span));
                }
                Matter::Healthy(replica, _) => drop(observed.healthy_for.insert(*replica, span)),
                Matter::Unhealthy(replica) => drop(observed.unhealthy_for.insert(*replica, span)),
                Matter::Stage(service, _) => drop(observed.stage_for.insert(service.clone(), span)),
                Matter::Stalled(service, ..) => drop(observed.stalled_for.insert(service.clone(), span)),
            }
        }
        observed
    }

    fn look_at_the_clock(&mut self, seen: &Seen<'_>) {
        let down = seen.state.nodes.values().filter(|record| record.health != Health::Joined);
        let down = down.map(|record| Matter::Down(record.identity.id, record.generation));
        let retired = seen.state.replicas.values().filter(|replica| replica.phase == Phase::Drain);
        let restarted = seen.state.nodes.values().filter_map(|record| {
            let boot = record.restart?;
            Some(Matter::Restarted(record.identity.id, boot))
        });
        let draining = seen.state.nodes.values().filter_map(|record| {
            let drain = record.availability.drain()?;
            Some(Matter::Draining(record.identity.id, drain.asked))
        });
        let retired = retired.map(|replica| Matter::Retired(replica.id));
        let mut now: BTreeSet<Matter> = down.chain(retired).chain(restarted).chain(draining).collect();
        now.extend(self.updates(seen));
        self.known_since.retain(|matter, _| now.contains(matter));
        for matter in now {
            self.known_since.entry(matter).or_insert(seen.now.mono);
        }
    }

    /// What counts for the updates that are not over.
    fn updates(&mut self, seen: &Seen<'_>) -> Vec<Matter> {
        // While a service is stopped no time passes for its update.
        let runs = |name: &ServiceName| seen.state.services.get(name).is_some_and(|it| it.stopped.is_none());
        let deployments = || seen.state.deployments.values().filter(|deployment| runs(&deployment.service));
        let open = || deployments().filter(|deployment| !deployment.stage.is_over());
        self.reached.retain(|service, _| open().any(|deployment| deployment.service == *service));
        let mut matters = Vec::new();
        if open().next().is_none() {
            return matters;
        }
        let reports = seen.peers.iter().filter(|(node, peer)| peer.fresh && heard(seen, **node));
        let statuses = reports.flat_map(|(_, peer)| &peer.report.replicas).map(|status| (status.replica, status));
        let statuses: BTreeMap<ReplicaId, &ReplicaStatus> = statuses.collect();
        let mut healthy: BTreeMap<&ServiceName, u32> = BTreeMap::new();
        for replica in seen.state.replicas.values().filter(|replica| replica.phase == Phase::Run) {
            let present = seen.state.services.get(&replica.service).map(|service| service.version);
            if present != Some(replica.version) || seen.state.deploying(&replica.service).is_none() {
                continue;
            }
            match statuses.get(&replica.id) {
                Some(status) if status.state == ReplicaState::Healthy => {
                    *healthy.entry(&replica.service).or_default() += 1;
                    matters.push(Matter::Healthy(replica.id, status.restarts));
                }
                Some(_) | None => matters.push(Matter::Unhealthy(replica.id)),
            }
        }
        for deployment in open() {
            let (service, entered) = (&deployment.service, deployment.entered);
            let now = healthy.get(service).copied().unwrap_or_default();
            let reached = self.reached.entry(service.clone()).or_insert((entered, now));
            *reached = if reached.0 == entered { (entered, reached.1.max(now)) } else { (entered, now) };
            matters.push(Matter::Stage(service.clone(), entered));
            matters.push(Matter::Stalled(service.clone(), entered, reached.1));
        }
        matters
    }

    /// What should be asked of the cluster now.
    pub(crate) fn wishes(&mut self, seen: &Seen<'_>, plan: &Plan) -> Vec<(Command, Chore)> {
        let mut wishes = self.verdicts(seen);
        wishes.extend(farewells(seen));
        if !plan.steps.is_empty() {
            let steps: Vec<Step> = plan.steps.clone();
            wishes.push((Command::CarryOut { expected: seen.state.planned_on, steps }, Chore::Plan));
        }
        wishes.extend(self.transitions(seen));
        wishes.extend(self.successions(seen));
        wishes.extend(self.autoscaling.due().into_iter().map(adjust));
        let due = seen.state.moments_due(seen.now.wall);
        wishes.extend(due.map(|(service, moment)| (Command::Switch(moment), Chore::Moment(service))));
        wishes.retain(|(_, chore)| *chore == Chore::Note || !self.on_its_way.contains(chore));
        wishes
    }

    /// Calls nobody down before a link was lost for this long; replacing replicas waits for no more than
    /// it would otherwise.
    pub(crate) fn patient(&mut self, lost_link: Duration) {
        self.down_after = self.policy.replace_after.min(DOWN_AFTER_MAX.max(lost_link));
    }

    /// A node is down when a majority of the voters has not heard from it for long enough.
    fn verdicts(&self, seen: &Seen<'_>) -> Vec<(Command, Chore)> {
        let away = |node: NodeId| unheard_by_majority(seen.membership, node, seen.configuration, seen.now);
        seen.state
            .nodes
            .values()
            .filter(|record| record.health == Health::Joined && record.identity.id != seen.me)
            .filter(|record| away(record.identity.id).is_some_and(|span| span >= self.down_after))
            .map(|record| {
                let node = record.identity.id;
                let command = Command::ChangeHealth {
                    node,
                    generation: record.generation,
                    health: Health::Down,
                    at: seen.now.wall,
                };
                (command, Chore::Verdict(node))
            })
            .collect()
    }

    /// Keys of which everybody has carried out the present stage.
    fn successions(&self, seen: &Seen<'_>) -> Vec<(Command, Chore)> {
        let report = |node: NodeId| seen.peers.get(&node)?.report.trust.as_ref();
        let away_for = |node: NodeId, generation| {
            let since = self.known_since.get(&Matter::Down(node, generation));
            since.map(|since| seen.now.mono.since(*since))
        };
        let next = |record| succession::next(record, &seen.state.nodes, report, away_for);
        seen.state
            .trust
            .keys
            .values()
            .filter_map(|record| Some((Command::Trust(next(record)?), Chore::Key(record.kind))))
            .collect()
    }

    /// Services that have got all they want, or no longer have it.
    fn transitions(&mut self, seen: &Seen<'_>) -> Vec<(Command, Chore)> {
        let mut notes = Vec::new();
        self.healthy.retain(|service, _| seen.state.services.contains_key(service));
        let healthy_replicas = healthy_replicas(seen);
        for (name, service) in &seen.state.services {
            let chore = Chore::Transition(name.clone());
            if self.on_its_way.contains(&chore) {
                continue;
            }
            if service.stopped.is_some() {
                // Started again it is as one that is new: not short of anything before it once had it.
                self.healthy.insert(name.clone(), false);
                continue;
            }
            let wanted = seen.state.wanted(service);
            let healthy = healthy_replicas.get(name).copied().unwrap_or_default();
            let all = healthy >= wanted;
            let recorded = self.healthy.get(name).copied();
            let what = match (recorded, all) {
                (Some(true), false) => Happening::ServiceDegraded { service: name.clone(), healthy, wanted },
                (Some(false) | None, true) => Happening::ServiceHealthy { service: name.clone(), replicas: wanted },
                (Some(true), true) | (Some(false) | None, false) => continue,
            };
            self.healthy.insert(name.clone(), all);
            notes.push((Command::Record { at: seen.now.wall, what }, chore));
        }
        notes
    }
}

fn adjust(adjustment: Adjustment) -> (Command, Chore) {
    let Adjustment { service, version, from, to, why } = adjustment;
    let chore = Chore::Autoscale(service.clone());
    (Command::Autoscale(AutoscaleCommand::Adjust { service, version, from, to, why }), chore)
}

/// Nodes that are to go and whose vote has been taken away, if they had one.
fn farewells(seen: &Seen<'_>) -> Vec<(Command, Chore)> {
    let gone = seen.state.nodes.values().filter(|record| record.expelling).map(|record| record.identity.id);
    gone.filter(|node| !seen.configuration.votes(*node))
        .map(|node| (Command::Member(MemberCommand::CutOff { node }), Chore::CutOff(node)))
        .collect()
}

/// What the record says about each service: the newest word counts.
fn recorded_health(state: &ClusterState) -> BTreeMap<ServiceName, bool> {
    let mut health = BTreeMap::new();
    for event in &state.events {
        match &event.what {
            Happening::ServiceHealthy { service, .. } => health.insert(service.clone(), true),
            Happening::ServiceDegraded { service, .. }
            | Happening::ServiceRemoved { service }
            | Happening::ServiceStopped { service, .. } => health.insert(service.clone(), false),
            _ => None,
        };
    }
    health
}

/// How many replicas of each service are healthy, counted in one go: there may be thousands.
fn healthy_replicas<'a>(seen: &Seen<'a>) -> BTreeMap<&'a ServiceName, u32> {
    let reports = seen.peers.iter().filter(|(node, _)| heard(seen, **node));
    let healthy = reports.flat_map(|(node, peer)| {
        let healthy = peer.report.replicas.iter().filter(|status| status.state == ReplicaState::Healthy);
        healthy.map(move |status| (node, status.replica))
    });
    let mut counts = BTreeMap::new();
    for (node, replica) in healthy {
        let record = seen.state.replicas.get(&replica);
        if let Some(record) = record.filter(|record| record.node == *node && record.phase == Phase::Run) {
            *counts.entry(&record.service).or_default() += 1;
        }
    }
    counts
}

fn heard(seen: &Seen<'_>, node: NodeId) -> bool {
    node == seen.me || seen.membership.opinion(node) == Opinion::Heard
}

/// For how long the majority, of both sets of voters while they change, has not heard the node.
pub(crate) fn unheard_by_majority(
    membership: &LinkState,
    node: NodeId,
    configuration: &Configuration,
    now: Now,
) -> Option<Duration> {
    let spans: Option<Vec<Duration>> =
        configuration.halves().map(|half| membership.unheard_by_majority(node, half, now.mono)).collect();
    spans?.into_iter().min()
}

/// What the scheduler is told of the world.
fn observe(seen: &Seen<'_>) -> Observed {
    let away = |node: NodeId| unheard_by_majority(seen.membership, node, seen.configuration, seen.now);
    let heard: Vec<&PeerView> =
        seen.peers.iter().filter(|(node, peer)| peer.fresh && heard(seen, **node)).map(|(_, peer)| peer).collect();
    let gateways = || heard.iter().flat_map(|peer| &peer.report.gateways);
    let drained = seen
        .state
        .replicas
        .values()
        .filter(|replica| replica.phase == Phase::Drain)
        .filter(|replica| {
            gateways().all(|gateway| gateway.revision >= replica.revision.0 && !gateway.busy.contains(&replica.id))
        })
        .map(|replica| replica.id)
        .collect();
    Observed {
        replicas: heard
            .iter()
            .flat_map(|peer| &peer.report.replicas)
            .map(|status| (status.replica, status.state))
            .collect(),
        details: heard
            .iter()
            .flat_map(|peer| &peer.report.replicas)
            .filter(|status| !status.detail.is_empty())
            .map(|status| (status.replica, status.detail.clone()))
            .collect(),
        capacity: heard.iter().filter_map(|peer| Some((peer.report.node, peer.report.capacity?))).collect(),
        drivers: heard.iter().filter_map(|peer| Some((peer.report.node, peer.report.drivers.clone()?))).collect(),
        usage: usage(seen.state, &heard),
        scraped: heard.iter().flat_map(|peer| &peer.report.scraped).map(|(id, number)| (*id, *number)).collect(),
        untold: heard.iter().flat_map(|peer| peer.report.untold.clone()).collect(),
        traffic: traffic(&heard),
        castings: heard
            .iter()
            .flat_map(|peer| &peer.report.replicas)
            .filter_map(|status| Some((status.replica, status.casting?)))
            .collect(),
        restarts: heard
            .iter()
            .flat_map(|peer| &peer.report.replicas)
            .filter(|status| status.restarts > 0)
            .map(|status| (status.replica, status.restarts))
            .collect(),
        reported: heard.iter().map(|peer| peer.report.node).collect(),
        unreachable_for: seen
            .state
            .nodes
            .keys()
            .filter_map(|node| {
                // Before a link is known to be lost, a lease may have run out: nothing goes there.
                let silent = || seen.given_up.get(node).map(|at| seen.now.mono.since(*at));
                Some((*node, away(*node).or_else(silent)?))
            })
            .collect(),
        drained,
        lacks: lacks(seen.state, seen.state.services.values().map(|service| &service.spec), &heard),
        fallback_lacks: {
            let before: Vec<_> = seen.state.services.keys().filter_map(|name| seen.state.fallback(name)).collect();
            lacks(seen.state, before.iter().map(|service| &service.spec), &heard)
        },
        ..Observed::default()
    }
}

/// What replicas of autoscaled services use.
fn usage(state: &ClusterState, heard: &[&PeerView]) -> BTreeMap<ReplicaId, Usage> {
    if state.services.values().all(|service| service.spec.autoscaled().is_none()) {
        return BTreeMap::new();
    }
    let counts = |replica: &ReplicaId| {
        let service = state.replicas.get(replica).and_then(|replica| state.services.get(&replica.service));
        service.is_some_and(|service| service.spec.autoscaled().is_some())
    };
    let all = heard.iter().flat_map(|peer| &peer.report.usage);
    all.filter(|(replica, _)| counts(replica)).map(|(replica, usage)| (*replica, *usage)).collect()
}

/// What gateways have had to do. One that has just changed managers is told of by two for a moment; the later
/// counters are the greater ones.
fn traffic(heard: &[&PeerView]) -> BTreeMap<String, Traffic> {
    let mut traffic: BTreeMap<String, Traffic> = BTreeMap::new();
    for gateway in heard.iter().flat_map(|peer| &peer.report.gateways) {
        let told = &gateway.traffic;
        if !told.is_nothing() && traffic.get(&gateway.gateway).is_none_or(|known| known.uptime_ms < told.uptime_ms) {
            traffic.insert(gateway.gateway.clone(), told.clone());
        }
    }
    traffic
}

/// What nodes lack of what these need; what they said of other needs is of no use.
fn lacks<'s>(
    state: &ClusterState,
    specs: impl Iterator<Item = &'s ServiceSpec>,
    heard: &[&PeerView],
) -> BTreeMap<ServiceName, BTreeMap<NodeId, Vec<String>>> {
    let needy = specs.filter_map(|spec| Some((&spec.name, state.needs(spec)?)));
    needy
        .map(|(name, needs)| {
            let key = needs.key();
            let of = |peer: &PeerView| {
                let mut mine = peer.report.prepared.iter().filter(|it| it.service == *name && it.needs == key);
                Some((peer.report.node, mine.next()?.lacks.clone()))
            };
            (name.clone(), heard.iter().filter_map(|peer| of(peer)).collect())
        })
        .collect()
}
