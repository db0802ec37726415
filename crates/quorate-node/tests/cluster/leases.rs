//! What runs once: who holds it, and who is next. That no two hold one is asserted by the laboratory, at each
//! word of a holder.

use crate::lab::{Lab, ms};
use crate::voters::{join, member};
use quorate_model::assignment::Phase;
use quorate_model::command::{Command, Refusal};
use quorate_model::entry::{Outcome, Proposal};
use quorate_model::id::{LogIndex, RequestId};
use quorate_model::member::{MemberCommand, Vote};
use quorate_model::observed::ReplicaState;
use quorate_model::spec::{Format, parse};
use quorate_node::{Event, Ticket};
use std::time::Duration;

/// The failover time of `db`.
const FAILOVER: Duration = ms(10_000);
/// Its time of life and the guard: nobody else holds it earlier than that after the last renewal.
const OUTLIVED: Duration = ms(6_250);

/// Declares a service that runs once.
fn declare(lab: &mut Lab, number: u128, more: &str) {
    let text = format!("[[service]]\nname = 'db'\nmode = 'singleton'\ncommand = ['/bin/db']\n{more}");
    let document = parse(&text, Format::Toml).unwrap();
    let leader = lab.leader().unwrap();
    lab.propose(leader, Proposal::command(RequestId::from_u128(number), &Command::ApplySpec { document }));
}

/// A cluster in which somebody holds the lease of `db`: who that is.
fn holding(nodes: usize, seed: u64) -> (Lab, usize) {
    let mut lab = Lab::running(nodes, seed);
    declare(&mut lab, 1, "failover = '10s'\n");
    lab.until("a holder", ms(1_000), |lab| lab.holder("db").is_some());
    let holder = lab.holder("db").unwrap().0;
    lab.run_for(ms(1_500));
    (lab, holder)
}

/// Leadership is where the service runs.
fn lead(lab: &mut Lab, n: usize) {
    let (deadline, to) = (lab.in_time(ms(3_000)), lab.id(n));
    if lab.leader() != Some(n) {
        lab.event(n, Event::Transfer { ticket: Ticket(77), to, deadline });
        lab.until("the holder to lead", ms(3_000), |lab| lab.leader() == Some(n));
        lab.run_for(ms(500));
    }
}

fn last(lab: &Lab) -> LogIndex {
    let leader = lab.leader().unwrap();
    lab.node(leader).committed()
}

#[test]
fn a_singleton_is_held_at_once_and_healthy_leases_write_nothing() {
    for seed in 0..5 {
        let (mut lab, holder) = holding(3, seed);
        lab.run_for(ms(2_000));
        let (before, asked, renewed) = (last(&lab), lab.said_of_leases("ask"), lab.said_of_leases("renew"));
        for _ in 0..300 {
            lab.run_for(ms(100));
            assert_eq!(lab.holder("db"), Some((holder, 1)), "seed {seed}: it is held all the time");
        }
        assert_eq!(last(&lab), before);
        assert_eq!(lab.said_of_leases("ask"), asked);
        assert_eq!(asked, 0, "nobody asked about what was just placed");
        // Every second, to the two others.
        let rounds = (lab.said_of_leases("renew") - renewed) / 2;
        assert!((29..=31).contains(&rounds), "{rounds} rounds in 30 s");
    }
}

#[test]
fn without_leases_nothing_is_said_of_them() {
    let mut lab = Lab::running(3, 3);
    lab.run_for(ms(20_000));
    assert!(["renew", "renewed", "ask", "ages"].into_iter().all(|kind| lab.said_of_leases(kind) == 0));
}

#[test]
fn a_single_node_holds_what_it_runs() {
    let mut lab = Lab::start(1, 5);
    lab.until("a leader", ms(2_000), |lab| lab.leader() == Some(0) && lab.node(0).state().nodes.len() == 1);
    declare(&mut lab, 1, "");
    lab.until("it to hold", ms(500), |lab| lab.holder("db") == Some((0, 1)));
    lab.kill(0);
    lab.restart(0);
    lab.until("it to hold again", ms(3_000), |lab| lab.holder("db") == Some((0, 1)));
}

