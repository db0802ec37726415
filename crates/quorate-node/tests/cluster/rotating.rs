//! The cluster's authority is exchanged while a server is away: how long it is waited for, and what becomes
//! of it.

use crate::lab::{Lab, ms};
use quorate_model::access::name::Digest;
use quorate_model::command::Command;
use quorate_model::entry::Proposal;
use quorate_model::id::RequestId;
use quorate_model::observed::{KeyStep, TrustReport};
use quorate_model::spec::{self, Format};
use quorate_model::state::Health;
use quorate_model::time::WallTime;
use quorate_model::trust::{KeyKind, KeyRecord, Stage, TrustCommand};
use quorate_node::Event;
use quorate_node::succession::WAITED;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn authority(lab: &Lab, n: usize) -> KeyRecord {
    lab.node(n).state().trust.key(KeyKind::Authority)
}

/// What a node says once it has carried out what `record` asks.
fn carried_out(record: &KeyRecord) -> TrustReport {
    TrustReport {
        public: String::new(),
        certificate: Digest::default(),
        authority: Digest::default(),
        from: WallTime(0),
        until: WallTime(0),
        keys: BTreeMap::from([(KeyKind::Authority, KeyStep { number: record.number, stage: record.stage })]),
    }
}

/// Lets time pass in which these nodes carry out what is decided.
fn pass(lab: &mut Lab, nodes: &[usize], span: Duration) {
    let end = lab.in_time(span);
    while lab.now() < end {
        lab.run_for(ms(500).min(end.since(lab.now())));
        for n in nodes {
            let report = carried_out(&authority(lab, *n));
            lab.event(*n, Event::Trust(report));
        }
    }
}

/// Three nodes with a replica each; one of them is down, and a rotation waits for it. Returns it.
fn waiting(seed: u64) -> (Lab, usize, Vec<usize>) {
    let mut lab = Lab::running(3, seed);
    let document = spec::parse("[[service]]\nname = 'web'\ncommand = ['web']\nreplicas = 3", Format::Toml).unwrap();
    lab.propose(0, Proposal::command(RequestId::from_u128(1), &Command::ApplySpec { document }));
    lab.until("a replica on each node", ms(5_000), |lab| (0..3).all(|n| lab.assigned(n) == Some(1)));
    let leader = lab.leader().unwrap();
    let away = (leader + 1) % 3;
    let others: Vec<usize> = (0..3).filter(|n| *n != away).collect();
    lab.kill(away);
    let id = lab.id(away);
    lab.until("it is down", ms(20_000), |lab| lab.node(leader).state().nodes[&id].health == Health::Down);
    let begin = TrustCommand::Begin {
        key: KeyKind::Authority,
        number: 2,
        certificate: "new".into(),
        former: "old".into(),
        sealed: BTreeMap::new(),
    };
    lab.propose(leader, Proposal::command(RequestId::from_u128(2), &Command::Trust(begin)));
    lab.until("it has begun", ms(5_000), |lab| others.iter().all(|n| authority(lab, *n).number == 2));
    (lab, away, others)
}

#[test]
fn a_rotation_waits_ten_minutes_for_a_server_that_is_away_and_then_goes_on_and_names_it() {
    let (mut lab, away, others) = waiting(80);
    let left = WAITED - Duration::from_secs(15);
    pass(&mut lab, &others, left);
    let now = authority(&lab, others[0]);
    assert_eq!((now.stage, now.behind), (Stage::Spread, BTreeSet::new()), "it is waited for");
    pass(&mut lab, &others, Duration::from_secs(30));
    for n in &others {
        let now = authority(&lab, *n);
        assert_eq!((now.stage, now.behind), (Stage::Done, BTreeSet::from([lab.id(away)])), "it is named");
    }
}

