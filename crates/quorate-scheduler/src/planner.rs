//! One run of the scheduler.
//!
//! The planner works on a copy of the replicas and carries out each step there at once, so a later
//! decision of the same plan sees the earlier ones: a port freed, a node filled.

use crate::held::{Held, HeldReason, Slot, Unfit};
use crate::{Observed, Plan, Policy};
use quorate_model::assignment::Phase;
use quorate_model::command::Step;
use quorate_model::id::{NodeId, ReplicaId, ServiceName};
use quorate_model::observed::ReplicaState;
use quorate_model::spec::{Port, ServiceSpec};
use quorate_model::state::{ClusterState, Health, ReplicaRecord, Role, ServiceRecord};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(crate) struct Planner<'a> {
    state: &'a ClusterState,
    observed: &'a Observed,
    policy: Policy,
    /// Replicas as they are once the steps so far are carried out.
    replicas: BTreeMap<ReplicaId, Seat<'a>>,
    places_left: u32,
    plan: Plan,
}

/// What planning needs of a replica.
#[derive(Clone, Copy)]
struct Seat<'a> {
    service: &'a ServiceName,
    ordinal: u32,
    node: NodeId,
    phase: Phase,
    version: u64,
    /// It does not run what its service is now.
    outdated: bool,
    spec: &'a ServiceSpec,
}

