//! The witness checker: each anomaly by name, 1,000 runs that hold, 1,000 with one event changed.

use crate::dice::Dice;
use crate::registers::{Load, Run, run};
use crate::{assert_malformed, premises, violation};
use quorate_check::history::{Client, End, Moment, Operation};
use quorate_check::register::{Answer, Call, Content, Key, Value};
use quorate_check::witness::{Asked, Evidence, FinalState, Learnt, Life, Seen, check, without_witness};
use quorate_model::id::LogIndex;
use std::collections::BTreeMap;

const K: Key = Key(1);

fn some(value: u64) -> Content {
    Some(Value(value))
}

fn write(value: u64) -> Asked {
    Asked::Linearizable(Call::Write { key: K, value: Value(value) })
}

fn read() -> Asked {
    Asked::Linearizable(Call::Read { key: K })
}

fn cas(from: Content, to: u64) -> Asked {
    Asked::Linearizable(Call::Cas { key: K, from, to: Value(to) })
}

fn local(node: u32, start: u32) -> Asked {
    Asked::Local { key: K, life: Some(Life { node, start }) }
}

fn operation(asked: u64, call: Asked, end: End<Seen>) -> Operation<Asked, Seen> {
    Operation { client: Client(0), asked: Moment(asked), call, end }
}

/// Asked at the one moment, answered at the other with this index.
fn answered(asked: u64, at: u64, call: Asked, answer: Answer, index: u64) -> Operation<Asked, Seen> {
    operation(asked, call, End::Answered { at: Moment(at), answer: Seen { answer, index: LogIndex(index) } })
}

fn unknown(asked: u64, call: Asked) -> Operation<Asked, Seen> {
    operation(asked, call, End::Unknown)
}

fn refused(asked: u64, at: u64, call: Asked) -> Operation<Asked, Seen> {
    operation(asked, call, End::Refused { at: Moment(at) })
}

fn of(history: Vec<Operation<Asked, Seen>>) -> Evidence {
    Evidence { history, ..Evidence::default() }
}

fn ended_with(history: Vec<Operation<Asked, Seen>>, index: u64, value: Option<u64>) -> Evidence {
    let contents = value.map(|value| (K, Value(value))).into_iter().collect();
    Evidence { final_state: Some(FinalState { index: LogIndex(index), contents }), ..of(history) }
}

const DONE: Answer = Answer::Done;

fn saw(value: u64) -> Answer {
    Answer::Read(some(value))
}

const NOTHING: Answer = Answer::Read(None);

#[test]
fn a_history_in_order_holds() {
    let history = vec![
        answered(0, 5, read(), NOTHING, 0),
        answered(10, 20, write(1), DONE, 3),
        answered(30, 40, read(), saw(1), 4),
        answered(50, 60, cas(some(1), 2), DONE, 5),
        answered(70, 80, cas(some(1), 3), Answer::Mismatch, 6),
        answered(90, 95, Asked::Linearizable(Call::Delete { key: K }), DONE, 8),
        answered(100, 110, read(), NOTHING, 8),
    ];
    assert!(premises(&check(&ended_with(history, 9, None))) >= 10);
}

#[test]
fn nothing_asked_is_no_premise() {
    assert_eq!(premises(&check(&Evidence::default())), 0);
    assert_eq!(premises(&check(&of(vec![answered(0, 1, read(), NOTHING, 0)]))), 0, "nobody writes the register");
}

#[test]
fn two_writes_with_one_index_are_a_shared_index() {
    let history = vec![answered(0, 9, write(1), DONE, 3), answered(0, 9, write(2), DONE, 3)];
    assert_eq!(violation(&check(&of(history))), "shared index");
}

#[test]
fn a_write_below_an_earlier_answer_breaks_real_time() {
    let history = vec![answered(0, 9, write(1), DONE, 3), answered(10, 19, write(2), DONE, 2)];
    assert_eq!(violation(&check(&of(history))), "real time");
    let concurrent = vec![answered(0, 9, write(1), DONE, 3), answered(9, 19, write(2), DONE, 2)];
    premises(&check(&of(concurrent)));
}

#[test]
fn a_write_at_the_index_of_an_earlier_read_breaks_real_time() {
    let history = vec![answered(0, 9, read(), NOTHING, 3), answered(10, 19, write(2), DONE, 3)];
    assert_eq!(violation(&check(&of(history))), "real time");
}

