//! The properties of replicated services, on states that a random history reaches.
//!
//! The scheduler is to have twelve. What has no name here has nothing to be said about yet:
//!
//! | | property | here |
//! |---|---|---|
//! | 1 | a singleton has one holder until its lease is over | waits for Services: no singletons, no leases |
//! | 2 | no more run than wanted, plus surge | surge is one replica of a service whose update starts first |
//! | 3 | an update keeps enough healthy | per plan, and over a whole update |
//! | 4 | a plan carried out leaves nothing to do | |
//! | 5 | an unrelated node moves nothing | a worker without replicas, and a node that is no worker |
//! | 6 | capacity and ports are not exceeded | ports; capacity waits for Services |
//! | 7 | constraints are met | waits for Services: nodes have no labels, specs no constraints |
//! | 8 | equal input, equal plan | however the input came to be |
//! | 9 | nothing goes where it must not | down, unreachable, no worker; cordon and quota wait for Services |
//! | 10 | what can be placed is placed | against a search, for services with at most one fixed port |
//! | 11 | a drained node ends empty | waits for Services: nodes cannot be drained |
//! | 12 | order means nothing | of declarations; that of labels waits for Services |

use super::text::{NOW, node, spec, timed};
use crate::{HeldReason, Observed, Plan, Policy, plan};
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_model::assignment::Phase;
use quorate_model::command::{Command, Step};
use quorate_model::id::{LogIndex, NodeId, ReplicaId, ServiceName};
use quorate_model::observed::ReplicaState;
use quorate_model::spec::{Port, ServiceSpec, SpecDocument};
use quorate_model::state::{Change, ClusterState, Health, ReplicaRecord, Role, ServiceRecord};
use quorate_model::time::WallTime;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const NAMES: [&str; 3] = ["api", "db", "web"];

/// A cluster without consensus: commands are applied at once, and agents do what they are told.
#[derive(Debug, Clone)]
struct World {
    state: ClusterState,
    observed: Observed,
    policy: Policy,
    now: WallTime,
    index: LogIndex,
}

