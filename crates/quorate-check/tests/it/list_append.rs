//! The checker of transactions: each anomaly by name, 1,000 runs that hold, 1,000 with one event
//! changed.

use crate::dice::Dice;
use crate::{assert_malformed, premises, violation};
use quorate_check::history::{Client, End, Moment, Operation, Verdict};
use quorate_check::list_append::{Element, List, Reads, Step, Transaction, check};
use std::collections::BTreeMap;

type History = Vec<Operation<Transaction, Reads>>;

const X: List = List(1);
const Y: List = List(2);

fn append(list: List, element: Element) -> Step {
    Step::Append { list, element }
}

fn read(list: List) -> Step {
    Step::Read { list }
}

fn answered(asked: u64, at: u64, call: &[Step], reads: &[&[Element]]) -> Operation<Transaction, Reads> {
    let answer = reads.iter().map(|read| read.to_vec()).collect();
    let end = End::Answered { at: Moment(at), answer };
    Operation { client: Client(0), asked: Moment(asked), call: call.to_vec(), end }
}

fn unknown(asked: u64, call: &[Step]) -> Operation<Transaction, Reads> {
    Operation { client: Client(0), asked: Moment(asked), call: call.to_vec(), end: End::Unknown }
}

fn refused(asked: u64, at: u64, call: &[Step]) -> Operation<Transaction, Reads> {
    Operation { client: Client(0), asked: Moment(asked), call: call.to_vec(), end: End::Refused { at: Moment(at) } }
}

/// Of which no two follow each other in real time.
fn together(call: &[Step], reads: &[&[Element]]) -> Operation<Transaction, Reads> {
    answered(0, 100, call, reads)
}

#[track_caller]
fn holds(history: &[Operation<Transaction, Reads>]) {
    premises(&check(history));
}

#[track_caller]
fn breaks(history: &[Operation<Transaction, Reads>], name: &str) -> Vec<usize> {
    let verdict = check(history);
    assert_eq!(violation(&verdict), name, "{verdict:?}");
    let Verdict::Violated(found) = verdict else { unreachable!("it has a name") };
    found.operations
}

#[test]
fn transactions_in_order_hold() {
    let history = [
        answered(0, 5, &[append(X, 1), read(X), append(X, 2), append(Y, 7)], &[&[1]]),
        refused(1, 9, &[append(X, 9)]),
        unknown(2, &[append(X, 8), append(Y, 8)]),
        answered(10, 15, &[read(X), append(X, 3), read(X), read(Y)], &[&[1, 2], &[1, 2, 3], &[7]]),
        answered(20, 25, &[read(X), read(Y)], &[&[1, 2, 3, 8], &[7, 8]]),
    ];
    assert!(premises(&check(&history)) > 5);
    assert_eq!(premises(&check(&[])), 0);
}

#[test]
fn an_element_twice_is_a_duplicate() {
    breaks(&[together(&[append(X, 1)], &[]), together(&[read(X)], &[&[1, 1]])], "duplicate");
}

#[test]
fn an_element_of_nobody_is_a_phantom() {
    breaks(&[together(&[read(X)], &[&[1]])], "phantom");
}

#[test]
fn an_element_of_a_refused_transaction_is_g1a() {
    breaks(&[refused(0, 9, &[append(X, 1)]), together(&[read(X)], &[&[1]])], "G1a (aborted read)");
}

#[test]
fn a_list_that_ends_within_a_transaction_is_g1b() {
    let history = [together(&[append(X, 1), append(X, 2)], &[]), together(&[read(X)], &[&[1]])];
    breaks(&history, "G1b (intermediate read)");
}

#[test]
fn a_transaction_that_does_not_see_itself_is_internal() {
    breaks(&[together(&[append(X, 1), read(X)], &[&[]])], "internal");
    breaks(&[together(&[read(X), append(X, 1)], &[&[1]])], "internal");
    breaks(&[together(&[append(X, 1)], &[]), together(&[read(X), read(X)], &[&[], &[1]])], "internal");
}

#[test]
fn lists_that_do_not_begin_alike_are_an_incompatible_order() {
    let history = [
        together(&[append(X, 1)], &[]),
        together(&[append(X, 2)], &[]),
        together(&[read(X)], &[&[1, 2]]),
        together(&[read(X)], &[&[2, 1]]),
    ];
    assert_eq!(breaks(&history, "incompatible order"), [2, 3]);
}

