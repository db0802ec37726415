//! The stream checker: each anomaly by name, 1,000 runs that hold, 1,000 with one event changed.

use crate::dice::Dice;
use crate::{assert_malformed, premises, violation};
use quorate_check::stream::{Received, Topic, check};
use quorate_model::id::LogIndex;
use std::collections::BTreeMap;

type Record = Vec<Received<u64>>;

fn topic() -> Topic<u64> {
    let published = [(2, 20), (3, 30), (5, 50), (8, 80)].map(|(index, event)| (LogIndex(index), event)).to_vec();
    Topic { published, perhaps: vec![70], compacted: LogIndex(3) }
}

fn after(index: u64) -> Received<u64> {
    Received::Subscribed { after: Some(LogIndex(index)) }
}

const NOW: Received<u64> = Received::Subscribed { after: None };

/// The event that belongs at this position.
fn event(index: u64) -> Received<u64> {
    other(index, index * 10)
}

fn other(index: u64, event: u64) -> Received<u64> {
    Received::Event { index: LogIndex(index), event }
}

fn compacted(index: u64) -> Received<u64> {
    Received::Compacted { up_to: LogIndex(index) }
}

fn caught_up(index: u64) -> Received<u64> {
    Received::CaughtUp { up_to: LogIndex(index) }
}

#[track_caller]
fn holds(record: Record) {
    premises(&check(&topic(), &[record]));
}

#[track_caller]
fn breaks(record: Record, name: &str) {
    assert_eq!(violation(&check(&topic(), &[record])), name);
}

#[test]
fn everything_in_order_holds() {
    let record = vec![after(0), event(2), event(3), event(5), after(5), event(8), caught_up(9)];
    assert_eq!(premises(&check(&topic(), &[record])), 5);
    assert_eq!(premises(&check(&topic(), &[vec![], vec![after(0)]])), 0);
}

#[test]
fn an_event_that_is_passed_over_is_a_gap() {
    breaks(vec![after(0), event(2), event(5)], "gap");
    breaks(vec![after(2), event(5)], "gap");
    breaks(vec![after(0), event(2), after(3), event(8)], "gap");
}

#[test]
fn an_event_that_is_still_missing_when_all_must_be_there_is_a_gap() {
    breaks(vec![after(0), event(2), event(3), event(5), caught_up(8)], "gap");
    holds(vec![after(0), event(2), event(3), event(5), caught_up(7)]);
    breaks(vec![NOW, caught_up(3), event(8)], "gap");
}

#[test]
fn an_event_given_twice_is_a_duplicate() {
    breaks(vec![after(0), event(2), event(2)], "duplicate");
    breaks(vec![after(0), event(2), event(3), event(2)], "duplicate");
}

#[test]
fn an_event_after_a_later_one_is_reordered() {
    breaks(vec![NOW, event(5), event(3)], "reordered");
}

#[test]
fn resuming_gives_what_follows_and_nothing_else() {
    breaks(vec![after(0), event(2), event(3), after(3), event(3)], "before the start");
    holds(vec![after(0), event(2), event(3), after(2), event(3), event(5)]);
}

#[test]
fn an_event_that_nobody_published_is_found() {
    breaks(vec![after(0), event(2), event(3), other(4, 40)], "never published");
}

#[test]
fn an_event_at_another_position_is_found() {
    breaks(vec![after(0), event(2), other(3, 50)], "wrong position");
    breaks(vec![after(0), event(2), event(3), other(4, 50)], "wrong position");
}

#[test]
fn a_gap_may_be_declared_where_something_was_compacted() {
    holds(vec![after(0), compacted(3), event(5), event(8)]);
    holds(vec![NOW, compacted(3), event(8)]);
    breaks(vec![after(0), compacted(5), event(8)], "false compaction");
    breaks(vec![after(0), compacted(2), event(5)], "gap");
    breaks(vec![after(0), compacted(3), event(5), compacted(3), event(5)], "duplicate");
}

#[test]
fn an_uncertain_event_that_one_was_given_is_everybodys() {
    let with = vec![after(5), other(7, 70), event(8)];
    let without = vec![after(5), event(8)];
    holds(with.clone());
    holds(without.clone());
    assert_eq!(violation(&check(&topic(), &[without, with.clone()])), "gap");
    let elsewhere = vec![after(5), other(6, 70)];
    assert_eq!(violation(&check(&topic(), &[with, elsewhere])), "wrong position");
}

#[test]
fn a_record_that_nobody_can_have_made_is_not_judged() {
    assert_malformed(&check(&topic(), &[vec![event(2)]]));
    let mut twice = topic();
    twice.published.push((LogIndex(2), 21));
    assert_malformed(&check(&twice, &[]));
}

