//! What would be done if something happened: the scheduler, run on a cluster in which it has.
//!
//! Commands go through [`ClusterState::decide`] as they do in the cluster, plans are those of
//! [`plan`](crate::plan), and they are made until nothing is left to do. Only the nodes are imagined: one that
//! answers starts what it is assigned, and it becomes healthy; it ends what it is to end. Replicas that are not
//! well now stay so. Times that are waited for pass in their order: leases that nobody renews, the patience with
//! nodes that are down, and the grace of what is told to end where nobody hears it.

use crate::held::{Held, Slot};
use crate::{Observed, Policy, plan};
use quorate_model::assignment::Phase;
use quorate_model::command::Command;
use quorate_model::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use quorate_model::lease::{LeaseCommand, LeaseRecord};
use quorate_model::observed::{Casting, Part, ReplicaState};
use quorate_model::spec::Mode;
use quorate_model::state::{ClusterState, Health};
use quorate_model::time::WallTime;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Something that might happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The node loses its power and does not come back.
    Kill(NodeId),
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forecast {
    /// By service and ordinal.
    pub moves: Vec<Move>,
    /// Active-passive services of which another copy is active afterwards, by name.
    pub roles: Vec<RoleMove>,
    /// What is not done then, and why.
    pub held: Vec<Held>,
}

/// An ordinal that runs elsewhere afterwards, or nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    pub slot: Slot,
    /// `None`: it ran nowhere before.
    pub from: Option<NodeId>,
    /// `None`: no node can take it, or it is not wanted.
    pub to: Option<NodeId>,
}

/// A service of which another copy is active afterwards, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleMove {
    pub service: ServiceName,
    /// The copy that is active now, and its node. `None`: none is.
    pub from: Option<(Slot, NodeId)>,
    /// `None`: none can be.
    pub to: Option<(Slot, NodeId)>,
}

/// Plans that are made at most, for each replica of the cluster. An ordinal is placed, retired, released and
/// forgotten, by one plan each at the worst; a cluster that is not at rest after that never is.
const PLANS_PER_REPLICA: usize = 8;

pub(crate) fn what_if(state: &ClusterState, observed: &Observed, policy: &Policy, fault: Fault) -> Forecast {
    let mut imagined = Imagined::new(state, observed, *policy);
    match fault {
        Fault::Kill(node) => imagined.kill(node),
    }
    let mut held = imagined.settle();
    // One after the other, what is waited for is over: who comes first has the choice.
    for _ in 0..imagined.plans_max() {
        let Some(time) = imagined.next_deadline() else { break };
        imagined.wait_until(time);
        held = imagined.settle();
    }
    let roles = role_moves(&active(state), &active(&imagined.state));
    Forecast { moves: moves(&layout(state), &layout(&imagined.state)), roles, held }
}

struct Imagined {
    state: ClusterState,
    observed: Observed,
    policy: Policy,
    /// How long ago the fault was.
    now: Duration,
    /// When each replica that drains was told to, and how long before the fault.
    drains: BTreeMap<ReplicaId, Told>,
}

#[derive(Clone, Copy)]
enum Told {
    /// So long before the fault.
    Before(Duration),
    /// So long after it.
    After(Duration),
}

impl Told {
    fn so_long_ago(self, now: Duration) -> Duration {
        match self {
            Told::Before(span) => now + span,
            Told::After(time) => now.saturating_sub(time),
        }
    }
}

impl Imagined {
    fn new(state: &ClusterState, observed: &Observed, policy: Policy) -> Imagined {
        let drains = state.replicas.values().filter(|replica| replica.phase == Phase::Drain).map(|replica| {
            (replica.id, Told::Before(observed.retired_for.get(&replica.id).copied().unwrap_or_default()))
        });
        let drains = drains.collect();
        Imagined { state: state.clone(), observed: observed.clone(), policy, now: Duration::ZERO, drains }
    }

