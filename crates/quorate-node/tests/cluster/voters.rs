//! The voters change while the cluster serves.

use crate::insert;
use crate::lab::{Lab, ms};
use quorate_model::command::Command;
use quorate_model::entry::Proposal;
use quorate_model::id::{RequestId, TokenId};
use quorate_model::member::{JoinToken, MemberCommand, SecretHash, Vote};
use quorate_model::state::{Health, Role};
use quorate_model::time::WallTime;
use quorate_node::Event;

pub(crate) fn member(number: u128, command: MemberCommand) -> Proposal {
    Proposal::command(RequestId::from_u128(number), &Command::Member(command))
}

/// Admits the spare and starts it on an empty disk.
pub(crate) fn join(lab: &mut Lab, n: usize) {
    let secret = SecretHash([n as u8; 32]);
    let token = JoinToken {
        id: TokenId::from_u128(n as u128),
        secret,
        role: Role::Manager,
        name: None,
        created: WallTime(0),
        expires: WallTime(u64::MAX),
        used: None,
    };
    let (at, number) = (lab.leader().unwrap(), 10_000 + 2 * n as u128);
    lab.propose(at, member(number, MemberCommand::CreateToken { token, turn_on_ha: true }));
    let mut node = lab.identity(n);
    node.api = format!("n{}:7000", n + 1);
    lab.propose(at, member(number + 1, MemberCommand::Admit { secret, node, vote: Vote::Auto }));
    lab.until("the admission", ms(2_000), |lab| lab.has_applied(at, number + 1));
    lab.restart(n);
}

/// Writes `from..to`, each at another of the nodes.
fn write(lab: &mut Lab, nodes: &[usize], range: std::ops::Range<u128>) {
    for number in range {
        lab.propose(nodes[number as usize % nodes.len()], insert(number));
    }
}

#[test]
fn u4_one_manager_becomes_three_and_five_under_load_and_the_second_and_fourth_stand_by() {
    let mut lab = Lab::with_spares(1, 4, 1);
    lab.until("a leader", ms(2_000), |lab| lab.leader() == Some(0) && lab.node(0).state().nodes.len() == 1);
    let mut written = 0;
    for n in 1..5 {
        join(&mut lab, n);
        let nodes: Vec<usize> = (0..=n).collect();
        write(&mut lab, &nodes, written..written + 20);
        written += 20;
        let voters = if n.is_multiple_of(2) { n + 1 } else { n };
        lab.until("the voters", ms(10_000), |lab| {
            let leader = lab.node(lab.leader().unwrap());
            lab.voters().len() == voters && leader.configuration().contains(lab.id(n))
        });
        lab.run_for(ms(3_000));
        assert_eq!(lab.voters().len(), voters, "with {} managers", n + 1);
        lab.until("all writes on all", ms(5_000), |lab| {
            nodes.iter().all(|node| (0..written).all(|number| lab.has_applied(*node, number)))
        });
    }
    assert_eq!(lab.applied_twice(), []);
}

#[test]
fn a_standby_reads_and_writes_like_any_other() {
    let mut lab = Lab::with_spares(1, 1, 2);
    lab.until("a leader", ms(2_000), |lab| lab.leader() == Some(0) && lab.node(0).state().nodes.len() == 1);
    join(&mut lab, 1);
    lab.until("the standby to follow", ms(5_000), |lab| lab.node(1).leader() == Some(lab.id(0)));
    lab.propose(1, insert(1));
    lab.until("its write", ms(2_000), |lab| lab.has_applied(1, 1));
    let ticket = quorate_node::Ticket(1);
    lab.read(1, ticket);
    lab.until("its read", ms(2_000), |lab| lab.read_ready(ticket).is_some());
    assert_eq!(lab.voters(), [0]);
}

/// Three voters and a standby, the fourth.
fn with_standby(seed: u64) -> Lab {
    let mut lab = Lab::with_spares(3, 1, seed);
    lab.replace_voter_after = ms(5_000);
    (0..3).for_each(|n| lab.restart(n));
    lab.until("a running cluster", ms(5_000), |lab| {
        lab.leader().is_some() && (0..3).all(|n| lab.node(n).state().nodes.len() == 3)
    });
    join(&mut lab, 3);
    lab.until("a standby", ms(5_000), |lab| {
        lab.node(lab.leader().unwrap()).configuration().learners.contains(&lab.id(3))
    });
    lab.run_for(ms(2_000));
    assert_eq!(lab.voters(), [0, 1, 2]);
    lab
}

