//! What is said of a fault is what comes of it.

use super::text::NOW;
use super::text::{Case, node_id, timed};
use super::world::{Action, World, histories, histories_with_pairs};
use crate::{Explanation, Fault, Forecast, RoleMove, Roles, Slot, Survey};
use expect_test::{Expect, expect};
use proptest::prelude::*;
use proptest::test_runner::Config;
use quorate_model::assignment::Phase;
use quorate_model::command::Command;
use quorate_model::id::{LogIndex, NodeId, ServiceName};
use quorate_model::observed::ReplicaState;
use quorate_model::spec::Active;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

fn survey(case: &str) -> Survey {
    let Case { state, observed, policy } = Case::read(case);
    let observed = timed(observed, &state, NOW);
    Survey { state, observed, policy }
}

fn check_kill(case: &str, node: u128, expected: Expect) {
    kill_in(&survey(case), node, expected);
}

/// As [`check_kill`], where one plan has been carried out: somebody is active.
fn check_kill_of_pair(case: &str, node: u128, expected: Expect) {
    let Case { state, observed, policy } = planned(case);
    let observed = timed(observed, &state, NOW);
    kill_in(&Survey { state, observed, policy }, node, expected);
}

fn kill_in(survey: &Survey, node: u128, expected: Expect) {
    let Forecast { moves, roles, held } = survey.what_if(Fault::Kill(node_id(node)));
    let name = |node: Option<NodeId>| node.map_or("-", |node| survey.state.nodes[&node].identity.name.as_str());
    let mut text = String::new();
    for one in &moves {
        writeln!(text, "{} {} → {}", one.slot, name(one.from), name(one.to)).unwrap();
    }
    for RoleMove { service, from, to } in roles {
        let copy = |copy: Option<(Slot, NodeId)>| {
            copy.map_or_else(|| "-".into(), |(slot, node)| format!("{slot} on {}", name(Some(node))))
        };
        writeln!(text, "{service} active: {} → {}", copy(from), copy(to)).unwrap();
    }
    for held in held {
        writeln!(text, "{held}").unwrap();
    }
    expected.assert_eq(if text.is_empty() { "nothing changes\n" } else { &text });
}

fn check_explanation(case: &str, service: &str, expected: Expect) {
    let explanation = survey(case).explain(&ServiceName::new(service).unwrap()).unwrap();
    expected.assert_eq(&show(&explanation));
}

fn show(explanation: &Explanation) -> String {
    let Explanation { service, wanted, roles, running, searches, without, held, .. } = explanation;
    let mut text = format!("{service} wants {wanted}\n");
    if let Some(Roles { active, standbys, cold: _ }) = roles {
        match active {
            Some(one) => {
                writeln!(text, "{} on {} is active, epoch {}: {}", one.slot, one.node, one.epoch, one.why).unwrap()
            }
            None => writeln!(text, "nobody is active").unwrap(),
        }
        for one in standbys {
            let why = one.unfit.map_or_else(|| "can follow".into(), |why| format!("cannot: {why}"));
            writeln!(text, "{} on {} stands by, {why}", one.slot, one.node).unwrap();
        }
    }
    let list = |text: &mut String, candidates: &crate::Candidates| {
        candidates.fit.iter().for_each(|(node, score)| writeln!(text, "    {node}: {score}").unwrap());
        candidates.unfit.iter().for_each(|(node, why)| writeln!(text, "    {node} {why}").unwrap());
    };
    for one in running {
        writeln!(text, "{} on {}, place {:?}", one.slot, one.node, one.rank()).unwrap();
        list(&mut text, &one.candidates);
    }
    for one in searches {
        writeln!(text, "{} looks for a node, from {:?}", one.slot, one.from).unwrap();
        list(&mut text, &one.candidates);
    }
    without.iter().for_each(|(node, why)| writeln!(text, "{node} runs none: it {why}").unwrap());
    held.iter().for_each(|held| writeln!(text, "{held}").unwrap());
    text
}

