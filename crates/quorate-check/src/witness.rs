//! Linearizability by witness: replays the log once and compares.
//!
//! Every acknowledged write carries its index in the log and every read the last index that was
//! applied to the database that answered it. So the order that a search would have to find is
//! given, and to check it takes n log n. The price is trust in those indexes, which is why
//! [`crate::linearizable`] looks at the same history without them ([`without_witness`]).
//!
//! # What is checked
//! - *entries*: an index belongs to one write (`shared index`).
//! - *real time*: whatever is asked after an answer has an index that is not lower, and a higher one
//!   if it writes (`real time`). So reads never go back and see every write answered before.
//! - *content*: each read, local ones too, saw what the log makes of its register at its index
//!   (`wrong read`; `dirty read` if the value is one that a refused write would have written); each
//!   compare-and-set was answered as the log demands (`wrong answer`).
//! - *local reads* of one [`Life`] do not go back in real time (`local read went back`).
//! - *final state*: it ends at or after every index that was told (`lost write`), and holds what the
//!   log makes of each register (`lost write` too).
//!
//! # What unknown writes let pass
//! A write that ended unknown and of which nothing was learnt has no place in the log. Wherever an
//! observation needs one, one is used up: it must leave exactly that content, must have been asked
//! before (its index is higher than any that was answered before it was asked), and there must be an
//! index for it since the register was last known. Since it may also have been overwritten unseen,
//! it is not missed if nothing needs it. What this lets pass: an observation that is wrong and by
//! chance equals the content left by such a write; an unknown compare-and-set is taken to have
//! succeeded whatever it found. With all indexes learnt, as in the simulator, nothing is let pass.
//!
//! # Sources
//! The idea is the client oracle of openraft's turmoil tests (databendlabs/openraft); the treatment
//! of unknown writes is ours.

use crate::history::{End, Moment, Operation, Stop, Verdict, check_times, verdict};
use crate::register::{Answer, Call, Content, Key, Shown, Value};
use quorate_model::id::LogIndex;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// One node between two of its restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Life {
    pub node: u32,
    pub start: u32,
}

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A write, or a read that must be linearizable.
    Linearizable(Call),
    /// A read of whatever the node has applied, which may be old. With a `life`, reads of that node
    /// in that life must not go back in real time.
    Local { key: Key, life: Option<Life> },
}

/// An answer with its witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub answer: Answer,
    /// A write's own entry in the log (also of a compare-and-set that changed nothing); for a read
    /// the last entry that was applied to the database that answered, 0 if none was.
    pub index: LogIndex,
}

/// What was found out later about a write that ended [`End::Unknown`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learnt {
    /// Its entry is in the log at `index`. The answer that it would have had is checked if known.
    Committed { index: LogIndex, answer: Option<Answer> },
    /// It had no effect and will have none.
    NoEffect,
}

/// What all registers hold after the last entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FinalState {
    /// The last entry in it.
    pub index: LogIndex,
    /// Registers that are absent have no entry here.
    pub contents: BTreeMap<Key, Value>,
}

/// Everything that a run recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    pub history: Vec<Operation<Asked, Seen>>,
    /// By position in the history. Whatever is not here stays unknown.
    pub learnt: BTreeMap<usize, Learnt>,
    /// Read after the last operation ended, so nothing acknowledged may be missing in it.
    pub final_state: Option<FinalState>,
}

/// The same history for [`crate::linearizable`]: without indexes and local reads. The second part
/// gives for each position in it the position in `history`.
#[must_use]
pub fn without_witness(history: &[Operation<Asked, Seen>]) -> (Vec<Operation<Call, Answer>>, Vec<usize>) {
    let linearizable = history.iter().enumerate().filter_map(|(position, operation)| {
        let Asked::Linearizable(call) = operation.call else { return None };
        let end = match operation.end {
            End::Answered { at, answer: Seen { answer, .. } } => End::Answered { at, answer },
            End::Refused { at } => End::Refused { at },
            End::Unknown => End::Unknown,
        };
        Some((Operation { client: operation.client, asked: operation.asked, call, end }, position))
    });
    linearizable.unzip()
}

/// Does replaying the log once explain every answer?
///
/// Premises are: operations asked after an answer that bounds their index; reads, answers of
/// compare-and-sets and final contents of registers that somebody writes.
#[must_use]
pub fn check(evidence: &Evidence) -> Verdict {
    verdict(run(evidence))
}