    /// When the next thing is over that is waited for.
    fn next_deadline(&self) -> Option<Duration> {
        let leases = self.lost_leases().map(|lease| lease.ttl.0);
        let absent = self.state.nodes.values().filter(|record| record.health != Health::Joined).map(|record| {
            let node = record.identity.id;
            let down_for = self.observed.down_for.get(&node).copied().unwrap_or_default();
            let returns = self.observed.returns_within.get(&node).copied().unwrap_or_default();
            self.now + self.policy.replace_after.saturating_sub(down_for).max(returns)
        });
        let emptied = self.state.nodes.values().filter_map(|record| {
            let deadline = record.availability.drain()?.deadline?.0;
            let since = self.observed.draining_for.get(&record.identity.id)?;
            Some(self.now + deadline.saturating_sub(*since))
        });
        let graces = self.state.replicas.values().filter(|replica| replica.phase == Phase::Drain).map(|replica| {
            let ago = self.drains.get(&replica.id).map_or(Duration::ZERO, |told| told.so_long_ago(self.now));
            self.now + replica.spec.stop.grace.0.saturating_sub(ago)
        });
        leases.chain(absent).chain(emptied).chain(graces).filter(|time| *time > self.now).min()
    }

    /// Lets time pass until so long after the fault.
    fn wait_until(&mut self, time: Duration) {
        let passed = time.saturating_sub(self.now);
        self.now = time;
        for record in self.state.nodes.values().filter(|record| record.health != Health::Joined) {
            *self.observed.down_for.entry(record.identity.id).or_default() += passed;
        }
        self.observed.draining_for.values_mut().for_each(|span| *span += passed);
        let told = self.drains.iter().map(|(id, told)| (*id, told.so_long_ago(self.now)));
        self.observed.retired_for = told.collect();
        self.observed.returns_within.values_mut().for_each(|span| *span = span.saturating_sub(passed));
        let over: Vec<LeaseRecord> = self.lost_leases().filter(|lease| lease.ttl.0 <= time).cloned().collect();
        for LeaseRecord { name, epoch, .. } in over {
            self.run(&Command::Lease(LeaseCommand::Fence { name: name.clone(), epoch }));
            self.run(&Command::Lease(LeaseCommand::Raise { name, epoch }));
        }
    }

    fn plans_max(&self) -> usize {
        let wanted: u32 = self.state.services.values().map(|service| self.state.wanted(service)).sum();
        PLANS_PER_REPLICA * (self.state.replicas.len() + wanted as usize + 1)
    }

    /// Leases of nodes that are not there to renew them, and that end without that.
    fn lost_leases(&self) -> impl Iterator<Item = &LeaseRecord> {
        self.state.leases.values().filter(|lease| !lease.keeps).filter(|lease| {
            let node = lease.holder.map(|holder| self.state.nodes.get(&holder.node));
            node.is_some_and(|node| node.is_none_or(|node| node.health != Health::Joined))
        })
    }

    /// Plans, carries out and obeys until nothing is left to do. What is not done then.
    fn settle(&mut self) -> Vec<Held> {
        let mut held = Vec::new();
        for _ in 0..self.plans_max() {
            let plan = plan(&self.state, &self.observed, &self.policy);
            held = plan.held;
            let command = Command::CarryOut { expected: self.state.planned_on, steps: plan.steps };
            let changed = self.run(&command);
            let obeyed = self.obey();
            if !changed && !obeyed {
                break;
            }
        }
        held
    }

    fn kill(&mut self, node: NodeId) {
        let Some(record) = self.state.nodes.get(&node) else { return };
        let (generation, at) = (record.generation, WallTime::default());
        // One that is away already has been waited for since then.
        if record.health == Health::Joined {
            self.observed.down_for.remove(&node);
        }
        self.run(&Command::ChangeHealth { node, generation, health: Health::Down, at });
        self.observed.unreachable_for.remove(&node);
        self.observed.returns_within.remove(&node);
        self.observed.reported.remove(&node);
    }

    /// Whether it changed anything.
    fn run(&mut self, command: &Command) -> bool {
        let index = LogIndex(self.state.planned_on.0 + 1);
        // The scheduler's own steps and a verdict on a known node are not refused.
        let changes = self.state.decide(index, WallTime::default(), command).unwrap_or_default();
        self.state.absorb(index, &changes);
        !changes.is_empty()
    }