#[test]
fn n5_a_killed_node_is_taken_over_by_the_others() {
    check_kill(
        "n1 joined | n2 joined | n3 joined | api x1 on n1 | web x2 on n1 n2",
        1,
        expect![[r#"
        api.0 n1 → n3
        web.0 n1 → n3
    "#]],
    );
    check_kill(
        "n1 joined | n2 joined | n3 joined | api x1 on n1 | web x2 on n1 n2",
        3,
        expect![[r#"
        nothing changes
    "#]],
    );
}

#[test]
fn n5_a_forecast_does_not_wait_for_times_and_tells_what_finds_no_place() {
    check_kill(
        "n1 joined | n2 joined | n3 down 1s | db x2 port=80 on n1 n2 | web x2 on n1 n3 | replace_after=30s",
        1,
        expect![[r#"
            db.0 n1 → -
            web.0 n1 → n2
            web.1 n3 → n2
            db: no node can take db.0: n1 is down, n2 has port 80 taken by db.1, n3 is down
        "#]],
    );
}

#[test]
fn n5_a_service_on_every_node_moves_nowhere() {
    check_kill(
        "n1 joined | n2 joined | agent every on n1 n2",
        1,
        expect![[r#"
        nothing changes
    "#]],
    );
}

#[test]
fn n5_what_runs_once_moves_when_its_lease_is_over() {
    check_kill(
        "n1 joined | n2 joined | n3 joined | db once on n1 | web x2 on n1 n2",
        1,
        expect![[r#"
        db.0 n1 → n2
        web.0 n1 → n3
    "#]],
    );
}

#[test]
fn n5_many_plans_are_one_forecast() {
    check_kill(
        "n1 joined | n2 joined | web x3 on n1 n1 n1 | moves_max=1",
        1,
        expect![[r#"
        web.0 n1 → n2
        web.1 n1 → n2
        web.2 n1 → n2
    "#]],
    );
}

#[test]
fn a_running_replica_is_explained_by_the_order_of_the_nodes() {
    check_explanation(
        "n1 joined zone=a disk=ssd | n2 joined zone=b | n3 cordoned zone=b | n4 joined | n5 down 1s \
         | db x1 on n2 | web x2 spread:zone require:zone!=c prefer:disk=ssd near:db apart:log on n1 n2 | log x1 on n4",
        "web",
        expect![[r#"
            web wants 2
            web.0 on n1, place Some(1)
                n1: no other in zone a, no other here, disk = ssd, not near db, runs 0
                n4: no other without zone, no other here, not disk = ssd, not near db, not apart from log, runs 1
                n2: 1 other in zone b, 1 other here, not disk = ssd, near db, runs 2
                n3 is cordoned
                n5 is down
            web.1 on n2, place Some(1)
                n2: no other in zone b, no other here, not disk = ssd, near db, runs 1
                n4: no other without zone, no other here, not disk = ssd, not near db, not apart from log, runs 1
                n1: 1 other in zone a, 1 other here, disk = ssd, not near db, runs 1
                n3 is cordoned
                n5 is down
        "#]],
    );
}

#[test]
fn a_missing_replica_is_explained_node_by_node() {
    check_explanation(
        "n1 joined | n2 down 1s | web x3 port=80 on n1",
        "web",
        expect![[r#"
            web wants 3
            web.0 on n1, place Some(1)
                n1: no other here, runs 0
                n2 is down
            web.1 looks for a node, from None
                n1 has port 80 taken by web.0
                n2 is down
            no node can take web.1 and 1 more: n1 has port 80 taken by web.0, n2 is down
        "#]],
    );
}

#[test]
fn a_replica_that_has_to_move_is_explained_with_where_it_goes() {
    check_explanation(
        "n1 draining 1s | n2 joined | n3 joined | web x1 on n1",
        "web",
        expect![[r#"
            web wants 1
            web.0 on n1, place None
                n2: no other here, runs 0
                n3: no other here, runs 0
                n1 is draining
            web.0 looks for a node, from Some("n1")
                n2: no other here, runs 0
                n3: no other here, runs 0
                n1 is draining
        "#]],
    );
}

#[test]
fn a_service_on_every_node_is_explained_by_the_nodes_without_it() {
    check_explanation(
        "n1 joined disk=ssd | n2 joined | n3 gateway disk=ssd | n4 cordoned disk=ssd | agent every require:disk=ssd on n1",
        "agent",
        expect![[r#"
            agent wants 1
            agent.0 on n1, place Some(1)
                n1: no other here, runs 0
            n2 runs none: it does not meet disk = ssd
            n3 runs none: it is no worker
            n4 runs none: it is cordoned
        "#]],
    );
}

/// Three copies, the first of them active after one plan; what a test does then, and how that is explained.
fn roles_after(case: &str, then: impl FnOnce(&mut Case), expected: Expect) {
    let mut case = planned(case);
    then(&mut case);
    let Case { state, observed, policy } = case;
    let observed = timed(observed, &state, NOW);
    let explanation = Survey { state, observed, policy }.explain(&ServiceName::new("db").unwrap()).unwrap();
    let text = show(&explanation);
    let roles: Vec<&str> =
        text.lines().filter(|line| line.contains(" is active") || line.contains(" stands by")).collect();
    expected.assert_eq(&(roles.join("\n") + "\n"));
}

/// With one plan carried out.
fn planned(case: &str) -> Case {
    let mut case = Case::read(case);
    let steps = crate::plan(&case.state, &case.observed, &case.policy).steps;
    let command = Command::CarryOut { expected: case.state.planned_on, steps };
    let index = LogIndex(case.state.planned_on.0 + 1);
    let changes = case.state.decide(index, NOW, &command).unwrap();
    case.state.absorb(index, &changes);
    case
}

const PAIR: &str = "n1 joined | n2 joined zone=b | n3 joined | db x3 pair on n1 n2 n3";

fn is(case: &mut Case, node: u128, state: ReplicaState) {
    let on = case.state.replicas.values().find(|replica| replica.node == node_id(node)).unwrap().id;
    case.observed.replicas.insert(on, state);
}

#[test]
fn who_is_active_is_explained_and_who_would_be_next() {
    roles_after(
        PAIR,
        |_| (),
        expect![[r#"
            db.0 on n1 is active, epoch 1: of the copies that fit as well it was placed first
            db.1 on n2 stands by, can follow
            db.2 on n3 stands by, can follow
        "#]],
    );
    let unwell = |case: &mut Case| is(case, 2, ReplicaState::Starting);
    roles_after(
        PAIR,
        unwell,
        expect![[r#"
            db.0 on n1 is active, epoch 1: of the copies that fit as well it was placed first
            db.2 on n3 stands by, can follow
            db.1 on n2 stands by, cannot: it is starting
        "#]],
    );
    let alone = |case: &mut Case| {
        [2, 3].into_iter().for_each(|node| is(case, node, ReplicaState::BackingOff));
    };
    roles_after(
        PAIR,
        alone,
        expect![[r#"
            db.0 on n1 is active, epoch 1: no other copy could be promoted
            db.1 on n2 stands by, cannot: it ended and is started again
            db.2 on n3 stands by, cannot: it ended and is started again
        "#]],
    );
    let failing = |case: &mut Case| is(case, 1, ReplicaState::Unhealthy);
    roles_after(
        PAIR,
        failing,
        expect![[r#"
            db.0 on n1 is active, epoch 1: it is giving the role back
            db.1 on n2 stands by, can follow
            db.2 on n3 stands by, can follow
        "#]],
    );
    let silent = |case: &mut Case| {
        case.observed.unreachable_for.insert(node_id(1), Duration::from_secs(2));
    };
    roles_after(
        PAIR,
        silent,
        expect![[r#"
            db.0 on n1 is active, epoch 1: its node is out of reach; nobody is promoted before its lease is over
            db.1 on n2 stands by, can follow
            db.2 on n3 stands by, can follow
        "#]],
    );
}

#[test]
fn a_preference_is_the_reason_or_what_is_well_keeps_the_role() {
    let prefer = |case: &mut Case| {
        let active = Active { prefer: vec!["zone = b".parse().unwrap()], ..Active::default() };
        case.state.services.values_mut().for_each(|service| service.spec.active = Some(active.clone()));
        case.state.replicas.values_mut().for_each(|replica| replica.spec.active = Some(active.clone()));
    };
    roles_after(
        PAIR,
        prefer,
        expect![[r#"
            db.0 on n1 is active, epoch 1: it is well, and what is well keeps the role
            db.1 on n2 stands by, can follow
            db.2 on n3 stands by, can follow
        "#]],
    );
    roles_after(
        PAIR,
        |case| {
            prefer(case);
            case.state.nodes.get_mut(&node_id(1)).unwrap().labels.insert("zone".into(), "b".into());
            case.state.nodes.get_mut(&node_id(2)).unwrap().labels.clear();
        },
        expect![[r#"
            db.0 on n1 is active, epoch 1: its node is preferred: zone = b
            db.1 on n2 stands by, can follow
            db.2 on n3 stands by, can follow
        "#]],
    );
    check_explanation(
        "n1 joined | db x1 pair",
        "db",
        expect![[r#"
            db wants 1
            nobody is active
            db.0 looks for a node, from None
                n1: no other here, runs 0
            no copy is active: none is healthy
        "#]],
    );
}

#[test]
fn n5_a_standby_is_promoted_and_another_copy_stands_by_instead() {
    check_kill_of_pair(
        PAIR,
        1,
        expect![[r#"
            db.0 n1 → -
            db active: db.0 on n1 → db.1 on n2
            db: no node can take db.0: n1 is down, n2 has db.1 already, n3 has db.2 already
        "#]],
    );
    check_kill_of_pair(
        "n1 joined | n2 joined | n3 joined | db x2 pair on n1 n2",
        1,
        expect![[r#"
            db.0 n1 → n3
            db active: db.0 on n1 → db.1 on n2
        "#]],
    );
    check_kill_of_pair(
        "n1 joined | n2 joined | db x1 pair on n1",
        1,
        expect![[r#"
            db.0 n1 → n2
            db active: db.0 on n1 → db.0 on n2
        "#]],
    );
}

#[test]
fn a_service_that_is_not_there_is_not_explained() {
    assert_eq!(survey("n1 joined").explain(&ServiceName::new("web").unwrap()), None);
}

type Layout = BTreeMap<(ServiceName, u32), BTreeSet<NodeId>>;

fn layout(world: &World) -> Layout {
    let mut layout = Layout::new();
    for replica in world.state.replicas.values().filter(|replica| replica.phase == Phase::Run) {
        layout.entry((replica.service.clone(), replica.ordinal)).or_default().insert(replica.node);
    }
    layout
}

proptest! {
    #![proptest_config(Config { cases: 128, ..Config::default() })]

    /// N5: what the forecast says of a kill is what the kill then does, in clusters that came about in
    /// whatever way and are at rest. The real one goes through the leader's verdict, the patience of
    /// `replace_after` and agents that take their time.
    #[test]
    fn n5_what_if_kill_equals_what_the_kill_then_does(mut world in histories(), which in 0..6usize) {
        world.settle(|_| ());
        kill_as_forecast(world, which)?;
    }

    /// N5: so it is with active-passive services, and with which copy is active then.
    #[test]
    fn n5_what_if_kill_equals_whom_the_kill_then_promotes(mut world in histories_with_pairs(), which in 0..6usize) {
        // Leases of nodes that were lost before are over.
        rest(&mut world);
        kill_as_forecast(world, which)?;
    }
}

fn rest(world: &mut World) {
    world.settle(|_| ());
    for _ in 0..60 {
        world.act(&Action::Wait(Duration::from_secs(1)));
        world.settle(|_| ());
    }
}

fn kill_as_forecast(mut world: World, which: usize) -> Result<(), TestCaseError> {
    let (before, active) = (layout(&world), world.active());
    let node = *world.state.nodes.keys().nth(which % world.state.nodes.len()).unwrap();
    let forecast = world.survey().what_if(Fault::Kill(node));

    world.act(&Action::Unreachable(which));
    world.settle(|_| ());
    world.act(&Action::NodeDown(which));
    world.observed.unreachable_for.remove(&node);
    rest(&mut world);

    let mut expected = before;
    for one in &forecast.moves {
        let there = expected.entry((one.slot.service.clone(), one.slot.ordinal)).or_default();
        prop_assert!(one.from.is_none_or(|from| there.remove(&from)), "{one:?} is from where nothing is");
        there.extend(one.to);
    }
    expected.retain(|_, there| !there.is_empty());
    prop_assert_eq!(layout(&world), expected);
    let mut heirs = active;
    for RoleMove { service, from, to } in forecast.roles {
        prop_assert_eq!(heirs.remove(&service), from.map(|(_, node)| node));
        heirs.extend(to.map(|(_, node)| (service, node)));
    }
    prop_assert_eq!(world.active(), heirs);
    prop_assert_eq!(world.plan().held, forecast.held);
    Ok(())
}
