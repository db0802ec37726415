//! Drills between nodes: the one that is taken away may lead, and whoever leads next goes on.

use crate::lab::{Lab, ms};
use quorate_model::command::{Command, Refusal};
use quorate_model::drill::{DrillCommand, DrillRecord, NoDrill, SILENT_AFTER, Verdict};
use quorate_model::entry::{Outcome, Proposal};
use quorate_model::id::RequestId;
use quorate_model::observed::ReplicaState;
use quorate_model::spec::{Format, parse};
use quorate_model::time::Span;
use quorate_node::{Event, Ticket};

const SPEC: &str = "[[service]]\nname = 'db'\nmode = 'singleton'\nfailover = '10s'\ncommand = ['/bin/db']\n";

fn begin(lab: &mut Lab, request: u128, node: usize, secs: u64) {
    let (leader, node) = (lab.leader().unwrap(), lab.id(node));
    let command = DrillCommand::Begin {
        node,
        away: Some(Span::from_secs(secs)),
        replace_after: Span::from_secs(0),
        led: lab.id(leader) == node,
    };
    lab.propose(leader, Proposal::command(RequestId::from_u128(request), &Command::Drill(command)));
}

fn last(lab: &Lab, n: usize) -> Option<&DrillRecord> {
    lab.node(n).state().drills.values().next_back()
}

#[test]
fn n4_the_leader_is_drilled_and_the_next_one_measures_what_the_holder_lost() {
    for seed in 0..4 {
        let mut lab = Lab::running(3, seed);
        let leader = lab.leader().unwrap();
        let document = parse(SPEC, Format::Toml).unwrap();
        lab.propose(leader, Proposal::command(RequestId::from_u128(1), &Command::ApplySpec { document }));
        lab.until("a holder", ms(1_000), |lab| lab.holder("db").is_some());
        let holder = lab.holder("db").unwrap().0;
        let (deadline, to) = (lab.in_time(ms(3_000)), lab.id(holder));
        if lab.leader() != Some(holder) {
            lab.event(leader, Event::Transfer { ticket: Ticket(7), to, deadline });
            lab.until("the holder to lead", ms(3_000), |lab| lab.leader() == Some(holder));
        }
        lab.run_for(ms(1_000));

        begin(&mut lab, 2, holder, 20);
        lab.until("it is sent away", ms(1_000), |lab| lab.is_sent_away(holder));
        lab.run_for(SILENT_AFTER.0);
        lab.cut(holder);
        lab.until("another holder", ms(12_000), |lab| lab.holder("db").is_some_and(|(n, _)| n != holder));
        let heir = lab.holder("db").unwrap().0;
        lab.report(heir, ReplicaState::Healthy);
        let other = (holder + 1) % 3;
        let measured =
            |lab: &Lab| last(lab, other).is_some_and(|drill| drill.services.values().all(|one| one.whole.is_some()));
        lab.until("the others have measured it", ms(15_000), measured);
        assert!(last(&lab, other).unwrap().returned.is_none());
        lab.heal(holder);
        lab.until("it is over", ms(10_000), |lab| (0..3).all(|n| last(lab, n).is_some_and(DrillRecord::is_over)));

        let drill = last(&lab, holder).unwrap();
        let db = drill.services.values().next().unwrap();
        let took = db.whole.unwrap();
        assert_eq!(db.verdict, Verdict::Ok, "seed {seed}: {drill:?}");
        assert!((Span::from_secs(6)..Span::from_secs(10)).contains(&took), "seed {seed}: {took}");
        assert!(drill.successor.is_some_and(|(node, after)| node != lab.id(holder) && after < Span::from_secs(4)));
        assert!(drill.noticed.is_some_and(|after| after < Span::from_secs(5)), "{drill:?}");
        assert_eq!(last(&lab, other), Some(drill), "everybody has the same");
    }
}

#[test]
fn n4_what_would_lose_the_quorum_is_refused_by_whoever_hears() {
    let mut lab = Lab::running(3, 7);
    let leader = lab.leader().unwrap();
    let (dead, drilled) = ((leader + 1) % 3, (leader + 2) % 3);
    lab.kill(dead);
    // Before anybody is called down.
    lab.run_for(ms(300));
    begin(&mut lab, 9, drilled, 20);
    lab.until("an answer", ms(3_000), |lab| lab.has_applied(leader, 9));
    let refused = lab.outcome(leader, 9);
    let heard = |why: &NoDrill| matches!(why, NoDrill::NotHeard { .. } | NoDrill::NotJoined { .. });
    assert!(matches!(&refused, Some(Outcome::Command(Err(Refusal::NoDrill { why }))) if heard(why)), "{refused:?}");
    assert!(last(&lab, leader).is_none());
}