#[test]
fn n2_the_leader_dies_together_with_the_holder_and_another_holds_within_the_failover_time() {
    let mut worst = Duration::ZERO;
    for seed in 0..24 {
        let nodes = if seed % 2 == 0 { 3 } else { 5 };
        let (mut lab, holder) = holding(nodes, seed);
        lead(&mut lab, holder);
        lab.run_for(ms(seed * 97 % 1_000));
        // With a process that is gone, and with a server that is: whose end nobody sees.
        match seed % 3 {
            0 => lab.kill(holder),
            1 => lab.hang(holder),
            _ => lab.cut(holder),
        }
        let died = lab.now();
        lab.until("another holder", FAILOVER, |lab| lab.holder("db").is_some_and(|(n, _)| n != holder));
        assert_eq!(lab.holder("db").map(|(_, epoch)| epoch), Some(2));
        worst = worst.max(lab.now().since(died));
    }
    assert!(worst < OUTLIVED + ms(500), "{worst:?}: the raise follows its time at once");
}

#[test]
fn n2_answers_that_take_longer_than_the_pause_between_two_questions_are_taken_all_the_same() {
    for seed in 0..4 {
        let (mut lab, holder) = holding(5, 50 + seed);
        lead(&mut lab, (holder + 1) % 5);
        lab.latency = ms(80);
        lab.run_for(ms(3_000));
        lab.hang(holder);
        lab.until("another holder", FAILOVER, |lab| lab.holder("db").is_some_and(|(n, _)| n != holder));
    }
}

#[test]
fn n2_a_stall_that_is_shorter_than_the_time_of_life_changes_nothing() {
    for seed in 0..10 {
        let (mut lab, holder) = holding(3, 100 + seed);
        if seed % 2 == 0 {
            lead(&mut lab, holder);
        }
        lab.stall(holder, ms(4_800));
        lab.run_for(ms(15_000));
        assert_eq!(lab.holder("db"), Some((holder, 1)), "seed {seed}");
        let leader = lab.leader().unwrap();
        assert!(!lab.node(leader).state().leases[&"db".parse().unwrap()].fenced);
    }
}

#[test]
fn a_node_that_starts_anew_goes_on_with_its_lease() {
    for seed in 0..10 {
        let (mut lab, holder) = holding(3, 200 + seed);
        lab.kill(holder);
        lab.run_for(ms(seed * 300));
        lab.restart(holder);
        lab.run_for(ms(1_500));
        for _ in 0..200 {
            lab.run_for(ms(50));
            assert_eq!(lab.holder("db"), Some((holder, 1)), "seed {seed}");
        }
    }
}

#[test]
fn n1_a_fence_of_a_deposed_leader_is_overwritten_and_the_holder_goes_on() {
    for seed in 0..10 {
        let (mut lab, holder) = holding(3, 300 + seed);
        let leader = (holder + 1) % 3;
        lead(&mut lab, leader);
        lab.withheld = Some(b"\"fence\"");
        lab.cut(holder);
        lab.until("a fence in one log", ms(8_000), |lab| lab.has_entry(leader, b"\"fence\""));
        lab.cut(leader);
        lab.withheld = None;
        lab.heal(holder);
        // Those two were cut off from each other as well.
        lab.cut_pair(holder, leader);
        lab.until("it to be held again", ms(4_000), |lab| lab.holder("db") == Some((holder, 1)));
        lab.until("another leader", ms(4_000), |lab| lab.leader_but(leader).is_some());
        lab.heal(leader);
        lab.run_for(ms(10_000));
        assert_eq!(lab.holder("db"), Some((holder, 1)), "seed {seed}");
        assert!((0..3).all(|n| !lab.has_entry(n, b"\"fence\"")), "seed {seed}");
    }
}

