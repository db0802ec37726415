//! The search: each anomaly by name, agreement with stateright, 1,000 runs that hold, 1,000 with one
//! event changed.

use crate::dice::Dice;
use crate::registers::{Load, run};
use crate::{assert_malformed, premises, violation};
use quorate_check::history::{Client, End, Moment, Operation, Verdict};
use quorate_check::linearizable::{Budget, check};
use quorate_check::register::{Answer, Call, Content, Key, Value};
use quorate_check::witness::without_witness;
use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester, SequentialSpec};
use std::collections::BTreeMap;

type History = Vec<Operation<Call, Answer>>;

const K: Key = Key(1);
const READ: Call = Call::Read { key: K };
const DONE: Answer = Answer::Done;
const NOTHING: Answer = Answer::Read(None);

fn write(value: u64) -> Call {
    Call::Write { key: K, value: Value(value) }
}

fn cas(from: u64, to: u64) -> Call {
    Call::Cas { key: K, from: Some(Value(from)), to: Value(to) }
}

fn saw(value: u64) -> Answer {
    Answer::Read(Some(Value(value)))
}

fn answered(asked: u64, at: u64, call: Call, answer: Answer) -> Operation<Call, Answer> {
    Operation { client: Client(0), asked: Moment(asked), call, end: End::Answered { at: Moment(at), answer } }
}

fn unknown(asked: u64, call: Call) -> Operation<Call, Answer> {
    Operation { client: Client(0), asked: Moment(asked), call, end: End::Unknown }
}

fn refused(asked: u64, at: u64, call: Call) -> Operation<Call, Answer> {
    Operation { client: Client(0), asked: Moment(asked), call, end: End::Refused { at: Moment(at) } }
}

fn judge(history: &[Operation<Call, Answer>]) -> Verdict {
    check(history, Budget::default())
}

#[track_caller]
fn holds(history: &[Operation<Call, Answer>]) {
    premises(&judge(history));
}

#[track_caller]
fn broken(history: &[Operation<Call, Answer>]) -> Vec<usize> {
    match judge(history) {
        Verdict::Violated(found) => {
            assert!(found.what.starts_with("not linearizable"), "{found}");
            found.operations
        }
        other => panic!("not rejected: {other:?}"),
    }
}

#[test]
fn a_read_during_a_write_sees_either() {
    holds(&[answered(0, 20, write(1), DONE), answered(5, 10, READ, NOTHING)]);
    holds(&[answered(0, 20, write(1), DONE), answered(5, 10, READ, saw(1))]);
}

#[test]
fn a_stale_read_is_rejected() {
    let history = [answered(0, 9, write(1), DONE), answered(10, 19, READ, NOTHING)];
    assert_eq!(broken(&history), [0, 1]);
    holds(&[answered(0, 10, write(1), DONE), answered(10, 19, READ, NOTHING)]);
}

#[test]
fn reads_that_go_back_during_a_write_are_rejected() {
    let history = [answered(0, 99, write(1), DONE), answered(10, 19, READ, saw(1)), answered(20, 29, READ, NOTHING)];
    assert_eq!(broken(&history).last(), Some(&2));
}

#[test]
fn a_lost_update_is_rejected() {
    let history =
        [answered(0, 9, write(1), DONE), answered(10, 30, cas(1, 2), DONE), answered(11, 31, cas(1, 3), DONE)];
    assert_eq!(broken(&history), [0, 1, 2]);
}

#[test]
fn a_mismatch_that_would_match_is_rejected() {
    broken(&[answered(0, 9, write(1), DONE), answered(10, 30, cas(1, 2), Answer::Mismatch)]);
}

#[test]
fn a_value_that_nobody_wrote_is_rejected() {
    broken(&[answered(0, 9, READ, saw(4))]);
    broken(&[refused(0, 9, write(4)), answered(0, 9, READ, saw(4))]);
}

#[test]
fn a_lost_write_is_rejected() {
    broken(&[answered(0, 9, write(1), DONE), answered(10, 19, write(2), DONE), answered(20, 29, READ, saw(1))]);
}

#[test]
fn an_unknown_write_happens_once_at_any_time_or_never() {
    let late = [unknown(0, write(7)), answered(10, 19, READ, NOTHING), answered(20, 29, READ, saw(7))];
    holds(&late);
    holds(&[unknown(0, write(7)), answered(10, 19, READ, NOTHING)]);
    broken(&[answered(0, 9, READ, saw(7)), unknown(10, write(7))]);
    let twice = [
        unknown(0, write(7)),
        answered(1, 2, READ, saw(7)),
        answered(3, 4, write(1), DONE),
        answered(5, 6, READ, saw(7)),
    ];
    broken(&twice);
}