#[test]
fn a_read_that_misses_an_acknowledged_write_breaks_real_time() {
    let history = vec![answered(0, 9, write(1), DONE, 3), answered(10, 19, read(), NOTHING, 2)];
    assert_eq!(violation(&check(&of(history))), "real time");
}

#[test]
fn a_read_that_goes_back_breaks_real_time() {
    let history = vec![
        answered(0, 99, write(1), DONE, 3),
        answered(10, 19, read(), saw(1), 3),
        answered(20, 29, read(), NOTHING, 2),
    ];
    assert_eq!(violation(&check(&of(history))), "real time");
}

#[test]
fn a_stale_value_at_a_new_index_is_a_wrong_read() {
    let history = vec![
        answered(0, 9, write(1), DONE, 3),
        answered(10, 19, write(2), DONE, 4),
        answered(20, 29, read(), saw(1), 5),
    ];
    let verdict = check(&of(history));
    assert_eq!(violation(&verdict), "wrong read");
    let quorate_check::history::Verdict::Violated(found) = verdict else { unreachable!() };
    assert_eq!(found.operations, [1, 2]);
}

#[test]
fn a_value_of_a_refused_write_is_a_dirty_read() {
    let history = vec![refused(0, 9, write(1)), answered(10, 19, read(), saw(1), 5)];
    assert_eq!(violation(&check(&of(history))), "dirty read");
}

#[test]
fn a_cas_that_cannot_have_found_what_it_says_is_a_wrong_answer() {
    let done = vec![answered(0, 9, write(1), DONE, 3), answered(10, 19, cas(some(2), 3), DONE, 4)];
    assert_eq!(violation(&check(&of(done))), "wrong answer");
    let mismatch = vec![answered(0, 9, write(1), DONE, 3), answered(10, 19, cas(some(1), 3), Answer::Mismatch, 4)];
    assert_eq!(violation(&check(&of(mismatch))), "wrong answer");
}

#[test]
fn an_acknowledged_write_that_the_end_does_not_have_is_a_lost_write() {
    let history = vec![answered(0, 9, write(1), DONE, 3)];
    assert_eq!(violation(&check(&ended_with(history.clone(), 2, None))), "lost write");
    assert_eq!(violation(&check(&ended_with(history.clone(), 5, None))), "lost write");
    assert_eq!(violation(&check(&ended_with(history.clone(), 5, Some(7)))), "lost write");
    premises(&check(&ended_with(history, 5, Some(1))));
}

#[test]
fn a_register_that_nobody_wrote_is_absent_at_the_end() {
    assert_eq!(violation(&check(&ended_with(vec![], 5, Some(7)))), "lost write");
}

#[test]
fn local_reads_of_one_life_do_not_go_back() {
    let twice = |second: Asked| {
        vec![
            answered(0, 9, write(1), DONE, 3),
            answered(10, 19, local(1, 0), saw(1), 3),
            answered(20, 29, second, NOTHING, 2),
        ]
    };
    assert_eq!(violation(&check(&of(twice(local(1, 0))))), "local read went back");
    premises(&check(&of(twice(local(1, 1)))));
    premises(&check(&of(twice(local(2, 0)))));
    premises(&check(&of(twice(Asked::Local { key: K, life: None }))));
}

#[test]
fn a_local_read_may_be_old_but_not_wrong() {
    let history = |answer| vec![answered(0, 9, write(1), DONE, 3), answered(10, 19, local(1, 0), answer, 2)];
    premises(&check(&of(history(NOTHING))));
    assert_eq!(violation(&check(&of(history(saw(1))))), "wrong read");
}

#[test]
fn an_unknown_write_explains_one_change_after_its_question() {
    let explained = vec![unknown(0, write(7)), answered(10, 19, read(), saw(7), 5)];
    premises(&check(&of(explained)));
    let before_its_question = vec![answered(10, 19, read(), saw(7), 5), unknown(20, write(7))];
    assert_eq!(violation(&check(&of(before_its_question))), "wrong read");
    let twice = vec![
        unknown(0, write(7)),
        answered(10, 19, read(), saw(7), 5),
        answered(20, 29, write(1), DONE, 6),
        answered(30, 39, read(), saw(7), 7),
    ];
    assert_eq!(violation(&check(&of(twice.clone()))), "wrong read", "it takes effect once");
    let mut two = twice;
    two.push(unknown(0, write(7)));
    premises(&check(&of(two)));
    let no_index = vec![unknown(0, write(7)), answered(10, 19, write(1), DONE, 5), answered(20, 29, read(), saw(7), 5)];
    assert_eq!(violation(&check(&of(no_index))), "wrong read", "no index is left between write and read");
}