fn run(evidence: &Evidence) -> Result<u64, Stop> {
    check_times(&evidence.history)?;
    let steps = steps(evidence)?;
    let floors = Floors::of(evidence.history.iter().enumerate().map(|(position, operation)| Span {
        position,
        asked: operation.asked,
        answered: match operation.end {
            End::Answered { at, answer } => Some((at, answer.index)),
            End::Refused { .. } | End::Unknown => None,
        },
    }));
    let mut premises = check_real_time(evidence, &steps, &floors)?;
    premises += check_lives(&evidence.history)?;
    if let Some(last) = &evidence.final_state {
        let missing = steps.iter().filter(|step| !step.local && step.index > last.index).max_by_key(|step| step.index);
        if let Some(step) = missing {
            let what = format!(
                "lost write: the final state ends at {:?}, operation {} was told {:?}",
                last.index, step.position, step.index
            );
            return Err(Stop::violated(what, [step.position]));
        }
    }
    Ok(premises + replay(evidence, steps, &floors)?)
}

/// Something that is known to have happened at an index.
#[derive(Debug, Clone, Copy)]
struct Step {
    position: usize,
    call: Call,
    index: LogIndex,
    answer: Option<Answer>,
    /// A read of local consistency, which real time does not bind.
    local: bool,
}

/// All operations with a known index. Each write's index is its own.
fn steps(evidence: &Evidence) -> Result<Vec<Step>, Stop> {
    let mut steps = Vec::with_capacity(evidence.history.len());
    let mut writes = BTreeMap::new();
    if let Some(beyond) = evidence.learnt.keys().find(|position| **position >= evidence.history.len()) {
        return Err(Stop::Unknown(format!("something was learnt of operation {beyond}, which does not exist")));
    }
    for (position, operation) in evidence.history.iter().enumerate() {
        let (call, local) = match operation.call {
            Asked::Linearizable(call) => (call, false),
            Asked::Local { key, .. } => (Call::Read { key }, true),
        };
        let learnt = evidence.learnt.get(&position);
        if learnt.is_some() && (call.is_read() || operation.end != End::Unknown) {
            let why = format!("something was learnt of operation {position}, which is no write with an unknown end");
            return Err(Stop::Unknown(why));
        }
        let (index, answer) = match (&operation.end, learnt) {
            (End::Answered { answer: Seen { answer, index }, .. }, _) => (*index, Some(*answer)),
            (End::Unknown, Some(Learnt::Committed { index, answer })) => (*index, *answer),
            (End::Refused { .. }, _) | (End::Unknown, None | Some(Learnt::NoEffect)) => continue,
        };
        if answer.is_some_and(|answer| !call.can_answer(answer)) {
            return Err(Stop::Unknown(format!("operation {position}: {call:?} is never answered {answer:?}")));
        }
        if !call.is_read() {
            if index == LogIndex(0) {
                return Err(Stop::Unknown(format!("operation {position} writes at {index:?}, where no entry is")));
            }
            match writes.entry(index) {
                Entry::Vacant(entry) => _ = entry.insert(position),
                Entry::Occupied(other) => {
                    let other = *other.get();
                    let what = format!("shared index: operations {other} and {position} both wrote at {index:?}");
                    return Err(Stop::violated(what, [other, position]));
                }
            }
        }
        steps.push(Step { position, call, index, answer, local });
    }
    Ok(steps)
}

/// When something was asked, and when and with which index it was answered.
struct Span {
    position: usize,
    asked: Moment,
    answered: Option<(Moment, LogIndex)>,
}

/// For each operation the highest index that anybody had been told before it was asked, and by
/// which operation.
struct Floors(BTreeMap<usize, (LogIndex, usize)>);

impl Floors {
    fn of(spans: impl Iterator<Item = Span>) -> Self {
        let (mut asked, mut answered) = (Vec::new(), Vec::new());
        for span in spans {
            asked.push((span.asked, span.position));
            answered.extend(span.answered.map(|(at, index)| (at, index, span.position)));
        }
        asked.sort_unstable();
        answered.sort_unstable();
        let mut answered = answered.into_iter().peekable();
        let mut highest: Option<(LogIndex, usize)> = None;
        let mut floors = BTreeMap::new();
        for (moment, position) in asked {
            while let Some((_, index, by)) = answered.next_if(|(at, ..)| *at < moment) {
                if highest.is_none_or(|(known, _)| known < index) {
                    highest = Some((index, by));
                }
            }
            floors.extend(highest.map(|floor| (position, floor)));
        }
        Floors(floors)
    }

