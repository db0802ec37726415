//! Whole clusters of [`Node`]s in one thread: simulated time, a network that delays, disks that
//! take a while. What the real simulator will do at length, here for the core's own behaviour.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod copies;
mod drilled;
mod lab;
mod leases;
mod leaving;
mod programs;
mod races;
mod recovering;
mod rotating;
mod upgrades;
mod voters;

use lab::{Lab, ms};
use quorate_model::command::Command;
use quorate_model::entry::{Outcome, Proposal};
use quorate_model::event::Happening;
use quorate_model::id::{LogIndex, RequestId};
use quorate_model::observed::ReplicaStatus;
use quorate_model::spec::{self, Format};
use quorate_model::sql::{SqlBatch, Statement};
use quorate_model::state::Health;
use quorate_node::{Event, Ticket};
use std::time::Duration;

fn insert(number: u128) -> Proposal {
    let batch =
        SqlBatch { statements: vec![Statement::new(format!("INSERT INTO t VALUES ({number})"))], transaction: false };
    Proposal::sql(RequestId::from_u128(number), &batch)
}

#[test]
fn three_nodes_elect_one_leader_and_agree_who_they_are() {
    let mut lab = Lab::start(3, 1);
    lab.until("a leader and three registered nodes", ms(2_000), |lab| {
        lab.leader().is_some() && (0..3).all(|n| lab.node(n).state().nodes.len() == 3)
    });
    let leader = lab.leader().unwrap();
    assert!((0..3).all(|n| lab.node(n).leader() == Some(lab.id(leader))));
}

#[test]
fn a_single_node_leads_itself() {
    let mut lab = Lab::start(1, 5);
    lab.until("a leader", ms(2_000), |lab| lab.leader() == Some(0));
    lab.propose(0, insert(1));
    lab.until("the write", ms(200), |lab| lab.has_applied(0, 1));
}

#[test]
fn a_write_to_any_node_is_applied_on_all() {
    let mut lab = Lab::running(3, 2);
    for n in 0..3 {
        lab.propose(n, insert(n as u128 + 1));
    }
    lab.until("three writes everywhere", ms(500), |lab| (0..3).all(|n| (1..=3).all(|write| lab.has_applied(n, write))));
}

#[test]
fn writes_that_wait_while_the_leader_dies_are_done_once_by_the_next_one() {
    for seed in 0..20 {
        let mut lab = Lab::running(3, seed);
        let old = lab.leader().unwrap();
        let survivor = (old + 1) % 3;
        for write in 1..=5 {
            lab.propose(survivor, insert(write));
        }
        lab.kill(old);
        let died = lab.now();
        for write in 6..=10 {
            lab.propose(survivor, insert(write));
        }
        lab.until("ten writes on the survivors", ms(3_000), |lab| {
            (0..3).filter(|n| *n != old).all(|n| (1..=10).all(|write| lab.has_applied(n, write)))
        });
        let took = lab.now().since(died);
        assert!(took < ms(150), "seed {seed}: took {took:?}, although the hint makes it quick");
        assert_eq!(lab.applied_twice(), [], "seed {seed}");
    }
}

#[test]
fn without_a_refused_connection_followers_wait_for_silence() {
    let mut lab = Lab::running(3, 3);
    let old = lab.leader().unwrap();
    lab.cut(old);
    let cut = lab.now();
    lab.until("another leader", ms(3_000), |lab| lab.leader_but(old).is_some());
    assert!(lab.now().since(cut) >= ms(300));
    lab.heal(old);
    lab.until("the old leader to follow", ms(3_000), |lab| {
        lab.node(old).leader() == lab.leader_but(old).map(|n| lab.id(n))
    });
}

#[test]
fn a_minority_acknowledges_nothing_and_catches_up_afterwards() {
    let mut lab = Lab::running(3, 4);
    let old = lab.leader().unwrap();
    let other = (old + 1) % 3;
    lab.cut(old);
    lab.propose(old, insert(1));
    lab.run_for(ms(3_000));
    assert!(!lab.has_applied(old, 1));
    lab.propose(other, insert(2));
    lab.until("the majority's write", ms(2_000), |lab| lab.has_applied(other, 2));
    lab.heal(old);
    lab.until("both writes everywhere", ms(5_000), |lab| {
        (0..3).all(|n| lab.has_applied(n, 1) && lab.has_applied(n, 2))
    });
    assert_eq!(lab.applied_twice(), []);
}

#[test]
fn a_killed_node_replays_its_log_and_catches_up() {
    let mut lab = Lab::running(3, 6);
    for write in 1..=50 {
        lab.propose(0, insert(write));
    }
    lab.until("fifty writes", ms(1_000), |lab| lab.has_applied(1, 50));
    lab.kill(1);
    for write in 51..=60 {
        lab.propose(2, insert(write));
    }
    lab.until("ten more", ms(2_000), |lab| lab.has_applied(2, 60));
    lab.restart(1);
    lab.until("all on the restarted node", ms(2_000), |lab| (1..=60).all(|write| lab.has_applied(1, write)));
}

