//! Whole clusters that gossip, small enough for every build. `examples/convergence.rs` runs the same
//! bed with a thousand nodes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bed;

use bed::{Bed, Conditions, FalseAlarms, ms};
use quorate_membership::swim::Rumor;
use std::time::Duration;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The 99th percentile of some spans, or the longest of fewer than a hundred.
fn p99(mut spans: Vec<Duration>) -> Duration {
    spans.sort_unstable();
    spans[(spans.len() * 99).div_ceil(100) - 1]
}

#[test]
fn nodes_that_know_addresses_find_each_other() {
    let mut bed = Bed::new(10, 1, Conditions::default());
    assert!(bed.converge(seconds(3)).is_some());
}

/// Issue 4: crash → unreachable everywhere < 2 s at the 99th percentile, with ten nodes.
#[test]
fn a_crash_is_shown_everywhere_within_two_seconds() {
    let spans = (0..12).map(|seed| {
        let mut bed = Bed::converged(10, seed, Conditions::default());
        // Anywhere within the period.
        bed.run(ms(seed * 29 % 250));
        let crashed = bed.now;
        bed.crash(3);
        bed.run(seconds(4));
        let shown = bed.shown_everywhere(3, Rumor::Unreachable).unwrap_or_else(|| panic!("seed {seed}: not shown"));
        assert_eq!(bed.false_alarms, FalseAlarms::default(), "seed {seed}");
        shown.since(crashed)
    });
    let p99 = p99(spans.collect());
    assert!(p99 < seconds(2), "{p99:?}");
}

/// D4, issue 4: a clean stop is known everywhere in less than a second, and nobody leads here.
#[test]
fn a_clean_stop_is_known_everywhere_within_a_second_even_when_datagrams_are_lost() {
    for loss in [0, 250] {
        for seed in 0..4 {
            let mut bed = Bed::converged(25, seed, Conditions { loss, ..Conditions::default() });
            let stopped = bed.now;
            bed.leave(7);
            bed.run(seconds(1));
            let shown = bed.shown_everywhere(7, Rumor::Left);
            let shown = shown.unwrap_or_else(|| panic!("seed {seed}, loss {loss}: not shown"));
            assert!(shown.since(stopped) < seconds(1));
            assert_eq!(bed.gossip_of(7).next_wake(), None, "it goes on speaking");
        }
    }
}

/// D5: it can rejoin at any time.
#[test]
fn a_node_that_left_or_crashed_comes_back_in_its_next_generation() {
    let mut bed = Bed::converged(10, 5, Conditions::default());
    bed.leave(7);
    bed.run(seconds(1));
    bed.start(7);
    assert!(bed.converge(seconds(3)).is_some(), "it left and came back");
    bed.crash(2);
    bed.run(seconds(90));
    assert!(bed.shown_everywhere(2, Rumor::Dead).is_some());
    bed.start(2);
    assert!(bed.converge(seconds(3)).is_some(), "it was dead and came back");
    // At once: nobody noticed that it was away.
    bed.crash(4);
    bed.start(4);
    assert!(bed.converge(seconds(3)).is_some(), "it was away for a moment");
    bed.run(seconds(2));
    let generations: Vec<u64> = bed.gossip_of(0).rumors().map(|(_, generation, _)| generation).collect();
    assert_eq!(generations, [1, 2, 1, 2, 1, 1, 2, 1, 1]);
}

/// D5: a cut between two nodes, in one direction or both, evicts nobody; here nobody even sees it.
#[test]
fn a_node_that_others_reach_is_not_unreachable_for_the_one_who_does_not() {
    for cuts in [vec![(0, 1)], vec![(0, 1), (1, 0)], vec![(0, 1), (2, 1), (1, 0), (1, 2)]] {
        let mut bed = Bed::converged(7, 9, Conditions::default());
        bed.cuts.extend(cuts.iter().copied());
        bed.run(seconds(60));
        assert_eq!(bed.false_alarms, FalseAlarms::default(), "{cuts:?}");
    }
}

/// D5.
#[test]
fn loss_partitions_and_slow_cpus_make_nobody_dead_and_all_is_well_soon_after() {
    let conditions = Conditions { loss: 250, slow: 100, ..Conditions::default() };
    let mut bed = Bed::converged(30, 3, conditions);
    bed.run(seconds(20));
    bed.sides = (0..30).map(|node| u8::from(node % 3 == 0)).collect();
    bed.run(seconds(30));
    assert!(bed.shown(0, 1) == Some(Rumor::Unreachable) && bed.shown(1, 0) == Some(Rumor::Unreachable));
    bed.sides = vec![0; 30];
    let healed = bed.now;
    bed.settled_from = bed.now.plus(seconds(10));
    assert!(bed.settle(seconds(10)).is_some(), "not within ten seconds of {healed:?}");
    // Longer than a suspicion lives.
    bed.run(seconds(70));
    assert_eq!(bed.false_alarms.dead, 0);
}

