//! A cluster without consensus, and the histories that lead to its states.

use super::text::{NOW, node, spec, timed};
use crate::{Observed, Plan, Policy, Survey, plan};
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_model::assignment::Phase;
use quorate_model::command::Command;
use quorate_model::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use quorate_model::lease::LeaseCommand;
use quorate_model::member::MemberCommand;
use quorate_model::observed::{Casting, Part, ReplicaState};
use quorate_model::place::{Availability, Drain, Place};
use quorate_model::spec::{Active, Batch, Mode, Order, Port, ServiceSpec, SpecDocument, Standby, Update};
use quorate_model::state::{ClusterState, Health, ReplicaRecord, Role, ServiceRecord};
use quorate_model::stopped::SwitchCommand;
use quorate_model::time::WallTime;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub(super) const NAMES: [&str; 3] = ["api", "db", "web"];

/// Active-passive services, in histories that have such.
const PAIRS: [&str; 2] = ["one", "two"];

/// A cluster without consensus: commands are applied at once, and agents do what they are told.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) state: ClusterState,
    pub(super) observed: Observed,
    pub(super) policy: Policy,
    pub(super) now: WallTime,
    pub(super) index: LogIndex,
    /// The program of this version ends again and again.
    pub(super) broken: Option<u64>,
}

#[derive(Debug, Clone)]
pub(super) enum Action {
    Apply {
        name: usize,
        replicas: u32,
        version: u64,
        port: Option<u16>,
        place: Place,
        update: Update,
    },
    Every {
        name: usize,
        version: u64,
        place: Place,
    },
    Pair {
        name: usize,
        replicas: u32,
        version: u64,
        place: Place,
        active: Active,
    },
    /// Somebody wants the copy on this node to be the active one, or any other.
    Activate {
        name: usize,
        at: Option<usize>,
    },
    Label {
        at: usize,
        zone: &'static str,
    },
    Set {
        at: usize,
        availability: Availability,
    },
    Scale {
        name: usize,
        replicas: u32,
    },
    Remove {
        name: usize,
    },
    Switch {
        name: usize,
        runs: bool,
    },
    NodeDown(usize),
    NodeReturns(usize),
    Unreachable(usize),
    Heard(usize),
    /// A replica's state changes.
    Report {
        which: usize,
        state: ReplicaState,
    },
    /// Nodes carry out what they are assigned.
    Obey,
    Wait(Duration),
    Plan,
}

pub(super) fn requirements() -> impl Strategy<Value = Place> {
    let require = prop_oneof![
        3 => Just(vec![]),
        1 => Just(vec!["zone = a".parse().unwrap()]),
        1 => Just(vec!["zone != a".parse().unwrap()]),
    ];
    require.prop_map(|require| Place { require, ..Place::default() })
}

fn places() -> impl Strategy<Value = Place> {
    let spread = prop_oneof![Just(None), Just(Some("zone".to_owned()))];
    let prefer = prop_oneof![Just(vec![]), Just(vec!["zone = b".parse().unwrap()])];
    let other = || prop_oneof![3 => Just(None), 1 => Just(Some("api")), 1 => Just(Some("web"))];
    (requirements(), spread, prefer, other(), other()).prop_map(|(place, spread, prefer, near, apart)| {
        let names = |name: Option<&str>| name.into_iter().map(|name| ServiceName::new(name).unwrap()).collect();
        let near: BTreeSet<ServiceName> = names(near);
        let apart: BTreeSet<ServiceName> = names(apart);
        Place { spread, prefer, apart: &apart - &near, near, ..place }
    })
}

/// Copies of a batch in histories, at most.
const BATCH_MAX: u32 = 3;

pub(super) fn updates() -> impl Strategy<Value = Update> {
    let order = prop_oneof![3 => Just(None), 1 => Just(Some(Order::StopFirst))];
    (1..=BATCH_MAX, 0..3u32, order).prop_map(|(batch, canary, order)| Update {
        order,
        batch: Batch::Count(batch),
        canary,
        ..spec(NAMES[0], 1, 1, None).update
    })
}