#[test]
fn all_nodes_may_be_killed_at_once() {
    let mut lab = Lab::running(3, 7);
    for write in 1..=20 {
        lab.propose(0, insert(write));
    }
    lab.until("twenty writes", ms(1_000), |lab| (0..3).all(|n| lab.has_applied(n, 20)));
    (0..3).for_each(|n| lab.kill(n));
    (0..3).for_each(|n| lab.restart(n));
    lab.until("a leader", ms(3_000), |lab| lab.leader().is_some());
    lab.propose(1, insert(21));
    lab.until("another write", ms(1_000), |lab| (0..3).all(|n| lab.has_applied(n, 21)));
}

#[test]
fn a_node_that_was_away_too_long_gets_a_snapshot() {
    let mut lab = Lab::running(3, 8);
    let away = (lab.leader().unwrap() + 1) % 3;
    lab.kill(away);
    let writer = lab.leader().unwrap();
    for write in 1..=100 {
        lab.propose(writer, insert(write));
    }
    lab.until("a hundred writes", ms(2_000), |lab| lab.has_applied(writer, 100));
    lab.purge_all();
    lab.restart(away);
    lab.until("a snapshot and all of it", ms(5_000), |lab| {
        lab.snapshots_installed() == 1 && (1..=100).all(|write| lab.has_applied(away, write))
    });
    lab.propose(away, insert(101));
    lab.until("and on", ms(1_000), |lab| (0..3).all(|n| lab.has_applied(n, 101)));
}

#[test]
fn a_follower_behind_the_window_is_served_from_the_disk() {
    let mut lab = Lab::running(3, 9);
    let away = (lab.leader().unwrap() + 1) % 3;
    lab.kill(away);
    let writer = lab.leader().unwrap();
    for write in 1..=24 {
        let blob = "x".repeat(1 << 20);
        let batch = SqlBatch { statements: vec![Statement::new(blob)], transaction: false };
        lab.propose(writer, Proposal::sql(RequestId::from_u128(write), &batch));
    }
    lab.until("24 MiB of writes", ms(5_000), |lab| lab.has_applied(writer, 24));
    lab.restart(away);
    lab.until("all of them", ms(5_000), |lab| (1..=24).all(|write| lab.has_applied(away, write)));
    assert_eq!(lab.snapshots_installed(), 0);
    assert!(lab.disk_reads() > 0);
}

#[test]
fn a_linearizable_read_waits_for_what_was_acknowledged_before_it() {
    let mut lab = Lab::running(3, 10);
    let leader = lab.leader().unwrap();
    let follower = (leader + 1) % 3;
    lab.propose(leader, insert(1));
    lab.until("the write on the leader", ms(500), |lab| lab.has_applied(leader, 1));
    let acknowledged = lab.node(leader).applied();
    lab.read(follower, Ticket(7));
    lab.until("the read", ms(500), |lab| lab.read_ready(Ticket(7)).is_some());
    assert!(lab.read_ready(Ticket(7)).unwrap() >= acknowledged);
}

#[test]
fn a_read_without_a_majority_fails_at_its_deadline() {
    let mut lab = Lab::running(3, 11);
    let leader = lab.leader().unwrap();
    lab.kill((leader + 1) % 3);
    lab.kill((leader + 2) % 3);
    lab.read(leader, Ticket(8));
    lab.until("its failure", ms(3_000), |lab| lab.read_failed(Ticket(8)));
    assert_eq!(lab.read_ready(Ticket(8)), None);
}