#[test]
fn u4_a_dead_voter_is_replaced_by_the_standby_and_stands_by_when_it_returns() {
    for seed in 0..10 {
        let mut lab = with_standby(seed);
        let dead = seed as usize % 3;
        lab.kill(dead);
        lab.run_for(ms(4_500));
        assert!(lab.node(lab.leader().unwrap()).configuration().voters.contains(&lab.id(dead)), "not before its time");
        let voters: Vec<usize> = (0..4).filter(|n| *n != dead).collect();
        lab.until("the standby to vote", ms(5_000), |lab| lab.voters() == voters);
        // Two of the three could be lost with the old voters; now one more may die.
        let next = *voters.iter().find(|n| Some(**n) != lab.leader() && **n != 3).unwrap();
        lab.kill(next);
        lab.propose(lab.leader().unwrap(), insert(1));
        lab.until("a write by two of three", ms(3_000), |lab| lab.has_applied(3, 1));
        lab.restart(dead);
        lab.until("the old voter to stand in", ms(15_000), |lab| lab.has_applied(dead, 1));
    }
}

#[test]
fn an_expelled_voter_is_replaced_and_what_it_says_changes_nothing_any_more() {
    for seed in 0..10 {
        let mut lab = with_standby(20 + seed);
        let gone = lab.leader().unwrap();
        let other = (gone + 1) % 3;
        lab.propose(other, member(1, MemberCommand::Expel { node: lab.id(gone) }));
        let voters: Vec<usize> = (0..4).filter(|n| *n != gone).collect();
        lab.until("the standby to vote in its place", ms(10_000), |lab| {
            lab.leader_but(gone).is_some_and(|leader| {
                let configuration = lab.node(leader).configuration();
                let forgotten = !configuration.contains(lab.id(gone));
                !configuration.is_joint() && lab.numbers(&configuration.voters) == voters && forgotten
            })
        });
        let leader = lab.leader_but(gone).unwrap();
        let term = lab.node(leader).term();
        lab.restart(gone);
        lab.propose(gone, insert(2));
        lab.run_for(ms(5_000));
        assert!(!lab.has_applied(leader, 2), "nobody proposes for an expelled node");
        assert_eq!((lab.leader_but(gone), lab.node(leader).term()), (Some(leader), term), "it disturbs nobody");
        assert!(!lab.node(leader).state().nodes.contains_key(&lab.id(gone)));
    }
}

#[test]
fn a_leader_that_is_not_to_vote_hands_over_first() {
    let mut lab = with_standby(3);
    let old = lab.leader().unwrap();
    lab.propose(old, member(1, MemberCommand::SetVote { node: lab.id(old), vote: Vote::Never }));
    let voters: Vec<usize> = (0..4).filter(|n| *n != old).collect();
    lab.until("the others to vote", ms(10_000), |lab| lab.voters() == voters);
    assert_ne!(lab.leader(), Some(old));
    lab.until("it to stand by", ms(2_000), |lab| lab.node(old).configuration().learners.contains(&lab.id(old)));
}

#[test]
fn the_only_voter_hands_over_to_its_standby() {
    let mut lab = Lab::with_spares(1, 1, 4);
    lab.until("a leader", ms(2_000), |lab| lab.leader() == Some(0) && lab.node(0).state().nodes.len() == 1);
    join(&mut lab, 1);
    lab.until("a standby", ms(5_000), |lab| lab.node(1).leader() == Some(lab.id(0)));
    // Before it has caught up, nobody could take the place of the only voter.
    lab.run_for(ms(2_000));
    lab.propose(0, member(1, MemberCommand::SetVote { node: lab.id(0), vote: Vote::Never }));
    lab.until("the other to vote alone", ms(10_000), |lab| lab.leader() == Some(1) && lab.voters() == [1]);
}