fn actions() -> impl Strategy<Value = Action> {
    let port = prop_oneof![3 => Just(None), 1 => Just(Some(8080)), 1 => Just(Some(9090))];
    let states = prop_oneof![
        Just(ReplicaState::Starting),
        Just(ReplicaState::Healthy),
        Just(ReplicaState::Unhealthy),
        Just(ReplicaState::BackingOff),
        Just(ReplicaState::Failed),
    ];
    let availability = prop_oneof![
        2 => Just(Availability::Open),
        1 => Just(Availability::Cordoned),
        1 => Just(Availability::Draining(Drain::default())),
    ];
    prop_oneof![
        3 => (0..3usize, 1..6u32, 1..5u64, port, places(), updates()).prop_map(
            |(name, replicas, version, port, place, update)| Action::Apply { name, replicas, version, port, place, update }
        ),
        1 => (0..3usize, 1..3u64, requirements()).prop_map(|(name, version, place)| Action::Every { name, version, place }),
        1 => (0..6usize, prop_oneof![Just("a"), Just("b")]).prop_map(|(at, zone)| Action::Label { at, zone }),
        2 => (0..6usize, availability).prop_map(|(at, availability)| Action::Set { at, availability }),
        2 => (0..3usize, 1..6u32).prop_map(|(name, replicas)| Action::Scale { name, replicas }),
        1 => (0..3usize).prop_map(|name| Action::Remove { name }),
        1 => (0..3usize, any::<bool>()).prop_map(|(name, runs)| Action::Switch { name, runs }),
        2 => (0..6usize).prop_map(Action::NodeDown),
        2 => (0..6usize).prop_map(Action::NodeReturns),
        1 => (0..6usize).prop_map(Action::Unreachable),
        1 => (0..6usize).prop_map(Action::Heard),
        2 => (0..32usize, states).prop_map(|(which, state)| Action::Report { which, state }),
        4 => Just(Action::Obey),
        2 => (0..20u64).prop_map(|secs| Action::Wait(Duration::from_secs(secs))),
        6 => Just(Action::Plan),
    ]
}

fn pairs() -> impl Strategy<Value = Action> {
    let prefer = prop_oneof![Just(vec![]), Just(vec!["zone = b".parse().unwrap()])];
    let standby = prop_oneof![Just(Standby::Hot), Just(Standby::Cold)];
    let active = (prefer, any::<bool>(), standby).prop_map(|(prefer, failback, standby)| Active {
        failback: failback && !prefer.is_empty(),
        prefer,
        standby,
        ..Active::default()
    });
    prop_oneof![
        3 => (0..2usize, 1..4u32, 1..3u64, places(), active).prop_map(
            |(name, replicas, version, place, active)| Action::Pair { name, replicas, version, place, active }
        ),
        1 => (0..2usize, proptest::option::of(0..6usize)).prop_map(|(name, at)| Action::Activate { name, at }),
    ]
}

/// As [`histories`], with active-passive services among the others.
pub(super) fn histories_with_pairs() -> impl Strategy<Value = World> {
    histories_of(prop_oneof![3 => actions(), 1 => pairs()])
}

pub(super) fn histories() -> impl Strategy<Value = World> {
    histories_of(actions())
}

fn histories_of(actions: impl Strategy<Value = Action>) -> impl Strategy<Value = World> {
    let policy = (prop_oneof![Just(0), Just(10)], prop_oneof![Just(2), Just(64)])
        .prop_map(|(secs, moves_max)| Policy { replace_after: Duration::from_secs(secs), moves_max });
    (1..6u128, policy, vec(actions, 0..60)).prop_map(|(nodes, policy, actions)| {
        let mut world = World::new(nodes, policy);
        for action in &actions {
            world.act(action);
        }
        world
    })
}

impl World {
    /// With this many workers, and one node that is none.
    pub(super) fn new(workers: u128, policy: Policy) -> World {
        let (state, observed) = (ClusterState::default(), Observed::default());
        let mut world = World { state, observed, policy, now: NOW, index: LogIndex(0), broken: None };
        for number in 1..=workers {
            world.command(&Command::RegisterNode { node: node(number, &[Role::Worker]), boot: 1 });
        }
        world.command(&Command::RegisterNode { node: node(workers + 1, &[Role::Manager]), boot: 1 });
        world.observed.reported = world.state.nodes.keys().copied().collect();
        world
    }