#[test]
fn an_acknowledged_append_that_a_later_read_misses_is_lost() {
    let history = |asked| [answered(0, 9, &[append(X, 1)], &[]), answered(asked, 99, &[read(X)], &[&[]])];
    assert_eq!(breaks(&history(10), "lost append"), [0, 1]);
    holds(&history(9));
    let seen_by_another = [
        answered(0, 9, &[append(X, 1)], &[]),
        answered(10, 19, &[read(X)], &[&[1]]),
        answered(20, 29, &[read(X)], &[&[]]),
    ];
    assert_eq!(breaks(&seen_by_another, "lost append"), [0, 2]);
}

#[test]
fn appends_in_a_circle_are_g0() {
    let history = [
        together(&[append(X, 1), append(Y, 1)], &[]),
        together(&[append(X, 2), append(Y, 2)], &[]),
        together(&[read(X)], &[&[1, 2]]),
        together(&[read(Y)], &[&[2, 1]]),
    ];
    assert_eq!(breaks(&history, "G0 (write cycle)"), [0, 1]);
    let torn_apart = [
        together(&[append(X, 1), append(X, 2)], &[]),
        together(&[append(X, 3)], &[]),
        together(&[read(X)], &[&[1, 3, 2]]),
    ];
    breaks(&torn_apart, "G0 (write cycle)");
}

#[test]
fn two_that_see_each_other_are_g1c() {
    let history = [together(&[append(X, 1), read(Y)], &[&[2]]), together(&[append(Y, 2), read(X)], &[&[1]])];
    assert_eq!(breaks(&history, "G1c (circular information flow)"), [0, 1]);
}

#[test]
fn half_of_a_transaction_seen_is_g_single() {
    let history = [together(&[append(X, 1), append(Y, 1)], &[]), together(&[read(X), read(Y)], &[&[1], &[]])];
    assert_eq!(breaks(&history, "G-single (read skew)"), [1, 0]);
    let unknown_but_seen = [unknown(0, &[append(X, 1), append(Y, 1)]), together(&[read(X), read(Y)], &[&[1], &[]])];
    breaks(&unknown_but_seen, "G-single (read skew)");
}

#[test]
fn write_skew_is_g2() {
    let history = [together(&[read(X), append(Y, 1)], &[&[]]), together(&[read(Y), append(X, 1)], &[&[]])];
    assert_eq!(breaks(&history, "G2 (anti-dependency cycle)"), [0, 1]);
}

#[test]
fn two_that_append_to_what_both_read_are_g2() {
    let history = [together(&[read(X), append(X, 1)], &[&[]]), together(&[read(X), append(X, 2)], &[&[]])];
    breaks(&history, "G2 (anti-dependency cycle)");
}

#[test]
fn an_order_against_real_time_has_its_own_names() {
    let appended_before = [
        answered(0, 9, &[append(X, 1)], &[]),
        answered(10, 19, &[append(X, 2)], &[]),
        answered(20, 29, &[read(X)], &[&[2, 1]]),
    ];
    assert_eq!(breaks(&appended_before, "G0-realtime"), [0, 1]);
    let seen_before_asked = [answered(0, 9, &[read(X)], &[&[1]]), answered(10, 19, &[append(X, 1)], &[])];
    assert_eq!(breaks(&seen_before_asked, "G1c-realtime"), [0, 1]);
    // The answers of others between them change nothing.
    let with_others_between = [
        answered(0, 5, &[read(X)], &[&[1]]),
        answered(0, 6, &[read(Y)], &[&[]]),
        answered(0, 7, &[read(Y)], &[&[]]),
        answered(10, 19, &[append(X, 1)], &[]),
    ];
    assert_eq!(breaks(&with_others_between, "G1c-realtime"), [0, 3]);
    // The third sees the second, which was asked after the first was answered, and not the first.
    let first_is_missed = [
        answered(0, 9, &[append(X, 1)], &[]),
        answered(10, 19, &[append(Y, 2)], &[]),
        answered(5, 29, &[read(X), read(Y)], &[&[], &[2]]),
    ];
    assert_eq!(breaks(&first_is_missed, "G-single-realtime").len(), 3);
    let twice_missed = [
        answered(0, 99, &[read(X), append(Y, 1)], &[&[]]),
        answered(0, 9, &[append(X, 1)], &[]),
        answered(10, 19, &[read(Y)], &[&[]]),
    ];
    assert_eq!(breaks(&twice_missed, "G2-realtime").len(), 3);
}

