//! One run of the scheduler: what is done for each service, and in which order.
//!
//! Two things make a replica *stale*: it does not run what its service is now (an update), or it is not
//! where it should be (a drain, a label that changed). Both are cured in the same way (`curing`). How far an
//! update is, and whether it goes on, is found out before (`rollout`).

mod casting;
mod curing;
mod rollout;

use crate::explain::Searched;
use crate::held::{Held, HeldReason, Slot};
use crate::ranking::{Ranking, Search};
use crate::room::{At, Room, Seat, fixed_ports};
use crate::{Observed, Plan, Policy};
use quorate_model::assignment::Phase;
use quorate_model::command::Step;
use quorate_model::deployment::Stage;
use quorate_model::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use quorate_model::observed::ReplicaState;
use quorate_model::place::Availability;
use quorate_model::planted::{Bug, planted};
use quorate_model::spec::{Mode, Order, ServiceSpec};
use quorate_model::state::{ClusterState, Health, NodeRecord, ReplicaRecord, ServiceRecord};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(crate) struct Planner<'a> {
    state: &'a ClusterState,
    observed: &'a Observed,
    former: &'a BTreeMap<ServiceName, ServiceRecord>,
    policy: Policy,
    room: Room<'a>,
    places_left: u32,
    plan: Plan,
    /// Whose searches are written down.
    watched: Option<&'a ServiceName>,
    searches: Vec<Searched>,
    /// Copies that this plan has give their role back.
    yielding: BTreeSet<ReplicaId>,
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

/// What replicas run that are missing while an update tries a version out, or is held: the version before.
pub(crate) fn former(state: &ClusterState) -> BTreeMap<ServiceName, ServiceRecord> {
    let open = state.deployments.values().filter(|deployment| {
        let tried = matches!(deployment.stage, Stage::Canary | Stage::AwaitPromotion);
        !deployment.stage.goes_back() && !deployment.stage.is_over() && (tried || deployment.held.is_some())
    });
    open.filter_map(|deployment| {
        let record = state.former(&deployment.service, deployment.from?)?;
        Some((deployment.service.clone(), record))
    })
    .collect()
}

impl<'a> Planner<'a> {
    pub(crate) fn new(
        state: &'a ClusterState,
        observed: &'a Observed,
        former: &'a BTreeMap<ServiceName, ServiceRecord>,
        policy: Policy,
    ) -> Self {
        let room = Room::new(state, observed);
        let (places_left, plan) = (policy.moves_max, Plan::default());
        let (searches, yielding) = (Vec::new(), BTreeSet::new());
        Planner { state, observed, former, policy, room, places_left, plan, watched: None, searches, yielding }
    }