    pub(super) fn command(&mut self, command: &Command) {
        self.index = self.index.next();
        if let Ok(changes) = self.state.decide(self.index, self.now, command) {
            self.state.absorb(self.index, &changes);
        }
    }

    pub(super) fn act(&mut self, action: &Action) {
        let node = |at: usize| self.state.nodes.values().nth(at % self.state.nodes.len()).unwrap().clone();
        match action {
            Action::Apply { name, replicas, version, port, place, update } => {
                let (mut place, update) = (place.clone(), update.clone());
                let itself = ServiceName::new(NAMES[*name]).unwrap();
                place.near.remove(&itself);
                place.apart.remove(&itself);
                self.apply(ServiceSpec { place, update, ..spec(NAMES[*name], *replicas, *version, *port) });
            }
            Action::Every { name, version, place } => {
                let (mode, place) = (Mode::EveryNode, place.clone());
                self.apply(ServiceSpec { mode, place, ..spec(NAMES[*name], 1, *version, None) });
            }
            Action::Pair { name, replicas, version, place, active } => {
                let (mode, place, active) = (Mode::ActivePassive, place.clone(), Some(active.clone()));
                self.apply(ServiceSpec { mode, place, active, ..spec(PAIRS[*name], *replicas, *version, None) });
            }
            Action::Activate { name, at } => {
                let (service, node) = (ServiceName::new(PAIRS[*name]).unwrap(), at.map(|at| node(at).identity.id));
                self.command(&Command::Activate { service, node });
            }
            Action::Label { at, zone } => {
                let node = node(*at).identity.id;
                self.label(node, zone);
            }
            Action::Set { at, availability } => {
                let node = node(*at).identity.id;
                self.set(node, *availability);
            }
            Action::Scale { name, replicas } => {
                let service = ServiceName::new(NAMES[*name]).unwrap();
                self.command(&Command::ScaleService { service, replicas: *replicas });
            }
            Action::Remove { name } => {
                self.command(&Command::RemoveService { service: ServiceName::new(NAMES[*name]).unwrap() });
            }
            Action::Switch { name, runs } => {
                let service = ServiceName::new(NAMES[*name]).unwrap();
                self.command(&Command::Switch(match runs {
                    true => SwitchCommand::Start { service },
                    false => SwitchCommand::Stop { service },
                }));
            }
            Action::NodeDown(at) => {
                let node = node(*at);
                self.health(node.identity.id, Health::Down);
                self.observed.reported.remove(&node.identity.id);
            }
            Action::NodeReturns(at) => {
                let node = node(*at);
                self.observed.unreachable_for.remove(&node.identity.id);
                self.health(node.identity.id, Health::Joined);
                self.reports(node.identity.id);
            }
            Action::Unreachable(at) => {
                let node = node(*at).identity.id;
                self.observed.unreachable_for.insert(node, Duration::from_secs(1));
            }
            Action::Heard(at) => {
                let node = node(*at).identity.id;
                self.observed.unreachable_for.remove(&node);
            }
            Action::Report { which, state } => {
                let running = self.state.replicas.values().filter(|replica| replica.phase == Phase::Run);
                let ids: Vec<ReplicaId> = running.map(|replica| replica.id).collect();
                if let Some(id) = ids.get(which % ids.len().max(1)) {
                    self.observed.replicas.insert(*id, *state);
                }
            }
            Action::Obey => self.obey(),
            Action::Wait(span) => {
                self.now.0 += u64::try_from(span.as_micros()).unwrap();
                self.raise();
            }
            Action::Plan => {
                let plan = self.plan();
                self.carry_out(&plan);
            }
        }
    }

    /// Leases of nodes that have been down for long enough are over.
    fn raise(&mut self) {
        let over = self.state.leases.values().filter(|lease| {
            let node = lease.holder.and_then(|holder| self.state.nodes.get(&holder.node));
            node.is_some_and(|node| node.health == Health::Down && self.now.since(node.since) >= lease.ttl.0)
        });
        let over: Vec<(ServiceName, u64)> = over.map(|lease| (lease.name.clone(), lease.epoch)).collect();
        for (name, epoch) in over {
            self.command(&Command::Lease(LeaseCommand::Fence { name: name.clone(), epoch }));
            self.command(&Command::Lease(LeaseCommand::Raise { name, epoch }));
        }
    }

