//! A record in the words of the checkers.
//!
//! The last look at the contents joins every history as reads of a client of its own: what was
//! acknowledged and is gone then contradicts an answer.

use crate::torture::record::{self, Contents, End, Line, Operation, Step};
use quorate_check::history::{self, Client, Moment};
use quorate_check::register::{Answer, Call, Content, Key, Value};
use quorate_check::witness::{Asked, Evidence, FinalState, Life, Seen};
use quorate_check::{list_append, stream};
use quorate_model::id::LogIndex;
use std::collections::BTreeMap;

/// The client whose reads are the last look.
const LAST_LOOK: Client = Client(u32::MAX);

fn content(value: u64) -> Content {
    (value != 0).then_some(Value(value))
}

/// The register call of an operation; `None` for other parts of the workload.
fn register(call: &record::Call) -> Option<Call> {
    match call {
        record::Call::Put { key, value } => Some(Call::Write { key: Key(*key), value: Value(*value) }),
        record::Call::Cas { key, from, value } => {
            Some(Call::Cas { key: Key(*key), from: content(*from), to: Value(*value) })
        }
        record::Call::Get { key } | record::Call::GetLocal { key, .. } => Some(Call::Read { key: Key(*key) }),
        record::Call::Transaction { .. } | record::Call::Insert { .. } | record::Call::Scale { .. } => None,
    }
}

fn register_answer(answer: &record::Answer) -> Option<Answer> {
    match answer {
        record::Answer::Done | record::Answer::Swapped(true) => Some(Answer::Done),
        record::Answer::Swapped(false) => Some(Answer::Mismatch),
        record::Answer::Value(value) => Some(Answer::Read(content(*value))),
        record::Answer::Lists(_) => None,
    }
}

/// `call` with the operation's times, its answer translated by `answer`; `None` where that has no words for it.
fn operation<C, A>(
    of: &Operation,
    call: C,
    answer: impl Fn(u64, &record::Answer) -> Option<A>,
) -> Option<history::Operation<C, A>> {
    let end = match &of.end {
        End::Answered { at, index, answer: told } => {
            history::End::Answered { at: Moment(*at), answer: answer(*index, told)? }
        }
        End::Refused { at, .. } => history::End::Refused { at: Moment(*at) },
        End::Unknown { .. } => history::End::Unknown,
    };
    Some(history::Operation { client: Client(of.client), asked: Moment(of.asked), call, end })
}

/// A time in which nodes may have started anew, so that their own state may have gone back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Absence<'a> {
    pub began: u64,
    pub ended: u64,
    /// By name.
    pub of: &'a [String],
}