#[test]
fn a_leader_that_dies_between_two_sets_of_voters_leaves_the_change_to_the_next() {
    let mut died_joint = 0;
    for seed in 0..40 {
        let mut lab = Lab::with_spares(3, 2, 50 + seed);
        lab.until("a running cluster", ms(5_000), |lab| {
            lab.leader().is_some() && (0..3).all(|n| lab.node(n).state().nodes.len() == 3)
        });
        join(&mut lab, 3);
        join(&mut lab, 4);
        lab.until("two sets", ms(10_000), |lab| lab.leader().is_some_and(|n| lab.node(n).configuration().is_joint()));
        let old = lab.leader().unwrap();
        lab.kill(old);
        died_joint += 1;
        lab.until("another leader and one set", ms(10_000), |lab| {
            lab.leader_but(old).is_some_and(|n| {
                let configuration = lab.node(n).configuration();
                !configuration.is_joint() && [3, 5].contains(&configuration.voters.len())
            })
        });
        let leader = lab.leader_but(old).unwrap();
        lab.propose(leader, insert(1));
        lab.until("a write", ms(3_000), |lab| lab.has_applied(leader, 1));
        lab.restart(old);
        lab.until("five voters", ms(10_000), |lab| lab.voters().len() == 5);
    }
    assert_eq!(died_joint, 40);
}

#[test]
fn d4_a_node_that_ends_has_left_everywhere_at_once_stays_a_voter_and_returns() {
    for seed in 0..10 {
        let mut lab = Lab::running(3, 100 + seed);
        let ending = seed as usize % 3;
        lab.event(ending, Event::Leave);
        lab.until("word that it left", ms(1_000), |lab| lab.has_left(ending));
        assert_ne!(lab.leader(), Some(ending));
        let others: Vec<usize> = (0..3).filter(|n| *n != ending).collect();
        let (id, node) = (lab.id(ending), others[0]);
        lab.until("all to know", ms(500), |lab| {
            others.iter().all(|n| lab.node(*n).state().nodes[&lab.id(ending)].health == Health::Left)
        });
        let generation = lab.node(node).state().nodes[&id].generation;
        lab.kill(ending);
        lab.run_for(ms(40_000));
        assert_eq!(lab.voters(), [0, 1, 2], "it stays a voter");
        lab.restart(ending);
        lab.until("its return", ms(5_000), |lab| {
            let record = &lab.node(node).state().nodes[&id];
            record.health == Health::Joined && record.generation == generation + 1
        });
    }
}

#[test]
fn a_lone_node_that_ends_says_so_and_waits_for_nobody() {
    let mut lab = Lab::running(1, 7);
    lab.event(0, Event::Leave);
    lab.until("word that it left", ms(1_000), |lab| lab.has_left(0));
    assert_eq!(lab.node(0).state().nodes[&lab.id(0)].health, Health::Left);
}

#[test]
fn a_new_node_far_behind_gets_a_snapshot_with_its_configuration() {
    let mut lab = Lab::with_spares(3, 1, 8);
    lab.until("a running cluster", ms(5_000), |lab| {
        lab.leader().is_some() && (0..3).all(|n| lab.node(n).state().nodes.len() == 3)
    });
    write(&mut lab, &[0, 1, 2], 1..60);
    lab.until("the writes", ms(3_000), |lab| (0..3).all(|n| (1..60).all(|number| lab.has_applied(n, number))));
    lab.purge_all();
    join(&mut lab, 3);
    lab.until("a snapshot and all of it", ms(10_000), |lab| {
        lab.snapshots_installed() >= 1 && (1..60).all(|number| lab.has_applied(3, number))
    });
    lab.until("one configuration", ms(3_000), |lab| {
        (0..4).all(|n| lab.node(n).configuration() == lab.node(0).configuration())
    });
    // It starts again on what it has.
    lab.kill(3);
    lab.restart(3);
    lab.until("it to follow again", ms(5_000), |lab| lab.node(3).leader().is_some());
    assert!(lab.node(3).configuration().learners.contains(&lab.id(3)));
}

