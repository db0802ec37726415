//! Processor time and memory: what is set aside is never more than a node has (E2).

use super::text::{Case, check_plan, spec};
use super::world::{NAMES, World};
use crate::{Policy, Survey};
use expect_test::expect;
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_model::id::ServiceName;
use quorate_model::resource::{Amount, Resources};
use quorate_model::spec::ServiceSpec;
use quorate_model::state::Health;

#[test]
fn replicas_go_only_where_there_is_room_and_the_rest_waits_and_says_why() {
    check_plan(
        "n1 joined has=2,4GiB | n2 joined has=1,4GiB | n3 joined has=4,1GiB | web x5 needs:1,2GiB",
        expect![[r#"
            place web.0 on n2
            place web.1 on n1
            place web.2 on n1
            hold web: no node can take web.3 and 1 more: n1 has 0m CPU and 0B free and 1 CPU and 2GiB is needed, n2 has 0m CPU free and 1 is needed, n3 has 1GiB of memory free and 2GiB is needed
        "#]],
    );
}

#[test]
fn what_other_services_have_set_aside_is_not_free_until_they_have_ended() {
    check_plan(
        "n1 joined has=2,4GiB | db needs:1,3GiB on n1 | web needs:1,2GiB",
        expect![[r#"
        hold web: no node can take web.0: n1 has 1GiB of memory free and 2GiB is needed
    "#]],
    );
    check_plan(
        "n1 joined has=2,4GiB | db x0 needs:1,3GiB | db.0 on n1 drain 1s | web needs:1,2GiB",
        expect![[r#"
        hold web: no node can take web.0: n1 has 1GiB of memory free and 2GiB is needed
    "#]],
    );
}

#[test]
fn where_a_node_has_not_said_what_it_has_only_what_asks_for_nothing_is_placed() {
    check_plan(
        "n1 joined | web needs:1,1GiB | api",
        expect![[r#"
        place api.0 on n1
        hold web: no node can take web.0: n1 has not said what it has room for
    "#]],
    );
}

#[test]
fn an_update_that_has_no_room_beside_the_old_replica_ends_that_first() {
    check_plan(
        "n1 joined has=1,1GiB | web v2 needs:800m,800MiB | web.0 on n1 v1",
        expect![[r#"
        retire web.0 v1 on n1
    "#]],
    );
    // With room elsewhere the successor comes first.
    check_plan(
        "n1 joined has=1,1GiB | n2 joined has=1,1GiB | web v2 needs:800m,800MiB | web.0 on n1 v1",
        expect![[r#"
            place web.0 on n2
        "#]],
    );
    // Nobody gives up a place for one that fits nowhere.
    check_plan(
        "n1 joined has=1,1GiB | web v2 needs:2,2GiB | web.0 on n1 v1",
        expect![[r#"
        hold web: no node can take web.0: n1 has 1 CPU and 1GiB free and 2 CPU and 2GiB is needed
    "#]],
    );
}

#[test]
fn one_on_every_node_misses_those_without_room() {
    check_plan(
        "n1 joined has=1,1GiB | n2 joined has=4,4GiB | log every needs:2,1GiB",
        expect![[r#"
        place log.0 on n2
        hold log: n1 runs none: it has 1 CPU free and 2 is needed
    "#]],
    );
}

#[test]
fn what_a_service_needs_is_held_against_what_is_free_with_a_node_lost() {
    let case = Case::read(
        "n1 joined has=4,8GiB | n2 joined has=2,8GiB | n3 joined has=2,8GiB | n4 cordoned has=9,9GiB \
         | db needs:1,1GiB on n1 | web x4 needs:1,1GiB on n2 n3",
    );
    let survey = Survey { state: case.state, observed: case.observed, policy: case.policy };
    let budget = survey.explain(&ServiceName::new("web").unwrap()).unwrap().budget.unwrap();
    assert_eq!(budget.free.to_string(), "7 CPU and 23GiB", "what db has is not free, what web has is");
    assert_eq!((budget.fit, budget.lost.as_deref(), budget.fit_then), (7, Some("n1"), 4));
    assert_eq!(budget.free_then.to_string(), "4 CPU and 16GiB");
    let case = Case::read("n1 joined | web x4");
    let survey = Survey { state: case.state, observed: case.observed, policy: case.policy };
    assert_eq!(survey.explain(&ServiceName::new("web").unwrap()).unwrap().budget, None, "it asks for nothing");
}

/// What of a node is set aside may never be more than it has.
fn none_is_overfull(world: &World) {
    for (node, capacity) in &world.observed.capacity {
        let mine = world.state.replicas.values().filter(|replica| replica.node == *node);
        let reserved = mine.fold(Amount::default(), |sum, replica| sum + replica.spec.resources.amount());
        assert!(reserved.fits(*capacity), "{reserved} of {capacity} on {node}");
    }
}

proptest! {
    /// Property 6, and with it that every update comes to its end where each replica fits by itself.
    #[test]
    fn no_node_is_ever_overfull_and_updates_end(
        nodes in vec(1_000..8_000u64, 2..=5),
        services in vec((0..NAMES.len(), 1..=4u32, 1..4u64, 100..1_000u32), 1..6),
        lost in 0..5usize,
    ) {
        let mut world = World::new(nodes.len() as u128, Policy::default());
        let ids: Vec<_> = world.state.nodes.keys().copied().collect();
        for (id, cpu_millis) in ids.iter().zip(&nodes) {
            world.observed.capacity.insert(*id, Amount { cpu_millis: *cpu_millis, memory_bytes: 0 });
        }
        for (name, replicas, version, cpu) in services {
            let resources = Resources { cpu: Some(format!("{cpu}m").parse().unwrap()), memory: None };
            world.apply(ServiceSpec { resources, ..spec(NAMES[name], replicas, version, None) });
            world.settle(none_is_overfull);
            for service in world.state.services.values() {
                let stale = world.state.replicas.values().filter(|replica| {
                    replica.service == service.spec.name && !replica.spec.runs_the_same(&service.spec)
                });
                prop_assert!(stale.count() == 0 || !world.plan().held.is_empty(), "an update stands still in silence");
            }
        }
        world.health(ids[lost % nodes.len()], Health::Down);
        world.settle(none_is_overfull);
    }
}