#[test]
fn an_unknown_write_explains_answers_of_cas() {
    let done = vec![unknown(0, write(7)), answered(10, 19, cas(some(7), 8), DONE, 5)];
    premises(&check(&of(done)));
    let mismatch = |by: Asked| {
        vec![
            answered(0, 9, write(1), DONE, 2),
            unknown(10, by),
            answered(20, 29, cas(some(1), 3), Answer::Mismatch, 4),
            answered(30, 39, read(), saw(7), 5),
        ]
    };
    premises(&check(&of(mismatch(write(7)))));
    assert_eq!(violation(&check(&of(mismatch(write(1))))), "wrong answer");
}

#[test]
fn what_was_learnt_counts() {
    let history = vec![unknown(0, write(7)), answered(10, 19, read(), NOTHING, 5)];
    let learnt = |learnt: Learnt| Evidence { learnt: BTreeMap::from([(0, learnt)]), ..of(history.clone()) };
    let committed = |index, answer| learnt(Learnt::Committed { index: LogIndex(index), answer });
    assert_eq!(violation(&check(&committed(4, None))), "wrong read");
    premises(&check(&committed(6, Some(DONE))));
    premises(&check(&learnt(Learnt::NoEffect)));
    let seen = vec![unknown(0, write(7)), answered(10, 19, read(), saw(7), 5)];
    let no_effect = Evidence { learnt: BTreeMap::from([(0, Learnt::NoEffect)]), ..of(seen) };
    assert_eq!(violation(&check(&no_effect)), "wrong read");
}

#[test]
fn a_learnt_cas_without_answer_does_what_the_log_makes_it_do() {
    let history = |seen| {
        let history = vec![
            answered(0, 9, write(1), DONE, 2),
            unknown(10, cas(some(1), 3)),
            answered(20, 29, read(), saw(seen), 5),
        ];
        let learnt = Learnt::Committed { index: LogIndex(4), answer: None };
        Evidence { learnt: BTreeMap::from([(1, learnt)]), ..of(history) }
    };
    premises(&check(&history(3)));
    assert_eq!(violation(&check(&history(1))), "wrong read");
}

#[test]
fn a_history_that_nobody_can_have_recorded_is_not_judged() {
    assert_malformed(&check(&of(vec![answered(9, 0, read(), NOTHING, 0)])));
    assert_malformed(&check(&of(vec![answered(0, 9, read(), DONE, 0)])));
    assert_malformed(&check(&of(vec![answered(0, 9, write(1), DONE, 0)])));
    let learnt = BTreeMap::from([(0, Learnt::NoEffect)]);
    assert_malformed(&check(&Evidence { learnt: learnt.clone(), ..Evidence::default() }));
    assert_malformed(&check(&Evidence { learnt, ..of(vec![answered(0, 9, write(1), DONE, 1)]) }));
}

#[test]
fn the_history_without_witness_keeps_positions() {
    let history = vec![answered(0, 9, local(1, 0), NOTHING, 0), answered(10, 19, write(1), DONE, 1)];
    let (bare, positions) = without_witness(&history);
    assert_eq!(positions, [1]);
    assert_eq!(bare[0].end, End::Answered { at: Moment(19), answer: DONE });
}

/// Every other run knows nothing more of its unknown writes, every third repeats values.
fn load(seed: u64) -> Load {
    Load { learns: seed.is_multiple_of(2), values: if seed.is_multiple_of(3) { 4 } else { 0 }, ..Load::SMALL }
}