    fn get(&self, position: usize) -> Option<(LogIndex, usize)> {
        self.0.get(&position).copied()
    }

    /// The floor as an index; 0 if nobody had been told anything.
    fn index(&self, position: usize) -> LogIndex {
        self.get(position).map_or(LogIndex(0), |(index, _)| index)
    }
}

fn check_real_time(evidence: &Evidence, steps: &[Step], floors: &Floors) -> Result<u64, Stop> {
    let mut premises = 0;
    for step in steps.iter().filter(|step| !step.local) {
        let Some((floor, by)) = floors.get(step.position) else { continue };
        premises += 1;
        if step.index < floor || (step.index == floor && !step.call.is_read()) {
            let what = format!(
                "real time: operation {} has {:?} and was asked at {} ns, after operation {by} was answered with {floor:?}",
                step.position, step.index, evidence.history[step.position].asked.0
            );
            return Err(Stop::violated(what, [by, step.position]));
        }
    }
    Ok(premises)
}

/// Local reads of one life of one node do not go back.
fn check_lives(history: &[Operation<Asked, Seen>]) -> Result<u64, Stop> {
    let mut lives: BTreeMap<Life, Vec<Span>> = BTreeMap::new();
    for (position, operation) in history.iter().enumerate() {
        if let (Asked::Local { life: Some(life), .. }, End::Answered { at, answer }) = (operation.call, &operation.end)
        {
            let span = Span { position, asked: operation.asked, answered: Some((*at, answer.index)) };
            lives.entry(life).or_default().push(span);
        }
    }
    let mut premises = 0;
    for (life, spans) in lives {
        let indexes: Vec<_> = spans.iter().filter_map(|span| Some((span.position, span.answered?.1))).collect();
        let floors = Floors::of(spans.into_iter());
        for (position, index) in indexes {
            let Some((floor, by)) = floors.get(position) else { continue };
            premises += 1;
            if index < floor {
                let what = format!(
                    "local read went back: node {} answered operation {by} at {floor:?} and then operation {position} at {index:?}",
                    life.node
                );
                return Err(Stop::violated(what, [by, position]));
            }
        }
    }
    Ok(premises)
}

/// Runs each register through its part of the log.
fn replay(evidence: &Evidence, mut steps: Vec<Step>, floors: &Floors) -> Result<u64, Stop> {
    // A read at an index sees the write at that index.
    steps.sort_unstable_by_key(|step| (step.call.key(), step.index, step.call.is_read(), step.position));
    let mut registers: BTreeMap<Key, Register> = BTreeMap::new();
    for (position, operation) in evidence.history.iter().enumerate() {
        let Asked::Linearizable(call) = operation.call else { continue };
        let Some(content) = call.leaves() else { continue };
        let register = registers.entry(call.key()).or_default();
        match operation.end {
            End::Unknown if !evidence.learnt.contains_key(&position) => {
                register.unplaced.insert((content, floors.index(position), position));
            }
            End::Refused { .. } => _ = register.refused.insert(content),
            End::Answered { .. } | End::Unknown => register.written = true,
        }
    }
    let mut premises = 0;
    for step in &steps {
        premises += registers.entry(step.call.key()).or_default().step(step)?;
    }
    if let Some(last) = &evidence.final_state {
        for key in last.contents.keys() {
            registers.entry(*key).or_default();
        }
        for (key, mut register) in registers {
            let held = last.contents.get(&key).copied();
            premises += u64::from(register.is_written());
            if !register.observe(held, last.index) {
                let what = format!(
                    "lost write: the final state at {:?} has {} in register {}, the log makes it {}",
                    last.index,
                    Shown(held),
                    key.0,
                    register.expected()
                );
                return Err(Stop::violated(what, register.last.into_iter().collect::<Vec<_>>()));
            }
        }
    }
    Ok(premises)
}

/// One register on its way through the log.
#[derive(Debug)]
struct Register {
    /// What it may hold if no unplaced write took effect since `since`. Empty: only an unplaced
    /// write explains what was seen.
    contents: Vec<Content>,
    /// The last index at which its content was certain.
    since: LogIndex,
    /// The last operation that made it so, to name it.
    last: Option<usize>,
    /// Unknown writes that nothing has needed yet: what each leaves, the index that its own exceeds,
    /// its position.
    unplaced: BTreeSet<(Content, LogIndex, usize)>,
    /// What refused writes would have left.
    refused: BTreeSet<Content>,
    written: bool,
}

