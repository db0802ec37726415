//! Old copies of a node's data, and nodes that run twice: a voter that forgot what it promised, or
//! promises in two voices, could decide twice.

use crate::insert;
use crate::lab::{Lab, ms};
use quorate_model::command::Command;
use quorate_model::entry::Proposal;
use quorate_model::id::RequestId;
use quorate_node::Unfit;

/// A cluster in which follower `old` is started again on data from before `writes` writes.
fn with_an_old_copy(seed: u64, writes: u128, leader_dies: bool) -> (Lab, usize) {
    let mut lab = Lab::running(3, seed);
    let leader = lab.leader().unwrap();
    let old = (leader + 1) % 3;
    lab.propose(leader, insert(1));
    lab.until("a write", ms(1_000), |lab| (0..3).all(|n| lab.has_applied(n, 1)));
    let copy = lab.copy(old);
    for write in 2..2 + writes {
        lab.propose(leader, insert(write));
    }
    lab.until("all writes", ms(1_000), |lab| (0..3).all(|n| lab.has_applied(n, 1 + writes)));
    // Long enough for everybody to have said how far it is.
    lab.run_for(ms(1_500));
    lab.kill(old);
    lab.put_back(old, copy);
    if leader_dies {
        lab.kill(leader);
    }
    lab.restart(old);
    (lab, old)
}

#[test]
fn a_voter_on_an_old_copy_of_its_data_is_told_by_the_leader_and_says_nothing_more() {
    for seed in 0..20 {
        let (mut lab, old) = with_an_old_copy(seed, 3, false);
        lab.until("it notices", ms(2_000), |lab| matches!(lab.unfit(old), Some(Unfit::Forgot { .. })));
        let leader = lab.leader().unwrap();
        lab.propose(leader, insert(100));
        lab.until("the others go on", ms(1_000), |lab| lab.has_applied(leader, 100));
    }
}

/// The leader whose entries it acknowledged is gone, so nobody's count of copies shows the gap; with its vote a
/// majority would be found that lacks what was acknowledged.
#[test]
fn a_voter_on_an_old_copy_of_its_data_helps_nobody_to_lead() {
    for seed in 0..20 {
        let (mut lab, old) = with_an_old_copy(seed, 3, true);
        lab.until("it notices", ms(2_000), |lab| matches!(lab.unfit(old), Some(Unfit::Forgot { .. })));
        assert_eq!(lab.leader(), None, "seed {seed}: of three voters one is dead and one has forgotten");
        lab.run_for(ms(3_000));
        assert_eq!(lab.leader(), None, "seed {seed}");
    }
}

#[test]
fn a_copy_that_lacks_nothing_goes_on() {
    let (mut lab, old) = with_an_old_copy(3, 0, true);
    lab.until("a leader", ms(3_000), |lab| lab.leader().is_some());
    assert_eq!(lab.unfit(old), None);
}

#[test]
fn of_a_node_that_runs_twice_one_ends() {
    let mut lab = Lab::running(3, 5);
    let leader = lab.leader().unwrap();
    let (twice, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let registers = |boot: u64| Command::RegisterNode { node: lab.identity(twice), boot };
    // A late word of an earlier run is no reason to end.
    let late = Proposal::command(RequestId::from_u128(1), &registers(1_000));
    let twin: Vec<Proposal> =
        (2..20).map(|number| Proposal::command(RequestId::from_u128(number), &registers(1_001))).collect();
    lab.propose(other, late);
    lab.until("the late word", ms(1_000), |lab| lab.has_applied(twice, 1));
    lab.run_for(ms(3_000));
    assert_eq!(lab.unfit(twice), None);
    for (number, proposal) in (2..).zip(twin) {
        lab.propose(other, proposal);
        lab.until("the twin registers", ms(1_000), |lab| lab.has_applied(other, number));
        lab.run_for(ms(500));
        if lab.unfit(twice).is_some() {
            break;
        }
    }
    assert_eq!(lab.unfit(twice), Some(Unfit::Superseded));
    assert!(lab.leader().is_some());
}