    /// The node of the active copy of each active-passive service.
    pub(super) fn active(&self) -> BTreeMap<ServiceName, NodeId> {
        let held = self.state.leases.values().filter_map(|lease| Some((lease.name.clone(), lease.holder?.node)));
        held.filter(|(name, _)| self.state.services.contains_key(name)).collect()
    }

    pub(super) fn apply(&mut self, spec: ServiceSpec) {
        self.command(&Command::ApplySpec { document: SpecDocument { services: vec![spec], routes: Vec::new() } });
    }

    pub(super) fn label(&mut self, node: NodeId, zone: &str) {
        let labels = BTreeMap::from([("zone".to_owned(), Some(zone.to_owned()))]);
        self.command(&Command::Member(MemberCommand::SetLabels { node, labels }));
    }

    pub(super) fn set(&mut self, node: NodeId, availability: Availability) {
        self.command(&Command::Member(MemberCommand::SetAvailability { node, availability }));
    }

    pub(super) fn survey(&self) -> Survey {
        let observed = timed(self.observed.clone(), &self.state, self.now);
        Survey { state: self.state.clone(), observed, policy: self.policy }
    }

    pub(super) fn health(&mut self, node: NodeId, health: Health) {
        let generation = self.state.nodes[&node].generation;
        self.command(&Command::ChangeHealth { node, generation, health, at: self.now });
    }

    /// What a node says when it comes back: it lists all that it is assigned.
    pub(super) fn reports(&mut self, node: NodeId) {
        self.observed.reported.insert(node);
        for replica in self.state.replicas.values().filter(|replica| replica.node == node) {
            self.observed.replicas.entry(replica.id).or_insert(ReplicaState::Starting);
        }
    }

    pub(super) fn obey(&mut self) {
        let known = &self.state.replicas;
        self.observed.replicas.retain(|id, _| known.contains_key(id));
        self.observed.drained.retain(|id| known.contains_key(id));
        let asked: Vec<_> = known.values().filter(|replica| self.answers(replica.node)).collect();
        for replica in asked {
            let state = self.observed.replicas.get(&replica.id).copied();
            let next = match (replica.phase, state) {
                (Phase::Run, None) => ReplicaState::Starting,
                (Phase::Run, Some(ReplicaState::Starting | ReplicaState::BackingOff))
                    if self.broken == Some(replica.version) =>
                {
                    let restarts = self.observed.restarts.entry(replica.id).or_default();
                    *restarts = (*restarts + 1).min(9);
                    ReplicaState::BackingOff
                }
                (Phase::Run, Some(ReplicaState::Starting)) => ReplicaState::Healthy,
                (Phase::Run, Some(state)) => state,
                (Phase::Drain, _) => ReplicaState::Draining,
                (Phase::Stop, _) => ReplicaState::Stopped,
            };
            if replica.phase == Phase::Drain {
                self.observed.drained.insert(replica.id);
            }
            self.observed.replicas.insert(replica.id, next);
            if let Some(lease) = replica.lease.filter(|lease| lease.yields) {
                let casting = Casting { part: Part::Standby, epoch: 0, yielded: lease.epoch };
                self.observed.castings.insert(replica.id, casting);
            }
        }
    }

    pub(super) fn answers(&self, node: NodeId) -> bool {
        self.state.nodes[&node].health == Health::Joined && !self.observed.unreachable_for.contains_key(&node)
    }

    pub(super) fn plan(&self) -> Plan {
        plan(&self.state, &timed(self.observed.clone(), &self.state, self.now), &self.policy)
    }

    pub(super) fn carry_out(&mut self, plan: &Plan) {
        self.index = self.index.next();
        let command = Command::CarryOut { expected: self.state.planned_on, steps: plan.steps.clone() };
        let changes = self.state.decide(self.index, self.now, &command).expect("a fresh plan is valid");
        self.state.absorb(self.index, &changes);
    }

