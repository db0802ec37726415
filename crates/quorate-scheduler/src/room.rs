//! Who is where: replicas and nodes as they are once the steps so far are carried out.
//!
//! Each step is carried out here at once, so a later decision of the same plan sees the earlier ones: a
//! port freed, a node filled. What decisions count (load, ports, replicas of a service) is kept up with
//! each step and never counted anew: a plan of thousands of placements would take seconds otherwise.

use crate::Observed;
use crate::held::{Slot, Unfit};
use quorate_model::assignment::Phase;
use quorate_model::id::{NodeId, ReplicaId, ServiceName};
use quorate_model::place::Availability;
use quorate_model::resource::Amount;
use quorate_model::spec::{Mode, Port, ServiceSpec};
use quorate_model::state::{ClusterState, Health, NodeRecord, ReplicaRecord, Role, ServiceRecord};
use std::collections::{BTreeMap, BTreeSet};

/// A node's position in [`Room::spots`].
pub(crate) type At = usize;

pub(crate) struct Room<'a> {
    seats: BTreeMap<ReplicaId, Seat<'a>>,
    of: BTreeMap<&'a ServiceName, Vec<ReplicaId>>,
    /// In the order of their ids.
    spots: Vec<Spot<'a>>,
    index: BTreeMap<NodeId, At>,
    /// Where the ordinals of a service were when planning began.
    homes: BTreeMap<&'a ServiceName, Vec<(u32, At)>>,
    /// What services are now.
    present: &'a BTreeMap<ServiceName, ServiceRecord>,
    /// Has what nodes lack of what services need.
    observed: &'a Observed,
}

/// What planning needs of a replica.
#[derive(Clone, Copy)]
pub(crate) struct Seat<'a> {
    pub(crate) service: &'a ServiceName,
    pub(crate) ordinal: u32,
    pub(crate) node: NodeId,
    /// Of a node of the cluster.
    pub(crate) at: Option<At>,
    pub(crate) phase: Phase,
    pub(crate) version: u64,
    /// It holds a lease, or held one: it may run on until that is over, wherever its node is.
    pub(crate) leased: bool,
    /// It does not run what its service is now.
    pub(crate) outdated: bool,
    /// It is to be brought elsewhere: its node is drained, or does not meet what its service requires, or somebody
    /// asked for balance.
    pub(crate) misplaced: bool,
    /// Somebody asked for balance, so it is not to stay on its node.
    pub(crate) moving: bool,
    pub(crate) spec: &'a ServiceSpec,
}

/// What planning needs of a node.
pub(crate) struct Spot<'a> {
    pub(crate) record: &'a NodeRecord,
    /// Why it takes nothing, whatever it is.
    pub(crate) closed: Option<Unfit>,
    /// Replicas that are to run there.
    pub(crate) load: u32,
    /// What it has for replicas, if it has said so.
    pub(crate) capacity: Option<Amount>,
    /// What is set aside for its replicas, in whatever phase: until one has ended it uses what it has.
    pub(crate) reserved: Amount,
    /// Who has a fixed port, in whatever phase.
    ports: BTreeMap<u16, BTreeSet<ReplicaId>>,
}

impl<'a> Seat<'a> {
    pub(crate) fn slot(&self) -> Slot {
        Slot { service: self.service.clone(), ordinal: self.ordinal }
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.outdated || self.misplaced
    }

    fn of(replica: &'a ReplicaRecord, state: &ClusterState, room: &Room<'a>) -> Seat<'a> {
        let service = state.services.get(&replica.service);
        let at = room.at(replica.node);
        let node = at.map(|at| room.spots[at].record);
        Seat {
            at,
            service: &replica.service,
            ordinal: replica.ordinal,
            node: replica.node,
            phase: replica.phase,
            version: replica.version,
            leased: replica.lease.is_some(),
            outdated: service.is_none_or(|service| is_outdated(replica, service)),
            misplaced: replica.moving || service.zip(node).is_some_and(|(service, node)| is_misplaced(node, service)),
            moving: replica.moving,
            spec: &replica.spec,
        }
    }
}

/// Versions of a service that was removed and made anew begin at 1 again, so the program counts too.
fn is_outdated(replica: &ReplicaRecord, service: &ServiceRecord) -> bool {
    replica.version != service.version || !replica.spec.runs_the_same(&service.spec)
}

fn is_misplaced(node: &NodeRecord, service: &ServiceRecord) -> bool {
    match service.spec.mode {
        // The role leaves a server that is about to end; the copy stays, and stands by when that is back.
        Mode::Replicated | Mode::ActivePassive => {
            node.availability.drain().is_some() || service.spec.place.unmet(node).is_some()
        }
        // What may run twice outlives its server for as long as that is awaited; what runs once could not be
        // started elsewhere then before its lease is over.
        Mode::Singleton => {
            node.handing_over || node.availability.drain().is_some() || service.spec.place.unmet(node).is_some()
        }
        // There is no other place for it: it runs there, or ends.
        Mode::EveryNode => false,
    }
}