/// D5: longer than it takes to be called dead.
#[test]
fn both_sides_of_a_long_partition_find_back_together_in_their_old_generation() {
    let mut bed = Bed::converged(20, 4, Conditions::default());
    bed.sides = (0..20).map(|node| u8::from(node < 8)).collect();
    bed.run(seconds(180));
    assert_eq!(bed.shown(0, 19), Some(Rumor::Dead));
    bed.sides = vec![0; 20];
    bed.settled_from = bed.now.plus(seconds(10));
    assert!(bed.converge(seconds(10)).is_some());
    bed.run(seconds(60));
    assert_eq!(bed.false_alarms, FalseAlarms::default());
    assert!((0..20).all(|node| bed.gossip_of(node).generation() == 1));
}

/// Issue 4: the same run with local-health scaling switched off shows false alarms.
#[test]
fn slow_nodes_raise_many_more_false_alarms_when_they_do_not_look_at_themselves() {
    let alarms = |local_health| {
        let mut bed = Bed::converged(20, 6, Conditions { slow: 200, local_health, ..Conditions::default() });
        bed.run(seconds(60));
        bed.false_alarms
    };
    let (on, off) = (alarms(true), alarms(false));
    assert_eq!(on.of_healthy, 0);
    assert!(off.of_healthy + off.of_slow > 5 * on.of_slow, "on: {on:?}, off: {off:?}");
}

#[test]
fn a_machine_that_was_paused_blames_nobody_when_it_goes_on() {
    let mut bed = Bed::converged(10, 8, Conditions::default());
    bed.pause(3, seconds(5));
    bed.run(seconds(5));
    assert!(bed.shown_everywhere(3, Rumor::Unreachable).is_some());
    bed.run(seconds(20));
    assert!(bed.all_alive());
    assert_eq!(bed.false_alarms.of_healthy, 9, "each of the others noticed the pause, and that is all");
    assert!(bed.gossip_of(3).slowdown() == 1, "it has recovered");
}

/// Issue 4: with TCP fallback.
#[test]
fn a_firewall_that_swallows_datagrams_makes_nobody_unreachable_while_streams_work() {
    for (streams, alarms) in [(true, false), (false, true)] {
        let mut bed = Bed::converged(6, 2, Conditions { streams, ..Conditions::default() });
        bed.cuts.extend((0..6).flat_map(|other| [(2, other), (other, 2)]));
        bed.run(seconds(30));
        assert_eq!(bed.false_alarms.of_healthy > 0, alarms, "streams: {streams}");
    }
}

#[test]
fn of_an_expelled_node_nothing_is_told_whatever_it_says() {
    let mut bed = Bed::converged(6, 2, Conditions::default());
    bed.expel(4);
    bed.run(seconds(100));
    for observer in [0, 1, 2, 3, 5] {
        let shown: Vec<_> = (0..6).map(|subject| bed.shown(observer, subject)).collect();
        let expected = (0..6).map(|subject| (subject != observer && subject != 4).then_some(Rumor::Alive));
        assert_eq!(shown, expected.collect::<Vec<_>>());
    }
}

/// Issue 4: the traffic of a node is the same in a cluster of any size; idle at most 2 kB/s.
#[test]
fn an_idle_node_sends_the_same_few_bytes_in_a_cluster_of_any_size() {
    let rate = |nodes| {
        let mut bed = Bed::converged(nodes, 1, Conditions::default());
        bed.reset_traffic();
        bed.run(seconds(60));
        bed.bytes.iter().sum::<u64>() / 60 / nodes as u64
    };
    let (small, large) = (rate(5), rate(60));
    assert!(small < 2_000 && large < 2_000, "{small} and {large} bytes a second");
    assert!(large < small * 5 / 4, "{small} bytes a second with 5 nodes, {large} with 60");
}

#[test]
fn a_seed_decides_everything() {
    let trace = |seed| {
        let conditions = Conditions { loss: 250, slow: 100, ..Conditions::default() };
        let mut bed = Bed::converged(12, seed, conditions);
        bed.run(seconds(20));
        bed.trace
    };
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
}
