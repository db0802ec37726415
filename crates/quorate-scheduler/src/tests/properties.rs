//! The properties of replicated services, on states that a random history reaches.
//!
//! The scheduler is to have twelve. What has no name here has nothing to be said about yet:
//!
//! | | property | here |
//! |---|---|---|
//! | 1 | a singleton has one holder until its lease is over | waits for singletons |
//! | 2 | no more run than wanted, plus surge | surge is one batch of a service that is updated, one replica of one that is moved |
//! | 3 | an update keeps enough healthy | per plan, and over a whole update (`updates`) and a whole drain |
//! | 4 | a plan carried out leaves nothing to do | unless it lets an update go on or back |
//! | 5 | an unrelated node moves nothing | a worker without replicas, and a node that is no worker |
//! | 6 | capacity and ports are not exceeded | ports; capacity in `resources` |
//! | 7 | constraints are met | where something is placed, and at rest wherever there is a place |
//! | 8 | equal input, equal plan | however the input came to be |
//! | 9 | nothing goes where it must not | down, unreachable, no worker, cordoned, draining; the quota lets nobody in |
//! | 10 | what can be placed is placed | against a search, for services with at most one fixed port |
//! | 11 | a drained node ends empty | where there is a place, and at the deadline anyway |
//! | 12 | order means nothing | of declarations, and of the values of labels |

use super::text::{node, spec};
use super::world::{Action, NAMES, World, histories, requirements};
use crate::{HeldReason, Plan, Policy};
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_model::assignment::Phase;
use quorate_model::command::{Command, Step};
use quorate_model::deployment::{Advance, Stage};
use quorate_model::id::ServiceName;
use quorate_model::observed::ReplicaState;
use quorate_model::place::{Availability, Drain, Place};
use quorate_model::spec::{Mode, Port, ServiceSpec, SpecDocument};
use quorate_model::state::{Change, ClusterState, Health, NodeRecord, Role};
use std::collections::BTreeSet;
use std::time::Duration;

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
    let workers = world.state.nodes.values().filter(|node| {
        let works = node.identity.roles.contains(&Role::Worker) && world.answers(node.identity.id);
        works && node.availability == Availability::Open
    });
    let mut nodes: Vec<(&NodeRecord, BTreeSet<u16>)> = workers.map(|node| (node, BTreeSet::new())).collect();
    let services = world.state.services.values();
    let wanted: Vec<&ServiceSpec> =
        services.flat_map(|service| std::iter::repeat_n(&service.spec, service.spec.replicas as usize)).collect();
    all_fit(&wanted, &mut nodes)
}