/// Registers with the log indexes of their answers.
pub(super) fn witness(operations: &[Operation], absences: &[Absence<'_>], contents: Option<&Contents>) -> Evidence {
    let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
    let mut history = Vec::new();
    for one in operations {
        let Some(call) = register(&one.call) else { continue };
        let asked = match &one.call {
            record::Call::GetLocal { node, .. } => {
                let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
                let number = *numbers.entry(node).or_insert(next);
                let life = life(one, node, absences).map(|start| Life { node: number, start });
                Asked::Local { key: call.key(), life }
            }
            _ => Asked::Linearizable(call),
        };
        let seen =
            |index, answer: &record::Answer| Some(Seen { answer: register_answer(answer)?, index: LogIndex(index) });
        history.extend(operation(one, asked, seen));
    }
    let final_state = contents.map(|contents| FinalState {
        index: LogIndex(contents.applied),
        contents: contents.registers.iter().map(|(key, value)| (Key(*key), Value(*value))).collect(),
    });
    Evidence { history, learnt: BTreeMap::new(), final_state }
}

/// In which life of its node a read was answered: how often the node may have started anew before.
/// `None` where it may have done so during the read.
fn life(read: &Operation, node: &str, absences: &[Absence<'_>]) -> Option<u32> {
    let End::Answered { at, .. } = read.end else { return None };
    let of_node = || absences.iter().filter(|absence| absence.of.iter().any(|name| name == node));
    if of_node().any(|absence| absence.began <= at && read.asked <= absence.ended) {
        return None;
    }
    u32::try_from(of_node().filter(|absence| absence.ended < read.asked).count()).ok()
}

/// Registers without indexes, with the last look at every one.
pub(super) fn registers(operations: &[Operation], contents: &[Contents]) -> Vec<history::Operation<Call, Answer>> {
    let linearizable = operations.iter().filter(|one| !matches!(one.call, record::Call::GetLocal { .. }));
    let mut history: Vec<_> = linearizable
        .filter_map(|one| operation(one, register(&one.call)?, |_, answer| register_answer(answer)))
        .collect();
    let asked = end_of(operations);
    for contents in contents {
        let at = Moment(contents.at.max(asked.0));
        let held: BTreeMap<u64, u64> = contents.registers.iter().copied().collect();
        let mut keys: Vec<u64> = operations.iter().filter_map(|one| Some(register(&one.call)?.key().0)).collect();
        keys.sort_unstable();
        keys.dedup();
        history.extend(keys.into_iter().map(|key| history::Operation {
            client: LAST_LOOK,
            asked,
            call: Call::Read { key: Key(key) },
            end: history::End::Answered { at, answer: Answer::Read(held.get(&key).map(|value| Value(*value))) },
        }));
    }
    history
}

type ListHistory = Vec<history::Operation<list_append::Transaction, list_append::Reads>>;

/// Transactions over lists, with the last look at every list.
pub(super) fn transactions(operations: &[Operation], contents: &[Contents]) -> ListHistory {
    let mut history = Vec::new();
    for one in operations {
        let record::Call::Transaction { steps } = &one.call else { continue };
        let steps = steps
            .iter()
            .map(|step| match step {
                Step::Append { list, value } => {
                    list_append::Step::Append { list: list_append::List(*list), element: *value }
                }
                Step::Read { list } => list_append::Step::Read { list: list_append::List(*list) },
            })
            .collect();
        history.extend(operation(one, steps, |_, answer| match answer {
            record::Answer::Lists(lists) => Some(lists.clone()),
            _ => None,
        }));
    }
    let asked = end_of(operations);
    for contents in contents {
        let at = Moment(contents.at.max(asked.0));
        history.extend(contents.lists.iter().map(|(list, values)| history::Operation {
            client: LAST_LOOK,
            asked,
            call: vec![list_append::Step::Read { list: list_append::List(*list) }],
            end: history::End::Answered { at, answer: vec![values.clone()] },
        }));
    }
    history
}

/// When the last operation had ended: the last look comes after it.
fn end_of(operations: &[Operation]) -> Moment {
    let ends = operations.iter().map(|one| match one.end {
        End::Answered { at, .. } | End::Refused { at, .. } | End::Unknown { at, .. } => at,
    });
    Moment(ends.max().unwrap_or(0))
}

/// All events of one log entry, in their order: an entry's events are published together.
type Together = Vec<String>;

/// The table of events, and what each follower got.
pub(super) fn streams(lines: &[Line]) -> (stream::Topic<Together>, Vec<Vec<stream::Received<Together>>>) {
    use stream::Received;
    let mut published: BTreeMap<u64, Together> = BTreeMap::new();
    let mut received: BTreeMap<u32, Vec<Received<Together>>> = BTreeMap::new();
    let mut compacted = LogIndex(0);
    for line in lines {
        match line {
            Line::Events { events } => {
                for event in events {
                    published.entry(event.index).or_default().push(event.kind.clone());
                }
            }
            Line::Watched(watched) => {
                let got = received.entry(watched.client).or_default();
                got.push(Received::Subscribed { after: Some(LogIndex(watched.after)) });
                let mut together: Vec<(u64, Together)> = Vec::new();
                for event in &watched.events {
                    match together.last_mut() {
                        Some((index, kinds)) if *index == event.index => kinds.push(event.kind.clone()),
                        _ => together.push((event.index, vec![event.kind.clone()])),
                    }
                }
                if let (true, Some((first, _))) = (watched.missed, together.first()) {
                    let up_to = LogIndex(first.saturating_sub(1));
                    compacted = compacted.max(up_to);
                    got.push(Received::Compacted { up_to });
                }
                got.extend(
                    together.into_iter().map(|(index, event)| Received::Event { index: LogIndex(index), event }),
                );
            }
            Line::CaughtUp { client, up_to } => {
                received.entry(*client).or_default().push(Received::CaughtUp { up_to: LogIndex(*up_to) });
            }
            _ => {}
        }
    }
    let published = published.into_iter().map(|(index, event)| (LogIndex(index), event)).collect();
    (stream::Topic { published, perhaps: Vec::new(), compacted }, received.into_values().collect())
}