    pub(super) fn after(&self, plan: &Plan) -> World {
        let mut after = self.clone();
        after.carry_out(plan);
        after
    }

    pub(super) fn running(&self, service: &ServiceName) -> usize {
        let mine = |phase, name: &ServiceName| phase == Phase::Run && name == service;
        self.state.replicas.values().filter(|replica| mine(replica.phase, &replica.service)).count()
    }

    /// How many replicas more this service may run for a while: where there is something to replace, and the
    /// replacement can listen beside it or is elsewhere.
    pub(super) fn surge(&self, service: &ServiceRecord) -> usize {
        if self.surges(service) { BATCH_MAX as usize } else { 0 }
    }

    fn surges(&self, service: &ServiceRecord) -> bool {
        let has_auto_ports = service.spec.ports.values().all(|port| *port == Port::Auto);
        let outdated =
            |replica: &ReplicaRecord| replica.version != service.version || !replica.spec.runs_the_same(&service.spec);
        let mut running = self.state.replicas.values().filter(|replica| replica.phase == Phase::Run);
        running.any(|replica| {
            let mine = replica.service == service.spec.name;
            mine && (self.is_misplaced(replica) || (has_auto_ports && outdated(replica)))
        })
    }

    pub(super) fn is_misplaced(&self, replica: &ReplicaRecord) -> bool {
        let node = &self.state.nodes[&replica.node];
        let unmet = |service: &ServiceRecord| service.spec.place.unmet(node).is_some();
        node.availability.drain().is_some() || self.state.services.get(&replica.service).is_some_and(unmet)
    }

    pub(super) fn healthy(&self, service: &ServiceName) -> usize {
        let replicas = self.state.replicas.values();
        replicas
            .filter(|replica| replica.phase == Phase::Run && replica.service == *service && self.answers(replica.node))
            .filter(|replica| self.observed.replicas.get(&replica.id) == Some(&ReplicaState::Healthy))
            .count()
    }

    /// Every node is back, and every process well.
    pub(super) fn recover(&mut self) {
        for node in self.state.nodes.keys().copied().collect::<Vec<_>>() {
            self.observed.unreachable_for.remove(&node);
            self.health(node, Health::Joined);
            self.reports(node);
            self.set(node, Availability::Open);
        }
        for service in self.state.deployments.keys().cloned().collect::<Vec<_>>() {
            self.command(&Command::ContinueUpdate { service });
        }
        self.all_well();
    }

    pub(super) fn all_well(&mut self) {
        for id in self.state.replicas.values().filter(|replica| replica.phase == Phase::Run).map(|replica| replica.id) {
            self.observed.replicas.insert(id, ReplicaState::Healthy);
        }
    }

    /// Whether there is a place for each replica on a node that it may run on, and each fixed port is wanted
    /// at most once per node of those: then no choice takes a place away.
    pub(super) fn places_suffice(&self) -> bool {
        let workers = || self.state.nodes.values().filter(|node| node.identity.roles.contains(&Role::Worker));
        let mut wanted: BTreeMap<u16, u32> = BTreeMap::new();
        let mut least = workers().count();
        for service in self.state.services.values() {
            let fit = workers().filter(|node| service.spec.place.unmet(node).is_none()).count();
            if fit == 0 && service.spec.mode == Mode::Replicated {
                return false;
            }
            for port in service.spec.ports.values() {
                if let Port::Fixed(port) = port {
                    least = least.min(fit);
                    *wanted.entry(*port).or_default() += service.spec.replicas;
                }
            }
        }
        wanted.values().all(|wanted| *wanted as usize <= least)
    }

    /// Plans, carries out and obeys until there is nothing to do.
    pub(super) fn settle(&mut self, mut look: impl FnMut(&World)) {
        for _ in 0..400 {
            let plan = self.plan();
            let steps = plan.steps.len();
            self.carry_out(&plan);
            look(self);
            let before = self.observed.clone();
            self.obey();
            look(self);
            if steps == 0 && before == self.observed {
                return;
            }
        }
        panic!("no end in sight: {:?}", self.plan());
    }
}