#[test]
fn the_shortest_circle_is_shown() {
    // A circle of three reads past each other, and one of two.
    let z = List(3);
    let history = [
        together(&[read(X), append(Y, 1)], &[&[]]),
        together(&[read(Y), append(z, 1)], &[&[]]),
        together(&[read(z), append(X, 1)], &[&[]]),
        together(&[read(X), append(List(4), 1)], &[&[]]),
        together(&[read(List(4)), append(X, 2)], &[&[]]),
    ];
    assert_eq!(breaks(&history, "G2 (anti-dependency cycle)").len(), 2);
}

#[test]
fn unknown_transactions_that_nobody_saw_may_not_have_happened() {
    holds(&[unknown(0, &[append(X, 1)]), answered(10, 19, &[read(X)], &[&[]])]);
}

#[test]
fn a_history_that_nobody_can_have_recorded_is_not_judged() {
    assert_malformed(&check(&[together(&[append(X, 1)], &[]), together(&[append(X, 1)], &[])]));
    assert_malformed(&check(&[together(&[read(X)], &[])]));
    assert_malformed(&check(&[answered(9, 0, &[], &[])]));
}

/// A store that runs each transaction at one moment between question and answer.
fn run(seed: u64, clients: u32, each: u64, lists: u64) -> History {
    let mut dice = Dice::new(seed);
    let mut fresh = 0;
    let mut planned = Vec::new();
    let mut over = 0;
    for client in 0..clients {
        let mut now = dice.below(30);
        for _ in 0..each {
            let steps = (0..1 + dice.below(4)).map(|_| {
                let list = List(dice.below(lists));
                fresh += 1;
                if dice.percent(50) { read(list) } else { append(list, fresh) }
            });
            let call: Transaction = steps.collect();
            let asked = now;
            let effect = asked + dice.below(20);
            let at = effect + dice.below(20);
            now = at + 1 + dice.below(10);
            over = over.max(at);
            planned.push((effect, client, asked, at, call));
        }
    }
    planned.push((over + 2, clients, over + 1, over + 3, (0..lists).map(|list| read(List(list))).collect()));
    planned.sort_unstable_by_key(|(effect, client, ..)| (*effect, *client));
    let mut contents: BTreeMap<List, Vec<Element>> = BTreeMap::new();
    let mut history = History::new();
    for (_, client, asked, at, call) in planned {
        let lot = if client == clients { 0 } else { dice.below(100) };
        let mut answer = Reads::new();
        if lot < 92 {
            for step in &call {
                match *step {
                    Step::Append { list, element } => contents.entry(list).or_default().push(element),
                    Step::Read { list } => answer.push(contents.get(&list).cloned().unwrap_or_default()),
                }
            }
        }
        let end = match lot {
            0..85 => End::Answered { at: Moment(at), answer },
            85..96 => End::Unknown,
            _ => End::Refused { at: Moment(at) },
        };
        history.push(Operation { client: Client(client), asked: Moment(asked), call, end });
    }
    history
}

#[test]
fn a_thousand_runs_of_a_store_that_keeps_its_promise_hold() {
    for seed in 0..1_000 {
        assert!(premises(&check(&run(seed, 4, 15, 3))) > 20, "seed {seed}");
    }
}

#[test]
fn twenty_thousand_transactions_are_quick() {
    let mut history = run(1, 10, 2_000, 400);
    assert!(premises(&check(&history)) > 20_000);
    // The last transaction reads all lists; one of them as it was before its last append.
    let End::Answered { answer, .. } = &mut history.last_mut().unwrap().end else { panic!("it was answered") };
    answer[7].pop();
    assert_eq!(breaks(&history, "lost append").last(), Some(&20_000));
}

