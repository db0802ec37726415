//! One survivor goes on after the majority was lost for ever.

use crate::insert;
use crate::lab::{Lab, ms};
use quorate_model::command::Command;
use quorate_model::entry::Proposal;
use quorate_model::id::RequestId;
use quorate_model::member::{MemberCommand, Vote};
use quorate_model::state::Role;
use quorate_node::recovery::CannotRecover;
use std::time::Duration;

fn serves(lab: &mut Lab, n: usize, request: u128) {
    lab.until("it to lead alone", ms(5_000), |lab| lab.node(n).leads() && lab.voters() == [n]);
    lab.propose(n, insert(request));
    lab.until("a write", ms(2_000), |lab| lab.has_applied(n, request));
}

#[test]
fn the_survivor_of_three_keeps_everything_it_has_and_decides_alone() {
    for seed in 0..30 {
        let mut lab = Lab::running(3, 300 + seed);
        let survivor = seed as usize % 3;
        let leader = lab.leader().unwrap();
        (0..20).for_each(|number| lab.propose(leader, insert(number)));
        lab.until("the writes", ms(2_000), |lab| (0..20).all(|number| lab.has_applied(survivor, number)));
        // These may be in its log or not, and are confirmed or not.
        (20..25).for_each(|number| lab.propose(leader, insert(number)));
        lab.run_for(ms(seed % 7));
        (0..3).for_each(|n| lab.kill(n));
        let recovery = lab.recover(survivor, 2).unwrap();
        assert_eq!(recovery.lost.len(), 2, "{recovery:?}");
        assert!(recovery.confirmed <= recovery.last);
        lab.restart(survivor);
        serves(&mut lab, survivor, 100);
        assert!((0..20).all(|number| lab.has_applied(survivor, number)));
        let state = lab.node(survivor).state();
        assert_eq!((state.incarnation(), state.nodes.len(), state.members.expelled.len()), (2, 1, 2));
        assert_eq!(lab.node(survivor).configuration().nodes(), [lab.id(survivor)].into());
        // It is an ordinary log: it can be read again, and there is nothing more to recover.
        lab.kill(survivor);
        assert_eq!(lab.recover(survivor, 3).map(|_| ()), Err(CannotRecover::NotNeeded));
        lab.restart(survivor);
        serves(&mut lab, survivor, 101);
        assert_eq!(lab.applied_twice(), []);
    }
}

#[test]
fn a_member_that_was_given_up_and_comes_back_disturbs_nobody() {
    let mut lab = Lab::running(3, 5);
    (0..3).for_each(|n| lab.kill(n));
    lab.recover(0, 2).unwrap();
    lab.restart(0);
    serves(&mut lab, 0, 1);
    let term = lab.node(0).term();
    // The link would refuse them; the node does not listen to them either.
    lab.restart(1);
    lab.restart(2);
    lab.run_for(ms(5_000));
    assert_eq!((lab.leader_but(1).is_some(), lab.node(0).leads(), lab.node(0).term()), (true, true, term));
    serves_too(&mut lab);
}

fn serves_too(lab: &mut Lab) {
    lab.propose(0, insert(2));
    lab.until("a write of the survivor", ms(2_000), |lab| lab.has_applied(0, 2));
    assert!(!lab.has_applied(1, 2));
}

#[test]
fn a_survivor_in_the_midst_of_a_change_of_voters_is_found_its_way_out() {
    let mut joint = 0;
    for seed in 0..40 {
        let mut lab = Lab::running(5, 400 + seed);
        let leader = lab.leader().unwrap();
        let node = lab.id((leader + 1) % 5);
        let survivor = (leader + 1 + seed as usize % 4) % 5;
        let never = Command::Member(MemberCommand::SetVote { node, vote: Vote::Never });
        lab.propose(leader, Proposal::command(RequestId::from_u128(7), &never));
        lab.run_for(Duration::from_micros(seed * 250));
        joint += u32::from(lab.node(survivor).configuration().is_joint());
        (0..5).for_each(|n| lab.kill(n));
        lab.recover(survivor, 2).unwrap();
        lab.restart(survivor);
        serves(&mut lab, survivor, 100);
        assert_eq!(lab.node(survivor).configuration().nodes(), [lab.id(survivor)].into());
    }
    assert!(joint > 0, "some were between two sets");
}

#[test]
fn workers_stay_and_no_worker_and_no_newcomer_is_a_survivor() {
    let mut lab = Lab::running(3, 9);
    let (leader, worker) = (lab.leader().unwrap(), lab.leader().map(|n| (n + 1) % 3).unwrap());
    let node = lab.id(worker);
    let roles = MemberCommand::SetRoles { node, roles: [Role::Worker].into() };
    lab.propose(leader, Proposal::command(RequestId::from_u128(7), &Command::Member(roles)));
    lab.until("one voter", ms(5_000), |lab| lab.voters() == [leader] && lab.has_applied(worker, 7));
    lab.run_for(ms(1_000));
    (0..3).for_each(|n| lab.kill(n));
    assert_eq!(lab.recover(worker, 2).map(|_| ()), Err(CannotRecover::NotManager));
    assert_eq!(lab.recover(leader, 2).map(|_| ()), Err(CannotRecover::NotNeeded));
    // The standby is a manager, and survives as well as a voter.
    let standby = 3 - leader - worker;
    let recovery = lab.recover(standby, 2).unwrap();
    assert_eq!((recovery.stay, recovery.lost), ([node].into(), [lab.id(leader)].into()));
    lab.restart(standby);
    serves(&mut lab, standby, 100);
    let configuration = lab.node(standby).configuration();
    assert_eq!(configuration.learners, [node].into());
    let mut empty = Lab::with_spares(1, 1, 3);
    empty.run_for(ms(10));
    assert_eq!(empty.recover(1, 2).map(|_| ()), Err(CannotRecover::KnowsNothing));
}
