//! Balance that was asked for: what is proposed, and what comes of it.

use super::text::{Case, NOW, check_plan, node_id, timed};
use super::world::{World, histories};
use crate::{Balance, Shift, Survey};
use expect_test::{Expect, expect};
use proptest::prelude::*;
use proptest::test_runner::Config;
use quorate_model::command::Command;
use quorate_model::id::{NodeId, ReplicaId};
use quorate_model::state::ClusterState;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

fn survey(case: &str) -> Survey {
    let Case { state, observed, policy } = Case::read(case);
    let observed = timed(observed, &state, NOW);
    Survey { state, observed, policy }
}

fn check(case: &str, moves_max: usize, expected: Expect) {
    let survey = survey(case);
    let name = |node: NodeId| survey.state.nodes[&node].identity.name.clone();
    let mut text = String::new();
    let Balance { shifts, left_out } = survey.rebalance(moves_max);
    for Shift { slot, from, to, why, .. } in shifts {
        writeln!(text, "{slot} {} → {}: {why}", name(from), name(to)).unwrap();
    }
    left_out.iter().for_each(|service| writeln!(text, "{service} is left out").unwrap());
    expected.assert_eq(if text.is_empty() { "all stay\n" } else { &text });
}

#[test]
fn what_a_returned_node_would_get_is_proposed() {
    check(
        "n1 joined | n2 joined | n3 joined | web x4 | web.0 on n1 | web.1 on n2 | web.2 on n1 | web.3 on n2",
        9,
        expect![[r#"
            web.0 n1 → n3: 1 fewer of its own service run there
        "#]],
    );
    check(
        "n1 joined | n2 joined | web x2 | api x2 | web.0 on n1 | web.1 on n2 | api.0 on n1 | api.1 on n2",
        9,
        expect![[r#"
            all stay
        "#]],
    );
}

#[test]
fn of_services_with_one_copy_each_the_load_is_what_counts() {
    let case =
        "n1 joined | n2 joined | n3 joined | a x1 | b x1 | c x1 | d x1 | a.0 on n1 | b.0 on n1 | c.0 on n1 | d.0 on n2";
    check(
        case,
        9,
        expect![[r#"
        a.0 n1 → n3: 2 fewer run there
    "#]],
    );
    check(
        case,
        1,
        expect![[r#"
        a.0 n1 → n3: 2 fewer run there
    "#]],
    );
}

#[test]
fn what_runs_once_or_everywhere_or_is_being_updated_stays() {
    check(
        "n1 joined | n2 joined | pay x1 once | web x1 | pay.0 on n1 | web.0 on n1",
        9,
        expect![[r#"
        web.0 n1 → n2: 1 fewer run there
    "#]],
    );
    check(
        "n1 joined | n2 joined | web x2 v2 rolling from:1 | web.0 on n1 v2 | web.1 on n1 v1",
        9,
        expect![[r#"
            web is left out
        "#]],
    );
    check(
        "n1 joined | n2 cordoned | web x2 | web.0 on n1 | web.1 on n1",
        9,
        expect![[r#"
        all stay
    "#]],
    );
}

#[test]
fn a_copy_that_is_to_move_gets_a_successor_elsewhere_and_ends_when_that_is_well() {
    check_plan(
        "n1 joined | n2 joined | web x1 | web.0 on n1 moving",
        expect![[r#"
        place web.0 on n2
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web x1 | web.0 on n1 moving | web.0 on n2",
        expect![[r#"
        retire web.0 v1 on n1
    "#]],
    );
    check_plan(
        "n1 joined | n2 down 29s | web x1 | web.0 on n1 moving",
        expect![[r#"
        hold web: no node can take web.0: n1 is where it is to go from, n2 is down
    "#]],
    );
}

/// How far loads are apart, and how many replicas of one service share a node.
fn spread(state: &ClusterState) -> (usize, usize) {
    let (mut loads, mut shared) = (BTreeMap::<NodeId, usize>::new(), BTreeMap::new());
    for replica in state.replicas.values() {
        *loads.entry(replica.node).or_default() += 1;
        *shared.entry((&replica.service, replica.node)).or_insert(0_usize) += 1;
    }
    (shared.values().map(|count| count - 1).sum(), loads.values().map(|load| load * load).sum())
}

proptest! {
    #![proptest_config(Config { cases: 64, ..Config::default() })]

    /// What is proposed and carried out ends: nothing is proposed again, every copy that was to move has moved, and
    /// at no time fewer are healthy than are wanted.
    #[test]
    fn balance_is_reached_and_costs_no_copy(mut world in histories()) {
        world.recover();
        world.settle(|_| ());
        prop_assume!(world.state.services.values().all(|service| world.healthy(&service.spec.name) >= world.state.wanted(service) as usize));
        let shifts = world.survey().rebalance(100).shifts;
        let replicas: BTreeSet<ReplicaId> = shifts.iter().map(|shift| shift.replica).collect();
        let before = spread(&world.state);
        world.command(&Command::Rebalance { replicas: replicas.clone() });
        let mut short = None;
        world.settle(|world| {
            for service in world.state.services.values() {
                if world.healthy(&service.spec.name) < world.state.wanted(service) as usize {
                    short = Some(service.spec.name.clone());
                }
            }
        });
        prop_assert_eq!(short, None);
        prop_assert!(world.state.replicas.keys().all(|id| !replicas.contains(id)), "one of {replicas:?} is still there");
        if shifts.is_empty() {
            prop_assert_eq!(spread(&world.state), before);
        }
    }
}

#[test]
fn what_is_to_move_no_more_stays() {
    let mut world = World::new(2, crate::Policy::default());
    world.apply(super::text::spec("web", 2, 1, None));
    world.settle(|_| ());
    let one = *world.state.replicas.keys().next().unwrap();
    world.command(&Command::Rebalance { replicas: [one].into() });
    assert!(world.state.replicas[&one].moving);
    world.command(&Command::Rebalance { replicas: BTreeSet::new() });
    assert!(!world.state.replicas[&one].moving);
    world.settle(|_| ());
    assert!(world.state.replicas.contains_key(&one));
    assert_eq!(world.state.nodes[&node_id(1)].identity.name, "n1");
}