#[test]
fn n2_a_new_leader_finishes_a_fence_without_another_time_of_life() {
    for seed in 0..10 {
        let (mut lab, holder) = holding(5, 400 + seed);
        let leader = (holder + 1) % 5;
        lead(&mut lab, leader);
        lab.withheld = Some(b"\"raise\"");
        lab.hang(holder);
        lab.until("a raise that reaches nobody", ms(8_000), |lab| lab.has_entry(leader, b"\"raise\""));
        lab.hang(leader);
        lab.withheld = None;
        let died = lab.now();
        lab.until("another holder", ms(3_000), |lab| lab.holder("db").is_some());
        assert_eq!(lab.holder("db").map(|(_, epoch)| epoch), Some(2));
        assert!(lab.now().since(died) < ms(2_500), "an election and a round");
    }
}

#[test]
fn n1_voters_change_under_a_lease_that_stays_valid_and_the_new_ones_can_end_it() {
    for seed in 0..6 {
        let mut lab = Lab::with_spares(3, 2, 500 + seed);
        lab.until("a leader", ms(2_000), |lab| {
            lab.leader().is_some_and(|leader| lab.node(leader).state().nodes.len() == 3)
        });
        join(&mut lab, 3);
        lab.until("a standby", ms(10_000), |lab| {
            lab.leader().is_some_and(|leader| lab.node(leader).configuration().contains(lab.id(3)))
        });
        lab.run_for(ms(1_000));
        declare(&mut lab, 1, "failover = '10s'\n");
        lab.until("a holder", ms(1_000), |lab| lab.holder("db").is_some());
        let (holder, _) = lab.holder("db").unwrap();
        let leader = lab.leader().unwrap();
        // One that votes goes, be it the holder or another one, and the standby votes in its place.
        let goes =
            lab.voters().into_iter().find(|n| *n != leader && (*n != holder) == (seed % 2 == 0)).unwrap_or(leader);
        let (goes, at) = if goes == leader { (lab.voters()[0], leader) } else { (goes, leader) };
        let never = MemberCommand::SetVote { node: lab.id(goes), vote: Vote::Never };
        lab.propose(at, member(900, never));
        for _ in 0..100 {
            lab.run_for(ms(100));
            assert_eq!(lab.holder("db"), Some((holder, 1)), "seed {seed}: n{goes} goes, n{leader} leads");
        }
        assert!(!lab.voters().contains(&goes) && lab.voters().contains(&3), "seed {seed}: {:?}", lab.voters());
        lab.hang(holder);
        lab.until("another holder", FAILOVER, |lab| lab.holder("db").is_some_and(|(n, _)| n != holder));
    }
}

#[test]
fn n1_a_service_that_was_removed_while_its_holder_was_away_is_ended_too() {
    let (mut lab, holder) = holding(3, 600);
    lab.cut(holder);
    lab.until("another leader", ms(4_000), |lab| lab.leader_but(holder).is_some());
    let leader = lab.leader_but(holder).unwrap();
    let remove = Command::RemoveService { service: "db".parse().unwrap() };
    lab.propose(leader, Proposal::command(RequestId::from_u128(2), &remove));
    lab.until("its lease to be free", FAILOVER, |lab| {
        let state = lab.node(leader).state();
        state.replicas.is_empty() && state.leases.values().all(|lease| lease.holder.is_none())
    });
    assert_eq!(lab.holder("db"), None);
    lab.heal(holder);
    lab.until("it to hear of that", ms(8_000), |lab| lab.node(holder).state().replicas.is_empty());
    assert_eq!(lab.holder("db"), None);
}

#[test]
fn n1_the_survivor_of_a_recovery_waits_a_whole_time_of_life() {
    for seed in 0..6 {
        let (mut lab, holder) = holding(3, 700 + seed);
        // The holder may live on, where nobody sees it.
        let survivor = (holder + 1) % 3;
        (0..3).for_each(|n| lab.kill(n));
        lab.recover(survivor, 2).unwrap();
        lab.restart(survivor);
        let started = lab.now();
        lab.until("it to hold", FAILOVER + ms(2_000), |lab| lab.holder("db") == Some((survivor, 2)));
        assert!(lab.now().since(started) >= OUTLIVED, "seed {seed}");
    }
}