#[test]
fn a_node_that_the_majority_does_not_hear_is_down_and_returns_with_a_higher_generation() {
    let mut lab = Lab::running(3, 12);
    let leader = lab.leader().unwrap();
    let (away, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = lab.id(away);
    let generation = lab.node(leader).state().nodes[&id].generation;
    lab.kill(away);
    lab.until("the verdict", ms(1_000), |lab| lab.node(other).state().nodes[&id].health == Health::Down);
    lab.restart(away);
    lab.until("its return", ms(3_000), |lab| {
        let record = &lab.node(other).state().nodes[&id];
        record.health == Health::Joined && record.generation > generation
    });
}

#[test]
fn a_node_that_only_one_peer_cannot_hear_is_not_down() {
    let mut lab = Lab::running(3, 13);
    let leader = lab.leader().unwrap();
    let (a, b) = ((leader + 1) % 3, (leader + 2) % 3);
    lab.cut_pair(a, b);
    lab.run_for(ms(6_000));
    for n in 0..3 {
        assert!(lab.node(n).state().nodes.values().all(|node| node.health == Health::Joined));
    }
}

#[test]
fn a_node_that_hangs_with_its_links_open_is_down_as_well() {
    let mut lab = Lab::running(3, 24);
    let leader = lab.leader().unwrap();
    let (hung, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = lab.id(hung);
    lab.hang(hung);
    lab.until("the verdict", ms(6_000), |lab| lab.node(other).state().nodes[&id].health == Health::Down);
}

#[test]
fn what_happens_on_the_leaders_own_node_is_recorded_as_soon_as_elsewhere() {
    let mut lab = Lab::running(3, 31);
    let leader = lab.leader().unwrap();
    let document =
        serde_json::from_str(r#"{"service": [{"name": "web", "replicas": 3, "command": ["web"]}]}"#).unwrap();
    lab.propose(leader, Proposal::command(RequestId::from_u128(1), &Command::ApplySpec { document }));
    lab.until("a replica on each node", ms(1_000), |lab| lab.node(leader).state().replicas.len() == 3);
    let statuses: Vec<(usize, ReplicaStatus)> = lab
        .node(leader)
        .state()
        .replicas
        .values()
        .map(|replica| {
            let status = serde_json::json!({ "replica": replica.id, "service": "web", "state": "healthy" });
            let node = (0..3).find(|n| lab.id(*n) == replica.node).unwrap();
            (node, serde_json::from_value(status).unwrap())
        })
        .collect();
    // The leader's is the last one that becomes healthy.
    for (node, status) in statuses.iter().filter(|(node, _)| *node != leader) {
        lab.event(*node, Event::Replicas(vec![status.clone()]));
    }
    // Not at the moment at which every node speaks anyway.
    lab.run_for(ms(300));
    let (_, own) = statuses.iter().find(|(node, _)| *node == leader).unwrap();
    lab.event(leader, Event::Replicas(vec![own.clone()]));
    lab.until("the record", ms(100), |lab| {
        let healthy = |what: &Happening| matches!(what, Happening::ServiceHealthy { .. });
        lab.node(leader).state().events.iter().any(|event| healthy(&event.what))
    });
}

#[test]
fn leadership_goes_where_an_operator_wants_it() {
    let mut lab = Lab::running(3, 14);
    let old = lab.leader().unwrap();
    let (heir, third) = ((old + 1) % 3, (old + 2) % 3);
    let deadline = lab.in_time(ms(2_000));
    let to = lab.id(heir);
    lab.event(third, Event::Transfer { ticket: Ticket(1), to, deadline });
    lab.until("the heir to lead", ms(1_000), |lab| lab.leader() == Some(heir) && lab.transferred(Ticket(1)).is_some());
    assert_eq!(lab.transferred(Ticket(1)), Some(Ok(())));
}

#[test]
fn a_leader_that_leaves_hands_over_first() {
    let mut lab = Lab::running(3, 15);
    let old = lab.leader().unwrap();
    lab.event(old, Event::Leave);
    let asked = lab.now();
    lab.until("another leader", ms(1_000), |lab| lab.leader().is_some_and(|leader| leader != old));
    assert!(lab.now().since(asked) < ms(200));
}

#[test]
fn a_new_leader_is_in_the_record_once() {
    let mut lab = Lab::running(3, 16);
    lab.run_for(ms(3_000));
    let elected = |lab: &Lab| {
        let events = &lab.node(0).state().events;
        events.iter().filter(|event| matches!(event.what, Happening::LeaderElected { .. })).count()
    };
    assert_eq!(elected(&lab), 1);
    let old = lab.leader().unwrap();
    let to = lab.id((old + 1) % 3);
    let deadline = lab.in_time(ms(2_000));
    lab.event(old, Event::Transfer { ticket: Ticket(1), to, deadline });
    lab.run_for(ms(3_000));
    assert_eq!(elected(&lab), 2);
}

#[test]
fn a_refused_command_is_refused_the_same_everywhere() {
    let mut lab = Lab::running(3, 17);
    let command = Command::ScaleService { service: "web".parse().unwrap(), replicas: 3 };
    lab.propose(1, Proposal::command(RequestId::from_u128(1), &command));
    lab.until("its outcome", ms(500), |lab| (0..3).all(|n| lab.outcome(n, 1).is_some()));
    let outcomes: Vec<_> = (0..3).map(|n| lab.outcome(n, 1).unwrap()).collect();
    assert!(matches!(outcomes[0], Outcome::Command(Err(_))));
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]));
}

