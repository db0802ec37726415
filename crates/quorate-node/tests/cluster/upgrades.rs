//! Nodes that come back while the versions of the program changed: theirs, or that of the others.

use crate::insert;
use crate::lab::{Lab, ms};
use crate::programs::Program::{self, Newer, Older, This};
use quorate_model::command::{Command, Refusal};
use quorate_model::entry::Proposal;
use quorate_model::id::RequestId;
use quorate_model::member::{MemberCommand, NotAdmitted};
use quorate_model::spec::{self, Format};
use quorate_model::state::Health;
use quorate_node::Event;

/// What the node that comes back runs, and what the others do meanwhile.
const PAIRS: [(Program, Program); 4] = [(Newer, This), (Older, This), (This, Newer), (Older, Newer)];

/// Three nodes with a replica each.
fn serving(seed: u64) -> Lab {
    let mut lab = Lab::running(3, seed);
    let document = spec::parse("[[service]]\nname = 'web'\ncommand = ['web']\nreplicas = 3", Format::Toml).unwrap();
    lab.propose(0, Proposal::command(RequestId::from_u128(1_000), &Command::ApplySpec { document }));
    lab.until("a replica on each node", ms(5_000), |lab| (0..3).all(|n| lab.assigned(n) == Some(1)));
    lab
}

/// One after the other, as an upgrade goes.
fn upgrade(lab: &mut Lab, nodes: &[usize], to: Program) {
    for n in nodes {
        lab.kill(*n);
        lab.install(*n, to);
        lab.restart(*n);
        lab.until("it is back", ms(15_000), |lab| {
            let heard = |other: &usize| lab.node(*other).hears(lab.id(*n));
            lab.leader().is_some() && nodes.iter().filter(|other| *other != n).all(heard)
        });
    }
}

/// reliability.md §5.5, "removed node returns", after an upgrade of either side.
#[test]
fn an_expelled_node_that_comes_back_in_another_version_gets_no_vote_no_place_and_no_service() {
    for (seed, (its, theirs)) in (50..).zip(PAIRS) {
        let mut lab = serving(seed);
        let gone = (lab.leader().unwrap() + 1) % 3;
        let others: Vec<usize> = (0..3).filter(|n| *n != gone).collect();
        let id = lab.id(gone);
        lab.kill(gone);
        let expel = Command::Member(MemberCommand::Expel { node: id });
        lab.propose(others[0], Proposal::command(RequestId::from_u128(1), &expel));
        lab.until("nothing of it is left", ms(20_000), |lab| {
            lab.leader().is_some_and(|leader| {
                let (node, voters) = (lab.node(leader), lab.node(leader).configuration());
                !node.state().nodes.contains_key(&id) && !voters.contains(id) && !voters.is_joint()
            })
        });
        upgrade(&mut lab, &others, theirs);

        // On the disk that it had: it believes that it votes, and that its replica is its own.
        lab.install(gone, its);
        lab.restart(gone);
        lab.propose(gone, insert(2));
        let by = lab.id(others[0]);
        // What the link hears in the handshake, whatever both are.
        lab.event(gone, Event::Expelled { by });
        lab.run_for(ms(9_000));
        assert_eq!(lab.node(gone).expelled_by(), Some(by), "{its:?} among {theirs:?}");
        lab.until("it ends what it ran", ms(2_000), |lab| lab.assigned(gone) == Some(0));
        let leader = lab.leader_but(gone).unwrap();
        assert!(!lab.has_applied(leader, 2), "nobody proposes for it");
        assert!(!lab.node(leader).state().nodes.contains_key(&id), "{its:?} among {theirs:?}");

        // Where its vote could decide, it does not: of the others as many are gone as must not be.
        let voters = lab.node(leader).configuration().voters.clone();
        for voter in lab.numbers(&voters).into_iter().skip(voters.len().div_ceil(2) - 1) {
            lab.kill(voter);
        }
        lab.run_for(ms(10_000));
        assert_eq!(lab.leader(), None, "{its:?} among {theirs:?}");
        assert_eq!(lab.assigned(gone), Some(0));
    }
}

/// The entry that expelled it may be all that it can still read: then it says so itself.
#[test]
fn a_node_that_learns_from_its_own_log_that_it_was_expelled_says_so_in_any_version() {
    for (seed, (its, theirs)) in (60..).zip(PAIRS) {
        let mut lab = Lab::running(3, seed);
        let leader = lab.leader().unwrap();
        let gone = (leader + 1) % 3;
        let id = lab.id(gone);
        (0..3).for_each(|n| lab.install(n, if n == gone { its } else { theirs }));
        lab.propose(
            leader,
            Proposal::command(RequestId::from_u128(1), &Command::Member(MemberCommand::Expel { node: id })),
        );
        let why = Refusal::NotAdmitted { why: NotAdmitted::Expelled { node: id } };
        lab.until("it knows", ms(5_000), |lab| lab.node(gone).refused() == Some(&why));
        lab.kill(gone);
        lab.restart(gone);
        lab.run_for(ms(3_000));
        assert!(!lab.node(leader).state().nodes.contains_key(&id), "{its:?} among {theirs:?}");
    }
}

#[test]
fn a_node_that_slept_through_an_upgrade_of_the_others_comes_back_with_all_that_was_written() {
    for (seed, snapshot) in [(70, false), (71, true)] {
        let mut lab = serving(seed);
        let late = (lab.leader().unwrap() + 1) % 3;
        let others: Vec<usize> = (0..3).filter(|n| *n != late).collect();
        let id = lab.id(late);
        lab.install(late, Older);
        (1..=5).for_each(|write| lab.propose(late, insert(write)));
        lab.until("its writes", ms(5_000), |lab| lab.has_applied(late, 5));
        lab.kill(late);
        lab.until("it is missed", ms(20_000), |lab| {
            lab.leader().is_some_and(|leader| lab.node(leader).state().nodes[&id].health == Health::Down)
        });
        upgrade(&mut lab, &others, Newer);
        (6..=10).for_each(|write| lab.propose(others[0], insert(write)));
        lab.until("more writes", ms(10_000), |lab| (6..=10).all(|write| lab.has_applied(others[0], write)));
        if snapshot {
            lab.purge_all();
        }

        lab.restart(late);
        lab.until("it is joined and has everything", ms(20_000), |lab| {
            let joined = lab.leader().is_some_and(|leader| {
                let node = lab.node(leader);
                node.state().nodes[&id].health == Health::Joined && node.configuration().votes(id)
            });
            joined && (1..=10).all(|write| lab.has_applied(late, write))
        });
        assert_eq!(lab.snapshots_installed() > 0, snapshot);
        assert_eq!(lab.applied_twice(), []);
        // Each hears what the other is.
        lab.run_for(ms(1_500));
        assert!(Newer.is_seen_in(&lab.node(late).peers()[&lab.id(others[0])].report));
        assert!(Older.is_seen_in(&lab.node(others[0]).peers()[&id].report));
        // Its vote counts, and what it is asked is done: one of the new ones dies.
        lab.kill(others[1]);
        lab.until("a leader", ms(10_000), |lab| lab.leader().is_some());
        lab.propose(late, insert(11));
        lab.until("a write by two versions", ms(10_000), |lab| {
            lab.has_applied(late, 11) && lab.has_applied(others[0], 11)
        });
    }
}