/// What may become of replicas on a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Nobody has decided that the node is gone.
    Present,
    /// Down, and given time to come back.
    Awaited(Duration),
    /// Down for long enough, or not of the cluster any more.
    Lost,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(state: &'a ClusterState, observed: &'a Observed, policy: Policy) -> Self {
        let seat = |replica: &'a ReplicaRecord| Seat {
            service: &replica.service,
            ordinal: replica.ordinal,
            node: replica.node,
            phase: replica.phase,
            version: replica.version,
            outdated: state.services.get(&replica.service).is_none_or(|service| is_outdated(replica, service)),
            spec: &replica.spec,
        };
        let replicas = state.replicas.iter().map(|(id, replica)| (*id, seat(replica))).collect();
        Planner { state, observed, policy, replicas, places_left: policy.moves_max, plan: Plan::default() }
    }

    pub(crate) fn run(mut self) -> Plan {
        self.conclude();
        for service in self.state.services.values() {
            self.retire_surplus(service);
            self.retire_duplicates(service);
            if self.fill(service) {
                self.update(service);
            }
            self.explain(service);
        }
        self.plan
    }

    /// Everything that needs no choice: what has ended, what may end, what is lost or not wanted.
    fn conclude(&mut self) {
        for replica in self.state.replicas.values() {
            let fate = self.fate(replica.node);
            let wanted = self.state.services.contains_key(&replica.service);
            match replica.phase {
                Phase::Run if fate == Fate::Lost => self.forget(replica.id),
                Phase::Run if !wanted => self.end(replica.id),
                Phase::Run => {}
                // Nobody waits for the node to come back: it has nothing to do here any more.
                Phase::Drain | Phase::Stop if fate != Fate::Present => self.forget(replica.id),
                Phase::Drain if self.may_end(replica) => self.release(replica.id),
                Phase::Stop if self.has_ended(replica) => self.forget(replica.id),
                Phase::Drain | Phase::Stop => {}
            }
        }
    }

    /// Retires whole ordinals beyond the wanted number: what is not healthy first, then the highest.
    fn retire_surplus(&mut self, service: &ServiceRecord) {
        let ordinals = self.ordinals(&service.spec.name);
        let surplus = ordinals.len().saturating_sub(service.spec.replicas as usize);
        let mut candidates: Vec<(u32, Vec<ReplicaId>)> = ordinals.into_iter().collect();
        candidates.sort_by_key(|(ordinal, members)| (members.iter().any(|id| self.is_healthy(*id)), Reverse(*ordinal)));
        for id in candidates.into_iter().take(surplus).flat_map(|(_, members)| members) {
            self.end(id);
        }
    }

    /// Leaves an ordinal at most one replica of the present version and one that is outdated.
    ///
    /// More than that appears when a version follows another before its update is over.
    fn retire_duplicates(&mut self, service: &ServiceRecord) {
        for members in self.ordinals(&service.spec.name).into_values() {
            for outdated in [false, true] {
                let mut same: Vec<ReplicaId> =
                    members.iter().copied().filter(|id| self.replicas[id].outdated == outdated).collect();
                same.sort_by_key(|id| Reverse((self.is_healthy(*id), self.replicas[id].version)));
                for id in same.into_iter().skip(1) {
                    self.end(id);
                }
            }
        }
    }

    /// Places what is missing, in the lowest free ordinals. `false`: something is still missing.
    fn fill(&mut self, service: &'a ServiceRecord) -> bool {
        let taken = self.ordinals(&service.spec.name);
        let missing = (service.spec.replicas as usize).saturating_sub(taken.len());
        // Where an update stops first, each old replica on its way out keeps its successor waiting.
        // They are counted and not compared by ordinal: after losses and scaling the lowest free
        // ordinal need not be the one that the update freed.
        let ending = if stops_first(&service.spec) { self.ending(service) } else { Vec::new() };
        let ready = missing.saturating_sub(ending.len());
        let free = (0..).filter(|ordinal| !taken.contains_key(ordinal)).take(ready);
        for (at, ordinal) in free.enumerate() {
            if !self.place(service, ordinal, None, ready - at - 1) {
                return false;
            }
        }
        if let Some(old) = ending.first()
            && ready < missing
        {
            self.hold_for_ending(*old);
        }
        ready == missing
    }

    /// Moves a service one step from older versions towards the present one.
    fn update(&mut self, service: &'a ServiceRecord) {
        let ordinals = self.ordinals(&service.spec.name);
        if !ordinals.values().flatten().any(|id| self.replicas[id].outdated) {
            return;
        }
        let mut outdated: Vec<ReplicaId> = Vec::new();
        let mut unsettled: Option<ReplicaId> = None;
        for members in ordinals.into_values() {
            let (old, new): (Vec<ReplicaId>, Vec<ReplicaId>) =
                members.into_iter().partition(|id| self.replicas[id].outdated);
            match (old.first(), new.first()) {
                (Some(old), Some(new)) if self.is_healthy(*new) => self.end(*old),
                (Some(old), None) => outdated.push(*old),
                (_, Some(new)) if !self.is_healthy(*new) => unsettled = unsettled.or(Some(*new)),
                _ => {}
            }
        }
        if let Some(new) = unsettled {
            return self.hold_for_new(service, new);
        }
        if outdated.is_empty() {
            return;
        }
        if let Some(old) = self.ending(service).first() {
            return self.hold_for_ending(*old);
        }
        // What is not healthy loses nothing by being replaced. What cannot be asked is left to the
        // decision about its node.
        let next = outdated
            .into_iter()
            .filter(|id| self.answers(self.replicas[id].node))
            .min_by_key(|id| (self.is_healthy(*id), self.replicas[id].ordinal));
        let Some(old) = next else { return };
        if stops_first(&service.spec) {
            self.end(old);
        } else {
            self.place(service, self.replicas[&old].ordinal, Some(old), 0);
        }
    }

    /// Says what keeps running replicas from being well, where that is not said already.
    fn explain(&mut self, service: &ServiceRecord) {
        let mut nodes = BTreeSet::new();
        for id in self.ordinals(&service.spec.name).into_values().flatten() {
            let seat = self.replicas[&id];
            let node = self.node_name(seat.node);
            if let Fate::Awaited(remaining) = self.fate(seat.node) {
                if nodes.insert(seat.node) {
                    self.hold(service, HeldReason::AwaitsReturn { node, remaining });
                }
            } else if let Some(silent_for) = self.observed.unreachable_for.get(&seat.node) {
                if nodes.insert(seat.node) {
                    self.hold(service, HeldReason::Unreachable { node, silent_for: *silent_for });
                }
            } else if self.observed.replicas.get(&id) == Some(&ReplicaState::Failed) {
                let slot = slot(&seat);
                let said = |held: &Held| matches!(&held.reason, HeldReason::UpdateFailed { slot: other, .. } if *other == slot);
                if !self.plan.held.iter().any(said) {
                    self.hold(service, HeldReason::Failed { slot, node, detail: self.detail(id) });
                }
            }
        }
    }

    /// Chooses a node for a new replica. `replaced` will end soon and does not count as load;
    /// `more` is how many others of the service are still to be placed, for the message.
    fn place(&mut self, service: &'a ServiceRecord, ordinal: u32, replaced: Option<ReplicaId>, more: usize) -> bool {
        let name = &service.spec.name;
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if self.places_left == 0 {
            self.hold(service, HeldReason::PlanFull { left: more + 1 });
            return false;
        }
        let mut load: BTreeMap<NodeId, (u32, u32)> = BTreeMap::new();
        let running = self.replicas.iter().filter(|(id, seat)| seat.phase == Phase::Run && Some(**id) != replaced);
        for (_, seat) in running {
            let (same, all) = load.entry(seat.node).or_default();
            *same += u32::from(seat.service == name);
            *all += 1;
        }
        let mut unfit = Vec::new();
        let mut best = None;
        for node in self.state.nodes.keys() {
            if let Some(reason) = self.unfit(*node, &service.spec) {
                unfit.push((self.node_name(*node), reason));
                continue;
            }
            let (same, all) = load.get(node).copied().unwrap_or_default();
            let rank = (same, all, Reverse(affinity(name, ordinal, *node)), *node);
            if best.is_none_or(|other| rank < other) {
                best = Some(rank);
            }
        }
        let Some((_, _, _, node)) = best else {
            unfit.sort_by(|(a, _), (b, _)| a.cmp(b));
            let slot = Slot { service: name.clone(), ordinal };
            self.hold(service, HeldReason::NoNode { slot, more, nodes: unfit });
            return false;
        };
        let replica = self.new_id(name, ordinal, node);
        self.places_left -= 1;
        let (version, spec) = (service.version, &service.spec);
        let seat = Seat { service: name, ordinal, node, phase: Phase::Run, version, outdated: false, spec };
        self.replicas.insert(replica, seat);
        self.plan.steps.push(Step::Place { replica, service: name.clone(), ordinal, node });
        true
    }

    fn unfit(&self, node: NodeId, spec: &ServiceSpec) -> Option<Unfit> {
        let record = self.state.nodes.get(&node)?;
        match record.health {
            Health::Joined => {}
            Health::Down | Health::Left => return Some(Unfit::Down),
        }
        if self.observed.unreachable_for.contains_key(&node) {
            return Some(Unfit::Unreachable);
        }
        if !record.identity.roles.contains(&Role::Worker) {
            return Some(Unfit::NoWorker);
        }
        if record.expelling {
            return Some(Unfit::Leaving);
        }
        let wanted: BTreeSet<u16> = fixed_ports(spec).collect();
        let here = self.replicas.values().filter(|seat| !wanted.is_empty() && seat.node == node);
        here.flat_map(|seat| fixed_ports(seat.spec).map(move |port| (port, seat)))
            .find(|(port, _)| wanted.contains(port))
            .map(|(port, seat)| Unfit::PortTaken { port, by: slot(seat) })
    }

    /// Derived from what decided it, so that the same plan has the same ids wherever it is made.
    fn new_id(&self, service: &ServiceName, ordinal: u32, node: NodeId) -> ReplicaId {
        let mut bytes = service.as_str().as_bytes().to_vec();
        bytes.push(0);
        bytes.extend(ordinal.to_le_bytes());
        bytes.extend(node.0.as_bytes());
        bytes.extend(self.state.planned_on.0.to_le_bytes());
        bytes.extend((self.plan.steps.len() as u64).to_le_bytes());
        ReplicaId::from_u128(xxhash_rust::xxh3::xxh3_128(&bytes))
    }

    /// Retires a running replica; one whose node is away is forgotten, nobody could drain it.
    fn end(&mut self, id: ReplicaId) {
        if self.fate(self.replicas[&id].node) != Fate::Present {
            return self.forget(id);
        }
        self.set_phase(id, Phase::Drain);
        self.plan.steps.push(Step::Retire { replica: id });
    }

    fn release(&mut self, id: ReplicaId) {
        self.set_phase(id, Phase::Stop);
        self.plan.steps.push(Step::Release { replica: id });
    }

    fn forget(&mut self, id: ReplicaId) {
        self.replicas.remove(&id);
        self.plan.steps.push(Step::Forget { replica: id });
    }

    fn set_phase(&mut self, id: ReplicaId, phase: Phase) {
        if let Some(seat) = self.replicas.get_mut(&id) {
            seat.phase = phase;
        }
    }

    fn may_end(&self, replica: &ReplicaRecord) -> bool {
        self.observed.drained.contains(&replica.id)
            || self.observed.retired_for.get(&replica.id).is_some_and(|span| *span >= replica.spec.stop.grace.0)
    }

    /// Whether nothing runs of a released replica any more.
    fn has_ended(&self, replica: &ReplicaRecord) -> bool {
        match self.observed.replicas.get(&replica.id) {
            Some(state) => matches!(state, ReplicaState::Stopped | ReplicaState::Failed),
            None => self.observed.reported.contains(&replica.node),
        }
    }

    fn fate(&self, node: NodeId) -> Fate {
        let Some(record) = self.state.nodes.get(&node) else { return Fate::Lost };
        let remaining =
            self.policy.replace_after.saturating_sub(self.observed.down_for.get(&node).copied().unwrap_or_default());
        let remaining = remaining.max(self.observed.returns_within.get(&node).copied().unwrap_or_default());
        match record.health {
            Health::Joined => Fate::Present,
            // A clean stop is most often a restart: its replicas live on and are waited for like any.
            Health::Down | Health::Left if remaining.is_zero() => Fate::Lost,
            Health::Down | Health::Left => Fate::Awaited(remaining),
        }
    }

    fn answers(&self, node: NodeId) -> bool {
        self.fate(node) == Fate::Present && !self.observed.unreachable_for.contains_key(&node)
    }

    /// The last report of a node that cannot be asked says nothing about now.
    fn is_healthy(&self, id: ReplicaId) -> bool {
        self.observed.replicas.get(&id) == Some(&ReplicaState::Healthy)
            && self.replicas.get(&id).is_some_and(|seat| self.answers(seat.node))
    }

    /// The replicas that are to run, by ordinal.
    fn ordinals(&self, service: &ServiceName) -> BTreeMap<u32, Vec<ReplicaId>> {
        let mut ordinals: BTreeMap<u32, Vec<ReplicaId>> = BTreeMap::new();
        for (id, seat) in &self.replicas {
            if seat.service == service && seat.phase == Phase::Run {
                ordinals.entry(seat.ordinal).or_default().push(*id);
            }
        }
        ordinals
    }

    /// Replicas of older versions that are on their way out.
    fn ending(&self, service: &ServiceRecord) -> Vec<Seat<'a>> {
        let mine = self.replicas.values().filter(|seat| *seat.service == service.spec.name);
        mine.filter(|seat| seat.outdated && seat.phase != Phase::Run).copied().collect()
    }

    fn hold(&mut self, service: &ServiceRecord, reason: HeldReason) {
        self.plan.held.push(Held { service: service.spec.name.clone(), reason });
    }

    fn hold_for_ending(&mut self, old: Seat<'_>) {
        let reason = HeldReason::Ending { slot: slot(&old), node: self.node_name(old.node) };
        self.plan.held.push(Held { service: old.service.clone(), reason });
    }

    fn hold_for_new(&mut self, service: &ServiceRecord, new: ReplicaId) {
        let (slot, version) = (slot(&self.replicas[&new]), service.version);
        let reason = match self.observed.replicas.get(&new) {
            Some(ReplicaState::Unhealthy | ReplicaState::BackingOff | ReplicaState::Failed) => {
                HeldReason::UpdateFailed { slot, version, detail: self.detail(new) }
            }
            _ => HeldReason::UpdateWaits { slot, version },
        };
        self.hold(service, reason);
    }

    fn detail(&self, id: ReplicaId) -> String {
        self.observed.details.get(&id).cloned().unwrap_or_default()
    }

    fn node_name(&self, node: NodeId) -> String {
        self.state.nodes.get(&node).map_or_else(|| node.to_string(), |record| record.identity.name.clone())
    }
}