/// A topic, and subscribers whose connections break: what they had not taken yet comes again when
/// they resume. All end by catching up.
fn run(seed: u64) -> (Topic<u64>, Vec<Record>) {
    let mut dice = Dice::new(seed);
    let mut index = 0;
    let mut events = Vec::new();
    for event in 0..20 + dice.below(20) {
        index += 1 + dice.below(4);
        events.push((LogIndex(index), event));
    }
    let kept_from = LogIndex(dice.below(index / 2));
    let mut topic = Topic { published: Vec::new(), perhaps: vec![1_000], compacted: kept_from };
    let mut records = Vec::new();
    for _ in 0..4 {
        let from_now = dice.percent(30);
        let begin = LogIndex(dice.below(index));
        let mut record = vec![Received::Subscribed { after: (!from_now).then_some(begin) }];
        let mut cursor = begin;
        if !from_now && begin < kept_from {
            record.push(Received::Compacted { up_to: kept_from });
            cursor = kept_from;
        }
        for (at, event) in &events {
            if *at <= cursor {
                continue;
            }
            if dice.percent(10) && record.iter().any(|received| matches!(received, Received::Event { .. })) {
                record.push(Received::Subscribed { after: Some(cursor) });
            }
            if dice.percent(10) && !from_now {
                record.push(Received::CaughtUp { up_to: LogIndex(at.0 - 1) });
            }
            record.push(Received::Event { index: *at, event: *event });
            cursor = *at;
        }
        record.push(Received::CaughtUp { up_to: LogIndex(index) });
        records.push(record);
    }
    for published in events {
        if dice.percent(10) { topic.perhaps.push(published.1) } else { topic.published.push(published) }
    }
    (topic, records)
}

#[test]
fn a_thousand_runs_without_fault_hold() {
    for seed in 0..1_000 {
        let (topic, records) = run(seed);
        assert!(premises(&check(&topic, &records)) > 4, "seed {seed}");
    }
}

/// Changes one thing that one subscriber received. `None` if it would not be wrong.
fn change(topic: &Topic<u64>, record: &mut Record, kind: u64, dice: &mut Dice) -> Option<()> {
    let known = |received: &Received<u64>| match received {
        Received::Event { index, event } => topic.published.contains(&(*index, *event)),
        _ => false,
    };
    let places: Vec<usize> =
        record.iter().enumerate().filter(|(_, received)| known(received)).map(|(at, _)| at).collect();
    let at = dice.pick(&places)?;
    let Received::Event { index, event } = record[at].clone() else { return None };
    // The first event of one who began "from now on" may be any.
    let bound = at > 1 || matches!(record[0], Received::Subscribed { after: Some(_) });
    // Who asks anew right after it says itself what it lacks.
    let goes_on = !matches!(record[at + 1], Received::Subscribed { .. });
    match kind {
        0 if bound && goes_on => _ = record.remove(at),
        1 => record.insert(at + 1, record[at].clone()),
        2 if matches!(record[at + 1], Received::Event { .. }) => record.swap(at, at + 1),
        3 => record[at] = Received::Event { index, event: event + 500 },
        4 => record[at] = Received::Event { index: LogIndex(index.0 + 1_000), event },
        5 if goes_on => record.insert(at + 1, Received::Subscribed { after: Some(LogIndex(index.0 - 1)) }),
        6 => record.insert(at, Received::Subscribed { after: Some(index) }),
        7 => record.insert(at, Received::Compacted { up_to: LogIndex(topic.compacted.0 + 1 + dice.below(5)) }),
        8 if bound => record.insert(at, Received::CaughtUp { up_to: index }),
        _ => return None,
    }
    Some(())
}

#[test]
fn a_thousand_runs_with_one_event_changed_are_rejected() {
    let mut rejected: BTreeMap<u64, u64> = BTreeMap::new();
    let mut seed = 0;
    while rejected.values().sum::<u64>() < 1_000 {
        let (topic, mut records) = run(seed);
        let mut dice = Dice::new(seed + 1_000_000);
        let whose = usize::try_from(dice.below(4)).unwrap();
        let kind = seed % 9;
        if change(&topic, &mut records[whose], kind, &mut dice).is_some() {
            violation(&check(&topic, &records));
            *rejected.entry(kind).or_default() += 1;
        }
        seed += 1;
        assert!(seed < 3_000, "too few runs can be changed: {rejected:?}");
    }
    for kind in 0..9 {
        assert!(rejected.get(&kind).is_some_and(|count| *count > 50), "kind {kind}: {rejected:?}");
    }
}