fn closed(node: &NodeRecord, observed: &Observed) -> Option<Unfit> {
    match node.health {
        Health::Joined => {}
        Health::Down | Health::Left => return Some(Unfit::Down),
    }
    if observed.unreachable_for.contains_key(&node.identity.id) {
        return Some(Unfit::Unreachable);
    }
    if !node.identity.roles.contains(&Role::Worker) {
        return Some(Unfit::NoWorker);
    }
    if node.expelling {
        return Some(Unfit::Leaving);
    }
    if node.handing_over {
        return Some(Unfit::Stopping);
    }
    match node.availability {
        Availability::Open => None,
        Availability::Cordoned => Some(Unfit::Cordoned),
        Availability::Draining(_) => Some(Unfit::Draining),
    }
}

pub(crate) fn fixed_ports(spec: &ServiceSpec) -> impl Iterator<Item = u16> {
    spec.ports.values().filter_map(|port| match port {
        Port::Fixed(number) => Some(*number),
        Port::Auto => None,
    })
}

impl<'a> Room<'a> {
    pub(crate) fn new(state: &'a ClusterState, observed: &'a Observed) -> Room<'a> {
        let spot = |record: &'a NodeRecord| Spot {
            record,
            closed: closed(record, observed),
            load: 0,
            capacity: observed.capacity.get(&record.identity.id).copied(),
            reserved: Amount::default(),
            ports: BTreeMap::new(),
        };
        let mut room = Room {
            seats: BTreeMap::new(),
            of: BTreeMap::new(),
            spots: state.nodes.values().map(spot).collect(),
            index: state.nodes.keys().enumerate().map(|(at, id)| (*id, at)).collect(),
            homes: BTreeMap::new(),
            present: &state.services,
            observed,
        };
        for (id, replica) in &state.replicas {
            let seat = Seat::of(replica, state, &room);
            room.insert(*id, seat);
            if let Some(at) = seat.at {
                room.homes.entry(seat.service).or_default().push((seat.ordinal, at));
            }
        }
        room
    }

    pub(crate) fn insert(&mut self, id: ReplicaId, seat: Seat<'a>) {
        if let Some(spot) = seat.at.map(|at| &mut self.spots[at]) {
            spot.load += u32::from(seat.phase == Phase::Run);
            spot.reserved += seat.spec.resources.amount();
            for port in fixed_ports(seat.spec) {
                spot.ports.entry(port).or_default().insert(id);
            }
        }
        self.of.entry(seat.service).or_default().push(id);
        self.seats.insert(id, seat);
    }

    pub(crate) fn remove(&mut self, id: ReplicaId) {
        let Some(seat) = self.seats.remove(&id) else { return };
        if let Some(mine) = self.of.get_mut(seat.service) {
            mine.retain(|other| *other != id);
        }
        if let Some(spot) = seat.at.map(|at| &mut self.spots[at]) {
            spot.load -= u32::from(seat.phase == Phase::Run);
            spot.reserved = spot.reserved.without(seat.spec.resources.amount());
            for port in fixed_ports(seat.spec) {
                spot.ports.entry(port).or_default().remove(&id);
            }
        }
    }

    pub(crate) fn set_phase(&mut self, id: ReplicaId, phase: Phase) {
        let Some(seat) = self.seats.get_mut(&id) else { return };
        if let Some(spot) = seat.at.map(|at| &mut self.spots[at]) {
            spot.load -= u32::from(seat.phase == Phase::Run);
            spot.load += u32::from(phase == Phase::Run);
        }
        seat.phase = phase;
    }

    /// The replica is the active one from here on.
    pub(crate) fn give_role(&mut self, id: ReplicaId) {
        if let Some(seat) = self.seats.get_mut(&id) {
            seat.leased = true;
        }
    }

    pub(crate) fn has(&self, id: ReplicaId) -> bool {
        self.seats.contains_key(&id)
    }

    /// # Panics
    /// If the replica is not there: ids come from here.
    pub(crate) fn seat(&self, id: ReplicaId) -> &Seat<'a> {
        &self.seats[&id]
    }

    /// Whether a node can be asked what its replicas do.
    pub(crate) fn answers(&self, at: Option<At>) -> bool {
        at.is_some_and(|at| !matches!(self.spots[at].closed, Some(Unfit::Down | Unfit::Unreachable)))
    }

    /// The replicas of a service, in whatever phase.
    pub(crate) fn of(&self, service: &ServiceName) -> impl Iterator<Item = (ReplicaId, &Seat<'a>)> {
        self.of.get(service).into_iter().flatten().map(|id| (*id, &self.seats[id]))
    }

    /// Where those replicas of a service are that are to run.
    pub(crate) fn running(&self, service: &ServiceName) -> impl Iterator<Item = (ReplicaId, At)> {
        let running = self.of(service).filter(|(_, seat)| seat.phase == Phase::Run);
        running.filter_map(|(id, seat)| Some((id, seat.at?)))
    }

    /// The replicas of a service that are to run, by ordinal.
    pub(crate) fn ordinals(&self, service: &ServiceName) -> BTreeMap<u32, Vec<ReplicaId>> {
        let mut ordinals: BTreeMap<u32, Vec<ReplicaId>> = BTreeMap::new();
        for (id, seat) in self.of(service).filter(|(_, seat)| seat.phase == Phase::Run) {
            ordinals.entry(seat.ordinal).or_default().push(id);
        }
        ordinals
    }

    pub(crate) fn spots(&self) -> &[Spot<'a>] {
        &self.spots
    }

    pub(crate) fn at(&self, node: NodeId) -> Option<At> {
        self.index.get(&node).copied()
    }

    pub(crate) fn node_name(&self, node: NodeId) -> String {
        self.at(node).map_or_else(|| node.to_string(), |at| self.spots[at].record.identity.name.clone())
    }

    /// Where an ordinal of the service was when planning began.
    pub(crate) fn homes(&self, service: &ServiceName, ordinal: u32) -> impl Iterator<Item = At> {
        let homes = self.homes.get(service).into_iter().flatten();
        homes.filter(move |(other, _)| *other == ordinal).map(|(_, at)| *at)
    }

    /// An ordinal of the service that was there when planning began.
    pub(crate) fn ordinal_at(&self, service: &ServiceName, at: At) -> Option<u32> {
        let here = self.homes.get(service)?.iter().filter(|(_, home)| *home == at);
        here.map(|(ordinal, _)| *ordinal).min()
    }

    /// Why an amount is not to be had there; `but` one replica, whose part is free.
    pub(crate) fn without_room(&self, at: At, needs: Amount, but: Option<ReplicaId>) -> Option<Unfit> {
        if needs == Amount::default() {
            return None;
        }
        let spot = &self.spots[at];
        let Some(capacity) = spot.capacity else { return Some(Unfit::RoomUnknown) };
        let ended = but.map(|id| self.seat(id)).filter(|seat| seat.at == Some(at));
        let ended = ended.map(|seat| seat.spec.resources.amount()).unwrap_or_default();
        let free = capacity.without(spot.reserved.without(ended));
        (!needs.fits(free)).then_some(Unfit::NoRoom { needs, free })
    }

    /// Why a node is not ready for the service, if it is not.
    pub(crate) fn unprepared(&self, spec: &ServiceSpec, at: At) -> Option<Unfit> {
        if !spec.has_needs() {
            return None;
        }
        let node = &self.spots[at].record.identity.id;
        // What it was before its update may need other artifacts and secrets.
        let needs = |spec: &ServiceSpec| (spec.artifacts.clone(), spec.secrets.clone());
        let is_present = self.present.get(&spec.name).is_none_or(|present| needs(&present.spec) == needs(spec));
        let lacks = if is_present { &self.observed.lacks } else { &self.observed.fallback_lacks };
        match lacks.get(&spec.name).and_then(|nodes| nodes.get(node)) {
            None => Some(Unfit::Unprepared),
            Some(what) if what.is_empty() => None,
            Some(what) => Some(Unfit::Lacks { what: what.clone() }),
        }
    }

    /// Whether a node cannot run such services at all.
    pub(crate) fn without_driver(&self, spec: &ServiceSpec, at: At) -> Option<Unfit> {
        let any_of = spec.driven_by();
        let has = self.observed.drivers.get(&self.spots[at].record.identity.id)?;
        (!any_of.is_empty() && !any_of.iter().any(|one| has.contains(*one))).then_some(Unfit::NoDriver { any_of })
    }

    /// Why a copy of an active-passive service is not put there: another one, in whatever phase, would be lost with it.
    pub(crate) fn has_copy(&self, at: At, spec: &ServiceSpec, but: Option<ReplicaId>) -> Option<Unfit> {
        let is_there = |(id, seat): (ReplicaId, &Seat<'_>)| {
            (seat.at == Some(at) && Some(id) != but).then(|| Unfit::HasCopy { copy: seat.slot() })
        };
        (spec.mode == Mode::ActivePassive).then(|| self.of(&spec.name).find_map(is_there)).flatten()
    }

    /// Whoever else has the port there.
    pub(crate) fn has_port(&self, at: At, port: u16, but: Option<ReplicaId>) -> Option<Slot> {
        let holders = self.spots[at].ports.get(&port)?;
        holders.iter().find(|id| Some(**id) != but).map(|id| self.seats[id].slot())
    }
}