#[test]
fn an_unknown_write_may_be_what_a_cas_found_instead() {
    holds(&[answered(0, 9, write(1), DONE), unknown(5, write(7)), answered(10, 19, cas(1, 2), Answer::Mismatch)]);
    holds(&[unknown(0, write(7)), unknown(0, cas(7, 8)), answered(10, 19, READ, saw(8))]);
}

#[test]
fn a_write_of_what_is_there_may_be_needed_later() {
    holds(&[
        answered(0, 9, write(1), DONE),
        answered(10, 40, write(1), DONE),
        answered(10, 40, write(2), DONE),
        answered(12, 20, READ, saw(2)),
        answered(21, 40, READ, saw(1)),
    ]);
}

#[test]
fn keys_are_registers_of_their_own() {
    let other = Call::Read { key: Key(2) };
    holds(&[answered(0, 9, write(1), DONE), answered(10, 19, other, NOTHING)]);
}

#[test]
fn the_shortest_prefix_without_order_is_named() {
    let mut history: History = (0..200).map(|n| answered(10 * n, 10 * n + 5, write(n), DONE)).collect();
    history.push(answered(1_006, 1_008, READ, saw(98)));
    history.push(answered(1_506, 1_508, READ, saw(3)));
    let operations = broken(&history);
    assert_eq!(operations.last(), Some(&200), "the first stale read, not the second");
    assert!(operations.contains(&100) && operations.len() < 10, "{operations:?}");
}

#[test]
fn a_search_that_is_too_long_gives_up() {
    // All writes under way at once and a read of what nobody wrote: every subset must be tried.
    let mut history: History = (0..30).map(|n| answered(0, 100, write(n), DONE)).collect();
    history.push(answered(0, 100, READ, saw(99)));
    let verdict = check(&history, Budget { steps_per_key: 1_000 });
    assert!(matches!(verdict, Verdict::Unknown { .. }), "{verdict:?}");
}

#[test]
fn a_history_that_nobody_can_have_recorded_is_not_judged() {
    assert_malformed(&judge(&[answered(9, 0, READ, NOTHING)]));
    assert_malformed(&judge(&[answered(0, 9, write(1), NOTHING)]));
}

#[test]
fn what_nobody_writes_is_no_premise() {
    assert_eq!(premises(&judge(&[answered(0, 1, READ, NOTHING)])), 0);
    assert_eq!(premises(&judge(&[answered(0, 1, READ, NOTHING), answered(2, 3, write(1), DONE)])), 1);
}

/// A register with compare-and-set, written once more, so that the two implementations share nothing.
#[derive(Clone, Debug)]
struct CasRegister(Content);

impl SequentialSpec for CasRegister {
    type Op = Call;
    type Ret = Answer;

    fn invoke(&mut self, call: &Call) -> Answer {
        match *call {
            Call::Read { .. } => return Answer::Read(self.0),
            Call::Write { value, .. } => self.0 = Some(value),
            Call::Delete { .. } => self.0 = None,
            Call::Cas { from, to, .. } => {
                if self.0 != from {
                    return Answer::Mismatch;
                }
                self.0 = Some(to);
            }
        }
        Answer::Done
    }
}

/// What stateright says of a history of one key.
fn stateright_says<S>(
    history: &[Operation<Call, Answer>],
    register: S,
    op: impl Fn(Call) -> S::Op,
    ret: impl Fn(Answer) -> S::Ret,
) -> bool
where
    S: SequentialSpec + Clone,
    S::Op: Clone + std::fmt::Debug,
    S::Ret: Clone + std::fmt::Debug + PartialEq,
{
    // At one moment questions come before answers, as our own definition of "precedes" has it.
    let mut events = Vec::new();
    for (position, operation) in history.iter().enumerate() {
        if matches!(operation.end, End::Refused { .. }) {
            continue;
        }
        events.push((operation.asked, 0, position));
        events.extend(operation.ended().map(|at| (at, 1, position)));
    }
    events.sort_unstable();
    let mut tester = LinearizabilityTester::new(register);
    // Its threads never go on after an operation without an end, so their clients do as new ones.
    let mut lives: BTreeMap<Client, usize> = BTreeMap::new();
    let mut threads: BTreeMap<usize, (Client, usize)> = BTreeMap::new();
    for (_, kind, position) in events {
        let operation = &history[position];
        let life = lives.entry(operation.client).or_default();
        let thread = *threads.entry(position).or_insert((operation.client, *life));
        match &operation.end {
            End::Answered { answer, .. } if kind == 1 => _ = tester.on_return(thread, ret(*answer)).unwrap(),
            End::Unknown => {
                *life += 1;
                tester.on_invoke(thread, op(operation.call)).unwrap();
            }
            End::Answered { .. } | End::Refused { .. } => _ = tester.on_invoke(thread, op(operation.call)).unwrap(),
        }
    }
    tester.is_consistent()
}