#[test]
fn different_contents_at_one_index_are_found_and_recorded() {
    let mut lab = Lab::running(3, 18);
    let leader = lab.leader().unwrap();
    let wrong = (leader + 1) % 3;
    lab.corrupt(wrong);
    lab.propose(leader, insert(1));
    let id = lab.id(wrong);
    lab.until("the record", ms(3_000), |lab| {
        let events = &lab.node(leader).state().events;
        events.iter().any(|event| matches!(&event.what, Happening::Diverged { node, .. } if *node == id))
    });
    assert!(lab.node(leader).digests_compared() > 0);
}

#[test]
fn a_node_refuses_more_than_it_can_keep() {
    let mut lab = Lab::running(3, 19);
    let leader = lab.leader().unwrap();
    lab.kill((leader + 1) % 3);
    lab.kill((leader + 2) % 3);
    for write in 1..=20_000 {
        lab.propose(leader, insert(write));
    }
    lab.run_for(ms(100));
    assert!(lab.refused_as_overloaded() > 0);
    assert!(lab.refused_as_overloaded() < 20_000);
}

#[test]
fn a_leader_whose_clock_is_a_day_ahead_does_not_take_the_cluster_with_it() {
    let mut lab = Lab::running(3, 25);
    let leader = lab.leader().unwrap();
    lab.skew(leader, 86_400);
    lab.run_for(ms(1_500));
    lab.propose(leader, insert(1));
    lab.until("the write", ms(500), |lab| lab.has_applied(leader, 1));
    let ahead = lab.stamped_ahead(leader);
    assert!(ahead.abs() < 1_000_000, "{ahead} µs");
}

/// Five nodes with a replica each, which wait so long before they replace one.
fn five_that_wait(seed: u64, replace_after: Duration) -> Lab {
    let mut lab = Lab::running(5, seed);
    lab.replace_after = replace_after;
    for n in 0..5 {
        lab.kill(n);
        lab.restart(n);
    }
    let spec = "[[service]]\nname = 'web'\ncommand = ['web']\nreplicas = 5";
    let document = spec::parse(spec, Format::Toml).unwrap();
    lab.until("a leader", ms(5_000), |lab| lab.leader().is_some());
    lab.propose(0, Proposal::command(RequestId::from_u128(1), &Command::ApplySpec { document }));
    lab.until("five replicas", ms(5_000), |lab| lab.node(0).state().replicas.len() == 5);
    lab
}

#[test]
fn e4_the_time_after_which_replicas_are_replaced_is_a_total_also_when_the_leader_is_lost() {
    let mut lab = five_that_wait(37, ms(10_000));
    let leader = lab.leader().unwrap();
    let (victim, other) = ((leader + 1) % 5, (leader + 2) % 5);
    let lost = [lab.id(victim), lab.id(leader)];
    let stays = |lab: &Lab| lab.node(other).state().replicas.values().filter(|it| lost.contains(&it.node)).count();
    lab.kill(victim);
    lab.kill(leader);
    lab.run_for(ms(9_500));
    assert_eq!(stays(&lab), 2, "they are waited for");
    lab.until("no replica on the lost nodes", ms(1_500), |lab| stays(lab) == 0);
}

#[test]
fn replicas_are_replaced_in_time_also_when_the_verdict_came_from_a_leader_with_another_clock() {
    let mut lab = five_that_wait(31, ms(3_000));
    let leader = lab.leader().unwrap();
    let (victim, other) = ((leader + 1) % 5, (leader + 2) % 5);
    let lost = lab.id(victim);
    lab.skew(leader, 3_600);
    lab.kill(victim);
    lab.until("the verdict", ms(5_000), |lab| lab.node(other).state().nodes[&lost].health == Health::Down);
    lab.kill(leader);
    lab.until("no replica on the lost node", ms(9_000), |lab| {
        lab.node(other).state().replicas.values().all(|replica| replica.node != lost)
    });
}

#[test]
fn equal_seeds_give_equal_traces() {
    let trace = |seed| {
        let mut lab = Lab::running(3, seed);
        let leader = lab.leader().unwrap();
        for write in 1..=20 {
            lab.propose(write as usize % 3, insert(write));
        }
        lab.kill(leader);
        lab.run_for(ms(2_000));
        lab.restart(leader);
        lab.run_for(ms(2_000));
        lab.trace()
    };
    assert_eq!(trace(21), trace(21));
    assert_ne!(trace(21), trace(22));
}

#[test]
fn the_log_index_of_a_write_is_the_same_on_every_node() {
    let mut lab = Lab::running(3, 23);
    for write in 1..=30 {
        lab.propose(write as usize % 3, insert(write));
    }
    lab.until("thirty writes", ms(1_000), |lab| (0..3).all(|n| (1..=30).all(|write| lab.has_applied(n, write))));
    let indexes = |n: usize| -> Vec<LogIndex> { (1..=30).map(|write| lab.index_of(n, write).unwrap()).collect() };
    assert_eq!(indexes(0), indexes(1));
    assert_eq!(indexes(1), indexes(2));
}
