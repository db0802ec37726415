//! Nodes are emptied without anybody noticing, or at the deadline.

use super::text::{node, spec};
use super::world::{Action, NAMES, World, histories};
use crate::{HeldReason, Policy};
use proptest::prelude::*;
use proptest::test_runner::Config;
use quorate_model::assignment::Phase;
use quorate_model::id::{LogIndex, NodeId, ServiceName};
use quorate_model::place::{Availability, Drain};
use quorate_model::spec::Mode;
use quorate_model::time::Span;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

fn draining(deadline: Option<Duration>) -> Availability {
    Availability::Draining(Drain { deadline: deadline.map(Span), asked: LogIndex(0) })
}

fn on(world: &World, node: NodeId) -> usize {
    world.state.replicas.values().filter(|replica| replica.node == node).count()
}

/// Drains until nothing is left to do.
fn drain(world: &mut World, node: NodeId, deadline: Option<Duration>, look: impl FnMut(&World)) {
    world.set(node, draining(deadline));
    world.observed.draining_for.insert(node, Duration::ZERO);
    world.settle(look);
}

proptest! {
    // Each case is a whole course of events.
    #![proptest_config(Config { cases: 64, ..Config::default() })]

    /// Property 11, where there is a place; and 3, for a whole drain: from healthy to empty, with as many
    /// healthy replicas as before at every moment.
    #[test]
    fn a_drained_node_ends_empty_and_no_service_has_less_meanwhile(
        nodes in 2..5u128, replicas in 1..5u32, port in prop_oneof![Just(None), Just(Some(8080))], first in 0..5usize,
    ) {
        // One node more than a fixed port needs.
        prop_assume!(port.is_none() || u128::from(replicas) < nodes);
        let mut world = World::new(nodes, Policy::default());
        world.apply(spec(NAMES[0], replicas, 1, port));
        world.act(&Action::Every { name: 1, version: 1, place: quorate_model::place::Place::default() });
        world.settle(|_| ());
        let drained = node(1 + first as u128 % nodes, &[]).id;
        let name = ServiceName::new(NAMES[0]).unwrap();
        drain(&mut world, drained, None, |world| assert_eq!(world.healthy(&name).min(replicas as usize), replicas as usize));
        prop_assert_eq!(on(&world, drained), 0);
        prop_assert_eq!(world.plan().held, vec![]);
    }

    /// Property 11, from wherever a history leads: whatever stays was told why.
    #[test]
    fn a_replica_that_stays_on_a_draining_node_is_explained(mut world in histories(), which in 0..6usize) {
        world.recover();
        world.settle(|_| ());
        let drained = *world.state.nodes.keys().nth(which % world.state.nodes.len()).unwrap();
        drain(&mut world, drained, None, |_| ());
        let held = world.plan().held;
        for replica in world.state.replicas.values().filter(|replica| replica.node == drained) {
            let told = |held: &crate::Held| held.service == replica.service && matches!(held.reason, HeldReason::NoNode { .. });
            prop_assert!(held.iter().any(told), "{}.{}: {held:?}", replica.service, replica.ordinal);
        }
    }

    /// Property 11, at the deadline.
    #[test]
    fn a_node_whose_drain_is_out_of_time_ends_empty(mut world in histories(), which in 0..6usize) {
        world.recover();
        world.settle(|_| ());
        let drained = *world.state.nodes.keys().nth(which % world.state.nodes.len()).unwrap();
        drain(&mut world, drained, Some(DEADLINE), |_| ());
        world.observed.draining_for.insert(drained, DEADLINE);
        world.settle(|_| ());
        prop_assert_eq!(on(&world, drained), 0);
    }

    /// Back where it was, and nothing else: what was drained does not return by itself, but what runs
    /// everywhere does.
    #[test]
    fn an_undrained_node_gets_back_only_what_runs_everywhere(mut world in histories(), which in 0..6usize) {
        world.recover();
        world.settle(|_| ());
        let drained = *world.state.nodes.keys().nth(which % world.state.nodes.len()).unwrap();
        drain(&mut world, drained, None, |_| ());
        prop_assume!(world.plan().held.is_empty());
        world.set(drained, Availability::Open);
        world.settle(|_| ());
        for replica in world.state.replicas.values().filter(|replica| replica.node == drained) {
            prop_assert_eq!(world.state.services[&replica.service].spec.mode, Mode::EveryNode);
            prop_assert_eq!(replica.phase, Phase::Run);
        }
    }
}