#[test]
fn n1_a_follower_that_gets_a_snapshot_keeps_to_the_fence_in_it() {
    for seed in 0..6 {
        let (mut lab, holder) = holding(5, 800 + seed);
        let leader = (holder + 1) % 5;
        lead(&mut lab, leader);
        let away = (holder + 2) % 5;
        lab.cut(away);
        lab.withheld = Some(b"\"raise\"");
        lab.hang(holder);
        lab.until("a committed fence", ms(9_000), |lab| {
            lab.node(leader).state().leases.values().any(|lease| lease.fenced)
        });
        lab.purge_all();
        lab.heal(away);
        lab.until("a snapshot", ms(10_000), |lab| lab.snapshots_installed() > 0);
        lab.restart(holder);
        lab.run_for(ms(5_000));
        assert_eq!(lab.holder("db"), None, "seed {seed}: nobody acknowledges it any more");
        lab.withheld = None;
        lab.until("another holder", ms(15_000), |lab| lab.holder("db").is_some_and(|(_, epoch)| epoch == 2));
    }
}

#[test]
fn n2_where_speed_is_asked_for_another_node_holds_after_a_second() {
    for seed in 0..10 {
        let mut lab = Lab::running(3, 900 + seed);
        declare(&mut lab, 1, "failover = '1s'\nunsafe_fast = true\n");
        lab.until("a holder", ms(1_000), |lab| lab.holder("db").is_some());
        let holder = lab.holder("db").unwrap().0;
        lead(&mut lab, (holder + 1) % 3);
        lab.hang(holder);
        let died = lab.now();
        // Its links are not known to be lost yet, and it is not chosen again.
        lab.until("another holder", ms(1_000), |lab| lab.holder("db").is_some_and(|(n, _)| n != holder));
        assert!(lab.now().since(died) < ms(950), "{:?}", lab.now().since(died));
    }
}

/// Reports what the nodes run until the service is held elsewhere.
fn hand_over(lab: &mut Lab, holder: usize, others: &[usize]) -> Duration {
    let id = lab.id(holder);
    lab.report(holder, ReplicaState::Healthy);
    lab.event(holder, Event::HandOver);
    let began = lab.now();
    lab.until("it is told to end", ms(1_500), |lab| {
        lab.node(holder).state().replicas.values().any(|replica| replica.node == id && replica.phase == Phase::Stop)
    });
    assert!(!lab.has_handed_over(holder), "the program has not ended yet");
    lab.report(holder, ReplicaState::Stopped);
    lab.until("another holder", ms(500), |lab| others.iter().any(|n| lab.holder("db") == Some((*n, 2))));
    lab.until("nothing is waited for", ms(500), |lab| lab.has_handed_over(holder));
    lab.now().since(began)
}

#[test]
fn a_node_that_is_stopped_for_long_hands_over_what_runs_once_without_waiting_for_the_lease() {
    for seed in 0..12 {
        let (mut lab, holder) = holding(3, 300 + seed);
        if seed % 2 == 0 {
            lead(&mut lab, holder);
        }
        let others: Vec<usize> = (0..3).filter(|n| *n != holder).collect();
        let took = hand_over(&mut lab, holder, &others);
        assert!(took < ms(1_000), "{took:?}");
        lab.event(holder, Event::Leave);
        lab.until("it has left", ms(1_000), |lab| lab.has_left(holder));
        // Its next start takes again what there is.
        lab.kill(holder);
        lab.restart(holder);
        let id = lab.id(holder);
        lab.until("it is back", ms(3_000), |lab| {
            lab.leader().is_some_and(|leader| !lab.node(leader).state().nodes[&id].handing_over)
        });
    }
}