fn register_says(history: &[Operation<Call, Answer>]) -> bool {
    let op = |call| match call {
        Call::Read { .. } => RegisterOp::Read,
        Call::Write { value, .. } => RegisterOp::Write(Some(value)),
        Call::Delete { .. } => RegisterOp::Write(None),
        Call::Cas { .. } => unreachable!("stateright's register has no compare-and-set"),
    };
    let ret = |answer| match answer {
        Answer::Read(content) => RegisterRet::ReadOk(content),
        Answer::Done | Answer::Mismatch => RegisterRet::WriteOk,
    };
    stateright_says(history, Register::<Content>(None), op, ret)
}

fn cas_register_says(history: &[Operation<Call, Answer>]) -> bool {
    stateright_says(history, CasRegister(None), |call| call, |answer| answer)
}

/// Up to 8 operations of 3 clients on one key. Answers are right for some order of effects, some of
/// them then replaced by anything.
fn small_history(dice: &mut Dice, with_cas: bool) -> History {
    let wrong_percent = [0, 30, 60][usize::try_from(dice.below(3)).unwrap()];
    let count = 4 + dice.below(5);
    let mut clients = [0, 1, 2].map(|_| dice.below(10));
    let mut planned = Vec::new();
    for _ in 0..count {
        let client = usize::try_from(dice.below(3)).unwrap();
        let value = Value(dice.below(3));
        let from = if dice.percent(30) { None } else { Some(Value(dice.below(3))) };
        let call = match dice.below(if with_cas { 7 } else { 5 }) {
            0..2 => READ,
            2..4 => Call::Write { key: K, value },
            4 => Call::Delete { key: K },
            _ => Call::Cas { key: K, from, to: value },
        };
        let asked = clients[client];
        let effect = asked + dice.below(10);
        let at = effect + dice.below(10);
        clients[client] = at + 1 + dice.below(4);
        planned.push((effect, u32::try_from(client).unwrap(), asked, at, call));
    }
    planned.sort_unstable();
    let mut content = None;
    let mut history = History::new();
    for (_, client, asked, at, call) in planned {
        let lot = dice.below(10);
        let happens = lot < 8 || lot == 8 && dice.percent(50);
        let mut answer = DONE;
        if happens {
            (content, answer) = call.run(content);
        }
        if dice.percent(wrong_percent) {
            answer = match call {
                Call::Read { .. } => Answer::Read(if dice.percent(20) { None } else { Some(Value(dice.below(4))) }),
                Call::Cas { .. } if answer == DONE => Answer::Mismatch,
                Call::Write { .. } | Call::Delete { .. } | Call::Cas { .. } => DONE,
            };
        }
        let end = match lot {
            0..8 => End::Answered { at: Moment(at), answer },
            8 => End::Unknown,
            _ => End::Refused { at: Moment(at) },
        };
        history.push(Operation { client: Client(client), asked: Moment(asked), call, end });
    }
    history
}

fn agrees(with_cas: bool, says: impl Fn(&[Operation<Call, Answer>]) -> bool) {
    let mut dice = Dice::new(if with_cas { 1 } else { 2 });
    let (mut held, mut violated) = (0, 0);
    for number in 0..10_000 {
        let history = small_history(&mut dice, with_cas);
        let expected = says(&history);
        match judge(&history) {
            Verdict::Holds { .. } => {
                held += 1;
                assert!(expected, "number {number} has no order: {history:#?}");
            }
            Verdict::Violated(_) => {
                violated += 1;
                assert!(!expected, "number {number} has an order: {history:#?}");
            }
            Verdict::Unknown { why } => panic!("number {number}: {why}"),
        }
    }
    assert!(held > 2_000 && violated > 2_000, "{held} held, {violated} did not");
}

#[test]
fn stateright_agrees_on_ten_thousand_histories_of_a_register() {
    agrees(false, register_says);
}

#[test]
fn stateright_agrees_on_ten_thousand_histories_with_compare_and_set() {
    agrees(true, cas_register_says);
}

#[test]
fn a_thousand_runs_of_a_store_that_keeps_its_promise_hold() {
    for seed in 0..1_000 {
        let load = Load { values: if seed % 2 == 0 { 0 } else { 5 }, ..Load::SMALL };
        let (history, _) = without_witness(&run(load, seed).evidence.history);
        assert!(premises(&judge(&history)) > 5, "seed {seed}");
    }
}