#[test]
fn a_thousand_runs_of_a_store_that_keeps_its_promise_hold() {
    for seed in 0..1_000 {
        let run = run(load(seed), seed);
        assert!(premises(&check(&run.evidence)) > 20, "seed {seed}");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    ValueRead,
    AnswersSwapped,
    WriteIndexLowered,
    ReadIndexLowered,
    IndexShared,
    CasAnswerTurned,
    WriteRefused,
    FinalContentLost,
    FinalIndexLowered,
    LocalReadMovedBack,
}

const CHANGES: [Change; 10] = [
    Change::ValueRead,
    Change::AnswersSwapped,
    Change::WriteIndexLowered,
    Change::ReadIndexLowered,
    Change::IndexShared,
    Change::CasAnswerTurned,
    Change::WriteRefused,
    Change::FinalContentLost,
    Change::FinalIndexLowered,
    Change::LocalReadMovedBack,
];

fn seen(operation: &mut Operation<Asked, Seen>) -> &mut Seen {
    match &mut operation.end {
        End::Answered { answer, .. } => answer,
        End::Refused { .. } | End::Unknown => unreachable!("only answered operations are changed"),
    }
}

fn key(call: Asked) -> Key {
    match call {
        Asked::Linearizable(call) => call.key(),
        Asked::Local { key, .. } => key,
    }
}

/// Changes one event so that no log explains the run any more; `None` if the run has no such event.
fn change(run: &Run, change: Change, dice: &mut Dice) -> Option<Evidence> {
    let mut evidence = run.evidence.clone();
    let history = &run.evidence.history;
    // Contents that a write without a place in the log may have left, which would explain anything.
    let explained = |of: Key, content: Content| {
        history.iter().enumerate().any(|(position, operation)| match operation.call {
            Asked::Linearizable(call) if call.key() == of && operation.end == End::Unknown => {
                let unplaced = !evidence.learnt.contains_key(&position);
                let leaves = match call {
                    Call::Write { value, .. } | Call::Cas { to: value, .. } => Some(value),
                    Call::Delete { .. } => None,
                    Call::Read { .. } => return false,
                };
                unplaced && leaves == content
            }
            _ => false,
        })
    };
    let answered = |wanted: &dyn Fn(&Operation<Asked, Seen>, Seen) -> bool| -> Vec<usize> {
        let matching = history.iter().enumerate().filter(|(_, operation)| match operation.end {
            End::Answered { answer, .. } => wanted(operation, answer),
            End::Refused { .. } | End::Unknown => false,
        });
        matching.map(|(position, _)| position).collect()
    };
    let told_before = |position: usize| -> u64 {
        let before = history.iter().filter_map(|other| match other.end {
            End::Answered { at, answer } if at < history[position].asked => Some(answer.index.0),
            _ => None,
        });
        before.max().unwrap_or(0)
    };
    let is_write =
        |operation: &Operation<Asked, Seen>| matches!(operation.call, Asked::Linearizable(call) if !call.is_read());
    match change {
        Change::ValueRead => {
            let reads = answered(&|_, seen| matches!(seen.answer, Answer::Read(_)));
            let position = dice.pick(&reads)?;
            let of = key(history[position].call);
            let mut others = run.contents(of);
            others.extend([None, some(1_000_000)]);
            let truth = seen(&mut evidence.history[position]).answer;
            others.retain(|content| Answer::Read(*content) != truth && !explained(of, *content));
            let other = dice.pick(&others)?;
            seen(&mut evidence.history[position]).answer = Answer::Read(other);
        }
        Change::AnswersSwapped => {
            let reads = answered(&|_, seen| matches!(seen.answer, Answer::Read(_)));
            let one = dice.pick(&reads)?;
            let of = key(history[one].call);
            let answer = |position: usize| match history[position].end {
                End::Answered { answer: Seen { answer: Answer::Read(content), .. }, .. } => content,
                _ => unreachable!("only reads are swapped"),
            };
            let others: Vec<usize> = reads
                .iter()
                .copied()
                .filter(|other| key(history[*other].call) == of && answer(*other) != answer(one))
                .filter(|other| !explained(of, answer(*other)) || !explained(of, answer(one)))
                .collect();
            let other = dice.pick(&others)?;
            seen(&mut evidence.history[one]).answer = Answer::Read(answer(other));
            seen(&mut evidence.history[other]).answer = Answer::Read(answer(one));
        }
        Change::WriteIndexLowered => {
            let writes = answered(&|operation, _| is_write(operation));
            let bound: Vec<usize> = writes.into_iter().filter(|position| told_before(*position) > 0).collect();
            let position = dice.pick(&bound)?;
            seen(&mut evidence.history[position]).index = LogIndex(told_before(position));
        }
        Change::ReadIndexLowered => {
            let reads = answered(&|operation, _| matches!(operation.call, Asked::Linearizable(Call::Read { .. })));
            let bound: Vec<usize> = reads.into_iter().filter(|position| told_before(*position) > 0).collect();
            let position = dice.pick(&bound)?;
            seen(&mut evidence.history[position]).index = LogIndex(told_before(position) - 1);
        }
        Change::IndexShared => {
            let writes = answered(&|operation, _| is_write(operation));
            let (one, other) = (dice.pick(&writes)?, dice.pick(&writes)?);
            if one == other {
                return None;
            }
            seen(&mut evidence.history[one]).index = seen(&mut evidence.history[other]).index;
        }
        Change::CasAnswerTurned => {
            let all_placed = |of: Key| {
                history.iter().enumerate().all(|(position, other)| {
                    key(other.call) != of
                        || !is_write(other)
                        || other.end != End::Unknown
                        || evidence.learnt.contains_key(&position)
                })
            };
            let cas = answered(
                &|operation, _| matches!(operation.call, Asked::Linearizable(Call::Cas { key, .. }) if all_placed(key)),
            );
            let position = dice.pick(&cas)?;
            let answer = &mut seen(&mut evidence.history[position]).answer;
            *answer = if *answer == DONE { Answer::Mismatch } else { DONE };
        }
        Change::WriteRefused => {
            let observed = answered(&|operation, _| match operation.call {
                Asked::Linearizable(Call::Write { key: of, value }) => {
                    let once = run.contents(of).iter().filter(|content| **content == Some(value)).count() == 1;
                    once && !explained(of, Some(value))
                        && history.iter().any(|other| {
                            key(other.call) == of
                                && matches!(other.end, End::Answered { answer, .. } if answer.answer == saw(value.0))
                        })
                }
                _ => false,
            });
            let position = dice.pick(&observed)?;
            evidence.history[position].end = End::Refused { at: history[position].ended()? };
        }
        Change::FinalContentLost => {
            let last = evidence.final_state.clone()?;
            let lost: Vec<Key> = last.contents.keys().copied().filter(|key| !explained(*key, None)).collect();
            let key = dice.pick(&lost)?;
            evidence.final_state.as_mut()?.contents.remove(&key);
        }
        Change::FinalIndexLowered => {
            let told = answered(&|operation, _| is_write(operation));
            let highest = told.iter().map(|position| seen(&mut evidence.history[*position]).index).max()?;
            evidence.final_state.as_mut()?.index = LogIndex(highest.0 - 1);
        }
        Change::LocalReadMovedBack => {
            let before = |position: usize, life: Life| {
                let before = history.iter().filter_map(|other| match (other.call, other.end.clone()) {
                    (Asked::Local { life: Some(of), .. }, End::Answered { at, answer })
                        if of == life && at < history[position].asked =>
                    {
                        Some(answer.index.0)
                    }
                    _ => None,
                });
                before.max().unwrap_or(0)
            };
            let bound: Vec<(usize, u64)> = answered(&|operation, _| matches!(operation.call, Asked::Local { .. }))
                .into_iter()
                .filter_map(|position| match history[position].call {
                    Asked::Local { life: Some(life), .. } => Some((position, before(position, life))),
                    _ => None,
                })
                .filter(|(_, before)| *before > 0)
                .collect();
            let (position, before) = dice.pick(&bound)?;
            let index = LogIndex(before - 1);
            // What it saw is right for its index: only the step back is wrong.
            let content = run.content(key(history[position].call), index);
            *seen(&mut evidence.history[position]) = Seen { answer: Answer::Read(content), index };
        }
    }
    Some(evidence)
}

#[test]
fn a_thousand_runs_with_one_event_changed_are_rejected() {
    let mut rejected: BTreeMap<Change, u64> = BTreeMap::new();
    let mut seed = 0;
    while rejected.values().sum::<u64>() < 1_000 {
        let run = run(load(seed), seed);
        let mut dice = Dice::new(seed + 1_000_000);
        let kind = CHANGES[usize::try_from(seed).unwrap() % CHANGES.len()];
        if let Some(changed) = change(&run, kind, &mut dice) {
            let verdict = check(&changed);
            assert!(
                matches!(verdict, quorate_check::history::Verdict::Violated(_)),
                "{kind:?}, seed {seed}: {verdict:?}"
            );
            *rejected.entry(kind).or_default() += 1;
        }
        seed += 1;
        assert!(seed < 3_000, "too few runs can be changed: {rejected:?}");
    }
    for kind in CHANGES {
        assert!(rejected.get(&kind).is_some_and(|count| *count > 50), "{kind:?}: {rejected:?}");
    }
}