#[test]
fn a_hand_over_ends_where_nobody_takes_anything() {
    let cases: [(&str, usize, bool, Duration); 3] = [
        ("nothing runs once here", 3, false, ms(200)),
        ("nobody else is there", 1, true, ms(200)),
        ("no leader", 3, true, ms(3_000)),
    ];
    for (what, nodes, runs_once, within) in cases {
        let mut lab = Lab::start(nodes, 320);
        lab.until("a leader", ms(3_000), |lab| lab.leader().is_some_and(|n| lab.node(n).state().nodes.len() == nodes));
        if runs_once {
            declare(&mut lab, 1, "failover = '10s'\n");
            lab.until("a holder", ms(1_000), |lab| lab.holder("db").is_some());
        }
        let n = lab.holder("db").map_or(0, |(n, _)| n);
        if what == "no leader" {
            lab.cut(n);
        }
        lab.event(n, Event::HandOver);
        lab.until(what, within, |lab| lab.has_handed_over(n));
    }
}

#[test]
fn n1_a_failover_is_measured_also_when_the_leader_died_with_the_holder() {
    for seed in 0..6 {
        let (mut lab, holder) = holding(3, 340 + seed);
        if seed % 2 == 0 {
            lead(&mut lab, holder);
        }
        lab.cut(holder);
        let lost = lab.now();
        lab.until("another holder", FAILOVER, |lab| lab.holder("db").is_some_and(|(n, _)| n != holder));
        let (next, epoch) = lab.holder("db").unwrap();
        lab.report(next, ReplicaState::Starting);
        let ran = lab.now().since(lost);
        let last = |lab: &Lab| lab.node(next).state().leases[&"db".parse().unwrap()].last_failover;
        lab.until("it is written down", ms(2_000), |lab| last(lab).is_some());
        let measured = last(&lab).unwrap();
        assert_eq!((measured.epoch, measured.from, measured.to), (epoch, lab.id(holder), lab.id(next)));
        let differs = measured.took.0.abs_diff(ran);
        assert!(differs < ms(1_500), "seed {seed}: {:?} and {ran:?}", measured.took);
    }
}

#[test]
fn what_goes_on_without_a_quorum_is_started_elsewhere_when_somebody_says_that_its_node_is_dead_and_not_before() {
    for seed in 0..6 {
        let mut lab = Lab::running(3, 360 + seed);
        declare(&mut lab, 1, "without_quorum = 'keep'\n");
        lab.until("a holder", ms(1_000), |lab| lab.holder("db").is_some());
        let holder = lab.holder("db").unwrap().0;
        let id = lab.id(holder);
        lab.run_for(ms(1_000));
        lab.cut(holder);
        // Three times the longest that a lease of this service lives, and another leader.
        lab.run_for(ms(60_000));
        let leader = lab.leader_but(holder).unwrap();
        let held = |lab: &Lab, n: usize| lab.node(n).state().leases[&"db".parse().unwrap()].clone();
        assert!(held(&lab, leader).holder.is_some_and(|holder| holder.node == id), "seed {seed}");
        assert!(!held(&lab, leader).fenced);
        let generation = lab.node(leader).state().nodes[&id].generation;
        lab.propose(leader, member(50, MemberCommand::ConfirmDead { node: id, generation }));
        lab.until("another holder", ms(3_000), |lab| {
            lab.holder("db").is_some_and(|(n, epoch)| n != holder && epoch == 2)
        });
        // It was not as dead as that: it learns that it has lost it.
        lab.heal(holder);
        lab.until("it knows", ms(10_000), |lab| held(lab, holder).epoch == 2);
    }
}

#[test]
fn a_node_that_is_heard_is_not_called_dead() {
    let mut lab = Lab::running(3, 370);
    let leader = lab.leader().unwrap();
    let other = (leader + 1) % 3;
    let node = lab.id(other);
    let generation = lab.node(leader).state().nodes[&node].generation;
    lab.propose(leader, member(1, MemberCommand::ConfirmDead { node, generation }));
    lab.until("an answer", ms(1_000), |lab| lab.has_applied(leader, 1));
    assert!(matches!(lab.outcome(leader, 1), Some(Outcome::Command(Err(Refusal::NodeLives { .. })))));
}