/// Versions of a service that was removed and made anew begin at 1 again, so the program counts too.
fn is_outdated(replica: &ReplicaRecord, service: &ServiceRecord) -> bool {
    let scaled = ServiceSpec { replicas: service.spec.replicas, ..replica.spec.clone() };
    replica.version != service.version || scaled != service.spec
}

/// Whether an old replica must end before its successor starts: two could not listen on one port.
fn stops_first(spec: &ServiceSpec) -> bool {
    fixed_ports(spec).next().is_some()
}

fn fixed_ports(spec: &ServiceSpec) -> impl Iterator<Item = u16> {
    spec.ports.values().filter_map(|port| match port {
        Port::Fixed(number) => Some(*number),
        Port::Auto => None,
    })
}

/// Rendezvous hash: each ordinal has its own order of the nodes, so a node more or less moves only
/// what it must.
fn affinity(service: &ServiceName, ordinal: u32, node: NodeId) -> u64 {
    let mut bytes = service.as_str().as_bytes().to_vec();
    bytes.push(0);
    bytes.extend(ordinal.to_le_bytes());
    bytes.extend(node.0.as_bytes());
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

fn slot(seat: &Seat<'_>) -> Slot {
    Slot { service: seat.service.clone(), ordinal: seat.ordinal }
}