    pub(crate) fn room(&self) -> &Room<'a> {
        &self.room
    }

    /// Writes down the searches of this service.
    pub(crate) fn watch(&mut self, service: &'a ServiceName) {
        self.watched = Some(service);
    }

    /// The plan, and the searches that it made for the watched service.
    pub(crate) fn run(mut self) -> (Plan, Vec<Searched>) {
        let advances = self.advances();
        self.conclude();
        for service in self.in_order() {
            match advances.get(&service.spec.name) {
                // What is to be done is another thing afterwards, save that nobody wants too many.
                Some(advance) if rollout::changes_plans(advance) => self.retire_what_is_too_many(service),
                Some(_) | None => self.look_after(service),
            }
        }
        let advances = advances.into_iter().map(|(service, to)| Step::Advance { service: service.clone(), to });
        self.plan.steps.extend(advances);
        self.plan.held.sort_by(|one, other| one.service.cmp(&other.service));
        (self.plan, self.searches)
    }

    /// First those that have the fewest nodes to choose from, so that nobody with a choice takes the only
    /// node on which a fixed port is free for somebody else; last those that look where others are.
    fn in_order(&self) -> Vec<&'a ServiceRecord> {
        let mut services: Vec<&ServiceRecord> = self.state.services.values().collect();
        services.sort_by_cached_key(|service| {
            let place = &service.spec.place;
            let fits = |node: &&NodeRecord| place.unmet(node).is_none();
            let is_choosy = fixed_ports(&service.spec).next().is_some() && !place.require.is_empty();
            let choices = if is_choosy { self.state.nodes.values().filter(fits).count() } else { usize::MAX };
            (choices, !(place.near.is_empty() && place.apart.is_empty()))
        });
        services
    }

    /// Whether nothing at all is to be said of a service, as it is of most at most times.
    fn is_as_wanted(&self, service: &ServiceRecord) -> bool {
        let mut ordinals = BTreeSet::new();
        service.spec.mode != Mode::EveryNode
            && self.room.of(&service.spec.name).all(|(id, seat)| {
                let is_well = seat.phase == Phase::Run && !seat.is_stale() && self.is_healthy(id);
                is_well && ordinals.insert(seat.ordinal)
            })
            && ordinals.len() == service.copies() as usize
    }

    fn look_after(&mut self, service: &'a ServiceRecord) {
        self.cast(service);
        if self.is_as_wanted(service) {
            return;
        }
        self.retire_what_is_too_many(service);
        if service.stopped.is_some() {
            return;
        }
        self.retire_duplicates(service);
        let full = match service.spec.mode {
            Mode::Replicated | Mode::Singleton | Mode::ActivePassive => self.fill(service),
            Mode::EveryNode => self.fill_nodes(service),
        };
        if full {
            self.cure(service);
        }
        self.tell_what_is_unwell(service);
    }

    /// Everything that needs no choice: what has ended, what may end, what is lost or not wanted.
    fn conclude(&mut self) {
        for replica in self.state.replicas.values() {
            let fate = self.fate(replica.node);
            let service = self.state.services.get(&replica.service);
            match replica.phase {
                // What it held is raised when its time is over, and it goes with that.
                Phase::Run | Phase::Drain | Phase::Stop
                    if replica.lease.is_some() && fate != Fate::Present && !planted(Bug::LeasedForgotten) => {}
                Phase::Run if fate == Fate::Lost && !service.is_some_and(|service| self.keeps(service, replica)) => {
                    self.forget(replica.id);
                }
                Phase::Run if service.is_none() || self.is_out_of_time(replica) => self.end(replica.id),
                Phase::Run => {}
                // Nobody waits for the node to come back: it has nothing to do here any more.
                Phase::Drain | Phase::Stop if fate != Fate::Present => self.forget(replica.id),
                Phase::Drain if self.may_end(replica) => self.release(replica.id),
                Phase::Stop if self.has_ended(replica) => self.forget(replica.id),
                Phase::Drain | Phase::Stop => {}
            }
        }
    }

    /// Whether a replica stays assigned to a node that is lost: of a service that runs on every node nobody
    /// else can take its place, so the node keeps its ordinal for as long as it is of the cluster.
    fn keeps(&self, service: &ServiceRecord, replica: &ReplicaRecord) -> bool {
        let node = self.state.nodes.get(&replica.node);
        service.spec.mode == Mode::EveryNode && node.is_some_and(|node| node.is_one_of_every(&service.spec))
    }

    /// Whether its node is drained, and the time for finding another place is over.
    fn is_out_of_time(&self, replica: &ReplicaRecord) -> bool {
        let node = self.state.nodes.get(&replica.node);
        let deadline = node.and_then(|node| node.availability.drain()?.deadline);
        let since = self.observed.draining_for.get(&replica.node);
        deadline.zip(since).is_some_and(|(deadline, since)| *since >= deadline.0)
    }

    fn retire_what_is_too_many(&mut self, service: &ServiceRecord) {
        match service.spec.mode {
            Mode::Replicated | Mode::Singleton | Mode::ActivePassive => self.retire_surplus(service),
            Mode::EveryNode => self.retire_strays(service),
        }
    }

    /// Retires whole ordinals beyond the wanted number: what is not healthy first, then what is misplaced,
    /// then the highest; what is active last.
    fn retire_surplus(&mut self, service: &ServiceRecord) {
        let ordinals = self.room.ordinals(&service.spec.name);
        let surplus = ordinals.len().saturating_sub(service.copies() as usize);
        if surplus == 0 {
            return;
        }
        let mut candidates: Vec<(u32, Vec<ReplicaId>)> = ordinals.into_iter().collect();
        candidates.sort_by_key(|(ordinal, members)| {
            let healthy = members.iter().any(|id| self.is_healthy(*id));
            let placed = members.iter().any(|id| !self.room.seat(*id).misplaced);
            let active = members.iter().any(|id| self.room.seat(*id).leased);
            (active, healthy, placed, Reverse(*ordinal))
        });
        for id in candidates.into_iter().take(surplus).flat_map(|(_, members)| members) {
            self.end(id);
        }
    }

    /// Of a service that runs on every node: retires what is where it is not to be, and all but one ordinal
    /// of a node, the healthy one before the others, then the lowest.
    fn retire_strays(&mut self, service: &ServiceRecord) {
        let mut ordinals: Vec<(u32, Vec<ReplicaId>)> = self.room.ordinals(&service.spec.name).into_iter().collect();
        ordinals.sort_by_key(|(ordinal, members)| (!members.iter().any(|id| self.is_healthy(*id)), *ordinal));
        let mut kept: BTreeMap<NodeId, u32> = BTreeMap::new();
        for (ordinal, members) in ordinals {
            for id in members {
                let node = self.room.seat(id).node;
                let is_one = self.state.nodes.get(&node).is_some_and(|node| node.is_one_of_every(&service.spec));
                let wanted = is_one && service.stopped.is_none();
                if !wanted || *kept.entry(node).or_insert(ordinal) != ordinal {
                    self.end(id);
                }
            }
        }
    }

    /// Leaves an ordinal at most one replica that is as it should be and one that is stale.
    ///
    /// More than that appears when a version follows another before its update is over, or one drain
    /// another.
    fn retire_duplicates(&mut self, service: &ServiceRecord) {
        for members in self.room.ordinals(&service.spec.name).into_values().filter(|members| members.len() > 1) {
            for stale in [false, true] {
                // One that was ended a moment ago may be gone: its node is away.
                let here = members.iter().copied().filter(|id| self.room.has(*id));
                let mut same: Vec<ReplicaId> = here.filter(|id| self.room.seat(*id).is_stale() == stale).collect();
                // Of those that nobody calls healthy now the oldest is the likeliest to serve: a leader that
                // has just come has not heard of each yet, and what is newest was begun a moment ago. Not by
                // version: what goes back to an older one is newer (found by the simulator, seed 726).
                let placed =
                    |id: &ReplicaId| self.state.replicas.get(id).map_or(LogIndex(u64::MAX), |replica| replica.revision);
                same.sort_by_key(|id| (!self.is_healthy(*id), placed(id), self.room.seat(*id).version));
                for id in same.into_iter().skip(1) {
                    self.end(id);
                }
            }
        }
    }

    /// Places what is missing, in the lowest free ordinals. `false`: something is still missing.
    fn fill(&mut self, service: &'a ServiceRecord) -> bool {
        let taken = self.room.ordinals(&service.spec.name);
        let missing = (service.spec.replicas as usize).saturating_sub(taken.len());
        if missing == 0 {
            return true;
        }
        if let Some(node) = self.may_still_run(&service.spec) {
            let reason = self.lease_held(service, node);
            self.hold(service, reason);
            return false;
        }
        // Where an update stops first, each old replica on its way out keeps its successor waiting.
        // They are counted and not compared by ordinal: after losses and scaling the lowest free
        // ordinal need not be the one that the update freed.
        let ending = if ends_first(&service.spec) { self.ending(service) } else { Vec::new() };
        let ready = missing.saturating_sub(ending.len());
        let free = (0..).filter(|ordinal| !taken.contains_key(ordinal)).take(ready);
        for (at, ordinal) in free.enumerate() {
            let version = self.version_to_fill(service);
            if !self.place(Search::new(version, ordinal), ready - at - 1) {
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

    /// Places one on each node that has none, in the ordinal that it had or the lowest free one. What a node cannot take keeps
    /// no other node waiting.
    fn fill_nodes(&mut self, service: &'a ServiceRecord) -> bool {
        let name = &service.spec.name;
        let mut taken: BTreeSet<u32> = self.room.ordinals(name).into_keys().collect();
        let served: BTreeSet<At> = self.room.running(name).map(|(_, at)| at).collect();
        let ending = if ends_first(&service.spec) { self.ending(service) } else { Vec::new() };
        for at in (0..self.room.spots().len()).filter(|at| !served.contains(at)) {
            let node = self.room.spots()[at].record;
            let absent = node.health != Health::Joined || node.availability == Availability::Cordoned;
            if absent || !node.is_one_of_every(&service.spec) {
                continue;
            }
            if let Some(old) = ending.iter().find(|old| old.node == node.identity.id) {
                self.hold_for_ending(*old);
                continue;
            }
            let before = self.room.ordinal_at(name, at).filter(|ordinal| !taken.contains(ordinal));
            let lowest = || (0..).find(|ordinal| !taken.contains(ordinal)).expect("there are more numbers than nodes");
            let ordinal = before.unwrap_or_else(lowest);
            let version = self.version_to_fill(service);
            if let Some(unfit) = Ranking::new(&self.room, Search::new(version, ordinal)).unfit(at) {
                self.hold(service, HeldReason::Misses { node: node.identity.name.clone(), unfit });
                continue;
            }
            if self.places_left == 0 {
                self.hold(service, HeldReason::PlanFull { left: 1 });
                return false;
            }
            taken.insert(ordinal);
            self.put(version, ordinal, at);
        }
        true
    }

    /// Says what keeps running replicas from being well, where that is not said already.
    fn tell_what_is_unwell(&mut self, service: &ServiceRecord) {
        self.tell_what_is_held(service);
        let mut nodes = BTreeSet::new();
        for id in self.room.ordinals(&service.spec.name).into_values().flatten() {
            let seat = *self.room.seat(id);
            let fate = self.fate(seat.node);
            if fate == Fate::Present && !self.observed.unreachable_for.contains_key(&seat.node) {
                if self.observed.replicas.get(&id) == Some(&ReplicaState::Failed) {
                    let slot = seat.slot();
                    let said = |held: &Held| matches!(&held.reason, HeldReason::UpdateFailed { slot: other, .. } if *other == slot);
                    if !self.plan.held.iter().any(said) {
                        let (node, detail) = (self.room.node_name(seat.node), self.detail(id));
                        self.hold(service, HeldReason::Failed { slot, node, detail });
                    }
                }
            } else if nodes.insert(seat.node) {
                let node = self.room.node_name(seat.node);
                match (fate, self.observed.unreachable_for.get(&seat.node)) {
                    (Fate::Awaited(_) | Fate::Lost, _) if seat.leased => {
                        let reason = self.lease_held(service, seat.node);
                        self.hold(service, reason);
                    }
                    // It runs nowhere else, so nothing is waited for.
                    (Fate::Awaited(_) | Fate::Lost, _) if service.spec.mode == Mode::EveryNode => {}
                    (Fate::Awaited(remaining), _) => self.hold(service, HeldReason::AwaitsReturn { node, remaining }),
                    (_, Some(silent_for)) => {
                        self.hold(service, HeldReason::Unreachable { node, silent_for: *silent_for });
                    }
                    (Fate::Present | Fate::Lost, None) => {}
                }
            }
        }
    }

    /// A node for a replica. `None`: there is none, and it is said why; `more` is how many others of the
    /// service are still to be placed.
    fn find(&mut self, search: Search<'a>, more: usize) -> Option<At> {
        if self.watched == Some(&search.service.spec.name) {
            self.write_down(search);
        }
        let nodes = match (search.service.spec.mode, search.replaces) {
            (Mode::EveryNode, Some(old)) => {
                let at = self.room.seat(old).at?;
                let Some(unfit) = Ranking::new(&self.room, search).unfit(at) else { return Some(at) };
                vec![(self.room.spots()[at].record.identity.name.clone(), unfit)]
            }
            (Mode::EveryNode, None) | (Mode::Replicated | Mode::Singleton | Mode::ActivePassive, _) => {
                match Ranking::new(&self.room, search).best() {
                    Ok(at) => return Some(at),
                    Err(unfit) => unfit,
                }
            }
        };
        let slot = Slot { service: search.service.spec.name.clone(), ordinal: search.ordinal };
        self.hold(search.service, HeldReason::NoNode { slot, more: u32::try_from(more).unwrap_or(u32::MAX), nodes });
        None
    }

    fn write_down(&mut self, search: Search<'a>) {
        let slot = Slot { service: search.service.spec.name.clone(), ordinal: search.ordinal };
        let from = search.replaces.map(|old| self.room.node_name(self.room.seat(old).node));
        let mode = search.service.spec.mode;
        let candidates = Ranking::new(&self.room, search).in_words().of_mode(mode, from.as_deref().unwrap_or_default());
        self.searches.push(Searched { slot, from, candidates });
    }

    fn place(&mut self, search: Search<'a>, more: usize) -> bool {
        if self.places_left == 0 {
            let left = u32::try_from(more).unwrap_or(u32::MAX).saturating_add(1);
            self.hold(search.service, HeldReason::PlanFull { left });
            return false;
        }
        let Some(at) = self.find(search, more) else { return false };
        self.put(search.service, search.ordinal, at);
        true
    }

    fn put(&mut self, service: &'a ServiceRecord, ordinal: u32, at: At) {
        let (name, node) = (&service.spec.name, self.room.spots()[at].record.identity.id);
        let replica = self.new_id(name, ordinal, node);
        let (version, spec, phase) = (service.version, &service.spec, Phase::Run);
        let (at, leased) = (Some(at), spec.mode == Mode::Singleton);
        let outdated = self.state.services.get(name).is_some_and(|present| present.version != version);
        let (misplaced, moving) = (false, false);
        let seat = Seat { service: name, ordinal, node, at, phase, version, leased, outdated, misplaced, moving, spec };
        self.places_left -= 1;
        self.room.insert(replica, seat);
        let version = outdated.then_some(version);
        let epoch = leased.then(|| self.state.next_epoch(name));
        self.plan.steps.push(Step::Place { replica, service: name.clone(), ordinal, node, version, epoch });
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
        let seat = self.room.seat(id);
        // It may have been ended for another reason already.
        if seat.phase != Phase::Run || self.ends_later(id) {
            return;
        }
        let seat = self.room.seat(id);
        if self.fate(seat.node) != Fate::Present && !seat.leased {
            return self.forget(id);
        }
        self.room.set_phase(id, Phase::Drain);
        self.plan.steps.push(Step::Retire { replica: id });
    }

    fn release(&mut self, id: ReplicaId) {
        self.room.set_phase(id, Phase::Stop);
        self.plan.steps.push(Step::Release { replica: id });
    }

    fn forget(&mut self, id: ReplicaId) {
        self.room.remove(id);
        self.plan.steps.push(Step::Forget { replica: id });
    }

    fn may_end(&self, replica: &ReplicaRecord) -> bool {
        self.observed.drained.contains(&replica.id)
            || self.observed.retired_for.get(&replica.id).is_some_and(|span| *span >= replica.spec.stop.grace.0)
    }

    /// Whether nothing runs of a released replica any more.
    fn has_ended(&self, replica: &ReplicaRecord) -> bool {
        match self.observed.replicas.get(&replica.id) {
            // Nothing less than its node's word that it ended; one that failed may be tried again.
            state if replica.lease.is_some() => state == Some(&ReplicaState::Stopped) || planted(Bug::GivenBackEarly),
            Some(state) => matches!(state, ReplicaState::Stopped | ReplicaState::Failed),
            None => self.observed.reported.contains(&replica.node),
        }
    }

    /// Where a service that runs once may still run, so that nobody else may have its lease.
    fn may_still_run(&self, spec: &ServiceSpec) -> Option<NodeId> {
        let holder = self.state.leases.get(&spec.name)?.holder?;
        let may = spec.mode == Mode::Singleton && self.room.has(holder.replica);
        may.then_some(holder.node)
    }

    /// Why nobody else starts it.
    fn lease_held(&self, service: &ServiceRecord, node: NodeId) -> HeldReason {
        let keeps = self.state.leases.get(&service.spec.name).is_some_and(|lease| lease.keeps);
        let is_away = self.fate(node) != Fate::Present;
        let node = self.room.node_name(node);
        if keeps && is_away { HeldReason::Kept { node } } else { HeldReason::LeaseHeld { node } }
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

    /// The last report of a node that cannot be asked says nothing about now.
    fn is_healthy(&self, id: ReplicaId) -> bool {
        self.room.answers(self.room.seat(id).at) && self.observed.replicas.get(&id) == Some(&ReplicaState::Healthy)
    }

    /// Said once, however often it is found.
    fn hold(&mut self, service: &ServiceRecord, reason: HeldReason) {
        self.hold_once(Held { service: service.spec.name.clone(), reason });
    }

    fn hold_once(&mut self, held: Held) {
        let mut mine = self.plan.held.iter().rev().take_while(|other| other.service == held.service);
        if !mine.any(|other| *other == held) {
            self.plan.held.push(held);
        }
    }

    fn detail(&self, id: ReplicaId) -> String {
        self.observed.details.get(&id).cloned().unwrap_or_default()
    }
}

/// Whether successors wait for old replicas that are on their way out.
fn ends_first(spec: &ServiceSpec) -> bool {
    spec.is_alone_on_its_node() || spec.update.order == Some(Order::StopFirst)
}