impl Default for Register {
    fn default() -> Self {
        Register {
            contents: vec![None],
            since: LogIndex(0),
            last: None,
            unplaced: BTreeSet::new(),
            refused: BTreeSet::new(),
            written: false,
        }
    }
}

impl Register {
    fn is_written(&self) -> bool {
        self.written || !self.unplaced.is_empty() || !self.refused.is_empty()
    }

    /// Takes one step; gives the number of premises.
    fn step(&mut self, step: &Step) -> Result<u64, Stop> {
        match (step.call, step.answer) {
            (Call::Write { .. } | Call::Delete { .. }, _) => {
                self.settle(step.call.run(None).0, step.index, Some(step.position));
                return Ok(0);
            }
            (Call::Read { key }, answer) => {
                let Some(Answer::Read(seen)) = answer else { return Ok(0) };
                if !self.observe(seen, step.index) {
                    let name = if self.refused.contains(&seen) { "dirty read" } else { "wrong read" };
                    let what = format!(
                        "{name}: operation {} saw {} in register {} at {:?}, the log makes it {}",
                        step.position,
                        Shown(seen),
                        key.0,
                        step.index,
                        self.expected()
                    );
                    return Err(self.wrong(what, step));
                }
            }
            (Call::Cas { from, to, .. }, answer) => {
                let before = LogIndex(step.index.0 - 1);
                let explained = match answer {
                    Some(Answer::Done) => {
                        let found = self.observe(from, before);
                        self.settle_if(found, Some(to), step);
                        found
                    }
                    Some(Answer::Mismatch) => {
                        let other = self.may_hold_other(from, before);
                        self.contents.retain(|content| *content != from);
                        other
                    }
                    Some(Answer::Read(_)) | None => {
                        if self.may_hold(from, before) && !self.contents.contains(&Some(to)) {
                            self.contents.push(Some(to));
                        }
                        if from != Some(to) {
                            self.contents.retain(|content| *content != from);
                        }
                        return Ok(0);
                    }
                };
                if !explained {
                    let what = format!(
                        "wrong answer: operation {} compared register {} with {} at {:?}, the log makes it {}, and was told {}",
                        step.position,
                        step.call.key().0,
                        Shown(from),
                        step.index,
                        self.expected(),
                        if answer == Some(Answer::Done) { "that it is so" } else { "that it is not" }
                    );
                    return Err(self.wrong(what, step));
                }
            }
        }
        Ok(u64::from(self.is_written()))
    }

    /// Its content was seen at `index`. False if nothing explains it.
    fn observe(&mut self, seen: Content, index: LogIndex) -> bool {
        if !self.contents.contains(&seen) {
            let Some(writer) = self.unplaced_for(seen, index) else { return false };
            // A write takes effect once. Those that leave the same differ only in the index from
            // which on they can be used, and the earliest is used up first, so none is missed later.
            self.unplaced.remove(&writer);
        }
        let last = self.last;
        self.settle(seen, self.since.max(index), last);
        true
    }

    fn settle(&mut self, content: Content, index: LogIndex, by: Option<usize>) {
        self.contents = vec![content];
        self.since = index;
        self.last = by;
    }

    fn settle_if(&mut self, found: bool, content: Content, step: &Step) {
        if found {
            self.settle(content, step.index, Some(step.position));
        }
    }

    /// The earliest unplaced write that may have left `content` there at `index`.
    fn unplaced_for(&self, content: Content, index: LogIndex) -> Option<(Content, LogIndex, usize)> {
        if self.since >= index {
            return None;
        }
        let earliest = self.unplaced.range((content, LogIndex(0), 0)..).next()?;
        (earliest.0 == content && earliest.1 < index).then_some(*earliest)
    }

    fn may_hold(&self, content: Content, index: LogIndex) -> bool {
        self.contents.contains(&content) || self.unplaced_for(content, index).is_some()
    }

    fn may_hold_other(&self, than: Content, index: LogIndex) -> bool {
        self.contents.iter().any(|content| *content != than)
            || self.since < index && self.unplaced.iter().any(|(content, floor, _)| *content != than && *floor < index)
    }

    fn expected(&self) -> String {
        let contents: Vec<_> = self.contents.iter().map(|content| Shown(*content).to_string()).collect();
        if contents.is_empty() { "what an unknown write left".to_owned() } else { contents.join(" or ") }
    }

    fn wrong(&self, what: String, step: &Step) -> Stop {
        let mut operations: Vec<usize> = self.last.into_iter().collect();
        operations.push(step.position);
        Stop::violated(what, operations)
    }
}