#[test]
fn one_that_is_back_within_ten_minutes_has_missed_nothing() {
    let (mut lab, away, others) = waiting(81);
    pass(&mut lab, &others, WAITED - Duration::from_secs(60));
    lab.restart(away);
    let id = lab.id(away);
    lab.until("it is joined", ms(20_000), |lab| lab.node(others[0]).state().nodes[&id].health == Health::Joined);
    // It is joined now, so nobody goes on without it, however long it takes.
    pass(&mut lab, &others, Duration::from_secs(120));
    assert_eq!(authority(&lab, others[0]).stage, Stage::Spread);
    pass(&mut lab, &[0, 1, 2], Duration::from_secs(10));
    let now = authority(&lab, others[0]);
    assert_eq!((now.stage, now.behind), (Stage::Done, BTreeSet::new()));
}

/// Every manager counts since it knows that the server is down, by its own clock.
#[test]
fn another_leader_counts_on_and_one_that_was_started_anew_from_its_start() {
    let (mut lab, away, others) = waiting(82);
    pass(&mut lab, &others, WAITED - Duration::from_secs(60));
    let leader = lab.leader().unwrap();
    lab.kill(leader);
    lab.restart(leader);
    lab.until("another leader", ms(20_000), |lab| lab.leader().is_some_and(|other| other != leader));
    pass(&mut lab, &others, Duration::from_secs(90));
    let now = authority(&lab, others[0]);
    assert_eq!((now.stage, now.behind), (Stage::Done, BTreeSet::from([lab.id(away)])), "it counted while it followed");

    let (mut lab, _, others) = waiting(84);
    pass(&mut lab, &others, WAITED - Duration::from_secs(60));
    others.iter().for_each(|n| lab.kill(*n));
    others.iter().for_each(|n| lab.restart(*n));
    pass(&mut lab, &others, WAITED - Duration::from_secs(30));
    assert_eq!(authority(&lab, others[0]).stage, Stage::Spread);
    pass(&mut lab, &others, Duration::from_secs(60));
    assert_eq!(authority(&lab, others[0]).stage, Stage::Done);
}

/// It starts on its old disk and believes the old authority: nobody speaks with it, and it cannot be told.
#[test]
fn a_server_that_missed_the_rotation_sees_that_all_are_strangers_and_ends_what_it_ran() {
    let (mut lab, away, others) = waiting(83);
    pass(&mut lab, &others, WAITED + Duration::from_secs(30));
    assert_eq!(authority(&lab, others[0]).stage, Stage::Done);
    // Its links end in the handshake.
    lab.cut(away);
    lab.restart(away);
    assert!(lab.node(away).strangers().is_empty());
    let stranger = |lab: &mut Lab, n: usize| {
        let peer = lab.id(n);
        lab.event(away, Event::Stranger { peer });
    };
    stranger(&mut lab, others[0]);
    lab.run_for(ms(60_000));
    assert!(lab.node(away).strangers().is_empty(), "the other two could elect a leader that it believes");
    assert_eq!(lab.assigned(away), None, "so what it ran goes on");
    stranger(&mut lab, others[1]);
    lab.run_for(ms(5_000));
    assert_eq!(lab.node(away).strangers(), others.iter().map(|n| lab.id(*n)).collect());
    assert_eq!(lab.assigned(away), None, "an election may be on its way");
    lab.until("it ends what it ran", ms(6_000), |lab| lab.assigned(away) == Some(0));
    assert_eq!(authority(&lab, away).number, 1);

    // Somebody puts the right certificates in place: it is let in, and what it is assigned counts again.
    lab.heal(away);
    let id = lab.id(away);
    lab.until("it is joined", ms(20_000), |lab| {
        lab.node(others[0]).state().nodes[&id].health == Health::Joined && lab.node(away).strangers().is_empty()
    });
    lab.until("it is assigned something again", ms(20_000), |lab| {
        let wanted = lab.node(others[0]).state().replicas.values().filter(|replica| replica.node == id).count();
        lab.assigned(away) == Some(wanted)
    });
}