#[test]
fn a_node_that_was_away_while_all_others_were_replaced_comes_back_to_a_leader_it_never_heard_of() {
    let mut lab = Lab::with_spares(3, 3, 9);
    lab.replace_voter_after = ms(3_000);
    (0..3).for_each(|n| lab.restart(n));
    lab.until("a running cluster", ms(5_000), |lab| {
        lab.leader().is_some() && (0..3).all(|n| lab.node(n).state().nodes.len() == 3)
    });
    let away = (lab.leader().unwrap() + 1) % 3;
    lab.kill(away);
    (3..6).for_each(|n| join(&mut lab, n));
    lab.until("five others to vote", ms(20_000), |lab| {
        lab.voters() == (0..6).filter(|n| *n != away).collect::<Vec<_>>()
    });
    (0..3).filter(|n| *n != away).for_each(|n| lab.kill(n));
    lab.until("a leader that is new", ms(5_000), |lab| lab.leader().is_some_and(|n| n >= 3));
    lab.restart(away);
    lab.until("it to follow", ms(5_000), |lab| lab.node(away).leader() == lab.leader().map(|n| lab.id(n)));
}

#[test]
fn k4_a_wish_that_would_do_harm_is_refused_by_the_leader_whoever_passes_it_on() {
    use quorate_model::command::Refusal;
    use quorate_model::entry::Outcome;
    use quorate_model::member::managers::Harm;
    let mut lab = Lab::running(3, 4);
    let leader = lab.leader().unwrap();
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    let stop = |lab: &mut Lab, at: usize, number: u128, nodes: &[usize]| {
        let nodes = nodes.iter().map(|n| lab.id(*n)).collect();
        lab.propose(at, member(number, MemberCommand::StopManagers { nodes }));
        lab.until("the answer", ms(5_000), |lab| lab.has_applied(at, number));
        match lab.outcome(at, number) {
            Some(Outcome::Command(Err(Refusal::Harm { harm }))) => Some(harm),
            Some(Outcome::Command(Ok(()))) => None,
            other => panic!("{other:?}"),
        }
    };
    let active = lab.identity(leader).name;
    assert_eq!(stop(&mut lab, others[0], 1, &[leader]), Some(Harm::Active { node: active }));
    assert_eq!(lab.voters(), [0, 1, 2]);
    // Asked again, it is answered as before, although it was another entry.
    assert!(stop(&mut lab, others[1], 1, &[leader]).is_some());
    assert_eq!(stop(&mut lab, others[0], 2, &others), None);
    lab.until("the active one to decide alone", ms(5_000), |lab| lab.voters() == [leader]);
    let nodes = others.iter().map(|n| lab.id(*n)).collect();
    lab.propose(others[0], member(3, MemberCommand::StartManagers { nodes }));
    lab.until("all to vote again", ms(10_000), |lab| lab.voters() == [0, 1, 2]);
}

#[test]
fn u4_an_explicit_vote_that_would_make_the_number_even_is_refused() {
    use quorate_model::command::Refusal;
    use quorate_model::entry::Outcome;
    let mut lab = Lab::with_spares(1, 1, 3);
    lab.until("a leader", ms(2_000), |lab| lab.leader() == Some(0) && lab.node(0).state().nodes.len() == 1);
    join(&mut lab, 1);
    lab.until("the standby to follow", ms(5_000), |lab| lab.node(1).leader() == Some(lab.id(0)));
    let refused = |lab: &Lab, number: u128| match lab.outcome(0, number) {
        Some(Outcome::Command(Err(why @ Refusal::Harm { .. }))) => why.to_string(),
        other => panic!("{other:?}"),
    };
    let (node, vote) = (lab.id(1), Vote::Asked);
    lab.propose(1, member(1, MemberCommand::SetVote { node, vote }));
    lab.until("the answer", ms(2_000), |lab| lab.has_applied(0, 1));
    assert!(refused(&lab, 1).contains("there would be 2 voters, which tolerate no more losses than 1"));
    // A server that asks for it while it joins is not admitted.
    let mut newcomer = lab.identity(1);
    (newcomer.id, newcomer.name) = (quorate_model::id::NodeId::from_u128(77), "n77".into());
    newcomer.roles = [Role::Manager].into();
    lab.propose(0, member(2, MemberCommand::SetVote { node, vote: Vote::Never }));
    lab.until("the leader to know it", ms(2_000), |lab| lab.node(0).state().nodes[&node].vote == Vote::Never);
    let secret = SecretHash([9; 32]);
    lab.propose(0, member(3, MemberCommand::Admit { secret, node: newcomer, vote }));
    lab.until("the answer", ms(2_000), |lab| lab.has_applied(0, 3));
    assert!(refused(&lab, 3).starts_with("with n77 there would be 2 voters"));
}
