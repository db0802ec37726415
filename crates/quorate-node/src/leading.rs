//! What the leader does besides counting votes: verdicts on nodes, plans, the record of what happened.
//!
//! Everything here is computed from what is decided and what is seen, and leaves as a command that
//! is checked once more when it is applied. Nothing is asked twice while the first asking is on
//! its way.

use crate::configuration::Configuration;
use crate::event::Now;
use crate::node::PeerView;
use crate::succession;
use quorate_membership::{LinkState, Membership, Opinion};
use quorate_model::assignment::Phase;
use quorate_model::command::{Command, Step};
use quorate_model::event::Happening;
use quorate_model::id::{NodeId, ReplicaId, ServiceName};
use quorate_model::member::MemberCommand;
use quorate_model::observed::ReplicaState;
use quorate_model::state::{ClusterState, Health};
use quorate_model::time::Timestamp;
use quorate_model::trust::KeyKind;
use quorate_scheduler::{Observed, Plan, Policy};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A node is called down after this even when its replicas may wait longer to be replaced.
const DOWN_AFTER_MAX: Duration = Duration::from_secs(2);
/// A node whose server is restarted on purpose is waited for at least this long. It takes less than a
/// second, and a few on a busy machine.
const RESTART_WITHIN: Duration = Duration::from_secs(10);
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
    Note,
    /// A node whose vote counts no more is cut off.
    CutOff(NodeId),
    /// This node's own end.
    Leave,
    /// The next stage of a key.
    Key(KeyKind),
}

/// All that a decision looks at.
pub(crate) struct Seen<'a> {
    pub(crate) me: NodeId,
    pub(crate) now: Now,
    pub(crate) configuration: &'a Configuration,
    pub(crate) membership: &'a LinkState,
    pub(crate) peers: &'a BTreeMap<NodeId, PeerView>,
    pub(crate) state: &'a ClusterState,
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
}

/// Something whose duration counts, from the moment at which this node came to know of it: the times
/// in the records are of whichever node led then. (Found by the simulator: a node taken for dead by a
/// leader whose clock was an hour ahead was waited for an hour.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Matter {
    /// A node is down or has left, in one of its generations.
    Down(NodeId, u64),
    Retired(ReplicaId),
    /// Its server is to begin anew, in this one of its runs.
    Restarted(NodeId, u64),
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
        }
    }

    pub(crate) fn begun(&mut self, chore: &Chore) {
        self.on_its_way.insert(chore.clone());
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
        let mut observed = observe(seen);
        for (matter, since) in &self.known_since {
            let span = seen.now.mono.since(*since);
            match matter {
                Matter::Down(node, _) => drop(observed.down_for.insert(*node, span)),
                Matter::Retired(replica) => drop(observed.retired_for.insert(*replica, span)),
                Matter::Restarted(node, _) => {
                    observed.returns_within.insert(*node, RESTART_WITHIN.saturating_sub(span));
                }
            }
        }
        quorate_scheduler::plan(seen.state, &observed, &self.policy)
    }

    fn look_at_the_clock(&mut self, seen: &Seen<'_>) {
        let down = seen.state.nodes.values().filter(|record| record.health != Health::Joined);
        let down = down.map(|record| Matter::Down(record.identity.id, record.generation));
        let retired = seen.state.replicas.values().filter(|replica| replica.phase == Phase::Drain);
        let restarted = seen.state.nodes.values().filter_map(|record| {
            let boot = record.restart?;
            Some(Matter::Restarted(record.identity.id, boot))
        });
        let now: BTreeSet<Matter> =
            down.chain(retired.map(|replica| Matter::Retired(replica.id))).chain(restarted).collect();
        self.known_since.retain(|matter, _| now.contains(matter));
        for matter in now {
            self.known_since.entry(matter).or_insert(seen.now.mono);
        }
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
        for (name, service) in &seen.state.services {
            let chore = Chore::Transition(name.clone());
            if self.on_its_way.contains(&chore) {
                continue;
            }
            let (wanted, healthy) = (service.spec.replicas, healthy_replicas(seen, name));
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
            Happening::ServiceDegraded { service, .. } | Happening::ServiceRemoved { service } => {
                health.insert(service.clone(), false)
            }
            _ => None,
        };
    }
    health
}

fn healthy_replicas(seen: &Seen<'_>, service: &ServiceName) -> u32 {
    let running = seen.state.replicas.values().filter(|replica| {
        replica.service == *service
            && replica.phase == Phase::Run
            && heard(seen, replica.node)
            && replica_state(seen, replica.node, replica.id) == Some(ReplicaState::Healthy)
    });
    u32::try_from(running.count()).unwrap_or(u32::MAX)
}

fn heard(seen: &Seen<'_>, node: NodeId) -> bool {
    node == seen.me || seen.membership.opinion(node) == Opinion::Heard
}

fn replica_state(seen: &Seen<'_>, node: NodeId, replica: ReplicaId) -> Option<ReplicaState> {
    let report = &seen.peers.get(&node)?.report;
    report.replicas.iter().find(|status| status.replica == replica).map(|status| status.state)
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
        reported: heard.iter().map(|peer| peer.report.node).collect(),
        unreachable_for: seen.state.nodes.keys().filter_map(|node| Some((*node, away(*node)?))).collect(),
        drained,
        ..Observed::default()
    }
}