/// Changes one event: a value read, the answer of a compare-and-set, two answers swapped, an answer
/// earlier or a question later, a write refused that was not.
fn change(history: &mut History, dice: &mut Dice) -> Option<u64> {
    let count = u64::try_from(history.len()).unwrap();
    let position = usize::try_from(dice.below(count)).unwrap();
    let other = usize::try_from(dice.below(count)).unwrap();
    let kind = dice.below(5);
    let second = history[other].clone();
    let operation = &mut history[position];
    let End::Answered { at, answer } = &mut operation.end else { return None };
    match kind {
        0 => {
            let Answer::Read(content) = answer else { return None };
            let another = if dice.percent(20) { None } else { Some(Value(dice.below(40))) };
            if another == *content {
                return None;
            }
            *content = another;
        }
        1 => {
            let Call::Cas { .. } = operation.call else { return None };
            *answer = if *answer == DONE { Answer::Mismatch } else { DONE };
        }
        2 => {
            let End::Answered { answer: theirs, .. } = second.end else { return None };
            if *answer == theirs || !operation.call.is_read() || !second.call.is_read() {
                return None;
            }
            let mine = std::mem::replace(answer, theirs);
            let End::Answered { answer: theirs, .. } = &mut history[other].end else { return None };
            *theirs = mine;
        }
        3 => {
            let (asked, answered) = (operation.asked, *at);
            // The whole operation goes to where another one is, so that it is late or early.
            operation.asked = second.asked;
            *at = Moment(second.asked.0 + (answered.0 - asked.0));
            // Its client would otherwise ask two things at once.
            operation.client = Client(1_000);
        }
        _ => {
            if operation.call.is_read() {
                return None;
            }
            operation.end = End::Refused { at: *at };
        }
    }
    Some(kind)
}

#[test]
fn a_thousand_runs_with_one_event_changed_are_rejected() {
    let mut rejected: BTreeMap<u64, u64> = BTreeMap::new();
    let mut seed = 0;
    while rejected.values().sum::<u64>() < 1_000 {
        let load = Load {
            clients: 3,
            operations: 4,
            keys: 1,
            unknown_percent: 8,
            local_percent: 0,
            values: if seed % 2 == 0 { 0 } else { 5 },
            ..Load::SMALL
        };
        let (mut history, _) = without_witness(&run(load, seed).evidence.history);
        let mut dice = Dice::new(seed + 1_000_000);
        seed += 1;
        assert!(seed < 20_000, "too few changes break a run: {rejected:?}");
        let Some(kind) = change(&mut history, &mut dice) else { continue };
        // Not every change breaks the promise: another implementation says which do.
        if !cas_register_says(&history) {
            assert_eq!(violation(&judge(&history)), "not linearizable", "seed {}: {history:#?}", seed - 1);
            *rejected.entry(kind).or_default() += 1;
        }
    }
    for kind in 0..5 {
        assert!(rejected.get(&kind).is_some_and(|count| *count > 50), "kind {kind}: {rejected:?}");
    }
}

#[test]
fn a_stale_read_among_many_unknown_writes_of_one_key_is_found() {
    let load = Load { clients: 10, operations: 100, keys: 1, unknown_percent: 5, local_percent: 0, ..Load::SMALL };
    for seed in 0..20 {
        let (mut history, _) = without_witness(&run(load, seed).evidence.history);
        holds(&history);
        // The first value that was read is read again, long after.
        let mut reads = history.iter_mut().filter_map(|operation| match &mut operation.end {
            End::Answered { answer: Answer::Read(content @ Some(_)), .. } => Some(content),
            _ => None,
        });
        let first = *reads.next().unwrap();
        *reads.last().unwrap() = first;
        broken(&history);
    }
}

#[test]
fn a_hundred_thousand_operations_of_ten_clients_are_quick() {
    let load = Load { clients: 10, operations: 10_000, keys: 100, unknown_percent: 2, ..Load::SMALL };
    for values in [0, 5] {
        let (mut history, _) = without_witness(&run(Load { values, ..load }, 7).evidence.history);
        assert!(premises(&judge(&history)) > 40_000);
        let last_read = history
            .iter()
            .rposition(|operation| operation.call.is_read() && matches!(operation.end, End::Answered { .. }))
            .unwrap();
        let End::Answered { answer, .. } = &mut history[last_read].end else { panic!("an answered read") };
        *answer = saw(u64::MAX);
        assert_eq!(broken(&history).last(), Some(&last_read));
    }
}