/// One read in a history: the transaction, which of its reads, of which list.
#[derive(Clone, Copy)]
struct Place {
    transaction: usize,
    read: usize,
    list: List,
}

fn seen(history: &mut History, place: Place) -> &mut Vec<Element> {
    match &mut history[place.transaction].end {
        End::Answered { answer, .. } => &mut answer[place.read],
        End::Refused { .. } | End::Unknown => unreachable!("only answered transactions read"),
    }
}

/// Changes one event so that no order explains the history; `None` if it has no such event.
fn change(history: &mut History, kind: u64, dice: &mut Dice) -> Option<()> {
    let mut places = Vec::new();
    let mut writers: BTreeMap<Element, usize> = BTreeMap::new();
    for (transaction, operation) in history.iter().enumerate() {
        let mut read = 0;
        for step in &operation.call {
            match *step {
                Step::Append { element, .. } => _ = writers.insert(element, transaction),
                Step::Read { list } => {
                    if matches!(operation.end, End::Answered { .. }) {
                        places.push(Place { transaction, read, list });
                    }
                    read += 1;
                }
            }
        }
    }
    let place = dice.pick(&places)?;
    let list = seen(history, place).clone();
    let count = list.len();
    let reader = history[place.transaction].clone();
    // Another transaction whose read of the list is this one's beginning or goes on from it.
    let last = places.iter().rev().find(|other| other.list == place.list && other.transaction != place.transaction)?;
    let longer = seen(history, *last).len() >= count;
    match kind {
        // An append that was acknowledged before is missing.
        0 => {
            let writer = writers[list.last()?];
            if history[writer].ended().is_none_or(|at| at >= reader.asked) {
                return None;
            }
            seen(history, place).pop();
        }
        // Two elements change places, or one in the middle is missing.
        1 | 2 if count > 1 && longer => {
            let at = usize::try_from(dice.below(u64::try_from(count).unwrap() - 1)).unwrap();
            if kind == 1 { seen(history, place).swap(at, at + 1) } else { _ = seen(history, place).remove(at) }
        }
        3 => {
            let again = dice.pick(&list)?;
            seen(history, place).push(again);
        }
        4 => seen(history, place).push(1_000_000),
        // What was seen is refused.
        5 => {
            let writer = writers[&dice.pick(&list)?];
            if writer == place.transaction {
                return None;
            }
            history[writer].end = End::Refused { at: history[writer].ended().unwrap_or(history[writer].asked) };
        }
        // What was seen is asked for only after the answer.
        6 => {
            let writer = writers[&dice.pick(&list)?];
            let seen_at = reader.ended()?;
            if writer == place.transaction {
                return None;
            }
            history[writer].asked = Moment(seen_at.0 + 1);
            if let End::Answered { at, .. } = &mut history[writer].end {
                *at = Moment(at.0.max(seen_at.0 + 1));
            }
        }
        // The end of one transaction in a list is missing.
        7 => {
            let [.., before, end] = list[..] else { return None };
            if writers[&before] != writers[&end] || writers[&end] == place.transaction {
                return None;
            }
            seen(history, place).pop();
        }
        // A transaction does not see its own append.
        8 => {
            if writers[list.last()?] != place.transaction {
                return None;
            }
            seen(history, place).pop();
        }
        _ => return None,
    }
    Some(())
}

#[test]
fn a_thousand_runs_with_one_event_changed_are_rejected() {
    let mut rejected: BTreeMap<u64, u64> = BTreeMap::new();
    let mut seed = 0;
    while rejected.values().sum::<u64>() < 1_000 {
        let mut history = run(seed, 4, 15, 3);
        let mut dice = Dice::new(seed + 1_000_000);
        let kind = seed % 9;
        if (0..20).any(|_| change(&mut history, kind, &mut dice).is_some()) {
            let verdict = check(&history);
            assert!(matches!(verdict, Verdict::Violated(_)), "kind {kind}, seed {seed}: {verdict:?}");
            *rejected.entry(kind).or_default() += 1;
        }
        seed += 1;
        assert!(seed < 3_000, "too few runs can be changed: {rejected:?}");
    }
    for kind in 0..9 {
        assert!(rejected.get(&kind).is_some_and(|count| *count > 50), "kind {kind}: {rejected:?}");
    }
}
