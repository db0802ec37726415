//! Updates as deployments: what an operator would see of them, and whole courses of them.

use super::text::{Case, check_plan, show, spec};
use super::world::{NAMES, World, updates};
use crate::{Policy, plan};
use expect_test::expect;
use proptest::prelude::*;
use proptest::test_runner::Config;
use quorate_model::command::Command;
use quorate_model::deployment::Stage;
use quorate_model::id::{ReplicaId, ServiceName};
use quorate_model::spec::ServiceSpec;
use quorate_model::state::Health;

#[test]
fn a_batch_is_replaced_at_a_time() {
    check_plan(
        "n1 joined | n2 joined | n3 joined | web x3 v2 rolling from:1 batch:2 | web.0 on n1 v1 | web.1 on n2 v1 | web.2 on n3 v1",
        expect![[r#"
            place web.0 on n1
            place web.1 on n2
        "#]],
    );
    check_plan(
        "n1 joined | n2 joined | n3 joined | web x3 v2 rolling from:1 batch:2 stop-first | web.0 on n1 v1 | web.1 on n2 v1 | web.2 on n3 v1",
        expect![[r#"
            retire web.0 v1 on n1
            retire web.1 v1 on n2
        "#]],
    );
}

/// Found by a property: a version failed, and one copy fewer was wanted before anybody had looked.
#[test]
fn what_is_too_many_goes_also_when_an_update_is_halted() {
    check_plan(
        "n1 joined | n2 joined | web x1 v1 rolling | web.0 on n1 v1 failed | web.1 on n2 v1",
        expect![[r#"
            retire web.0 v1 on n1
            halt web: web.0 on n1 failed
        "#]],
    );
}

/// A third version came while the second was begun, and a leader that has just come knows neither copy yet.
#[test]
fn of_two_old_copies_of_an_ordinal_the_one_that_was_there_first_stays() {
    let web = "n1 joined | n2 joined | n3 joined | web x1 v3 rolling from:1";
    for (first, second) in [("starting", "starting"), ("", "")] {
        check_plan(
            &format!("{web} | web.0 on n1 v1 {first} | web.0 on n2 v2 {second}"),
            expect![[r#"
                retire web.0 v2 on n2
                hold web: the update waits for the old web.0 on n2 to end
            "#]],
        );
    }
    check_plan(
        &format!("{web} | web.0 on n1 v1 starting | web.0 on n2 v2"),
        expect![[r#"
            retire web.0 v1 on n1
            hold web: the update waits for the old web.0 on n1 to end
        "#]],
    );
}

/// The older version was placed later: an update went back to it. A leader that has just come knows neither copy.
#[test]
fn of_two_old_copies_of_an_ordinal_the_one_of_the_newer_version_stays_if_it_was_there_first() {
    let case = "n1 joined | n2 joined | web x1 v7 rolling from:3 | web.0 on n1 v3 unseen | web.0 on n2 v5 unseen";
    let Case { mut state, observed, policy } = Case::read(case);
    let later = state.replicas.values_mut().find(|replica| replica.version == 3).unwrap();
    later.revision = later.revision.next();
    let plan = plan(&state, &observed, &policy);
    expect![[r#"
        retire web.0 v3 on n1
        hold web: the update waits for the old web.0 on n1 to end
    "#]]
    .assert_eq(&show(&state, &plan));
}

#[test]
fn what_only_moves_starts_first_whatever_updates_do() {
    check_plan(
        "n1 draining 1s | n2 joined | web x1 stop-first | web.0 on n1",
        expect![[r#"
            place web.0 on n2
        "#]],
    );
}

#[test]
fn a_new_copy_counts_when_it_has_been_healthy_for_long_enough() {
    let web = "n1 joined | n2 joined | web x2 v2 rolling from:1 healthy-for:5s | web.0 on n1 v1 | web.1 on n2 v1";
    check_plan(
        &format!("{web} | web.0 on n1 for 4s"),
        expect![[r#"
        hold web: the update waits until web.0 of version 2 has been healthy for 5s
    "#]],
    );
    check_plan(
        &format!("{web} | web.0 on n1 for 5s"),
        expect![[r#"
        retire web.0 v1 on n1
        hold web: the update waits for the old web.0 on n1 to end
    "#]],
    );
}

#[test]
fn canaries_go_first_and_others_follow_when_they_are_well_or_when_somebody_says_so() {
    let web = "n1 joined | n2 joined | n3 joined | web.0 on n1 v1 | web.1 on n2 v1 | web.2 on n3 v1";
    check_plan(
        &format!("{web} | web x3 v2 canary from:1 canary:1 batch:2"),
        expect![[r#"
        place web.0 on n1
    "#]],
    );
    let web = "n1 joined | n2 joined | n3 joined | web.0 on n1 | web.1 on n2 v1 | web.2 on n3 v1";
    check_plan(
        &format!("{web} | web x3 v2 canary from:1 canary:1"),
        expect![[r#"
        advance web to Rolling
    "#]],
    );
    check_plan(
        &format!("{web} | web x3 v2 canary from:1 canary:1 manual"),
        expect![[r#"
        advance web to AwaitPromotion
    "#]],
    );
    check_plan(
        &format!("{web} | web x3 v2 await from:1 canary:1 manual"),
        expect![[r#"
        hold web: the canaries of version 2 are well; the others follow at: quorate update continue web
    "#]],
    );
}

#[test]
fn what_is_lost_while_a_version_is_tried_out_comes_back_as_what_it_was() {
    check_plan(
        "n1 joined | n2 joined | n3 joined | web x3 v2 await from:1 canary:1 manual | web.0 on n1 | web.1 on n2 v1",
        expect![[r#"
            place web.2 v1 on n3
            hold web: the canaries of version 2 are well; the others follow at: quorate update continue web
        "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web x2 v2 await from:1 canary:1 manual | web.1 on n2 v1",
        expect![[r#"
        place web.0 on n1
        hold web: the update waits for web.0 of version 2 to become healthy
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web x2 v2 rolling held from:1 | web.0 on n1 starting",
        expect![[r#"
        place web.1 v1 on n2
        hold web: the update waits for web.0 of version 2 to become healthy
        hold web: the update to version 2 is held: it broke; go on: quorate update continue web, or give it up: quorate update abort web
    "#]],
    );
}

#[test]
fn an_update_fails_by_a_program_that_ends_or_cannot_start_or_takes_too_long() {
    let web = "n1 joined | n2 joined | web x2 v2 rolling from:1 | web.0 on n1 v1 | web.1 on n2 v1";
    check_plan(
        &format!("{web} | web.0 on n1 backing-off restarts 2"),
        expect![[r#"
        hold web: web.0 of version 2 does not become healthy
    "#]],
    );
    check_plan(
        &format!("{web} | web.0 on n1 backing-off restarts 3 (exit status 1)"),
        expect![[r#"
        roll web back: web.0 on n1 was started again 3 times: exit status 1
    "#]],
    );
    check_plan(
        &format!("{web} | web.0 on n1 failed (no such file)"),
        expect![[r#"
        roll web back: web.0 on n1 failed: no such file
    "#]],
    );
    check_plan(
        &format!("{web} | web.0 on n1 unhealthy for 5m (GET /ok: status 500)"),
        expect![[r#"
        roll web back: web.0 on n1 was not healthy within 5m: GET /ok: status 500
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web x2 v2 rolling from:1 stalled-for:10m | web.0 on n1 v1 | web.1 on n2 v1 drain 5s",
        expect![[r#"
            roll web back: no further copy became healthy within 10m
        "#]],
    );
}

#[test]
fn an_update_that_fails_is_held_where_nothing_is_to_go_back_to_and_goes_on_when_it_is_well() {
    check_plan(
        "n1 joined | web x1 v1 rolling | web.0 on n1 failed (no such file)",
        expect![[r#"
        halt web: web.0 on n1 failed: no such file
    "#]],
    );
    let web = "n1 joined | n2 joined | web x2 v2 from:1 no-rollback rolling | web.0 on n1 v1 | web.1 on n2 v1";
    check_plan(
        &format!("{web} | web.0 on n1 failed (no such file)"),
        expect![[r#"
        halt web: web.0 on n1 failed: no such file
    "#]],
    );
    let held = web.replace("rolling", "rolling held");
    check_plan(
        &format!("{held} | web.0 on n1 failed (no such file)"),
        expect![[r#"
        hold web: web.0 of version 2 does not become healthy: no such file
        hold web: the update to version 2 is held: it broke; go on: quorate update continue web, or give it up: quorate update abort web
    "#]],
    );
    check_plan(
        &format!("{held} | web.0 on n1"),
        expect![[r#"
        resume web
    "#]],
    );
}

#[test]
fn a_version_is_stable_when_all_have_run_it_for_long_enough() {
    check_plan(
        "n1 joined | web x1 v2 rolling from:1 on n1",
        expect![[r#"
        advance web to Verifying
    "#]],
    );
    check_plan(
        "n1 joined | web x1 v2 verifying from:1 verify-for:30s stage-for:29s on n1",
        expect![[r#"
        nothing to do
    "#]],
    );
    check_plan(
        "n1 joined | web x1 v2 verifying from:1 verify-for:30s stage-for:30s on n1",
        expect![[r#"
        advance web to Done
    "#]],
    );
    // A node that cannot be asked says nothing of the version.
    check_plan(
        "n1 joined | n2 unreachable 1s | web x2 v2 verifying from:1 stage-for:30s | web.0 on n1 | web.1 on n2 v1",
        expect![[r#"
            advance web to Done
            hold web: n2 has been silent for 1s; its replicas stay until it is marked down
        "#]],
    );
}

#[test]
fn going_back_ends_what_failed_and_leaves_alone_what_never_changed() {
    check_plan(
        "n1 joined | n2 joined | web x2 v1 back from:1 | web.0 on n1 | web.0 on n1 v2 backing-off restarts 3 | web.1 on n2",
        expect![[r#"
            retire web.0 v2 on n1
        "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web x2 v1 back from:1 on n1 n2",
        expect![[r#"
        advance web to RolledBack
    "#]],
    );
}

fn stage(world: &World) -> Stage {
    world.state.deployments[&ServiceName::new(NAMES[0]).unwrap()].stage
}

proptest! {
    // Each case is a whole course of events.
    #![proptest_config(Config { cases: 64, ..Config::default() })]

    /// Property 3, for a whole update in batches: at every moment all are healthy but a batch, where the old ones
    /// end first; and it comes to its end.
    #[test]
    fn an_update_in_batches_keeps_enough_healthy_and_ends(
        nodes in 1..5u128, replicas in 1..7u32, update in updates(),
    ) {
        let mut world = World::new(nodes, Policy::default());
        let web = |version| ServiceSpec { update: update.clone(), ..spec(NAMES[0], replicas, version, None) };
        world.apply(web(1));
        world.settle(|_| ());
        prop_assert_eq!(stage(&world), Stage::Done);
        world.apply(web(2));
        let name = ServiceName::new(NAMES[0]).unwrap();
        let batch = update.batch.of(replicas as usize);
        let down = if update.order.is_some() { batch } else { 0 };
        let (least, most) = ((replicas as usize).saturating_sub(down), replicas as usize + batch);
        world.settle(|world| {
            assert!(world.healthy(&name) >= least, "{} of {least}", world.healthy(&name));
            assert!(world.running(&name) <= most, "{} of {most}", world.running(&name));
        });
        prop_assert_eq!(stage(&world), Stage::Done);
        prop_assert!(world.state.replicas.values().all(|replica| replica.version == 2));
    }

    /// A program that never becomes healthy takes nothing away but what a batch may, reaches no more copies than
    /// canaries or a batch, and is gone in the end.
    #[test]
    fn a_version_that_never_becomes_healthy_is_undone(nodes in 1..5u128, replicas in 1..7u32, update in updates()) {
        let mut world = World::new(nodes, Policy::default());
        let web = |version| ServiceSpec { update: update.clone(), ..spec(NAMES[0], replicas, version, None) };
        world.apply(web(1));
        world.settle(|_| ());
        let before = world.state.replicas.clone();
        world.broken = Some(2);
        world.apply(web(2));
        let name = ServiceName::new(NAMES[0]).unwrap();
        let batch = update.batch.of(replicas as usize);
        let down = if update.order.is_some() { batch } else { 0 };
        world.settle(|world| {
            assert!(world.healthy(&name) + down >= replicas as usize, "{}", world.healthy(&name));
            let new = world.state.replicas.values().filter(|replica| replica.version == 2).count();
            assert!(new <= batch, "{new} of {batch}");
        });
        prop_assert_eq!(stage(&world), Stage::RolledBack);
        prop_assert_eq!(world.healthy(&name), replicas as usize);
        prop_assert!(world.state.replicas.values().all(|replica| replica.version == 1));
        let kept = before.keys().filter(|id| world.state.replicas.contains_key(id)).count();
        prop_assert!(kept + down >= replicas as usize, "what never changed was left alone");
    }
}

#[test]
fn a_node_that_is_lost_during_an_update_fails_nothing_and_is_made_up_for() {
    let mut world = World::new(3, Policy::default());
    world.apply(spec(NAMES[0], 3, 1, None));
    world.settle(|_| ());
    world.apply(spec(NAMES[0], 3, 2, None));
    let plan = world.plan();
    world.carry_out(&plan);
    world.obey();
    let lost = world.state.replicas.values().find(|replica| replica.version == 2).unwrap().node;
    world.health(lost, Health::Down);
    world.settle(|_| ());
    assert_eq!(stage(&world), Stage::Done);
    assert!(world.state.replicas.values().all(|replica| replica.version == 2 && replica.node != lost));
    // And one that comes back with an old version gets rid of it.
    world.health(lost, Health::Joined);
    world.reports(lost);
    world.settle(|_| ());
    assert!(world.plan().steps.is_empty());
}

#[test]
fn a_restart_that_does_not_get_well_leaves_the_other_copies_alone() {
    let mut world = World::new(2, Policy::default());
    world.apply(spec(NAMES[0], 2, 1, None));
    world.settle(|_| ());
    let before: Vec<ReplicaId> = world.state.replicas.keys().copied().collect();
    let service = ServiceName::new(NAMES[0]).unwrap();
    world.broken = Some(2);
    world.command(&Command::RestartService { service });
    world.settle(|_| ());
    assert_eq!(stage(&world), Stage::RolledBack);
    assert_eq!(world.state.replicas.keys().copied().collect::<Vec<_>>(), before);
}

#[test]
fn what_goes_back_never_gives_up() {
    check_plan(
        "n1 joined | n2 joined | web x2 v1 back held from:1 batch:2 | web.0 on n1 starting | web.1 on n2 v2 backing-off",
        expect![[r#"
            place web.1 on n2
            hold web: the update to version 2 is held: it broke; go on: quorate update continue web, or give it up: quorate update abort web
        "#]],
    );
}
