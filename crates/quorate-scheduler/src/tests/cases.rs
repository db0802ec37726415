use super::text::check_plan;
use expect_test::expect;

#[test]
fn replicas_spread_over_all_workers() {
    check_plan(
        "n1 joined | n2 joined | n3 joined | web x3",
        expect![[r#"
        place web.0 on n2
        place web.1 on n1
        place web.2 on n3
    "#]],
    );
}

#[test]
fn more_replicas_than_nodes_are_shared_evenly() {
    check_plan(
        "n1 joined | n2 joined | web x5",
        expect![[r#"
        place web.0 on n2
        place web.1 on n1
        place web.2 on n2
        place web.3 on n1
        place web.4 on n1
    "#]],
    );
}

#[test]
fn among_nodes_with_equally_many_copies_the_one_with_less_to_do_is_chosen() {
    check_plan(
        "n1 joined | n2 joined | n3 joined | api x2 on n1 n3 | web x1",
        expect![[r#"
        place web.0 on n2
    "#]],
    );
}

#[test]
fn a_service_that_is_as_wanted_is_left_alone() {
    check_plan(
        "n1 joined | n2 joined | n3 joined | web x2 on n1 n2",
        expect![[r#"
        nothing to do
    "#]],
    );
}

#[test]
fn nothing_is_placed_on_a_node_that_is_down_unreachable_or_no_worker() {
    check_plan(
        "n1 down 5s | n2 unreachable 2s | n3 gateway | web x3",
        expect![[r#"
        hold web: no node can take web.0 and 2 more: n1 is down, n2 is unreachable, n3 is no worker
    "#]],
    );
}

#[test]
fn a_cluster_without_nodes_says_so() {
    check_plan(
        "web x1",
        expect![[r#"
        hold web: no node can take web.0: the cluster has no node
    "#]],
    );
}

#[test]
fn replicas_of_a_down_node_are_replaced_at_once_by_default() {
    check_plan(
        "n1 down 0s | n2 joined | n3 joined | web x2 on n1 n2",
        expect![[r#"
        forget web.0 v1 on n1
        place web.0 on n3
    "#]],
    );
}

#[test]
fn a_down_node_keeps_its_replicas_until_its_time_is_over() {
    check_plan(
        "n1 down 29s | n2 joined | n3 joined | web x2 on n1 n2 | replace_after=30s",
        expect![[r#"
        hold web: waits 1s more for n1 to come back
    "#]],
    );
    check_plan(
        "n1 down 30s | n2 joined | n3 joined | web x2 on n1 n2 | replace_after=30s",
        expect![[r#"
        forget web.0 v1 on n1
        place web.0 on n3
    "#]],
    );
}

#[test]
fn a_node_whose_server_is_restarted_is_waited_for_also_where_others_are_replaced_at_once() {
    check_plan(
        "n1 down 1s returns 9s | n2 joined | n3 joined | web x2 on n1 n2 | replace_after=0s",
        expect![[r#"
        hold web: waits 9s more for n1 to come back
    "#]],
    );
}

#[test]
fn replicas_of_a_silent_node_stay_until_the_node_is_marked_down() {
    check_plan(
        "n1 unreachable 1500ms | n2 joined | n3 joined | web x3 on n1 n2 n1",
        expect![[r#"
        hold web: n1 has been silent for 2s; its replicas stay until it is marked down
    "#]],
    );
}

#[test]
fn replicas_of_a_node_that_was_expelled_are_replaced() {
    check_plan(
        "n2 joined | web x2 on n1 n2",
        expect![[r#"
        forget web.0 v1 on 00000000-0000-0001-0000-000000000000
        place web.0 on n2
    "#]],
    );
}

#[test]
fn a_node_that_returned_gets_nothing_back() {
    check_plan(
        "n1 joined | n2 joined | n3 joined | web x2 on n2 n3",
        expect![[r#"
        nothing to do
    "#]],
    );
}

#[test]
fn scaling_down_retires_the_highest_ordinals() {
    check_plan(
        "n1 joined | n2 joined | n3 joined | web x1 on n1 n2 n3",
        expect![[r#"
        retire web.2 v1 on n3
        retire web.1 v1 on n2
    "#]],
    );
}

#[test]
fn scaling_down_retires_what_is_not_healthy_first() {
    check_plan(
        "n1 joined | n2 joined | n3 joined | web x2 | web.0 on n1 unhealthy | web.1 on n2 | web.2 on n3",
        expect![[r#"
            retire web.0 v1 on n1
        "#]],
    );
}

#[test]
fn scaling_down_forgets_what_is_on_a_down_node_without_waiting() {
    check_plan(
        "n1 down 1s | n2 joined | web x1 on n1 n2 | replace_after=30s",
        expect![[r#"
        forget web.0 v1 on n1
    "#]],
    );
}

#[test]
fn scaling_up_fills_the_free_ordinals() {
    check_plan(
        "n1 joined | n2 joined | n3 joined | web x3 | web.1 on n1",
        expect![[r#"
        place web.0 on n2
        place web.2 on n3
    "#]],
    );
}

#[test]
fn a_retired_replica_is_released_when_gateways_have_finished_with_it() {
    check_plan(
        "n1 joined | n2 joined | web x1 on n2 | web.1 on n1 drain 2s",
        expect![[r#"
        nothing to do
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web x1 on n2 | web.1 on n1 drain 2s drained",
        expect![[r#"
        release web.1 v1 on n1
    "#]],
    );
}

#[test]
fn a_retired_replica_is_released_at_the_end_of_its_grace() {
    check_plan(
        "n1 joined | n2 joined | web x1 on n2 | web.1 on n1 drain 10s",
        expect![[r#"
        release web.1 v1 on n1
    "#]],
    );
}

#[test]
fn a_released_replica_is_forgotten_when_it_has_ended() {
    check_plan(
        "n1 joined | n2 joined | web x1 on n2 | web.1 on n1 stop 2s",
        expect![[r#"
        nothing to do
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web x1 on n2 | web.1 on n1 stop 2s stopped",
        expect![[r#"
        forget web.1 v1 on n1
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web x1 on n2 | web.1 on n1 stop 2s unseen",
        expect![[r#"
        forget web.1 v1 on n1
    "#]],
    );
}

#[test]
fn a_released_replica_of_a_node_that_has_not_reported_may_still_run() {
    check_plan(
        "n1 unreported | n2 joined | web x1 on n2 | web.1 on n1 stop 60s unseen",
        expect![[r#"
        nothing to do
    "#]],
    );
}

#[test]
fn a_released_replica_of_a_down_node_is_forgotten() {
    check_plan(
        "n1 down 1s | n2 joined | web x1 on n2 | web.1 on n1 stop 2s | replace_after=30s",
        expect![[r#"
        forget web.1 v1 on n1
    "#]],
    );
}

#[test]
fn a_removed_service_is_retired() {
    check_plan(
        "n1 joined | n2 joined | old.0 on n1 | old.1 on n2 drain 1s drained",
        expect![[r#"
        retire old.0 v1 on n1
        release old.1 v1 on n2
    "#]],
    );
}

#[test]
fn two_replicas_with_one_fixed_port_never_share_a_node() {
    check_plan(
        "n1 joined | n2 joined | web x3 port=8080",
        expect![[r#"
        place web.0 on n2
        place web.1 on n1
        hold web: no node can take web.2: fixed port 8080 is taken on every node
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined | n3 down 1s | db x2 port=8080 on n1 n2 | web x1 port=8080",
        expect![[r#"
        hold web: no node can take web.0: n1 has port 8080 taken by db.0, n2 has port 8080 taken by db.1, n3 is down
    "#]],
    );
}

#[test]
fn a_fixed_port_stays_taken_until_its_replica_has_ended() {
    check_plan(
        "n1 joined | web x1 port=8080 | old.0 on n1 port=8080 stop 1s",
        expect![[r#"
        hold web: no node can take web.0: fixed port 8080 is taken on every node
    "#]],
    );
    check_plan(
        "n1 joined | web x1 port=8080 | old.0 on n1 port=8080 stop 1s stopped",
        expect![[r#"
        forget old.0 v1 on n1
        place web.0 on n1
    "#]],
    );
}

#[test]
fn a_failed_replica_is_not_moved() {
    check_plan(
        "n1 joined | n2 joined | web x1 | web.0 on n1 failed (no such file: /bin/web)",
        expect![[r#"
        hold web: web.0 failed on n1 and is not moved by itself: no such file: /bin/web
    "#]],
    );
}

#[test]
fn a_plan_has_a_largest_number_of_placements() {
    check_plan(
        "n1 joined | n2 joined | api x1 | web x4 | moves_max=2",
        expect![[r#"
        place api.0 on n2
        place web.0 on n1
        hold web: 3 more placements wait for the next plan
    "#]],
    );
}

#[test]
fn an_update_starts_the_new_replica_before_it_retires_the_old_one() {
    check_plan(
        "n1 joined | n2 joined | n3 joined | web x2 v2 | web.0 on n1 v1 | web.1 on n2 v1",
        expect![[r#"
            place web.0 on n1
        "#]],
    );
}

#[test]
fn an_update_waits_for_the_new_replica_to_become_healthy() {
    check_plan(
        "n1 joined | n2 joined | web x2 v2 | web.0 on n1 v1 | web.0 on n1 starting | web.1 on n2 v1",
        expect![[r#"
        hold web: the update waits for web.0 of version 2 to become healthy
    "#]],
    );
}

#[test]
fn an_update_retires_the_old_replica_when_the_new_one_is_healthy() {
    check_plan(
        "n1 joined | n2 joined | web x2 v2 | web.0 on n1 v1 | web.0 on n1 | web.1 on n2 v1",
        expect![[r#"
        retire web.0 v1 on n1
        hold web: the update waits for the old web.0 on n1 to end
    "#]],
    );
}

#[test]
fn an_update_takes_the_next_ordinal_when_the_old_replica_has_ended() {
    check_plan(
        "n1 joined | n2 joined | web x2 v2 | web.0 on n1 | web.0 on n1 v1 stop 1s | web.1 on n2 v1",
        expect![[r#"
        hold web: the update waits for the old web.0 on n1 to end
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined | web x2 v2 | web.0 on n1 | web.0 on n1 v1 stop 1s stopped | web.1 on n2 v1",
        expect![[r#"
            forget web.0 v1 on n1
            place web.1 on n2
        "#]],
    );
}

#[test]
fn a_failed_update_is_held_and_the_old_replica_stays() {
    check_plan(
        "n1 joined | n2 joined | web x2 v3 | web.0 on n1 v2 | web.1 on n2 v2 | web.1 on n2 backing-off (exit status 1)",
        expect![[r#"
            hold web: web.1 of version 3 does not become healthy: exit status 1
        "#]],
    );
}

#[test]
fn a_newer_version_replaces_the_one_that_failed() {
    check_plan(
        "n1 joined | n2 joined | web x2 v4 | web.0 on n1 v2 | web.1 on n2 v2 | web.1 on n2 v3 backing-off",
        expect![[r#"
            retire web.1 v3 on n2
            hold web: the update waits for the old web.1 on n2 to end
        "#]],
    );
}

#[test]
fn an_update_begins_with_what_is_not_healthy() {
    check_plan(
        "n1 joined | n2 joined | web x2 v2 | web.0 on n1 v1 | web.1 on n2 v1 unhealthy",
        expect![[r#"
        place web.1 on n2
    "#]],
    );
}

#[test]
fn an_update_with_a_fixed_port_stops_the_old_replica_first() {
    let nodes = "n1 joined | n2 joined | n3 joined | web x2 v2 port=8080";
    check_plan(
        &format!("{nodes} | web.0 on n1 v1 port=8080 | web.1 on n2 v1 port=8080"),
        expect![[r#"
        retire web.0 v1 on n1
    "#]],
    );
    check_plan(
        &format!("{nodes} | web.0 on n1 v1 port=8080 drain 1s | web.1 on n2 v1 port=8080"),
        expect![[r#"
        hold web: the update waits for the old web.0 on n1 to end
    "#]],
    );
    check_plan(
        &format!("{nodes} | web.0 on n1 v1 port=8080 stop 1s stopped | web.1 on n2 v1 port=8080"),
        expect![[r#"
            forget web.0 v1 on n1
            place web.0 on n1
            hold web: the update waits for web.0 of version 2 to become healthy
        "#]],
    );
}

#[test]
fn an_update_with_a_fixed_port_places_nothing_early_in_an_ordinal_that_was_lost_before() {
    check_plan(
        "n1 joined | n2 joined | n3 joined | web x2 v2 port=8080 | web.1 on n3 v1 drain 1s | web.2 on n1 v1",
        expect![[r#"
            hold web: the update waits for the old web.1 on n3 to end
        "#]],
    );
}

#[test]
fn an_update_leaves_what_is_on_a_silent_node_to_the_decision_about_the_node() {
    check_plan(
        "n1 unreachable 1s | n2 joined | web x2 v2 | web.0 on n1 v1 | web.1 on n2",
        expect![[r#"
        hold web: n1 has been silent for 1s; its replicas stay until it is marked down
    "#]],
    );
}

#[test]
fn a_service_made_anew_under_an_old_name_is_another_program() {
    check_plan(
        "n1 joined | web x1 v1 | web.0 on n1 v1 port=8080",
        expect![[r#"
        place web.0 on n1
    "#]],
    );
}

#[test]
fn what_runs_once_stays_with_its_node_until_its_lease_is_over() {
    check_plan(
        "n1 down 60s | n2 joined | db once on n1",
        expect![[r#"
        hold db: n1 may still run it; another starts when that has ended, or its lease has
    "#]],
    );
    // Nor is it given up because its node says nothing of it, or that it failed.
    check_plan(
        "n1 joined | n2 joined | db once | db.0 on n1 stop 60s unseen",
        expect![[r#"
        hold db: n1 may still run it; another starts when that has ended, or its lease has
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined | db once | db.0 on n1 stop 60s failed",
        expect![[r#"
        hold db: n1 may still run it; another starts when that has ended, or its lease has
    "#]],
    );
    check_plan(
        "n1 down 60s | n2 joined | db once | db.0 on n1 stop 60s stopped",
        expect![[r#"
        hold db: n1 may still run it; another starts when that has ended, or its lease has
    "#]],
    );
}

#[test]
fn what_runs_once_starts_anew_only_when_it_has_ended() {
    check_plan(
        "n1 joined | n2 joined | db once | db.0 on n1 stop 5s stopped",
        expect![[r#"
            forget db.0 v1 on n1
            place db.0 on n1
        "#]],
    );
}

#[test]
fn what_runs_once_is_updated_by_ending_the_old_one_first() {
    check_plan(
        "n1 joined | n2 joined | db once v2 | db.0 on n1 v1",
        expect![[r#"
        retire db.0 v1 on n1
    "#]],
    );
    check_plan(
        "n1 joined | n2 joined | db once v2 | db.0 on n1 v1 drain 1s",
        expect![[r#"
        hold db: n1 may still run it; another starts when that has ended, or its lease has
    "#]],
    );
}

#[test]
fn of_two_for_one_ordinal_the_one_on_a_node_that_is_away_is_forgotten() {
    check_plan(
        "replace_after=30s | n1 joined | n2 down 5s | web on n1 | web.0 on n2",
        expect![[r"
            forget web.0 v1 on n2
        "]],
    );
}

#[test]
fn what_goes_on_without_a_quorum_is_started_nowhere_else_and_it_is_said_who_can_decide() {
    check_plan(
        "n1 down 10h | n2 joined | db kept on n1",
        expect![[r"
            hold db: n1 may still run it, and it goes on without a quorum; if n1 has no power or is destroyed, say so: quorate node confirm-dead n1
        "]],
    );
    check_plan(
        "n1 unreachable 2s | n2 joined | db kept on n1",
        expect![[r"
            hold db: n1 has been silent for 2s; its replicas stay until it is marked down
        "]],
    );
    // Its own node's word is enough.
    check_plan(
        "n1 joined | n2 joined | db kept v2 | db.0 on n1 stop 1s v1 stopped",
        expect![[r"
            forget db.0 v1 on n1
            place db.0 on n1
        "]],
    );
}
