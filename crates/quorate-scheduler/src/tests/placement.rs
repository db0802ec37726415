//! Where replicas go when nodes differ: labels, wishes, drains, services on every node.

use super::text::check_plan;
use expect_test::expect;

#[test]
fn what_a_service_requires_is_never_broken() {
    check_plan(
        "n1 joined disk=hdd | n2 joined disk=ssd | n3 joined | web x2 require:disk=ssd port=80",
        expect![[r#"
            place web.0 on n2
            hold web: no node can take web.1: n1 does not meet disk = ssd, n2 has port 80 taken by web.0, n3 does not meet disk = ssd
        "#]],
    );
    check_plan(
        "n1 joined | n2 joined | n3 joined | web x1 require:node!=n1 require:node!=n3",
        expect![[r#"
            place web.0 on n2
        "#]],
    );
}

#[test]
fn replicas_spread_over_the_values_of_a_label_before_they_spread_over_nodes() {
    check_plan(
        "n1 joined zone=a | n2 joined zone=a | n3 joined zone=a | n4 joined zone=b | web x4 spread:zone",
        expect![[r#"
            place web.0 on n4
            place web.1 on n1
            place web.2 on n2
            place web.3 on n4
        "#]],
    );
    // A node without the label is a zone of its own.
    check_plan(
        "n1 joined zone=a | n2 joined zone=a | n3 joined | web x2 spread:zone on n1",
        expect![[r#"
        place web.1 on n3
    "#]],
    );
}

#[test]
fn a_preference_chooses_among_nodes_that_are_as_safe() {
    let nodes = "n1 joined disk=hdd | n2 joined disk=ssd | n3 joined disk=nvme";
    check_plan(
        &format!("{nodes} | web x1 prefer:disk=nvme prefer:disk=ssd"),
        expect![[r#"
        place web.0 on n3
    "#]],
    );
    check_plan(
        &format!("{nodes} | web x2 prefer:disk=nvme prefer:disk=ssd"),
        expect![[r#"
        place web.0 on n3
        place web.1 on n2
    "#]],
    );
    // Two on the preferred node would be lost together.
    check_plan(
        &format!("{nodes} | web x3 prefer:disk=nvme"),
        expect![[r#"
        place web.0 on n3
        place web.1 on n1
        place web.2 on n2
    "#]],
    );
}

#[test]
fn a_service_goes_near_to_one_and_apart_from_another() {
    let nodes = "n1 joined | n2 joined | n3 joined | db x1 on n2 | log x1 on n3";
    check_plan(
        &format!("{nodes} | web x1 near:db"),
        expect![[r#"
        place web.0 on n2
    "#]],
    );
    check_plan(
        &format!("{nodes} | web x1 apart:db apart:log"),
        expect![[r#"
        place web.0 on n1
    "#]],
    );
    check_plan(
        &format!("{nodes} | web x2 near:db apart:log"),
        expect![[r#"
        place web.0 on n2
        place web.1 on n1
    "#]],
    );
}

#[test]
fn nothing_new_goes_to_a_cordoned_node_and_what_is_there_stays() {
    check_plan(
        "n1 cordoned | n2 joined | web x3 on n1 n2",
        expect![[r#"
        place web.2 on n2
    "#]],
    );
    check_plan(
        "n1 cordoned | n2 draining 1s | web x1",
        expect![[r#"
        hold web: no node can take web.0: n1 is cordoned, n2 is draining
    "#]],
    );
}

#[test]
fn a_draining_node_keeps_a_replica_until_its_successor_is_healthy() {
    check_plan(
        "n1 draining 1s | n2 joined | n3 joined | web x2 on n1 n2",
        expect![[r#"
        place web.0 on n3
    "#]],
    );
    check_plan(
        "n1 draining 1s | n2 joined | n3 joined | web x2 on n1 n2 | web.0 on n3 starting",
        expect![[r#"
        hold web: web.0 stays on n1 until its successor on n3 is healthy
    "#]],
    );
    check_plan(
        "n1 draining 1s | n2 joined | n3 joined | web x2 on n1 n2 | web.0 on n3",
        expect![[r#"
        retire web.0 v1 on n1
    "#]],
    );
}

#[test]
fn a_drain_moves_one_replica_of_a_service_at_a_time() {
    check_plan(
        "n1 draining 1s | n2 joined | n3 joined | api x2 on n1 n1 | web x2 on n1 n1",
        expect![[r#"
        place api.0 on n2
        place web.0 on n3
    "#]],
    );
    // The next one goes as soon as the last one has been taken over.
    check_plan(
        "n1 draining 1s | n2 joined | n3 joined | web x2 on n1 n1 | web.0 on n3",
        expect![[r#"
        retire web.0 v1 on n1
        place web.1 on n2
    "#]],
    );
}

#[test]
fn a_drain_does_not_stop_what_has_no_other_place_before_its_deadline() {
    check_plan(
        "n1 draining 9s | web x1 on n1",
        expect![[r#"
        hold web: no node can take web.0: n1 is draining
    "#]],
    );
    check_plan(
        "n1 draining 9s deadline 10s | web x1 on n1",
        expect![[r#"
        hold web: no node can take web.0: n1 is draining
    "#]],
    );
    check_plan(
        "n1 draining 10s deadline 10s | web x1 on n1",
        expect![[r#"
        retire web.0 v1 on n1
        hold web: no node can take web.0: n1 is draining
    "#]],
    );
    check_plan(
        "n1 draining 10s deadline 10s | n2 joined | web x2 port=80 on n1 n2",
        expect![[r#"
        retire web.0 v1 on n1
        hold web: no node can take web.0: n1 is draining, n2 has port 80 taken by web.1
    "#]],
    );
}

#[test]
fn a_drain_moves_a_fixed_port_to_a_free_node_without_a_gap() {
    check_plan(
        "n1 draining 1s | n2 joined | n3 joined | web x2 port=80 on n1 n2",
        expect![[r#"
        place web.0 on n3
    "#]],
    );
    check_plan(
        "n1 draining 1s | n2 joined | web x2 port=80 on n1 n2",
        expect![[r#"
        hold web: no node can take web.0: n1 is draining, n2 has port 80 taken by web.1
    "#]],
    );
}

#[test]
fn what_serves_nobody_leaves_a_draining_node_at_once() {
    check_plan(
        "n1 draining 1s | n2 joined | web x3 | web.0 on n1 failed (no such file) | web.1 on n1 unhealthy | web.2 on n1",
        expect![[r#"
            place web.0 on n2
            retire web.0 v1 on n1
            place web.1 on n2
            retire web.1 v1 on n1
            place web.2 on n2
        "#]],
    );
}

#[test]
fn a_failed_replica_elsewhere_does_not_keep_a_drain_waiting() {
    check_plan(
        "n1 draining 1s | n2 joined | web x2 | web.0 on n1 | web.1 on n2 failed (no such file)",
        expect![[r#"
        place web.0 on n2
        hold web: web.1 failed on n2 and is not moved by itself: no such file
    "#]],
    );
}

#[test]
fn a_failed_update_is_not_brought_further_by_a_drain() {
    check_plan(
        "n1 draining 1s | n2 joined | n3 joined | web x2 v2 | web.0 on n1 v1 | web.1 on n2 backing-off (exit status 1)",
        expect![[r#"
            hold web: web.1 of version 2 does not become healthy: exit status 1
        "#]],
    );
}

#[test]
fn a_silent_node_is_not_drained() {
    check_plan(
        "n1 unreachable 1s | n2 joined | web x1 require:zone=a on n1",
        expect![[r#"
        hold web: n1 has been silent for 1s; its replicas stay until it is marked down
    "#]],
    );
}

#[test]
fn a_replica_whose_node_lost_its_label_is_brought_elsewhere() {
    check_plan(
        "n1 joined | n2 joined zone=a | web x1 require:zone=a on n1",
        expect![[r#"
        place web.0 on n2
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web x1 require:zone=a on n1",
        expect![[r#"
        hold web: no node can take web.0: n1 does not meet zone = a, n2 does not meet zone = a
    "#]],
    );
}

#[test]
fn scaling_down_takes_what_has_to_move_anyway() {
    check_plan(
        "n1 draining 1s | n2 joined | n3 joined | web x2 on n1 n2 n3",
        expect![[r#"
        retire web.0 v1 on n1
    "#]],
    );
}

#[test]
fn an_update_stays_on_its_node_unless_another_one_is_safer() {
    check_plan(
        "n1 joined | n2 joined | n3 joined | api x2 on n1 n1 | web x1 v2 | web.0 on n1 v1",
        expect![[r#"
        place web.0 on n1
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web x2 v2 | web.0 on n1 v1 | web.1 on n1 v1",
        expect![[r#"
        place web.0 on n2
    "#]],
    );
}

#[test]
fn an_update_with_a_fixed_port_gives_no_place_up_without_knowing_another() {
    check_plan(
        "n1 cordoned | n2 joined | web x2 v2 port=80 | web.0 on n1 v1 | web.1 on n2",
        expect![[r#"
        hold web: no node can take web.0: n1 is cordoned, n2 has port 80 taken by web.1
    "#]],
    );
}

#[test]
fn a_service_on_every_node_runs_once_on_each_that_fits() {
    check_plan(
        "n1 joined disk=ssd | n2 joined disk=ssd | n3 joined | n4 gateway disk=ssd | n5 cordoned disk=ssd | agent every require:disk=ssd",
        expect![[r#"
            place agent.0 on n1
            place agent.1 on n2
        "#]],
    );
    check_plan(
        "n1 joined | n2 joined | n3 joined | agent every on n1 n2 n3",
        expect![[r#"
        nothing to do
    "#]],
    );
}

#[test]
fn a_node_that_is_down_keeps_its_ordinal_of_a_service_on_every_node() {
    check_plan(
        "n1 joined | n2 down 60s | n3 joined | agent every on n1 n2 n3",
        expect![[r#"
        nothing to do
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined | n3 joined | n4 joined | agent every on n1 n2 n3",
        expect![[r#"
        place agent.3 on n4
    "#]],
    );
}

#[test]
fn a_service_on_every_node_leaves_nodes_that_do_not_fit_any_more() {
    check_plan(
        "n1 draining 1s | n2 joined | agent every on n1 n2",
        expect![[r#"
        retire agent.0 v1 on n1
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined disk=ssd | agent every require:disk=ssd on n1 n2",
        expect![[r#"
        retire agent.0 v1 on n1
    "#]],
    );
}

#[test]
fn a_service_that_is_to_run_on_every_node_keeps_one_replica_of_each() {
    check_plan(
        "n1 joined | n2 joined | agent every v2 | agent.0 on n1 v2 | agent.1 on n1 v2",
        expect![[r#"
        retire agent.1 v2 on n1
        place agent.1 on n2
    "#]],
    );
}

#[test]
fn a_node_that_cannot_take_its_replica_keeps_no_other_waiting() {
    check_plan(
        "n1 joined | n2 joined | web x1 port=80 on n1 | zgent every port=80",
        expect![[r#"
        place zgent.0 on n2
        hold zgent: n1 runs none: it has port 80 taken by web.0
    "#]],
    );
    check_plan(
        "n1 joined | n2 unreachable 1s | agent every",
        expect![[r#"
        place agent.0 on n1
        hold agent: n2 runs none: it is unreachable
    "#]],
    );
}

#[test]
fn an_update_on_every_node_goes_node_by_node_and_keeps_the_ordinals() {
    check_plan(
        "n1 joined | n2 joined | agent every v2 | agent.0 on n2 v1 | agent.1 on n1 v1",
        expect![[r#"
        place agent.0 on n2
    "#]],
    );
    let nodes = "n1 joined | n2 joined | agent every v2 port=80";
    check_plan(
        &format!("{nodes} | agent.0 on n2 v1 port=80 | agent.1 on n1 v1 port=80"),
        expect![[r#"
        retire agent.0 v1 on n2
    "#]],
    );
    check_plan(
        &format!("{nodes} | agent.0 on n2 v1 port=80 drain 1s | agent.1 on n1 v1 port=80"),
        expect![[r#"
        hold agent: the update waits for the old agent.0 on n2 to end
    "#]],
    );
    check_plan(
        &format!("{nodes} | agent.1 on n1 v1 port=80 stop 1s stopped | agent.2 on n2 v1 port=80"),
        expect![[r#"
            forget agent.1 v1 on n1
            place agent.1 on n1
            hold agent: the update waits for agent.1 of version 2 to become healthy
        "#]],
    );
}

#[test]
fn what_runs_once_is_handed_over_by_a_drain_once_another_place_is_known() {
    check_plan(
        "n1 draining 1s | n2 joined | db once on n1",
        expect![[r#"
        retire db.0 v1 on n1
    "#]],
    );
    check_plan(
        "n1 draining 1s | n2 joined | db once | db.0 on n1 stop 5s stopped",
        expect![[r#"
        forget db.0 v1 on n1
        place db.0 on n2
    "#]],
    );
    check_plan(
        "n1 draining 1s | n2 cordoned | db once on n1",
        expect![[r#"
        hold db: no node can take db.0: n1 is draining, n2 is cordoned
    "#]],
    );
}

#[test]
fn a_node_that_is_being_stopped_gives_away_what_runs_once_and_keeps_the_rest() {
    check_plan(
        "n1 stopping | n2 joined | db once on n1 | web x2 on n1 n2",
        expect![[r"
            retire db.0 v1 on n1
        "]],
    );
    check_plan(
        "n1 stopping | n2 joined | db once | db.0 on n1 stop 1s stopped",
        expect![[r"
            forget db.0 v1 on n1
            place db.0 on n2
        "]],
    );
    check_plan(
        "n1 stopping | n2 cordoned | db once on n1",
        expect![[r"
            hold db: no node can take db.0: n1 is being stopped, n2 is cordoned
        "]],
    );
}

/// K13.
#[test]
fn k13_a_node_that_lacks_what_a_service_needs_gets_none_and_what_runs_there_stays() {
    check_plan(
        "n1 joined | n2 joined | n3 joined | web x2 needs | n1 has web | n2 lacks web (file /x)",
        expect![[r#"
            place web.0 on n1
            place web.1 on n1
        "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web x1 needs port=80 | n2 lacks web (file /x)",
        expect![[r#"
            hold web: no node can take web.0: n1 has not said yet whether it has what is needed, n2 lacks file /x
        "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web x1 needs on n1 | n1 lacks web (file /x) | n2 has web",
        expect![[r#"
            nothing to do
        "#]],
    );
    check_plan(
        "n1 down 1h | n2 joined | n3 joined | web x1 needs on n1 | n2 lacks web (file /x) | n3 has web",
        expect![[r#"
            forget web.0 v1 on n1
            place web.0 on n3
        "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web every needs | n1 has web | n2 lacks web (file /x)",
        expect![[r#"
            place web.0 on n1
            hold web: n2 runs none: it lacks file /x
        "#]],
    );
}

#[test]
fn a_node_without_the_driver_gets_none() {
    check_plan(
        "n1 joined | n2 joined | n1 drives (process) | n2 drives (process systemd) | web x2 driver:systemd port=80",
        expect![[r#"
            place web.0 on n2
            hold web: no node can take web.1: n1 has no systemd, n2 has port 80 taken by web.0
        "#]],
    );
    check_plan(
        "n1 joined | n1 drives (process) | web x1 driver:container",
        expect![[r#"
            hold web: no node can take web.0: n1 has no podman and no docker
        "#]],
    );
    // An engine of either kind will do, and what an older node does not say is no reason against it.
    for says in ["n1 drives (docker)", "n1 drives (podman)", "replace_after=0s"] {
        check_plan(
            &format!("n1 joined | {says} | web x1 driver:container"),
            expect![[r#"
                place web.0 on n1
            "#]],
        );
    }
}