#[derive(Debug, Clone)]
enum Action {
    Apply {
        name: usize,
        replicas: u32,
        version: u64,
        port: Option<u16>,
    },
    Scale {
        name: usize,
        replicas: u32,
    },
    Remove {
        name: usize,
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

fn actions() -> impl Strategy<Value = Action> {
    let port = prop_oneof![3 => Just(None), 1 => Just(Some(8080)), 1 => Just(Some(9090))];
    let states = prop_oneof![
        Just(ReplicaState::Starting),
        Just(ReplicaState::Healthy),
        Just(ReplicaState::Unhealthy),
        Just(ReplicaState::BackingOff),
        Just(ReplicaState::Failed),
    ];
    prop_oneof![
        3 => (0..3usize, 1..6u32, 1..5u64, port)
            .prop_map(|(name, replicas, version, port)| Action::Apply { name, replicas, version, port }),
        2 => (0..3usize, 1..6u32).prop_map(|(name, replicas)| Action::Scale { name, replicas }),
        1 => (0..3usize).prop_map(|name| Action::Remove { name }),
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

fn histories() -> impl Strategy<Value = World> {
    let policy = (prop_oneof![Just(0), Just(10)], prop_oneof![Just(2), Just(64)])
        .prop_map(|(secs, moves_max)| Policy { replace_after: Duration::from_secs(secs), moves_max });
    (1..6u128, policy, vec(actions(), 0..60)).prop_map(|(nodes, policy, actions)| {
        let mut world = World::new(nodes, policy);
        for action in &actions {
            world.act(action);
        }
        world
    })
}

impl World {
    /// With this many workers, and one node that is none.
    fn new(workers: u128, policy: Policy) -> World {
        let (state, observed) = (ClusterState::default(), Observed::default());
        let mut world = World { state, observed, policy, now: NOW, index: LogIndex(0) };
        for number in 1..=workers {
            world.command(&Command::RegisterNode { node: node(number, &[Role::Worker]), boot: 1 });
        }
        world.command(&Command::RegisterNode { node: node(workers + 1, &[Role::Manager]), boot: 1 });
        world.observed.reported = world.state.nodes.keys().copied().collect();
        world
    }

    fn command(&mut self, command: &Command) {
        self.index = self.index.next();
        if let Ok(changes) = self.state.decide(self.index, self.now, command) {
            self.state.absorb(self.index, &changes);
        }
    }

    fn act(&mut self, action: &Action) {
        let node = |at: usize| self.state.nodes.values().nth(at % self.state.nodes.len()).unwrap().clone();
        match action {
            Action::Apply { name, replicas, version, port } => {
                let services = vec![spec(NAMES[*name], *replicas, *version, *port)];
                self.command(&Command::ApplySpec { document: SpecDocument { services, routes: Vec::new() } });
            }
            Action::Scale { name, replicas } => {
                let service = ServiceName::new(NAMES[*name]).unwrap();
                self.command(&Command::ScaleService { service, replicas: *replicas });
            }
            Action::Remove { name } => {
                self.command(&Command::RemoveService { service: ServiceName::new(NAMES[*name]).unwrap() });
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
            Action::Wait(span) => self.now.0 += u64::try_from(span.as_micros()).unwrap(),
            Action::Plan => {
                let plan = self.plan();
                self.carry_out(&plan);
            }
        }
    }

    fn health(&mut self, node: NodeId, health: Health) {
        let generation = self.state.nodes[&node].generation;
        self.command(&Command::ChangeHealth { node, generation, health, at: self.now });
    }

    /// What a node says when it comes back: it lists all that it is assigned.
    fn reports(&mut self, node: NodeId) {
        self.observed.reported.insert(node);
        for replica in self.state.replicas.values().filter(|replica| replica.node == node) {
            self.observed.replicas.entry(replica.id).or_insert(ReplicaState::Starting);
        }
    }

    fn obey(&mut self) {
        let known = &self.state.replicas;
        self.observed.replicas.retain(|id, _| known.contains_key(id));
        self.observed.drained.retain(|id| known.contains_key(id));
        let asked: Vec<_> = known.values().filter(|replica| self.answers(replica.node)).collect();
        for replica in asked {
            let state = self.observed.replicas.get(&replica.id).copied();
            let next = match (replica.phase, state) {
                (Phase::Run, None) => ReplicaState::Starting,
                (Phase::Run, Some(ReplicaState::Starting)) => ReplicaState::Healthy,
                (Phase::Run, Some(state)) => state,
                (Phase::Drain, _) => ReplicaState::Draining,
                (Phase::Stop, _) => ReplicaState::Stopped,
            };
            if replica.phase == Phase::Drain {
                self.observed.drained.insert(replica.id);
            }
            self.observed.replicas.insert(replica.id, next);
        }
    }

    fn answers(&self, node: NodeId) -> bool {
        self.state.nodes[&node].health == Health::Joined && !self.observed.unreachable_for.contains_key(&node)
    }

    fn plan(&self) -> Plan {
        plan(&self.state, &timed(self.observed.clone(), &self.state, self.now), &self.policy)
    }

    fn carry_out(&mut self, plan: &Plan) {
        self.index = self.index.next();
        let command = Command::CarryOut { expected: self.state.planned_on, steps: plan.steps.clone() };
        let changes = self.state.decide(self.index, self.now, &command).expect("a fresh plan is valid");
        self.state.absorb(self.index, &changes);
    }

    fn after(&self, plan: &Plan) -> World {
        let mut after = self.clone();
        after.carry_out(plan);
        after
    }

    fn running(&self, service: &ServiceName) -> usize {
        let mine = |phase, name: &ServiceName| phase == Phase::Run && name == service;
        self.state.replicas.values().filter(|replica| mine(replica.phase, &replica.service)).count()
    }

    /// Whether an update of this service may run one replica more for a while: there is something to
    /// replace, and the replacement can listen beside it.
    fn surges(&self, service: &ServiceRecord) -> bool {
        let outdated = |replica: &&ReplicaRecord| {
            let scaled = ServiceSpec { replicas: service.spec.replicas, ..replica.spec.clone() };
            replica.version != service.version || scaled != service.spec
        };
        let running = self.state.replicas.values().filter(|replica| replica.phase == Phase::Run);
        let any = running.filter(|replica| replica.service == service.spec.name).any(|replica| outdated(&replica));
        any && service.spec.ports.values().all(|port| *port == Port::Auto)
    }

    fn healthy(&self, service: &ServiceName) -> usize {
        let replicas = self.state.replicas.values();
        replicas
            .filter(|replica| replica.phase == Phase::Run && replica.service == *service && self.answers(replica.node))
            .filter(|replica| self.observed.replicas.get(&replica.id) == Some(&ReplicaState::Healthy))
            .count()
    }

    /// Every node is back, and every process well.
    fn recover(&mut self) {
        for node in self.state.nodes.keys().copied().collect::<Vec<_>>() {
            self.observed.unreachable_for.remove(&node);
            self.health(node, Health::Joined);
            self.reports(node);
        }
        self.all_well();
    }

    fn all_well(&mut self) {
        for id in self.state.replicas.values().filter(|replica| replica.phase == Phase::Run).map(|replica| replica.id) {
            self.observed.replicas.insert(id, ReplicaState::Healthy);
        }
    }

    /// Whether each fixed port is wanted at most once per worker.
    fn ports_suffice(&self) -> bool {
        let workers = self.state.nodes.values().filter(|node| node.identity.roles.contains(&Role::Worker)).count();
        let mut wanted: BTreeMap<u16, u32> = BTreeMap::new();
        for service in self.state.services.values() {
            for port in service.spec.ports.values() {
                if let Port::Fixed(port) = port {
                    *wanted.entry(*port).or_default() += service.spec.replicas;
                }
            }
        }
        wanted.values().all(|wanted| *wanted as usize <= workers)
    }

    /// Plans, carries out and obeys until there is nothing to do.
    fn settle(&mut self, mut look: impl FnMut(&World)) {
        for _ in 0..300 {
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

fn moves(plan: &Plan) -> usize {
    plan.steps.iter().filter(|step| matches!(step, Step::Place { .. } | Step::Retire { .. })).count()
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], mut seed: u64) {
    for end in (1..items.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(end, usize::try_from(seed >> 33).unwrap() % (end + 1));
    }
}

/// Whether there is a place for every replica that is wanted: tries them all.
fn feasible(world: &World) -> bool {
    let workers = world
        .state
        .nodes
        .values()
        .filter(|node| node.identity.roles.contains(&Role::Worker) && world.answers(node.identity.id));
    let mut taken: Vec<BTreeSet<u16>> = workers.map(|_| BTreeSet::new()).collect();
    let wanted: Vec<BTreeSet<u16>> = world
        .state
        .services
        .values()
        .flat_map(|service| {
            let fixed = |port: &Port| if let Port::Fixed(number) = port { Some(*number) } else { None };
            let ports: BTreeSet<u16> = service.spec.ports.values().filter_map(fixed).collect();
            std::iter::repeat_n(ports, service.spec.replicas as usize)
        })
        .collect();
    all_fit(&wanted, &mut taken)
}

fn all_fit(wanted: &[BTreeSet<u16>], taken: &mut [BTreeSet<u16>]) -> bool {
    let Some((first, rest)) = wanted.split_first() else { return true };
    (0..taken.len()).any(|node| {
        let fits = taken[node].is_disjoint(first);
        fits && {
            taken[node].extend(first);
            let all = all_fit(rest, taken);
            taken[node].retain(|port| !first.contains(port));
            all
        }
    })
}

/// What property 10 does not cover: two services of one port each, on different nodes for the sake of
/// spreading, leave no room for one with both. The planner never moves what runs. (Services brings
/// a placement that looks ahead.)
#[test]
fn a_service_with_two_fixed_ports_may_find_no_node_where_another_choice_had_left_one() {
    let mut world = World::new(2, Policy::default());
    for (name, ports) in [(0, [Some(8080), None]), (1, [None, Some(9090)]), (2, [Some(8080), Some(9090)])] {
        let mut spec = spec(NAMES[name], 1, 1, ports[0]);
        if let Some(port) = ports[1] {
            spec.ports.insert("other".into(), Port::Fixed(port));
        }
        let document = SpecDocument { services: vec![spec], routes: Vec::new() };
        world.command(&Command::ApplySpec { document });
    }
    assert!(feasible(&world));
    world.settle(|_| ());
    let last = ServiceName::new(NAMES[2]).unwrap();
    assert_eq!(world.running(&last), 0);
    let reason = world.plan().held.into_iter().find(|held| held.service == last).unwrap().reason;
    assert!(matches!(reason, HeldReason::NoNode { .. }), "{reason:?}");
}

proptest! {
    /// Property 2. Surge is one replica per service, for an update that starts first.
    #[test]
    fn no_more_replicas_run_than_are_wanted_and_one_for_an_update(world in histories()) {
        let after = world.after(&world.plan());
        for service in after.state.services.values() {
            let most = service.spec.replicas as usize + usize::from(after.surges(service));
            prop_assert!(after.running(&service.spec.name) <= most, "{} of {most}", after.running(&service.spec.name));
        }
    }

    /// Property 3, for one plan: whatever was healthy, at most one of those that are wanted goes.
    #[test]
    fn a_plan_takes_at_most_one_healthy_replica_of_those_that_are_wanted(world in histories()) {
        let after = world.after(&world.plan());
        for (name, service) in &after.state.services {
            let before = world.healthy(name).min(service.spec.replicas as usize);
            // What is on a node that is down counts as unhealthy before and after.
            prop_assert!(after.healthy(name) + 1 >= before);
        }
    }

    /// Property 3, for a whole update.
    #[test]
    fn an_update_keeps_enough_replicas_healthy(
        nodes in 1..5u128, replicas in 1..5u32, port in prop_oneof![Just(None), Just(Some(8080))],
    ) {
        prop_assume!(port.is_none() || u128::from(replicas) <= nodes);
        let mut world = World::new(nodes, Policy::default());
        world.act(&Action::Apply { name: 0, replicas, version: 1, port });
        world.settle(|_| ());
        world.act(&Action::Apply { name: 0, replicas, version: 2, port });
        let name = ServiceName::new(NAMES[0]).unwrap();
        let least = replicas as usize - usize::from(port.is_some());
        world.settle(|world| assert!(world.healthy(&name) >= least, "{} of {least}", world.healthy(&name)));
        prop_assert_eq!(world.healthy(&name), replicas as usize);
        prop_assert!(world.state.replicas.values().all(|replica| replica.version == 2));
    }

    /// Property 4. Releasing and forgetting may go on: they follow what was observed. So that
    /// they do not make room for a placement, no draining process has ended already.
    #[test]
    fn a_plan_that_was_carried_out_is_followed_by_no_move(mut world in histories()) {
        world.policy.moves_max = u32::MAX;
        for replica in world.state.replicas.values().filter(|replica| replica.phase == Phase::Drain) {
            world.observed.replicas.insert(replica.id, ReplicaState::Draining);
        }
        let again = world.after(&world.plan()).plan();
        prop_assert_eq!(moves(&again), 0, "{:?}", again);
    }

    /// Property 5.
    #[test]
    fn a_node_that_runs_nothing_moves_nothing_when_it_comes_or_goes(mut world in histories()) {
        world.recover();
        prop_assume!(world.ports_suffice());
        world.settle(|_| ());
        world.command(&Command::RegisterNode { node: node(40, &[Role::Worker]), boot: 1 });
        prop_assert_eq!(world.plan().steps, vec![]);
        world.health(node(40, &[]).id, Health::Down);
        prop_assert_eq!(world.plan().steps, vec![]);
        // The one that is no worker.
        let manager = world.state.nodes.values().find(|node| !node.identity.roles.contains(&Role::Worker)).unwrap();
        let manager = manager.identity.id;
        world.observed.unreachable_for.insert(manager, Duration::from_secs(1));
        prop_assert_eq!(world.plan().steps, vec![]);
        world.health(manager, Health::Down);
        world.now.0 += 60_000_000;
        prop_assert_eq!(world.plan().steps, vec![]);
    }

    /// Property 6, for ports.
    #[test]
    fn no_two_replicas_on_a_node_have_the_same_fixed_port(world in histories()) {
        let after = world.after(&world.plan());
        let mut taken = BTreeSet::new();
        for replica in after.state.replicas.values() {
            for port in replica.spec.ports.values().filter(|port| **port != Port::Auto) {
                prop_assert!(taken.insert((replica.node, format!("{port:?}"))), "{:?} twice", port);
            }
        }
    }

    /// Property 8. As a node does that starts: the state is made anew from its records, in any order.
    #[test]
    fn equal_arguments_give_an_equal_plan(world in histories(), seed in any::<u64>()) {
        let state = &world.state;
        let mut records: Vec<Change> = state.nodes.values().cloned().map(Change::Node).collect();
        records.extend(state.services.values().cloned().map(Change::Service));
        records.extend(state.replicas.values().cloned().map(Change::Replica));
        shuffle(&mut records, seed);
        let mut again = World { state: ClusterState::default(), ..world.clone() };
        again.state.absorb(state.planned_on, &records);
        again.state.planned_on = state.planned_on;
        prop_assert_eq!(again.plan(), world.plan());
        prop_assert_eq!(world.plan(), world.plan());
    }

    /// Property 9.
    #[test]
    fn nothing_is_placed_on_a_node_that_cannot_be_relied_on(world in histories()) {
        for step in world.plan().steps {
            if let Step::Place { node, .. } = step {
                prop_assert!(world.answers(node));
                prop_assert!(world.state.nodes[&node].identity.roles.contains(&Role::Worker));
            }
        }
    }

    /// Property 10, against a search. What cannot all be placed is left out here: which part of it is
    /// placed is a matter of taste.
    #[test]
    fn whatever_can_be_placed_is_placed(
        workers in 1..=6u128,
        away in vec(0..7usize, 0..3),
        services in vec((1..=6u32, prop_oneof![Just(None), Just(Some(8080)), Just(Some(9090))]), 1..=3),
        moves_max in prop_oneof![Just(1), Just(64)],
    ) {
        prop_assume!(services.iter().map(|(replicas, _)| replicas).sum::<u32>() <= 6);
        let mut world = World::new(workers, Policy { moves_max, ..Policy::default() });
        for (name, (replicas, port)) in services.iter().enumerate() {
            world.act(&Action::Apply { name, replicas: *replicas, version: 1, port: *port });
        }
        for at in away {
            world.act(&Action::Unreachable(at));
        }
        let feasible = feasible(&world);
        world.settle(|_| ());
        if feasible {
            for service in world.state.services.values() {
                prop_assert_eq!(world.running(&service.spec.name), service.spec.replicas as usize, "{}", service.spec.name);
            }
        } else {
            prop_assert!(!world.plan().held.is_empty(), "something is missing and nobody is told");
        }
    }

    /// Property 10, from wherever a history leads. With at most one fixed port per service any choice
    /// leaves room for the others, so counting is enough to know what is feasible.
    #[test]
    fn everything_is_placed_in_the_end_if_ports_suffice(mut world in histories()) {
        world.recover();
        prop_assume!(world.ports_suffice());
        world.settle(|_| ());
        for service in world.state.services.values() {
            prop_assert_eq!(world.healthy(&service.spec.name), service.spec.replicas as usize);
        }
        let wanted: u32 = world.state.services.values().map(|service| service.spec.replicas).sum();
        prop_assert_eq!(world.state.replicas.len(), wanted as usize);
        for replica in world.state.replicas.values() {
            prop_assert_eq!(replica.version, world.state.services[&replica.service].version);
        }
        prop_assert_eq!(world.plan(), Plan::default());
    }

    /// Property 12. Nodes and services are declared in another order; everything else is the same.
    #[test]
    fn the_order_of_declarations_means_nothing(
        nodes in 1..=5u128,
        services in vec((1..6u32, prop_oneof![Just(None), Just(Some(8080))]), 1..=3),
        seed in any::<u64>(),
    ) {
        let mut commands: Vec<Command> =
            (1..=nodes).map(|number| Command::RegisterNode { node: node(number, &[Role::Worker]), boot: 1 }).collect();
        commands.extend(services.iter().enumerate().map(|(at, (replicas, port))| {
            let services = vec![spec(NAMES[at], *replicas, 1, *port)];
            Command::ApplySpec { document: SpecDocument { services, routes: Vec::new() } }
        }));
        let planned = |commands: &[Command]| {
            let mut world = World::new(0, Policy::default());
            for command in commands {
                world.command(command);
            }
            world.observed.reported = world.state.nodes.keys().copied().collect();
            let first = world.plan();
            world.settle(|_| ());
            (first, world.state.replicas)
        };
        let expected = planned(&commands);
        shuffle(&mut commands, seed);
        prop_assert_eq!(planned(&commands), expected);
    }

    #[test]
    fn a_step_names_a_replica_once_and_ids_are_new(world in histories()) {
        let mut named = BTreeSet::new();
        for step in world.plan().steps {
            let (Step::Place { replica, .. }
            | Step::Retire { replica }
            | Step::Release { replica }
            | Step::Forget { replica }) = &step;
            prop_assert!(named.insert(*replica));
            prop_assert_eq!(matches!(step, Step::Place { .. }), !world.state.replicas.contains_key(replica));
        }
    }
}