    /// Nodes that answer do as they are told. Whether one had anything to do.
    fn obey(&mut self) -> bool {
        let mut changed = false;
        // Updates get as much time as they need.
        let services = self.state.deployments.keys().cloned();
        self.observed.stage_for = services.map(|service| (service, Duration::MAX)).collect();
        self.observed.stalled_for.clear();
        self.observed.unhealthy_for.clear();
        self.observed.healthy_for = self.state.replicas.keys().map(|id| (*id, Duration::MAX)).collect();
        let known = &self.state.replicas;
        self.observed.replicas.retain(|id, _| known.contains_key(id));
        self.observed.drained.retain(|id| known.contains_key(id));
        self.drains.retain(|id, _| known.contains_key(id));
        for replica in known.values() {
            let answers = self.state.nodes.get(&replica.node).is_some_and(|node| node.health == Health::Joined)
                && !self.observed.unreachable_for.contains_key(&replica.node);
            if replica.phase == Phase::Drain {
                self.drains.entry(replica.id).or_insert(Told::After(self.now));
                // Gateways finish with what answers; what does not has its grace.
                changed |= answers && self.observed.drained.insert(replica.id);
            }
            if !answers {
                continue;
            }
            let state = self.observed.replicas.entry(replica.id).or_insert(ReplicaState::Starting);
            let next = match (replica.phase, *state) {
                (Phase::Run, ReplicaState::Starting) => ReplicaState::Healthy,
                (Phase::Run | Phase::Drain, state) => state,
                (Phase::Stop, _) => ReplicaState::Stopped,
            };
            changed |= std::mem::replace(state, next) != next;
            if let Some(lease) = replica.lease.filter(|lease| lease.yields) {
                let given_back = Casting { part: Part::Standby, epoch: 0, yielded: lease.epoch };
                changed |= self.observed.castings.insert(replica.id, given_back) != Some(given_back);
            }
        }
        changed
    }
}

/// By service: the copy that has its lease.
type Active<'a> = BTreeMap<&'a ServiceName, (ReplicaId, (Slot, NodeId))>;

/// Who is active of each active-passive service, or is to give that back.
fn active(state: &ClusterState) -> Active<'_> {
    let cast = state.services.values().filter(|service| service.spec.mode == Mode::ActivePassive);
    let active = cast.filter_map(|service| {
        let holder = state.leases.get(&service.spec.name)?.holder?;
        let replica = state.replicas.get(&holder.replica)?;
        let slot = Slot { service: replica.service.clone(), ordinal: replica.ordinal };
        Some((&service.spec.name, (replica.id, (slot, replica.node))))
    });
    active.collect()
}

fn role_moves(before: &Active<'_>, after: &Active<'_>) -> Vec<RoleMove> {
    let services: BTreeSet<&ServiceName> = before.keys().chain(after.keys()).copied().collect();
    let moves = services.into_iter().filter_map(|service| {
        let (was, is) = (before.get(service), after.get(service));
        let differs = was.map(|(id, _)| id) != is.map(|(id, _)| id);
        let copy = |found: Option<&(ReplicaId, (Slot, NodeId))>| found.map(|(_, copy)| copy.clone());
        differs.then(|| RoleMove { service: service.clone(), from: copy(was), to: copy(is) })
    });
    moves.collect()
}

type Layout = BTreeMap<Slot, BTreeSet<NodeId>>;

/// Where each ordinal is to run.
fn layout(state: &ClusterState) -> Layout {
    let mut layout = Layout::new();
    for replica in state.replicas.values().filter(|replica| replica.phase == Phase::Run) {
        let slot = Slot { service: replica.service.clone(), ordinal: replica.ordinal };
        layout.entry(slot).or_default().insert(replica.node);
    }
    layout
}

fn moves(before: &Layout, after: &Layout) -> Vec<Move> {
    let none = BTreeSet::new();
    let slots: BTreeSet<&Slot> = before.keys().chain(after.keys()).collect();
    let mut moves = Vec::new();
    for slot in slots {
        let (was, is) = (before.get(slot).unwrap_or(&none), after.get(slot).unwrap_or(&none));
        let (mut from, mut to) = (was.difference(is).copied(), is.difference(was).copied());
        loop {
            let (from, to) = (from.next(), to.next());
            if from.is_none() && to.is_none() {
                break;
            }
            moves.push(Move { slot: slot.clone(), from, to });
        }
    }
    moves
}