fn all_fit(wanted: &[&ServiceSpec], nodes: &mut [(&NodeRecord, BTreeSet<u16>)]) -> bool {
    let Some((first, rest)) = wanted.split_first() else { return true };
    let fixed = |port: &Port| if let Port::Fixed(number) = port { Some(*number) } else { None };
    let ports: BTreeSet<u16> = first.ports.values().filter_map(fixed).collect();
    (0..nodes.len()).any(|at| {
        let fits = nodes[at].1.is_disjoint(&ports) && first.place.unmet(nodes[at].0).is_none();
        fits && {
            nodes[at].1.extend(&ports);
            let all = all_fit(rest, nodes);
            nodes[at].1.retain(|port| !ports.contains(port));
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
    /// Property 2. Surge is a batch per service, for an update that starts first.
    #[test]
    fn no_more_replicas_run_than_are_wanted_and_a_batch_for_an_update(world in histories()) {
        let after = world.after(&world.plan());
        for service in after.state.services.values() {
            let surge = after.surge(service);
            if service.spec.mode == Mode::EveryNode {
                for node in after.state.nodes.keys() {
                    let mine = after.state.replicas.values().filter(|replica| replica.service == service.spec.name);
                    let here = mine.filter(|replica| replica.node == *node && replica.phase == Phase::Run).count();
                    prop_assert!(here <= 1 + surge, "{here} on one node");
                }
                continue;
            }
            let most = service.copies() as usize + surge;
            prop_assert!(after.running(&service.spec.name) <= most, "{} of {most}", after.running(&service.spec.name));
        }
    }

    /// Property 3, for one plan: whatever was healthy, at most a batch of those that are wanted goes.
    #[test]
    fn a_plan_takes_at_most_a_batch_of_the_healthy_replicas_that_are_wanted(world in histories()) {
        let after = world.after(&world.plan());
        for (name, service) in after.state.services.iter().filter(|(_, service)| service.spec.mode == Mode::Replicated) {
            let before = world.healthy(name).min(service.copies() as usize);
            // What is on a node that is down counts as unhealthy before and after.
            let batch = service.spec.update.batch.of(service.spec.replicas as usize);
            prop_assert!(after.healthy(name) + batch >= before);
        }
    }

    /// Property 3, for a whole update.
    #[test]
    fn an_update_keeps_enough_replicas_healthy(
        nodes in 1..5u128, replicas in 1..5u32, port in prop_oneof![Just(None), Just(Some(8080))],
    ) {
        prop_assume!(port.is_none() || u128::from(replicas) <= nodes);
        let mut world = World::new(nodes, Policy::default());
        world.apply(spec(NAMES[0], replicas, 1, port));
        world.settle(|_| ());
        world.apply(spec(NAMES[0], replicas, 2, port));
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
        let plan = world.plan();
        let other_rules = |step: &Step| matches!(step, Step::Advance { to, .. } if *to != (Advance::To { stage: Stage::Verifying }));
        prop_assume!(!plan.steps.iter().any(other_rules));
        let again = world.after(&plan).plan();
        prop_assert_eq!(moves(&again), 0, "{:?}", again);
    }

    /// Property 5.
    #[test]
    fn a_node_that_runs_nothing_moves_nothing_when_it_comes_or_goes(mut world in histories()) {
        world.recover();
        // One that runs everywhere runs on a new node too.
        let every = world.state.services.values().filter(|service| service.spec.mode == Mode::EveryNode);
        let every: Vec<ServiceName> = every.map(|service| service.spec.name.clone()).collect();
        every.into_iter().for_each(|service| world.command(&Command::RemoveService { service }));
        world.settle(|_| ());
        // What still looks for a place, or a better one, may take the new node.
        prop_assume!(world.plan().held.is_empty());
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
        records.extend(state.versions.values().flat_map(|kept| kept.values()).cloned().map(Change::Version));
        records.extend(state.deployments.values().cloned().map(Change::Deployment));
        shuffle(&mut records, seed);
        let mut again = World { state: ClusterState::default(), ..world.clone() };
        again.state.absorb(state.planned_on, &records);
        again.state.planned_on = state.planned_on;
        prop_assert_eq!(again.plan(), world.plan());
        prop_assert_eq!(world.plan(), world.plan());
    }

    /// Properties 7 and 9.
    #[test]
    fn nothing_is_placed_on_a_node_that_cannot_be_relied_on_or_is_not_what_is_required(world in histories()) {
        for step in world.plan().steps {
            if let Step::Place { node, service, .. } = step {
                let record = &world.state.nodes[&node];
                prop_assert!(world.answers(node));
                prop_assert!(record.identity.roles.contains(&Role::Worker));
                prop_assert_eq!(record.availability, Availability::Open);
                prop_assert_eq!(world.state.services[&service].spec.place.unmet(record), None);
            }
        }
    }

    /// Property 10, against a search. What cannot all be placed is left out here: which part of it is
    /// placed is a matter of taste.
    #[test]
    fn whatever_can_be_placed_is_placed(
        workers in 1..=6u128,
        away in vec(0..7usize, 0..3),
        services in vec(
            (1..=6u32, prop_oneof![Just(None), Just(Some(8080)), Just(Some(9090))], requirements()), 1..=3,
        ),
        drained in 0..7usize,
        moves_max in prop_oneof![Just(1), Just(64)],
    ) {
        prop_assume!(services.iter().map(|(replicas, _, _)| replicas).sum::<u32>() <= 6);
        let mut world = World::new(workers, Policy { moves_max, ..Policy::default() });
        for (name, (replicas, port, place)) in services.iter().enumerate() {
            world.apply(ServiceSpec { place: place.clone(), ..spec(NAMES[name], *replicas, 1, *port) });
        }
        world.act(&Action::Set { at: drained, availability: Availability::Draining(Drain::default()) });
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

    /// Properties 7 and 10, from wherever a history leads. With at most one fixed port per service any choice
    /// leaves room for the others, so counting is enough to know what is feasible.
    #[test]
    fn everything_is_placed_in_the_end_if_ports_suffice(mut world in histories()) {
        world.recover();
        prop_assume!(world.places_suffice());
        world.settle(|_| ());
        for service in world.state.services.values() {
            prop_assert_eq!(world.healthy(&service.spec.name), world.state.wanted(service) as usize);
        }
        let wanted: u32 = world.state.services.values().map(|service| world.state.wanted(service)).sum();
        prop_assert_eq!(world.state.replicas.len(), wanted as usize);
        for replica in world.state.replicas.values() {
            prop_assert_eq!(replica.version, world.state.services[&replica.service].version);
            prop_assert!(!world.is_misplaced(replica));
        }
        prop_assert_eq!(world.plan(), Plan::default());
    }

    /// Property 12. Nodes and services are declared in another order; everything else is the same.
    #[test]
    fn the_order_of_declarations_and_the_names_of_zones_mean_nothing(
        nodes in 1..=5u128,
        services in vec((1..6u32, prop_oneof![Just(None), Just(Some(8080))], any::<bool>()), 1..=3),
        seed in any::<u64>(),
    ) {
        let mut commands: Vec<Command> =
            (1..=nodes).map(|number| Command::RegisterNode { node: node(number, &[Role::Worker]), boot: 1 }).collect();
        commands.extend(services.iter().enumerate().map(|(at, (replicas, port, spreads))| {
            let place = Place { spread: spreads.then(|| "zone".to_owned()), ..Place::default() };
            let services = vec![ServiceSpec { place, ..spec(NAMES[at], *replicas, 1, *port) }];
            Command::ApplySpec { document: SpecDocument { services, routes: Vec::new() } }
        }));
        let planned = |commands: &[Command], zones: [&str; 2]| {
            let mut world = World::new(0, Policy::default());
            for command in commands {
                world.command(command);
            }
            for number in 1..=nodes {
                world.label(node(number, &[]).id, zones[usize::from(number % 3 == 0)]);
            }
            world.observed.reported = world.state.nodes.keys().copied().collect();
            let first = world.plan();
            world.settle(|_| ());
            (first, world.state.replicas)
        };
        let expected = planned(&commands, ["a", "b"]);
        shuffle(&mut commands, seed);
        prop_assert_eq!(planned(&commands, ["b", "a"]), expected);
    }

    #[test]
    fn a_step_names_a_replica_once_and_ids_are_new(world in histories()) {
        let mut named = BTreeSet::new();
        for step in world.plan().steps {
            let (Step::Place { replica, .. }
            | Step::Retire { replica }
            | Step::Release { replica }
            | Step::Promote { replica, .. }
            | Step::Yield { replica }
            | Step::Demoted { replica }
            | Step::Forget { replica }) = &step
            else {
                continue;
            };
            prop_assert!(named.insert(*replica));
            prop_assert_eq!(matches!(step, Step::Place { .. }), !world.state.replicas.contains_key(replica));
        }
    }
}
