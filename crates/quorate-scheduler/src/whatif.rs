//! What would be done if something happened: the scheduler, run on a cluster in which it has.
//!
//! Commands go through [`ClusterState::decide`] as they do in the cluster, plans are those of
//! [`plan`](crate::plan), and they are made until nothing is left to do. Only the nodes are imagined: one that
//! answers starts what it is assigned, and it becomes healthy; it ends what it is to end. Replicas that are not
//! well now stay so. Times that are waited for pass in their order: leases that nobody renews, and the patience
//! with nodes that are down.

use crate::held::{Held, Slot};
use crate::{Observed, Policy, plan};
use quorate_model::assignment::Phase;
use quorate_model::command::Command;
use quorate_model::id::{LogIndex, NodeId};
use quorate_model::lease::{LeaseCommand, LeaseRecord};
use quorate_model::observed::ReplicaState;
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

/// Plans that are made at most, for each replica of the cluster. An ordinal is placed, retired, released and
/// forgotten, by one plan each at the worst; a cluster that is not at rest after that never is.
const PLANS_PER_REPLICA: usize = 8;

pub(crate) fn what_if(state: &ClusterState, observed: &Observed, policy: &Policy, fault: Fault) -> Forecast {
    let mut imagined = Imagined { state: state.clone(), observed: observed.clone(), policy: *policy };
    match fault {
        Fault::Kill(node) => imagined.kill(node),
    }
    // One after the other, what is waited for is over: who comes first has the choice.
    let leases = imagined.lost_leases().map(|lease| lease.ttl.0);
    let times: BTreeSet<Duration> = leases.chain([Duration::ZERO, policy.replace_after]).collect();
    let mut held = Vec::new();
    for time in times {
        imagined.wait_until(time);
        held = imagined.settle();
    }
    Forecast { moves: moves(&layout(state), &layout(&imagined.state)), held }
}

struct Imagined {
    state: ClusterState,
    observed: Observed,
    policy: Policy,
}

impl Imagined {
    /// Lets so much time pass since the fault.
    fn wait_until(&mut self, time: Duration) {
        for record in self.state.nodes.values().filter(|record| record.health != Health::Joined) {
            let down_for = self.observed.down_for.entry(record.identity.id).or_default();
            *down_for = time.max(*down_for);
        }
        let over: Vec<LeaseRecord> = self.lost_leases().filter(|lease| lease.ttl.0 <= time).cloned().collect();
        for LeaseRecord { name, epoch, .. } in over {
            self.run(&Command::Lease(LeaseCommand::Fence { name: name.clone(), epoch }));
            self.run(&Command::Lease(LeaseCommand::Raise { name, epoch }));
        }
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
        let wanted: u32 = self.state.services.values().map(|service| self.state.wanted(&service.spec)).sum();
        let plans = PLANS_PER_REPLICA * (self.state.replicas.len() + wanted as usize + 1);
        let mut held = Vec::new();
        for _ in 0..plans {
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
        self.run(&Command::ChangeHealth { node, generation, health: Health::Down, at });
        self.observed.unreachable_for.remove(&node);
        self.observed.returns_within.remove(&node);
        self.observed.reported.remove(&node);
        self.observed.down_for.remove(&node);
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
        for replica in known.values() {
            // Gateways finish with it, or its grace ends.
            if replica.phase == Phase::Drain {
                changed |= self.observed.drained.insert(replica.id);
            }
            let answers = self.state.nodes.get(&replica.node).is_some_and(|node| node.health == Health::Joined)
                && !self.observed.unreachable_for.contains_key(&replica.node);
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
        }
        changed
    }
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
