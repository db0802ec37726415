//! Nodes that go on purpose, and nodes that the cluster does not have any more.

use crate::lab::{Lab, ms};
use quorate_model::command::{Command, Refusal};
use quorate_model::entry::Proposal;
use quorate_model::id::RequestId;
use quorate_model::member::{MemberCommand, NotAdmitted, Quota};
use quorate_model::state::Health;
use quorate_node::Event;

fn member(lab: &mut Lab, at: usize, request: u128, command: MemberCommand) {
    lab.propose(at, Proposal::command(RequestId::from_u128(request), &Command::Member(command)));
    lab.until("the command", ms(1_000), |lab| lab.has_applied(at, request));
}

#[test]
fn d4_a_node_that_leaves_is_known_to_have_left_at_once_and_comes_back_under_its_id() {
    let mut lab = Lab::running(3, 41);
    let leader = lab.leader().unwrap();
    let (gone, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let id = lab.id(gone);
    lab.event(gone, Event::Leave);
    lab.until("everybody knows", ms(100), |lab| {
        [leader, other].iter().all(|n| lab.node(*n).state().nodes[&id].health == Health::Left)
            && lab.node(gone).has_left()
    });
    // It does not change its mind while it ends.
    lab.run_for(ms(3_000));
    assert_eq!(lab.node(other).state().nodes[&id].health, Health::Left);
    let before = lab.node(other).state().nodes[&id].generation;
    lab.kill(gone);
    lab.restart(gone);
    lab.until("it is back", ms(2_000), |lab| {
        let known = &lab.node(other).state().nodes[&id];
        known.health == Health::Joined && known.generation == before + 1
    });
}

#[test]
fn d4_a_leader_leaves_as_well_and_a_cluster_of_one_too() {
    for nodes in [3, 1] {
        let mut lab = Lab::running(nodes, 42);
        let leader = lab.leader().unwrap();
        let id = lab.id(leader);
        lab.event(leader, Event::Leave);
        lab.until("it has left", ms(500), |lab| lab.node(leader).has_left());
        lab.until("somebody leads", ms(500), |lab| lab.leader().is_some_and(|new| nodes == 1 || new != leader));
        let new = lab.leader().unwrap();
        assert_eq!(lab.node(new).state().nodes[&id].health, Health::Left);
    }
}

#[test]
fn d3_a_node_that_finds_no_place_says_why_asks_now_and_then_and_takes_the_next_free_one() {
    let mut lab = Lab::running(3, 43);
    let leader = lab.leader().unwrap();
    let away = (leader + 1) % 3;
    let id = lab.id(away);
    lab.event(away, Event::Leave);
    lab.until("it has left", ms(500), |lab| lab.node(away).has_left());
    lab.kill(away);
    let quota = |nodes| MemberCommand::SetQuota { quota: Some(Quota { nodes, expires: None }) };
    member(&mut lab, leader, 1, quota(2));
    lab.restart(away);
    lab.until("it knows why", ms(3_000), |lab| lab.node(away).refused().is_some());
    let why = Refusal::NotAdmitted { why: NotAdmitted::QuotaReached { nodes: 2 } };
    assert_eq!(lab.node(away).refused(), Some(&why));
    let before = lab.node(leader).applied().0;
    lab.run_for(ms(30_000));
    let asked = lab.node(leader).applied().0 - before;
    assert!((1..=12).contains(&asked), "it asked {asked} times in 30 s");
    member(&mut lab, leader, 2, quota(3));
    lab.until("it has a place", ms(6_000), |lab| {
        lab.node(leader).state().nodes[&id].health == Health::Joined && lab.node(away).refused().is_none()
    });
}

#[test]
fn an_expelled_node_that_still_runs_is_told_so_and_does_not_come_back() {
    let mut lab = Lab::running(3, 44);
    let leader = lab.leader().unwrap();
    let gone = (leader + 1) % 3;
    let id = lab.id(gone);
    member(&mut lab, leader, 1, MemberCommand::Expel { node: id });
    lab.until("it knows", ms(1_000), |lab| {
        let why = Refusal::NotAdmitted { why: NotAdmitted::Expelled { node: id } };
        lab.node(gone).refused() == Some(&why)
    });
    lab.kill(gone);
    lab.restart(gone);
    lab.run_for(ms(3_000));
    assert!(!lab.node(leader).state().nodes.contains_key(&id));
}
